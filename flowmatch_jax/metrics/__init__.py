"""Sample quality metrics: features, their moments, and distances between them."""
