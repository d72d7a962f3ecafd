"""Measures of samples against data: features, their moments, distances of these."""
