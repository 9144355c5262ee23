"""Attention as exporters write it, recognised by what it computes and replaced by one MultiHeadAttention node.

core.py finds softmax(a·b·scale + mask)·v; layout.py follows where every number of a, b and v comes from, whatever
chain of Reshape, Transpose, Split and Gather brought it there; heads.py reads heads and features off that; fuse.py
rewrites the graph. pack.py makes one product of queries, keys and values when types are settled.
"""
