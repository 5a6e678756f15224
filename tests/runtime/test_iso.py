"""ISO to noise level: looked up, interpolated, refused outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_bundle import rehash, tiny_manifest, write_tiny
from PIL import Image

from edgekit.bundle import schema
from edgekit.cli.outcome import run
from edgekit.errors import BundleError, RecipeError
from edgekit.runtime.denoiser import open as open_bundle
from edgekit.runtime.iso import sigma_of_iso

TABLE = {"100": 2.0, "1600": 8.0, "400": 4.0}


@pytest.mark.parametrize(("iso", "sigma"), [(100, 2), (400, 4), (1600, 8), (200, 8**0.5), (800, 32**0.5)])
def test_noise_grows_with_gain(iso: float, sigma: float) -> None:
    assert sigma_of_iso(TABLE, iso) == pytest.approx(sigma)


def test_a_level_of_zero_is_interpolated_too() -> None:
    assert sigma_of_iso({"100": 0.0, "400": 4.0}, 200) == pytest.approx(2)
    assert sigma_of_iso({"100": 3.0}, 100) == 3


def test_what_the_table_does_not_hold_is_refused() -> None:
    for iso in (50, 3200, float("nan")):
        with pytest.raises(RecipeError, match="this bundle's table reaches from 100 to 1600; give sigma instead"):
            sigma_of_iso(TABLE, iso)
    with pytest.raises(RecipeError, match="has no table of ISO and sigma: .*edgekit profile"):
        sigma_of_iso({}, 100)


def test_the_manifest_carries_it_and_older_ones_are_read() -> None:
    files = {v.file: "0" * 64 for v in tiny_manifest().variants} | {"golden.npz": "a" * 64}
    manifest = replace(tiny_manifest(files=files), iso_sigma=TABLE)
    assert schema.loads(schema.dumps(manifest)).iso_sigma == TABLE
    without = schema.dumps(replace(manifest, iso_sigma={}))
    # As bundles were before, so that readers from then take it.
    assert "iso_sigma" not in json.loads(without)
    assert schema.loads(without).iso_sigma == {}
    for table, message in (
        ({"ISO100": 3.0}, "expected ISO settings as keys"),
        ({"100": 300.0}, r"field 'iso_sigma\['100'\]' is 300.0: expected"),
        ({"100": "3"}, "expected a number"),
    ):
        data = json.loads(schema.dumps(manifest))
        with pytest.raises(BundleError, match=message):
            schema.from_dict({**data, "iso_sigma": table})


def test_denoise_takes_an_iso(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny(tmp_path / "tiny.edgekit")
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(tmp_path / "in.png")
    words = ["denoise", str(tmp_path / "in.png"), "--model", str(bundle), "-o", str(tmp_path / "out.png")]
    assert run([*words, "--iso", "400"]) == 2
    assert "has no table of ISO and sigma" in capsys.readouterr().err
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    low, high = data["sigma"]
    path.write_text(json.dumps({**data, "iso_sigma": {"100": low, "1600": high}}))
    rehash(bundle)
    with open_bundle(bundle) as denoiser:
        assert low < (denoiser.sigma_of_iso(400) or 0) < high
    assert run([*words, "--iso", "1600"]) == 0
    assert f"sigma {high:.1f} for ISO 1600, from the bundle's table" in capsys.readouterr().err
    assert run([*words, "--iso", "100", "--sigma", "5", "--force"]) == 2
    assert "both name a noise level" in capsys.readouterr().err
