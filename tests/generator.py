"""Random graphs for property tests: convolutional, dense and sequence parts with branches, joins and layout changes.

A graph grows one random step at a time. `Builder.tensors` holds what later steps may read, as name → shape without the
batch; the rank says what kind of tensor it is: (C, *spatial) for images, (F,) for features. Sequences (T, F) are kept
apart in `Builder.sequences`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
OPSETS = (11, 12, 13, 17, 18, 21)
ACTIVATIONS = ("Relu", "Sigmoid", "LeakyRelu", "Tanh", "Softplus", "HardSigmoid", "Elu", "Erf", "Abs", "Neg")
CHANNELS = (4, 6, 8, 12, 16)


class Builder:
    """The graph so far."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(OPSETS))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.images: dict[str, Shape] = {}
        self.features: dict[str, Shape] = {}
        self.sequences: dict[str, Shape] = {}

    # -- building blocks ----------------------------------------------------------------------------------------

    def pick(self, options: Any) -> Any:
        """One of `options`."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True that often."""
        return bool(self.rng.random() < probability)

    def weight(self, *shape: int, positive: bool = False) -> str:
        """A random float initializer."""
        values = self.rng.normal(size=shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.constant(np.abs(values) + 0.5 if positive else values, np.float32)

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """An initializer."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def add(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        """A node; the name of its output, or of all of them."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def integers(self, op: str, x: str, attribute: str, values: list[int], since: int, **attributes: Any) -> str:
        """A node whose integer parameter became an input in opset `since`."""
        if self.opset >= since:
            return self.add(op, [x, self.constant(values)], **attributes)
        return self.add(op, [x], **attributes, **{attribute: values})

    def activation(self, x: str) -> str:
        """A random elementwise function."""
        return self.add(self.pick(ACTIVATIONS), [x])

    def any(self, tensors: dict[str, Shape]) -> tuple[str, Shape]:
        """A recent tensor most of the time, any other at times."""
        names = list(tensors)
        name = names[-1] if self.chance(0.6) else self.pick(names)
        return name, tensors[name]

    def like(self, tensors: dict[str, Shape], fits: Callable[[Shape], bool]) -> str | None:
        """A tensor whose shape fits."""
        names = [name for name, shape in tensors.items() if fits(shape)]
        return self.pick(names) if names else None

    # -- image steps --------------------------------------------------------------------------------------------

    def conv(self, x: str, shape: Shape) -> None:
        """A convolution with random groups, strides, dilations and padding."""
        channels, *spatial = shape
        group = self.pick([g for g in (1, 1, 1, 2, 4) if channels % g == 0])
        outputs = self.pick([c for c in CHANNELS if c % group == 0])
        kernel = [int(self.rng.integers(1, min(3, s) + 1)) for s in spatial]
        strides = [self.pick([1, 1, 2]) for _ in spatial]
        dilations = [self.pick([1, 1, 2]) if d * 2 <= s else 1 for d, s in zip(kernel, spatial, strict=True)]
        inputs = [x, self.weight(outputs, channels // group, *kernel)]
        if self.chance(0.6):
            inputs.append(self.weight(outputs))
        attributes: dict[str, Any] = {"group": group, "strides": strides, "kernel_shape": kernel}
        extent = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        if self.chance(0.25):
            attributes["auto_pad"] = self.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
            if attributes["auto_pad"] == "VALID":
                out = [(s - e) // t + 1 for s, e, t in zip(spatial, extent, strides, strict=True)]
            else:
                dilations = [1] * len(spatial)
                out = [-(-s // t) for s, t in zip(spatial, strides, strict=True)]
        else:
            pads = [[int(self.rng.integers(0, 3)) for _ in spatial] for _ in range(2)]
            attributes["pads"] = pads[0] + pads[1]
            whole = [s + a + b for s, a, b in zip(spatial, *pads, strict=True)]
            out = [(s - e) // t + 1 for s, e, t in zip(whole, extent, strides, strict=True)]
        if min(out) < 1:
            return
        if self.chance(0.7) or max(dilations) > 1:
            attributes["dilations"] = dilations
        y = self.add("Conv", inputs, **attributes)
        if self.chance(0.3):
            y = self.batch_norm(y, outputs)
        self.images[self.activation(y) if self.chance(0.6) else y] = (outputs, *out)

    def batch_norm(self, x: str, channels: int) -> str:
        """Inference BatchNormalization."""
        parameters = [self.weight(channels) for _ in range(3)] + [self.weight(channels, positive=True)]
        return self.add("BatchNormalization", [x, *parameters])

    def depthwise(self, x: str, shape: Shape) -> None:
        """A depthwise convolution, multiplier one or two."""
        channels, *spatial = shape
        multiplier = self.pick([1, 1, 2])
        inputs = [x, self.weight(channels * multiplier, 1, *[3] * len(spatial))]
        if self.chance(0.5):
            inputs.append(self.weight(channels * multiplier))
        y = self.add("Conv", inputs, group=channels, pads=[1] * 2 * len(spatial))
        self.images[y] = (channels * multiplier, *spatial)

    def conv_transpose(self, x: str, shape: Shape) -> None:
        """A transposed convolution, grouped at times."""
        channels, *spatial = shape
        group = self.pick([g for g in (1, 1, 2) if channels % g == 0])
        outputs = self.pick(CHANNELS[:4])
        kernel, stride = self.pick([(2, 2), (3, 2), (1, 1), (3, 1)])
        inputs = [x, self.weight(channels, outputs // group, *[kernel] * len(spatial))]
        if self.chance(0.5):
            inputs.append(self.weight(outputs))
        y = self.add("ConvTranspose", inputs, group=group, strides=[stride] * len(spatial))
        if self.chance(0.3):
            y = self.batch_norm(y, outputs)
        self.images[y] = (outputs, *[(s - 1) * stride + kernel for s in spatial])

    def pool(self, x: str, shape: Shape) -> None:
        """Max or average pooling, ceil_mode and padding at times."""
        channels, *spatial = shape
        if min(spatial) < 2:
            return
        ceil, op = self.chance(0.3), self.pick(["MaxPool", "AveragePool"])
        kernel, stride, pad = self.pick([(2, 2, 0), (2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0)])
        room = [s + 2 * pad - kernel for s in spatial]
        counts = [-(-r // stride) + 1 if ceil else r // stride + 1 for r in room]
        counts = [n - ((n - 1) * stride >= s + pad) for n, s in zip(counts, spatial, strict=True)]
        attributes: dict[str, Any] = {"count_include_pad": 1} if op == "AveragePool" and self.chance(0.4) else {}
        if pad:
            attributes["pads"] = [pad] * 2 * len(spatial)
        each = {"kernel_shape": [kernel] * len(spatial), "strides": [stride] * len(spatial)}
        y = self.add(op, [x], **each, ceil_mode=int(ceil), **attributes)
        self.images[y] = (channels, *counts)

    def image_elementwise(self, x: str, shape: Shape) -> None:
        """An operator that leaves the shape alone."""
        channels, *spatial = shape
        ones = [1] * len(spatial)
        kind = self.pick(
            ["unary", "prelu", "constant", "scalar", "bn", "in", "lrn", "energy", "softmax", "dropout", "clip", "where"]
        )
        if kind == "prelu":
            y = self.add("PRelu", [x, self.weight(channels, *ones)])
        elif kind == "constant":
            lead = [1] if self.chance(0.5) else []
            y = self.add(self.pick(["Add", "Mul", "Sub", "Max"]), [self.weight(*lead, channels, *ones), x])
        elif kind == "scalar":
            y = self.add("Mul", [x, self.constant(0.7, np.float32)])
        elif kind == "bn":
            y = self.batch_norm(x, channels)
        elif kind == "in" and int(np.prod(spatial)) > 1:
            y = self.add("InstanceNormalization", [x, self.weight(channels), self.weight(channels)])
        elif kind == "lrn" and len(spatial) == 2:
            y = self.add("LRN", [x], size=self.pick([3, 5]), alpha=0.4, beta=0.6)
        elif kind == "energy":  # a normalisation over the image, as exporters write it
            size = {"kernel_shape": [3] * len(spatial), "pads": [1] * 2 * len(spatial), "count_include_pad": 1}
            mean = self.add("AveragePool", [self.add("Mul", [x, x])], **size)
            base = self.add(
                "Add", [self.add("Mul", [mean, self.constant(0.5, np.float32)]), self.constant(1.0, np.float32)]
            )
            y = self.add("Div", [x, self.add("Pow", [base, self.constant(0.75, np.float32)])])
        elif kind == "softmax":
            y = self.add("Softmax", [x], axis=self.pick([1, len(shape)]))
        elif kind == "dropout":
            y = self.add("Dropout", [x])
        elif kind == "clip":
            y = self.add("Clip", [x, self.constant(-0.5, np.float32), self.constant(1.5, np.float32)])
        elif kind == "where":
            flags = self.constant(self.rng.random((channels, *ones)) < 0.5, np.bool_)
            y = self.add("Where", [flags, x, self.weight(channels, *ones)])
        else:
            y = self.activation(x)
        self.images[y] = shape

    def join(self, x: str, shape: Shape) -> None:
        """A residual sum, or a Concat of two or three tensors."""
        if self.chance(0.5):
            other = self.like(self.images, lambda s: s == shape)
            if other:
                self.images[self.add(self.pick(["Add", "Add", "Mul", "Sum"]), [x, other])] = shape
            return
        others = [self.like(self.images, lambda s: s[1:] == shape[1:]) for _ in range(self.pick([1, 2]))]
        parts = [x, *[o for o in others if o]]
        total = sum(self.images[p][0] for p in parts)
        if total <= 40:
            axis = self.pick([1, -len(shape)])
            self.images[self.add("Concat", parts, axis=axis)] = (total, *shape[1:])

    def project(self, x: str, shape: Shape) -> None:
        """A 1×1 convolution to the channels of another tensor of that size, and their sum."""
        other = self.like(self.images, lambda s: s[1:] == shape[1:])
        assert other is not None
        channels = self.images[other][0]
        y = self.add("Conv", [x, self.weight(channels, shape[0], *[1] * (len(shape) - 1))])
        self.images[self.add("Add", [other, y])] = (channels, *shape[1:])

    def divide(self, x: str, shape: Shape) -> None:
        """Split, or a Slice or Gather of channels."""
        channels = shape[0]
        kind = self.pick(["split", "slice", "gather"])
        if kind == "split":
            first = int(self.rng.integers(1, channels))
            sizes = [first, channels - first]
            if self.opset >= 13:
                outputs = self.add("Split", [x, self.constant(sizes)], 2, axis=1)
            else:
                outputs = self.add("Split", [x], 2, axis=1, split=sizes)
            self.images.update({o: (s, *shape[1:]) for o, s in zip(outputs, sizes, strict=True)})
        elif kind == "slice":
            start = int(self.rng.integers(0, channels - 1))
            end = int(self.rng.integers(start + 1, channels + 1))
            given = end if self.chance(0.7) else (1 << 40) if end == channels else end - channels
            start = start if self.chance(0.7) else start - channels
            bounds = [self.constant([v]) for v in (start, given, 1)]
            self.images[self.add("Slice", [x, *bounds])] = (end - start % channels, *shape[1:])
        else:
            index = self.rng.integers(-channels, channels, size=self.pick([3, channels]))
            self.images[self.add("Gather", [x, self.constant(index)], axis=1)] = (len(index), *shape[1:])

    def attend_channels(self, x: str, shape: Shape) -> None:
        """Squeeze and excite."""
        channels = shape[0]
        ones = [1] * (len(shape) - 1)
        y = self.add("GlobalAveragePool", [x])
        if self.chance(0.5):
            y = self.add("Conv", [y, self.weight(4, channels, *ones), self.weight(4)])
            y = self.add("Conv", [self.add("Relu", [y]), self.weight(channels, 4, *ones)])
        else:
            y = self.add("Flatten", [y])
            y = self.add("Gemm", [y, self.weight(4, channels)], transB=1)
            y = self.add("Gemm", [self.add("Relu", [y]), self.weight(4, channels), self.weight(channels)])
            if self.chance(0.5):
                y = self.add("Reshape", [y, self.constant([self.pick([0, -1]), channels, *ones])])
            else:
                y = self.integers("Unsqueeze", y, "axes", list(range(2, 2 + len(ones))), 13)
        self.images[self.add("Mul", [x, self.add("Sigmoid", [y])])] = shape

    def relayout(self, x: str, shape: Shape) -> None:
        """A channels-last stretch, a channel shuffle, padding, or resizing."""
        channels, *spatial = shape
        rank = len(shape) + 1
        kind = self.pick(["nhwc", "shuffle", "pad", "pad_channels", "resize"])
        if kind == "nhwc":
            y = self.add("Transpose", [x], perm=[0, *range(2, rank), 1])
            if self.chance(0.5):
                y = self.add("Add", [y, self.weight(channels)])
            if self.chance(0.3):
                y = self.add("MatMul", [y, self.weight(channels, channels)])
            y = self.add("Transpose", [self.activation(y)], perm=[0, rank - 1, *range(1, rank - 1)])
        elif kind == "shuffle":
            if channels % 2:
                return
            y = self.add("Reshape", [x, self.constant([0, 2, channels // 2, *spatial])])
            y = self.add("Transpose", [y], perm=[0, 2, 1, *range(3, rank + 1)])
            y = self.add("Reshape", [y, self.constant([0, -1, *spatial])])
        elif kind in ("pad", "pad_channels"):
            c = [self.pick([0, 1]), self.pick([0, 2])] if kind == "pad_channels" else [0, 0]
            s = [0, 0] if kind == "pad_channels" else [self.pick([0, 1]), 1]
            pads = [0, c[0], *[s[0]] * len(spatial), 0, c[1], *[s[1]] * len(spatial)]
            value = [self.constant(self.pick([0.0, 0.3]), np.float32)] if self.chance(0.5) else []
            y = self.add("Pad", [x, self.constant(pads), *value])
            shape = (channels + sum(c), *[n + sum(s) for n in spatial])
        else:
            if len(spatial) != 2 or int(np.prod(spatial)) > 100:
                return
            roi = self.constant([], np.float32) if self.opset < 13 else ""
            scales = self.constant([1, 1, 2, 2], np.float32)
            y = self.add("Resize", [x, roi, scales], mode=self.pick(["nearest", "linear"]))
            shape = (channels, *[2 * n for n in spatial])
        self.images[y] = shape

    def to_features(self, x: str, shape: Shape) -> None:
        """From an image to a feature vector, in one of the ways exporters do it."""
        rank, size = len(shape) + 1, int(np.prod(shape))
        kind = self.pick(["flatten", "reshape", "dynamic", "mean", "pool", "squeeze"])
        if size > 400 and kind in ("flatten", "reshape", "dynamic"):
            kind = "mean"
        if kind == "flatten":
            y = self.add("Flatten", [x])
        elif kind == "reshape":
            y = self.add("Reshape", [x, self.constant(self.pick([[0, -1], [-1, size]]))])
        elif kind == "dynamic":
            batch = self.add("Gather", [self.add("Shape", [x]), self.constant(0)], axis=0)
            batch = self.integers("Unsqueeze", batch, "axes", [0], 13)
            y = self.add("Reshape", [x, self.add("Concat", [batch, self.constant([-1])], axis=0)])
        elif kind == "mean":
            y, size = self.integers("ReduceMean", x, "axes", list(range(2, rank)), 18, keepdims=0), shape[0]
        else:
            y, size = self.add(self.pick(["GlobalAveragePool", "GlobalMaxPool"]), [x]), shape[0]
            if kind == "pool":
                y = self.add("Flatten", [y])
            else:
                y = self.integers(
                    "Squeeze", y, "axes", [a - (rank if self.chance(0.5) else 0) for a in range(2, rank)], 13
                )
        self.features[y] = (size,)

    def to_sequence(self, x: str, shape: Shape) -> None:
        """Patches: (N, C, …) → (N, T, C)."""
        channels, length = shape[0], int(np.prod(shape[1:]))
        if length > 64 or length < 2:
            return
        y = x
        if len(shape) > 2 or self.chance(0.3):
            y = self.add("Reshape", [x, self.constant([0, self.pick([0, channels]), -1])])
        y = self.add("Transpose", [y], perm=[0, 2, 1])
        self.sequences[y] = (length, channels)

    # -- feature and sequence steps -----------------------------------------------------------------------------

    def dense(self, x: str, width: int, outputs: int | None = None, sequence: bool = False) -> tuple[str, int]:
        """A Gemm or MatMul and Add."""
        outputs = outputs or self.pick(CHANNELS)
        if not sequence and self.chance(0.6):
            transposed = self.chance(0.5)
            inputs = [x, self.weight(outputs, width) if transposed else self.weight(width, outputs)]
            if self.chance(0.7):
                inputs.append(self.weight(*self.pick([(outputs,), (1, outputs), (1,), (1, 1)])))
            factors = {"alpha": 0.5, "beta": 1.5} if self.chance(0.3) else {}
            return self.add("Gemm", inputs, transB=int(transposed), **factors), outputs
        y = self.add("MatMul", [x, self.weight(width, outputs)])
        if self.chance(0.7):
            lead = [1] if self.chance(0.3) else []
            pair = [y, self.weight(*lead, outputs)]
            y = self.add("Add", pair[:: self.pick([1, -1])])
        return y, outputs

    def feature_step(self, x: str, shape: Shape) -> None:
        """One step on a feature vector."""
        (width,) = shape
        kind = self.pick(
            ["dense", "dense", "act", "add", "concat", "split", "glu", "norm", "fold", "slice", "softmax", "outer"]
        )
        if kind == "dense":
            y, width = self.dense(x, width)
        elif kind == "add":
            other = self.like(self.features, lambda s: s == shape)
            y = self.add("Add", [x, other])
        elif kind == "concat":
            other = self.pick(list(self.features))
            width += self.features[other][0]
            y = self.add("Concat", [other, x], axis=self.pick([1, -1]))
        elif kind == "split" and width % 2 == 0:
            parts = (
                self.add("Split", [x], 2, axis=-1)
                if self.opset < 18
                else self.add("Split", [x], 2, axis=-1, num_outputs=2)
            )
            self.features.update(dict.fromkeys(parts, (width // 2,)))
            return
        elif kind == "glu":
            gate, hidden = self.dense(x, width)
            up, _ = self.dense(x, width, hidden)
            y, width = self.dense(self.add("Mul", [self.add("Sigmoid", [gate]), up]), hidden)
        elif kind == "norm" and self.opset >= 17:
            y = self.add("LayerNormalization", [x, self.weight(width), self.weight(width)], axis=-1)
        elif kind == "fold" and width % 2 == 0:
            y = self.add("Reshape", [x, self.constant([0, 2, width // 2])])
            y = self.add("Reshape", [self.activation(y), self.constant([0, -1])])
        elif kind == "slice" and width > 2:
            y = self.add("Slice", [x, self.constant([0]), self.constant([width // 2]), self.constant([-1])])
            width //= 2
        elif kind == "softmax":
            y = self.add("Softmax", [x], axis=-1)
        elif kind == "outer":
            y = self.integers("Unsqueeze", x, "axes", [1], 13)
            y = self.integers("Squeeze", self.activation(y), "axes", [1], 13)
        else:
            y = self.activation(x)
        self.features[y] = (width,)

    def layer_norm(self, x: str, width: int) -> str:
        """Layer normalisation over the last axis, written out.

        With a Reciprocal: ONNX Runtime 1.31 fuses the form with a Div even where x is cast from bfloat16, and fails.
        """
        centred = self.add("Sub", [x, self.integers("ReduceMean", x, "axes", [-1], 18)])
        square = self.add("Mul", [centred, centred])
        variance = self.integers("ReduceMean", square, "axes", [-1], 18)
        root = self.add("Sqrt", [self.add("Add", [variance, self.constant(1e-5, np.float32)])])
        y = self.add("Mul", [self.add("Mul", [centred, self.add("Reciprocal", [root])]), self.weight(width)])
        return self.add("Add", [y, self.weight(width)]) if self.chance(0.8) else y

    def sequence_step(self, x: str, shape: Shape) -> None:
        """One step on a sequence."""
        length, width = shape
        kind = self.pick(
            ["dense", "ffn", "attention", "mix", "add", "norm", "gelu", "token", "mean", "image", "flat", "concat"]
        )
        if kind == "ffn":
            y, hidden = self.dense(x, width, sequence=True)
            y = self.add("Mul", [y, self.add("Add", [self.add("Erf", [y]), self.constant(1.0, np.float32)])])
            y, _ = self.dense(y, hidden, width, sequence=True)
            y = self.add("Add", [x, y])
        elif kind == "attention":
            y = self.attention(x, length, width)
        elif kind == "mix":  # a constant on the left mixes positions
            y = self.add("MatMul", [self.weight(5, length), x])
            length = 5
            y = self.add("Add", [y, self.weight(5, 1)]) if self.chance(0.5) else y
        elif kind == "add":
            other = self.like(self.sequences, lambda s: s == shape)
            y = self.add("Add", [x, other])
        elif kind == "norm" and self.opset >= 17 and self.chance(0.5):
            y = self.add("LayerNormalization", [x, self.weight(width), self.weight(width)])
        elif kind == "norm":
            y = self.layer_norm(x, width)
        elif kind == "gelu":
            y = self.activation(x)
        elif kind == "token":
            self.features[self.add("Gather", [x, self.constant(self.pick([0, -1]))], axis=1)] = (width,)
            return
        elif kind == "mean":
            self.features[self.integers("ReduceMean", x, "axes", [1], 18, keepdims=0)] = (width,)
            return
        elif kind == "flat" and length * width <= 400:
            self.features[self.add("Flatten", [x])] = (length * width,)
            return
        elif kind == "image":
            self.images[self.add("Transpose", [x], perm=[0, 2, 1])] = (width, length)
            return
        elif kind == "concat":
            other = self.like(self.sequences, lambda s: s[0] == length)
            assert other is not None
            y = self.add("Concat", [x, other], axis=-1)
            width += self.sequences[other][1]
        else:
            y, width = self.dense(x, width, sequence=True)
        self.sequences[y] = (length, width)

    def attention(self, x: str, length: int, width: int) -> str:
        """Self-attention, in two heads at times, with its residual."""
        heads = self.pick([1, 2])
        size = self.pick([4, 8])
        q, k, v = (self.dense(x, width, size, sequence=True)[0] for _ in range(3))
        if heads == 2:
            split = self.constant([0, length, 2, size // 2])
            q, k, v = (self.add("Reshape", [t, split]) for t in (q, k, v))
            q, v = (self.add("Transpose", [t], perm=[0, 2, 1, 3]) for t in (q, v))
            k = self.add("Transpose", [k], perm=[0, 2, 3, 1])
        else:
            k = self.add("Transpose", [k], perm=[0, 2, 1])
        y = self.add("Softmax", [self.add("MatMul", [q, k])], axis=-1)
        y = self.add("MatMul", [y, v])
        if heads == 2:
            y = self.add("Transpose", [y], perm=[0, 2, 1, 3])
            y = self.add("Reshape", [y, self.constant([0, length, size])])
        y, _ = self.dense(y, size, width, sequence=True)
        return self.add("Add", [y, x])

    # -- the whole ----------------------------------------------------------------------------------------------

    def grow(self) -> None:
        """One random step."""
        kinds = [tensors for tensors in (self.images, self.features, self.sequences) if tensors]
        tensors = kinds[-1] if self.chance(0.6) else self.pick(kinds)
        x, shape = self.any(tensors)
        if tensors is self.features:
            self.feature_step(x, shape)
        elif tensors is self.sequences:
            self.sequence_step(x, shape)
        elif shape[0] >= 2:
            steps = [self.conv] * 6 + [self.join] * 3 + [self.depthwise, self.conv_transpose, self.pool, self.pool]
            steps += [self.image_elementwise] * 3 + [self.project, self.divide, self.divide, self.attend_channels]
            steps += [self.relayout] * 2 + [self.to_features, self.to_sequence]
            if int(np.prod(shape)) > 1500:
                steps = [self.pool, self.to_features]
            self.pick(steps)(x, shape)

    def build(self, steps: int) -> onnx.ModelProto:
        """A model of that many steps, some tensors in its middle being outputs as well."""
        shape: Shape = self.pick([(4, 9), (3, 7, 6), (8, 5, 5), (6, 8, 8), (4, 4, 3, 5), (10,), (6, 8)])
        if len(shape) == 1:
            self.features["x"] = shape
        elif shape == (6, 8):
            self.sequences["x"] = shape
        else:
            self.images["x"] = shape
        for _ in range(steps):
            self.grow()
        made = {**self.images, **self.features, **self.sequences}
        made.pop("x")
        read = {name for node in self.nodes for name in node.input}
        outputs = [name for name in made if name not in read or self.chance(0.03)]
        batch = "N" if self.chance(0.7) else int(self.pick([1, 3]))
        graph = helper.make_graph(
            self.nodes,
            "generated",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *made[name]]) for name in outputs],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def random_mask(shape: tuple[int, int, int], shared: bool, rng: np.random.Generator, opset: int) -> Array | None:
    """A mask (groups, taps, channels) at a random granularity that keeps equally many channels of every group."""
    groups, taps, channels = shape
    kind = rng.choice(["none", "channel", "channel", "element", "block"])
    if kind == "none" or channels == 1:
        return None
    if kind == "channel" or taps == 1 or opset < 12:
        count = int(rng.integers(1, channels))
        rows = [np.isin(np.arange(channels), rng.choice(channels, count, replace=False)) for _ in range(groups)]
        return np.array([rows[0]] * groups if shared else rows)[:, None, :]
    width = int(rng.choice([w for w in (1, 2, 4, 8) if channels % w == 0])) if kind == "block" else 1
    units = taps * channels // width
    count = int(rng.integers(1, units + 1))
    kept = [np.isin(np.arange(units), rng.choice(units, count, replace=False)) for _ in range(groups)]
    return np.repeat(np.array(kept), width, axis=1).reshape(shape)
