"""torchao's PT2E flow, imported without what it says of CUDA builds that are not there: nothing a user can mend."""

from __future__ import annotations

import torch  # noqa: F401 - before the silence, in which its loggers would be set up on a stream that goes away

from edgekit.quiet import quietly

with quietly():
    from torchao.quantization.pt2e import FakeQuantizeBase, disable_fake_quant, enable_fake_quant
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

__all__ = [
    "FakeQuantizeBase",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "Quantizer",
    "SharedQuantizationSpec",
    "convert_pt2e",
    "disable_fake_quant",
    "enable_fake_quant",
    "prepare_qat_pt2e",
]
