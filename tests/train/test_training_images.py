"""Folders of images: what is read, what is skipped, and one clear line for what is wrong."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from edgekit.errors import DataError
from edgekit.train import images
from edgekit.train.decode import Image, decode, luma
from edgekit.train.images import Picture, open_images


def random_image(seed: int, height: int = 40, width: int = 48, channels: int = 3) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write(path: Path, pixels: Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0]).save(path)
    return path


def fill(folder: Path, count: int, **shape: int) -> None:
    for i in range(count):
        write(folder / f"{i}.png", random_image(i, **shape))


def test_reads_recursively_in_a_fixed_order(tmp_path: Path) -> None:
    write(tmp_path / "b" / "deep" / "2.png", random_image(2))
    write(tmp_path / "a.bmp", random_image(1))
    write(tmp_path / "c.TIFF", random_image(3))
    write(tmp_path / ".cache" / "hidden.png", random_image(4))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_images(tmp_path, patch=32, validation_share=0)
    assert [p.name for p in source.training] == ["a.bmp", str(Path("b", "deep", "2.png")), "c.TIFF"]
    assert source.held_out == ()
    assert np.array_equal(source.training[0].pixels()[0], random_image(1))
    assert source.skipped == ()


def test_what_cannot_be_read_is_skipped_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 3)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    with caplog.at_level(logging.WARNING):
        source = open_images(tmp_path, patch=32)
    assert len(source.training) + len(source.held_out) == 3
    assert len(source.skipped) == 3
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith("skipped 3 of 6 images (3 unreadable, 0 too small, 0 repeated): ")
    for name in ("cut.png", "empty.jpg", "text.png"):
        assert name in message


def test_small_images_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 2)
    write(tmp_path / "small.png", random_image(9, height=31))
    source = open_images(tmp_path, patch=32)
    assert source.skipped == ("small.png is 48x31, smaller than the 32-pixel crop",)
    assert "1 too small" in caplog.text


def test_the_same_image_twice_counts_once(tmp_path: Path) -> None:
    # Otherwise a copy in the training half would show what is held out.
    fill(tmp_path, 3)
    write(tmp_path / "copy.bmp", random_image(1))
    source = open_images(tmp_path, patch=32)
    assert source.skipped == ("copy.bmp is the same image as 1.png",)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: None, "does not exist: expected a folder"),
        (lambda folder: folder.write_text(""), "is a file: expected a folder"),
        (lambda folder: folder.mkdir(), "holds no images: expected files ending in"),
        (
            lambda folder: fill(folder, 2, height=20),
            r"all 2 readable images .* \(the largest has a side of 20\).* patch to 16",
        ),
        (lambda folder: fill(folder, 1), r"only one usable image \(0.png\): at least 2"),
    ],
)
def test_folders_that_do_not_work(tmp_path: Path, make: object, expected: str) -> None:
    folder = tmp_path / "data"
    make(folder)  # type: ignore[operator]
    with pytest.raises(DataError, match=expected) as raised:
        open_images(folder, patch=32)
    assert "\n" not in str(raised.value)


def test_all_unreadable(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"none of the 3 images in .* can be read; the first: cannot read .*0\.png"):
        open_images(tmp_path)


def test_the_split_depends_on_the_pixels_alone(tmp_path: Path) -> None:
    fill(tmp_path / "one", 10)
    for i in range(10):
        write(tmp_path / "two" / f"{9 - i}.bmp", random_image(i))
    first, second = (open_images(tmp_path / n, patch=32, validation_share=0.3) for n in ("one", "two"))
    assert len(first.held_out) == 3
    assert [p.digest for p in first.held_out] == [p.digest for p in second.held_out]
    assert not {p.digest for p in first.training} & {p.digest for p in first.held_out}
    assert len(first.training) == 7


def test_at_least_one_image_is_held_out_and_one_trains(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    assert len(open_images(tmp_path, patch=32, validation_share=0.01).held_out) == 1
    assert len(open_images(tmp_path, patch=32, validation_share=0.99).training) == 1


def test_pixels_beyond_the_memory_limit_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 4)
    monkeypatch.setattr(images, "_MEMORY", 2 * random_image(0).nbytes)
    source = open_images(tmp_path, patch=32, validation_share=0)
    assert [p._kept is not None for p in source.training] == [True, True, False, False]
    assert np.array_equal(source.training[3].pixels()[0], random_image(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels(tmp_path: Path, channels: int) -> None:
    write(tmp_path / "color.png", random_image(0))
    write(tmp_path / "gray.png", random_image(1, channels=1))
    write(tmp_path / "alpha.png", random_image(2, channels=4))
    Pillow.fromarray(random_image(3)).convert("P").save(tmp_path / "palette.png")
    source = open_images(tmp_path, patch=32, channels=channels, validation_share=0)
    assert {p.shape for p in source.training} == {(40, 48, channels)}
    assert source.channels == channels
    by_name = {p.name: p.pixels()[0] for p in source.training}
    gray = random_image(1, channels=1)
    assert np.array_equal(by_name["gray.png"], np.repeat(gray, channels, 2))
    expected = random_image(0) if channels == 3 else luma(random_image(0))
    assert np.array_equal(by_name["color.png"], expected)
    if channels == 3:
        assert np.array_equal(by_name["alpha.png"], random_image(2, channels=4)[:, :, :3])


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 65535], [0x1234, 0x80FF, 0xFF00, 511]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Pillow.fromarray(deep).save(tmp_path / name)
        assert np.array_equal(decode(tmp_path / name, 1)[:, :, 0], deep >> 8)


def test_float_images_are_refused_by_name(tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"cannot read .*f\.tif: floating-point pixels have no agreed white"):
        decode(tmp_path / "f.tif", 1)


def test_an_image_that_claims_to_be_huge_is_unreadable(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.png", random_image(0))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*bomb\.png"):
        decode(path, 3)


def test_a_picture_from_arrays() -> None:
    clean = random_image(0)
    picture = Picture.of("mine", clean)
    assert not picture.paired
    assert picture.digest == images.pixel_digest(clean)
    assert picture.digest != Picture.of("other", clean.reshape(48, 40, 3)).digest
