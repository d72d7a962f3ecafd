"""Evaluation of trained parameters: samples, likelihoods, and the record of both."""
