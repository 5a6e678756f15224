"""A fake `tensorrt` and `cuda`: the calls that edgekit makes, as NVIDIA documents them for 8.6, 10 and 11.

What a version lacks is lacking here too, and asking for it is an AttributeError. CUDA's calls are queued on their
stream and happen when it is synchronized; memory is real, and an address that was not allocated is an error. What an
engine computes is ONNX Runtime's output of the file it was built from, or what a test sets.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import math
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper
from tensorrt_bundle import run_onnx


class Fake:
    """The state behind both modules.

    Attributes:
        calls: every call that matters, in order: its name, then what it was given.
        live: address -> (kind, memory) of what is allocated now; kinds are "host" and "device".
        streams: streams that exist -> what is queued on them.
        compute: (precision, output of ONNX Runtime) -> what the engine gives.
        cost: seconds of the fake clock that a run of a precision takes.
        refuse: precisions that TensorRT finds no engine for.
        left_float: convolutions that it computes in float in spite of their Q/DQ nodes.
        fail: name of a CUDA call -> the error that it returns.
    """

    def __init__(self, version: str = "10.3.0", gpu: tuple[str, int, int, int] = ("Orin", 8, 7, 16)) -> None:
        self.version, self.gpu = version, gpu
        self.major = int(version.split(".")[0])
        self.calls: list[tuple[Any, ...]] = []
        self.live: dict[int, tuple[str, Any]] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.compute: Callable[[str, NDArray[Any]], NDArray[Any]] = lambda precision, output: output
        self.cost: dict[str, float] = {}
        self.refuse: set[str] = set()
        self.left_float: set[str] = set()
        self.fail: dict[str, str] = {}
        self.now = 0.0
        self.tensorrt = _tensorrt(self)
        self.cuda = _cuda(self)

    def install(self, patch: pytest.MonkeyPatch, *, old_cuda: bool = False) -> Fake:
        """Make `import tensorrt` and cuda-python's import give this; `old_cuda`: as before cuda-python 12."""
        patch.setitem(sys.modules, "tensorrt", self.tensorrt)
        package = ModuleType("cuda")
        # A package whose parts are found in sys.modules alone.
        package.__path__ = []
        for name in [n for n in sys.modules if n == "cuda" or n.startswith("cuda.")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "cuda", package)
        if old_cuda:
            patch.setitem(sys.modules, "cuda.cudart", self.cuda)
        else:
            bindings = ModuleType("cuda.bindings")
            bindings.__path__ = []
            patch.setitem(sys.modules, "cuda.bindings", bindings)
            patch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        return self

    def clock(self) -> Any:
        """A `time` whose perf_counter is the fake clock."""
        return SimpleNamespace(perf_counter=lambda: self.now)

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        """The calls of these names."""
        return [call for call in self.calls if call[0] in names]


def _precision(fake: Fake, model: onnx.ModelProto, flags: set[str]) -> str | None:
    """What the builder makes of a file; None where it would refuse."""
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    if quantized and fake.major < 11 and "INT8" not in flags:
        return None
    precision = "int8" if quantized else "fp16" if half or "FP16" in flags else "fp32"
    return None if precision in fake.refuse else precision


def _layers(fake: Fake, facts: dict[str, Any], shape: tuple[int, ...] | None) -> list[Any]:
    """What the inspector tells of an engine, in the words of the version."""
    model = onnx.load_from_string(base64.b64decode(facts["onnx"]))
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    names = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}
    listed: list[Any] = [{"Name": "reformat", "LayerType": "Reformat", "Inputs": [], "Outputs": []}]
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        kept = facts["precision"] if node.name not in fake.left_float else "fp32"
        kind = names[kept]
        dims = [-1, 3, -1, -1] if shape is None else list(shape)
        # The border of a float layer may well be int8.
        border = names[facts["precision"]]
        if fake.major >= 11:
            tensor = {"Name": "t", "Dimensions": dims, "DataType": border, "Format": "Row major linear format"}
        elif fake.major < 10:
            words = f"Thirty-two wide channel vectorized row major {border} format"
            tensor = {"Name": "t", "Dimensions": dims, "Format/Datatype": words}
        else:
            tensor = {"Name": "t", "Dimensions": dims, "Format/Datatype": border}
        count = constants.get(node.input[1], constants.get(f"{node.input[1]}.q")).size
        layer = {"Name": node.name, "LayerType": "CaskConvolution", "ParameterType": "Convolution"}
        weights = {"Type": kind, "Count": count}
        listed.append(
            {**layer, "Inputs": [tensor], "Outputs": [tensor], "Weights": weights, "TacticName": "xmma_fprop"}
        )
    return listed if facts["detailed"] else [layer["Name"] for layer in listed]


def _tensorrt(fake: Fake) -> Any:
    module: Any = ModuleType("tensorrt")
    module.__version__ = fake.version
    dtype = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32"])
    kinds = {onnx.TensorProto.FLOAT: dtype.FLOAT, onnx.TensorProto.FLOAT16: dtype.HALF}
    flags = ["TF32", "REFIT"] + (["FP16", "INT8"] if fake.major < 11 else [])
    creation = ["STRONGLY_TYPED"] + (["EXPLICIT_BATCH"] if fake.major < 11 else [])
    module.DataType = dtype
    module.BuilderFlag = enum.Enum("BuilderFlag", flags)
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", creation)
    module.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    module.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    module.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED", "NONE"])
    module.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])

    class Logger:
        WARNING = "warning"

        def __init__(self, severity: str) -> None:
            assert severity == "warning"

    class HostMemory(bytes):
        """What the builder and the cache give: a buffer."""

    class Network:
        def __init__(self, batch: bool) -> None:
            self.explicit, self.model, self.inputs = batch, None, []

        @property
        def num_inputs(self) -> int:
            return len(self.inputs)

        def get_input(self, i: int) -> Any:
            return self.inputs[i]

    class OnnxParser:
        def __init__(self, network: Network, logger: Logger) -> None:
            self._network, self._errors = network, []

        def parse_from_file(self, path: str) -> bool:
            fake.calls.append(("parse", path))
            if not self._network.explicit:
                self._errors.append("only explicit batch is supported")
                return False
            try:
                model = onnx.load(path)
            except (OSError, DecodeError):
                self._errors.append("ModelImporter: failed to parse\n the model")
                return False
            self._network.model = model
            self._network.inputs = [SimpleNamespace(name=t.name, shape=_dims(t)) for t in model.graph.input]
            return True

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, i: int) -> Any:
            return SimpleNamespace(desc=lambda: self._errors[i])

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[Any, ...]] = {}

        def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
            fake.calls.append(("set_shape", name, low, best, high))
            self.shapes[name] = (low, best, high)

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> HostMemory:
            return HostMemory(self.data)

    class Config:
        def __init__(self) -> None:
            self.flags: set[str] = set()
            self.profiles: list[Profile] = []
            self.profiling_verbosity = module.ProfilingVerbosity.LAYER_NAMES_ONLY
            self._cache: TimingCache | None = None

        def set_flag(self, flag: Any) -> None:
            fake.calls.append(("set_flag", flag.name))
            self.flags.add(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            fake.calls.append(("set_memory_pool_limit", pool.name, size))

        def add_optimization_profile(self, profile: Profile) -> int:
            ordered = all(a <= b <= c for s in profile.shapes.values() for a, b, c in zip(*s, strict=True))
            if not ordered:
                return -1
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, data: bytes) -> TimingCache:
            fake.calls.append(("create_timing_cache", data))
            return TimingCache(data)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            fits = not cache.data or cache.data.startswith(f"cache {fake.version} {fake.gpu[0]}".encode())
            if fits:
                self._cache = cache
            return fits

        def get_timing_cache(self) -> TimingCache | None:
            return self._cache

    class Builder:
        def __init__(self, logger: Logger) -> None:
            pass

        def create_network(self, flags: int = 0) -> Network:
            fake.calls.append(("create_network", flags))
            if fake.major < 10:
                return Network(bool(flags >> int(module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) & 1))
            assert flags == 0, "10 warns of EXPLICIT_BATCH, 11 does not know it"
            return Network(True)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
            precision = _precision(fake, network.model, config.flags)
            fake.calls.append(("build", precision, frozenset(config.flags)))
            dynamic = any(-1 in t.shape for t in network.inputs)
            if precision is None or (dynamic and not config.profiles):
                return None
            if config._cache is not None and not config._cache.data:
                config._cache.data = f"cache {fake.version} {fake.gpu[0]}".encode()
            facts = {
                "version": fake.version,
                "gpu": fake.gpu,
                "precision": precision,
                "detailed": config.profiling_verbosity is module.ProfilingVerbosity.DETAILED,
                "profile": config.profiles[0].shapes if config.profiles else {},
                "onnx": base64.b64encode(network.model.SerializeToString()).decode(),
            }
            return HostMemory(json.dumps(facts).encode())

    class Inspector:
        def __init__(self, facts: dict[str, Any]) -> None:
            self._facts = facts
            self.execution_context: Any = None

        def get_engine_information(self, style: Any) -> str:
            assert style is module.LayerInformationFormat.JSON
            context = self.execution_context
            shape = None if context is None else context.shapes.get("noisy")
            border = {"I/O Tensors": []} if fake.major >= 11 else {"Bindings": []}
            return json.dumps({"Layers": _layers(fake, self._facts, shape), **border})

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self.shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            fits = len(low) == len(shape) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            if fits:
                self.shapes[name] = shape
            return fits

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.shapes.get("noisy" if name == "clean" else name, self._engine.get_tensor_shape(name))

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert isinstance(address, int)
            self._addresses[name] = address
            return address in fake.live and fake.live[address][0] == "device"

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert isinstance(stream_handle, int)
            fake.calls.append(("execute", stream_handle))
            names = list(self._engine.tensors)
            if stream_handle not in fake.streams or set(self._addresses) != set(names):
                return False
            fake.streams[stream_handle].append(self._run)
            return True

        def _run(self) -> None:
            views = {name: _view(fake, self._addresses[name], self.get_tensor_shape(name)) for name in self._addresses}
            feed = {name: views[name].copy() for name in self._engine.inputs}
            output = run_onnx(self._engine.onnx, feed)
            precision = self._engine.facts["precision"]
            views["clean"][...] = fake.compute(precision, output)
            fake.now += fake.cost.get(precision, 0.001)

    class Engine:
        def __init__(self, facts: dict[str, Any]) -> None:
            self.facts = facts
            self.onnx = base64.b64decode(facts["onnx"])
            graph = onnx.load_from_string(self.onnx).graph
            self.inputs = [t.name for t in graph.input]
            self.tensors = {t.name: t for t in (*graph.input, *graph.output)}

        @property
        def num_io_tensors(self) -> int:
            return len(self.tensors)

        def get_tensor_name(self, i: int) -> str:
            return list(self.tensors)[i]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if name in self.inputs else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return kinds[self.tensors[name].type.tensor_type.elem_type]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return _dims(self.tensors[name])

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self.facts["profile"][name]]

        def create_execution_context(self) -> Context:
            return Context(self)

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self.facts)

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            fake.calls.append(("deserialize",))
            try:
                facts = json.loads(data)
            except ValueError:
                return None
            same = facts["version"] == fake.version and tuple(facts["gpu"]) == fake.gpu
            return Engine(facts) if same else None

    module.Logger, module.OnnxParser, module.Builder, module.Runtime = Logger, OnnxParser, Builder, Runtime
    return module


def _dims(tensor: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.type.tensor_type.shape.dim)


def _view(fake: Fake, address: int, shape: tuple[int, ...]) -> NDArray[Any]:
    memory = fake.live[address][1]
    assert ctypes.sizeof(memory) >= math.prod(shape) * 4, "the engine would write beyond its memory"
    return np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape)


def _cuda(fake: Fake) -> Any:
    module: Any = ModuleType("cuda.bindings.runtime")
    codes = ["cudaSuccess", "cudaErrorInvalidValue", "cudaErrorMemoryAllocation", "cudaErrorNoDevice"]
    errors = enum.IntEnum("cudaError_t", codes, start=0)
    copies = enum.IntEnum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])
    module.cudaError_t, module.cudaMemcpyKind = errors, copies

    class Stream:
        def __init__(self, handle: int) -> None:
            self._handle = handle

        def __int__(self) -> int:
            return self._handle

    def recorded(function: Callable[..., Any]) -> None:
        name = function.__name__

        def call(*arguments: Any) -> tuple[Any, ...]:
            shown = tuple(int(a) if isinstance(a, Stream) else a for a in arguments)
            fake.calls.append((name, *shown))
            if name in fake.fail:
                return (errors[fake.fail[name]], None)
            try:
                found = function(*arguments)
            except KeyError:
                return (errors.cudaErrorInvalidValue,)
            return (errors.cudaSuccess,) if found is None else (errors.cudaSuccess, found)

        setattr(module, name, call)

    def allocate(kind: str, size: int) -> int:
        memory = (ctypes.c_byte * size)()
        fake.live[ctypes.addressof(memory)] = (kind, memory)
        return ctypes.addressof(memory)

    def release(kind: str, address: int) -> None:
        if fake.live[address][0] != kind:
            raise KeyError(address)
        del fake.live[address]

    @recorded
    def cudaGetDevice() -> int:
        return 0

    @recorded
    def cudaGetDeviceProperties(device: int) -> Any:
        name, major, minor, count = fake.gpu
        return SimpleNamespace(name=name.encode() + b"\0" * 9, major=major, minor=minor, multiProcessorCount=count)

    @recorded
    def cudaMallocHost(size: int) -> int:
        return allocate("host", size)

    @recorded
    def cudaMalloc(size: int) -> int:
        return allocate("device", size)

    @recorded
    def cudaFreeHost(address: int) -> None:
        release("host", address)

    @recorded
    def cudaFree(address: int) -> None:
        release("device", address)

    @recorded
    def cudaStreamCreate() -> Stream:
        handle = 7000 + len(fake.named("cudaStreamCreate"))
        fake.streams[handle] = []
        return Stream(handle)

    @recorded
    def cudaStreamDestroy(stream: Stream) -> None:
        del fake.streams[int(stream)]

    @recorded
    def cudaMemcpyAsync(target: int, source: int, size: int, kind: Any, stream: Stream) -> None:
        ends = ("device", "host") if kind is copies.cudaMemcpyHostToDevice else ("host", "device")
        # Both ends must be what the kind says: pageable memory would make the copy a synchronous one.
        for address, end in zip((target, source), ends, strict=True):
            if fake.live[address][0] != end or ctypes.sizeof(fake.live[address][1]) < size:
                raise KeyError(address)
        fake.streams[int(stream)].append(lambda: ctypes.memmove(target, source, size))

    @recorded
    def cudaStreamSynchronize(stream: Stream) -> None:
        queue = fake.streams[int(stream)]
        while queue:
            queue.pop(0)()

    def cudaGetErrorName(error: Any) -> tuple[Any, bytes]:
        return errors.cudaSuccess, error.name.encode()

    module.cudaGetErrorName = cudaGetErrorName
    return module
