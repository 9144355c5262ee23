"""Convolution regions with channels last: every Conv that pays is a DeftConv, transposes stay at the edges.

1. A DeftConv reads and writes (batch, *image, channels), between two transposes (convolutions). Windows that
   lie side by side become pixels (patches), and images of few channels come in by DeftChannelsLast (region).
2. What follows moves inside, so that transposes meet and cancel: elementwise operators, Concat and others that go by
   axes (moves), pooling and local response normalisation, which become DeftPool (pooling).
3. Where a region ends in a vector or a sequence, no transpose is left: the weights behind are permuted (leaving).

What a region has no channels-last operator for stays between transposes.
"""

from deftonnx.rewrite.channels_last.rewrite import to_channels_last

__all__ = ["to_channels_last"]
