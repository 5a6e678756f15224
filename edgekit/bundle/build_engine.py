# SPDX-License-Identifier: MIT
"""Builds TensorRT engines on a Jetson or another NVIDIA GPU and keeps the fastest that is right. Needs no edgekit.

    python build_engine.py [--precision auto|int8|fp16|fp32] [--workspace MB] [--force]

Lies inside the bundle and reads the files beside it. Needs Python 3.10, numpy, `tensorrt` 8.6 to 11 (part of JetPack;
elsewhere `pip install tensorrt`) and `cuda-python` (with CUDA 12, as in JetPack 6, `cuda-python<13`: 13 needs driver
580 or newer). It builds an INT8 and an FP16 engine (INT8 is not always the faster: depthwise convolutions often are
not), runs the golden tiles through both, times both in turns, and keeps the faster of those that lose no more dB than
allowed. For steady figures, first run `sudo jetson_clocks`.

Written to engines/: NAME.PRECISION.GPU.trtVERSION.engine, beside it .engine.json (what it was built from and for, dB,
milliseconds, layers in int8), and GPU.trtVERSION.timing, which makes the next build short. An engine runs only on the
GPU model and TensorRT version it was built for: others in the folder are named and left alone.

What differs between the versions of TensorRT:
- 8.6 needs the flag EXPLICIT_BATCH, 10 ignores it, 11 has none.
- 8.6 to 10: FP16 is the FP32 ONNX file with the builder's FP16 flag; INT8 is the Q/DQ file with INT8 and FP16, so what
  it leaves unquantized runs in FP16.
- 11 has no such flags (strongly typed networks only): every type is the file's. FP16 needs NAME.fp16.onnx in the
  bundle; without it FP32 is the other candidate. What the Q/DQ file leaves unquantized runs in FP32.

Exit code 0 when an engine passed, 1 when none did, 2 when it cannot tell (no tensorrt, no GPU, a damaged bundle).

Not run on TensorRT here: proven against a fake of its Python API (tests/fake_tensorrt.py in edgekit's repository).
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import importlib
import json
import math
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PRECISIONS = ("int8", "fp16", "fp32")
FOLDER = "engines"
OLDEST = (8, 6)
FIX = (
    "pip install tensorrt cuda-python (with CUDA 12, as on a Jetson with JetPack 6, which brings tensorrt: "
    "pip install 'cuda-python<13')"
)
WARM_UP, ROUNDS = 10, 30
# The names of TensorRT's types, in its enum and in its inspector's JSON, as numpy writes them. Not trt.nptype: that of
# 8.6 fails on numpy 1.24 and newer.
DTYPES = {
    **{"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16"},
    **{"int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool"},
}


class CannotTellError(Exception):
    """The bundle is damaged, or there is nothing here to build with."""


class MissingLibraryError(CannotTellError):
    """`tensorrt` or `cuda-python` is not installed, broken, or too old."""


class TensorRTError(Exception):
    """TensorRT or CUDA refused: this engine cannot be built or run."""


class Gpu(NamedTuple):
    """What an engine is bound to. Multiprocessors tell Jetson modules apart that share one name ("Orin")."""

    name: str
    capability: str
    multiprocessors: int

    @property
    def slug(self) -> str:
        """For file names: "orin-sm87-mp16"."""
        return f"{slug(self.name)}-sm{self.capability.replace('.', '')}-mp{self.multiprocessors}"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability}, {self.multiprocessors} multiprocessors)"


def slug(text: str) -> str:
    """`text` in lower case, everything but letters, digits, dots, underscores and dashes as a dash."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.") or "unnamed"


class Machine(NamedTuple):
    """The libraries and the GPU here: `tensorrt`, its version ("10.3.0"), cuda-python's runtime."""

    trt: Any
    version: str
    cuda: Any
    gpu: Gpu

    @property
    def flags(self) -> bool:
        """Whether the builder is told its precisions; from TensorRT 11 on, the ONNX file alone says them."""
        return hasattr(self.trt.BuilderFlag, "FP16")

    def logger(self) -> Any:
        """The one logger of this process, which prints warnings and errors."""
        return _logger(self.trt)


@functools.lru_cache
def _logger(trt: Any) -> Any:
    # Kept for good: TensorRT goes on writing to the first that it was given, also when Python has freed it.
    return trt.Logger(trt.Logger.WARNING)


def machine() -> Machine:
    """What is here. Raises: MissingLibraryError; CannotTellError: no GPU."""
    trt, version = _tensorrt()
    cuda = _cuda()
    try:
        found = call(cuda, cuda.cudaGetDeviceProperties(call(cuda, cuda.cudaGetDevice())))
    except TensorRTError as error:
        raise CannotTellError(
            f"no GPU can be used ({error}): check that nvidia-smi, or tegrastats, shows one"
        ) from error
    name = found.name if isinstance(found.name, str) else bytes(found.name).split(b"\0")[0].decode(errors="replace")
    capability = f"{int(found.major)}.{int(found.minor)}"
    return Machine(trt, version, cuda, Gpu(name.strip(), capability, int(found.multiProcessorCount)))


def _tensorrt() -> tuple[Any, str]:
    try:
        trt: Any = importlib.import_module("tensorrt")
        version = str(trt.__version__)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise MissingLibraryError(f"tensorrt cannot be imported ({_line(error)}): {FIX}") from error
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise MissingLibraryError(f"tensorrt is {version}: expected 8.6 to 11: update JetPack, or {FIX}")
    return trt, version


def _cuda() -> Any:
    problem: Exception | None = None
    # The second is the name until cuda-python 12, gone in 13.
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            problem = problem or error
    raise MissingLibraryError(f"cuda-python cannot be imported ({_line(problem)}): {FIX}")


def call(cuda: Any, result: Any) -> Any:
    """The value of a call to cuda-python, which returns (error, value) or (error,). Raises: TensorRTError."""
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        name = cuda.cudaGetErrorName(error)[1]
        raise TensorRTError(f"CUDA reports {name.decode() if isinstance(name, bytes) else name}")
    return values[0] if values else None


class Buffer:
    """Page-locked host memory and device memory of one tensor; both grow, and are used again while it fits."""

    def __init__(self, cuda: Any, dtype: Any) -> None:
        self._cuda, self._dtype = cuda, np.dtype(dtype)
        self._bytes = 0
        self._pinned = self.device = 0
        self.array: Any = None

    def fit(self, shape: tuple[int, ...]) -> None:
        """Make `array` a view of `shape` on the host memory; `device` may change."""
        size = math.prod(shape) * self._dtype.itemsize
        if size > self._bytes:
            self.free()
            self._pinned = int(call(self._cuda, self._cuda.cudaMallocHost(size)))
            self.device = int(call(self._cuda, self._cuda.cudaMalloc(size)))
            self._bytes = size
        memory = (ctypes.c_byte * size).from_address(self._pinned)
        self.array = np.frombuffer(memory, self._dtype).reshape(shape)

    def copy(self, stream: Any, *, to_device: bool) -> None:
        """Copy on the stream, between the two."""
        kinds, size = self._cuda.cudaMemcpyKind, self.array.nbytes
        if to_device:
            step = self._cuda.cudaMemcpyAsync(self.device, self._pinned, size, kinds.cudaMemcpyHostToDevice, stream)
        else:
            step = self._cuda.cudaMemcpyAsync(self._pinned, self.device, size, kinds.cudaMemcpyDeviceToHost, stream)
        call(self._cuda, step)

    def free(self) -> None:
        """Free both. Doing so twice is allowed."""
        held = ((self._cuda.cudaFreeHost, self._pinned), (self._cuda.cudaFree, self.device))
        self._pinned = self.device = self._bytes = 0
        self.array = None
        for release, address in held:
            if address:
                # After a failure CUDA reports the same error to every call: it must not hide the first.
                release(address)


class Session:
    """One engine, opened: its context, one stream, and the buffers of its tensors.

    Attributes:
        dtypes: input and output tensors by name, as numpy names of their types.
        ranks: how many axes each has.
        inputs, outputs: their names.
    """

    def __init__(self, here: Machine, serialized: bytes) -> None:
        """Raises: TensorRTError: the engine is of another version or GPU, damaged, or does not fit into memory."""
        self._trt, self._cuda = here.trt, here.cuda
        self._stream: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._buffers: dict[str, Buffer] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._runtime: Any = here.trt.Runtime(here.logger())
        try:
            self._engine = self._runtime.deserialize_cuda_engine(serialized)
            if self._engine is None:
                raise TensorRTError("TensorRT cannot load the engine: the lines above, if any, say why")
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise TensorRTError("TensorRT cannot run the engine: most likely the GPU's memory is full")
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            self.dtypes = {name: _dtype(self._engine.get_tensor_dtype(name)) for name in names}
            self.ranks = {name: len(self._engine.get_tensor_shape(name)) for name in names}
            taken = {name: self._engine.get_tensor_mode(name) == here.trt.TensorIOMode.INPUT for name in names}
            self.inputs = [name for name in names if taken[name]]
            self.outputs = [name for name in names if not taken[name]]
            self._buffers = {name: Buffer(here.cuda, self.dtypes[name]) for name in names}
            self._stream = call(here.cuda, here.cuda.cudaStreamCreate())
        except BaseException:
            self.close()
            raise

    def run(self, feed: dict[str, Any], output: str | None = None) -> Any:
        """Run one batch: every input copied to the device, the engine, the output copied back, on one stream.

        Args:
            feed: one array per input, of any float type where the tensor is float.
            output: which output; None is the first.
        Returns: a copy of the output.
        Raises: TensorRTError: a shape outside the engine's profile; TensorRT or CUDA failed; the session is closed.
        """
        if self._context is None:
            raise TensorRTError("the engine is closed")
        shapes = {name: tuple(int(n) for n in feed[name].shape) for name in self.inputs}
        if shapes != self._shapes:
            self._reshape(shapes)
        for name in self.inputs:
            np.copyto(self._buffers[name].array, feed[name], casting="same_kind")
            self._buffers[name].copy(self._stream, to_device=True)
        # An int, for 8.6 does not know cuda-python's streams.
        if not self._context.execute_async_v3(stream_handle=int(self._stream)):
            raise TensorRTError("TensorRT failed to run the engine")
        wanted = self._buffers[output or self.outputs[0]]
        wanted.copy(self._stream, to_device=False)
        call(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))
        return wanted.array.copy()

    def _reshape(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = {}
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                low, _, high = (list(s) for s in self._engine.get_tensor_profile_shape(name, 0))
                raise TensorRTError(f"input {name!r} was given shape {list(shape)}: the engine takes {low} to {high}")
        for name, buffer in self._buffers.items():
            shape = tuple(int(n) for n in self._context.get_tensor_shape(name))
            if min(shape, default=1) < 0:
                raise TensorRTError(f"tensor {name!r} has the shape {list(shape)}, which the inputs do not determine")
            buffer.fit(shape)
            if not self._context.set_tensor_address(name, buffer.device):
                raise TensorRTError(f"TensorRT refused the memory of tensor {name!r}")
        self._shapes = shapes

    def layers(self) -> list[dict[str, Any]]:
        """The engine's layers by TensorRT's inspector, for the shapes of the last run; empty where it does not tell."""
        inspector = self._engine.create_engine_inspector()
        # Without a context whose shapes are set, the inspector shows dimensions as -1.
        inspector.execution_context = self._context
        try:
            found = json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))["Layers"]
        except (ValueError, KeyError, TypeError):
            return []
        # A layer is a mere name where the engine was built without detailed verbosity.
        return [layer for layer in found if isinstance(layer, dict)]

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        stream, self._stream = self._stream, None
        buffers, self._buffers = self._buffers, {}
        if stream is not None:
            self._cuda.cudaStreamSynchronize(stream)
        for buffer in buffers.values():
            buffer.free()
        if stream is not None:
            self._cuda.cudaStreamDestroy(stream)
        # In this order: a context must not outlive its engine, nor an engine its runtime.
        self._context = None
        self._engine = None
        self._runtime = None


def _dtype(kind: Any) -> str:
    name = str(getattr(kind, "name", kind)).rsplit(".", 1)[-1].lower()
    if name not in DTYPES:
        raise TensorRTError(f"a tensor has the type {name}: expected one of {', '.join(sorted(set(DTYPES.values())))}")
    return DTYPES[name]


def shape_profile(manifest: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes [N, C, H, W] that an engine is built for: "min", "opt" and "max", from the recipe or one tile.

    Raises: CannotTellError: not three such shapes, in order, with one tile among them.
    """
    channels, tile = manifest["model"]["channels"], manifest["tile"]
    one = [1, channels, tile, tile]
    said = manifest["recipe"].get("shape_profile")
    shapes = {key: list((said or {}).get(key, one)) for key in ("min", "opt", "max")}
    columns = list(zip(shapes["min"], shapes["opt"], shapes["max"], strict=False))
    fits = (
        all(len(shape) == 4 and shape[1] == channels for shape in shapes.values())
        and all(0 < low <= best <= high for low, best, high in columns)
        and all(low <= n <= high for n, (low, _, high) in zip(one, columns, strict=False))
    )
    if not fits:
        raise CannotTellError(
            f"shape_profile is {said}: expected min <= opt <= max, each [N, {channels}, H, W], with {one} (one tile) "
            "within; mend it in the recipe, and run edgekit compress with that"
        )
    return shapes


def build(
    here: Machine, onnx: Path, precision: str, profile: dict[str, list[int]], cache: Path, workspace: int | None
) -> bytes:
    """Build one engine.

    Args:
        onnx: the model file.
        precision: "int8", "fp16" or "fp32": which builder flags are set, where this TensorRT has them.
        profile: "min", "opt" and "max" shapes [N, C, H, W].
        cache: the timing cache, read if it is there and written.
        workspace: megabytes of scratch memory at most; None is TensorRT's own limit, all there are.
    Returns: the serialized engine.
    Raises: TensorRTError: the file does not parse, or there is no engine for it.
    """
    with warnings.catch_warnings():
        # Calls that 8.6 or 10 need are deprecated in later ones; the user can do nothing about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _build(here, onnx, precision, profile, cache, workspace)


def _build(
    here: Machine, onnx: Path, precision: str, profile: dict[str, list[int]], cache: Path, workspace: int | None
) -> bytes:
    trt, logger = here.trt, here.logger()
    builder = trt.Builder(logger)
    # 10 warns of the flag and ignores it; 11 has none.
    old = int(here.version.split(".")[0]) < 10
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if old else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(_line(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise TensorRTError(f"{onnx.name} does not parse: {errors or 'no reason given'}")
    config = builder.create_builder_config()
    # What `Session.layers` reads.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    if here.flags and precision != "fp32":
        config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
    _add_profile(builder, config, network, profile)
    _load_cache(config, cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise TensorRTError(f"TensorRT found no {precision} engine for {onnx.name}: the lines above, if any, say why")
    timings = config.get_timing_cache()
    if timings is not None:
        _replace(cache, bytes(timings.serialize()))
    return bytes(serialized)


def _add_profile(builder: Any, config: Any, network: Any, shapes: dict[str, list[int]]) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        # Sigma has the batch's axis alone.
        rank = len(tuple(tensor.shape))
        profile.set_shape(tensor.name, *(tuple(shapes[key][:rank]) for key in ("min", "opt", "max")))
    if config.add_optimization_profile(profile) < 0:
        raise TensorRTError(f"TensorRT refused the shapes {shapes} of the profile")


def _load_cache(config: Any, path: Path) -> None:
    known = path.read_bytes() if path.is_file() else b""
    # False for the cache of another version or GPU, which the file's name should have kept apart.
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


class Layer(NamedTuple):
    """A layer of an engine that multiplies. `macs` is None where the inspector does not tell."""

    name: str
    dtype: str
    macs: int | None


def products(layers: list[dict[str, Any]]) -> list[Layer]:
    """The layers that multiply (convolutions, matrix products), of those that the inspector lists."""
    found = []
    for layer in layers:
        kinds = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')} {layer.get('TacticName', '')}".lower()
        if re.search(r"conv|gemm|matrixmultiply|matmul|fprop|dgrad", kinds):
            found.append(Layer(str(layer.get("Name", "unnamed")), _layer_dtype(layer), _layer_macs(layer, kinds)))
    return found


def _layer_dtype(layer: dict[str, Any]) -> str:
    # The weights decide: a float convolution may well have int8 at its border.
    weights = layer.get("Weights")
    told = str(weights.get("Type", "")) if isinstance(weights, dict) else ""
    if not told and "i8i8" in str(layer.get("TacticName", "")):
        return "int8"
    if not told:
        tensor = next((t for t in layer.get("Inputs", []) if isinstance(t, dict)), {})
        # One field until TensorRT 10, a sentence in 8.6: "Thirty-two wide channel vectorized row major Int8 format";
        # two fields in 11.
        told = str(tensor.get("Format/Datatype") or tensor.get("DataType") or "")
    words = [DTYPES[word] for word in re.findall(r"[a-z]+\d*", told.lower()) if word in DTYPES]
    return words[0] if words else "unknown"


def _layer_macs(layer: dict[str, Any], kinds: str) -> int | None:
    try:
        # Each weight meets every pixel of the result, in a transposed convolution every pixel of the source.
        side = layer["Inputs" if "deconv" in kinds else "Outputs"][0]["Dimensions"]
        pixels = [int(n) for n in (side[0], *side[2:])]
        count = int(layer["Weights"]["Count"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return math.prod(pixels) * count if min(pixels) > 0 and count > 0 else None


def macs_by_dtype(layers: list[Layer]) -> dict[str, int]:
    """Multiply-accumulates of a run by type; empty unless every layer tells its own."""
    counted: Counter[str] = Counter()
    for layer in layers:
        if layer.macs is None or layer.dtype == "unknown":
            return {}
        counted[layer.dtype] += layer.macs
    return dict(counted)


class Tiler:
    """Denoises images of any size with a session, by tiles that overlap by the halo, their border mirrored."""

    def __init__(self, session: Session, manifest: dict[str, Any]) -> None:
        self._session = session
        self.tile, model = manifest["tile"], manifest["model"]
        self._halo, self._stride = model["halo"], model["stride"]
        # The image is the input with four axes; sigma the one with one axis.
        self._image = next(name for name in session.inputs if session.ranks[name] == 4)
        self._level = next((name for name in session.inputs if session.ranks[name] == 1), None)

    def run_tile(self, pixels: Any, sigma: float) -> Any:
        """One tile: uint8 [tile, tile, C] in and out; sigma in 8-bit units."""
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        feed = {self._image: planes.astype(np.float32) / np.float32(255)}
        if self._level is not None:
            feed[self._level] = np.full(1, sigma / 255, np.float32)
        clean = self._session.run(feed)[0].astype(np.float32).transpose(1, 2, 0)
        if not np.isfinite(clean).all():
            raise TensorRTError("the output holds values that are NaN or infinite")
        return np.rint(np.clip(clean, 0, 1) * np.float32(255)).astype(np.uint8)

    def _windows(self, size: int) -> list[tuple[int, int, int]]:
        """Tiles along an axis: origin of the window, and the part of the result taken from it."""
        step = (self.tile - 2 * self._halo) // self._stride * self._stride
        if step < 1:
            raise CannotTellError(f"tile {self.tile} is too small for a halo of {self._halo}: export the bundle again")
        origin, start, found = -math.ceil(self._halo / self._stride) * self._stride, 0, []
        while start < size:
            stop = min(size, origin + self.tile - self._halo)
            found.append((origin, start, stop))
            origin, start = origin + step, stop
        return found

    def __call__(self, image: Any, sigma: float) -> Any:
        """Denoise uint8 [H, W, C]; sigma in 8-bit units."""
        # A tile on every side is more than any window reaches out.
        side = self.tile
        padded = np.pad(image, ((side, side), (side, side), (0, 0)), mode="reflect")
        result = np.empty_like(image)
        for y, top, bottom in self._windows(image.shape[0]):
            for x, left, right in self._windows(image.shape[1]):
                clean = self.run_tile(padded[y + side : y + 2 * side, x + side : x + 2 * side], sigma)
                result[top:bottom, left:right] = clean[top - y : bottom - y, left - x : right - x]
        return result


def psnr(image: Any, reference: Any) -> float:
    """PSNR of two uint8 images in dB; 110 for equal ones."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 110.0 if error == 0 else min(110.0, 10 * math.log10(255**2 / error))


def measure(golden: dict[str, Any], device: Any) -> list[dict[str, float]]:
    """One row a noise level: sigma, and dB against clean of the noisy tiles, the original FP32 model and the device."""
    original = np.rint(golden["fp32_original"] / np.float32(257)).astype(np.uint8)
    table = []
    for sigma in sorted(set(golden["sigma"].tolist())):
        at = np.flatnonzero(golden["sigma"] == np.float32(sigma))
        outputs = {"noisy": golden["noisy"], "fp32": original, "device": device}
        mean = {key: float(np.mean([psnr(a[k], golden["clean"][k]) for k in at])) for key, a in outputs.items()}
        table.append({"sigma": sigma, **mean})
    return table


def judge(table: list[dict[str, float]], allowed: float) -> tuple[float, str]:
    """dB lost against the original FP32 model, the mean over the noise levels, and why that fails ("" if it passes)."""
    noisy, fp32, device = (float(np.mean([row[key] for row in table])) for key in ("noisy", "fp32", "device"))
    # Written so that a NaN fails.
    if not fp32 - device <= allowed:
        return fp32 - device, f"total drop {fp32 - device:.3f} dB, {allowed:g} dB allowed"
    if device < noisy:
        return fp32 - device, f"output is worse than the noisy input ({device:.2f} dB against {noisy:.2f} dB)"
    return fp32 - device, ""


def sha256(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the golden arrays. Raises: CannotTellError: damaged, altered, or thresholds that were edited."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        check_file(folder, manifest, manifest["golden"])
        with np.load(folder / manifest["golden"], allow_pickle=False) as archive:
            golden = {name: archive[name] for name in archive.files}
        sealed, said = float(golden["threshold_max_drop"]), manifest["thresholds"]["max_drop"]
    except OSError as error:
        what = f"{Path(error.filename or folder).name}: {error.strerror or error}"
        raise CannotTellError(f"the bundle in {folder} is not whole ({what}): copy it again") from error
    except (ValueError, KeyError, EOFError) as error:
        raise CannotTellError(f"the bundle in {folder} is not whole ({error!r}): copy it again") from error
    if not said == sealed == manifest["recipe"].get("max_drop"):
        raise CannotTellError(
            f"thresholds edited: manifest says {said} dB, sealed {sealed} dB, recipe "
            f"{manifest['recipe'].get('max_drop')} dB: get the bundle again"
        )
    return manifest, golden


def check_file(folder: Path, manifest: dict[str, Any], name: str) -> str:
    """The sha256 of a file of the bundle. Raises: CannotTellError: it is not the one the manifest lists."""
    expected = manifest["files"].get(name)
    try:
        found = sha256(folder / name)
    except OSError as error:
        raise CannotTellError(f"{name} cannot be read ({error.strerror}): copy the bundle again") from error
    if found != expected:
        raise CannotTellError(f"{name} was altered or damaged: sha256 expected {expected}, found {found}")
    return found


def onnx_file(manifest: dict[str, Any], precision: str) -> str | None:
    """The bundle's ONNX file of a precision: its variant's, or one so named."""
    named = [v["file"] for v in manifest["variants"] if v["name"] == precision]
    named += [name for name in sorted(manifest["files"]) if name.endswith(f".{precision}.onnx")]
    return next((name for name in named if name.endswith(".onnx")), None)


def candidates(here: Machine, manifest: dict[str, Any], asked: str) -> tuple[dict[str, str], list[str]]:
    """What to build: precision -> ONNX file; and what to say of it.

    Raises: CannotTellError: the bundle has no file for what was asked, or this TensorRT cannot make it.
    """
    files = {precision: onnx_file(manifest, precision) for precision in PRECISIONS}
    version = here.version
    if here.flags:
        # The FP32 file leaves the builder every choice; an FP16 file does where there is no other.
        files["fp16"] = files["fp32"] or files["fp16"]
    notes = []
    if not here.flags:
        notes.append(f"TensorRT {version} takes every type from the ONNX file: what int8 leaves out runs in FP32")
    if asked != "auto" and files[asked] is None:
        why = "the bundle holds no ONNX file for it"
        if asked == "fp16" and files["fp32"]:
            why = f"TensorRT {version} has no FP16 flag, and the bundle no {slug(manifest['name'])}.fp16.onnx"
        there = ", ".join(p for p in PRECISIONS if files[p]) or "none"
        raise CannotTellError(f"--precision {asked}: {why}: expected one of {there}, or export the bundle again")
    wanted = [asked] if asked != "auto" else ["int8", "fp16"]
    if asked == "auto" and files["fp16"] is None and files["fp32"] is not None:
        notes.append(f"TensorRT {version} has no FP16 flag, and the bundle no FP16 file: FP32 is built in its place")
        wanted = ["int8", "fp32"]
    found = {precision: name for precision in wanted if (name := files[precision]) is not None}
    if not found:
        raise CannotTellError("the bundle holds no ONNX file: expected one that was exported for TensorRT")
    return found, notes


def sidecars(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Engines in `folder` and what is written beside each; those whose sidecar cannot be read are left out."""
    found = []
    for path in sorted(folder.glob("*.engine.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            gpu = Gpu(facts["gpu"], facts["compute_capability"], facts["multiprocessors"])
            texts = ("tensorrt", "onnx", "onnx_sha256", "engine_sha256", "precision", "asked")
            if all(isinstance(facts[key], str) for key in texts) and isinstance(gpu.name, str):
                found.append((path.with_suffix(""), {**facts, "for": gpu}))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def misfit(engine: Path, facts: dict[str, Any], here: Machine, onnx_sha256: str) -> str:
    """Why an engine must not be used here, with both values; "" if it may."""
    if facts["for"] != here.gpu:
        return f"was built for {facts['for']}, this is {here.gpu}"
    if facts["tensorrt"] != here.version:
        return f"was built by TensorRT {facts['tensorrt']}, this is {here.version}"
    if facts["onnx_sha256"] != onnx_sha256:
        return f"was built from {facts['onnx']} of sha256 {facts['onnx_sha256'][:12]}..., this is {onnx_sha256[:12]}..."
    found = sha256(engine) if engine.is_file() else "none"
    if facts["engine_sha256"] != found:
        return f"was altered or damaged: sha256 expected {facts['engine_sha256'][:12]}..., found {found[:12]}"
    return ""


class Trial(NamedTuple):
    """One candidate, opened, with what it gave on the golden tiles."""

    precision: str
    onnx: str
    serialized: bytes
    session: Session
    tiler: Tiler
    table: list[dict[str, float]]
    drop: float
    problem: str
    layers: list[Layer]
    operators: dict[str, int]


def try_out(
    here: Machine, serialized: bytes, precision: str, onnx: str, manifest: dict[str, Any], golden: dict[str, Any]
) -> Trial:
    """Run the golden tiles through an engine. Raises: TensorRTError."""
    session = Session(here, serialized)
    try:
        tiler = Tiler(session, manifest)
        tiles = zip(golden["noisy"], golden["sigma"].tolist(), strict=True)
        table = measure(golden, np.stack([tiler(noisy, sigma) for noisy, sigma in tiles]))
        judged = judge(table, float(golden["threshold_max_drop"]))
        listed = session.layers()
    except BaseException:
        session.close()
        raise
    operators = Counter(str(layer.get("LayerType", "unknown")) for layer in listed)
    return Trial(precision, onnx, serialized, session, tiler, table, *judged, products(listed), dict(operators))


def time_trials(trials: list[Trial], manifest: dict[str, Any], golden: dict[str, Any]) -> list[float]:
    """Median milliseconds of one tile, copies to and from the GPU included; in turns, so that all see one clock."""
    side, image = manifest["tile"], golden["noisy"][0]
    copies = [math.ceil(side / n) for n in image.shape[:2]]
    pixels, sigma = np.tile(image, (*copies, 1))[:side, :side], float(golden["sigma"][0])
    taken: list[list[float]] = [[] for _ in trials]
    for turn in range(WARM_UP + ROUNDS):
        for trial, times in zip(trials, taken, strict=True):
            start = time.perf_counter()
            trial.tiler.run_tile(pixels, sigma)
            if turn >= WARM_UP:
                times.append(time.perf_counter() - start)
    return [float(np.median(times)) * 1e3 for times in taken]


def save(folder: Path, manifest: dict[str, Any], trial: Trial, ms: float, here: Machine, asked: str) -> Path:
    """Write an engine and its sidecar, in place of those that the same question gave before; returns the engine."""
    home, gpu = folder / FOLDER, here.gpu
    for path, facts in sidecars(home):
        if (facts["for"], facts["tensorrt"], facts["asked"]) == (gpu, here.version, asked):
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".json").unlink(missing_ok=True)
    path = home / f"{slug(manifest['name'])}.{trial.precision}.{gpu.slug}.trt{slug(here.version)}.engine"
    facts = {
        "gpu": gpu.name,
        "compute_capability": gpu.capability,
        "multiprocessors": gpu.multiprocessors,
        "tensorrt": here.version,
        "precision": trial.precision,
        "asked": asked,
        "onnx": trial.onnx,
        "onnx_sha256": manifest["files"][trial.onnx],
        "engine_sha256": hashlib.sha256(trial.serialized).hexdigest(),
        "db": trial.table,
        "drop": trial.drop,
        "ms": ms,
        "tile": manifest["tile"],
        "int8_layers": [layer.name for layer in trial.layers if layer.dtype == "int8"],
        "other_layers": {layer.name: layer.dtype for layer in trial.layers if layer.dtype != "int8"},
        "operators": trial.operators,
        "macs": macs_by_dtype(trial.layers),
    }
    _replace(path, trial.serialized)
    # Last: an engine without one is not used.
    _replace(path.with_name(path.name + ".json"), (json.dumps(facts, indent=2) + "\n").encode())
    return path


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def _line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def show_layers(trial: Trial) -> None:
    """Print which layers that multiply got int8."""
    whole = [layer.name for layer in trial.layers if layer.dtype == "int8"]
    rest = [f"{layer.name} ({layer.dtype})" for layer in trial.layers if layer.dtype != "int8"]
    if not trial.layers:
        print(f"{trial.precision}: TensorRT's inspector names no layer that multiplies: which got int8 is not known")
        return
    print(f"{trial.precision}: {len(whole)} of {len(trial.layers)} layers that multiply are in int8")
    for title, names in (("int8", whole), ("not int8", rest if trial.precision == "int8" else [])):
        for name in names:
            print(f"  {title}: {name}")


def show_table(trials: list[Trial]) -> None:
    """Print dB against clean at each noise level."""
    print(f"sigma   noisy    FP32{''.join(f'{t.precision:>8}' for t in trials)}   (dB against clean, 8-bit output)")
    for rows in zip(*(t.table for t in trials), strict=True):
        device = "".join(f"{row['device']:8.2f}" for row in rows)
        print(f"{rows[0]['sigma']:5g}  {rows[0]['noisy']:6.2f}  {rows[0]['fp32']:6.2f}{device}")


def run(folder: Path, asked: str, workspace: int | None, force: bool) -> int:
    """Build, check, time and keep an engine; returns the exit code."""
    manifest, golden = read_bundle(folder)
    here = machine()
    print(f"{manifest['name']} on {here.gpu}, TensorRT {here.version}")
    wanted, notes = candidates(here, manifest, asked)
    made = dict(zip(golden["model_files"].tolist(), golden["model_sha256"].tolist(), strict=True))
    for name in sorted(set(wanted.values())):
        found = check_file(folder, manifest, name)
        if made.get(name, found) != found:
            raise CannotTellError(f"{name} is not the one the golden tiles were made with: get the bundle again")
    for note in notes:
        print(f"  {note}")
    trials: list[Trial] = []
    try:
        kept = _reuse(folder, manifest, golden, here, asked, force, trials)
        reasons = [] if kept else _build_all(folder, manifest, golden, here, wanted, workspace, trials)
        return _decide(folder, manifest, golden, here, asked, kept, trials, reasons)
    finally:
        for trial in trials:
            trial.session.close()


def _reuse(
    folder: Path,
    manifest: dict[str, Any],
    golden: dict[str, Any],
    here: Machine,
    asked: str,
    force: bool,
    trials: list[Trial],
) -> Path | None:
    """The engine that is there already, if it was kept for the same question and still passes; it joins `trials`."""
    usable = None
    for path, facts in sidecars(folder / FOLDER):
        problem = misfit(path, facts, here, manifest["files"].get(facts["onnx"], "none"))
        if problem:
            print(f"  not used: {path.name} {problem}")
        elif facts["asked"] == asked and not force:
            usable = (path, facts)
    if usable is None:
        return None
    path, facts = usable
    print(f"{facts['precision']}: {path.name} is there already and is checked again (--force builds it anew)")
    try:
        trial = try_out(here, path.read_bytes(), facts["precision"], facts["onnx"], manifest, golden)
    except TensorRTError as error:
        print(f"  built anew: {error}")
        return None
    if trial.problem:
        print(f"  built anew: {trial.problem}")
        trial.session.close()
        return None
    trials.append(trial)
    return path


def _build_all(
    folder: Path,
    manifest: dict[str, Any],
    golden: dict[str, Any],
    here: Machine,
    wanted: dict[str, str],
    workspace: int | None,
    trials: list[Trial],
) -> list[str]:
    """Build every candidate and run the golden tiles through it; those that run join `trials`.

    Returns: why others do not, a line each.
    """
    profile, reasons = shape_profile(manifest), []
    cache = folder / FOLDER / f"{here.gpu.slug}.trt{slug(here.version)}.timing"
    for precision, name in wanted.items():
        print(f"{precision}: building from {name} (the first time it takes minutes) ...", flush=True)
        try:
            serialized = build(here, folder / name, precision, profile, cache, workspace)
            trials.append(try_out(here, serialized, precision, name, manifest, golden))
        except TensorRTError as error:
            reasons.append(f"{precision}: {error}")
    return reasons


def _decide(
    folder: Path,
    manifest: dict[str, Any],
    golden: dict[str, Any],
    here: Machine,
    asked: str,
    kept: Path | None,
    trials: list[Trial],
    reasons: list[str],
) -> int:
    """Show what was measured, keep the fastest trial that passes, and say so; returns the exit code."""
    for trial in trials:
        show_layers(trial)
    if trials:
        show_table(trials)
    times = time_trials(trials, manifest, golden)
    for trial, ms in zip(trials, times, strict=True):
        side, lost = trial.tiler.tile, f"total {0.0 - trial.drop:+.3f} dB"
        print(f"{trial.precision}: {lost}, {ms:.3f} ms a tile of {side}x{side}, {trial.problem or 'passes'}")
    reasons = reasons + [f"{trial.precision}: {trial.problem}" for trial in trials if trial.problem]
    for reason in reasons:
        print(f"  {reason}")
    good = [(ms, trial) for ms, trial in zip(times, trials, strict=True) if not trial.problem]
    if not good:
        print("FAIL  no engine was kept: compress with more --steps, or give another --precision")
        return 1
    ms, best = min(good, key=lambda pair: pair[0])
    path = kept or save(folder, manifest, best, ms, here, asked)
    others = [
        f"{other / ms:.2f}x as fast as {t.precision}" for other, t in zip(times, trials, strict=True) if t is not best
    ]
    speed = f"{ms:.3f} ms a tile{f' ({others[0]})' if others else ''}"
    print(f"PASS  {best.precision}  {speed}  {len(best.serialized) / 1e6:.2f} MB  -> {FOLDER}/{path.name}")
    return 0


def main(arguments: list[str], folder: Path) -> int:
    """The command line: returns the exit code; what it cannot tell is one line on stderr."""
    parser = argparse.ArgumentParser(description="Builds TensorRT engines here and keeps the fastest that is right.")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: int8 and fp16")
    parser.add_argument("--workspace", type=int, metavar="MB", help="scratch memory at most; all there is by default")
    parser.add_argument("--force", action="store_true", help="build anew what is there already")
    options = parser.parse_args(arguments)
    if options.workspace is not None and options.workspace < 1:
        parser.error(f"--workspace is {options.workspace}: expected megabytes, 1 or more")
    try:
        return run(folder, options.precision, options.workspace, options.force)
    except (CannotTellError, TensorRTError) as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or folder}: {error.strerror or error}: free space, or copy the bundle elsewhere"
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        problem = f"the bundle in {folder}, or this TensorRT, is not one that this script knows ({error!r})"
    print(f"build_engine.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
