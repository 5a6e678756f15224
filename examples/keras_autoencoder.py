"""The convolutional autoencoder of the Keras tutorials, trained on edgekit's built-in images: a model to bring along.

    pip install -c constraints.txt -e ".[all,tensorflow]"
    python examples/keras_autoencoder.py denoiser.keras
    edgekit compress --model denoiser.keras --target tflite --sigma 25:50 --prune 0

About two minutes on two cores. What it learns is modest: everything passes through a quarter of the image's width and
height, so fine texture is lost, and noise has to be strong before it helps. The point is the way it takes afterwards.
"""

import argparse

import keras
import numpy as np
from keras import layers

from edgekit.train.images import open_images

PATCH = 64
# Noise levels, standard deviations in 8-bit units.
SIGMA = (25, 50)


def patches(count: int, seed: int) -> np.ndarray:
    """Random crops of the built-in images (CC0 or public domain): float32 [count, PATCH, PATCH, 3] in 0..1."""
    rng = np.random.default_rng(seed)
    pictures = open_images(None, patch=PATCH).training
    crops = []
    for _ in range(count):
        clean, _ = pictures[rng.integers(len(pictures))].pixels()
        top, left = (rng.integers(side - PATCH + 1) for side in clean.shape[:2])
        crops.append(clean[top : top + PATCH, left : left + PATCH])
    return np.stack(crops).astype(np.float32) / 255


def autoencoder() -> keras.Model:
    """As in "Convolutional autoencoder for image denoising" on keras.io, for colour and for any size."""
    image = layers.Input(shape=(PATCH, PATCH, 3))
    x = layers.Conv2D(32, 3, activation="relu", padding="same")(image)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Conv2D(32, 3, activation="relu", padding="same")(x)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Conv2DTranspose(32, 3, strides=2, activation="relu", padding="same")(x)
    x = layers.Conv2DTranspose(32, 3, strides=2, activation="relu", padding="same")(x)
    return keras.Model(image, layers.Conv2D(3, 3, activation="sigmoid", padding="same")(x))


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default="denoiser.keras")
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    clean = patches(options.patches, seed=0)
    rng = np.random.default_rng(1)
    level = rng.uniform(*SIGMA, (len(clean), 1, 1, 1)).astype(np.float32) / 255
    # Rounded and clipped: a device's noisy images have 8 bits.
    noisy = np.round(255 * np.clip(clean + level * rng.standard_normal(clean.shape, np.float32), 0, 1)) / 255
    model = autoencoder()
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="mean_absolute_error")
    model.fit(noisy, clean, batch_size=16, epochs=options.epochs, validation_split=0.05, verbose=2)
    model.save(options.out)
    print(f"saved {options.out}; next: edgekit compress --model {options.out} --target tflite --sigma 25:50 --prune 0")


if __name__ == "__main__":
    main()
