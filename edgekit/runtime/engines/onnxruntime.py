"""ONNX files, by ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from edgekit.bundle.manifest import Variant
from edgekit.errors import EngineError
from edgekit.runtime import tensors
from edgekit.runtime.engines.base import DEFAULTS, Availability, EngineOptions, OperatorCount, look, require

NAME = "onnxruntime"
_DTYPES = {"float": "float32", "float16": "float16", "uint8": "uint8", "int8": "int8"}
_ERRORS_ONLY = 3


class OnnxRuntimeEngine:
    """An .onnx file in a session. ONNX Runtime does not tell what its kernels compute in."""

    name = NAME
    any_size = True
    has_portable = False
    counts_file = False
    kernels = "unknown"

    def __init__(self, path: Path, variant: Variant, threads: int) -> None:
        import onnxruntime

        self.library = f"onnxruntime {onnxruntime.__version__}"
        self.threads = threads
        self.operators: Mapping[str, OperatorCount] = MappingProxyType({})
        self.macs: Mapping[str, int] = MappingProxyType({})
        self._path, self._variant = path, variant
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.log_severity_level = _ERRORS_ONLY
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise EngineError(
                f"{path.name} cannot be opened by {self.library}: {tensors.line(error)}; export it again"
            ) from error
        tensors.match(path, "input", variant.inputs, _found(self._session.get_inputs()))
        tensors.match(path, "output", variant.outputs, _found(self._session.get_outputs()))
        self._output = variant.outputs[0].name

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if self._session is None:
            raise EngineError(f"{self._path.name} is closed: open it again")
        tensors.check_feed(self._path, self._variant.inputs, inputs)
        try:
            output: NDArray[Any] = self._session.run([self._output], dict(inputs))[0]
        except Exception as error:  # as above
            raise EngineError(f"{self._path.name} failed in {self.library}: {tensors.line(error)}") from error
        return output

    def close(self) -> None:
        self._session = None


def open(  # noqa: D103 - see base.EngineModule
    path: Path, variant: Variant, *, threads: int, portable: bool = False, options: EngineOptions = DEFAULTS
) -> OnnxRuntimeEngine:
    options.refuse(NAME)
    require(NAME, path, portable=portable)
    return OnnxRuntimeEngine(path, variant, threads)


def available() -> Availability:  # noqa: D103 - see base.EngineModule
    return look(NAME)


def _found(arguments: list[Any]) -> tensors.Found:
    """Dtype and shape of a session's tensors; a named axis takes any size."""
    found = {}
    for argument in arguments:
        kind = re.sub(r"^tensor\((.*)\)$", r"\1", argument.type)
        shape = tuple(side if isinstance(side, int) else -1 for side in argument.shape)
        found[argument.name] = (_DTYPES.get(kind, kind), shape)
    return found
