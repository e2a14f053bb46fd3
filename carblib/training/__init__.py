"""What makes the iteration of `carblib.step` a training: loop, state, log, monitoring, official checkpoints."""
