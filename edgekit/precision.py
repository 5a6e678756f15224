"""Which arithmetic a float model is trained in where a recipe says "auto"."""

from __future__ import annotations

import torch

# Instructions that multiply bfloat16, as torch.cpu.get_capabilities names them: x86, then ARM.
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def resolve(precision: str, device: str) -> str:
    """The precision that "auto" means on a device; any other one is returned as it is.

    "bf16-mixed" where the processor multiplies bfloat16 itself, else "32-true": without such instructions torch
    emulates it, and a training step takes two to four times as long as in float32.

    Args:
        precision: as a recipe gives it.
        device: a torch device type, "cpu", "cuda", "mps".
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_bfloat16(device) else "32-true"


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in _BFLOAT16)
