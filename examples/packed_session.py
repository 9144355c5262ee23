"""A model in 8 bits and how to run it: LeNet-5 packed as deft8:auto, in a session on the GPU if there is one.

The same file also loads with ONNX Runtime alone, in any language. In Python, what `deftonnx.InferenceSession` does is:

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(deftonnx.get_library_path())
    session = onnxruntime.InferenceSession(path, options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
"""

import argparse
from pathlib import Path

import numpy as np

import deftonnx

DATA = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="deft8:auto", help="as for deftonnx optimize")
    parser.add_argument("--output", type=Path, default=Path("lenet5_mnist.packed.onnx"))
    options = parser.parse_args()

    result = deftonnx.optimize(
        DATA / "lenet5_mnist.onnx",
        calib_data=DATA / "mnist_calibration.npz",
        calib_samples=500,
        density=1.0,  # nothing is eliminated
        format=options.format,
    )
    result.save(options.output)

    session = deftonnx.InferenceSession(options.output)
    with np.load(DATA / "mnist_test.npz") as test:
        images, labels = test["x"], test["labels"]
    scores = session.run(None, {"x": images})[0].reshape(len(images), -1)
    right = float(np.mean(scores.argmax(axis=1) == labels))
    print(f"{options.output} on {session.get_providers()[0]}: top-1 {right:.2%} of {len(images)} images")


if __name__ == "__main__":
    main()
