from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bundle import scenes, write_tiny
from PIL import Image

from benchmarks import int8, results, tables
from edgekit.runtime.denoiser import open as open_bundle
from edgekit.runtime.quality import psnr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("CBSD68", "McMaster"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for k, image in enumerate(scenes(2, 64, seed=len(name))):
            Image.fromarray(image).save(tmp_path / "test" / name / f"{k}.png")
    return tmp_path / "test"


def test_what_integers_cost_a_bundle(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = write_tiny(tmp_path / "tiny.edgekit"), tmp_path / "int8.json"
    words = [str(bundle), "--data", str(data), "--sigmas", "25", "--out", str(out), "--workers", "1"]
    assert int8.main(words) == 0
    rows = results.load(out)["rows"]
    assert [(r["set"], r["sigma"], r["images"]) for r in rows] == [("CBSD68", 25, 2), ("McMaster", 25, 2)]
    assert all(r["lost"] == pytest.approx(r["fp32"] - r["int8"], abs=1e-3) for r in rows)
    assert all(r["lost"] != 0 for r in rows)
    assert f"{rows[0]['lost']:.3f}" in capsys.readouterr().out
    # Again: the same rows, each once.
    assert int8.main([*words, "--sigmas", "50", "25"]) == 0
    again = results.load(out)["rows"]
    assert len(again) == 4
    kept = {(r["set"], r["sigma"]): r for r in again}
    assert [kept["CBSD68", 25], kept["McMaster", 25]] == rows
    table = tables.integers(tmp_path)
    assert table.splitlines()[0] == "|  | ranges from | MACs in int8 | CBSD68: 25 | 50 | McMaster: 25 | 50 |"
    assert f"{rows[0]['lost']:.2f}" in table


def test_the_float_file_of_two_bundles_is_run_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = write_tiny(tmp_path / "tiny.edgekit"), tmp_path / "int8.json"
    words = [str(bundle), "--data", str(data), "--sigmas", "25", "--out", str(out), "--workers", "1"]
    assert int8.main(words) == 0
    ran, real = [], int8.measure

    def watched(name: Any, chosen: Any, sigma: Any, columns: Any, *rest: Any) -> Any:
        ran.append(set(columns))
        return real(name, chosen, sigma, columns, *rest)

    monkeypatch.setattr(int8, "measure", watched)
    before = results.load(out)["rows"]
    assert int8.main([*words, "--sigmas", "25", "15"]) == 0
    assert ran == [{"int8"}, {"int8", "fp32"}] * 2
    assert [r for r in results.load(out)["rows"] if r["sigma"] == 25] == before
    # Other images of the same name are other images.
    for k, image in enumerate(scenes(2, 64, seed=99)):
        Image.fromarray(image).save(data / "CBSD68" / f"{k}.png")
    ran.clear()
    assert int8.main(words) == 0
    assert ran == [{"int8", "fp32"}, {"int8"}]


def test_both_files_see_the_same_noise(data: Path, tmp_path: Path) -> None:
    from benchmarks import sets

    bundle, out = write_tiny(tmp_path / "tiny.edgekit"), tmp_path / "int8.json"
    int8.main([str(bundle), "--data", str(data), "--sigmas", "15", "--out", str(out)])
    row: dict[str, Any] = results.load(out)["rows"][0]
    images = sets.read(data, "CBSD68").images
    for variant, figure in (("fp32", "fp32"), ("int8", "int8")):
        with open_bundle(bundle, variant=variant, threads=1) as denoiser:
            noisy = [sets.to_bytes(sets.noisy(image, 15, k)) for k, image in enumerate(images)]
            scores = [psnr(denoiser(n, sigma=15), image) for n, image in zip(noisy, images, strict=True)]
        assert row[figure] == pytest.approx(float(np.mean(scores)), abs=1e-3)
