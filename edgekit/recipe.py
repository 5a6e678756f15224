"""The recipe: one validated object that says everything a run does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from edgekit.errors import MissingExtraError, RecipeError
from edgekit.recipe_errors import places, word

_S = TypeVar("_S", bound="Settings")

Probability = Annotated[float, Field(ge=0, le=1)]
EightBit = Annotated[float, Field(ge=0, le=255)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
GrainPixels = Annotated[float, Field(ge=0, le=4)]
JpegQuality = Annotated[int, Field(ge=1, le=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _parse_budget(value: object) -> object:
    """A budget may carry its unit, as on the command line."""
    if not isinstance(value, str):
        return value
    number = value.strip().lower().removesuffix("/mp").strip().removesuffix("ms").strip()
    try:
        return float(number)
    except ValueError:
        raise ValueError("expected milliseconds per megapixel, e.g. 40ms/MP") from None


def _parse_range(value: object) -> object:
    """A range may be written "0:55", as on the command line; one number stands for itself."""
    if isinstance(value, str):
        low, _, high = value.partition(":")
        try:
            return (float(low), float(high or low))
        except ValueError:
            raise ValueError("expected LOW:HIGH in 8-bit units, 0 to 255, e.g. 0:55") from None
    return (value, value) if isinstance(value, int | float) else value


SigmaRange = Annotated[tuple[EightBit, EightBit], BeforeValidator(_parse_range)]


def _parse_devices(value: object) -> object:
    """What Fabric takes: a number, all, or some by their indices; a number may come as text, from the command line."""
    text = "" if isinstance(value, bool) else str(value).strip()
    if re.fullmatch(r"-1|0*[1-9]\d*", text):
        return int(text)
    # "3," is the one of that index.
    if text == "auto" or re.fullmatch(r"\d+\s*,(\s*\d+\s*,)*(\s*\d+)?", text):
        return text
    raise ValueError("expected a number above 0, -1 or auto for all that there are, or indices with commas: 0,2 or 3,")


class Settings(BaseModel):
    """Base of every settings object: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Which noise models read a setting of `NoiseSettings`; device_share is for all, and sigma is the range that is judged.
_READ_BY = {
    "stratified": ("gaussian", "poisson-gaussian", "salt-and-pepper", "mixed"),
    "shot": ("poisson-gaussian", "mixed", "camera"),
    "read": ("poisson-gaussian", "mixed"),
    "density": ("salt-and-pepper", "mixed"),
    "quality": ("jpeg", "mixed", "camera"),
    "grain": ("camera",),
    "chroma_grain": ("camera",),
    "jpeg_share": ("camera",),
    "level": ("poisson-gaussian", "salt-and-pepper", "jpeg", "mixed", "camera"),
}
_NOISES = {"gaussian"}.union(*_READ_BY.values())


class NoiseSettings(Settings):
    """The noise a model is trained on; each pair is a range that every image draws from.

    `train/noise.py` says what each noise model does with its settings, and the source of its numbers.
    """

    model: str = "gaussian"
    # gaussian: standard deviation, in 8-bit units (0..255).
    sigma: SigmaRange = (0.0, 55.0)
    # poisson-gaussian, mixed: variance per unit of signal, signal in 0..1 (one over the electrons that make white);
    # camera: the same on the raw sensor; its read noise follows from it by the line of Brooks et al.
    shot: tuple[PositiveShare, PositiveShare] = (1e-4, 1.2e-2)
    # poisson-gaussian, mixed: standard deviation of the signal-independent part, in 8-bit units (0..255).
    read: tuple[EightBit, EightBit] = (0.0, 10.0)
    # salt-and-pepper, mixed: share of the samples (one channel of one pixel) that are replaced by black or white.
    density: tuple[Probability, Probability] = (0.0, 0.1)
    # jpeg, mixed, camera: libjpeg's quality.
    quality: tuple[JpegQuality, JpegQuality] = (30, 95)
    # gaussian, poisson-gaussian, salt-and-pepper, mixed: spread the strengths of each batch over their ranges,
    # instead of drawing each alone.
    stratified: bool = True
    # camera: standard deviation, in pixels, of the camera's own filter of the noise; demosaicking comes on top.
    grain: tuple[GrainPixels, GrainPixels] = (0.0, 1.0)
    # camera: the same for a filter of the noise's colour alone, which cameras smooth more than its brightness.
    chroma_grain: tuple[GrainPixels, GrainPixels] = (0.0, 0.0)
    # camera: share of the images that are stored as JPEG.
    jpeg_share: Probability = 0.5
    # All but gaussian: the level that the model is told. rms: root mean square of noisy - clean. auto: drawn from the
    # span in which `sigma="auto"` finds it, for noise that is correlated between neighbours.
    level: Literal["rms", "auto"] = "rms"
    # Share of images that are clipped to 0..1 and rounded to 8 bits, as a device sees them.
    device_share: Probability = 1.0

    @field_validator("sigma", "shot", "read", "density", "quality", "grain", "chroma_grain")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"{value[0]:g} to {value[1]:g} is no range: the first number is the smaller one")
        return value

    @model_validator(mode="after")
    def _read(self) -> NoiseSettings:
        # An unknown model is refused, by its name, where noise is drawn.
        for name, models in _READ_BY.items() if self.model in _NOISES else ():
            # A setting at its default may come from a recipe that was written out whole.
            idle = getattr(self, name) == type(self).model_fields[name].default
            if self.model not in models and not idle:
                raise ValueError(
                    f"{name} means nothing to {self.model} noise, only to {', '.join(models)}: leave it out"
                )
        return self

    @property
    def draws_sigma(self) -> bool:
        """Whether images draw from `sigma`; else it is no more than the range that compression and search judge by."""
        # An unknown model is refused, by its name, where noise is drawn.
        return self.model == "gaussian" or self.model not in _NOISES

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What the model does not read is left out: a default that changes later must not make it a contradiction.
        everything: dict[str, Any] = write(self)
        return {k: v for k, v in everything.items() if self.model in _READ_BY.get(k, (self.model,))}


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
    # Crops a step, on each device.
    batch: PositiveInt = 8
    # Their side, in pixels.
    patch: PositiveInt = 96
    # Batches a step.
    accumulate: PositiveInt = 1
    # Weights of l1, mse, rmse, charbonnier, frequency, feature and lpips, which may be mixed.
    loss: dict[str, float] = {"l1": 1.0}
    # For the losses "feature" and "lpips": a VGG's weights (for lpips VGG-16's), a state dict as torchvision has it.
    feature_weights: Path | None = None
    # Divide each image's loss by (sigma + 5) in 8-bit units, so that low noise counts as much as high.
    # Off: for L1 and RMSE, whose gradient does not shrink with the error, it hands low noise most of the say.
    balance_sigma: bool = False
    # Train on noisy images alone: one pixel of a pair of neighbours teaches the other.
    self_supervised: Literal["none", "neighbor2neighbor"] = "none"
    # Weight of its regulariser at the end of the run, to which it rises from 0 in proportion to the steps.
    self_supervised_weight: Annotated[float, Field(ge=0)] = 2.0
    # Of so many pixels along each side one is taken first: against noise that is correlated between neighbours.
    self_supervised_spacing: Annotated[int, Field(ge=1, le=8)] = 1
    # Muon: a separable U-Net learns several times faster than with AdamW.
    optimizer: Literal["adamw", "muon"] = "muon"
    # At its highest: it rises over the warm-up and falls to 0 by a cosine.
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    # Steps of linear rise, here and in the other stages: at most a tenth of the run.
    warmup: Annotated[int, Field(ge=0)] = 500
    # The longest that a gradient may be.
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    # Of the average of the weights, which is what is validated and written: how much of it a step keeps.
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    # "auto": bf16-mixed where the processor multiplies bfloat16, else 32-true.
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    seed: Seed = 0
    # Of the images, held out to validate on; at least one, unless it is 0.
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    # Steps.
    validate_every: PositiveInt = 2000
    # Stop when so many validations in a row brought no better PSNR, and keep the best weights; 0 never stops.
    patience: Annotated[int, Field(ge=0)] = 0
    # Steps between checkpoints.
    save_every: PositiveInt = 1000
    # Write the log and images for TensorBoard, too.
    tensorboard: bool = False
    # Patterns (fnmatch) of parameter names that are frozen.
    freeze: tuple[str, ...] = ()
    # The same, and what the learning rate is multiplied by there; the first match counts.
    learning_rate_factors: dict[str, Annotated[float, Field(gt=0)]] = {}
    # With a teacher: its share of the loss; the clean images have the rest.
    teacher_weight: Probability = 0.5
    # Passed on to Lightning Fabric, as are the next three: cpu, cuda, mps, or auto.
    accelerator: str = "auto"
    # A number, auto for all, or indices with commas: "3,".
    devices: Annotated[int | str, BeforeValidator(_parse_devices)] = 1
    num_nodes: PositiveInt = 1
    # auto, ddp and its variants: the whole model on every device.
    strategy: str = "auto"
    # Seconds that a process waits for the others, which wait while the first one validates; then the run ends.
    process_timeout: Annotated[float, Field(gt=0)] = 1800.0
    # Without `data`: dead-leaves images in the built-in set. A network trained from nothing wants hundreds.
    leaves: PositiveInt = 32
    noise: NoiseSettings = NoiseSettings()
    augment: AugmentSettings = AugmentSettings()

    @property
    def crop(self) -> int:
        """Side, in pixels, of what is cut from an image for a patch."""
        return self.patch if self.self_supervised == "none" else self.patch * self.self_supervised_spacing


class PruneSettings(Settings):
    """Removal of whole channels, nothing trained."""

    # Share of the model's MACs to remove.
    ratio: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    # Widths become multiples of this: what int8 kernels fill (16 channels of NEON or AVX512 at a time).
    round_to: PositiveInt = 16
    # "taylor": the effect on the loss, on so many noisy batches, a residual stream's readers weighed together.
    # Baselines: "taylor-sum", as published, which adds them up; "l1", the norm of the weights.
    criterion: Literal["taylor", "taylor-sum", "l1"] = "taylor"
    # Noisy batches that the effect on the loss is measured on.
    batches: PositiveInt = 16


class DistillSettings(Settings):
    """Recovery training of the pruned student."""

    # 0 leaves the stage out.
    steps: Annotated[int, Field(ge=0)] = 3000
    # Crops a batch.
    batch: PositiveInt = 8
    # Their side, in pixels.
    patch: PositiveInt = 96
    # The student cycles through so many batches, on which the teacher runs once.
    cache_batches: PositiveInt = 256
    # One of l1, mse, rmse, charbonnier and frequency.
    loss: str = "l1"
    # As in training.
    balance_sigma: bool = False
    # Weights of the distances to the teacher's output, to the clean image, and to the teacher's features. Unless
    # a recipe names one of the first two, `compress` on the built-in images takes 0.75 and 0.25.
    output_weight: Annotated[float, Field(ge=0)] = 0.5
    # See output_weight, here and in the next.
    clean_weight: Annotated[float, Field(ge=0)] = 0.5
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    # Module of the student -> module of the teacher whose output it imitates, e.g. {"middle": "middle"}.
    features: dict[str, str] = {}
    # Muon: after so many steps 0.1 to 0.15 dB better than AdamW at its best rate.
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Annotated[int, Field(ge=0)] = 50
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    seed: Seed = 0
    save_every: PositiveInt = 500

    @property
    def pool(self) -> int:
        """Batches that are drawn: no more than there are steps to see them."""
        return min(self.cache_batches, self.steps)


class QuantizeSettings(Settings):
    """INT8: ranges observed on noisy batches, then learned together with the weights (QAT)."""

    # 0 is calibration alone (post-training quantization).
    steps: Annotated[int, Field(ge=0)] = 300
    # Noisy batches that ranges are observed on.
    calibration_batches: PositiveInt = 8
    # Where ranges begin: of least squared error over a sample of each tensor, of least error image by image, or at its
    # extremes, as most tools do. auto: least-squares; without steps the first two are tried and the better one is kept.
    range_fit: Literal["auto", "least-squares", "per-image", "extremes"] = "auto"
    # Draw channels that set the range of a tensor alone into that of the others, where it is measured to help.
    equalisation: bool = True
    # Layers that stay in float from the start, by module path, beside those that `max_drop` leaves so. A layer between
    # two integer tensors is made integer again by a converter: name neighbours.
    wide: tuple[str, ...] = ()
    # Without steps: the weights of a layer rounded together, so that its output changes least, or each to the nearest.
    rounding: Literal["together", "nearest"] = "together"
    # Take off biases what the rounding of weights adds on average.
    bias_correction: bool = True
    # Of weights, in units of each layer's own scale: their root mean square over the root of a kernel's inputs.
    weight_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    # Ranges are in units of their observed width.
    range_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    # The last share of the steps: weights stand still, ranges and biases adapt to the integers that they became.
    settle_share: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    # In it, of biases, in units of what the layers write.
    bias_learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup: Annotated[int, Field(ge=0)] = 20
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    # Short: an average of weights over many steps is rounded as none of them was.
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # Weights of the distance to the float model's output, relative to that model's own error, and of the L1 distance to
    # the clean image, balanced over the noise levels.
    teacher_weight: Annotated[float, Field(ge=0)] = 1.0
    clean_weight: Annotated[float, Field(ge=0)] = 0.0
    save_every: PositiveInt = 200

    @model_validator(mode="after")
    def _taught(self) -> QuantizeSettings:
        if self.steps and not (self.teacher_weight or self.clean_weight):
            raise ValueError("teacher_weight and clean_weight are 0: nothing would tell the integers what to do")
        return self


class Recipe(Settings):
    """Everything that a compression run does; written into the bundle, and run again it gives the same model files."""

    # What to compress: a registered model, with its shipped weights unless `weights` names a file; or a network of the
    # user's own: net.py:make (with or without `weights`), .pt2, .onnx, .keras, .h5, a SavedModel folder.
    model: str = "dsunet-s"
    # A weight file for it; none: those that ship.
    weights: Path | None = None
    # Who teaches the pruned student: "original" (the model before pruning), a registered model with shipped weights,
    # a weight file, a network's file (.onnx, .keras), or "none".
    teacher: str = "original"
    # A folder of clean images, or of pairs (noisy/ and clean/); None is the built-in set.
    data: Path | None = None
    # Noise levels the bundle is made for, in 8-bit units (0..255).
    sigma: SigmaRange = (0.0, 55.0)
    # ISO -> noise level in 8-bit units, as `edgekit profile` finds it; the bundle carries it for `denoise --iso`.
    iso_sigma: dict[PositiveInt, EightBit] = {}
    # The noise itself, which the stages see and the golden tiles carry; `sigma` above is its range. Pairs bring theirs.
    noise: NoiseSettings = NoiseSettings()
    # Share of the MACs to remove. None: a quarter, but nothing of a network that is small (`pipeline.share_of`).
    prune: Annotated[float, Field(ge=0, le=0.9)] | None = None
    # Training steps of distillation and quantization together; None is what the stages' own settings say.
    steps: Annotated[int, Field(ge=0)] | None = None
    # One target, or "all": pruned and distilled once, then quantized and exported for each.
    target: str = Field(json_schema_extra={"example": "tflite"})
    # Who makes the integers: edgekit learns ranges (QAT); "nncf" is NNCF's post-training quantization, for OpenVINO.
    quantizer: Literal["edgekit", "nncf"] = "edgekit"
    # Of the bundle's default file; nothing is quantized for the other two.
    precision: Literal["int8", "fp16", "fp32"] = "int8"
    # Refuse weights, teachers and images that are for research or non-commercial use alone, or do not say.
    license_clean: bool = False
    # dB lost at most, in all, against the original FP32 model; layers stay in float where integers would exceed it.
    max_drop: Annotated[float, Field(gt=0, le=20)] = 0.5
    # Height and width of the target's static input, in pixels.
    tile: Annotated[int, Field(ge=32, le=4096)] = 512
    # TensorRT: the shapes [N, C, H, W] that its engine is built for; None is one tile.
    shape_profile: dict[Literal["min", "opt", "max"], tuple[int, int, int, int]] | None = None
    seed: Seed = 0
    # The stages in detail. `steps`, where it is given, wins over theirs.
    pruning: PruneSettings = PruneSettings()
    distillation: DistillSettings = DistillSettings()
    quantization: QuantizeSettings = QuantizeSettings()

    @field_validator("sigma")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(
                f"{value[0]:g} is above {value[1]:g}; write the lower level first, {value[1]:g}:{value[0]:g}"
            )
        return value

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        """Refuse a stage's own setting that a setting of the whole would silently replace."""
        named = "ratio" in self.pruning.model_fields_set and self.prune is None
        if named or self.pruning.ratio not in (PruneSettings().ratio, self.prune):
            given = "no prune" if self.prune is None else f"prune {self.prune:g}"
            raise ValueError(f"pruning.ratio {self.pruning.ratio:g} against {given}: give prune alone")
        if self.noise.sigma not in (NoiseSettings().sigma, self.sigma):
            low, high = self.noise.sigma
            raise ValueError(f"noise.sigma {low:g}:{high:g} against sigma: give sigma alone")
        low, high = self.sigma
        for iso, level in self.iso_sigma.items():
            if not low <= level <= high:
                raise ValueError(
                    f"iso_sigma gives {level:g} for ISO {iso}, outside sigma {low:g}:{high:g}: widen sigma, or "
                    "take the entry out"
                )
        if self.noise.device_share != 1:
            raise ValueError(f"noise.device_share is {self.noise.device_share:g}: a device sees 8 bits; leave it out")
        if self.distillation.seed not in (DistillSettings().seed, self.seed):
            raise ValueError(f"distillation.seed {self.distillation.seed} against seed {self.seed}: give seed alone")
        return self


# Settings of the images and the processes, which are opened once.
_OF_ALL_PARTS = {
    "validation_share", "leaves", "accelerator", "devices", "num_nodes", "strategy", "process_timeout",
}  # fmt: skip


class PartSettings(TrainSettings):
    """One run of several, and the network that it trains."""

    # The architecture's own arguments, over those of the whole run; None is the same network.
    config: dict[str, Any] | None = None

    @property
    def run(self) -> TrainSettings:
        """Its settings alone."""
        return TrainSettings(**{name: getattr(self, name) for name in self.model_fields_set - {"config"}})


class TrainRecipe(Settings):
    """Everything that a training run does; `recipe.yaml` beside the trained weights holds it."""

    model: Annotated[str, Field(json_schema_extra={"flag": "MODEL"})]
    # The architecture's own arguments where they are not the preset's: what `edgekit search` found.
    config: dict[str, Any] = {}
    # 1 (gray) or 3 (RGB); None is the model's own default.
    channels: Literal[1, 3] | None = None
    # A folder of clean images, or of pairs (noisy/ and clean/); None is the built-in set.
    data: Path | None = None
    # Start from these instead of random weights: a shipped name or a weight file.
    weights: str | None = None
    # Imitate this model: a shipped name or a weight file.
    teacher: str | None = None
    # `weights` are of a smaller network of the same architecture: this one begins as the same function.
    grow: bool = False
    # Refuse weights, a teacher and images that are for research or non-commercial use alone, or do not say.
    license_clean: bool = False
    train: TrainSettings = TrainSettings()
    # Runs one after another, each from the weights of the one before. What a part does not name is as in `train`: here
    # it is filled in. `config` gives a part a network of its own, out of which the next part's grows.
    parts: tuple[PartSettings, ...] = ()
    # What the run found: told by the file, asked of nobody.
    images: int | None = None
    versions: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_parts(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(given.get("parts"), list | tuple):
            return given
        train, *parts = (
            # What nobody set is left out: it is as in `train`.
            settings.model_dump(exclude_unset=True) if isinstance(settings, TrainSettings) else settings
            for settings in (given.get("train", {}), *given["parts"])
        )
        if not isinstance(train, Mapping):
            return given
        for number, part in enumerate(parts, 1):
            for name in part if isinstance(part, Mapping) else ():
                if name in cls.model_fields and name not in PartSettings.model_fields:
                    raise ValueError(f"part {number} has {name}: it belongs to the whole run; give it beside train")
        return {**given, "parts": [_part(train, part) if isinstance(part, Mapping) else part for part in parts]}

    @model_validator(mode="after")
    def _one_launch(self) -> TrainRecipe:
        for number, part in enumerate(self.parts, 1):
            if "channels" in (part.config or {}):
                raise ValueError(
                    f"part {number} has config.channels: images are the same for all parts; give channels beside train"
                )
            for name in sorted(_OF_ALL_PARTS):
                if (own := getattr(part, name)) != getattr(self.train, name):
                    raise ValueError(
                        f"part {number} has {name} {own}: images and processes are the same for all parts; "
                        "give it under train"
                    )
        return self

    def content(self) -> dict[str, Any]:
        """The recipe as a file holds it: of each part what is its own."""
        written = self.model_dump(mode="json", exclude={"license_clean", "images", "versions"})
        return {**written, "parts": [_own(written["train"], part) for part in written["parts"]]}

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Refuse settings of `train`, given beside the recipe, that a part has its own of: which did the user mean?

        Raises: RecipeError; also for a range of sigma, where no run has Gaussian noise, which alone is drawn from it.
        """
        for number, part in enumerate(self.parts, 1):
            own, base = _leaves(part.model_dump(mode="json")), _leaves(self.train.model_dump(mode="json"))
            for name in _leaves(given):
                if name.startswith("noise.") and part.noise.model != self.train.noise.model:
                    raise RecipeError(
                        f"{name} is {base.get(name)}, but part {number} of the recipe has a noise of its own, "
                        f"{part.noise.model}: say in the recipe which of them you mean, or leave it out here"
                    )
                if own.get(name) != base.get(name):
                    raise RecipeError(
                        f"{name} is {base.get(name)}, but part {number} of the recipe has its own, {own.get(name)}: "
                        "change it in the recipe, or leave it out here"
                    )
        noises = self._noises()
        if "noise.sigma" in _leaves(given) and not any(noise.draws_sigma for noise in noises):
            raise RecipeError(
                f"sigma means nothing to training on {noises[0].model} noise, only on gaussian: leave it out, or "
                "change the noise's model"
            )

    def unread(self) -> str:
        """What the recipe says of a noise that its model does not read, in a sentence; empty where it reads all."""
        usual = NoiseSettings.model_fields["sigma"].default
        for noise in self._noises():
            if not noise.draws_sigma and noise.sigma != usual:
                low, high = noise.sigma
                return f"noise.sigma {low:g} to {high:g} is not read: {noise.model} noise is not drawn from it"
        return ""

    def _noises(self) -> list[NoiseSettings]:
        return [settings.noise for settings in (self.parts or (self.train,))]


# Settings of a training that a candidate's score does not depend on: the winner's alone, or given by the search.
_WINNERS = {
    "steps", "seed", "validation_share", "validate_every", "patience", "save_every", "tensorboard",
    "accelerator", "devices", "num_nodes", "strategy", "process_timeout",
}  # fmt: skip


def _supervised(train: TrainSettings) -> TrainSettings:
    """Refuse what only `edgekit train` can do."""
    if train.self_supervised != "none":
        raise ValueError("self_supervised belongs to edgekit train: clean images, or pairs, are needed here")
    return train


class SearchRecipe(Settings):
    """Everything that a search for a student does."""

    # Milliseconds per megapixel of useful pixels, of the INT8 file on this machine.
    budget: Annotated[float, Field(gt=0), BeforeValidator(_parse_budget)]
    target: str = "tflite"
    channels: Literal[1, 3] = 3
    # A folder of clean images, or of pairs; None is the built-in set.
    data: Path | None = None
    # Refuse images that are for research or non-commercial use alone.
    license_clean: bool = False
    # Candidates in all, those over the budget and other machines' included.
    trials: PositiveInt = 20
    # Of the training of each candidate.
    steps: PositiveInt = 1500
    # CPU threads that a candidate is timed with.
    threads: PositiveInt = 1
    # Height and width of the input that it is timed on, in pixels.
    tile: Annotated[int, Field(ge=32, le=4096)] = 512
    # A file, or a database's URL, that several machines may share; None is a file beside the recipe that is written.
    storage: str | None = None
    seed: Seed = 0
    # How candidates are trained, and the winner in full; `steps` and `seed` here are the winner's.
    train: Annotated[TrainSettings, AfterValidator(_supervised)] = TrainSettings()

    def identity(self) -> dict[str, Any]:
        """What machines that share a study must have in common, by name."""
        told: dict[str, Any] = self.model_dump(
            mode="json", exclude={"trials", "storage", "data", "train", "license_clean"}
        )
        train = self.train.model_dump(mode="json", exclude=_WINNERS)
        return {**told, **{f"train.{name}": value for name, value in train.items()}}


class TuneSettings(TrainSettings):
    """A training run that begins with a model that is good already."""

    steps: PositiveInt = 2000
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99


def _listed(value: object) -> object:
    """One noise stands for a list of it."""
    return (value,) if isinstance(value, Mapping | NoiseSettings) else value


class FinetuneRecipe(Settings):
    """Everything that a fine-tuning does."""

    # A bundle, or a model by name: with its shipped weights, or `weights`.
    model: Annotated[str, Field(json_schema_extra={"flag": "BUNDLE_OR_MODEL"})]
    # Of a model: a shipped name or a weight file.
    weights: str | None = None
    # New images: clean ones, to which `train.noise` is added, or pairs with their own noise.
    data: Path
    # Old images: None is the built-in set.
    replay: Path | None = None
    # Their noises, one or a list: none is those that the model knows.
    replay_noise: Annotated[tuple[NoiseSettings, ...], BeforeValidator(_listed)] = ()
    # Of each batch; 0 replays nothing, and below 1, or no new image would be shown.
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    # Of the new bundle, e.g. {steps: 600}; what is not named is as the old bundle was made.
    quantization: QuantizeSettings | None = None
    # Refuse weights and images that are for research or non-commercial use alone, or do not say.
    license_clean: bool = False
    train: Annotated[TuneSettings, AfterValidator(_supervised)] = TuneSettings()


# The commands that take a recipe, and whose settings it holds.
RECIPES: dict[str, type[Settings]] = {
    "compress": Recipe,
    "train": TrainRecipe,
    "search": SearchRecipe,
    "finetune": FinetuneRecipe,
}


def make(cls: type[_S], settings: Mapping[str, Any], where: str = "") -> _S:
    """Validate settings.

    Args:
        cls: `Recipe`, `TrainSettings`, ...
        settings: values by name; those that are None count as not given.
        where: what the error message names as their source, e.g. the recipe's file name.
    Raises: RecipeError: one line about the first thing that is wrong.
    """
    try:
        return cls.model_validate({name: value for name, value in settings.items() if value is not None})
    except ValidationError as error:
        raise word(error, cls, where) from None


def load(cls: type[_S], path: Path | str | None, overrides: Mapping[str, Any]) -> _S:
    """Read settings from a YAML file; what `overrides` gives (not None) wins over the file.

    Raises: RecipeError: the file is missing, is no YAML, or holds a setting that is unknown or out of range.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if path is None:
        return make(cls, given)
    file = Path(path)
    settings = _read_yaml(file)
    _refuse_another_commands(cls, settings, file)
    # Alone first, so that an error in the file is blamed on the file; what it leaves to the flags may be missing.
    make(cls, merge(given, settings), where=str(file))
    return make(cls, merge(settings, given))


def _refuse_another_commands(cls: type[BaseModel], settings: Mapping[str, Any], file: Path) -> None:
    """Raises: RecipeError: the file fits another command's recipe better than this one's."""
    own = next((command for command, recipe in RECIPES.items() if recipe is cls), None)
    unknown = settings.keys() - cls.model_fields.keys()
    if own is None or not unknown:
        return
    # What only stands in the wrong place, as `steps` that belongs under `train`, is still this command's.
    fits = {command: len(settings.keys() & recipe.model_fields.keys()) for command, recipe in RECIPES.items()}
    fits[own] += sum(bool(places(cls, name)) for name in unknown)
    best = max(fits.values())
    others = [command for command, count in fits.items() if count == best]
    if own in others:
        return
    commands = " or ".join(f"`edgekit {command}`" for command in others)
    foreign = ", ".join(sorted(unknown & {name for other in others for name in RECIPES[other].model_fields}))
    raise RecipeError(
        f"{file} is a recipe of {commands}, not of `edgekit {own}`, which has no setting {foreign}: "
        f"run edgekit {others[0]} --recipe {file}"
    )


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, nested ones too; what is in `above` wins."""
    merged = dict(below)
    for name, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if nested else value
    return merged


# Settings whose names are the user's own: those of a part replace those of all, as nobody could take one out.
_REPLACED = ("loss", "learning_rate_factors", "config")


def _part(train: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a part over those of all. Another noise begins anew: the settings of the first are not for it."""
    merged = merge(train, part) | {name: part[name] for name in _REPLACED if name in part}
    below, own = train.get("noise"), part.get("noise")
    if isinstance(below, Mapping) and isinstance(own, Mapping):
        usual = NoiseSettings().model
        if own.get("model", below.get("model", usual)) != below.get("model", usual):
            merged["noise"] = {k: v for k, v in below.items() if k == "device_share"} | dict(own)
    return merged


def _own(train: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """What `_part` makes the same part of: the settings that are not those of all; another noise is told whole."""
    if part.get("model") != train.get("model"):
        return dict(part)
    nested = {name for name, value in part.items() if isinstance(value, Mapping) and name not in _REPLACED}
    differing = {name: value for name, value in part.items() if value != train.get(name)}
    return {name: _own(train[name], value) if name in nested else value for name, value in differing.items()}


def _leaves(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their full names, e.g. "noise.sigma"."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def load_recipe(path: Path | str | None = None, **overrides: Any) -> Recipe:
    """The recipe of a YAML file with settings of its own names on top; without a file, the defaults."""
    return load(Recipe, path, overrides)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise MissingExtraError.needs(f"reading {file}", "pyyaml", "train") from None
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"cannot read the recipe {str(file)!r}: {reason}; give a YAML file of settings") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{file} is no YAML{place}: {getattr(error, 'problem', None) or 'cannot parse it'}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise RecipeError(f"{file} holds a {type(settings).__name__}: expected settings by name, e.g. 'target: tflite'")
    return settings
