"""Pictures of what a run saved, with captions."""
