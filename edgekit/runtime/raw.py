"""RAW images of a Bayer sensor: four packed channels, and noise that does not depend on the ISO setting any more.

A sensor's noise is Poisson-Gaussian: a pixel of mean x, in digital numbers, has the variance k*x + s, where the gain k
and the read noise s grow with the ISO setting. The k-sigma transform maps an image of any ISO linearly to one whose
variance is the same function of its mean, that of an anchor ISO: one small network then does for all of them.

Source: Wang et al. 2020, "Practical Deep Raw Image Denoising on Mobile Devices", arXiv:2010.06935.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RecipeError, ShapeError


@dataclass(frozen=True)
class KSigma:
    """The k-sigma transform of one sensor.

    With f(x) = x * k_a/k + (s/k**2 - s_a/k_a**2) * k_a, where _a is the anchor's, f(x) has the variance
    k_a * mean(f(x)) + s_a, whatever the ISO.

    Attributes:
        gain: k as a polynomial of the ISO, highest power first, in digital numbers.
        read_noise: s likewise, a variance in squared digital numbers.
        anchor: the ISO that the network is trained for.
        white: digital numbers from black to white: images are 0..1 of it.
    """

    gain: Sequence[float]
    read_noise: Sequence[float]
    anchor: float
    white: float

    def forward(self, image: NDArray[Any], iso: float) -> NDArray[np.float64]:
        """Map an image of an ISO setting, 0..1, to the anchor's noise; the result may leave 0..1.

        Raises: RecipeError: the sensor's gain or read noise is not positive at that ISO.
        """
        scale, offset = self._line(iso)
        return np.asarray(image, np.float64) * scale + offset / self.white

    def inverse(self, image: NDArray[Any], iso: float) -> NDArray[np.float64]:
        """The image that `forward` maps to this one. Raises: as `forward`."""
        scale, offset = self._line(iso)
        return (np.asarray(image, np.float64) - offset / self.white) / scale

    def variance(self, mean: NDArray[Any], iso: float) -> NDArray[np.float64]:
        """Variance of the noise of pixels of this mean, both of images in 0..1, before the transform."""
        gain, read = self._levels(iso)
        return (gain * np.asarray(mean, np.float64) * self.white + read) / self.white**2

    def _line(self, iso: float) -> tuple[float, float]:
        (gain, read), (gain_a, read_a) = self._levels(iso), self._levels(self.anchor)
        return gain_a / gain, (read / gain**2 - read_a / gain_a**2) * gain_a

    def _levels(self, iso: float) -> tuple[float, float]:
        gain, read = float(np.polyval(self.gain, iso)), float(np.polyval(self.read_noise, iso))
        if not (gain > 0 and read >= 0):
            raise RecipeError(
                f"at ISO {iso:g} the sensor's gain is {gain:g} and its read noise {read:g}: expected a gain above 0 "
                "and a read noise of 0 or more; check the sensor's polynomials and the ISO"
            )
        return gain, read


# Measured by the paper's authors on a Reno-10x; 10-bit images less the black level of 64.
RENO_10X = KSigma(
    gain=(0.0005995267, 0.00868861), read_noise=(7.11772e-7, 6.514934e-4, 0.11492713), anchor=1600, white=959
)


def pack(mosaic: NDArray[Any]) -> NDArray[Any]:
    """A Bayer mosaic as four channels at half its size: [H, W] -> [H/2, W/2, 4], each 2x2 cell row by row.

    Of an RGGB sensor the channels are R, G, G, B. Raises: ShapeError: not two axes of even length.
    """
    if mosaic.ndim != 2 or mosaic.shape[0] % 2 or mosaic.shape[1] % 2 or not mosaic.size:
        raise ShapeError(f"mosaic has shape {list(mosaic.shape)}: expected [H, W], both even; crop a row or column")
    height, width = mosaic.shape
    cells = mosaic.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3)
    return cells.reshape(height // 2, width // 2, 4)


def unpack(channels: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `pack`: [H, W, 4] -> [2H, 2W]. Raises: ShapeError: another shape."""
    if channels.ndim != 3 or channels.shape[2] != 4:
        raise ShapeError(f"packed image has shape {list(channels.shape)}: expected [H, W, 4]")
    height, width = channels.shape[:2]
    return channels.reshape(height, width, 2, 2).transpose(0, 2, 1, 3).reshape(2 * height, 2 * width)
