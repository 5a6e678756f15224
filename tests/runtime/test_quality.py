from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.errors import ShapeError
from edgekit.runtime.quality import psnr, ssim


def pair(shape: tuple[int, ...], dtype: str, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    smooth = np.cumsum(random.normal(0, 0.05, shape), axis=1) % 1
    noisy = np.clip(smooth + random.normal(0, 0.1, shape), 0, 1)
    scale = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    return (smooth * scale).astype(dtype), (noisy * scale).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 57), (33, 21, 3)])
def test_psnr_and_ssim_are_skimages(shape: tuple[int, ...], dtype: str) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="needs the extra train")
    a, b = pair(shape, dtype)
    peak = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    assert psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=peak), abs=1e-4)
    expected = metrics.structural_similarity(
        a, b, data_range=peak, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        channel_axis=2 if len(shape) == 3 else None,
    )  # fmt: skip
    # skimage works in the float type of the image: float32 sums differ in the fifth digit.
    assert ssim(a, b) == pytest.approx(expected, abs=2e-5)


def test_psnr_by_hand() -> None:
    a = np.zeros((2, 2), np.uint8)
    b = np.array([[1, 0], [0, 0]], np.uint8)
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 0.25))
    # Unsigned differences must not wrap around.
    assert psnr(b, a) == psnr(a, b)


def test_identical_images() -> None:
    a, _ = pair((20, 20, 3), "uint8")
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1.0)


def test_nan_is_not_hidden() -> None:
    a, b = pair((20, 20), "float32")
    b[3, 3] = np.nan
    assert math.isnan(psnr(a, b))
    assert math.isnan(ssim(a, b))


def test_more_noise_is_worse() -> None:
    a, b = pair((40, 40), "float64")
    worse = a + 2 * (b - a)
    assert psnr(a, worse) == pytest.approx(psnr(a, b) - 20 * math.log10(2))
    assert ssim(a, worse) < ssim(a, b)


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((20, 20), np.uint8), np.zeros((20, 21), np.uint8), r"shapes \[20, 20\] and \[20, 21\]"),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.float32), "uint8 and float32: expected both"),
        (np.zeros((20, 20), np.int64), np.zeros((20, 20), np.int64), "dtype int64"),
        (np.zeros((0, 20), np.uint8), np.zeros((0, 20), np.uint8), "at least one pixel"),
    ],
)
def test_images_that_cannot_be_compared(measure, a, b, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ShapeError, match=message):
        measure(a, b)


def test_ssim_needs_its_window() -> None:
    small = np.zeros((10, 30), np.uint8)
    with pytest.raises(ShapeError, match=r"\[10, 30\]: SSIM expects .* at least 11x11"):
        ssim(small, small)
