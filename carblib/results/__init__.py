"""What a run saved, in numbers and words: read back, tables, findings."""
