"""What packing weights costs in accuracy on trained models, with nothing eliminated.

    python benchmarks/format_accuracy.py DATA_FOLDER benchmarks/results/cpu/format_accuracy.json [MODEL …]

DATA_FOLDER is that of accuracy.py. Every model is packed in every format of FORMATS and scored on the whole test
split, which calibration never sees, beside the original in the same runtime. Models already in the result file are
replaced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accuracy import TASKS, load_function
from record import commit, write

import deftonnx
from deftonnx import evaluation, model_file

MODELS = ("lenet5_mnist", "alexnet_flowers5", "vit_cifar10")
"""Those whose weights are mostly in MatMul and Gemm layers, which are what is packed."""
FORMATS = ("half", "deft16", "deft16q", "deft8:auto", "deft8:4", "fp8")
SAMPLES = 512


def run(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one model."""
    load = load_function(folder)
    path = folder / "models" / f"{name}.onnx"
    calib, _ = load(TASKS[name], "calib")
    test, labels = load(TASKS[name], "test")
    feeds = [{"x": test[i : i + 100]} for i in range(0, len(test), 100)]
    reference = evaluation.run(evaluation.session(model_file.load(path)), feeds)
    rows = []
    for format_name in FORMATS:
        result = deftonnx.optimize(
            path,
            calib_data={"x": calib},
            calib_samples=SAMPLES,
            density=1.0,
            format=format_name,
            measure=False,
        )
        outputs = evaluation.run(evaluation.session(result.model), feeds)
        score = evaluation.score("top1", outputs, reference, labels)
        packed = [row for row in result.report.layers if row.format]
        rows.append(
            {
                "model": name,
                "format": format_name,
                "test_samples": len(test),
                "original_top1": round(score.reference or 0.0, 2),
                "top1": round(score.value or 0.0, 2),
                "loss": round(score.loss, 2),
                "interval_95": round(score.interval or 0.0, 2),
                "rel_l2": float(f"{evaluation.score('rel-l2', outputs, reference, None).loss:.3g}"),
                "packed_layers": len(packed),
                "largest_layer_error": float(f"{max(row.format_error or 0.0 for row in packed):.3g}"),
                "formats": sorted({row.format for row in packed if row.format}),
                "weight_bytes": [result.report.before.weight_bytes, result.report.after.weight_bytes],
                "commit": commit(),
            }
        )
        print(name, format_name, rows[-1]["top1"], rows[-1]["loss"], rows[-1]["rel_l2"], flush=True)
    return rows


def main(folder: Path, path: Path, wanted: list[str]) -> None:
    """Run the models and write the result file after each."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in wanted or MODELS:
        rows = [row for row in rows if row["model"] != name] + run(folder, name)
        write(path, {"calibration_samples": SAMPLES, "rows": rows})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
