"""No test image is ever trained on: neither the same pixels nor the same picture in another format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from edgekit.models import shipped
from edgekit.models.checkpoints import metadata
from edgekit.recipe import TrainRecipe
from edgekit.train.builtin import builtin
from edgekit.train.decode import Image, decode
from edgekit.train.images import image_files, pixel_digest

_ROOT = Path(__file__).resolve().parents[2]


def fingerprint(image: Image) -> NDArray[np.float32]:
    """A 16x16 thumbnail of zero mean and unit length: JPEG, scaling and light leave it nearly as it was."""
    from PIL import Image as Pillow

    small = np.asarray(Pillow.fromarray(image).convert("L").resize((16, 16), Pillow.Resampling.BOX), np.float32)
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def views(thumbnail: NDArray[np.float32]) -> NDArray[np.float32]:
    """The thumbnail in its eight flips and rotations, [8, 256]."""
    turned = [np.rot90(t, k) for t in (thumbnail, thumbnail[:, ::-1]) for k in range(4)]
    return np.stack([t.ravel() for t in turned])


def read(folder: Path) -> tuple[set[str], NDArray[np.float32]]:
    images = [decode(path, 3) for path in image_files(folder)]
    return {pixel_digest(image) for image in images}, np.stack([fingerprint(image) for image in images])


@pytest.fixture(scope="module")
def judges(shared_data: Path) -> tuple[set[str], NDArray[np.float32]]:
    """Digests and thumbnails of everything that is for testing alone."""
    digests, thumbnails = read(shared_data / "data" / "test")
    more, others = read(shared_data / "data" / "real")
    return digests | more, np.concatenate([thumbnails, others])


def nearest(thumbnails: NDArray[np.float32], judges: NDArray[np.float32]) -> float:
    """The largest correlation of any training image, however turned, with any test image."""
    turned = np.concatenate([views(t) for t in thumbnails])
    return float((turned @ judges.reshape(len(judges), -1).T).max())


def test_training_images_are_no_test_images(shared_data: Path, judges: tuple[set[str], NDArray[np.float32]]) -> None:
    digests, thumbnails = read(shared_data / "data" / "train")
    assert len(digests) > 500
    assert len(judges[0]) > 150
    assert not digests & judges[0]
    assert nearest(thumbnails, judges[1]) < 0.98


def test_built_in_images_are_no_test_images(judges: tuple[set[str], NDArray[np.float32]]) -> None:
    source = builtin(leaves=1)
    images = [picture.pixels()[0] for picture in (*source.training, *source.held_out)]
    assert not {pixel_digest(image) for image in images} & judges[0]
    assert nearest(np.stack([fingerprint(image) for image in images]), judges[1]) < 0.98


def test_the_search_would_find_one(shared_data: Path, judges: tuple[set[str], NDArray[np.float32]]) -> None:
    image = decode(image_files(shared_data / "data" / "test" / "CBSD68")[3], 3)
    assert pixel_digest(image) in judges[0]
    disguised = np.ascontiguousarray(np.rot90(image[1:-2, 2:-1] // 2 + 30))
    assert pixel_digest(disguised) not in judges[0]
    assert nearest(fingerprint(disguised)[None], judges[1]) > 0.98


def test_recipes_of_shipped_weights_name_training_data_alone(shared_data: Path) -> None:
    assert shipped()
    for name, path in shipped().items():
        committed = path.with_suffix(".yaml")
        assert committed.is_file(), f"{name} is shipped without its recipe {committed.name}"
        recipe = TrainRecipe.model_validate(yaml.safe_load(committed.read_text()))
        if recipe.data is None:
            assert metadata(path)["trained_on"] == "built-in", name  # which the test above looks at
            continue
        folder = (_ROOT / recipe.data).resolve()
        assert folder == (shared_data / "data" / "train").resolve(), f"{name} was trained on {recipe.data}"
