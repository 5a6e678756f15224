"""The recipe: one validated object that says everything a run does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

Probability = Annotated[float, Field(ge=0, le=1)]
EightBit = Annotated[float, Field(ge=0, le=255)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
JpegQuality = Annotated[int, Field(ge=1, le=100)]


class Settings(BaseModel):
    """Base of every settings object: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoiseSettings(Settings):
    """The noise a model is trained on; each pair is a range that every image draws from.

    `train/noise.py` says what each noise model does with its settings, and the source of its numbers.
    """

    model: str = "gaussian"
    # gaussian: standard deviation, in 8-bit units (0..255).
    sigma: tuple[EightBit, EightBit] = (0.0, 55.0)
    # poisson-gaussian, mixed: variance per unit of signal, signal in 0..1 (one over the electrons that make white).
    shot: tuple[PositiveShare, PositiveShare] = (1e-4, 1.2e-2)
    # poisson-gaussian, mixed: standard deviation of the signal-independent part, in 8-bit units (0..255).
    read: tuple[EightBit, EightBit] = (0.0, 10.0)
    # salt-and-pepper, mixed: share of the samples (one channel of one pixel) that are replaced by black or white.
    density: tuple[Probability, Probability] = (0.0, 0.1)
    # jpeg, mixed: libjpeg's quality.
    quality: tuple[JpegQuality, JpegQuality] = (30, 95)
    # Share of images that are clipped to 0..1 and rounded to 8 bits, as a device sees them.
    device_share: Probability = 1.0

    @field_validator("sigma", "shot", "read", "density", "quality")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"{value[0]:g} to {value[1]:g} is no range: the first number is the smaller one")
        return value


class AugmentSettings(Settings):
    """Random changes to each training crop; a value is the probability that it happens to a crop."""

    flip: bool = True
    rotate: bool = True
    permute_channels: Probability = 0.5
    saturation: Probability = 0.5
    gain: Probability = 0.3
    # Take a window 1 to 2 times the crop's size and shrink it: sharper detail, and less of the camera's own noise.
    scale: Probability = 0.0


class TrainSettings(Settings):
    """One training run."""

    steps: PositiveInt = 35_000
    batch: PositiveInt = 8
    patch: PositiveInt = 96
    accumulate: PositiveInt = 1
    loss: dict[str, float] = {"l1": 1.0}
    # Divide each image's loss by (sigma + 5) in 8-bit units, so that low noise counts as much as high.
    balance_sigma: bool = True
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Annotated[int, Field(ge=0)] = 500
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    seed: int = 0
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    validate_every: PositiveInt = 2000
    # Stop when so many validations in a row brought no better PSNR, and keep the best weights; 0 never stops.
    patience: Annotated[int, Field(ge=0)] = 0
    save_every: PositiveInt = 1000
    tensorboard: bool = False
    # Patterns (fnmatch) of parameter names: those frozen, and factors on the learning rate (the first match counts).
    freeze: tuple[str, ...] = ()
    learning_rate_factors: dict[str, Annotated[float, Field(gt=0)]] = {}
    # With a teacher: its share of the loss; the clean images have the rest.
    teacher_weight: Probability = 0.5
    # Passed on to Lightning Fabric. `batch` is per device.
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    noise: NoiseSettings = NoiseSettings()
    augment: AugmentSettings = AugmentSettings()


class QuantizeSettings(Settings):
    """INT8: ranges observed on noisy batches, then learned together with the weights (QAT)."""

    # 0 is calibration alone (post-training quantization).
    steps: Annotated[int, Field(ge=0)] = 1000
    calibration_batches: PositiveInt = 8
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    # Ranges are in units of their observed width.
    range_learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    warmup: Annotated[int, Field(ge=0)] = 20
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    # Weight of the distance to the float model's output, beside that to the clean image.
    teacher_weight: Annotated[float, Field(ge=0)] = 0.0
    save_every: PositiveInt = 200
