"""Flow Matching for Generative Modeling (Lipman et al., ICLR 2023) in JAX and Flax."""
