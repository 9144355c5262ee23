"""A small model, data for it, and the state of a folder, for tests that work on files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

SAMPLES = 64


def small_model(batch: str = "N", seed: int = 0) -> onnx.ModelProto:
    """Three Gemms, 16 → 32 → 32 → 4, of which the middle one is neither first nor last."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        small (float[{batch}, 16] x) => (float[{batch}, 4] y) {{
            a = Gemm (x, w0, b0)
            b = Relu (a)
            c = Gemm (b, w1, b1)
            d = Relu (c)
            y = Gemm (d, w2, b2)
        }}"""
    )
    rng = np.random.default_rng(seed)
    for serial, (inputs, outputs) in enumerate(((16, 32), (32, 32), (32, 4))):
        model.graph.node[2 * serial].name = f"fc{serial}"
        for name, shape in (("w", (inputs, outputs)), ("b", (outputs,))):
            values = rng.standard_normal(shape).astype(np.float32) / 4
            model.graph.initializer.append(numpy_helper.from_array(values, f"{name}{serial}"))
    return model


def inputs(samples: int = SAMPLES, seed: int = 1) -> np.ndarray[Any, Any]:
    """Samples for `small_model`, with correlated features."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((samples, 8)) @ rng.standard_normal((8, 16))).astype(np.float32)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
