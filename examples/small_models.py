"""Small models with random weights, and data to go with them, so that the other examples run without any download.

The data has structure that an eliminator can use, as natural images have: neighbouring pixels are alike. Nothing
here is trained, so figures from these models show how the tool works, not what accuracy it keeps.
"""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


def images(samples: int, channels: int, size: int, seed: int = 0) -> Array:
    """Smooth random images (samples, channels, size, size)."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((samples, channels, size // 4, size // 4))
    fine = 0.1 * rng.standard_normal((samples, channels, size, size))
    return (coarse.repeat(4, axis=2).repeat(4, axis=3) + fine).astype(np.float32)


class _Builder:
    """Collects the nodes and weights of one graph; every method adds a layer and gives the name of its output."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, values: Array) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, *shape: int, fan_in: int) -> str:
        values = self.rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        return self.constant(name, values.astype(np.float32))

    def conv_bn_relu(self, x: str, name: str, inputs: int, outputs: int) -> str:
        weight = self.weight(f"{name}.weight", outputs, inputs, 3, 3, fan_in=9 * inputs)
        y = self.op("Conv", x, weight, name=name, pads=[1, 1, 1, 1])
        norm = [
            self.constant(f"{name}.bn.{part}", self.rng.uniform(low, high, outputs).astype(np.float32))
            for part, low, high in (
                ("scale", 0.8, 1.2),
                ("bias", -0.1, 0.1),
                ("mean", -0.1, 0.1),
                ("var", 0.8, 1.2),
            )
        ]
        return self.op("Relu", self.op("BatchNormalization", y, *norm))

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        y = self.op("MatMul", x, self.weight(f"{name}.weight", inputs, outputs, fan_in=2 * inputs), name=name)
        return self.op("Add", y, self.constant(f"{name}.bias", np.zeros(outputs, np.float32)))

    def layer_norm(self, x: str, name: str, width: int) -> str:
        scale = self.constant(f"{name}.scale", np.ones(width, np.float32))
        return self.op("LayerNormalization", x, scale, axis=-1)

    def reshape(self, x: str, name: str, *shape: int) -> str:
        return self.op("Reshape", x, self.constant(f"{name}.shape", np.array(shape, np.int64)))

    def model(self, x: str, input_shape: list[int], classes: int) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, ["batch", *input_shape])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", classes])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def vgg(widths: tuple[int, ...] = (32, 64, 64), size: int = 32, classes: int = 10) -> onnx.ModelProto:
    """At each width two 3×3 convolutions with BatchNorm and ReLU and a MaxPool; then two fully connected layers."""
    build = _Builder(seed=0)
    y, inputs = "image", 3
    for stage, width in enumerate(widths):
        for serial in range(2):
            y = build.conv_bn_relu(y, f"conv{stage}_{serial}", inputs, width)
            inputs = width
        y = build.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = build.op("Flatten", y)
    y = build.op("Relu", build.linear(y, "fc0", inputs * (size >> len(widths)) ** 2, 128))
    build.linear(y, "fc1", 128, classes)
    return build.model("image", [3, size, size], classes)


def vit(width: int = 64, blocks: int = 2, heads: int = 4, size: int = 32, classes: int = 10) -> onnx.ModelProto:
    """4×4 patches, then blocks of attention with separate Q, K and V and of a GELU MLP, both residual."""
    build = _Builder(seed=0)
    tokens, head = (size // 4) ** 2, width // heads
    patches = build.weight("patches.weight", width, 3, 4, 4, fan_in=96)
    y = build.op("Conv", "image", patches, name="patches", strides=[4, 4])
    y = build.op("Transpose", build.reshape(y, "tokens", 0, width, tokens), perm=[0, 2, 1])
    for serial in range(blocks):
        x = build.layer_norm(y, f"b{serial}.ln0", width)
        split = {}
        for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            z = build.linear(x, f"b{serial}.{part}", width, width)
            split[part] = build.op(
                "Transpose", build.reshape(z, f"b{serial}.{part}", 0, tokens, heads, head), perm=perm
            )
        scores = build.op("MatMul", split["q"], split["k"])
        root = build.constant(f"b{serial}.root", np.float32([np.sqrt(head)]))
        z = build.op("MatMul", build.op("Softmax", build.op("Div", scores, root), axis=-1), split["v"])
        z = build.reshape(build.op("Transpose", z, perm=[0, 2, 1, 3]), f"b{serial}.heads", 0, tokens, width)
        y = build.op("Add", y, build.linear(z, f"b{serial}.o", width, width))
        x = build.linear(build.layer_norm(y, f"b{serial}.ln1", width), f"b{serial}.f0", width, 4 * width)
        gelu = build.op(
            "Mul",
            x,
            build.op("Sigmoid", build.op("Mul", x, build.constant(f"b{serial}.gelu", np.float32([1.702])))),
        )
        y = build.op("Add", y, build.linear(gelu, f"b{serial}.f1", 4 * width, width))
    y = build.op("ReduceMean", build.layer_norm(y, "ln", width), axes=[1], keepdims=0)
    build.linear(y, "classes", width, classes)
    return build.model("image", [3, size, size], classes)
