"""What every test shares: seeds, the image sets beside the repository, and the rule for skipped tests.

A skipped test must be on `tests/allowed_skips.txt` with its reason. Elsewhere that is reported; with
EDGEKIT_STRICT_SKIPS=1, as `.ci/run` sets it, it fails the run.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

# Tests are small, and two processes share two cores; results also depend on how many threads share a sum. Before the
# first import of torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = Path(__file__).with_name("allowed_skips.txt")
STRICT = "EDGEKIT_STRICT_SKIPS"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed every global generator, which a test may do again."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy generator is the one that libraries draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder `shared` beside the repository, which holds image sets and checkpoints that may not be copied here."""
    shared = ROOT.parent / "shared"
    if not (shared / "data").is_dir():
        pytest.skip("needs ../shared/data: the image sets that may not be copied into the repository")
    return shared


def read_allowed(text: str) -> dict[str, str]:
    """Parse lines `tests/file.py::test_name  reason`, with `#` comments; the reason is how the skip message begins."""
    allowed = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, reason = line.split(maxsplit=1)
            allowed[name] = reason.strip()
    return allowed


def unlisted(skips: dict[str, str], allowed: dict[str, str]) -> dict[str, str]:
    """The skips that no line allows: other tests, and listed tests that were skipped for another reason."""
    bad = {}
    for nodeid, reason in skips.items():
        name = nodeid.partition("[")[0]
        if name not in allowed or not reason.startswith(allowed[name]):
            bad[nodeid] = reason
    return bad


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    detail = report.longrepr
    message = str(detail[2]) if isinstance(detail, tuple) else str(detail)
    return message.removeprefix("Skipped: ")


class _SkipRule:
    """Collects skips, in the controlling process only: under xdist the workers' reports arrive there."""

    def __init__(self) -> None:
        self.skips: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skips[report.nodeid] = _reason(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skips[report.nodeid] = _reason(report)

    def bad(self) -> dict[str, str]:
        return unlisted(self.skips, read_allowed(ALLOWED.read_text()))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.bad() and os.environ.get(STRICT) == "1" and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        bad = self.bad()
        if bad:
            terminalreporter.section(f"skipped, but not on {ALLOWED.relative_to(ROOT)}", red=True)
            for nodeid, reason in sorted(bad.items()):
                terminalreporter.line(f"{nodeid}  {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Install the skip rule where the results come together."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_SkipRule(), "edgekit-skips")
