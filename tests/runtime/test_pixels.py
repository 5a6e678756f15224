from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.bundle.manifest import TensorSpec
from edgekit.errors import EngineError, ShapeError
from edgekit.runtime.pixels import check_image_tensor, decode, encode, encode_sigma, full_scale, to_bytes


def spec(dtype: str, layout: str = "NHWC") -> TensorSpec:
    scale = None if dtype == "float32" else 1 / 255
    zero_point = {"int8": -128, "uint8": 0}.get(dtype)
    return TensorSpec("x", "image", (1, 4, 4, 3), layout, dtype, scale, zero_point)


INT8, UINT8, FLOAT = spec("int8"), spec("uint8"), spec("float32")
ALL_BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def test_bytes_enter_int8_without_arithmetic() -> None:
    tensor = encode(np.array([[[0], [1], [127], [128], [255]]], np.uint8), INT8)
    assert tensor.dtype == np.int8
    assert tensor.ravel().tolist() == [-128, -127, -1, 0, 127]


@pytest.mark.parametrize("tensor", [INT8, UINT8, FLOAT, spec("int8", "NCHW"), spec("float32", "NCHW")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", ">u2"])
def test_an_identity_network_gives_the_image_back(tensor: TensorSpec, dtype: str) -> None:
    top = full_scale(np.dtype(dtype))
    ramp = np.linspace(0, top, 300).reshape(10, 10, 3)
    image = ramp.round().astype(dtype) if top > 1 else ramp.astype(dtype)
    native = image.astype(image.dtype.newbyteorder("="))
    output = decode(encode(native, tensor), tensor, native)
    assert output.dtype == native.dtype
    # Exact, but that float32 tensors hold a float64 image to 1e-7 and that x / 65535 * 65535 is rounded once.
    tolerance = 1e-7 if tensor is FLOAT or tensor.dtype == "float32" else 0
    np.testing.assert_allclose(output.astype(float), native.astype(float), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shift", [-3, 0, 5])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_fine_bits_survive_an_8_bit_network(shift: int, dtype: str) -> None:
    """A network that adds `shift` bytes shifts a clean ramp by as much and keeps every step of it."""
    top = full_scale(np.dtype(dtype))
    ramp = np.linspace(top * 0.1, top * 0.9, 4000).astype(dtype).reshape(40, 100, 1)
    shifted = (encode(ramp, INT8).astype(np.int16) + shift).astype(np.int8)
    output = decode(shifted, INT8, ramp)
    np.testing.assert_allclose(output.astype(float) - ramp, shift * top / 255, atol=top * 1e-6)
    assert (np.diff(output.ravel().astype(float)) > 0).all()


def test_16_bit_noise_is_subtracted_by_hand() -> None:
    pixel = np.array([[[1000]]], np.uint16)  # byte 4 (1000 / 257 = 3.89)
    one_less = np.array([[[[3 - 128]]]], np.int8)
    assert decode(one_less, INT8, pixel).item() == 1000 - 257
    far_less = np.array([[[[0 - 128]]]], np.int8)
    assert decode(far_less, INT8, pixel).item() == 0  # 1000 - 4 * 257 = -28, clipped


@pytest.mark.parametrize(
    ("value", "byte"), [(0, 0), (128, 0), (129, 1), (257, 1), (65406, 254), (65407, 255), (65535, 255)]
)
def test_16_bits_round_to_the_nearest_byte(value: int, byte: int) -> None:
    assert to_bytes(np.array([value], np.uint16)).item() == byte


@pytest.mark.parametrize(("value", "byte"), [(-0.5, 0), (0.0, 0), (0.5 / 255 + 1e-4, 1), (1.0, 255), (1.7, 255)])
def test_floats_round_and_clip_to_bytes(value: float, byte: int) -> None:
    assert to_bytes(np.array([value], np.float64)).item() == byte


def test_floats_leave_within_their_range() -> None:
    window = np.array([[[-0.2], [1.2]]], np.float32)
    assert decode(encode(window, INT8), INT8, window).ravel().tolist() == [0.0, 1.0]
    assert decode(encode(window, FLOAT), FLOAT, window).ravel().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("value", "byte"), [(1.2, 230), (-0.2, 25)])
def test_noise_is_taken_off_what_the_network_saw_of_floats_beyond_their_range(value: float, byte: int) -> None:
    # It saw 255 and 0, and found 25 bytes of noise.
    window = np.array([[[value]]], np.float32)
    assert decode(np.array([[[[byte]]]], np.uint8), UINT8, window).item() == pytest.approx(byte / 255, abs=1e-6)


@pytest.mark.parametrize(("dtype", "expected"), [("uint8", 21), ("uint16", 5197), ("float32", 21 / 255)])
def test_gray_gets_the_mean_of_a_colour_models_output(dtype: str, expected: float) -> None:
    # 20, 20, 22: 20.67 on average, which is 21 in bytes and 5311.3 - 114.3 in 16 bits.
    output = np.array([[[[20, 20, 22]]]], np.uint8)
    window: NDArray[Any] = np.array([[[{"uint8": 30, "uint16": 7710, "float32": 30 / 255}[dtype]]]], dtype)
    clean = decode(output, UINT8, window)
    exact = {"uint8": 21, "uint16": round(62 / 3 * 257), "float32": 62 / 3 / 255}[dtype]
    np.testing.assert_allclose(clean.item(), exact, rtol=1e-6)


def test_float_output_is_rounded_to_bytes() -> None:
    output = np.array([[[[0.5 / 255, 1.5 / 255, 0.49], [-1, 2, 1]]]], np.float32)
    window = np.zeros((1, 2, 3), np.uint8)
    assert decode(output, FLOAT, window).tolist() == [[[0, 2, 125], [0, 255, 255]]]


def test_sigma_as_integer_and_as_float() -> None:
    integer = TensorSpec("s", "sigma", (1,), "N", "int8", 55 / 255 / 255, -128)
    assert encode_sigma(0, integer).tolist() == [-128]
    assert encode_sigma(55, integer).tolist() == [127]
    assert encode_sigma(25, integer).tolist() == [round(25 / 55 * 255) - 128]
    # Beyond what the tensor can say, it says what it can.
    assert encode_sigma(80, integer).tolist() == [127]
    real = encode_sigma(25, TensorSpec("s", "sigma", (-1,), "N", "float32"))
    assert real.dtype == np.float32
    np.testing.assert_allclose(real, [25 / 255], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint32", "complex64", "object", "int8"])
def test_dtypes_that_are_no_image(dtype: str) -> None:
    with pytest.raises(ShapeError, match=f"image has dtype {dtype}: expected uint8, uint16, float16"):
        full_scale(np.dtype(dtype))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            TensorSpec("x", "image", (1, 4, 4, 3), "NHWC", "int8", 0.5, -128),
            "int8 at scale 0.5, zero point -128: expected",
        ),
        (TensorSpec("x", "image", (1, 4, 4, 3), "NHWC", "int8", 1 / 255, 0), "zero point 0: expected"),
        (TensorSpec("x", "image", (1, 4, 4, 3), "NHWC", "uint8"), "uint8 at scale None"),
        (TensorSpec("x", "image", (1, 4, 4, 3), "NHWC", "int16", 1 / 255, 0), "int16"),
        (TensorSpec("x", "image", (1, 4, 4, 3), "HWC", "float32"), "is HWC"),
        (TensorSpec("x", "image", (4, 4, 3), "NHWC", "float32"), r"NHWC \[4, 4, 3\]"),
    ],
)
def test_image_tensors_that_are_refused(bad: TensorSpec, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_image_tensor(bad)


def test_image_tensors_that_are_taken() -> None:
    for good in (INT8, UINT8, FLOAT):
        check_image_tensor(good)
    # As the file holds it: float32.
    check_image_tensor(TensorSpec("x", "image", (1, 4, 4, 3), "NHWC", "int8", float(np.float32(1 / 255)), -128))
