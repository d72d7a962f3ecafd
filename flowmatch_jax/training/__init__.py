"""Training: state, step, checkpoints, log, and the loop."""
