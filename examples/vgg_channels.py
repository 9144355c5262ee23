"""Whole channels of a convolutional network: standard operators only, and faster wherever ONNX Runtime runs.

    vgg_channels.py [MODEL.onnx CALIBRATION_DATA] [--eval-data DATA] [--density D] [--output FILE]

Data is in any form that `deftonnx optimize --calib-data` takes. Without arguments a small VGG-like model with random
weights is made on the spot.
"""

import argparse
from pathlib import Path

import small_models

import deftonnx
from deftonnx.report import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("calib_data", nargs="?")
    parser.add_argument("--eval-data")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--output", type=Path, default=Path("vgg.deft.onnx"))
    options = parser.parse_args()
    if options.model is not None and options.calib_data is None:
        parser.error("a model needs calibration data: pass both")

    model, calib_data, eval_data = options.model, options.calib_data, options.eval_data
    if model is None:
        print("No model given: using a small VGG with random weights and synthetic images. It shows what is done to")
        print("the layers and what time it saves; the loss of a trained model on real images is far smaller.")
        model = small_models.vgg()
        calib_data = {"image": small_models.images(256, 3, 32, seed=1)}
        eval_data = {"image": small_models.images(128, 3, 32, seed=2)}

    result = deftonnx.optimize(
        model,
        calib_data=calib_data,
        eval_data=eval_data,
        granularity="channel",
        density=options.density,
        portable=True,
    )
    result.save(options.output)
    table.show(result.report, verbose=1)


if __name__ == "__main__":
    main()
