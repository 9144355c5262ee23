"""DeftChannelsLast on the GPU, bit by bit."""

import numpy as np
import pytest
from channels_last_model import IMAGES, case
from gemm_model import DTYPES, run_gemm

CUDA = ("CUDAExecutionProvider",)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", IMAGES)
def test_images(options, name, dtype):
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for batch in (1, 70, 0):
        X, model, expected = case(name, dtype, batch=batch)
        assert np.array_equal(run_gemm(model, X, None, options, CUDA), expected)
