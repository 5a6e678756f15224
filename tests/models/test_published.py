"""dncnn and ffdnet with their published weights, on corners of a few test images.

The expected figures were computed apart from edgekit: the networks written out in plain convolutions from the keys of
the files, noise and PSNR in numpy. On the whole sets, `train.evaluate(..., device_input=False)` gives the published
figures: `benchmarks/` prints them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit import models
from edgekit.errors import CheckpointError
from edgekit.train.decode import decode
from edgekit.train.images import Picture, image_files
from edgekit.train.validation import evaluate

_CASES = [
    ("ffdnet-color", "ffdnet_color", "CBSD68", {15: 36.8740, 25: 34.1635, 50: 30.8819}),
    ("dncnn-color-blind", "dncnn_color_blind", "CBSD68", {15: 36.9528, 25: 34.2299, 50: 30.7177}),
    ("dncnn-25", "dncnn_25", "Set12", {25: 32.5722}),
]


@pytest.mark.parametrize(("name", "file", "folder", "expected"), _CASES, ids=[case[0] for case in _CASES])
def test_published_weights(shared_data: Path, name: str, file: str, folder: str, expected: dict[int, float]) -> None:
    model = models.load(shared_data / "weights" / "kair" / f"{file}.pth", name)
    pictures = []
    for path in image_files(shared_data / "data" / "test" / folder)[:2]:
        # An odd size, as CBSD68 has: what stride 2 does not divide is padded.
        corner = np.ascontiguousarray(decode(path, model.channels)[:161, :161])
        pictures.append(Picture.of(path.name, corner))
    for sigma, psnr in expected.items():
        found = evaluate(model, pictures, sigma, device_input=False)
        # Rounding to 8 bits turns a difference of 1e-6 into a level now and then: 0.001 dB is room enough.
        assert found.psnr == pytest.approx(psnr, abs=1e-3)


def test_weights_of_another_network_are_refused(shared_data: Path) -> None:
    kair = shared_data / "weights" / "kair"
    with pytest.raises(
        CheckpointError,
        match=r"does not fit ffdnet-color .*of dncnn-color-blind .*unexpected model\.24\.bias.* and 13 more",
    ):
        models.load(kair / "dncnn_color_blind.pth", "ffdnet-color")
    with pytest.raises(
        CheckpointError, match=r"model\.0\.weight is \[64, 1, 3, 3\] where the model has \[64, 3, 3, 3\]"
    ):
        models.load(kair / "dncnn_25.pth", "dncnn-25", channels=3)
