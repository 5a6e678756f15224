from __future__ import annotations

import dataclasses
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.bundle import reader
from edgekit.bundle.manifest import TensorSpec, Variant
from edgekit.errors import EngineError, RecipeError, ShapeError, UnknownNameError
from edgekit.runtime import denoiser as module
from edgekit.runtime.denoiser import Denoiser

if TYPE_CHECKING:
    from tiny_tflite import Stand


def picture(*shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """A smooth picture with noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    plane = 128 + 90 * np.sin(x / 9) * np.cos(y / 7)
    full = plane[..., None] + random.normal(0, 15, (*shape[:2], int(np.prod(shape[2:]))))
    unit = np.clip(full, 0, 255).reshape(shape) / 255
    return np.rint(unit * 255).astype("uint8") if dtype == "uint8" else _scaled(unit, dtype)


def _scaled(unit: NDArray[Any], dtype: str) -> NDArray[Any]:
    return np.rint(unit * 65535).astype(dtype) if dtype == "uint16" else unit.astype(dtype)


@pytest.fixture(scope="module")
def small(tiny: Stand) -> Denoiser:
    return Denoiser.from_bundle(tiny, threads=1)


@pytest.fixture(scope="module")
def large(tiny_large: Stand) -> Denoiser:
    return Denoiser.from_bundle(tiny_large, threads=1)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), sigma=st.floats(0, 55), seed=st.integers(0, 99))
def test_tiles_do_not_show(small: Denoiser, large: Denoiser, height: int, width: int, sigma: float, seed: int) -> None:
    """INT8: nine tiles and one give the same bits. The same network, exported with tile 32 and with tile 128."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(small(image, sigma), large(image, sigma))


def test_the_definition_of_the_whole_images_result(large: Denoiser) -> None:
    """Mirror by the halo rounded up to the stride, run, crop: here by numpy and the engine alone."""
    image = picture(90, 77, 3)
    padded = np.pad(image, ((8, 30), (8, 43), (0, 0)), mode="reflect")
    tensor = (padded.astype(np.int16) - 128).astype(np.int8)[None]
    level = np.array([round(25 / 55 * 255) - 128], np.int8)
    output = large.engine.run({"image": tensor, "sigma": level})[0].astype(np.int16) + 128
    np.testing.assert_array_equal(large(image, 25), output[8:98, 8:85])


def test_all_variants_agree(tiny: Stand) -> None:
    image = picture(50, 60, 3)
    results = {v.name: Denoiser.from_bundle(tiny, v.name, 1)(image, 20).astype(int) for v in tiny.manifest.variants}
    np.testing.assert_array_equal(results["int8"], results["int8-uint8io"])
    # Two convolutions in 8 bits: a few levels from float.
    assert np.abs(results["int8"] - results["fp32"]).max() <= 5
    assert np.abs(results["int8"] - image).mean() > 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (5, 3), (33, 65), (33, 65, 1), (33, 65, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_size_and_dtype_are_kept(small: Denoiser, shape: tuple[int, ...], dtype: str) -> None:
    image = picture(*shape, dtype=dtype)
    clean = small(image, 30)
    assert clean.shape == image.shape
    assert clean.dtype == image.dtype


def test_sigma_zero_of_this_network_is_the_identity(small: Denoiser) -> None:
    for dtype in ("uint8", "uint16", "float32"):
        image = picture(40, 50, 3, dtype=dtype)
        np.testing.assert_allclose(small(image, 0), image, rtol=1e-6)


def test_the_input_is_untouched(small: Denoiser) -> None:
    image = picture(40, 50, 3)
    kept = image.copy()
    image.flags.writeable = False
    small(image, 25)
    np.testing.assert_array_equal(image, kept)


def test_views_and_foreign_byte_order(small: Denoiser) -> None:
    image = picture(60, 60, 3, dtype="uint16")
    expected = small(image[::-1, ::2].copy(), 25)
    np.testing.assert_array_equal(small(image[::-1, ::2], 25), expected)
    big = image[::-1, ::2].astype(">u2")
    np.testing.assert_array_equal(small(big, 25), expected)
    assert small(big, 25).dtype == np.dtype(">u2")


def test_more_depth_is_finer_but_the_same_picture(small: Denoiser) -> None:
    image = picture(50, 50, 3)
    bytes_out = small(image, 20)
    np.testing.assert_array_equal(small(image.astype(np.uint16) * 257, 20), bytes_out.astype(np.uint16) * 257)
    np.testing.assert_allclose(small(image / 255, 20), bytes_out / 255, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_alpha_is_kept_and_does_not_matter(small: Denoiser, channels: int, dtype: str) -> None:
    image = picture(40, 45, channels, dtype=dtype)
    clean = small(image, 25)
    np.testing.assert_array_equal(clean[..., -1], image[..., -1])
    np.testing.assert_array_equal(clean[..., :-1], small(image[..., :-1], 25))


def test_gray_through_a_colour_model_is_the_mean(small: Denoiser) -> None:
    image = picture(40, 45)
    high = small.manifest.sigma[1]
    for sigma in (20.0, high):  # it is told more, because the three planes carry one noise
        colour = small(np.repeat(image[..., None], 3, axis=2), min(1.65 * sigma, high))
        expected = np.rint(colour.astype(np.float32).mean(axis=2)).astype(np.uint8)
        np.testing.assert_array_equal(small(image, sigma), expected)


def test_a_gray_image_is_told_no_more_than_the_model_takes(tiny: Stand) -> None:
    # An int8 tensor could not say more: float can.
    exact = Denoiser.from_bundle(tiny, "fp32", 1)
    # Far enough from black and white that no channel is cut off before the mean.
    image = 0.4 + 0.2 * picture(40, 45, dtype="float32")
    high = exact.manifest.sigma[1]
    colour = exact(np.repeat(image[..., None], 3, axis=2), high)
    np.testing.assert_allclose(exact(image, high), colour.mean(axis=2), atol=1e-6)


def test_colour_through_a_gray_model_is_done_by_channel(tmp_path: Path) -> None:
    from tiny_tflite import stand

    gray = Denoiser.from_bundle(stand(tmp_path, "int8", tile=32, channels=1), threads=1)
    assert gray.channels == 1
    image = picture(40, 45, 3)
    clean = gray(image, 25)
    for channel in range(3):
        np.testing.assert_array_equal(clean[..., channel], gray(image[..., channel], 25))


def test_a_blind_model_takes_no_sigma(tmp_path: Path) -> None:
    from tiny_tflite import stand

    blind = Denoiser.from_bundle(stand(tmp_path, "int8", tile=32, blind=True), threads=1)
    assert blind.sigma_range is None
    image = picture(40, 45, 3)
    clean = blind(image)
    assert (clean != image).any()
    np.testing.assert_array_equal(blind(image, 25), clean)


@pytest.mark.parametrize("sigma", [-1, 55.1, float("nan"), float("inf"), "25", "Auto", True, [25]])
def test_sigma_out_of_range(small: Denoiser, sigma: Any) -> None:
    with pytest.raises(RecipeError, match="sigma is .*: tiny takes 0 to 55 in 8-bit units, or 'auto'"):
        small(picture(8, 8), sigma)


def test_sigma_missing(small: Denoiser) -> None:
    with pytest.raises(RecipeError, match="tiny needs a noise level: give sigma, 0 to 55"):
        small(picture(8, 8))


def test_sigma_auto_is_the_estimate(small: Denoiser) -> None:
    image = picture(100, 120, 3)
    found = small.estimate(image)
    assert found.sigma == pytest.approx(15, rel=0.15)
    np.testing.assert_array_equal(small(image, "auto"), small(image, found.sigma))
    with_alpha = np.concatenate([image, np.zeros_like(image[..., :1])], axis=2)
    assert small.estimate(with_alpha) == found


def test_sigma_auto_does_not_look_at_alpha(small: Denoiser) -> None:
    image = picture(100, 120, 3)
    # As flat as nothing in the picture, and neither black nor white, which an estimate leaves out.
    with_alpha = np.concatenate([image, np.full_like(image[..., :1], 128)], axis=2)
    np.testing.assert_array_equal(small(with_alpha, "auto")[..., :3], small(image, "auto"))


def test_sigma_auto_says_when_it_clamps(tiny: Stand) -> None:
    manifest = dataclasses.replace(tiny.manifest, sigma=(20.0, 55.0))
    limited = Denoiser.from_bundle(dataclasses.replace(tiny, manifest=manifest), threads=1)
    image = picture(100, 120, 3)
    with pytest.warns(UserWarning, match=r"estimated sigma 1\d\.\d is outside what tiny takes \(20 to 55\): using 20"):
        clean = limited(image, "auto")
    np.testing.assert_array_equal(clean, limited(image, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limited(image, 20)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((2, 8, 8, 3), np.uint8),
            r"shape \[2, 8, 8, 3\]: expected \[H, W\] or \[H, W, C\], one image at a time",
        ),
        (np.zeros(8, np.uint8), r"shape \[8\]"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]: expected at least one pixel"),
        (np.zeros((3, 8, 9), np.uint8), r"so 9 channels: expected 1 \(gray\), .*, channels last"),
        (np.zeros((8, 8), np.int32), "dtype int32: expected uint8, uint16, float16"),
        (np.zeros((8, 8), bool), "dtype bool"),
        (np.full((8, 8), np.nan, np.float32), "holds 64 values that are NaN or infinite"),
        (np.array([[0, np.inf]]), "holds 1 values"),
        (np.full((8, 8), 200.0), r"spans 200 to 200: expected 0\.\.1 .*; divide by 255, or pass uint8"),
        (np.array([[-1.5, 0.0]]), r"spans -1\.5 to 0"),
    ],
)
def test_what_is_no_image(small: Denoiser, image: NDArray[Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        small(image, 25)
    with pytest.raises(ShapeError, match=message):
        small.estimate(image)


def test_noise_may_leave_the_range_of_floats(small: Denoiser) -> None:
    image = np.random.default_rng(0).normal(0.5, 0.3, (40, 40)).astype(np.float32)
    assert image.min() < 0
    assert image.max() > 1
    clean = small(image, 25)
    assert clean.min() >= 0
    assert clean.max() <= 1


def test_properties(small: Denoiser, tiny: Stand) -> None:
    assert (small.tile, small.halo, small.stride, small.channels) == (32, 7, 4, 3)
    assert small.sigma_range == (0.0, 55.0)
    assert small.variant == tiny.manifest.variants[0]
    assert small.engine.threads == 1
    assert "'tiny' int8: 3 channels, tile 32, halo 7, sigma 0..55, ai-edge-litert" in repr(small)


def test_variant_and_threads(tiny: Stand) -> None:
    assert Denoiser.from_bundle(tiny, "fp32", 2).variant.name == "fp32"
    assert Denoiser.from_bundle(tiny).engine.threads >= 1
    with pytest.raises(UnknownNameError, match="unknown variant 'int4': expected one of fp32, int8, int8-uint8io"):
        Denoiser.from_bundle(tiny, "int4")
    with pytest.raises(RecipeError, match="threads is 0"):
        Denoiser.from_bundle(tiny, threads=0)


def test_threads_and_callers_do_not_change_the_result(tiny: Stand) -> None:
    image = picture(100, 100, 3)
    expected = Denoiser.from_bundle(tiny, threads=1)(image, 25)
    shared = Denoiser.from_bundle(tiny, threads=2)
    results: list[NDArray[Any]] = []
    callers = [threading.Thread(target=lambda: results.append(shared(image, 25))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_open_closes_the_bundle_it_opened(tiny: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = dataclasses.replace(tiny, closed=0)
    monkeypatch.setattr(reader, "read", lambda path: bundle)
    with module.open("somewhere", variant="int8", threads=1) as opened:
        assert bundle.closed == 0
        opened(picture(8, 8), 25)
    assert bundle.closed == 1
    with pytest.raises(EngineError, match="closed"):
        opened(picture(8, 8), 25)
    with pytest.raises(UnknownNameError):
        module.open("somewhere", variant="int4")
    assert bundle.closed == 2


def test_many_images_give_what_each_gives_alone(tiny: Stand) -> None:
    denoiser = Denoiser.from_bundle(tiny, threads=1)
    rng = np.random.default_rng(0)
    jobs: list[tuple[Any, float]] = [
        (picture(50, 70), 25),
        (rng.integers(0, 256, (9, 33), dtype=np.uint8), 5),  # gray
        (rng.integers(0, 65536, (40, 31, 4), dtype=np.uint16), 50),  # alpha
        (rng.random((20, 64, 3)), 10),
    ]
    together = list(denoiser.many(iter(jobs)))
    assert len(together) == len(jobs)
    for (image, sigma), clean in zip(jobs, together, strict=True):
        assert clean.dtype == image.dtype
        np.testing.assert_array_equal(clean, denoiser(image, sigma))
    assert list(denoiser.many([])) == []


def test_a_stream_asks_for_images_as_it_needs_them_and_lets_go_when_left(tiny: Stand) -> None:
    denoiser = Denoiser.from_bundle(tiny, threads=1)
    asked = []

    def jobs() -> Any:
        for k in range(5):
            asked.append(k)
            yield picture(20, 20), 25

    stream = denoiser.many(jobs())
    next(stream)
    assert asked == [0]
    # Its reader may call in between.
    denoiser(picture(20, 20), 25)
    stream.close()
    results: list[Any] = []
    other = threading.Thread(target=lambda: results.append(denoiser(picture(20, 20), 25)))
    other.start()
    other.join(timeout=10)
    assert len(results) == 1


def test_a_stream_may_be_read_by_one_thread_after_another(tiny: Stand) -> None:
    denoiser = Denoiser.from_bundle(tiny, threads=1)
    stream = denoiser.many([(picture(20, 20), 25)] * 3)
    results: list[Any] = []
    for _ in range(3):
        reader = threading.Thread(target=lambda: results.append(next(stream)))
        reader.start()
        reader.join(timeout=10)
    assert len(results) == 3
    assert list(stream) == []
    np.testing.assert_array_equal(results[0], denoiser(picture(20, 20), 25))


def test_the_warning_of_an_estimate_names_the_caller(tiny: Stand) -> None:
    clean = dataclasses.replace(tiny.manifest, sigma=(40.0, 55.0))
    denoiser = Denoiser.from_bundle(dataclasses.replace(tiny, manifest=clean), threads=1)
    with pytest.warns(UserWarning, match="estimated sigma") as told:
        denoiser(picture(40, 40), "auto")
    assert told[0].filename == __file__


class Late:
    """An engine that holds back some outputs, as one that works on several tiles at once does."""

    def __init__(self, engine: Any, depth: int) -> None:
        self._engine, self._depth = engine, depth
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run_many(self, batches: Any) -> Any:
        held: list[Any] = []
        while True:
            try:
                batch = next(batches, None)
            except Exception:
                yield from held
                raise
            if batch is None:
                break
            held.append(self._engine.run(batch))
            self.most = max(self.most, len(held))
            if len(held) == self._depth:
                yield held.pop(0)
        yield from held


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
def test_tiles_of_several_images_may_be_under_way(tiny: Stand, depth: int) -> None:
    plain = Denoiser.from_bundle(tiny, threads=1)
    late = Late(plain.engine, depth)
    denoiser = Denoiser(late, plain.manifest, plain.variant)  # type: ignore[arg-type]
    images = [picture(30 + 11 * k, 25) for k in range(6)]
    for image, clean in zip(images, denoiser.many((i, 25) for i in images), strict=True):
        np.testing.assert_array_equal(clean, plain(image, 25))
    assert late.most >= min(depth, 6)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_bad_image_ends_the_stream_and_the_ones_before_were_given(tiny: Stand, depth: int) -> None:
    plain = Denoiser.from_bundle(tiny, threads=1)
    denoiser = Denoiser(Late(plain.engine, depth), plain.manifest, plain.variant)  # type: ignore[arg-type]
    stream = denoiser.many([(picture(20, 20), 25), (picture(20, 20), 5), (np.zeros((3, 3, 9), np.uint8), 25)])
    assert next(stream).shape == (20, 20)
    assert next(stream).shape == (20, 20)
    with pytest.raises(ShapeError, match="9 channels"):
        next(stream)


class Echo:
    """An engine for any size and layout that gives its input back."""

    name, library, threads, kernels, operators = "echo", "echo 1", 1, "unknown", {}
    any_size, closed = False, False

    def run(self, inputs: Any) -> NDArray[Any]:
        self.shape = inputs["x"].shape
        return inputs["x"].copy()  # type: ignore[no-any-return]

    def close(self) -> None:
        self.closed = True


def echo(tiny: Stand, **changes: Any) -> tuple[Any, Variant]:
    image = TensorSpec("x", "image", (-1, 3, -1, -1), "NCHW", "float32")
    clean = TensorSpec("y", "clean", (-1, 3, -1, -1), "NCHW", "float32")
    variant = Variant("fp32", "echo.bin", "echo", (image,), (clean,))
    model = dataclasses.replace(tiny.manifest.model, blind=True)
    return dataclasses.replace(tiny.manifest, model=model), dataclasses.replace(variant, **changes)


def test_an_engine_of_open_size_and_channels_first(tiny: Stand) -> None:
    engine = Echo()
    denoiser = Denoiser(engine, *echo(tiny))
    image = picture(40, 45, 3)
    np.testing.assert_array_equal(denoiser(image), image)
    assert engine.shape == (1, 3, 32, 32)


def test_a_model_file_that_is_not_what_the_manifest_says(tiny: Stand) -> None:
    manifest, variant = echo(tiny)
    wide = dataclasses.replace(variant.inputs[0], shape=(1, 3, 64, 32))
    with pytest.raises(EngineError, match=r"tensor 'x' of echo\.bin is 32x64 with 3 channels, the manifest says 32x32"):
        Denoiser(Echo(), manifest, dataclasses.replace(variant, inputs=(wide,)))
    gray = dataclasses.replace(variant.outputs[0], shape=(1, 1, 32, 32))
    with pytest.raises(EngineError, match="tensor 'y' .* with 1 channels"):
        Denoiser(Echo(), manifest, dataclasses.replace(variant, outputs=(gray,)))
    with pytest.raises(EngineError, match=r"echo\.bin has 0 clean tensors: expected 1"):
        Denoiser(Echo(), manifest, dataclasses.replace(variant, outputs=variant.inputs))
    seeing = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, blind=False))
    with pytest.raises(EngineError, match="has 0 sigma tensors"):
        Denoiser(Echo(), seeing, variant)
    far = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, halo=15))
    with pytest.raises(ShapeError, match="a halo of 15 and a stride of 4 need a tile of at least 36"):
        Denoiser(Echo(), far, variant)
