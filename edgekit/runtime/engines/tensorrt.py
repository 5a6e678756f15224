"""TensorRT engines on NVIDIA GPUs, built beforehand by the bundle's build_engine.py.

The manifest names an ONNX file; what runs is the engine that build_engine.py made of it for this GPU and this TensorRT,
in `engines/` beside the file. Every run copies through page-locked memory on one stream.

Not run on TensorRT here: proven against a fake of its Python API (tests/fake_tensorrt.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import build_engine
from edgekit.bundle.build_engine import CannotTellError, Machine, MissingLibraryError, Session, TensorRTError
from edgekit.bundle.manifest import Variant
from edgekit.errors import EngineError, MissingExtraError, NoPortableError
from edgekit.runtime import tensors
from edgekit.runtime.engines.base import DEFAULTS, Availability, EngineOptions, OperatorCount

NAME = "tensorrt"
_BUILD = "python build_engine.py"


class TensorRTEngine:
    """An engine on the GPU, opened in the place of the ONNX file it was built from."""

    name = NAME
    # The engine was built for a profile of shapes, which need not hold more than the tile.
    any_size = False
    has_portable = False
    counts_file = False
    kernels = "tensorrt"

    def __init__(self, path: Path, variant: Variant, threads: int, here: Machine) -> None:
        engine, facts = _find(path, variant, here)
        self.library = f"tensorrt {here.version} ({facts['precision']} engine)"
        self.threads = threads
        self.operators = _operators(facts)
        self.macs = _counts(facts, "macs")
        self._path = path
        self._inputs = variant.inputs
        self._output = variant.outputs[0].name
        try:
            self._session: Session | None = Session(here, engine.read_bytes())
        except (TensorRTError, OSError) as error:
            raise EngineError(f"{engine.name} cannot be opened by {self.library}: {error}; {_again(path)}") from error
        try:
            _compare(engine, variant, self._session)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if self._session is None:
            raise EngineError(f"{self._path.name} is closed: open it again")
        tensors.check_feed(self._path, self._inputs, inputs)
        try:
            output: NDArray[Any] = self._session.run(dict(inputs), self._output)
        except TensorRTError as error:
            raise EngineError(f"{self._path.name} failed in {self.library}: {error}") from error
        return output

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


def open(  # noqa: D103 - see base.EngineModule
    path: Path, variant: Variant, *, threads: int, portable: bool = False, options: EngineOptions = DEFAULTS
) -> TensorRTEngine:
    options.refuse(NAME)
    if portable:
        raise NoPortableError("tensorrt has no portable kernels: every GPU model and version computes its own bits")
    try:
        here = build_engine.machine()
    except MissingLibraryError as error:
        raise MissingExtraError(f"running {path.name} on TensorRT: {error}") from error
    except CannotTellError as error:
        raise EngineError(f"{path.name} cannot be opened by tensorrt: {error}") from error
    return TensorRTEngine(path, variant, threads, here)


def available() -> Availability:  # noqa: D103 - see base.EngineModule
    try:
        here = build_engine.machine()
    except (CannotTellError, AttributeError, TypeError, ValueError) as error:
        return Availability(NAME, None, str(error).removesuffix(f": {build_engine.FIX}"), build_engine.FIX)
    return Availability(NAME, f"tensorrt {here.version}")


def _find(path: Path, variant: Variant, here: Machine) -> tuple[Path, dict[str, Any]]:
    """The engine built from this file for this machine, one of the variant's own precision first.

    Raises: EngineError: there is none; what there is was built for another GPU, TensorRT or file, or altered.
    """
    try:
        digest = build_engine.sha256(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}): copy the bundle again") from error
    built = build_engine.sidecars(path.parent / build_engine.FOLDER)
    precision = variant.name.split("-")[0]
    ours = [(engine, facts, digest) for engine, facts in built if facts["onnx"] == path.name]
    # Where the builder is told FP16, the engine of the FP32 file is an FP16 one.
    ours.sort(key=lambda found: found[1]["precision"] != precision)
    whole = path.with_name(path.name.replace(".fp16.onnx", ".fp32.onnx"))
    if precision == "fp16" and whole != path and whole.is_file():
        source = build_engine.sha256(whole)
        ours += [(e, f, source) for e, f in built if f["onnx"] == whole.name and f["precision"] == precision]
    problems = []
    for engine, facts, expected in ours:
        problem = build_engine.misfit(engine, facts, here, expected)
        if not problem:
            return engine, facts
        problems.append(f"{engine.name} {problem}")
    if problems:
        raise EngineError(f"{path.name} has no engine for this machine: {'; '.join(problems)}; {_again(path)}")
    others = sorted({f"{facts['onnx']} ({facts['precision']})" for _, facts in built})
    there = f"; there are engines of {', '.join(others)}: open that variant, or add --precision" if others else ""
    raise EngineError(f"{path.name} has no engine for {here.gpu} and TensorRT {here.version}: {_again(path)}{there}")


def _again(path: Path) -> str:
    return f"run `{_BUILD}` in {path.parent} (a zipped bundle must be unpacked first)"


def _compare(engine: Path, variant: Variant, session: Session) -> None:
    """Raises: EngineError: the engine's tensors are not those of the manifest."""
    for kind, specs, names in (
        ("input", variant.inputs, session.inputs),
        ("output", variant.outputs, session.outputs),
    ):
        if sorted(spec.name for spec in specs) != sorted(names):
            raise EngineError(
                f"{engine.name} has the {kind}s {sorted(names)}, the manifest says "
                f"{sorted(spec.name for spec in specs)}: they are not of one export"
            )
        for spec in specs:
            found, rank = session.dtypes[spec.name], session.ranks[spec.name]
            if (found, rank) != (spec.dtype, len(spec.shape)):
                raise EngineError(
                    f"{kind} {spec.name!r} of {engine.name} is {found} with {rank} axes, the manifest says "
                    f"{spec.dtype} {list(spec.shape)}: they are not of one export"
                )


def _operators(facts: Mapping[str, Any]) -> Mapping[str, OperatorCount]:
    # All of them run on the GPU: TensorRT leaves none to anything else.
    return MappingProxyType({name: OperatorCount(n, n) for name, n in sorted(_counts(facts, "operators").items())})


def _counts(facts: Mapping[str, Any], key: str) -> Mapping[str, int]:
    """Counts by name from the sidecar; empty where it holds none."""
    found = facts.get(key)
    if not isinstance(found, dict) or not all(isinstance(n, (int, np.integer)) for n in found.values()):
        return MappingProxyType({})
    return MappingProxyType({str(name): int(n) for name, n in found.items()})
