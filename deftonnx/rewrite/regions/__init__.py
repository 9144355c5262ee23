"""Regions of a graph that compute in 16 bits: which nodes (assign), and the rewrite (convert)."""
