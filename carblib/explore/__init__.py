"""The explorer: one image at a time, live."""
