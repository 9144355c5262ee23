"""Models whose attention is fused as `optimize` does it, and how far apart two models' outputs are."""

import numpy as np
from models import run

from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import import_model, normalise
from deftonnx.transformers import fuse_transformers


def fused(proto, feed):
    """The model with its norms and attention fused, and the reasons of what was left."""
    graph = import_model(proto)
    normalise(graph)
    refusals = fuse_transformers(graph, proto, [feed])
    return finish(graph, proto, {}).whole(), [refusal.reason for refusal in refusals]


def distance(proto, like, feed):
    """The largest ‖Δ‖/‖y‖ of the outputs of `proto`, y being those of `like`."""
    pairs = zip(run(proto, feed), run(like, feed), strict=True)
    return max(np.linalg.norm(got - want) / np.linalg.norm(want) for got, want in pairs)
