from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from edgekit.errors import DataError, OutputExistsError, ShapeError
from edgekit.runtime import images
from edgekit.runtime.images import Picture, list_images, load, save

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    top = np.iinfo(dtype).max
    return np.random.default_rng(1).integers(0, top, shape, dtype=dtype, endpoint=True)


def exif(orientation: int = 6) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "Maker"
    return block.tobytes().removeprefix(b"Exif\0\0")


SHAPES = [(9, 7), (9, 7, 2), (9, 7, 3), (9, 7, 4), (1, 1), (1, 1, 3), (300, 1, 3)]
KINDS = [
    (suffix, shape, dtype)
    for suffix in (".png", ".PNG", ".tif", ".tiff")
    for shape in SHAPES
    for dtype in ("uint8", "uint16")
    # 16-bit gray with alpha is not written as TIFF, see below.
    if (suffix[:4], dtype, shape[2:]) != (".tif", "uint16", (2,))
]


@pytest.mark.parametrize(("suffix", "shape", "dtype"), KINDS)
def test_round_trip(tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: str) -> None:
    image = pixels(*shape, dtype=dtype)
    save(tmp_path / f"a{suffix}", image)
    again = load(tmp_path / f"a{suffix}").pixels
    assert again.dtype == image.dtype
    np.testing.assert_array_equal(again, image)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_round_trip_of_bmp(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save(tmp_path / "a.bmp", pixels(*shape))
    np.testing.assert_array_equal(load(tmp_path / "a.bmp").pixels, pixels(*shape))


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_jpeg_is_near(tmp_path: Path, shape: tuple[int, ...]) -> None:
    smooth = np.broadcast_to(np.linspace(20, 230, 50).round().reshape(1, 50, *[1] * (len(shape) - 2)), shape).astype(
        np.uint8
    )
    save(tmp_path / "a.jpg", smooth)
    again = load(tmp_path / "a.jpg").pixels
    assert again.shape == shape
    assert np.abs(again.astype(int) - smooth).max() <= 4


def test_a_single_channel_is_written_as_gray(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(5, 6, 1))
    assert load(tmp_path / "a.png").pixels.shape == (5, 6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_is_read_by_others(tmp_path: Path, suffix: str, channels: int) -> None:
    """Other readers see the same; Pillow sees the upper 8 bits."""
    image = pixels(12, 10, channels, dtype="uint16")
    file = tmp_path / f"a{suffix}"
    save(file, image, Picture(image, icc=ICC))
    with Image.open(file) as opened:
        assert opened.info["icc_profile"] == ICC
        np.testing.assert_array_equal(np.array(opened), image >> 8)
    if suffix == ".tif":
        tifffile = pytest.importorskip("tifffile", reason="needs the extra train")
        np.testing.assert_array_equal(tifffile.imread(file), image)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "layout",
    [{}, {"rowsperstrip": 3}, {"tile": (16, 16)}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True},
     {"planarconfig": "separate"}],
)  # fmt: skip
def test_16_bit_colour_tiff_of_others(tmp_path: Path, channels: int, order: str, layout: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra train")
    image = pixels(33, 20, channels, dtype="uint16")
    stored = np.moveaxis(image, 2, 0) if "planarconfig" in layout else image
    extra = ["unassalpha"] if channels == 4 else None
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", byteorder=order, extrasamples=extra, **layout)
    np.testing.assert_array_equal(load(tmp_path / "a.tif").pixels, image)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_gray_tiff_of_others(tmp_path: Path, order: str) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra train")
    image = pixels(33, 20, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", byteorder=order)
    again = load(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(again, image)
    assert again.dtype.isnative


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".jpg", "uint8"), (".tif", "uint8"), (".tif", "uint16")],
)
def test_profile_orientation_and_resolution_are_kept(tmp_path: Path, suffix: str, dtype: str) -> None:
    image = pixels(8, 12, 3, dtype=dtype)
    save(tmp_path / f"a{suffix}", image, Picture(image, ICC, exif(), (300.0, 300.0)))
    again = load(tmp_path / f"a{suffix}")
    assert again.icc == ICC
    block = Image.Exif()
    block.load(b"Exif\0\0" + (again.exif or b""))
    if suffix == ".tif":
        # Pillow turns a TIFF as its tag says, and drops the tag.
        np.testing.assert_array_equal(again.pixels, np.rot90(image, -1))
        assert 0x0112 not in block
    else:
        # The pixels are not turned; whoever shows them turns them.
        assert again.pixels.shape == (8, 12, 3)
        assert block[0x0112] == 6
    assert block[0x010F] == "Maker"
    if dtype == "uint8":
        assert again.dpi == pytest.approx((300, 300), abs=0.1)
    # And on to another format.
    save(tmp_path / "b.jpg", pixels(8, 12, 3), again)
    assert load(tmp_path / "b.jpg").icc == ICC


@pytest.mark.parametrize(
    ("mode", "shape"), [("1", (6, 5)), ("P", (6, 5, 3)), ("PA", (6, 5, 4)), ("LA", (6, 5, 2)), ("RGBA", (6, 5, 4))]
)
def test_other_modes_become_what_they_mean(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    file = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    image = Image.fromarray(pixels(6, 5, 4)).convert(
        "RGBA" if mode == "RGBA" else "L" if mode in ("1", "LA") else "RGB"
    )
    converted = image.convert(mode)
    if mode == "PA":
        converted = image.convert("P").convert("PA")
    converted.save(file)
    again = load(file).pixels
    assert again.shape == shape
    np.testing.assert_array_equal(
        again, np.array(converted.convert({2: "L"}.get(len(shape), {2: "LA", 3: "RGB", 4: "RGBA"}.get(shape[-1], "L"))))
    )


def test_a_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7]], np.uint8)).save(tmp_path / "a.png", transparency=7)
    assert load(tmp_path / "a.png").pixels.tolist() == [[[0, 255], [7, 0]]]
    palette = Image.fromarray(pixels(4, 4, 3)).quantize(4)
    palette.save(tmp_path / "b.png", transparency=0)
    assert load(tmp_path / "b.png").pixels.shape == (4, 4, 4)


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape"),
    [
        (".png", "uint8", (60, 50, 3)),
        (".png", "uint16", (60, 50, 3)),
        (".png", "uint16", (60, 50)),
        (".jpg", "uint8", (60, 50, 3)),
        (".tif", "uint8", (60, 50, 3)),
        (".tif", "uint16", (60, 50, 3)),
        (".bmp", "uint8", (60, 50, 3)),
    ],
)
def test_damaged_files(tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Whatever happens to a file, it is read or refused by name in one line."""
    file = tmp_path / f"a{suffix}"
    save(file, pixels(*shape, dtype=dtype))
    data = file.read_bytes()
    random = np.random.default_rng(0)
    cut = [data[:n] for n in (0, 1, 10, 60, len(data) // 2)]
    spoilt = []
    for _ in range(40):
        copy = np.frombuffer(data, np.uint8).copy()
        places = random.integers(0, min(len(data), 400), 5)
        copy[places] = random.integers(0, 256, 5, dtype=np.uint8)
        spoilt.append(copy.tobytes())
    refusals = []
    for broken in cut + spoilt:
        file.write_bytes(broken)
        try:
            load(file)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) >= len(cut)
    for message in refusals:
        assert message.startswith(f"{file} cannot be read: ")
        assert "\n" not in message


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image at .*none\.png"):
        load(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(
        DataError, match=r"text\.png cannot be read: it is not a PNG, JPEG, TIFF or BMP file, or damaged"
    ):
        load(tmp_path / "text.png")
    Image.fromarray(pixels(4, 4, 4)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    with pytest.raises(DataError, match=r"cmyk\.jpg cannot be read: its pixels are of mode CMYK: expected gray or RGB"):
        load(tmp_path / "cmyk.jpg")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="mode F"):
        load(tmp_path / "float.tif")
    page = Image.fromarray(pixels(4, 4))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
    with pytest.raises(DataError, match="it holds 3 pages: expected one"):
        load(tmp_path / "pages.tif")


def test_tiffs_that_would_be_misread_are_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra train")
    image = pixels(8, 8, 3, dtype="uint16")
    planes = np.moveaxis(image, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", compression="zlib")
    with pytest.raises(DataError, match="compressed 16-bit RGB with separate planes: save it interleaved"):
        load(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", image[..., 0], photometric="miniswhite")
    with pytest.raises(DataError, match="16-bit gray where 0 is white"):
        load(tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("name", "image", "error", "message"),
    [
        ("a.gif", pixels(4, 4), DataError, r"a\.gif has the suffix '\.gif': expected one of \.png, \.jpg"),
        ("a.jpg", pixels(4, 4, dtype="uint16"), DataError, r"JPEG cannot hold 16 bits: choose \.png or \.tif"),
        ("a.jpg", pixels(4, 4, 4), DataError, "JPEG cannot hold alpha"),
        ("a.bmp", pixels(4, 4, 2), DataError, "BMP cannot hold alpha"),
        (
            "a.tif",
            pixels(4, 4, 2, dtype="uint16"),
            DataError,
            r"16-bit gray with alpha is written as PNG only: choose \.png",
        ),
        ("a.png", np.zeros((4, 4)), ShapeError, r"pixels are float64 \[4, 4\]: expected uint8 or uint16"),
        ("a.png", pixels(4, 4, 5), ShapeError, r"\[4, 4, 5\]"),
        ("a.png", pixels(0, 4), ShapeError, r"\[0, 4\]"),
        ("none/a.png", pixels(4, 4), DataError, r"a\.png cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, name: str, image: NDArray[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        save(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    save(file, pixels(4, 4))
    with pytest.raises(OutputExistsError, match=r"a\.png exists"):
        save(file, pixels(5, 5))
    assert load(file).pixels.shape == (4, 4)
    save(file, pixels(5, 5), overwrite=True)
    assert load(file).pixels.shape == (5, 5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    file = tmp_path / "a.png"
    save(file, pixels(4, 4, 3))

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images, "_save_by_pillow", full)
    monkeypatch.setattr(images.deep_color, "write_png", full)
    with pytest.raises(DataError, match=r"a\.png cannot be written: No space left on device"):
        save(file, pixels(5, 5, 3, dtype=dtype), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert load(file).pixels.shape == (4, 4, 3)


def test_list_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images in .*: expected files that end in \.png, \.jpg"):
        list_images(tmp_path)
    for name in ("b.PNG", "a.jpeg", "c.txt", ".hidden.png", "d.tif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.jpeg", "b.PNG", "d.tif"]
    with pytest.raises(DataError, match=r"c\.txt is not a folder"):
        list_images(tmp_path / "c.txt")
