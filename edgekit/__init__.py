"""edgekit takes an image denoiser from training to a device, and proves that it arrived intact.

    bundle = edgekit.compress(target="tflite")      # prune, distill, quantize, export
    verdict = edgekit.check(bundle.folder)          # PASS or FAIL against the FP32 original
    denoiser = edgekit.open(bundle.folder)
    clean = denoiser(noisy, sigma=25)               # uint8, uint16 or float [H, W] or [H, W, C], of any size

Every name is imported when it is first used, so `import edgekit` costs nothing and works where no extra is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgekit._version import __version__
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.api import compress, compress_all, evaluate, finetune, search, train
    from edgekit.bundle.reader import Bundle
    from edgekit.runtime.check import check
    from edgekit.runtime.denoiser import Denoiser, open
    from edgekit.runtime.verdict import Verdict

__all__ = [
    "Bundle",
    "Denoiser",
    "EdgekitError",
    "Verdict",
    "__version__",
    "check",
    "compress",
    "compress_all",
    "evaluate",
    "finetune",
    "open",
    "search",
    "train",
]

# compress, search and train are packages too; edgekit.callable_package makes them callable.
_WHERE = {
    "Bundle": "edgekit.bundle.reader",
    "Denoiser": "edgekit.runtime.denoiser",
    "Verdict": "edgekit.runtime.verdict",
    "check": "edgekit.runtime.check",
    "compress_all": "edgekit.api",
    "evaluate": "edgekit.api",
    "finetune": "edgekit.api",
    "open": "edgekit.runtime.denoiser",
}


def __getattr__(name: str) -> object:
    if name in ("compress", "search", "train"):
        return importlib.import_module(f"edgekit.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
