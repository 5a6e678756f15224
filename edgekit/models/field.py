"""The receptive field of a network, followed layer by layer, from which its halo is read."""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """What one cell of a tensor sees: cell i depends on pixels i*step - before to (i + 1)*step - 1 + after.

    The same along both axes. Start with `Field()`, the image itself, and follow the layers.
    """

    step: int = 1
    before: int = 0
    after: int = 0

    @property
    def radius(self) -> int:
        """How far the farther end lies from a pixel; the halo, where the step is 1 again."""
        return max(self.before, self.after)

    def conv(self, kernel: int, stride: int = 1, dilation: int = 1) -> Field:
        """Behind a convolution or pool that pads half of what its kernel spans, rounded down, as all here do."""
        span = (kernel - 1) * dilation
        pad = span // 2
        after = self.after + (span + 1 - pad - stride) * self.step
        return Field(self.step * stride, self.before + pad * self.step, after)

    def finer(self, factor: int = 2) -> Field:
        """Behind a pixel-shuffle, a nearest upsampling, or a transposed convolution whose kernel is its stride."""
        step = self.step // factor
        more = self.step - step
        return Field(step, self.before + more, self.after + more)

    def __or__(self, other: Field) -> Field:
        """Behind an addition or concatenation of two tensors of the same step."""
        return Field(self.step, max(self.before, other.before), max(self.after, other.after))
