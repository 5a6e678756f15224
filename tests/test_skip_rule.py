"""The rule for skipped tests (tests/conftest.py), in a test run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_TESTS = """
import pytest

def test_listed(): pytest.skip("needs a camera: none here")

@pytest.mark.parametrize("n", [1, 2])
def test_listed_with_parameters(n): pytest.skip("needs a camera")

def test_passes(): pass
"""
_LISTED = (
    "tests/test_it.py::test_listed  needs a camera\ntests/test_it.py::test_listed_with_parameters needs a camera\n"
)


def _run(
    folder: Path, tests: str, allowed: str, *options: str, strict: bool = True
) -> subprocess.CompletedProcess[str]:
    (folder / "tests").mkdir()
    (folder / "tests" / "conftest.py").write_text((_HERE / "conftest.py").read_text())
    (folder / "tests" / "allowed_skips.txt").write_text(f"# a comment\n\n{allowed}")
    (folder / "tests" / "test_it.py").write_text(tests)
    # Other plugins would take longer to load than these tests to run.
    environment = {**os.environ, "EDGEKIT_STRICT_SKIPS": "1" if strict else "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")])
def test_listed_skips_pass(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = _run(tmp_path, _TESTS, _LISTED, *options)
    assert done.returncode == 0, done.stdout
    assert "not on tests/allowed_skips.txt" not in done.stdout


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")])
def test_unlisted_skip_fails_and_is_named(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = _run(tmp_path, _TESTS + "\ndef test_other(): pytest.skip('too lazy')\n", _LISTED, *options)
    assert done.returncode == 1
    assert "skipped, but not on tests/allowed_skips.txt" in done.stdout
    assert "tests/test_it.py::test_other  too lazy" in done.stdout
    assert "tests/test_it.py::test_listed " not in done.stdout


def test_unlisted_skip_is_only_told_where_nobody_asked_for_strictness(tmp_path: Path) -> None:
    done = _run(tmp_path, _TESTS, "", strict=False)
    assert done.returncode == 0
    assert "tests/test_it.py::test_listed  needs a camera: none here" in done.stdout


def test_listed_test_skipped_for_another_reason_fails(tmp_path: Path) -> None:
    done = _run(tmp_path, _TESTS, _LISTED.replace("a camera", "a printer"))
    assert done.returncode == 1


def test_module_that_skips_itself_fails(tmp_path: Path) -> None:
    done = _run(tmp_path, "import pytest\npytest.skip('all of it', allow_module_level=True)\n", "")
    # Nothing ran at all: pytest has a code of its own for that, which is a failure too.
    assert done.returncode != 0
    assert "tests/test_it.py  all of it" in done.stdout


def test_expected_failure_is_no_skip(tmp_path: Path) -> None:
    done = _run(tmp_path, "import pytest\n@pytest.mark.xfail\ndef test_x(): assert False\n", "")
    assert done.returncode == 0
