"""Absorption: features nobody keeps are deleted where they are made, so that no Gather is left (ladder steps 1–2)."""

from deftonnx.rewrite.absorb.absorb import Source, absorb, absorbable, readers

__all__ = ["Source", "absorb", "absorbable", "readers"]
