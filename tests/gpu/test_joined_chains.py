"""Optimised towers of small layers on the GPU: one node, the results of the CPU, with and without a CUDA graph."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gpu_model import GpuSession, distance
from models import model

import deftonnx
from deftonnx import evaluation

pytestmark = pytest.mark.gpu

LIMIT = {"float16": 5e-3, "bfloat16": 3e-2}
TYPES = {
    "float16": {"preset": "dense16"},
    "bfloat16": {"target": "cuda", "io_types": "bfloat16", "format": "deft16", "density": 1.0},
}


def tower(widths: tuple[int, ...], kind: str, **options: object) -> deftonnx.Result:
    """Layers of `widths` with ReLU between them, optimised."""
    weights = ", ".join(f"float[{K},{N}] w{i}, float[{N}] b{i}" for i, (K, N) in enumerate(itertools.pairwise(widths)))
    nodes = "\n".join(
        f"[layer{i}] p{i} = Gemm ({f'r{i - 1}' if i else 'x'}, w{i}, b{i}) r{i} = Relu (p{i})"
        for i in range(len(widths) - 2)
    )
    last = len(widths) - 2
    proto = model(
        f"g (float[N,{widths[0]}] x) => (float[N,{widths[-1]}] y) <{weights}> {{ {nodes}"
        f" [layer{last}] y = Gemm (r{last - 1}, w{last}, b{last}) }}"
    )
    data = np.random.default_rng(0).standard_normal((64, widths[0])).astype(np.float32)
    return deftonnx.optimize(
        proto, calib_data={"x": data}, decide_by="nothing", measure=False, **{**TYPES[kind], **options}
    )


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "widths", [(400, 120, 84, 10), (1024, 504, 10), (256, 256, 256, 256, 256), (45, 30, 13)], ids=str
)
def test_a_tower_computes_what_it_does_on_the_cpu(widths: tuple[int, ...], kind: str) -> None:
    result = tower(widths, kind)
    assert [node.op_type for node in result.model.graph.node].count("DeftMlp") == 1
    cpu, sessions = evaluation.session(result.model), [GpuSession(result.model, cuda_graph=g) for g in (False, True)]
    for M in (1, 16, 100, 5000):
        x = np.random.default_rng(M).standard_normal((M, widths[0])).astype(np.float32)
        feed = {t.name: x for t in result.model.graph.input}
        want = evaluation.run(cpu, [feed])
        for session in sessions:
            assert distance(session.run(feed, times=2), want) <= LIMIT[kind]


def test_eight_bits() -> None:
    result = tower((128, 256, 64, 10), "float16", format="deft8:4")
    cpu, gpu = evaluation.session(result.model), GpuSession(result.model)
    feed = {"x": np.random.default_rng(0).standard_normal((70, 128)).astype(np.float32)}
    assert distance(gpu.run(feed), evaluation.run(cpu, [feed])) <= LIMIT["float16"]
