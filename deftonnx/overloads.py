"""Models with several function bodies of one name, which ONNX Runtime knows from 1.27 on."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnxruntime

KNOWN = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 27)
"""Whether this ONNX Runtime gives each node its own body."""


def loadable(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` as this ONNX Runtime runs it without the operator library: its bodies are inlined where it has to be."""
    if KNOWN or not any(function.overload for function in model.functions):
        return model
    return onnx.inliner.inline_local_functions(model)
