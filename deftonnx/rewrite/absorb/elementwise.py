"""Rules for operators that treat every position alike: activations, arithmetic, normalisation over other axes."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from deftonnx.rewrite.absorb.channels import ChannelMap


def unary(node: gs.Node, channels: ChannelMap) -> None:
    """Output position i reads input position i only."""
    for axis, atoms in channels.axes(node.inputs[0]).items():
        for output in node.outputs:
            channels.track(output, axis, atoms)
    for other in node.inputs[1:]:
        channels.fix_all(other)


def broadcast(node: gs.Node, channels: ChannelMap) -> None:
    """Operands of equal length along an axis stand or fall together; constants are sliced, ones are repeated."""
    if any(t.shape is None for t in node.inputs):
        for t in node.inputs:
            channels.fix_all(t)
        return
    rank = max(len(t.shape) for t in node.inputs)
    for axis in range(rank):
        places = [(i, t, axis - rank + len(t.shape)) for i, t in enumerate(node.inputs)]
        places = [(i, t, a) for i, t, a in places if a >= 0 and t.shape[a] != 1]
        tracked = [atoms for _, t, a in places if (atoms := channels.axes(t).get(a)) is not None]
        if not tracked:
            continue
        atoms = tracked[0]
        for other in tracked[1:]:
            channels.unite(atoms, other)
        for i, t, a in places:
            if isinstance(t, gs.Constant):
                channels.edit_constant(node, i, a, atoms)
            elif a not in channels.axes(t):
                channels.fix(atoms)
        channels.track(node.outputs[0], axis, atoms)


def channel_parameters(node: gs.Node, channels: ChannelMap) -> None:
    """BatchNormalization and InstanceNormalization: one constant parameter a channel of axis 1."""
    for axis, atoms in channels.axes(node.inputs[0]).items():
        constant = all(isinstance(t, gs.Constant) for t in node.inputs[1:])
        if axis != 1 or not constant or any(map(channels.is_read, node.outputs[1:])):
            channels.fix(atoms)
            continue
        for i in range(1, len(node.inputs)):
            channels.edit_constant(node, i, 0, atoms)
        channels.track(node.outputs[0], axis, atoms)


def along_axis(node: gs.Node, channels: ChannelMap) -> None:
    """Softmax, LayerNormalization and their like: every axis but the normalised ones passes through."""
    x = node.inputs[0]
    default = 1 if node.op in ("Softmax", "LogSoftmax", "Hardmax") and channels.opset < 13 else -1
    single = node.op not in ("LayerNormalization", "RMSNormalization") and channels.opset >= 13
    for axis, atoms in channels.axes(x).items():
        first = node.attrs.get("axis", default)
        first += len(x.shape) if first < 0 else 0
        mixed = axis == first if single else axis >= first
        if mixed or any(map(channels.is_read, node.outputs[1:])):
            channels.fix(atoms)
        else:
            channels.track(node.outputs[0], axis, atoms)


UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Dropout",
]
BROADCAST = [
    "Add",
    "And",
    "BitShift",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
RULES = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BROADCAST, broadcast),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), channel_parameters),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization"), along_axis),
}
