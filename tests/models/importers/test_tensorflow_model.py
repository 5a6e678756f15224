"""Keras and SavedModel files read as a network: the same numbers as Keras, and a clear line for what cannot be read."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekit.errors import CheckpointError, MissingExtraError
from edgekit.models import importers
from edgekit.models.base import DenoiserModel

Array = NDArray[Any]


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras and TensorFlow, whose first import takes seconds."""
    import keras
    import tensorflow

    return SimpleNamespace(layers=keras.layers, Model=keras.Model, ops=keras.ops, tensorflow=tensorflow, keras=keras)


def randomized(model: Any) -> Any:
    """The model with weights that show every mistake: none zero, none alike, variances positive."""
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            (rng.random(w.shape) + 0.5 if "variance" in v.path else rng.normal(0, 0.3, w.shape)).astype(np.float32)
            for v, w in zip(model.weights, model.get_weights(), strict=True)
        ]
    )
    return model


def tutorial(keras: Any, *size: int | None) -> Any:
    """The convolutional autoencoder of the Keras tutorial on denoising digits."""
    layers = keras.layers
    x = image = layers.Input(shape=(*size, 1))
    for _ in range(2):
        x = layers.Conv2D(32, (3, 3), activation="relu", padding="same")(x)
        x = layers.MaxPooling2D((2, 2), padding="same")(x)
    for _ in range(2):
        x = layers.Conv2DTranspose(32, (3, 3), strides=2, activation="relu", padding="same")(x)
    x = layers.Conv2D(1, (3, 3), activation="sigmoid", padding="same")(x)
    return randomized(keras.Model(image, x))


def rich(keras: Any, *size: int | None) -> Any:
    layers = keras.layers
    image = layers.Input(shape=(*size, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = skip = layers.LeakyReLU(0.1)(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(12, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2D(12, 3, padding="same", dilation_rate=2)(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.UpSampling2D(2)(x)
    x = layers.Concatenate()([x, skip])
    x = layers.BatchNormalization()(x)  # after no convolution
    x = layers.AveragePooling2D(2)(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.Conv2D(3, 3, padding="same", activation="tanh")(layers.ReLU(max_value=6)(x))
    return randomized(keras.Model(image, layers.Subtract()([image, x])))


def saved(model: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        # How Keras gives its weights to numpy.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
        model.save(path)
    return path


@pytest.fixture(scope="module")
def folder(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's model in every format, for 28x28 pixels."""
    folder = tmp_path_factory.mktemp("tutorial")
    model = tutorial(keras, 28, 28)
    for name in ("net.keras", "net.h5"):
        saved(model, folder / name)
    model.export(folder / "net", verbose=False)
    return folder


def pixels(channels: int, *size: int) -> Array:
    return np.random.default_rng(1).random((2, *size, channels), np.float32)


def as_read(model: DenoiserModel, noisy: Array, sigma: Any = 0.0) -> Array:
    """What the network read from the file makes of [N, H, W, C]."""
    level = torch.as_tensor(sigma, dtype=torch.float32)
    with torch.no_grad():
        clean = model(
            torch.from_numpy(noisy.transpose(0, 3, 1, 2)), level.expand(len(noisy)) if level.dim() == 0 else level
        )
    return clean.numpy().transpose(0, 2, 3, 1)


def assert_close(found: Array, expected: Any) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net"])
def test_the_tutorials_autoencoder_in_every_format(name: str, keras: Any, folder: Path) -> None:
    assert importers.accepts(folder / name)
    model = importers.load(folder / name)
    assert_close(as_read(model, pixels(1, 28, 28)), tutorial(keras, 28, 28)(pixels(1, 28, 28)))
    # The file knows one size, its convolutions none: the same weights in a network of any size.
    assert_close(as_read(model, pixels(1, 64, 48)), tutorial(keras, None, None)(pixels(1, 64, 48)))
    assert (model.channels, model.stride, model.blind, model.training) == (1, 4, True, False)
    assert model.config()["origin"] == name


def test_many_kinds_of_layers(keras: Any, tmp_path: Path) -> None:
    model = importers.load(saved(rich(keras, 64, 64), tmp_path / "rich.keras"))
    assert_close(as_read(model, pixels(3, 64, 64)), rich(keras, 64, 64)(pixels(3, 64, 64), training=False))
    assert_close(as_read(model, pixels(3, 32, 96)), rich(keras, None, None)(pixels(3, 32, 96), training=False))
    assert (model.channels, model.stride, model.blind) == (3, 2, True)
    names = {node["name"] for node in model.config()["nodes"]}
    assert {"upsample", "conv", "prelu", "avg_pool", "concat"} <= {node["op"] for node in model.config()["nodes"]}
    assert any(name.startswith("separable_conv2d") for name in names)


def test_a_level_that_is_a_map(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    image, sigma = layers.Input((None, None, 3), name="noisy"), layers.Input((None, None, 1), name="sigma")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.Concatenate()([image, sigma]))
    net = randomized(keras.Model([image, sigma], layers.Conv2D(3, 3, padding="same")(x)))
    noisy, maps = pixels(3, 32, 48), pixels(1, 32, 48)
    net.export(tmp_path / "net", verbose=False)
    for path in (saved(net, tmp_path / "net.keras"), tmp_path / "net"):
        model = importers.load(path)
        assert_close(as_read(model, noisy, maps.transpose(0, 3, 1, 2)), net([noisy, maps]))
        assert (model.channels, model.blind) == (3, False)


def test_a_level_that_is_a_number_an_image(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    # The level first: which input is the image, its channels tell.
    sigma, image = layers.Input((1,), name="sigma"), layers.Input((None, None, 3), name="noisy")
    level = layers.Conv2D(8, 1, activation="relu")(layers.Reshape((1, 1, 1))(sigma))
    x = layers.Multiply()([layers.Conv2D(8, 3, padding="same")(image), level])
    net = randomized(keras.Model([sigma, image], layers.Conv2D(3, 3, padding="same")(x)))
    model = importers.load(saved(net, tmp_path / "net.keras"))
    noisy, levels = pixels(3, 32, 48), np.array([0.05, 0.4], np.float32)
    assert_close(as_read(model, noisy, levels), net([levels[:, None], noisy]))
    assert not model.blind


def test_a_level_that_is_the_last_channel(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    both = layers.Input((None, None, 2))
    net = randomized(keras.Model(both, layers.Conv2D(1, 3, padding="same", activation="elu")(both)))
    model = importers.load(saved(net, tmp_path / "net.keras"))
    noisy, maps = pixels(1, 32, 48), pixels(1, 32, 48)[::-1].copy()
    assert_close(as_read(model, noisy, maps.transpose(0, 3, 1, 2)), net(np.concatenate([noisy, maps], 3)))
    assert (model.channels, model.blind) == (1, False)


def shuffles(keras: Any, x: Any) -> Any:
    tensorflow, layers = keras.tensorflow, keras.layers

    class Deep(layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, values: Any) -> Any:
            return tensorflow.nn.space_to_depth(values, 2)

    class Flat(layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, values: Any) -> Any:
            return tensorflow.nn.depth_to_space(values, 2)

    return Flat()(layers.Conv2D(12, 3, padding="same")(Deep()(x)))


def test_a_saved_model_may_hold_what_keras_has_no_layer_for(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    image = layers.Input((None, None, 3))
    x = shuffles(keras, image)
    x = layers.ZeroPadding2D(((1, 0), (0, 1)))(x)
    x = layers.Conv2DTranspose(4, 4, strides=2, padding="same")(layers.Conv2D(8, 3, strides=2, padding="valid")(x))
    x = layers.Activation("hard_swish")(x)
    net = randomized(keras.Model(image, layers.Add()([image, layers.Conv2D(3, 1)(x)])))
    net.export(tmp_path / "net", verbose=False)
    model = importers.load(tmp_path / "net")
    assert_close(as_read(model, pixels(3, 32, 48)), net(pixels(3, 32, 48)))
    assert model.stride == 2


def test_nothing_is_left_switched_off(keras: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    importers.load(folder / "net.keras")
    assert logging.root.manager.disable == before
    assert capsys.readouterr() == ("", "")


# What is wrong -> how to write it (the file's path, from a folder), and what the error says.
REFUSED: dict[str, tuple[Callable[[Any, Path], Path], str]] = {}


def refused(told: str) -> Callable[[Callable[[Any, Path], Path]], Callable[[Any, Path], Path]]:
    def note(write: Callable[[Any, Path], Path]) -> Callable[[Any, Path], Path]:
        REFUSED[write.__name__] = (write, told)
        return write

    return note


@refused(r"operator (FULLY_CONNECTED|RESHAPE): .*What can be read: add, .*conv_transpose")
def dense_layers(keras: Any, folder: Path) -> Path:
    layers = keras.layers
    image = layers.Input((8, 8, 1))
    x = layers.Reshape((8, 8, 1))(layers.Dense(64)(layers.Flatten()(image)))
    return saved(keras.Model(image, x), folder / "net.keras")


@refused(r"Keras cannot read it \(.*Lambda.*disallowed")
def a_file_with_code(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((8, 8, 1))
    return saved(keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)), folder / "net.keras")


@refused(r"Keras cannot read it \(.*Lambda.*disallowed")
def an_old_file_with_code(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((8, 8, 1))
    return saved(keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)), folder / "net.h5")


@refused(r"an image 64x64x3 comes out as 60x60x3: a denoiser keeps the size; pad its convolutions \(padding 'same'\)")
def no_padding(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((None, None, 3))
    return saved(keras.Model(image, keras.layers.Conv2D(3, 5)(image)), folder / "net.keras")


@refused(r"takes images of 28x28, which is no multiple of its strides' 8")
def a_size_that_its_strides_do_not_divide(keras: Any, folder: Path) -> Path:
    layers = keras.layers
    x = image = layers.Input((28, 28, 1))
    for _ in range(3):
        x = layers.MaxPooling2D(2, padding="same")(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.UpSampling2D(2)(layers.Conv2D(4, 3)(layers.UpSampling2D(4)(x)))
    return saved(keras.Model(image, layers.Conv2D(1, 3, padding="same")(x)), folder / "net.keras")


@refused(r"conv_transpose: of n pixels it makes 2n\+1: exactly 2n is read")
def a_transposed_convolution_without_padding(keras: Any, folder: Path) -> Path:
    layers = keras.layers
    image = layers.Input((32, 32, 1))
    x = layers.Conv2DTranspose(4, 3, strides=2)(layers.MaxPooling2D(2)(image))
    return saved(keras.Model(image, layers.Conv2D(1, 2)(x)), folder / "net.keras")


@refused(r"operator AVERAGE_POOL_2D: its padding does not count in the mean")
def a_mean_without_its_padding(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((32, 32, 1))
    x = keras.layers.AveragePooling2D(3, strides=1, padding="same")(image)
    return saved(keras.Model(image, x), folder / "net.keras")


@refused(r"operator PRELU: a constant of shape \[.*8, 8, 3\]: one number a channel is allowed")
def a_slope_a_pixel(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((8, 8, 3))
    return saved(randomized(keras.Model(image, keras.layers.PReLU()(image))), folder / "net.keras")


@refused(r"has inputs of the shapes \?x\?x\?x5: expected an image \[N, H, W, C\] with C 1 or 3")
def five_channels(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((None, None, 5))
    return saved(keras.Model(image, keras.layers.Conv2D(5, 3, padding="same")(image)), folder / "net.keras")


@refused(r"has inputs of the shapes \?x64: expected an image \[N, H, W, C\]")
def a_flat_input(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((64,))
    return saved(keras.Model(image, keras.layers.Dense(64)(image)), folder / "net.keras")


@refused(r"hold NaN or infinity: export the network again")
def a_weight_that_is_nan(keras: Any, folder: Path) -> Path:
    image = keras.layers.Input((32, 32, 1))
    net = keras.Model(image, keras.layers.Conv2D(1, 3, padding="same")(image))
    net.set_weights([np.full(w.shape, np.nan, np.float32) for w in net.get_weights()])
    return saved(net, folder / "net.keras")


@refused(r"net\.keras is no \.keras file, which is a zip: write it with model\.save")
def a_damaged_file(keras: Any, folder: Path) -> Path:
    (folder / "net.keras").write_bytes(b"PK not a zip")
    return folder / "net.keras"


@refused(r"net\.h5: Keras cannot read it")
def a_damaged_hdf5_file(keras: Any, folder: Path) -> Path:
    (folder / "net.h5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    return folder / "net.h5"


@refused(r"net: no SavedModel with the signature serving_default \(.*write it with model.export")
def a_damaged_saved_model(keras: Any, folder: Path) -> Path:
    (folder / "net").mkdir()
    (folder / "net" / "saved_model.pb").write_bytes(b"\xff\xff not a graph")
    return folder / "net"


@refused(r"net: no SavedModel with the signature serving_default")
def a_saved_model_without_a_signature(keras: Any, folder: Path) -> Path:
    keras.tensorflow.saved_model.save(keras.tensorflow.Module(), str(folder / "net"))
    return folder / "net"


@refused(r"none\.keras: no such file")
def a_missing_file(keras: Any, folder: Path) -> Path:
    return folder / "none.keras"


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_said(what: str, keras: Any, tmp_path: Path) -> None:
    write, told = REFUSED[what]
    path = write(keras, tmp_path)
    with pytest.raises(CheckpointError, match=told) as raised:
        importers.load(path)
    assert str(path) in str(raised.value)


def test_without_tensorflow_the_error_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "net.keras").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"needs tensorflow, .*: pip install 'edgekit\[tensorflow\]'"):
        importers.load(tmp_path / "net.keras")
