"""Between an image's pixels and a model's tensors.

Images are uint8, uint16 or float (0..1); image tensors are int8 at scale 1/255 and zero point -128, uint8 at scale
1/255, or float32 in 0..1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import TensorSpec
from edgekit.errors import EngineError, ShapeError

# float16 carries 0..1 in 1/2048 steps: finer than 8 bits.
_ALLOWED = "uint8, uint16, float16, float32 or float64"


def full_scale(dtype: np.dtype[Any]) -> float:
    """The pixel value that means 1.0: 255, 65535 or 1. Raises: ShapeError: not an image's dtype."""
    if dtype.kind == "u" and dtype.itemsize in (1, 2):
        return 255.0 if dtype.itemsize == 1 else 65535.0
    if dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        return 1.0
    raise ShapeError(f"image has dtype {dtype}: expected {_ALLOWED} (float in 0..1)")


def to_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Round pixels to 8 bits, ties to even; floats beyond 0..1 are clipped."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "u":
        # 65535 is 255 * 257, so 257 16-bit values share a byte and there are no ties.
        rounded: NDArray[Any] = (pixels.astype(np.uint32) + np.uint32(128)) // np.uint32(257)
        return rounded.astype(np.uint8)
    scaled: NDArray[np.float32] = np.clip(pixels, 0, 1).astype(np.float32) * np.float32(255)
    return np.rint(scaled).astype(np.uint8)


def check_image_tensor(spec: TensorSpec) -> None:
    """Refuse an image tensor that is none of the three kinds.

    Raises: EngineError: another dtype, layout, scale or zero point.
    """
    zero_points = {"int8": -128, "uint8": 0}
    integer = spec.dtype in zero_points
    if integer and spec.scale is not None:
        # float32, as the file holds it, against the decimal in the manifest.
        fits = math.isclose(spec.scale, 1 / 255, rel_tol=1e-5) and spec.zero_point == zero_points[spec.dtype]
    else:
        fits = spec.dtype == "float32" and spec.scale is None
    if not fits:
        raise EngineError(
            f"image tensor {spec.name!r} is {spec.dtype} at scale {spec.scale}, zero point {spec.zero_point}: expected "
            "int8 at 1/255 and -128, uint8 at 1/255 and 0, or float32; export the bundle again"
        )
    if spec.layout not in ("NHWC", "NCHW") or len(spec.shape) != 4:
        raise EngineError(
            f"image tensor {spec.name!r} is {spec.layout} {list(spec.shape)}: expected NHWC or NCHW; "
            "export the bundle again"
        )


def encode(pixels: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Turn a window into a batch of one.

    Args:
        pixels: [H, W, C] of an image's dtype, with the model's channels.
        spec: the model's image input.
    Returns: [1, H, W, C] or [1, C, H, W] as the layout asks, contiguous, in the tensor's dtype.
    """
    tensor: NDArray[Any]
    if spec.dtype == "float32":
        tensor = pixels.astype(np.float32) / np.float32(full_scale(pixels.dtype))
    elif spec.dtype == "int8":
        # Zero point -128: the integer is the byte less 128, which flips the top bit. No arithmetic.
        tensor = (to_bytes(pixels) ^ np.uint8(0x80)).view(np.int8)
    else:
        tensor = to_bytes(pixels)
    if spec.layout == "NCHW":
        tensor = tensor.transpose(2, 0, 1)
    return np.ascontiguousarray(tensor[None])


def decode(tensor: NDArray[Any], spec: TensorSpec, pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn a model's output into pixels.

    An integer model sees and gives 8 bits. Finer pixels keep what lies below: the noise it found, byte in less byte
    out, is subtracted from the pixel itself. A gray window that went through a colour model gets the mean of the
    three channels.

    Args:
        tensor: the output, a batch of one, in the layout of `spec`; may be changed.
        spec: the model's output.
        pixels: the window that `encode` took (before a gray one was repeated): [H, W, C].
    Returns: [H, W, C] in the dtype of `pixels`.
    """
    output = tensor[0].transpose(1, 2, 0) if spec.layout == "NCHW" else tensor[0]
    scale = full_scale(pixels.dtype)
    wide = np.dtype(np.float64 if pixels.dtype == np.float64 else np.float32).type
    clean: NDArray[Any]
    if spec.dtype == "float32":
        clean = output.astype(wide) * wide(scale)
        if clean.shape[2] != pixels.shape[2]:
            clean = clean.mean(axis=2, keepdims=True)
    else:
        seen: NDArray[Any] = output.view(np.uint8)
        if spec.dtype == "int8":
            # In place: engines give a copy, and a new one for each tile costs more than the flip.
            np.bitwise_xor(seen, np.uint8(0x80), out=seen)
        if pixels.dtype == np.uint8 and seen.shape[2] == pixels.shape[2]:
            return seen
        level = seen.astype(wide)
        if level.shape[2] != pixels.shape[2]:
            level = level.mean(axis=2, keepdims=True)
        noise = to_bytes(pixels).astype(wide) - level
        clean = np.clip(pixels.astype(wide), 0, wide(scale)) - noise * wide(scale / 255)
    clean = np.clip(clean, 0, wide(scale))
    if pixels.dtype.kind == "u":
        clean = np.rint(clean)
    return clean.astype(pixels.dtype)


def encode_sigma(sigma: float, spec: TensorSpec) -> NDArray[Any]:
    """The noise level as the model takes it.

    Args:
        sigma: standard deviation in 8-bit units.
        spec: the model's sigma input, real values in 0..1.
    Returns: a batch of one, every element the level, in the tensor's dtype.
    """
    shape = tuple(max(1, n) for n in spec.shape)
    if spec.scale is None or spec.zero_point is None:
        return np.full(shape, sigma / 255, np.dtype(spec.dtype))
    limits = np.iinfo(np.dtype(spec.dtype))
    integer = round(sigma / 255 / spec.scale) + spec.zero_point
    return np.full(shape, min(max(integer, limits.min), limits.max), np.dtype(spec.dtype))
