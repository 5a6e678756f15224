"""Which extra brings which library: what a missing import is answered with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgekit.errors import MissingExtraError

# Import name -> extra. The base install has numpy, Pillow, typer and rich.
EXTRAS = {
    "ai_edge_litert": "litert",
    "tflite_runtime": "tflite-runtime",
    "tensorflow": "tensorflow",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "nncf": "nncf",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "torch": "train",
    "lightning_fabric": "train",
    "torchmetrics": "train",
    "torch_pruning": "train",
    "torchao": "train",
    "safetensors": "train",
    "pydantic": "train",
    "yaml": "train",
    "skimage": "train",
    "tensorboard": "train",
    "optuna": "search",
    "litert_torch": "tflite",
    "ai_edge_quantizer": "tflite",
}


def pip_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'edgekit[{extra}]'"


@contextmanager
def needed(what: str, extra: str | None = None) -> Iterator[None]:
    """Turn the failed import of an optional library inside the block into the error that names the pip line.

    Args:
        what: what needs it, e.g. "compress".
        extra: the extra to name, where the block as a whole needs more than the missing library's own.
    Raises: MissingExtraError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        raise MissingExtraError.needs(what, library, extra or EXTRAS[library]) from error
