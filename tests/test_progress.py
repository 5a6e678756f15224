"""What a run says of its progress where nobody watches a terminal."""

from __future__ import annotations

import pytest

from edgekit.cli import progress


def test_a_log_gets_a_line_now_and_then(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with progress.Bars() as bars:
        bars("distill", 1, 9, "loss 0.0100")
        bars("distill", 4, 9, "loss 0.0090")
        bars("distill", 9, 9)
        bars("quantize", 2, 3)
    assert capfd.readouterr().err == "distill 4/9 loss 0.0090\nquantize 2/3\n"
