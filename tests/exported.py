"""Small transformers as exporters write them: graphs of torch.onnx.export (TorchScript and dynamo), weights made up.

The files hold the graphs of two-layer models of torchvision 0.26, timm 1.0.29 and transformers 5.17 (torch 2.11), those
of decoders transformers 5.23 (torch 2.13), their larger weights left out.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

FOLDER = Path(__file__).parent / "data" / "exported"
DECODERS = sorted(path.stem for pattern in ("llama*.onnx", "qwen*.onnx") for path in FOLDER.glob(pattern))
NAMES = sorted({path.stem for path in FOLDER.glob("*.onnx")} - {*DECODERS})


def exported(name: str, seed: int = 0) -> onnx.ModelProto:
    """The model with seeded random weights."""
    model = onnx.load(str(FOLDER / f"{name}.onnx"))
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not tensor.raw_data and not tensor.float_data:
            fan_in = max(int(np.prod(tensor.dims)) // max(tensor.dims), 1)
            values = rng.standard_normal(list(tensor.dims)) / np.sqrt(fan_in)
            tensor.raw_data = (values if len(tensor.dims) > 1 else 0.3 * values + 0.5).astype(np.float32).tobytes()
    return model


def feeds(name: str, batch: int = 5, length: int = 9, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs of a model; the last two tokens of some sequences are masked."""
    rng = np.random.default_rng(seed)
    if name.endswith("unmasked"):
        return {"input_ids": rng.integers(0, 100, (batch, length))}
    if not name.startswith("bert") and name not in DECODERS:
        return {"x": rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)}
    mask = np.ones((batch, length), np.int64)
    mask[1::2, -2:] = 0
    return {"input_ids": rng.integers(0, 100, (batch, length)), "attention_mask": mask}
