"""What must hold of bad models on every execution provider: one clear error when the session is made, no crash.

    python refusals.py LIBRARY PROVIDER COUNT

makes sessions of randomly damaged models and runs those that are made: to be run in a process of its own.
"""

import contextlib
import subprocess
import sys

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  (its CUDA libraries must be in the process before onnxruntime's)

import numpy as np
import onnx
import onnxruntime
import pytest
from bad_models import damaged_model


def make_session(model, options, provider):
    """A session of `model`; raises what ONNX Runtime raises."""
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])


def refusal(model, options):
    """What ONNX Runtime says on the CPU of the first node of `model`; fails if it says nothing."""
    node = model.graph.node[0]
    with pytest.raises(Exception, match=f"{node.op_type} node '{node.name}'") as caught:
        make_session(model, options, "CPUExecutionProvider")
    return str(caught.value)


def with_attribute(model, attribute, value):
    """`model`, in place, with another value of its first node's attribute; None: without it."""
    node = model.graph.node[0]
    others = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend(others)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(attribute, value))
    return model


def survives(library, provider, count):
    """Make and run damaged models in another process; returns how many were refused and how many ran.

    Fails if that process does not end well; the last number it printed is the model that it ended at.
    """
    command = [sys.executable, __file__, library, provider, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"code {done.returncode} after {done.stdout[-200:]} {done.stderr[-500:]}"
    refused, ran = (int(number) for number in done.stdout.split()[-2:])
    assert refused + ran == count
    return refused, ran


def _make_and_run(library, provider, count):
    """How many damaged models were refused, and how many ran."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    refused = ran = 0
    for seed in range(count):
        print(seed, end=" ", flush=True)
        model = damaged_model(seed)
        try:
            session = make_session(model, options, provider)
            feed = session.get_inputs()[0]
            session.run(None, {feed.name: np.zeros(feed.shape, np.float32)})
            ran += 1
        except Exception as error:
            refused += len(str(error).strip()) > 20  # more than a bare code
    return refused, ran


if __name__ == "__main__":
    print(*_make_and_run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
