"""What the library gives sessions on demand alone."""

import attention_model
import numpy as np
import onnxruntime
import pool_model
import pytest

from deftonnx import overloads

GPU_ALONE = "deftonnx.gpu_alone"
SHARED_OUT = "session.resource_cuda_partitioning_settings"
ALONE = {GPU_ALONE: "1"}


def make_session(library, model, entries):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_kernels_for_the_cpu_are_left_out_where_there_are_some_for_the_gpu(library):
    model = pool_model.case("max", np.float32)[1]
    make_session(library, model, {})
    with pytest.raises(Exception, match="Could not find an implementation for DeftPool"):
        make_session(library, model, ALONE)


@pytest.mark.skipif(not overloads.KNOWN, reason="ONNX Runtime 1.24 takes no limit of memory alone")
def test_they_stay_where_both_may_have_nodes(library):
    make_session(library, pool_model.case("max", np.float32)[1], ALONE | {SHARED_OUT: "1000,"})


def test_they_stay_where_there_are_none_for_the_gpu(library):
    make_session(library, attention_model.case((2, 3, 2, 8), "no_bias", np.float32)[1], ALONE)
