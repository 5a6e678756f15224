from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import exports, published, quality
from benchmarks.contestants import Contestant
from edgekit.bundle.golden import Golden
from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError
from edgekit.models import create
from edgekit.runtime.denoiser import Denoiser

pytest.importorskip("litert_torch")


@pytest.fixture(scope="module", params=["dncnn-color-blind", "ffdnet-color"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Contestant, Bundle]:
    """A small peer, one that takes no noise level and one whose output is no difference."""
    torch.manual_seed(0)
    model = create(request.param, widths=[8]).eval()
    contestant = Contestant(request.param, Path("weights"), "0" * 64, model)
    return contestant, exports.export(contestant, 32, tmp_path_factory.mktemp("exports"))


def test_an_export_is_the_model(exported: tuple[Contestant, Bundle]) -> None:
    contestant, bundle = exported
    noisy = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    whole = published.denoise(contestant.model, noisy.astype(np.float64), 25)
    found = {}
    for variant in ("fp32", "int8"):
        with Denoiser.from_bundle(bundle, variant, 1) as denoiser:
            found[variant] = denoiser(noisy, sigma=25).astype(int)
    inside = np.s_[6:-6, 6:-6]  # torch pads with zeros where the runtime mirrors
    # A float that lies on the edge between two bytes may fall to either side.
    assert np.abs(found["fp32"] - whole)[inside].max() <= 1
    # The ranges are those of built-in photographs, not of this noise: many values clip. It is INT8 of the same model.
    assert np.corrcoef(found["int8"].ravel(), found["fp32"].ravel())[0, 1] > 0.9
    assert (found["int8"] != found["fp32"]).any()
    assert all(layer.dtype == "int8" for layer in bundle.manifest.layers)


def test_an_export_is_made_once(exported: tuple[Contestant, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    contestant, bundle = exported
    monkeypatch.setattr(exports, "_write", None)
    again = exports.export(contestant, 32, bundle.folder.parent)
    assert again.folder == bundle.folder
    with pytest.raises(TypeError):
        exports.export(replace(contestant, sha256="1" * 64), 32, bundle.folder.parent)


def test_a_bundle_of_other_weights_is_refused(
    exported: tuple[Contestant, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundle = exported
    quality.same_origin(bundle, bundle)
    golden = bundle.golden()
    other = replace(golden, fp32_original=Golden.pack(1 - golden.fp32_original / 65535))
    monkeypatch.setattr(bundle, "_golden", other)
    with pytest.raises(BundleError, match="compressed from other weights"):
        quality.same_origin(bundle, bundle)


def test_the_tile_covers_an_image_with_its_halo() -> None:
    student, ffdnet = create("dsunet-s"), create("ffdnet-color")
    assert (student.halo, student.stride, exports.tile_for(student, 500)) == (23, 4, 548)
    assert (ffdnet.halo, ffdnet.stride) == (25, 2)
    assert exports.tile_for(ffdnet, 500) == 552
