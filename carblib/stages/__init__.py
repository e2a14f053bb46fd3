"""The steps of a run, each of which leaves its results on disk."""
