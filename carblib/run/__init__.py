"""Notebooks run headless, batches over datasets, and the report."""
