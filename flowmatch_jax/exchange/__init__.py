"""Weights of other projects as runs of this one, and runs as files for others."""
