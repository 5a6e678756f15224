"""OpenVINO files (.xml and .bin), by OpenVINO Runtime. Only the CPU is tested; GPU, NPU and AUTO are passed on."""

from __future__ import annotations

import functools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from edgekit.bundle.manifest import Variant
from edgekit.errors import EngineError, RecipeError
from edgekit.runtime import tensors, unreported
from edgekit.runtime.engines.base import DEFAULTS, Availability, EngineOptions, OperatorCount, look, require

NAME = "openvino"
# On a CPU with bfloat16 the default is bfloat16, 54 dB from float32: the float layers of an integer model, and float
# models, are computed as the host computed them.
_PRECISION = "f32"
# Side of the static copy that is compiled to see which kernels run where.
_CENSUS_SIDE = 128
_INTEGERS = ("i8", "u8")
_CONVOLUTIONS = ("Convolution", "Deconvolution")
# A model compiled for one size runs a quarter faster than one that takes any, not always with the same bits: an INT8
# result differs by up to 2 of 255 in up to 6% of its bytes. Compiling it takes as long as some ten tiles. The tile
# itself gets its own at once, another size when it came so often that this would have paid, and no more than so many
# sizes ever.
_OFTEN = 40
_MOST_SIZES = 4
# Sizes that are counted before the count begins anew.
_MOST_COUNTED = 1000

_T = TypeVar("_T")
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class OpenVINOEngine:
    """A compiled model. Images of any size and number; `hint` "throughput" keeps several requests in flight."""

    name = NAME
    any_size = True
    has_portable = False
    counts_file = False

    def __init__(self, path: Path, variant: Variant, threads: int, options: EngineOptions) -> None:
        openvino = unreported.openvino()
        self.device = (options.device or "CPU").upper()
        self.hint = options.hint
        self._tile = options.tile
        self.threads = threads
        self._path, self._variant = path, variant
        core = openvino.Core()
        known = {"AUTO", *core.available_devices}
        # "GPU.1" and "AUTO:GPU,CPU" are OpenVINO's own way to say more.
        if self.device not in known and self.device.split(":")[0].split(".")[0] not in {d.split(".")[0] for d in known}:
            raise RecipeError(f"device is {self.device!r}: OpenVINO sees {', '.join(sorted(known))} here")
        if options.cache is not None:
            core.set_property({"CACHE_DIR": str(options.cache)})
        settings: dict[str, Any] = {"PERFORMANCE_HINT": options.hint.upper()}
        if self.device == "CPU":
            settings |= {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": _PRECISION}
        version = f"openvino {openvino.__version__.split('-')[0]}"
        try:
            model = core.read_model(str(path))
            tensors.match(path, "input", variant.inputs, _found(model.inputs))
            tensors.match(path, "output", variant.outputs, _found(model.outputs))
            self._core, self._settings = core, settings
            self._compiled = core.compile_model(model, self.device, settings)
        except RuntimeError as error:
            raise EngineError(
                f"{path.name} cannot be opened by {version} on {self.device}: {tensors.line(error)}; export it again"
            ) from error
        self._seen: Counter[_Shapes] = Counter()
        self._own: dict[_Shapes, Any] = {}
        self._requests: dict[_Shapes | None, Any] = {}
        self.precision = str(_property(self._compiled, "INFERENCE_PRECISION_HINT", "its own"))
        self.library = f"{version} ({self.device}, {self.hint}, {self.precision})"
        self.kernels = "onednn" if self.device == "CPU" else "unknown"

    @functools.cached_property
    def _layers(self) -> list[Executed]:
        return executed(self._path, self._core, self.device, self._settings, self._variant)

    @property
    def operators(self) -> Mapping[str, OperatorCount]:
        """Layers by kind as they run; those in 8 bits count as delegated."""
        total = Counter(layer.kind for layer in self._layers)
        taken = Counter(layer.kind for layer in self._layers if layer.dtype == "int8")
        return MappingProxyType({kind: OperatorCount(n, taken[kind]) for kind, n in sorted(total.items())})

    @property
    def macs(self) -> Mapping[str, int]:
        """As they run in a small static copy of the model: the shares are those of any size."""
        counted: Counter[str] = Counter()
        for layer in self._layers:
            if layer.macs:
                counted[layer.dtype] += layer.macs
        return MappingProxyType(dict(counted))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        self._check(inputs)
        return self._guarded(self._infer, inputs)

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        compiled = self._for(inputs)
        key = None if compiled is self._compiled else _shapes(inputs)
        if key not in self._requests:
            self._requests[key] = compiled.create_infer_request()
        request = self._requests[key]
        request.infer(dict(inputs), share_inputs=True)
        return self._output(request)

    def run_many(self, batches: Iterator[Mapping[str, NDArray[Any]]]) -> Iterator[NDArray[Any]]:
        """Run a stream of batches, as many at once as the device asks for; see `base.run_all`."""
        if self.hint != "throughput":
            yield from map(self.run, batches)
            return
        queues: dict[int, tuple[Any, deque[int]]] = {}
        # Requests under way, the oldest first: the queue, and its place in it.
        order: deque[tuple[Any, deque[int], int]] = deque()

        def oldest() -> NDArray[Any]:
            queue, free, place = order.popleft()
            queue[place].wait()
            free.append(place)
            return self._output(queue[place])

        try:
            while True:
                try:
                    inputs = next(batches, None)
                except Exception:
                    # What was wrong with one image is no reason to lose those before it.
                    while order:
                        yield self._guarded(oldest)
                    raise
                if inputs is None:
                    break
                self._check(inputs)
                queue, free = self._guarded(self._queue, inputs, queues)
                while not free:
                    yield self._guarded(oldest)
                place = free.popleft()
                self._guarded(queue[place].start_async, dict(inputs))
                order.append((queue, free, place))
            while order:
                yield self._guarded(oldest)
        finally:
            for queue, _ in queues.values():
                queue.wait_all()

    def _queue(
        self, inputs: Mapping[str, NDArray[Any]], queues: dict[int, tuple[Any, deque[int]]]
    ) -> tuple[Any, deque[int]]:
        """The queue of the model for inputs of these sizes, and its places that are free."""
        openvino = unreported.openvino()
        compiled = self._for(inputs)
        if id(compiled) not in queues:
            count = int(_property(compiled, "OPTIMAL_NUMBER_OF_INFER_REQUESTS", 1))
            queues[id(compiled)] = openvino.AsyncInferQueue(compiled, count), deque(range(count))
        return queues[id(compiled)]

    def _guarded(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What a function of OpenVINO's gives. Raises: EngineError: it failed."""
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise EngineError(f"{self._path.name} failed in {self.library}: {tensors.line(error)}") from error

    def profile(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, float]:
        """Milliseconds by layer of one run, by OpenVINO's own counters."""
        self._check(inputs)
        settings = {**self._settings, "PERF_COUNT": True}
        request = self._core.compile_model(str(self._path), self.device, settings).create_infer_request()
        request.infer(dict(inputs))
        request.infer(dict(inputs))
        found: dict[str, float] = {}
        for item in request.get_profiling_info():
            if item.real_time:
                found[item.node_name] = found.get(item.node_name, 0.0) + item.real_time.total_seconds() * 1e3
        return found

    def close(self) -> None:
        self._compiled = None
        self._own.clear()
        self._requests.clear()

    def _for(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        """The model to run inputs of these sizes with."""
        key = _shapes(inputs)
        # Another device may want its own kind of model.
        if key in self._own or self.device != "CPU" or len(self._own) == _MOST_SIZES:
            return self._own.get(key, self._compiled)
        if len(self._seen) >= _MOST_COUNTED:
            self._seen.clear()
        self._seen[key] += 1
        # Batches are [N, C, H, W] or [N, H, W, C]; 1 to 4 is no tile's side.
        tiles = all([side for side in shape[1:] if side > 4] in ([], [self._tile] * 2) for _, shape in key)
        if not tiles and self._seen[key] < _OFTEN:
            return self._compiled
        model = self._core.read_model(str(self._path))
        model.reshape({name: list(shape) for name, shape in key})
        self._own[key] = self._core.compile_model(model, self.device, self._settings)
        return self._own[key]

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        if self._compiled is None:
            raise EngineError(f"{self._path.name} is closed: open it again")
        tensors.check_feed(self._path, self._variant.inputs, inputs)

    def _output(self, request: Any) -> NDArray[Any]:
        output: NDArray[Any] = request.get_output_tensor(0).data.copy()
        return output


def open(  # noqa: D103 - see base.EngineModule
    path: Path, variant: Variant, *, threads: int, portable: bool = False, options: EngineOptions = DEFAULTS
) -> OpenVINOEngine:
    require(NAME, path, portable=portable)
    return OpenVINOEngine(path, variant, threads, options)


def available() -> Availability:  # noqa: D103 - see base.EngineModule
    return look(NAME)


class Executed(NamedTuple):
    """A layer as it really runs.

    Attributes:
        names: of the original layers that became it, separated by commas.
        kind: OpenVINO's layer type, "Convolution".
        precision: what it computes in, "u8", "f32".
        macs: multiply-accumulates; 0 for what is no convolution.
        why: of a convolution in float, what keeps it there; "" otherwise.
    """

    names: str
    kind: str
    precision: str
    macs: int
    why: str

    @property
    def dtype(self) -> str:
        """What it computes in, as numpy has it."""
        return "int8" if self.precision in _INTEGERS else _numpy(self.precision)


def executed(
    path: Path, core: Any, device: str, settings: Mapping[str, Any], variant: Variant, side: int = _CENSUS_SIDE
) -> list[Executed]:
    """What really runs, from the runtime model of a static copy with one image of side x side: all but constants."""
    model = core.read_model(str(path))
    shapes = {}
    for spec in variant.inputs:
        pixels = iter((side, side))
        axes = spec.layout if len(spec.shape) == len(spec.layout) else "N" * len(spec.shape)
        shapes[spec.name] = [
            n if n > 0 else 1 if axis == "N" else next(pixels) for n, axis in zip(spec.shape, axes, strict=True)
        ]
    model.reshape(shapes)
    compiled = core.compile_model(model, device, dict(settings))
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: value.astype(str) for key, value in node.get_rt_info().items() if key in _TOLD}
        kind = told.get("layerType", "")
        if kind in ("", "Const", "Parameter", "Result", "Input", "Output"):
            continue
        macs, why = 0, ""
        precision = told.get("runtimePrecision", "")
        if kind in _CONVOLUTIONS:
            weights, output = node.input(1).get_shape(), node.output(0).get_shape()
            # [out, in, h, w], or [groups, out, in, h, w]: the product per output position either way.
            macs = math.prod(weights) * math.prod(output[2:])
            why = "" if precision in _INTEGERS else _why_float(node)
        names = told.get("originalLayersNames", "") or node.get_friendly_name()
        found.append(Executed(names, kind, precision, macs, why))
    return found


def _why_float(convolution: Any) -> str:
    """What keeps a convolution in float: what it reads, or its weights."""
    source = convolution.input_value(0)
    kind = source.get_node().get_rt_info()["layerType"].astype(str)
    kept = source.get_element_type().to_string()
    if kept not in _INTEGERS:
        return f"reads {_numpy(kept)} from {kind}"
    return "its weights are no integers"


def _shapes(inputs: Mapping[str, NDArray[Any]]) -> _Shapes:
    return tuple((name, inputs[name].shape) for name in sorted(inputs))


_TOLD = ("layerType", "runtimePrecision", "originalLayersNames")


def _numpy(precision: str) -> str:
    """OpenVINO's name of a type as numpy has it."""
    return {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}.get(precision, precision)


def _found(ports: Any) -> tensors.Found:
    return {
        port.any_name: (
            port.element_type.to_dtype().name,
            tuple(-1 if side.is_dynamic else side.get_length() for side in port.partial_shape),
        )
        for port in ports
    }


def _property(compiled: Any, name: str, default: Any) -> Any:
    try:
        value = compiled.get_property(name)
    except RuntimeError:
        return default
    return value.to_string() if hasattr(value, "to_string") else value
