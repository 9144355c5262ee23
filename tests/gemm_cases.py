"""DeftGemm cases that cover all pairs of operands, epilogue, elimination and shape; sixteen of them to a session."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnxruntime
from covering import Row, pairwise
from gemm_model import DTYPES, ONNX_TYPE, ort_value, reference, to_array
from onnx import helper, numpy_helper

from deftonnx.formats import GEMM_FORMAT_NAMES, PackedWeight, pack_weight
from deftonnx.formats.activation import ACTIVATIONS
from deftonnx.formats.fp8 import FP8
from deftonnx.formats.gemm_function import gemm_node, no_residual, weight_tensors
from deftonnx.formats.operator_function import DOMAIN

TOLERANCE = {np.float32: 1e-5, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
FACTORS = {
    "operands": [
        (name, dtype, path) for name in ("fp32", *GEMM_FORMAT_NAMES) for dtype in DTYPES for path in ("auto", "simt")
    ],
    "output": DTYPES,
    "activation": tuple(ACTIVATIONS),
    "bias": (False, True),
    "residual": (False, True),
    "block": (0, 1, 8, 16, 32, 64, 128),
    "rows": ("none", "one", "few", "some", "many"),
    "features": ("one", "odd", "sixteens", "tiles", "long"),
    "outputs": ("one", "odd", "eights", "sixteens", "tiles"),
    "rank": (1, 2, 3, 4),
}
# factor → value → least, greatest and step of the size it stands for
_SIZES = {
    "rows": {"none": (0, 0, 1), "one": (1, 1, 1), "few": (2, 16, 1), "some": (17, 64, 1), "many": (65, 300, 1)},
    "features": {
        "one": (1, 1, 1), "odd": (3, 399, 2), "sixteens": (16, 1008, 32), "tiles": (64, 1024, 64),
        "long": (4097, 9000, 1),
    },
    "outputs": {
        "one": (1, 1, 1), "odd": (3, 299, 2), "eights": (8, 200, 16), "sixteens": (16, 304, 32), "tiles": (64, 512, 64),
    },
}  # fmt: skip


def is_allowed(row: Row) -> bool:
    """A vector X is one row."""
    return row.get("rank") != 1 or row.get("rows", "one") == "one"


@dataclass
class Case:
    """One node and its inputs."""

    row: Row
    compute: str
    X: np.ndarray  # (..., features)
    kept: list[int] | None
    index: np.ndarray  # (K,) columns of X that are multiplied
    packed: PackedWeight
    bias: np.ndarray
    residual: np.ndarray | None

    @property
    def output_type(self) -> type:
        """The type of Y."""
        return self.row["output"]

    def __str__(self) -> str:
        operands = f"{self.packed.format} {self.compute} {self.X.dtype.name}"
        shape = f"X {self.X.shape}, K {self.packed.K}, N {self.packed.N}"
        rest = {k: v for k, v in self.row.items() if k in ("activation", "bias", "residual", "block")}
        return f"{operands} to {np.dtype(self.output_type).name}, {shape}, {rest}"

    def expected(self) -> np.ndarray:
        """Y in float64."""
        return reference(self.X[..., self.index], self.packed, self.bias, residual=self.residual, **self.epilogue())

    def epilogue(self) -> dict[str, object]:
        """The activation and its parameters."""
        return {"activation": self.row["activation"], "alpha": 0.2, "beta": 0.5}

    def size(self, expected: np.ndarray) -> float:
        """What an error is measured against: ‖Y‖.

        The sum before the activation is about standard normal. A result of few elements may by chance be far smaller
        than the sum it comes from: there the norm that the sum has on average is the measure.
        """
        typical = np.sqrt(expected.size) if expected.size < 64 else 0.0
        return float(max(np.linalg.norm(expected), typical))


def covering_rows(seed: int = 0) -> list[Row]:
    """The covering array."""
    return pairwise(FACTORS, is_allowed, seed)


def make_case(row: Row, seed: int) -> Case:
    """Draw sizes and data for a row of the covering array."""
    rng = np.random.default_rng(seed)
    size = {factor: _draw(rng, *table[row[factor]]) for factor, table in _SIZES.items()}
    name, dtype, path = row["operands"]
    kept, index = _keep(rng, size["features"], row["block"])
    shape = _split(rng, size["rows"], row["rank"])
    X = rng.standard_normal((*shape, size["features"])).astype(dtype)
    weight = (rng.standard_normal((index.size, size["outputs"])) * index.size**-0.5).astype(np.float32)
    bias = rng.standard_normal(size["outputs"]).astype(np.float32) * np.float32(row["bias"])
    residual = rng.standard_normal((*shape, size["outputs"])).astype(row["output"]) if row["residual"] else None
    return Case(row, path, X, kept, index, pack_weight(weight, name), bias, residual)


def _draw(rng: np.random.Generator, least: int, most: int, step: int) -> int:
    return least + step * int(rng.integers((most - least) // step + 1))


def _keep(rng: np.random.Generator, features: int, block: int) -> tuple[list[int] | None, np.ndarray]:
    """About half of the blocks, or all features; a block that is cut short is the last."""
    if block == 0:
        return None, np.arange(features)
    blocks = -(-features // block)
    kept = np.sort(rng.permutation(blocks)[: max(1, blocks // 2)])
    index = [np.arange(b * block, min(b * block + block, features)) for b in kept]
    return kept.tolist(), np.concatenate(index)


def _split(rng: np.random.Generator, rows: int, rank: int) -> list[int]:
    """Leading axes of a tensor of that many rows."""
    if rank == 1:
        return []
    axes = [rows]
    while len(axes) < rank - 1:
        first = axes.pop(0)
        divisors = [d for d in range(1, max(first, 1) + 1) if first % d == 0]
        divisor = int(rng.choice(divisors))
        axes[:0] = [first // divisor, divisor]
    return axes


def run_cases(cases: list[Case], options: onnxruntime.SessionOptions, provider: str) -> list[np.ndarray]:
    """Y of each case, all computed by one session."""
    session = onnxruntime.InferenceSession(_model(cases), options, providers=[provider])
    feeds = {f"X{i}": ort_value(case.X) for i, case in enumerate(cases)}
    feeds |= {f"residual{i}": ort_value(c.residual) for i, c in enumerate(cases) if c.residual is not None}
    values = session.run_with_ort_values([f"Y{i}" for i in range(len(cases))], feeds)
    return [to_array(value) for value in values]


def _model(cases: list[Case]) -> bytes:
    nodes, inputs, outputs, initializers = [], [], [], []
    for i, case in enumerate(cases):
        output_type = ONNX_TYPE[np.dtype(case.output_type)]
        names = [f"{name}{i}" for name in ("X", "W", "W_scale", "bias", "kept", "residual")]
        codes, scale = weight_tensors(case.packed, names[1])
        scale.name = names[2]
        initializers += [codes, scale, numpy_helper.from_array(case.bias, names[3])]
        initializers.append(numpy_helper.from_array(np.array(case.kept or [], np.int32), names[4]))
        inputs.append(helper.make_tensor_value_info(names[0], ONNX_TYPE[case.X.dtype], case.X.shape))
        if case.residual is None:
            initializers.append(no_residual(output_type, names[5]))
        else:
            inputs.append(helper.make_tensor_value_info(names[5], output_type, case.residual.shape))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", output_type, [*case.X.shape[:-1], case.packed.N]))
        options = {"features": case.X.shape[-1], "block": case.row["block"], "output_type": output_type}
        nodes.append(
            gemm_node(names, f"Y{i}", case.packed, name=f"layer{i}", compute=case.compute, **options, **case.epilogue())
        )
    graph = helper.make_graph(nodes, "layers", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def tolerance(case: Case) -> float:
    """Of ‖Δ‖/‖Y‖. FP8 tensor cores keep some 14 bits of a sum of 128 products."""
    rounds = case.packed.format == FP8 and case.output_type is np.float32
    return 1e-3 if rounds else TOLERANCE[case.output_type]


def failure(case: Case, Y: np.ndarray) -> str | None:
    """What is wrong with Y, or None."""
    expected = case.expected()
    if (Y.dtype, Y.shape) != (case.output_type, expected.shape):
        return f"{case}: Y is {Y.dtype} {Y.shape}, not {expected.shape}"
    error = np.linalg.norm(Y.astype(np.float64) - expected)
    limit = tolerance(case) * case.size(expected)
    return None if error <= limit else f"{case}: error {error:.3g} over {limit:.3g}"
