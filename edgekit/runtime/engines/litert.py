"""TFLite files, by LiteRT or one of its older names."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import TensorSpec, Variant
from edgekit.errors import EngineError, MissingExtraError, NoPortableError
from edgekit.runtime.engines.base import DEFAULTS, Availability, EngineOptions, OperatorCount
from edgekit.runtime.native_stderr import without_lines
from edgekit.runtime.tensors import line

NAME = "litert"

# Module, the attribute path of its Interpreter, and the distribution that brings it; the best first. All three are the
# same code base: tflite-runtime is LiteRT's old name, still what 32-bit ARM has.
_LIBRARIES = (
    ("ai_edge_litert.interpreter", "Interpreter", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "Interpreter", "tflite-runtime"),
    ("tensorflow", "lite.Interpreter", "tensorflow"),
)
# Operators that only move numbers, or exchange int8 for uint8 (QUANTIZE): wherever they run, the bits are the same.
_MOVES = {
    "QUANTIZE",
    "RESHAPE",
    "TRANSPOSE",
    "RESIZE_NEAREST_NEIGHBOR",
    "BROADCAST_TO",
    "SPACE_TO_DEPTH",
    "DEPTH_TO_SPACE",
}
# Interpreters kept beside the file's own, one an input size: an image is cut into tiles and at most three other sizes.
_MOST_SIZES = 3
# Operators with multiply-accumulates.
PRODUCTS = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "CONV_3D", "BATCH_MATMUL"}


class LiteRTEngine:
    """A .tflite file in an interpreter, and in a few more for images of other sizes than the file's."""

    name = NAME
    has_portable = True
    counts_file = True

    def __init__(
        self, path: Path, variant: Variant, threads: int, factory: Any, library: str, *, portable: bool = False
    ) -> None:
        self.library = library
        self.threads = threads
        self._path = path
        self._factory, self._options = factory, _portable(factory, library) if portable else {}
        try:
            self._interpreter = self._load()
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"{path.name} cannot be opened by {library}: {line(error)}; export it again") from error
        signature = _signature(self._interpreter)
        self._inputs = _match(
            path, "input", variant.inputs, self._interpreter.get_input_details(), signature.get("inputs", {})
        )
        outputs = _match(
            path, "output", variant.outputs, self._interpreter.get_output_details(), signature.get("outputs", {})
        )
        self._output = next(iter(outputs.values()))
        self._others: dict[tuple[int, ...], Any] = {}
        self.operators, self.kernels = _census(self._interpreter)
        self.macs = _macs(self._interpreter)

    @functools.cached_property
    def any_size(self) -> bool:
        """Whether the interpreter can be given another height and width than the file's.

        It can where no operator has a size of its own: an export by edgekit that came without reshapes of images.
        """
        shape = self._image_shape()
        if shape is None or self._interpreter is None:
            return False
        # A small size where the stride divides it; twice the width is a multiple of whatever the width is one of. Not
        # kept: it would hold memory that no image needs.
        for height, width in ((64, 128), (shape[1], 2 * shape[2])):
            tried = (shape[0], height, width, shape[3])
            try:
                found = self._load(tried).get_output_details()[0]["shape"]
            except (ValueError, RuntimeError):
                continue
            return [int(n) for n in found] == list(tried)
        return False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if self._interpreter is None:
            raise EngineError(f"{self._path.name} is closed: open it again")
        if inputs.keys() != self._inputs.keys():
            raise EngineError(
                f"{self._path.name} was given the inputs {sorted(inputs)}: expected {sorted(self._inputs)}"
            )
        for name, array in inputs.items():
            detail = self._inputs[name]
            shape = tuple(int(n) for n in detail["shape"])
            alike = len(shape) == 4 and array.ndim == 4 and array.shape[::3] == shape[::3]
            # The file's own size first: to ask for others costs an interpreter.
            fits = array.shape == shape or (alike and self.any_size)
            if array.dtype != detail["dtype"] or not fits:
                raise EngineError(
                    f"input {name!r} of {self._path.name} was given {array.dtype} {list(array.shape)}: "
                    f"expected {np.dtype(detail['dtype'])} {list(shape)}"
                    f"{', or another height and width' if len(shape) == 4 and self.any_size else ''}"
                )
        try:
            interpreter = self._interpreter_for(inputs)
            for name, array in inputs.items():
                interpreter.set_tensor(self._inputs[name]["index"], array)
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"{self._path.name} failed in {self.library}: {line(error)}") from error
        output: NDArray[Any] = interpreter.get_tensor(self._output["index"])
        return output

    def close(self) -> None:
        self._interpreter = None
        self._others.clear()

    def _load(self, image: tuple[int, ...] | None = None) -> Any:
        """An interpreter that is ready to run, for images [N, H, W, C] of another size if one is given."""
        with warnings.catch_warnings(), without_lines("INFO: Created TensorFlow Lite XNNPACK delegate"):
            # tensorflow announces here that its interpreter moved to LiteRT.
            warnings.simplefilter("ignore")
            interpreter = self._factory(model_path=str(self._path), num_threads=self.threads, **self._options)
            if image is not None:
                detail = next(d for d in self._inputs.values() if len(d["shape"]) == 4)
                interpreter.resize_tensor_input(detail["index"], list(image))
            interpreter.allocate_tensors()
        return interpreter

    def _image_shape(self) -> tuple[int, ...] | None:
        """[N, H, W, C] of the one input that is an image; None if there is none, or more."""
        found = [tuple(int(n) for n in d["shape"]) for d in self._inputs.values() if len(d["shape"]) == 4]
        return found[0] if len(found) == 1 else None

    def _interpreter_for(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        """The interpreter to run inputs of these sizes in."""
        shape = next((array.shape for array in inputs.values() if array.ndim == 4), None)
        return self._interpreter if shape in (None, self._image_shape()) else self._sized(shape)

    def _sized(self, shape: tuple[int, ...]) -> Any:
        """An interpreter for images [N, H, W, C] of another size, the latest few of which are kept.

        Setting one up takes milliseconds; the file's pages in memory are shared.
        """
        interpreter = self._others.pop(shape, None) or self._load(shape)
        while len(self._others) >= _MOST_SIZES:
            del self._others[next(iter(self._others))]
        self._others[shape] = interpreter
        return interpreter


def open(  # noqa: D103 - see base.EngineModule
    path: Path, variant: Variant, *, threads: int, portable: bool = False, options: EngineOptions = DEFAULTS
) -> LiteRTEngine:
    options.refuse(NAME)
    factory, library, problem = _library()
    if factory is None:
        what = f"running {path.name}"
        if problem:
            raise MissingExtraError(f"{what} needs ai-edge-litert: {problem}: pip install 'edgekit[litert]'")
        raise MissingExtraError.needs(what, "ai-edge-litert", "litert")
    return LiteRTEngine(path, variant, threads, factory, library, portable=portable)


def available() -> Availability:  # noqa: D103 - see base.EngineModule
    factory, library, problem = _library()
    if factory is None:
        return Availability(NAME, None, problem or "none is installed", "pip install 'edgekit[litert]'")
    return Availability(NAME, library)


def _library() -> tuple[Any, str, str]:
    """The Interpreter class, its library's name and version, and what is wrong with those that are there but broken."""
    broken = []
    for module, attribute, distribution in _LIBRARIES:
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except ModuleNotFoundError:
            continue
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            # tflite-runtime beside numpy 2 fails so: the next library may well work.
            broken.append(f"{distribution} is installed but broken ({line(error)})")
            continue
        return found, f"{distribution} {_version(module, distribution)}", ""
    return None, "", "; ".join(broken)


def _portable(factory: Any, library: str) -> dict[str, Any]:
    """The option that selects TFLite's plain C++ kernels: no SIMD, so the same integers everywhere."""
    kinds = getattr(sys.modules.get(factory.__module__), "OpResolverType", None)
    if kinds is None:
        raise NoPortableError(f"{library} has no choice of kernels: pip install -U 'edgekit[litert]'")
    return {"experimental_op_resolver_type": kinds.BUILTIN_REF}


def _version(module: str, distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        # tensorflow-cpu and the like bring the module under another name.
        return str(getattr(importlib.import_module(module.split(".")[0]), "__version__", "of unknown version"))


def _signature(interpreter: Any) -> dict[str, dict[str, int]]:
    """Names of inputs and outputs in the file's signature, with their tensor indices; empty where it has none."""
    # Private, and the only way from a signature's names to tensors; without it tensors are matched by name and order.
    get = getattr(interpreter, "_get_full_signature_list", None)
    if get is None:
        return {}
    signatures = get() or {}
    return next(iter(signatures.values()), {}) if len(signatures) == 1 else {}


def _match(
    path: Path,
    kind: str,
    specs: Sequence[TensorSpec],
    details: Sequence[Mapping[str, Any]],
    signature: Mapping[str, int],
) -> dict[str, Mapping[str, Any]]:
    """Pair the manifest's tensors with the file's: by name where every name is known, else by order."""
    if len(specs) != len(details):
        raise EngineError(
            f"{path.name} has {len(details)} {kind}s, the manifest names {len(specs)}: they are not of one export"
        )
    known = {detail["name"]: detail for detail in details}
    by_index = {int(detail["index"]): detail for detail in details}
    known.update({name: by_index[int(i)] for name, i in signature.items() if int(i) in by_index})
    named = all(spec.name in known for spec in specs)
    pairs = [(spec, known[spec.name] if named else detail) for spec, detail in zip(specs, details, strict=True)]
    for spec, detail in pairs:
        _compare(path, kind, spec, detail)
    return {spec.name: detail for spec, detail in pairs}


def _compare(path: Path, kind: str, spec: TensorSpec, detail: Mapping[str, Any]) -> None:
    shape = [int(n) for n in detail["shape"]]
    dtype = str(np.dtype(detail["dtype"]))
    scale, zero_point = float(detail["quantization"][0]), int(detail["quantization"][1])
    said = (spec.scale or 0.0, spec.zero_point or 0)
    fits = (
        dtype == spec.dtype
        and len(shape) == len(spec.shape)
        and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True))
        # The file holds float32, the manifest the shortest decimal of it.
        and math.isclose(scale, said[0], rel_tol=1e-6)
        and zero_point == said[1]
    )
    if not fits:
        raise EngineError(
            f"{kind} {spec.name!r} of {path.name} is {_words(dtype, shape, scale, zero_point)}, the manifest says "
            f"{_words(spec.dtype, spec.shape, *said)}: they are not of one export"
        )


def _words(dtype: str, shape: Sequence[int], scale: float, zero_point: int) -> str:
    quantization = f" at scale {scale:.9g}, zero point {zero_point}" if scale else ""
    return f"{dtype} {list(shape)}{quantization}"


def _census(interpreter: Any) -> tuple[Mapping[str, OperatorCount], str]:
    """Count operators and those that XNNPACK took; which kernels compute, as `Engine.kernels` says it."""
    try:
        # Private, and the only way to see the delegate from Python.
        nodes = interpreter._get_ops_details()
        total, taken = _partition(nodes)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return MappingProxyType({}), "unknown"
    operators = {name: OperatorCount(n, taken[name]) for name, n in sorted(total.items())}
    left = [name for name, n in total.items() if taken[name] < n and name not in _MOVES]
    kernels = "reference" if not taken else "mixed" if left else "xnnpack"
    return MappingProxyType(operators), kernels


def _partition(nodes: Sequence[Mapping[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """Operators by name: all, and those inside a DELEGATE node."""
    taken = delegated(nodes)
    originals = [node for node in nodes if node["op_name"] != "DELEGATE"]
    return (
        Counter(node["op_name"] for node in originals),
        Counter(node["op_name"] for node in originals if int(node["index"]) in taken),
    )


def delegated(nodes: Sequence[Mapping[str, Any]]) -> set[int]:
    """Indices of the nodes inside a DELEGATE node, in what an interpreter's `_get_ops_details` lists.

    The list holds the original nodes and, after them, one DELEGATE node per partition, which names only the tensors
    at its border: whatever its outputs need, back to its inputs, is inside.
    """
    originals = [node for node in nodes if node["op_name"] != "DELEGATE"]
    producer = {int(t): int(node["index"]) for node in originals for t in node["outputs"]}
    inputs = {int(node["index"]): [int(t) for t in node["inputs"]] for node in originals}
    inside: set[int] = set()
    for delegate in nodes:
        if delegate["op_name"] != "DELEGATE":
            continue
        border = {int(t) for t in delegate["inputs"]}
        todo = [int(t) for t in delegate["outputs"]]
        while todo:
            tensor = todo.pop()
            if tensor in border or tensor not in producer or producer[tensor] in inside:
                continue
            inside.add(producer[tensor])
            todo.extend(inputs[producer[tensor]])
    return inside


def _macs(interpreter: Any) -> Mapping[str, int]:
    """Multiply-accumulates of one run by dtype, from the shapes of the open graph; empty where the library hides it."""
    try:
        nodes = interpreter._get_ops_details()
        tensors = {int(t["index"]): t for t in interpreter.get_tensor_details()}
        counted: Counter[str] = Counter()
        for node in nodes:
            if node["op_name"] not in PRODUCTS:
                continue
            inputs = [tensors[int(i)] for i in node["inputs"][:3] if int(i) >= 0]
            # TRANSPOSE_CONV takes (shape, weights, image), every other one (image, weights, bias).
            source, weights = (inputs[2], inputs[1]) if node["op_name"] == "TRANSPOSE_CONV" else inputs[:2]
            result = tensors[int(node["outputs"][0])]
            kinds = {str(np.dtype(t["dtype"])) for t in (source, weights)}
            # Integer weights on a float image are computed in float.
            kind = kinds.pop() if len(kinds) == 1 else "float32"
            counted[kind] += node_macs(
                node["op_name"], *([int(n) for n in t["shape"]] for t in (source, weights, result))
            )
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError):
        return MappingProxyType({})
    return MappingProxyType(dict(counted))


def node_macs(op: str, source: list[int], weights: list[int], result: list[int]) -> int:
    """MACs of one operator; images NHWC, weights OHWI (depthwise 1HWC)."""
    if op == "TRANSPOSE_CONV":
        return math.prod(source[:3]) * math.prod(weights)
    if op in ("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D"):
        # A depthwise weight has one row a channel, so the product holds for it too.
        return math.prod(result[:-1]) * math.prod(weights)
    if op == "FULLY_CONNECTED":
        return math.prod(source) // weights[-1] * math.prod(weights)
    return math.prod(result) * source[-1]
