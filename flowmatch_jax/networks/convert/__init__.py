"""Weights of other projects' networks, read without their code, as parameters of our networks."""
