"""What elimination costs in accuracy on trained models, beside the paper's own method.

    python benchmarks/accuracy.py DATA_FOLDER benchmarks/results/cpu/accuracy.json [CASE …]

DATA_FOLDER holds `models/*.onnx` and `eval/evaluate.py`, whose `load(task, split)` gives (x, labels) for the splits
'calib' and 'test'. Every case is scored on the whole test split, which calibration never sees; original, ours and the
paper's (correlation criterion at the same density, scale K/(K − D), no fine-tuning) run in the same runtime. A CASE
is MODEL/DENSITY/GRANULARITY; without any, all of them run. Cases already in the result file are replaced.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
from pathlib import Path
from typing import Any

from record import commit, write

import deftonnx
from deftonnx import evaluation, model_file

TASKS = {
    "lenet5_mnist": "mnist",
    "cifarnet_quick": "cifar10_mean_image",
    "vit_cifar10": "cifar10",
    "alexnet_flowers5": "flowers5",
    "vgg16_half_cifar10": "cifar10",
}
CASES = [
    ("lenet5_mnist", 0.5, "element"),
    ("cifarnet_quick", 0.5, "element"),
    ("alexnet_flowers5", 0.5, "element"),
    ("vit_cifar10", 0.75, "element"),
    *(("vgg16_half_cifar10", 0.75, g) for g in ("element", "vector", "block:32", "channel")),
    *(("vgg16_half_cifar10", 0.5, g) for g in ("element", "vector", "block:32", "channel")),
    ("vgg16_half_cifar10", 0.5, "fastest"),
]
SAMPLES = 4000


def run(folder: Path, name: str, density: float, granularity: str) -> dict[str, Any]:
    """One row of the table."""
    load = load_function(folder)
    path = folder / "models" / f"{name}.onnx"
    calib, _ = load(TASKS[name], "calib")
    test, labels = load(TASKS[name], "test")
    feeds = [{"x": test[i : i + 100]} for i in range(0, len(test), 100)]
    reference = evaluation.run(evaluation.session(model_file.load(path)), feeds)
    options: dict[str, Any] = {"density": density, "granularity": granularity, "portable": granularity == "channel"}
    if granularity == "fastest":  # on a GPU, whose model decides
        options |= {"preset": "dense16", "decide_by": "model"}
    row: dict[str, Any] = {"model": name, "density": density, "granularity": granularity, "test_samples": len(test)}
    methods: dict[str, dict[str, Any]] = {
        "ours": {"calib_data": {"x": calib}, "calib_samples": SAMPLES, "measure": granularity == "channel"},
        "paper": {"criterion": "correlation", "refit": "scale", "measure": False},
    }
    for method, more in methods.items():
        result = deftonnx.optimize(path, **options, **more)
        outputs = evaluation.run(evaluation.session(result.model), feeds)
        score = evaluation.score("top1", outputs, reference, labels)
        report = result.report.to_dict()
        reduced = [r for r in report["layers"] if r["granularity"]]
        work = sum(r["macs_before"] for r in reduced)
        row["original_top1"] = round(score.reference or 0.0, 2)
        row[method] = {
            "top1": round(score.value or 0.0, 2),
            "loss": round(score.loss, 2),
            "interval_95": round(score.interval or 0.0, 2),
            "kl": float(f"{evaluation.score('kl', outputs, reference, None).loss:.4g}"),
            "eligible_macs_kept": round(sum(r["macs_before"] * r["kept"] / r["K"] for r in reduced) / work, 4),
            "macs": round(report["after"]["macs"] / report["before"]["macs"], 4),
            "parameters": round(report["after"]["parameters"] / report["before"]["parameters"], 4),
            "latency_ms": [report["before"]["latency_ms"], report["after"]["latency_ms"]],
            "seconds": report["seconds"],
        }
    row["commit"] = commit()
    row["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def load_function(folder: Path) -> Any:
    """The `load` of DATA_FOLDER/eval/evaluate.py."""
    spec = importlib.util.spec_from_file_location("evaluate", folder / "eval" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


def main(folder: Path, path: Path, wanted: list[str]) -> None:
    """Run the cases and write the result file after each."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for name, density, granularity in CASES:
        key = f"{name}/{density}/{granularity}"
        if wanted and key not in wanted:
            continue
        row = run(folder, name, density, granularity)
        rows = [r for r in rows if (r["model"], r["density"], r["granularity"]) != (name, density, granularity)]
        rows.append(row)
        write(path, {"calibration_samples_at_most": SAMPLES, "rows": rows})
        print(key, *(f"{m}: −{row[m]['loss']} ± {row[m]['interval_95']}" for m in ("ours", "paper")), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
