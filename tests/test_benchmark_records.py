"""Results of benchmarks: merging a run that was cut short with earlier rows, tables and plots made of them."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("everything", "tables", "plots", "gpu_tables", "accuracy_tables", "gpu_tests"):
        sys.modules.pop(name, None)


def row(batch, ms, **more):
    return {
        "model": "net",
        "batch": batch,
        "variants": {"ort fp16": {"ms": [2 * ms, 1, 9]}, "deft dense16": {"ms": [ms, 1, 9]}},
        **more,
    }


def test_rows_that_were_not_measured_again_stay(benchmarks):
    from everything import merged

    old = {"commit": "old", "rows": [row(1, 5.0), row(64, 9.0, commit="older")], "note": 1}
    new = {"commit": "new", "rows": [row(1, 4.0)]}
    assert merged(old, new) == {"commit": "new", "rows": [row(1, 4.0), row(64, 9.0, commit="older")]}
    assert merged({"commit": "old", "memcheck": ["clean"], "tests": 1}, {"commit": "new"}) == {"commit": "new"}
    assert merged({"environment": {"commit": "old"}, "chains": [{"shape": [1], "us": 2}]}, new)["chains"] == [
        {"commit": "old", "shape": [1], "us": 2}
    ]


def test_gpu_tests_are_dealt_out_by_what_they_took(benchmarks):
    from gpu_tests import dealt

    names = [f"t.py::{case}" for case in ("a[1-x]", "b", "a[1-y]", "a[2-x]", "c", "d")]
    took = {"a[1-x]": 9.0, "a[1-y]": 2.0, "d": 8.0, "c": 4.0}
    assert dealt(names, took, 2) == [
        ["t.py::a[1-x]", "t.py::a[1-y]", "t.py::b", "t.py::a[2-x]"],
        ["t.py::d", "t.py::c"],
    ]
    assert dealt(["t.py::b"], {}, 3) == [["t.py::b"]]


def test_what_times_nothing_runs_first_and_side_by_side(benchmarks):
    from everything import PARTS, rounds

    first, *others = rounds(list(PARTS))
    assert first == ["prepare", "gpu_tests", "accuracy", "format_accuracy"]
    assert all(len(group) == 1 and PARTS[group[0]].timed for group in others)
    assert rounds(["gemm_fp8"]) == [["gemm_fp8"]]


def test_a_part_says_how_it_is_measured_again(benchmarks, monkeypatch, tmp_path):
    import everything

    (tmp_path / "script.py").write_text(
        "import json, os, sys\n"
        "rows = [{'model': os.environ['DEFTONNX_SHARED'], 'n': 1}]\n"
        "json.dump({'commit': 'c', 'command': 'x', 'rows': rows}, open(sys.argv[2], 'w'))\n"
    )
    monkeypatch.setattr(everything, "BENCHMARKS", tmp_path)
    monkeypatch.setitem(everything.PARTS, "accuracy", everything.Part("script.py", (), 1, timed=False, needs_data=True))
    everything.measure("accuracy", 60, tmp_path / "data")
    content = json.loads((tmp_path / "results" / "cpu" / "accuracy.json").read_text())
    assert content["command"] == "python benchmarks/everything.py --parts accuracy --data FOLDER"
    assert everything.again("models") == "python benchmarks/everything.py --parts prepare models"
    assert content["rows"] == [{"model": str(tmp_path / "data"), "n": 1}]


def test_parts_that_need_data_are_not_left_out_in_silence(benchmarks, monkeypatch, capsys):
    import everything

    monkeypatch.setattr(sys, "argv", ["everything.py", "--parts", "accuracy"])
    with pytest.raises(SystemExit):
        everything.main()
    assert "accuracy need --data" in capsys.readouterr().err


def test_documents_are_what_the_result_files_say(benchmarks):
    import tables

    for document in tables.DOCUMENTS:
        assert tables.filled(document) == (tables.ROOT / document).read_text(encoding="utf-8")


def test_table_of_models(benchmarks, monkeypatch):
    import gpu_tables

    content = {"commit": "0123456789", "date": "2026-01-02", "gpu": "GPU", "rows": [row(64, 2.0), row(1, 0.5)]}
    monkeypatch.setattr(gpu_tables, "load", lambda name: content)
    text = gpu_tables.models()
    assert "| net | 64 | – | 4.00 | fp16 | – | 2.00 | – | 2.00× | – | – | – |" in text
    assert "commit 0123456)" in text
    assert gpu_tables.footprints() == gpu_tables.NOTHING
    content["rows"][0]["variants"]["deft dense16"] |= {"session_s": 0.0625, "gpu_mib": 824}
    assert "| net | – | – | 62 | – | – | – | 824 | – |" in gpu_tables.footprints()
    monkeypatch.setattr(gpu_tables, "load", lambda name: None)
    assert {make() for make in gpu_tables.TABLES.values()} == {gpu_tables.NOTHING}


def test_plots_are_svg(benchmarks, monkeypatch):
    import plots

    content = {"gpu": "GPU", "rows": [dict(row(batch, batch / 7), model="resnet50") for batch in (1, 8, 64)]}
    monkeypatch.setattr(plots.gpu_tables, "load", lambda name: content)
    drawn = plots.svg(plots.latency())
    root = ElementTree.fromstring(drawn)
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * 3 + 4  # two series of three points, and the legend
    ElementTree.fromstring(plots.svg(plots.accuracy()))
