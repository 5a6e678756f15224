# SPDX-License-Identifier: MIT
"""Checks a bundle on a device that has Python, numpy and the engine of its files, and no edgekit.

    python verify.py [VARIANT]

Lies inside the bundle and reads the files beside it: runs the golden tiles through the model, prints dB at each noise
level and PASS or FAIL. Exit code 0 for PASS, 1 for FAIL, 2 when it cannot tell. `edgekit check` does this and more.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = (
    ("ai_edge_litert.interpreter", "Interpreter"),
    ("tflite_runtime.interpreter", "Interpreter"),
    ("tensorflow", "lite.Interpreter"),
)
# Bits are the same wherever XNNPACK computes. Other int8 kernels differ; the slow portable ones have the same bits too.
OTHER_KERNELS_DB, FLOAT_DB = 40.0, 50.0
# Operators that only move numbers: wherever they run, the bits are the same.
MOVES = {
    "QUANTIZE",
    "RESHAPE",
    "TRANSPOSE",
    "RESIZE_NEAREST_NEIGHBOR",
    "BROADCAST_TO",
    "SPACE_TO_DEPTH",
    "DEPTH_TO_SPACE",
}


class CannotTellError(Exception):
    """The bundle is damaged, or nothing here can run it."""


def interpreter_class() -> Any:
    """The first interpreter that is installed and works."""
    for module, attribute in LIBRARIES:
        try:
            found: Any = importlib.import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError, OSError):
            continue
        return found
    raise CannotTellError("no TFLite interpreter is installed: pip install ai-edge-litert (or tflite-runtime)")


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the golden arrays, after every file was compared with its sha256."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != expected:
                raise CannotTellError(f"{name} was altered or damaged: sha256 expected {expected}, found {found}")
        with np.load(folder / manifest["golden"], allow_pickle=False) as archive:
            golden = {name: archive[name] for name in archive.files}
    except OSError as error:
        what = f"{Path(error.filename or folder).name}: {error.strerror or error}"
        raise CannotTellError(f"the bundle in {folder} is not whole ({what}): copy it again") from error
    except (ValueError, KeyError, EOFError) as error:
        raise CannotTellError(f"the bundle in {folder} is not whole ({error!r}): copy it again") from error
    return manifest, golden


class Other:
    """An OpenVINO or ONNX file, driven as a TFLite interpreter is."""

    def __init__(self, path: str, variant: dict[str, Any]) -> None:
        self.variant = variant
        self.fed: dict[str, Any] = {}
        self.result: Any = None
        self.call: Any
        try:
            if variant["engine"] == "openvino":
                # Without this, importing OpenVINO reports it over the network.
                sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
                import openvino

                settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
                compiled = openvino.Core().compile_model(path, "CPU", settings)
                self.call = lambda feed: compiled(feed)[0]
            elif variant["engine"] == "onnxruntime":
                import onnxruntime

                session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
                self.call = lambda feed: session.run(None, feed)[0]
            else:
                raise CannotTellError(f"engine {variant['engine']!r}: this script knows litert, openvino, onnxruntime")
        except ImportError:
            raise CannotTellError(f"{variant['engine']} is not installed: pip install {variant['engine']}") from None

    def allocate_tensors(self) -> None:
        """Nothing to do: shapes are dynamic."""

    def _details(self, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "index": spec["name"],
                "shape": [max(1, n) for n in spec["shape"]],
                "dtype": np.dtype(spec["dtype"]).type,
                "quantization": (spec["scale"] or 0.0, spec["zero_point"] or 0),
            }
            for spec in specs
        ]

    def get_input_details(self) -> list[dict[str, Any]]:
        """As the interpreter's, from the manifest."""
        return self._details(self.variant["inputs"])

    def get_output_details(self) -> list[dict[str, Any]]:
        """As the interpreter's, from the manifest."""
        return self._details(self.variant["outputs"])

    def set_tensor(self, name: str, value: Any) -> None:
        """Keep an input; images come as [1, H, W, C]."""
        planar = any(s["name"] == name and s["layout"] == "NCHW" for s in self.variant["inputs"])
        self.fed[name] = np.ascontiguousarray(value.transpose(0, 3, 1, 2)) if planar else value

    def invoke(self) -> None:
        """Run."""
        self.result = self.call(self.fed)

    def get_tensor(self, name: str) -> Any:
        """The output as [1, H, W, C]."""
        planar = self.variant["outputs"][0]["layout"] == "NCHW"
        return self.result.transpose(0, 2, 3, 1) if planar else self.result


class Model:
    """A variant, opened: denoises images of any size by tiles."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], variant: dict[str, Any], *, portable: bool = False
    ) -> None:
        path = str(folder / variant["file"])
        tflite = variant["engine"] == "litert"
        opener = interpreter_class() if tflite else None
        options = {}
        if portable:
            kinds = getattr(sys.modules[opener.__module__], "OpResolverType", None) if opener else None
            if kinds is None:
                raise CannotTellError("this interpreter has no portable kernels: pip install -U ai-edge-litert")
            options["experimental_op_resolver_type"] = kinds.BUILTIN_REF
        try:
            self.interpreter: Any = (
                opener(model_path=path, num_threads=1, **options) if opener else Other(path, variant)
            )
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise CannotTellError(f"{path} cannot be opened: {error}") from error
        # The image is the input with four axes; sigma the one with one axis.
        inputs = self.interpreter.get_input_details()
        self.image = next(d for d in inputs if len(d["shape"]) == 4)
        self.level = next((d for d in inputs if len(d["shape"]) == 1), None)
        self.output = self.interpreter.get_output_details()[0]
        self.tile, model = manifest["tile"], manifest["model"]
        self.halo, self.stride = model["halo"], model["stride"]

    def kernels(self) -> str:
        """ "xnnpack" when its delegate took every operator that computes, else "other"."""
        try:
            nodes = self.interpreter._get_ops_details()
        except AttributeError:
            return "other"
        makers = {int(t): n for n in nodes if n["op_name"] != "DELEGATE" for t in n["outputs"]}
        taken = set()
        for delegate in (n for n in nodes if n["op_name"] == "DELEGATE"):
            border, todo = {int(t) for t in delegate["inputs"]}, [int(t) for t in delegate["outputs"]]
            while todo:
                tensor = todo.pop()
                if tensor in makers and tensor not in border and makers[tensor]["index"] not in taken:
                    taken.add(makers[tensor]["index"])
                    todo += [int(t) for t in makers[tensor]["inputs"]]
        counted = {n["index"] for n in makers.values() if n["op_name"] not in MOVES}
        return "xnnpack" if taken and counted <= taken else "other"

    def _tile(self, pixels: Any, sigma: float) -> Any:
        kind = np.dtype(self.image["dtype"]).name
        scaled = {"int8": lambda: (pixels ^ 0x80).view(np.int8), "uint8": lambda: pixels}
        image = scaled[kind]() if kind in scaled else pixels.astype(np.float32) / np.float32(255)
        self.interpreter.set_tensor(self.image["index"], np.ascontiguousarray(image[None]))
        if self.level is not None:
            dtype, (scale, zero) = np.dtype(self.level["dtype"]), self.level["quantization"]
            value = sigma / 255
            if scale:
                limits = np.iinfo(dtype)
                value = min(max(round(value / scale) + zero, limits.min), limits.max)
            self.interpreter.set_tensor(self.level["index"], np.full(tuple(self.level["shape"]), value, dtype))
        try:
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise CannotTellError(f"the interpreter failed: {error}") from error
        clean = self.interpreter.get_tensor(self.output["index"])[0]
        if clean.dtype == np.int8:
            return clean.view(np.uint8) ^ 0x80
        return clean if clean.dtype == np.uint8 else np.rint(np.clip(clean, 0, 1) * np.float32(255)).astype(np.uint8)

    def _windows(self, size: int) -> list[tuple[int, int, int]]:
        """Tiles along an axis: origin of the window, and the part of the result taken from it."""
        step = (self.tile - 2 * self.halo) // self.stride * self.stride
        origin, start, found = -math.ceil(self.halo / self.stride) * self.stride, 0, []
        while start < size:
            stop = min(size, origin + self.tile - self.halo)
            found.append((origin, start, stop))
            origin, start = origin + step, stop
        return found

    def __call__(self, image: Any, sigma: float) -> Any:
        """Denoise uint8 [H, W, C]; sigma in 8-bit units. The border is mirrored, the tiles overlap by the halo."""
        # A tile on every side is more than any window reaches out.
        padded = np.pad(image, ((self.tile, self.tile), (self.tile, self.tile), (0, 0)), mode="reflect")
        result = np.empty_like(image)
        for y, top, bottom in self._windows(image.shape[0]):
            for x, left, right in self._windows(image.shape[1]):
                corner_y, corner_x = y + self.tile, x + self.tile
                clean = self._tile(padded[corner_y : corner_y + self.tile, corner_x : corner_x + self.tile], sigma)
                result[top:bottom, left:right] = clean[top - y : bottom - y, left - x : right - x]
        return result


def psnr(image: Any, reference: Any) -> float:
    """PSNR of two uint8 images in dB; 110 for equal ones."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 110.0 if error == 0 else min(110.0, 10 * math.log10(255**2 / error))


def measure(golden: dict[str, Any], device: Any) -> list[tuple[float, float, float, float]]:
    """Sigma, and dB of the noisy tiles, of the original FP32 model and of the device, one row a noise level."""
    table = []
    for sigma in sorted(set(golden["sigma"].tolist())):
        at = np.flatnonzero(golden["sigma"] == np.float32(sigma))
        outputs = (golden["noisy"], to_uint8(golden["fp32_original"]), device)
        noisy, original, here = (float(np.mean([psnr(a[k], golden["clean"][k]) for k in at])) for a in outputs)
        table.append((sigma, noisy, original, here))
    return table


def to_uint8(packed: Any) -> Any:
    """FP32 outputs, kept as 16 bits, rounded to 8."""
    return np.rint(packed / np.float32(257)).astype(np.uint8)


def edited(manifest: dict[str, Any], golden: dict[str, Any], variant: dict[str, Any]) -> list[str]:
    """What does not fit the golden tiles any more."""
    reasons = []
    sealed, said = float(golden["threshold_max_drop"]), manifest["thresholds"]["max_drop"]
    if not said == sealed == manifest["recipe"].get("max_drop"):
        reasons.append(f"thresholds edited: manifest says {said} dB, sealed {sealed} dB: get the bundle again")
    made = dict(zip(golden["model_files"].tolist(), golden["model_sha256"].tolist()))  # noqa: B905 - see main
    files = [variant["file"], *variant.get("companions", [])]
    model = manifest["model"]
    table = manifest.get("iso_sigma") or {}
    said_now = {**model, "tile": manifest["tile"], "sigma": manifest["sigma"], "iso_sigma": table}
    # Bundles from before they were kept have none.
    for name, text in json.loads(str(golden.get("facts", "{}"))).items():
        if said_now.get(name) != json.loads(text):
            reasons.append(f"manifest edited: {name} is {said_now.get(name)}, it was {text}: get the bundle again")
    if any(made.get(name) != manifest["files"][name] for name in files):
        reasons.append("model file edited: it is not the one the golden tiles were made with: get the bundle again")
    return reasons


def is_integer(variant: dict[str, Any]) -> bool:
    """Whether it is an integer model: images enter as 8-bit integers, or its name says so."""
    takes_bytes = any(t["role"] == "image" and t["dtype"] in ("int8", "uint8") for t in variant["inputs"])
    return takes_bytes or variant["name"].split("-")[0] == "int8"


def differs(
    golden: dict[str, Any], device: Any, model: Model, variant: dict[str, Any], default: dict[str, Any], slow: Any
) -> str:
    """How the device's bytes are not what they must be; "" when they are. `slow` opens the portable kernels."""
    integer = is_integer(variant)
    host = variant["name"] == default["name"] or (integer and is_integer(default))
    reference = golden["host"] if host else to_uint8(golden["fp32_compressed"])
    apart, close = int(np.abs(device.astype(int) - reference).max()), psnr(device, reference)
    if integer and host and model.kernels() == str(golden["kernels"]) == "xnnpack":
        return f"output differs from the host's by up to {apart} LSB" if apart else ""
    allowed = OTHER_KERNELS_DB if integer else FLOAT_DB
    if close < allowed:
        return f"output is {close:.1f} dB from the {'host' if host else 'FP32 model'}'s, {allowed:g} required"
    # Only TFLite has kernels that give the same bits everywhere.
    if integer and host and apart and variant["engine"] == "litert":
        if "portable" not in golden:
            return "other kernels ran than the host's, and the bundle holds none to tell an altered file by: output"
        at, portable = golden["portable_at"], slow()
        again = np.stack([portable(golden["noisy"][k], float(golden["sigma"][k])) for k in at])
        if not np.array_equal(again, golden["portable"]):
            return "portable kernels give other bits than the host's did"
    return ""


def main(folder: Path, wanted: str | None = None) -> int:
    """Check the bundle in `folder`; returns the exit code."""
    manifest, golden = read_bundle(folder)
    default = manifest["default_variant"]
    variants = {v["name"]: v for v in manifest["variants"]}
    name = wanted or default
    if name not in variants:
        raise CannotTellError(f"unknown variant {name!r}: expected one of {', '.join(variants)}")
    model = Model(folder, manifest, variants[name])
    # zip(strict=) is newer than the Python of some devices.
    tiles = list(zip(golden["noisy"], golden["sigma"].tolist()))  # noqa: B905
    device = np.stack([model(noisy, sigma) for noisy, sigma in tiles])
    table = measure(golden, device)

    if variants[name].get("made_for"):
        print(f"not run on {variants[name]['made_for']}: {variants[name]['engine']} computes the graph in its place")
    print(f"{manifest['name']} for {manifest['target']}, {name}, {model.kernels()} kernels, {len(tiles)} golden tiles")
    print("sigma   noisy    FP32  device   total   (dB against clean, 8-bit output)")
    for sigma, noisy, original, here in table:
        print(f"{sigma:5g}  {noisy:6.2f}  {original:6.2f}  {here:6.2f}  {here - original:+6.2f}")
    fp32, here = (float(np.mean([row[i] for row in table])) for i in (2, 3))
    reasons = edited(manifest, golden, variants[name])
    allowed = float(golden["threshold_max_drop"])
    if not fp32 - here <= allowed:
        reasons.append(
            f"total drop {fp32 - here:.3f} dB, {allowed:g} dB allowed: compress with more --steps, less --prune"
        )
    noisy = float(np.mean([row[1] for row in table]))
    if here < noisy:
        reasons.append(f"output is worse than the noisy input ({here:.2f} dB against {noisy:.2f} dB)")
    found = differs(
        golden,
        device,
        model,
        variants[name],
        variants[default],
        lambda: Model(folder, manifest, variants[name], portable=True),
    )
    if found:
        reasons.append(f"{found}: the model file was altered, or this engine computes otherwise")
    for reason in reasons:
        print(f"  {reason}")
    verdict = "FAIL" if reasons else "PASS"
    print(f"{verdict}  FP32 {fp32:.2f} dB  device {here:.2f} dB (total {round(here - fp32, 2) + 0.0:+.2f})")
    return 1 if reasons else 0


def run(folder: Path, wanted: str | None = None) -> int:
    """`main`, where a field that is missing or of another kind is no verdict either."""
    try:
        return main(folder, wanted)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise CannotTellError(f"the bundle in {folder} is not one that this script knows ({error!r})") from error


if __name__ == "__main__":
    try:
        sys.exit(run(Path(__file__).resolve().parent, sys.argv[1] if len(sys.argv) > 1 else None))
    except CannotTellError as error:
        print(f"verify.py: {error}", file=sys.stderr)
        sys.exit(2)
