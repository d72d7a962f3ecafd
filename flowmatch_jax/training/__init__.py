"""Training: state, step, mesh, checkpoints, log and the loop over them."""
