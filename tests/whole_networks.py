"""Random whole networks: convolutional ones with branches and residuals, and transformers, as exporters write them.

Wider and more regular than the graphs of generator.py: sizes at which the GPU kernels have tiles of their own, odd
images, a free batch dimension, and for transformers a free sequence length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from generator import Array, Builder, Shape
from onnx import TensorProto, helper

OPSETS = (13, 17, 18, 21)
WIDTHS = (8, 16, 24, 32, 64, 72, 96, 128)
VOCABULARY = 50
LONGEST = 40
"""Positions that a model of tokens knows."""


class NetworkBuilder(Builder):
    """Builds one network; `convolutional` or `transformer` is called once."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.opset = int(self.rng.choice(OPSETS))

    def model(self, inputs: dict[str, tuple[int, list[Any]]], output: str, shape: list[Any]) -> onnx.ModelProto:
        """The model; `inputs` by name: element type and shape."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    # -- convolutional ------------------------------------------------------------------------------------------

    def convolutional(self) -> onnx.ModelProto:
        """Stem, two to five stages, and a head of ten outputs; input x (N, C, H, W)."""
        shape: Shape = (self.pick([1, 3, 3, 4, 8]), int(self.rng.integers(13, 38)), int(self.rng.integers(13, 38)))
        x = "x"
        y, size = self.convolution(x, shape, self.pick([16, 32, 64]), self.pick([3, 5, 7]), self.pick([1, 2]))
        y = self.add("Relu", [y])
        if self.chance(0.5):
            y, size = self.pooled(y, size)
        for _ in range(int(self.rng.integers(2, 6))):
            stage = self.pick(
                [self.residual, self.bottleneck, self.branches, self.dense_block, self.separable, self.plain]
            )
            y, size = stage(y, size)
            if min(size[1:]) > 8 and self.chance(0.5):
                y, size = self.pooled(y, size)
        y, width = self.flat(y, size)
        if self.chance(0.5):
            y, width = self.dense(y, width, self.pick([32, 72, 128]))
            y = self.add("Relu", [y])
        y, _ = self.dense(y, width, 10)
        if self.chance(0.2):
            y = self.add("Softmax", [y], axis=-1)
        return self.model({"x": (TensorProto.FLOAT, ["N", *shape])}, y, ["N", 10])

    def convolution(
        self, x: str, shape: Shape, outputs: int, kernel: int, stride: int = 1, group: int = 1, dilation: int = 1
    ) -> tuple[str, Shape]:
        """Padded to keep the image where the stride is one; with a bias, a BatchNormalization, or both."""
        pad = dilation * (kernel - 1) // 2
        filters = self.rng.normal(size=(outputs, shape[0] // group, kernel, kernel))
        inputs = [x, self.constant(filters * np.sqrt(2 / filters[0].size), np.float32)]
        normalised = self.chance(0.5)
        if not normalised or self.chance(0.2):
            inputs.append(self.constant(0.1 * self.rng.normal(size=outputs), np.float32))
        attributes = {
            "group": group,
            "strides": [stride] * 2,
            "kernel_shape": [kernel] * 2,
            "dilations": [dilation] * 2,
        }
        y = self.add("Conv", inputs, pads=[pad] * 4, **attributes)
        if normalised:
            y = self.batch_norm(y, outputs)
        return y, (outputs, *[(n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for n in shape[1:]])

    def batch_norm(self, x: str, channels: int) -> str:
        """Inference BatchNormalization with the statistics of a trained network: nothing is scaled far."""
        scale, variance = (self.constant(self.rng.uniform(0.7, 1.4, channels), np.float32) for _ in range(2))
        shift, mean = (self.constant(0.1 * self.rng.normal(size=channels), np.float32) for _ in range(2))
        return self.add("BatchNormalization", [x, scale, shift, mean, variance])

    def curved(self, x: str) -> str:
        """An activation that convolutional networks use."""
        kind = self.pick(["relu", "relu", "relu", "leaky", "clip", "silu", "hard_swish", "sigmoid"])
        if kind == "leaky":
            return self.add("LeakyRelu", [x], alpha=0.1)
        if kind == "clip":
            return self.add("Clip", [x, self.constant(0.0, np.float32), self.constant(6.0, np.float32)])
        if kind == "silu":
            return self.add("Mul", [x, self.add("Sigmoid", [x])])
        if kind == "hard_swish":
            return self.add("Mul", [x, self.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])
        return self.add("Sigmoid" if kind == "sigmoid" else "Relu", [x])

    def pooled(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """Max or average pooling, overlapping at times."""
        kernel, ceil = self.pick([2, 3]), int(self.chance(0.3))
        attributes = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "ceil_mode": ceil}
        y = self.add(self.pick(["MaxPool", "AveragePool"]), [x], **attributes)
        return y, (shape[0], *[-(-(n - kernel) // 2) + 1 if ceil else (n - kernel) // 2 + 1 for n in shape[1:]])

    def plain(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """One convolution, grouped or dilated at times."""
        group, dilation = self.pick([(1, 1), (1, 2), (2, 1), (4, 1), (1, 3)])
        outputs = self.pick([w for w in WIDTHS if w % group == 0])
        group = group if shape[0] % group == 0 else 1
        kernel = self.pick([1, 3, 5])
        y, size = self.convolution(x, shape, outputs, kernel, 1, group, dilation)
        if self.chance(0.2):
            y = self.add("LRN", [y], size=3)
        return self.curved(y), size

    def residual(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """Two 3×3 convolutions and the skip connection, which is projected where sizes change."""
        outputs, stride = self.pick([(shape[0], 1), (self.pick(WIDTHS), 1), (self.pick(WIDTHS), 2)])
        y, size = self.convolution(x, shape, outputs, 3, stride)
        y, size = self.convolution(self.curved(y), size, outputs, 3)
        skip = x if size == shape else self.convolution(x, shape, outputs, 1, stride)[0]
        y = self.add("Add", self.shuffled([y, skip]))
        return (self.curved(y) if self.chance(0.8) else y), size

    def bottleneck(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """1×1, 3×3 in groups at times, 1×1, and the skip connection."""
        inner, group = self.pick([(32, 1), (64, 1), (128, 2), (64, 4), (24, 1)])
        y, size = self.convolution(x, shape, inner, 1)
        y, size = self.convolution(self.curved(y), size, inner, 3, 1, group)
        y, size = self.convolution(self.curved(y), size, shape[0], 1)
        if self.chance(0.3):
            y = self.squeezed(y, size)
        return self.add("Relu", [self.add("Add", self.shuffled([x, y]))]), size

    def branches(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """Two to four convolutions of one input, and its pooled self at times, joined."""
        parts, total, size = [], 0, shape
        for _ in range(self.pick([2, 3, 4])):
            outputs = self.pick([8, 16, 24, 64])
            y, size = self.convolution(x, shape, outputs, self.pick([1, 3, 5]), 1, 1, self.pick([1, 1, 2]))
            parts, total = [*parts, self.curved(y)], total + outputs
        if self.chance(0.5):
            pool = self.add("MaxPool", [x], kernel_shape=[3, 3], pads=[1] * 4)
            parts, total = [*parts, pool], total + shape[0]
        return self.add("Concat", self.shuffled(parts), axis=1), (total, *size[1:])

    def dense_block(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """Two convolutions, each of which reads all that was made before it."""
        for _ in range(2):
            y, _ = self.convolution(self.curved(x), shape, 16, 3)
            x, shape = self.add("Concat", [x, y], axis=1), (shape[0] + 16, *shape[1:])
        return x, shape

    def separable(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """Depthwise 3×3 or 5×5, squeeze-and-excite at times, 1×1."""
        y, size = self.convolution(x, shape, shape[0], self.pick([3, 5]), self.pick([1, 2]), shape[0])
        y = self.curved(y)
        if self.chance(0.4):
            y = self.squeezed(y, size)
        return self.convolution(y, size, self.pick(WIDTHS), 1)

    def squeezed(self, x: str, shape: Shape) -> str:
        """Squeeze and excite."""
        y = self.add("GlobalAveragePool", [x])
        y = self.add("Relu", [self.add("Conv", [y, self.weight(8, shape[0], 1, 1), self.weight(8)])])
        y = self.add("Conv", [y, self.weight(shape[0], 8, 1, 1), self.weight(shape[0])])
        return self.add("Mul", [x, self.add(self.pick(["Sigmoid", "HardSigmoid"]), [y])])

    def flat(self, x: str, shape: Shape) -> tuple[str, int]:
        """The head's features."""
        kind = self.pick(["pool", "mean", "flatten"])
        if kind == "flatten" and int(np.prod(shape)) <= 4000:
            return self.add("Flatten", [x]), int(np.prod(shape))
        if kind == "mean":
            return self.integers("ReduceMean", x, "axes", [2, 3], 18, keepdims=0), shape[0]
        return self.add("Flatten", [self.add("GlobalAveragePool", [x])]), shape[0]

    def shuffled(self, names: list[str]) -> list[str]:
        """In random order."""
        return [names[int(i)] for i in self.rng.permutation(len(names))]

    # -- transformers -------------------------------------------------------------------------------------------

    def transformer(self) -> onnx.ModelProto:
        """One to three blocks on tokens with a mask, on a sequence, or on patches of an image."""
        heads, size = self.pick([(2, 16), (4, 16), (2, 32), (3, 24), (1, 64), (4, 32), (2, 64)])
        width, mask = heads * size, None
        kind = self.pick(["tokens", "sequence", "patches"])
        if kind == "tokens":
            y, mask = self.embedded(width), self.hidden()
            inputs = {name: (TensorProto.INT64, ["N", "T"]) for name in ("tokens", "mask")}
        elif kind == "sequence":
            y, _ = self.dense("x", 24, width, sequence=True)
            inputs = {"x": (TensorProto.FLOAT, ["N", "T", 24])}
        else:
            image = [3, 4 * int(self.rng.integers(2, 6)), 4 * int(self.rng.integers(2, 6))]
            y = self.add("Conv", ["x", self.weight(width, 3, 4, 4), self.weight(width)], strides=[4, 4])
            y = self.add("Reshape", [y, self.constant([0, width, -1])])
            y = self.add("Transpose", [y], perm=[0, 2, 1])
            inputs = {"x": (TensorProto.FLOAT, ["N", *image])}
        early, gated = self.chance(0.6), self.chance(0.25)
        for _ in range(int(self.rng.integers(1, 4))):
            y = self.block(y, heads, size, mask, early, gated)
        if early:
            y = self.norm(y, width)
        if self.chance(0.3):
            y, outputs = self.dense(y, width, 12, sequence=True)
            return self.model(inputs, y, ["N", None, outputs])
        if self.chance(0.5):
            y = self.add("Gather", [y, self.constant(0)], axis=1)
        else:
            y = self.integers("ReduceMean", y, "axes", [1], 18, keepdims=0)
        y, _ = self.dense(y, width, 10)
        return self.model(inputs, y, ["N", 10])

    def embedded(self, width: int) -> str:
        """Tokens and their positions."""
        table, positions = self.weight(VOCABULARY, width), self.weight(LONGEST, width)
        for tensor in self.initializers[-2:]:
            values = np.frombuffer(tensor.raw_data, np.float32) * np.float32(np.sqrt(width))
            tensor.raw_data = values.tobytes()
        length = self.add("Gather", [self.add("Shape", ["tokens"]), self.constant([1])], axis=0)
        slices = [positions, self.constant([0]), length, self.constant([0])]
        return self.add("Add", [self.add("Gather", [table, "tokens"], axis=0), self.add("Slice", slices)])

    def hidden(self) -> str:
        """(N, 1, 1, T): 0 where the mask is 1, else a large negative number."""
        y = self.add("Cast", [self.integers("Unsqueeze", "mask", "axes", [1, 2], 13)], to=TensorProto.FLOAT)
        y = self.add("Sub", [self.constant(1.0, np.float32), y])
        return self.add("Mul", [y, self.constant(self.pick([-1e4, -3.4028235e38]), np.float32)])

    def block(self, x: str, heads: int, size: int, mask: str | None, early: bool, gated: bool) -> str:
        """Attention and a feed-forward part, normalised before (`early`) or after."""
        width = heads * size
        for part in (lambda y: self.heads(y, heads, size, mask), lambda y: self.feed_forward(y, width, gated)):
            y = part(self.norm(x, width) if early else x)
            x = self.add("Add", self.shuffled([x, y]))
            x = x if early else self.norm(x, width)
        return x

    def norm(self, x: str, width: int) -> str:
        """LayerNormalization, or its parts before opset 17."""
        scale, shift = self.weight(width, positive=True), self.weight(width)
        if self.opset >= 17:
            return self.add("LayerNormalization", [x, scale, shift], axis=-1, epsilon=1e-5)
        centred = self.add("Sub", [x, self.add("ReduceMean", [x], axes=[-1])])
        square = self.add("Pow", [centred, self.constant(2.0, np.float32)])
        variance = self.add("Add", [self.add("ReduceMean", [square], axes=[-1]), self.constant(1e-5, np.float32)])
        y = self.add("Div", [centred, self.add("Sqrt", [variance])])
        return self.add("Add", [self.add("Mul", [y, scale]), shift])

    def heads(self, x: str, heads: int, size: int, mask: str | None) -> str:
        """Self-attention with a projection of its own for Q, K and V, or one for all."""
        width = heads * size
        if self.chance(0.3):
            joined, _ = self.dense(x, width, 3 * width, sequence=True)
            sizes = self.constant([width] * 3)
            q, k, v = self.add("Split", [joined, sizes], 3, axis=-1)
        else:
            q, k, v = (self.dense(x, width, width, sequence=True)[0] for _ in range(3))
        q, k, v = (self.add("Reshape", [t, self.constant([0, -1, heads, size])]) for t in (q, k, v))
        q, v = (self.add("Transpose", [t], perm=[0, 2, 1, 3]) for t in (q, v))
        k = self.add("Transpose", [k], perm=[0, 2, 3, 1])
        root = np.sqrt(size)
        if self.chance(0.5):
            scores = self.add("Div", [self.add("MatMul", [q, k]), self.constant(root, np.float32)])
        else:
            scores = self.add("MatMul", [self.add("Mul", [q, self.constant(1 / root, np.float32)]), k])
        if mask is not None:
            scores = self.add("Add", [scores, mask])
        y = self.add("MatMul", [self.add("Softmax", [scores], axis=-1), v])
        y = self.add("Reshape", [self.add("Transpose", [y], perm=[0, 2, 1, 3]), self.constant([0, -1, width])])
        return self.dense(y, width, width, sequence=True)[0]

    def feed_forward(self, x: str, width: int, gated: bool) -> str:
        """Two layers with a GELU or a ReLU between, or a gated pair and one layer."""
        inner = width * self.pick([2, 4])
        y, _ = self.dense(x, width, inner, sequence=True)
        if gated:
            up, _ = self.dense(x, width, inner, sequence=True)
            y = self.add("Mul", [self.add("Mul", [y, self.add("Sigmoid", [y])]), up])
        else:
            y = self.pick([self.gelu, self.gelu, self.gelu_tanh, lambda t: self.add("Relu", [t])])(y)
        return self.dense(y, inner, width, sequence=True)[0]

    def gelu(self, x: str) -> str:
        """With the error function."""
        scaled = self.add("Div", [x, self.constant(np.sqrt(2), np.float32)])
        y = self.add("Mul", [x, self.add("Add", [self.add("Erf", [scaled]), self.constant(1.0, np.float32)])])
        return self.add("Mul", [y, self.constant(0.5, np.float32)])

    def gelu_tanh(self, x: str) -> str:
        """With the hyperbolic tangent."""
        cubic = self.add(
            "Mul", [self.add("Pow", [x, self.constant(3.0, np.float32)]), self.constant(0.044715, np.float32)]
        )
        inner = self.add("Mul", [self.add("Add", [x, cubic]), self.constant(np.sqrt(2 / np.pi), np.float32)])
        outer = self.add("Add", [self.add("Tanh", [inner]), self.constant(1.0, np.float32)])
        return self.add("Mul", [self.add("Mul", [x, self.constant(0.5, np.float32)]), outer])


def network(seed: int) -> onnx.ModelProto:
    """A convolutional network for even seeds, a transformer for odd ones."""
    builder = NetworkBuilder(seed)
    return builder.transformer() if seed % 2 else builder.convolutional()


def inputs_of(model: onnx.ModelProto, batch: int, length: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs for `batch` samples of `length` tokens; the ends of some samples are masked."""
    rng = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for value in model.graph.input:
        sizes = {"N": batch, "T": length}
        shape = [sizes.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim]
        if value.name == "tokens":
            feed[value.name] = rng.integers(0, VOCABULARY, shape)
        elif value.name == "mask":
            feed[value.name] = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
        else:
            feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feed
