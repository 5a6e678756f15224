"""The `trtexec` command lines that build a bundle's engines by hand. Pure text: nothing of TensorRT is imported.

Not run on TensorRT here: the flags are those of NVIDIA's documentation of 8.6, 10 and 11.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from edgekit.bundle import build_engine, schema
from edgekit.bundle.build_engine import FOLDER, CannotTellError, onnx_file, shape_profile, slug
from edgekit.bundle.manifest import Manifest, TensorSpec
from edgekit.errors import BundleError


def lines(manifest: Manifest) -> list[str]:
    """Shell lines, to be run in the bundle's folder: comments, and one command an engine.

    For TensorRT 8.6 to 10 the precision is a flag; for 11, whose networks are always strongly typed, it is the file's.

    Raises: BundleError: the bundle has no ONNX file, or its shape_profile does not hold one tile.
    """
    data = schema.to_dict(manifest)
    files = {precision: onnx_file(data, precision) for precision in build_engine.PRECISIONS}
    if not any(files.values()):
        raise BundleError(f"{manifest.name} holds no ONNX file: expected a bundle exported for TensorRT")
    try:
        profile = shape_profile(data)
    except CannotTellError as error:
        raise BundleError(str(error)) from error
    fed = next((v for v in manifest.variants if v.file in files.values()), manifest.variants[0])
    shapes = _shapes(fed.inputs, profile)

    def command(name: str, precision: str, *flags: str) -> str:
        engine = f"{FOLDER}/{slug(manifest.name)}.{precision}.engine"
        words = [f"--onnx={name}", *flags, *shapes, "--profilingVerbosity=detailed"]
        words += [f"--timingCacheFile={FOLDER}/trtexec.timing", f"--saveEngine={engine}"]
        return shlex.join(["trtexec", *words])

    written = [
        "# In the bundle's folder, on the device that will run them. build_engine.py does this, checks dB, and keeps",
        "# the faster engine; edgekit opens only engines that it wrote. trtexec has no golden check.",
        f"mkdir -p {FOLDER}",
        "# TensorRT 8.6 to 10: precisions are flags. INT8 is in the file's Q/DQ nodes; --fp16 is for what they leave.",
    ]
    half = files["fp32"] or files["fp16"]
    if half:
        written.append(command(half, "fp16", "--fp16"))
    if files["int8"]:
        written.append(command(files["int8"], "int8", "--int8", "--fp16"))
    written.append(
        "# TensorRT 11: --fp16 and --int8 are gone. --stronglyTyped is the default: every type is the file's."
    )
    if files["fp16"]:
        written.append(command(files["fp16"], "fp16"))
    elif files["fp32"]:
        written += ["# The bundle holds no FP16 file, so this is FP32.", command(files["fp32"], "fp32")]
    if files["int8"]:
        written += ["# What the Q/DQ nodes leave runs in FP32.", command(files["int8"], "int8")]
    return written


def _shapes(inputs: tuple[TensorSpec, ...], profile: Mapping[str, list[int]]) -> list[str]:
    """--minShapes and its like; none where every shape is static, which trtexec refuses to be told."""
    dynamic = [spec for spec in inputs if -1 in spec.shape]
    if not dynamic:
        return []
    return [
        f"--{key}Shapes="
        + ",".join(f"{spec.name}:{'x'.join(str(n) for n in profile[key][: len(spec.shape)])}" for spec in dynamic)
        for key in ("min", "opt", "max")
    ]
