"""The main job from Python, on the LeNet-5 and the MNIST images beside this file. `make demo` runs it.

Half of the channels and features that each layer reads are eliminated, the weights that stay are refitted on 1,000
training images, and the result is scored on 1,000 test images it has not seen.
"""

import argparse
from pathlib import Path

import deftonnx
from deftonnx.report import html, table

DATA = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.5, help="fraction of its inputs that a layer keeps")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the model and its report")
    options = parser.parse_args()

    result = deftonnx.optimize(
        DATA / "lenet5_mnist.onnx",
        calib_data=DATA / "mnist_calibration.npz",
        calib_samples=1000,
        eval_data=DATA / "mnist_test.npz",
        density=options.density,
    )

    options.output.mkdir(parents=True, exist_ok=True)
    model, page = options.output / "lenet5_mnist.deft.onnx", options.output / "report.html"
    result.save(model)
    page.write_text(html.page(result.report), encoding="utf-8")
    table.show(result.report, verbose=1)
    print(f"The model runs in stock ONNX Runtime; what was done to each layer, and why not, is in {page}.")


if __name__ == "__main__":
    main()
