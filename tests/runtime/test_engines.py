"""What every engine must do, run over the registry; and the registry itself."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgekit.errors import RecipeError, UnknownNameError
from edgekit.runtime.engines import registry
from edgekit.runtime.engines.base import Availability, EngineOptions

if TYPE_CHECKING:
    from tiny_tflite import Stand


def test_engines_are_found_by_file() -> None:
    assert "litert" in registry.names()
    assert not {"base", "registry"} & set(registry.names())


@pytest.mark.parametrize("name", registry.names())
def test_an_engine_module_keeps_the_contract(name: str) -> None:
    module = registry._module(name)
    parameters = inspect.signature(module.open).parameters
    assert list(parameters) == ["path", "variant", "threads", "portable", "options"]
    assert parameters["threads"].kind is inspect.Parameter.KEYWORD_ONLY
    found = module.available()
    assert isinstance(found, Availability)
    assert found.engine == name
    # Either it works, or it says why not and how to mend it.
    assert found.library or (found.problem and found.fix.startswith("pip install"))


def test_a_choice_that_an_engine_has_not_is_told_plainly() -> None:
    with pytest.raises(RecipeError, match=r"^cache is 'bad/cc': engine litert has no such choice; leave it out$"):
        EngineOptions(cache=Path("bad/cc")).refuse("litert")


def test_available_reports_every_engine() -> None:
    assert sorted(registry.available()) == registry.names()


def test_unknown_engine(tiny: Stand) -> None:
    import dataclasses

    variant = dataclasses.replace(tiny.manifest.variants[0], engine="litert2")
    with pytest.raises(UnknownNameError, match=r"unknown engine 'litert2': expected one of .*did you mean 'litert'"):
        registry.open_engine(variant, Path("x"), 1)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_out_of_range(tiny: Stand, threads: int) -> None:
    variant = tiny.manifest.variants[0]
    with pytest.raises(RecipeError, match="threads is .*: expected a whole number of at least 1"):
        registry.open_engine(variant, tiny.path(variant.file), threads)


@pytest.mark.parametrize("before", ["", "import openvino_telemetry as seen\n"])
def test_openvino_is_imported_without_its_report_of_use(before: str) -> None:
    pytest.importorskip("openvino")
    # Not in this process, which may hold OpenVINO already; and not as CI, where OpenVINO keeps silent by itself.
    code = (
        "import os, sys\n"
        "os.register_at_fork(before=lambda: print('forked'))\n"
        f"{before}"
        "from edgekit.runtime.engines import registry\n"
        "assert registry.available()['openvino'].library\n"
        "assert 'openvino' in sys.modules\n"
        "assert 'openvino.tools.ovc.telemetry_stub' in sys.modules\n"
        "import openvino_telemetry\n"
        "assert globals().get('seen', openvino_telemetry) is openvino_telemetry\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "forked" not in done.stdout
