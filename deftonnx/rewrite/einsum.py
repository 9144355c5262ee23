"""An Einsum of two operands that is a product of matrices becomes a MatMul, which the other passes know.

Of the letters of "bhid,bhjd->bhij", b and h are in all terms, d is summed over, i is of the left operand and j of the
right one: a product of (b, h, i, d) and (b, h, d, j). Transposes bring the operands and the result in that order where
they are not. Einsum repeats what has one value of a summed letter, MatMul does not: that stays.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, stored, stored_as, unused_name
from deftonnx.rewrite.order import sort_nodes


def products_of_einsums(graph: gs.Graph) -> bool:
    """Rewrite in place; True if anything changed."""
    changed = False
    for node in [node for node in graph.nodes if node.op == "Einsum" and is_standard(node)]:
        terms = _terms(node)
        orders = None if terms is None else _orders(*terms)
        if terms is None or orders is None or _repeats(node, orders[0][-1], *terms[:2]):
            continue
        a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
        left, right, result = orders
        inputs = [_transposed(graph, node, a, terms[0], left), _transposed(graph, node, b, terms[1], right)]
        if result == terms[2]:
            node.inputs, node.op, node.attrs = inputs, "MatMul", {}
        else:
            product = gs.Variable(unused_name(f"{y.name}/product"), y.dtype)
            perm = [result.index(letter) for letter in terms[2]]
            node.inputs, node.outputs, node.op, node.attrs = inputs, [product], "MatMul", {}
            graph.nodes.append(gs.Node("Transpose", unused_name(f"{node.name}/order"), {"perm": perm}, [product], [y]))
        changed = True
    if changed:
        sort_nodes(graph)
    return changed


def _terms(node: gs.Node) -> tuple[str, str, str] | None:
    """The letters of both operands and the result; None for what is written otherwise, or repeats a letter."""
    equation = str(node.attrs["equation"]).replace(" ", "")
    operands, arrow, result = equation.partition("->")
    a, comma, b = operands.partition(",")
    if not comma or "," in b or len(node.inputs) != 2:
        return None
    if not arrow:
        result = "".join(sorted(letter for letter in a + b if (a + b).count(letter) == 1))
    if any(not term.isalpha() or len({*term}) != len(term) for term in (a, b, result)):
        return None
    return a, b, result


def _orders(a: str, b: str, result: str) -> tuple[str, str, str] | None:
    """The letters in the order in which MatMul reads the operands and writes the result; None if it cannot."""
    batch = "".join(letter for letter in a if letter in b and letter in result)
    summed = "".join(letter for letter in a if letter in b and letter not in result)
    left = "".join(letter for letter in a if letter not in b)
    right = "".join(letter for letter in b if letter not in a)
    if len(summed) != 1 or len(right) != 1 or not left or (batch and len(left) != 1):
        return None
    if {*result} != {*batch, *left, *right}:
        return None
    return batch + left + summed, batch + summed + right, batch + left + right


def _repeats(node: gs.Node, summed: str, a: str, b: str) -> bool:
    """Whether the operands are known to have different sizes of the letter `summed`."""
    shapes = zip(node.inputs, (a, b), strict=True)
    sizes = {t.shape[term.index(summed)] for t, term in shapes if t.shape is not None and len(t.shape) == len(term)}
    return len({size for size in sizes if isinstance(size, int)}) > 1


def _transposed(graph: gs.Graph, node: gs.Node, tensor: gs.Tensor, have: str, wanted: str) -> gs.Tensor:
    if have == wanted:
        return tensor
    perm = [have.index(letter) for letter in wanted]
    name = unused_name(f"{node.name}/{wanted}")
    if isinstance(tensor, gs.Constant):
        return stored_as(name, np.ascontiguousarray(stored(tensor).transpose(perm)))
    result = gs.Variable(name, tensor.dtype)
    graph.nodes.append(gs.Node("Transpose", name, {"perm": perm}, [tensor], [result]))
    return result
