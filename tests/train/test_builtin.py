"""The built-in set: free, inside the wheel, split."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DataError, MissingExtraError
from edgekit.train import builtin
from edgekit.train.images import ImageSource, open_images


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return open_images(patch=96)


@pytest.mark.parametrize("image", builtin.FREE_IMAGES, ids=lambda image: image.function)
def test_its_docstring_says_that_it_is_free(image: builtin.FreeImage) -> None:
    data = importlib.import_module("skimage.data")
    words = " ".join(getattr(data, image.function).__doc__.split())
    assert image.terms in words
    assert "CC0" in image.terms or "public domain" in image.terms.lower()


@pytest.mark.parametrize("image", builtin.FREE_IMAGES, ids=lambda image: image.function)
def test_it_comes_with_the_wheel(image: builtin.FreeImage) -> None:
    # What pip installed; a file that was downloaded later is not on the list.
    files = {str(f) for f in importlib.metadata.files("scikit-image") or []}
    assert str(Path("skimage", "data", image.file)) in files


def test_some_train_and_others_judge(source: ImageSource) -> None:
    assert {p.name for p in source.held_out} == {"skimage/chelsea.png", "skimage/coffee.png"}
    assert not {p.digest for p in source.training} & {p.digest for p in source.held_out}
    assert len(source.training) == len(builtin.FREE_IMAGES) - 2 + builtin.LEAVES
    assert source.name == "built-in"
    assert "CC0" in source.licence
    pixels = sum(p.shape[0] * p.shape[1] for p in source.training)
    assert 3e6 < pixels < 6e6
    assert all(p.shape[0] * p.shape[1] < 0.1 * pixels for p in source.training)  # none outweighs the rest


def test_seeded(source: ImageSource) -> None:
    again = builtin.builtin(leaves=2)
    other = builtin.builtin(leaves=2, seed=1)
    digests = [p.digest for p in source.training]
    assert [p.digest for p in again.training] == digests[: len(again.training)]
    assert [p.digest for p in other.training[-2:]] != [p.digest for p in again.training[-2:]]


def test_gray() -> None:
    source = builtin.builtin(channels=1, leaves=2)
    assert source.channels == 1
    assert {p.shape[2] for p in (*source.training, *source.held_out)} == {1}


def test_shrinking_averages(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    pixels = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    Pillow.fromarray(pixels).save(tmp_path / "x.png")
    image = builtin.FreeImage("x", "x.png", "CC0", shrink=2)
    # 2x2 means of rows 0 and 1: (0 + 1 + 7 + 8) / 4 = 4, then 2 more per cell; rows 2 and 3 are 14 more.
    assert builtin._reader(tmp_path, image, 1)()[:, :, 0].tolist() == [[4, 6, 8], [18, 20, 22]]


def test_patches_larger_than_the_images() -> None:
    with pytest.raises(DataError, match="patch is 300: the built-in images take at most 256"):
        open_images(patch=300)


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"needs scikit-image, .* pip install 'edgekit\[train\]'"):
        open_images()


def test_more_dead_leaves_can_be_had() -> None:
    assert sum("dead leaves" in p.name for p in open_images(patch=96, leaves=3).training) == 3
