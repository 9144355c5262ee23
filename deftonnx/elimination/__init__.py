"""Which input features go (a criterion) and what is done to the weights that stay (a refit)."""
