"""Images of more than 8 bits keep their precision on the whole way: file, command, float model, file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekit import models
from edgekit.cli.outcome import run
from edgekit.runtime.deep_color import write_png
from edgekit.runtime.denoiser import open as open_bundle
from edgekit.runtime.images import load


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped student by calibration alone."""
    pytest.importorskip("litert_torch")
    import edgekit

    out = tmp_path_factory.mktemp("deep")
    return edgekit.compress(target="tflite", prune=0, steps=0, tile=256, max_drop=2, out=out).folder


def network_output(image: NDArray[np.uint16], sigma: float) -> NDArray[np.float64]:
    """What the bundle's original gives for 16-bit pixels in torch, mirrored at the borders as the runtime does."""
    model = models.load("dsunet-s")
    border = -(-model.halo // model.stride) * model.stride
    height, width = image.shape[:2]
    ends = [border + -side % model.stride for side in (width, height)]
    planes = torch.from_numpy(image.astype(np.float32) / 65535).permute(2, 0, 1)[None]
    padded = torch.nn.functional.pad(planes, (border, ends[0], border, ends[1]), "reflect")
    with torch.no_grad():
        clean = model(padded, torch.tensor([sigma / 255]))[0].permute(1, 2, 0).double().numpy()
    return 65535 * clean[border : border + height, border : border + width]


def test_a_16_bit_ramp_comes_out_in_fine_steps(bundle: Path, tmp_path: Path) -> None:
    # 90 of 65535 a pixel: a third of what 8 bits can tell apart.
    row = np.linspace(8000, 56000, 530).astype(np.uint16)
    ramp = np.tile(row[None, :, None], (48, 1, 3))
    with (tmp_path / "ramp.png").open("wb") as stream:
        write_png(stream, ramp, None, None)
    words = ["denoise", str(tmp_path / "ramp.png"), "-o", str(tmp_path / "out.png"), "--model", str(bundle)]
    assert run([*words, "--sigma", "2"]) == 0
    clean = load(tmp_path / "out.png").pixels
    assert clean.dtype == np.uint16
    # The image's own edges are mirrored: a ramp has a corner there.
    inside = clean[:, 16:-16].astype(int)
    # Every step of the network's own output arrives, where steps of 8 bits would be 257 apart. That output is not
    # itself monotone to 16 bits: where it is bright it falls by up to 20, as trained weights may.
    assert np.abs(inside - network_output(ramp, sigma=2)[:, 16:-16]).max() <= 2
    assert min(len(np.unique(line[:, 1])) for line in inside) > 400
    assert np.diff(inside, axis=1).min() > -257 / 2
    assert np.abs(inside - ramp[:, 16:-16]).max() < 257
    # By integers the fine bits are kept as well, but what is taken for noise is in steps of 8 bits.
    with open_bundle(bundle, variant="int8") as denoiser:
        coarse = denoiser(ramp, sigma=2)[:, 16:-16].astype(int)
    assert len(np.unique(coarse[24, :, 1])) > 400
    assert np.abs(coarse - ramp[:, 16:-16]).max() < 6 * 257
