"""What an import costs and pulls in, each in a process of its own: other tests have imported everything here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit.extras import EXTRAS

# The base install: a device has these beside numpy, but only the command line may use them.
_COMMAND_LINE = {"typer", "rich", "click"}


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _blocked(names: set[str], code: str) -> str:
    """Run code where importing any of these packages fails as if it were not installed."""
    blocker = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
    return _python(blocker + code)


def test_import_edgekit_takes_under_a_tenth_of_a_second() -> None:
    code = "import time; t = time.perf_counter(); import edgekit; print(time.perf_counter() - t)"
    # The best of several: a busy machine slows one, never all.
    assert min(float(_python(code)) for _ in range(5)) < 0.1


def test_import_edgekit_imports_no_library() -> None:
    code = "import edgekit, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    assert not set(_python(code).split()) & {*EXTRAS, *_COMMAND_LINE, "numpy", "PIL"}


@pytest.mark.parametrize(
    "module", ["runtime.denoiser", "runtime.check", "runtime.images", "bundle.reader", "bundle.manifest", "errors"]
)
def test_device_part_imports_with_numpy_alone(module: str) -> None:
    blocked = {*EXTRAS, *_COMMAND_LINE, "PIL", "scipy"} - {"ai_edge_litert"}
    assert _blocked(blocked, f"import edgekit.{module}, sys; print('torch' in sys.modules)") == "False"


def test_public_names_of_the_device_need_no_host_library() -> None:
    names = "edgekit.open, edgekit.check, edgekit.Denoiser, edgekit.Bundle, edgekit.Verdict"
    assert _blocked({*EXTRAS, *_COMMAND_LINE, "PIL"}, f"import edgekit; print(len(({names})))") == "5"


def test_libraries_say_nothing_when_the_pipeline_is_imported() -> None:
    code = "import edgekit.pipeline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_command_line_starts_without_host_libraries() -> None:
    blocked = set(EXTRAS) - {"pydantic"}  # newer releases of typer need pydantic themselves
    code = "from edgekit.cli.outcome import run; print(run(['--version']))"
    assert _blocked(blocked, code).endswith("0")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["compress", "--target", "tflite"], "pip install 'edgekit[train,tflite]'"),
        (["models"], "pip install 'edgekit[train]'"),
        (["train", "dsunet-s", "--data", "."], "pip install 'edgekit[train]'"),
    ],
)
def test_host_command_on_a_device_names_the_pip_line(arguments: list[str], line: str) -> None:
    code = f"""
import contextlib, io
from edgekit.cli.outcome import run
with contextlib.redirect_stderr(io.StringIO()) as said:
    code = run({arguments!r})
print(code, said.getvalue(), end="")
"""
    said = _blocked(set(EXTRAS) - {"pydantic"}, code)
    assert said.startswith("2 error: ")
    assert said.count("\n") == 0
    assert said.endswith(line)


def test_doctor_without_any_extra_names_every_pip_line() -> None:
    code = "from edgekit.doctor import examine\nfor f in examine(): print(f.area, f.works, f.fix)"
    lines = _blocked(set(EXTRAS), code).splitlines()
    assert "engine False pip install 'edgekit[litert]'" in lines
    assert "target False pip install 'edgekit[train,tflite]'" in lines
    assert "train False pip install 'edgekit[train]'" in lines
