"""How much worse than the float model an output is, relative to what that model gets wrong itself."""

from __future__ import annotations

from torch import Tensor

# Mean squared error of rounding an image to 8 bits, in units of 0..1: no image is expected to be better.
_ROUNDING = 1 / 255**2 / 12


def share(output: Tensor, taught: Tensor, clean: Tensor) -> Tensor:
    """The squared distance to the float model's output as a share of that model's own squared error, image by image.

    An image with a share s loses about 10 log10(1 + s) dB.

    Args:
        output, taught, clean: what is judged, the float model's output, and the clean images, [N, C, H, W] in 0..1.
    Returns: [N].
    """
    return (output - taught).square().flatten(1).mean(1) / own_error(taught, clean)


def own_error(taught: Tensor, clean: Tensor) -> Tensor:
    """The float model's mean squared error on each image [N], in units of 0..1, that of rounding to 8 bits added."""
    return (taught - clean).square().flatten(1).mean(1) + _ROUNDING
