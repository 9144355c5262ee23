"""Times of layers, estimated: the more of arithmetic and memory traffic, and what a kernel costs to start.

The rates are those of the manufacturer's data sheets, without sparsity. The times of DeftGemm and DeftConv are
the library's own estimates where the library is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import TensorProto

from deftonnx.cost.trial import conv_of, gemm_of
from deftonnx.cost.work import BYTES, DEFT, Convolution, Form, Product, Work, kept_features
from deftonnx.errors import UnsupportedError
from deftonnx.formats import get_format, weight_format
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.kernel_choice import conv_kernels_for, kernels_for


@dataclass(frozen=True)
class Rates:
    """TFLOP/s of the tensor cores with 16-bit and with TF32 operands, of float32 arithmetic, and GB/s of memory."""

    half: float
    tf32: float
    single: float
    memory: float


RATES = {
    "t4": Rates(65, 8.1, 8.1, 320),
    "a100": Rates(312, 156, 19.5, 2039),
    "a10": Rates(125, 62.5, 31.2, 600),
    "l4": Rates(121, 60, 30.3, 300),
    "l40s": Rates(362, 183, 91.6, 864),
    "h100": Rates(989, 495, 67, 3350),
    "h200": Rates(989, 495, 67, 4800),
    "b200": Rates(2250, 1125, 80, 8000),
    "rtx4090": Rates(165, 82.6, 82.6, 1008),
    "rtx5090": Rates(209.5, 104.8, 104.8, 1792),
}
"""By the names of runtime.gpus.GPUS."""
OLDEST_TENSOR_CORES = 80
"""The compute capability below which DeftGemm and DeftConv have kernels for the FP32 units only."""
START_SECONDS = 3e-6
"""From the first load of a product's kernel to its last store, however small it is."""
KERNEL_SECONDS = 2.5e-6
"""From the start of a kernel in a stream to the start of the next, at least."""
EFFICIENCY = 0.7
"""Of the peak rates that a large layer reaches."""
TILE = 128 * 128
"""Values of Y that one multiprocessor makes at a time: fewer tiles than multiprocessors leave some idle."""
GATHERED = 1.6e9
"""Numbers a second that ONNX Runtime's Gather copies on a multiprocessor, one by one: 6.3 million of 16 bits took 29 µs
on an H200."""
KEPT_VECTOR = 0.75
"""Rate of a product over kept vectors of eight features, against the dense one's."""


class ModelClock:
    """Answers with estimated times for a GPU that need not be there. `library`: the operator library's path."""

    how = "estimated"

    def __init__(self, device: Device, rates: Rates, library: str | None) -> None:
        self._device, self._rates, self._library = device, rates, library
        self._kernels: dict[tuple[Work, Form, int], tuple[str, float] | None] = {}

    def seconds(self, work: Work, forms: Sequence[Form], batches: Sequence[int]) -> dict[Form, list[float]]:
        """Seconds of `work` in each of `forms`, one for each batch."""
        return {form: [self._time(work, form, batch) for batch in batches] for form in forms}

    def kernel(self, work: Work, form: Form, batch: int) -> tuple[str, float] | None:
        """The kernel that the library would run, and its estimate in seconds; None where it cannot say."""
        if self._library is None or form.operator != DEFT:
            return None
        if (work, form, batch) not in self._kernels:
            self._kernels[work, form, batch] = self._ask(work, form, batch, self._library)
        return self._kernels[work, form, batch]

    def _ask(self, work: Work, form: Form, batch: int, library: str) -> tuple[str, float] | None:
        w_type = get_format(form.format).onnx_type
        try:
            if isinstance(work, Product):
                M = batch * work.rows
                found = kernels_for(gemm_of(work, form), form.type, w_type, [M], self._device, library)
                return (found[0].kernel, 1e-9 * found[0].time) if found else None
            *rows, columns = work.image
            image = (batch, *(rows or [1]), columns)
            named = conv_kernels_for(conv_of(work, form), form.type, w_type, image, self._device, library)
            return (named[0][0], 1e-9 * named[0][1]) if named else None
        except UnsupportedError:
            return None

    def _time(self, work: Work, form: Form, batch: int) -> float:
        size, K = BYTES[form.type], kept_features(work, form)
        x, y = float(batch * work.inputs() * size), float(batch * work.outputs() * size)
        if isinstance(work, Convolution) or not form.gather:
            x = x * min(1.0, max(K / work.features, 0.5)) if form.block else x
        else:
            x = x * K / work.features
        weight = K * work.N * _weight_bytes(form)
        product = START_SECONDS + max(
            2 * batch * work.outputs() * K / self._rate(form, batch * work.outputs()),
            (x + weight + y) / (self._rates.memory * 1e9),
        )
        gather = 0.0
        if form.gather:
            one_by_one = x / size / (GATHERED * self._device.multiprocessors)
            gather = max(2 * x / (self._rates.memory * 1e9), one_by_one) + KERNEL_SECONDS
        if form.operator == DEFT:
            found = self.kernel(work, form, batch)
            return gather + (product if found is None else found[1]) + KERNEL_SECONDS
        # a Conv adds its bias inside, but tensor cores want channels last: X and Y are transposed
        passes = [2 * y] * int(work.activated)
        passes += [2 * y] if isinstance(work, Product) else [2 * x, 2 * y]
        elementwise = sum(moved / (self._rates.memory * 1e9) + KERNEL_SECONDS for moved in passes)
        return product + elementwise + gather + KERNEL_SECONDS

    def _rate(self, form: Form, outputs: int) -> float:
        """Multiplications and additions a second."""
        rate = self._rates.tf32 if form.type == TensorProto.FLOAT else self._rates.half
        if form.operator == DEFT and self._device.capability < OLDEST_TENSOR_CORES:
            rate = self._rates.single
        tiles = outputs / TILE
        waves = math.ceil(tiles / self._device.multiprocessors)
        busy = max(tiles / (waves * self._device.multiprocessors), 1 / 16)  # small layers share out K
        return rate * 1e12 * EFFICIENCY * busy * (KEPT_VECTOR if form.block == 8 else 1.0)


def _weight_bytes(form: Form) -> float:
    if form.operator == DEFT and weight_format(form.format).startswith("deft8"):
        return 1.0
    return float(BYTES[form.type])
