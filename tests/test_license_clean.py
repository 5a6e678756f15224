"""`--license-clean`: nothing that is for research alone gets into a product, by whichever door."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from smooth_folder import write_smooth
from weights_shelf import with_free_weights

pytest.importorskip("litert_torch")

from edgekit import models, pipeline
from edgekit.cli.outcome import run
from edgekit.errors import LicenceError
from edgekit.models import checkpoints
from edgekit.recipe import Recipe, SearchRecipe, TrainSettings, make
from edgekit.search import study
from edgekit.stage_data import open_stage_data
from edgekit.train.images import open_images
from edgekit.train.run import train

QUICK = TrainSettings(steps=1, batch=1, patch=16, precision="32-true", accelerator="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_smooth(tmp_path / "photos")


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of shipped weights that are free for any use."""
    with_free_weights(tmp_path / "shelf", monkeypatch, {"licence": "CC0", "use": "any"})
    return "dsunet-s-free"


def recipe(**settings: object) -> Recipe:
    return make(Recipe, {"target": "tflite", "license_clean": True, **settings})


def test_compress_takes_free_weights_by_their_name(free: str) -> None:
    _, original, _ = pipeline._prepare(recipe(model=free))
    assert original.parameter_count() == models.create("dsunet-s").parameter_count()
    assert pipeline._stem(recipe(model=free).model) == free


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"weights 'dsunet-s' \(.*\) is for research .*: use dsunet-s-free, or"),
        ({"model": "dsunet-s-free", "teacher": "dsunet-l"}, r"teacher 'dsunet-l' .*--teacher none"),
        ({"model": "dsunet-s-free", "data": "bsds"}, r"data '.*bsds' is for .* \(BSDS\): give images"),
    ],
)
def test_compress_refuses(free: str, photos: Path, settings: dict[str, str], message: str) -> None:
    if "data" in settings:
        folder = photos.rename(photos.with_name("bsds"))
        (folder / "licence.yaml").write_text("licence: BSDS\nuse: non-commercial\n")
        settings = {**settings, "data": str(folder)}
    with pytest.raises(LicenceError, match=message):
        pipeline.plan(recipe(**settings))
    # Unasked, it is allowed, and told.
    pipeline.plan(recipe(**settings, license_clean=False))


def test_the_flag_reaches_every_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (
        ["compress", "--target", "tflite", "--dry-run"],
        ["train", "dsunet-s", "--weights", "dsunet-s", "--out", str(tmp_path / "run")],
        ["train", "dsunet-s", "--teacher", "dsunet-l", "--out", str(tmp_path / "run")],
    ):
        assert run([*words, "--license-clean"]) == 2
        assert "is for research or other non-commercial use alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_search_refuses_images(photos: Path, tmp_path: Path) -> None:
    (photos / "licence.yaml").write_text("licence: BSDS\nuse: non-commercial\n")
    settings = make(SearchRecipe, {"budget": 40, "data": photos, "license_clean": True})
    with pytest.raises(LicenceError, match="BSDS"):
        study.search(settings, out=tmp_path / "s.yaml")


def test_what_a_model_learned_from_taints_it(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.safetensors"
    models.save(teacher, models.create("dsunet-n"), {"licence": "for research", "use": "non-commercial"})
    own = train("dsunet-n", photos, QUICK, tmp_path / "own", license_clean=True)
    assert checkpoints.metadata(own.path)["use"] == "owner"
    taught = train("dsunet-n", photos, QUICK, tmp_path / "taught", teacher=teacher)
    assert checkpoints.metadata(taught.path)["use"] == "non-commercial"
    # Once removed, it still shows.
    with pytest.raises(
        LicenceError, match=r"weights '.*taught.*' is for .* \(as the owner of the images states; for res"
    ):
        train("dsunet-n", photos, QUICK, tmp_path / "again", weights=taught.path, license_clean=True)


def test_a_bundle_says_what_it_may_be_used_for(photos: Path) -> None:
    images = open_stage_data(recipe(data=photos, license_clean=False), 3)
    told = pipeline._licences(recipe(license_clean=False), images)
    assert told["use"] == "non-commercial"
    assert told["data"] == "as the owner of the images states"
    assert open_images(None, patch=96).use == "any"
