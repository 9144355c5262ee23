"""The table of 16-bit kernels against ONNX Runtime's CUDA provider: every operator in it runs there, in each type."""

import onnxruntime
import pytest
from region_models import one_node

from deftonnx.rewrite.regions.kernels import BFLOAT16, CONTRIBUTED, FLOAT16, STANDARD


@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("op", [*STANDARD, *(f"com.microsoft.{op}" for op in CONTRIBUTED)])
def test_the_provider_has_a_kernel(op, kind):
    name, contrib = op.split(".")[-1], "." in op
    if not (CONTRIBUTED if contrib else STANDARD)[name].takes(kind):
        pytest.skip(f"not {kind} in the table")
    model = one_node(name, contrib, kind, outputs=2 if name == "Split" else 1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"
