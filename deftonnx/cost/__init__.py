"""What a rewrite costs and gains on a GPU: measured where there is one, else estimated."""
