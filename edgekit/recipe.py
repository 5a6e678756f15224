"""The recipe: one validated object that says everything a run does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Probability = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of every settings object: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoiseSettings(Settings):
    """The noise a model is trained on. Units are the field's: sigma in 8-bit units, 0..255."""

    model: str = "gaussian"
    sigma: tuple[Annotated[float, Field(ge=0, le=255)], Annotated[float, Field(ge=0, le=255)]] = (0.0, 55.0)
    # Share of images that are clipped to 0..1 and rounded to 8 bits, as a device sees them.
    device_share: Probability = 1.0


class AugmentSettings(Settings):
    """Random changes to each training crop; a value is the probability that it happens to a crop."""

    flip: bool = True
    rotate: bool = True
    permute_channels: Probability = 0.5
    saturation: Probability = 0.5
    gain: Probability = 0.3
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
    save_every: PositiveInt = 1000
    noise: NoiseSettings = NoiseSettings()
    augment: AugmentSettings = AugmentSettings()
