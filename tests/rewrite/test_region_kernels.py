"""The table of 16-bit kernels against ONNX Runtime's CPU provider: what it promises in bfloat16 loads and runs."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from region_models import one_node

from deftonnx.rewrite.regions.kernels import BFLOAT16, CONTRIBUTED, STANDARD

OPERATORS = [(op, spec, False) for op, spec in STANDARD.items()] + [(op, s, True) for op, s in CONTRIBUTED.items()]
BOTH = [pytest.param(op, contrib, id=op) for op, spec, contrib in OPERATORS if spec.takes(BFLOAT16)]


@pytest.mark.parametrize(("op", "contrib"), BOTH)
def test_bfloat16_on_the_cpu(op, contrib):
    model = one_node(op, contrib, BFLOAT16, outputs=2 if op == "Split" else 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = {t.name: t.shape for t in session.get_inputs()}
    feed = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.full(shape, 0.5).astype(ml_dtypes.bfloat16).view(np.uint16), 16
        )
        for name, shape in shapes.items()
    }
    results = session.run_with_ort_values(None, feed)
    assert {result.element_type() for result in results} == {16}
