from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import contestants, published, quality, results, sets
from benchmarks.quality import Column, Run, measure
from edgekit.errors import CheckpointError, DataError, RecipeError, UnknownNameError
from edgekit.models import checkpoints, create


def _identity(stack: ExitStack) -> Run:
    return lambda image, sigma: sets.to_bytes(image)


def _set(count: int = 3) -> sets.ImageSet:
    rng = np.random.default_rng(0)
    # Far from black and white: nothing is clipped, so that the answer is known.
    return sets.ImageSet("CBSD68", tuple(rng.integers(120, 136, (64, 48, 3), dtype=np.uint8) for _ in range(count)))


def test_a_row_holds_what_was_measured() -> None:
    columns = {"int8": Column("ab", _identity), "unclipped": Column("cd", _identity, clipped=False, each=True)}
    with ThreadPoolExecutor(2) as pool:
        row = measure("dsunet-s", _set(), 15, columns, pool, workers=2)
    known = 20 * math.log10(255 / 15)
    figures = row["figures"]
    # Rounding adds a variance of 1/12 to 225: 0.002 dB; 3 x 9,216 samples give 0.05 dB.
    assert figures["noisy"]["psnr"] == pytest.approx(known, abs=0.15)
    assert figures["int8"]["psnr"] == figures["noisy"]["psnr"]
    assert figures["int8"]["sha256"] == "ab"
    assert 0 < figures["int8"]["ssim"] < 1
    assert "each" not in figures["int8"]
    assert np.mean(figures["unclipped"]["each"]) == pytest.approx(figures["unclipped"]["psnr"], abs=1e-3)
    assert (row["model"], row["set"], row["sigma"], row["images"]) == ("dsunet-s", "CBSD68", 15, 3)


def test_a_row_does_not_depend_on_the_workers() -> None:
    columns = {"int8": Column("ab", _identity)}
    found = []
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            row = measure("dsunet-s", _set(), 25, columns, pool, workers)
        found.append({k: v for k, v in row["figures"]["int8"].items() if k != "seconds"})
    assert found[0] == found[1]


def test_clipped_input_is_what_a_device_hands_over() -> None:
    seen: dict[str, NDArray[Any]] = {}

    def keep(name: str) -> Any:
        def open_one(stack: ExitStack) -> Run:
            def run(image: NDArray[Any], sigma: float) -> sets.Image:
                seen[name] = image
                return sets.to_bytes(image)

            return run

        return open_one

    white = sets.ImageSet("CBSD68", (np.full((32, 32, 3), 250, np.uint8),))
    columns = {"int8": Column("", keep("int8")), "unclipped": Column("", keep("unclipped"), clipped=False)}
    with ThreadPoolExecutor(1) as pool:
        measure("dsunet-s", white, 50, columns, pool)
    assert seen["int8"].dtype == np.uint8
    assert seen["unclipped"].max() > 300
    white_image = white.images[0]
    np.testing.assert_array_equal(seen["int8"], sets.to_bytes(sets.noisy(white_image, 50, 0)))
    np.testing.assert_array_equal(seen["unclipped"], sets.noisy_as_published(white_image, 50))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A test set of two images, a small peer with weights, and where results go."""
    from PIL import Image as pillow

    (tmp_path / "Set12").mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24), dtype=np.uint8)
        pillow.fromarray(pixels).save(tmp_path / "Set12" / f"{k}.png")
    model = create("dncnn-25", widths=[8])
    checkpoints.save(tmp_path / "w.safetensors", model)
    calls: list[int] = []

    def counted(*arguments: Any) -> sets.Image:
        calls.append(1)
        return denoise(*arguments)

    denoise = published.denoise
    monkeypatch.setattr(published, "denoise", counted)
    command = ["--data", str(tmp_path), "--sets", "Set12", "--models", "dncnn-25", "--workers", "1"]
    command += ["--weights", f"dncnn-25={tmp_path / 'w.safetensors'}", "--out", str(tmp_path / "out" / "q.json")]
    return {"command": command, "out": tmp_path / "out" / "q.json", "calls": calls, "folder": tmp_path}


def test_a_run_is_written_and_resumed(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    # Random weights: the published figure is not reproduced, which is exit code 1.
    assert quality.main(tiny["command"]) == 1
    assert "wrong: dncnn-25 on Set12 at sigma 25 gives" in capsys.readouterr().err
    first = results.load(tiny["out"])
    assert [(r["model"], r["sigma"], r["images"]) for r in first["rows"]] == [("dncnn-25", 25, 2)]
    assert first["models"][0]["sha256"] == first["rows"][0]["figures"]["unclipped"]["sha256"]
    assert len(tiny["calls"]) == 2
    quality.main(tiny["command"])
    assert len(tiny["calls"]) == 2, "a row that is there is not measured again"
    assert results.load(tiny["out"]) == first
    quality.main([*tiny["command"], "--fresh"])
    assert len(tiny["calls"]) == 4


def test_other_weights_are_measured_anew(tiny: dict[str, Any]) -> None:
    quality.main(tiny["command"])
    before = results.load(tiny["out"])["rows"][0]["figures"]["unclipped"]
    checkpoints.save(tiny["folder"] / "w.safetensors", create("dncnn-25", widths=[8]))
    quality.main(tiny["command"])
    after = results.load(tiny["out"])["rows"][0]["figures"]["unclipped"]
    assert len(tiny["calls"]) == 4
    assert after["sha256"] != before["sha256"]


def test_other_settings_start_over(tiny: dict[str, Any]) -> None:
    quality.main(tiny["command"])
    assert quality.main([*tiny["command"], "--limit", "1"]) == 0, "a quick look is not held to published figures"
    assert results.load(tiny["out"])["rows"][0]["images"] == 1


def test_a_quick_look_leaves_the_committed_results_alone() -> None:
    assert results.default("quality", quick=False) == results.FOLDER / "quality.json"
    assert "build" in results.default("quality", quick=True).parts


def test_results_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.json"
    results.save(path, {"rows": [{"a": 1}, {"b": 2}], "n": 3, "empty": []})
    assert json.loads(path.read_text()) == {"rows": [{"a": 1}, {"b": 2}], "n": 3, "empty": []}
    assert path.read_text().count("\n") == 8
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    with pytest.raises(DataError, match="no results at .*run `python -m benchmarks.none`"):
        results.load(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        results.load(path)


def test_models_without_weights_are_left_out_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "shipped", lambda: {"dsunet-s": Path("s")})
    assert contestants.measured(None, ["dsunet-s", "dsunet-l", "dncnn-25"], {}) == ["dsunet-s", "dncnn-25"]
    assert contestants.measured(None, ["dsunet-s", "dsunet-l"], {"dsunet-l": Path("u")}) == ["dsunet-s", "dsunet-l"]
    assert contestants.measured(["dsunet-l"], ["dsunet-s"], {}) == ["dsunet-l"]
    with pytest.raises(UnknownNameError, match="unknown weights 'dsunet-l'"):
        contestants.load("dsunet-l", weights={})


def test_bad_flags_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'dsunet-x'"):
        quality.main(["--models", "dsunet-x"])
    with pytest.raises(RecipeError, match="--limit is 0"):
        quality.main(["--limit", "0"])
    with pytest.raises(RecipeError, match="--weights 'unet': expected NAME=FILE"):
        contestants.weights_of(["unet"])
    with pytest.raises(CheckpointError, match="no weights at .*--kair"):
        contestants.load("ffdnet-color", weights={}, kair=tmp_path)
