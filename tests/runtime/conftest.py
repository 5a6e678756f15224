from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny_tflite import Stand


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    """A tiny colour denoiser in every variant, tile 32."""
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    from tiny_tflite import stand

    return stand(Path(tmp_path_factory.mktemp("tiny")), "int8", "int8-uint8io", "fp32", tile=32)


@pytest.fixture(scope="session")
def tiny_large(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    """The same network with tile 128, which the test images fit into whole."""
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    from tiny_tflite import stand

    return stand(Path(tmp_path_factory.mktemp("tiny_large")), "int8", "int8-uint8io", "fp32", tile=128)
