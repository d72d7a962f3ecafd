"""Evaluation of trained weights: samples, likelihoods, sample quality, and their records."""
