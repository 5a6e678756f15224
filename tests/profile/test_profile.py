"""Noise profiles: synthetic Poisson-Gaussian images give their shot and read noise back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from edgekit.cli.outcome import run
from edgekit.errors import DataError, RecipeError
from edgekit.profile import IsoProfile, NoiseProfile, chart, fit, iso_folders, measure, recipe_file
from edgekit.profile.jpeg import jpeg_quality
from edgekit.recipe import Recipe, load_recipe, make


def scene(phase: float = 0, side: int = 384) -> np.ndarray:
    """Shading from dark to bright, with a textured part."""
    y, x = np.mgrid[0:side, 0:side]
    smooth = 0.5 + 0.4 * np.sin(x / 60 + phase) * np.cos(y / 45)
    texture = 0.08 * (((x // 5 + y // 7) % 2) * (x > 0.6 * side))
    return np.clip((smooth + texture)[..., None] * np.array([1.0, 0.8, 0.6]), 0, 1)


def shot_at(shot: float, read: float, phase: float = 0) -> np.ndarray:
    rng = np.random.default_rng(round(1e6 * shot) + round(10 * phase))
    clean = scene(phase)
    noisy = rng.poisson(clean / shot) * shot + rng.normal(0, read / 255, clean.shape)
    return np.clip(np.rint(255 * noisy), 0, 255).astype(np.uint8)


def camera_folder(folder: Path, settings: dict[str, tuple[float, float]], count: int = 2) -> Path:
    for name, (shot, read) in settings.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(shot_at(shot, read, k)).save(folder / name / f"{k}.png")
    return folder


@pytest.mark.parametrize(("shot", "read"), [(0.01, 2), (0.002, 4), (0.001, 1), (0.004, 0), (0.0001, 6)])
def test_shot_and_read_come_out(shot: float, read: float) -> None:
    found = fit(shot_at(shot, read, phase) for phase in range(3))
    # A weak part is known less well: to 4% of the whole variance at middle gray.
    whole = shot * 0.5 + (read / 255) ** 2
    assert found.shot == pytest.approx(shot, rel=0.1, abs=2 * 0.04 * whole)
    assert (found.read / 255) ** 2 == pytest.approx((read / 255) ** 2, rel=0.1, abs=0.04 * whole)
    assert found.at(0.5) == pytest.approx(255 * np.sqrt(whole), rel=0.05)
    noise = 255 * np.sqrt(np.mean([shot * scene(p) + (read / 255) ** 2 for p in range(3)]))
    assert found.level == pytest.approx(noise, rel=0.06)


def test_depth_and_gray_do_not_matter() -> None:
    images = [shot_at(0.004, 3, phase) for phase in range(3)]
    expected = fit(images)
    wide = fit(image.astype(np.uint16) * 257 for image in images)
    # 8 bits round, which is taken off; what was made of them has 16.
    assert (wide.shot, wide.read) == pytest.approx((expected.shot, expected.read), rel=0.02)
    assert fit(image[..., 0] for image in images).shot == pytest.approx(0.004, rel=0.1)


def test_rounding_to_8_bits_is_no_read_noise() -> None:
    # Its variance is 1/12, a third of that of the read noise.
    found = fit(shot_at(1e-6, 0.5, phase) for phase in range(3))
    assert found.read == pytest.approx(0.5, rel=0.1)


def test_one_brightness_is_no_line() -> None:
    flat = np.full((200, 200, 3), 128, np.uint8) + np.random.default_rng(0).integers(0, 5, (200, 200, 3), np.uint8)
    with pytest.raises(DataError, match="in 1 of 24 ranges of brightness: a line needs at least 2"):
        fit([flat])
    with pytest.raises(DataError, match="0 blocks of 16x16"):
        fit([])


def test_folders_are_sorted_by_iso(tmp_path: Path) -> None:
    camera_folder(tmp_path, {"iso_3200": (0.01, 4), "ISO100": (0.001, 1), "800": (0.004, 2), "notes": (0.01, 2)}, 1)
    found, left = iso_folders(tmp_path)
    assert [folder.iso for folder in found] == [100, 800, 3200]
    assert left == ["notes"]
    (tmp_path / "loose.png").touch()
    assert iso_folders(tmp_path)[1] == ["notes", "loose.png"]
    assert iso_folders(tmp_path / "ISO100")[0][0].iso == 100
    assert iso_folders(tmp_path / "notes")[0][0].iso is None
    (tmp_path / "ISO 800").mkdir()
    with pytest.raises(DataError, match="800 and .*800 in .* are both ISO 800: join them"):
        iso_folders(tmp_path)
    with pytest.raises(DataError, match="no folder at .*missing"):
        iso_folders(tmp_path / "missing")


def test_an_image_that_cannot_be_read_is_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camera_folder(tmp_path / "shots", {"ISO100": (0.001, 1)})
    (tmp_path / "shots" / "ISO100" / "bad.png").write_bytes(b"no image")
    words = ["profile", str(tmp_path / "shots"), "--out", str(tmp_path / "out")]
    assert run(words) == 0
    assert "note: skipped: " in (said := capsys.readouterr().err)
    assert "bad.png cannot be read" in said
    for path in (tmp_path / "shots" / "ISO100").glob("[01].png"):
        path.unlink()
    assert run([*words, "--force"]) == 2
    assert "ISO100: none of its 1 images can be read" in capsys.readouterr().err


def test_the_command_writes_a_chart_and_a_recipe_that_compress_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera_folder(tmp_path / "shots", {"ISO100": (0.001, 1), "ISO1600": (0.008, 4)})
    words = ["profile", str(tmp_path / "shots"), "--out", str(tmp_path / "out")]
    assert run(words) == 0
    said = capsys.readouterr()
    assert "ISO 1600" in said.out
    assert "white" in said.out
    page = (tmp_path / "out" / "profile.html").read_text()
    assert page.count("<polyline") == 2
    assert "http" not in page
    recipe = load_recipe(tmp_path / "out" / "profile.yaml")
    assert recipe.noise.model == "poisson-gaussian"
    assert recipe.noise.shot[0] < 0.001 < 0.008 < recipe.noise.shot[1]
    assert sorted(recipe.iso_sigma) == [100, 1600]
    assert recipe.iso_sigma[1600] == pytest.approx(255 * np.sqrt(0.008 * scene().mean() + (4 / 255) ** 2), rel=0.1)
    assert recipe.sigma[1] > recipe.iso_sigma[1600]
    assert run(words) == 2
    assert "profile.html exists: use --force" in capsys.readouterr().err
    assert run([*words, "--force"]) == 0


def test_an_unknown_target_is_refused_before_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ISO100").mkdir()
    (tmp_path / "ISO100" / "a.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert run(["profile", str(tmp_path), "--target", "tflit", "--out", str(out)]) == 2
    assert "unknown target 'tflit'" in capsys.readouterr().err
    assert not out.exists()


def test_correlated_noise_proposes_the_camera_model(tmp_path: Path) -> None:
    import torch

    from edgekit import noise_header
    from edgekit.recipe import NoiseSettings
    from edgekit.train import noise

    clean = torch.from_numpy(scene()).permute(2, 0, 1)[None].float()
    settings = NoiseSettings(model="camera", shot=(0.004, 0.004), jpeg_share=0)
    noisy, _ = noise.draw(clean, settings, torch.Generator().manual_seed(0))
    (tmp_path / "ISO3200").mkdir()
    Image.fromarray((255 * noisy[0]).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "ISO3200" / "a.png")
    (found,) = measure(iso_folders(tmp_path)[0])
    assert found.correlated
    assert found.sigma > found.line.level
    recipe = make(Recipe, yaml.safe_load(recipe_file.text([found], "shots", "openvino")))
    assert (recipe.model, recipe.noise.model, recipe.target) == ("dsunet-s-camera", "camera", "openvino")
    # The weights that it names were trained on this very noise.
    known = noise_header.read(recipe.model)
    assert known is not None
    assert recipe.noise == known.model_copy(update={"sigma": recipe.noise.sigma, "device_share": 1.0})
    # An estimate that is too low must not keep out the right level.
    assert recipe.sigma == (0, 55)
    # Of several ISOs the kind that most images have.
    white = replace(found, iso=100, images=3, correlated=False)
    mixed = make(Recipe, yaml.safe_load(recipe_file.text([white, found], "shots", "openvino")))
    assert (mixed.model, mixed.noise.model, list(mixed.iso_sigma)) == ("dsunet-s", "poisson-gaussian", [100])
    assert list(recipe.iso_sigma) == [3200]
    assert "correlated" in chart.render([found], "shots & <more>")
    assert "shots &amp; &lt;more&gt;" in chart.render([found], "shots & <more>")
    assert "Left out: &lt;b&gt;." in chart.render([found], "shots", ["left out: <b>"])


@pytest.mark.parametrize("quality", [20, 75, 93, 100])
def test_a_file_tells_its_jpeg_quality(tmp_path: Path, quality: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=quality)
    assert jpeg_quality(tmp_path / "a.jpg") == quality
    # A camera's own tables, here a quarter coarser, are like those of some lower quality.
    with Image.open(tmp_path / "a.jpg") as image:
        own = {key: [min(255, -(-5 * step // 4)) for step in table] for key, table in image.quantization.items()}
    Image.fromarray(noise).save(tmp_path / "own.jpg", qtables=own)
    found = jpeg_quality(tmp_path / "own.jpg")
    assert found is not None
    assert quality - 12 <= found < quality


def test_what_is_no_jpeg_tells_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert jpeg_quality(tmp_path / "a.png") is None
    assert jpeg_quality(tmp_path / "b.jpg") is None


def test_the_recipe_of_correlated_noise_takes_jpeg_from_the_files() -> None:
    line = NoiseProfile(0.01, 3, (0.5,), (18,), 18)
    profiles = [IsoProfile(100, 3, line, 9, True, (91, 96)), IsoProfile(800, 1, line, 15, True, (88,))]
    noise = make(Recipe, yaml.safe_load(recipe_file.text(profiles, "shots", "tflite"))).noise
    assert (noise.jpeg_share, noise.quality) == (0.75, (88, 96))
    # Of the others it takes nothing.
    white = replace(profiles[1], iso=200, correlated=False)
    unread = replace(profiles[0], qualities=())
    noise = make(Recipe, yaml.safe_load(recipe_file.text([unread, white], "shots", "tflite"))).noise
    assert (noise.jpeg_share, noise.quality) == (0.5, (75, 98))


def test_levels_beyond_the_usual_range_widen_it() -> None:
    line = NoiseProfile(0.01, 3, (0.5,), (18,), 18)
    loud = make(Recipe, yaml.safe_load(recipe_file.text([IsoProfile(51200, 3, line, 60, True)], "shots", "tflite")))
    assert loud.sigma[1] > 60


def test_the_command_says_how_images_were_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camera_folder(tmp_path / "shots", {"ISO100": (0.001, 1)})
    for path in (tmp_path / "shots" / "ISO100").iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=95)
    assert run(["profile", str(tmp_path / "shots"), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    expected = "note: 2 of the 4 images that the recipe is from are JPEG, of libjpeg's quality 95 or like it, "
    assert expected + "of which its noise knows nothing: rather profile PNGs" in said


def test_the_table_must_lie_in_the_range() -> None:
    with pytest.raises(RecipeError, match="iso_sigma gives 60 for ISO 6400, outside sigma 0:55: widen sigma"):
        load_recipe(target="tflite", iso_sigma={6400: 60})


def test_the_line_has_units() -> None:
    line = NoiseProfile(0.01, 3, (0.5,), (18,), 18)
    assert line.at(0) == pytest.approx(3)
    assert line.at(1) == pytest.approx(255 * np.sqrt(0.01 + (3 / 255) ** 2))
