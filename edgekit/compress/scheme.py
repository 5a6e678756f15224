"""How a target wants its integers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scheme:
    """The integer arithmetic of a target; ranges are learned once for it, in torch.

    Attributes:
        name: for records and error messages.
        symmetric_activations: zero point 0 (TensorRT) instead of affine (TFLite, OpenVINO).
        weight_bits: 8, or 7 where products of 8 by 8 bits may saturate.
        paired: with 8 bits, what saturates is kept out: of any two inputs that a kernel takes together, the weights add
            up to 128 at most. x86 without VNNI adds the two products of uint8 and int8 in 16 bits. Layers of which it
            is not known what is taken together get 7 bits.
        every_tensor: quantize every tensor of the graph (an integer-only runtime), not only the inputs and weights of
            convolutions.
        quantized_io: the image enters and leaves as integers of scale 1/255 and zero point -128, sigma as integers that
            span the noise range.
        float_terms: what a convolution writes only to be added to another tensor, or taken from it, is not rounded on
            the way. What it is added to is, also without `every_tensor`, so that TensorRT fuses the sum into the
            convolution.
        wide: module paths of convolutions that stay in float (for TFLite at least two neighbours: its converter makes a
            lone one between two integer tensors integer again; the layer report shows what came out).
    """

    name: str
    symmetric_activations: bool = False
    weight_bits: int = 8
    paired: bool = False
    every_tensor: bool = True
    quantized_io: bool = True
    float_terms: bool = False
    wide: frozenset[str] = frozenset()
