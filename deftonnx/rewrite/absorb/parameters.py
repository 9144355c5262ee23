"""Integer parameters that moved from attributes to inputs as opsets went by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import replace_constant


def integers(node: gs.Node, attribute: str, index: int) -> list[int] | None:
    """The values of an attribute, or of the constant input that replaced it; None where they are not constant."""
    if attribute in node.attrs:
        return [int(v) for v in np.atleast_1d(node.attrs[attribute])]
    if len(node.inputs) > index and isinstance(node.inputs[index], gs.Constant):
        return [int(v) for v in node.inputs[index].values.reshape(-1)]
    return None


def store_integers(node: gs.Node, attribute: str, index: int, values: Sequence[int] | np.ndarray) -> None:
    """Write them back to where `integers` read them."""
    if attribute in node.attrs:
        node.attrs[attribute] = [int(v) for v in values]
    else:
        old = node.inputs[index].values
        replace_constant(node, index, np.asarray(values, dtype=old.dtype).reshape(-1))
