"""Rendered street scenes with exact masks, and how the two embedded models were trained on them."""
