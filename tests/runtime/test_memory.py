from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_bundle import write_tiny

from edgekit.runtime import memory
from edgekit.runtime.memory import peak_memory


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("memory") / "tiny.edgekit")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process its memory peak as POSIX does")
def test_it_is_the_models_and_not_this_process(written: Path) -> None:
    # On Linux a child's ru_maxrss begins at its parent's: with that as the measure nothing would be left here.
    ballast = np.ones(300_000_000, np.uint8)
    found, problem = peak_memory(written, "int8", 1)
    assert problem == ""
    assert found is not None
    # The engine's library alone is a few MB; with the tiny model it is far from what this process holds.
    assert 1_000_000 < found < ballast.nbytes


def test_loading_the_golden_tiles_does_not_hide_the_model() -> None:
    """What was held and freed before the model is opened is forgotten, where the system allows it."""
    if not Path("/proc/self/clear_refs").exists():
        return
    code = (
        "from edgekit.runtime import memory as m\n"
        "b = bytearray(100_000_000); b = None\n"
        "high = m.high_water(); m.forget_high_water(); print(high - m.high_water())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 90_000_000


def test_what_goes_wrong_is_told_and_not_raised(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, problem = peak_memory(written, "int4", 1)
    assert found is None
    assert problem.startswith("not measured: ")
    assert "unknown variant 'int4'" in problem
    monkeypatch.setattr(sys, "executable", str(written / "no-python"))
    found, problem = peak_memory(written, "int8", 1)
    assert found is None
    assert "No such file" in problem


def test_a_system_that_does_not_tell_gives_none(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "high_water", lambda: None)
    memory._worker([str(written), "int8", "1"])
    assert capsys.readouterr().out == '{"peak_memory": null}\n'
    silent = subprocess.CompletedProcess([], 0, '{"peak_memory": null}\n', "")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: silent)
    assert peak_memory(written, "int8", 1) == (None, "not measured: this system does not tell it")
