"""What the device part may load: it runs where only numpy and one engine are installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    *("torch", "torchao", "pydantic", "typer", "rich", "yaml", "safetensors", "skimage", "scipy", "tifffile"),
    *("tensorflow", "ai_edge_litert", "tflite_runtime", "litert_torch", "openvino", "onnxruntime", "onnx", "tensorrt"),
    *("edgekit.models", "edgekit.train", "edgekit.compress", "edgekit.targets"),
}


@pytest.mark.parametrize(
    "module",
    [
        *("denoiser", "tiling", "estimate", "quality", "images", "pixels", "check", "compare", "bench", "memory"),
        *("engines.registry", "engines.litert", "engines.openvino", "engines.onnxruntime", "engines.tensorrt"),
    ],
)
def test_importing_the_runtime_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, edgekit.runtime.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"edgekit.runtime.{module}" in loaded
    assert not loaded & HEAVY
