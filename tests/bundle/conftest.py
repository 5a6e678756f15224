"""One small real bundle for all tests of the bundle; a test that alters it takes a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from golden_bundle import write_tiny


@pytest.fixture(scope="session")
def written_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, not to be altered."""
    return write_tiny(tmp_path_factory.mktemp("bundle") / "golden-tiny-tflite.edgekit")


@pytest.fixture
def bundle_copy(written_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be altered."""
    return Path(shutil.copytree(written_bundle, tmp_path / "copy.edgekit"))
