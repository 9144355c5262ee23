"""Models of opsets before 13 are brought to 13, from which on weights can be packed and types narrowed.

onnx.version_converter does it, on the model without its large weights, which no operator of these opsets turns into
something else. It knows neither local functions nor the bodies of If, Loop and Scan, so models with these stay.
"""

from __future__ import annotations

import onnx
from onnx import helper, version_converter

from deftonnx.errors import UnsupportedError
from deftonnx.formats.operator_function import OLDEST_OPSET
from deftonnx.model import Model, is_apart
from deftonnx.model_file import bodies
from deftonnx.sessions import first_line

_IR_VERSION = 7
"""That of opset 13."""


def standard_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def with_newer_opset(model: Model) -> Model:
    """`model` at opset 13, sharing its weights. Raises UnsupportedError where that cannot be."""
    shell = model.shell
    if len(list(bodies(shell.graph))) > 1 or shell.functions or shell.graph.sparse_initializer:
        raise UnsupportedError("models with control flow, local functions or sparse weights are not converted")
    try:
        converted = version_converter.convert_version(_without_weights(shell), OLDEST_OPSET).graph
    except Exception as error:
        raise UnsupportedError(f"it cannot be converted: {first_line(error)}") from error
    result = onnx.ModelProto()
    result.CopyFrom(shell)
    known = {tensor.name for tensor in shell.graph.initializer}
    result.graph.initializer.extend(tensor for tensor in converted.initializer if tensor.name not in known)
    unchanged = {tuple(node.output): node for node in shell.graph.node}
    del result.graph.node[:]
    for node in converted.node:
        before = unchanged.get(tuple(node.output))
        result.graph.node.append(before if before is not None and _equal(before, node) else node)
    for opset in result.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = OLDEST_OPSET
    result.ir_version = max(result.ir_version, _IR_VERSION)
    return Model(result, model.weights)


def _without_weights(shell: onnx.ModelProto) -> onnx.ModelProto:
    """The same with inputs in the place of large weights."""
    light = onnx.ModelProto()
    light.CopyFrom(shell)
    declared = {value.name for value in light.graph.input}
    del light.graph.initializer[:]
    for tensor in shell.graph.initializer:
        if not is_apart(tensor):
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _equal(a: onnx.NodeProto, b: onnx.NodeProto) -> bool:
    """Whether two nodes do the same: the converter drops what else a node says."""
    attributes = [sorted(node.attribute, key=lambda attribute: attribute.name) for node in (a, b)]
    return (a.op_type, a.domain, list(a.input), attributes[0]) == (b.op_type, b.domain, list(b.input), attributes[1])
