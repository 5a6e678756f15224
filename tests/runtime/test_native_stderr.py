from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from edgekit.runtime.engines import registry
from edgekit.runtime.native_stderr import without_lines

if TYPE_CHECKING:
    from tiny_tflite import Stand


def test_lines_are_dropped_and_others_come_after(capfd: pytest.CaptureFixture[str]) -> None:
    with without_lines("INFO: Created"):
        os.write(2, b"INFO: Created a delegate.\nERROR: no\nhalf a line")
    os.write(2, b"\nafter\n")
    assert capfd.readouterr().err == "ERROR: no\nhalf a line\nafter\n"


def test_an_error_passes_and_stderr_is_restored(capfd: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        with without_lines("INFO"):
            os.write(2, b"ERROR: yes\n")
            raise ValueError("it")

    with pytest.raises(ValueError, match="it"):
        failing()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "ERROR: yes\nafter\n"


def test_no_place_for_a_temporary_file(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError("read-only")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with without_lines("INFO"):
        os.write(2, b"INFO: all\n")
    assert capfd.readouterr().err == "INFO: all\n"


def test_opening_a_model_is_silent(tiny: Stand, capfd: pytest.CaptureFixture[str]) -> None:
    variant = tiny.manifest.variants[0]
    registry.open_engine(variant, tiny.path(variant.file), 1).close()
    assert capfd.readouterr() == ("", "")
