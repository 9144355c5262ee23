"""When an installation builds the operator library, and what it says when it cannot."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "custom_ops"))
import build_backend
from build_backend import BuildError
from setuptools import build_meta

PLAIN = "deftonnx-0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    """A machine that can build, where nothing is built, and what is run and passed on is only recorded."""
    seen = {"commands": [], "settings": []}
    monkeypatch.delenv(build_backend.VARIABLE, raising=False)
    monkeypatch.setattr(build_backend, "_obstacle", lambda: None)
    monkeypatch.setattr(build_backend.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(build_backend, "_library", lambda: tmp_path / "library.so")

    def run(command, check):
        seen["commands"].append(command)
        (tmp_path / "library.so").touch()

    monkeypatch.setattr(build_backend.subprocess, "run", run)
    for hook in ("wheel", "editable"):
        monkeypatch.setattr(build_meta, f"get_requires_for_build_{hook}", lambda settings: [])
    for hook in ("build_wheel", "build_editable"):
        monkeypatch.setattr(
            build_meta, hook, lambda folder, settings, metadata: seen["settings"].append(settings) or PLAIN
        )
    return seen


def test_a_wheel_has_the_library_and_is_bound_to_the_platform(state):
    assert any(tool.startswith("triton") for tool in build_backend.get_requires_for_build_wheel())
    build_backend.build_wheel("folder", {"--build-option": "--verbose"})
    assert len(state["commands"]) == 1
    options = state["settings"][0]["--build-option"]
    assert options[0] == "--verbose"
    assert options[1].startswith("--plat-name=")
    assert "-" not in options[1].removeprefix("--plat-name=")


def test_an_editable_install_does_not_wait_for_kernels(state):
    assert not any(tool.startswith("triton") for tool in build_backend.get_requires_for_build_editable())
    build_backend.build_editable("folder")
    assert state["commands"] == []


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_both_can_be_told_otherwise(state, monkeypatch, hook):
    monkeypatch.setenv(build_backend.VARIABLE, "0")
    getattr(build_backend, hook)("folder", {})
    assert state["commands"] == []
    assert "--build-option" not in state["settings"][0]
    getattr(build_backend, hook)("folder", {"kernels": "80,90"})  # pip's setting comes before the environment
    assert state["commands"][0][-2:] == ["--arch=80", "--arch=90"]
    assert "kernels" not in state["settings"][1]


def test_without_a_compiler_the_package_installs_without_the_library(state, monkeypatch, capsys):
    monkeypatch.setattr(build_backend, "_obstacle", lambda: "there is no C++ compiler")
    assert not any(tool.startswith("triton") for tool in build_backend.get_requires_for_build_wheel())
    assert build_backend.build_wheel("folder") == PLAIN
    assert state["commands"] == []
    assert capsys.readouterr().err == "deftonnx: installing without the operator library: there is no C++ compiler\n"
    with pytest.raises(BuildError, match="cannot be built: there is no C\\+\\+ compiler"):
        build_backend.build_wheel("folder", {"kernels": "yes"})


def test_without_triton_too(state, monkeypatch, capsys):
    monkeypatch.setattr(build_backend.importlib.util, "find_spec", lambda name: None)
    build_backend.build_wheel("folder")
    assert "Triton is not installed" in capsys.readouterr().err


def test_a_failed_build_is_an_error(state, monkeypatch):
    def fail(command, check):
        raise build_backend.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(build_backend.subprocess, "run", fail)
    with pytest.raises(BuildError, match="DEFTONNX_KERNELS=0 installs without it"):
        build_backend.build_wheel("folder")


@pytest.mark.parametrize("value", ["maybe", "91", "80;90", "80,"])
def test_unknown_requests(value):
    with pytest.raises(BuildError, match=f"DEFTONNX_KERNELS={value}: give 0, 1, or compute capabilities among"):
        build_backend.get_requires_for_build_wheel({"kernels": value})


def test_a_missing_compiler_is_found_out(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler")
    if sys.platform == "linux":
        assert "no-such-compiler" in build_backend._obstacle()
