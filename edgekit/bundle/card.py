"""The card of a bundle: what the model is, how good, under which terms, and how to use it. Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.bundle import samples
from edgekit.bundle.manifest import Manifest, TensorSpec, Variant
from edgekit.runtime.tiling import step

if TYPE_CHECKING:
    from edgekit.runtime.verdict import Verdict


_ELSEWHERE = {
    "tflite": "- Any other language: open a model file below with LiteRT (TensorFlow Lite) and feed tiles{sample}.",
    "openvino": "- C++: `ov::Core().compile_model` of an .xml file below; any height and width that are multiples of "
    "the stride, any batch. On a CPU set INFERENCE_PRECISION_HINT to f32 for the figures above.",
    "tensorrt": "- Jetson: `python build_engine.py` in this folder builds FP16 and INT8 engines, times both and keeps "
    "the faster one that passes; `trtexec.txt` has the same as command lines. The maker did not run it on "
    "TensorRT.",
}


def render(manifest: Manifest, verdict: Verdict) -> str:
    """The card as Markdown, for a manifest and the host's verdict on it."""
    model = manifest.model
    kind = "colour (RGB)" if model.channels == 3 else "gray"
    told = (
        "estimates the noise itself" if model.blind else f"is told the noise level, {_range(manifest)} in 8-bit units"
    )
    lines = [
        f"# {manifest.name} for {manifest.target}",
        "",
        f"An image denoiser, {kind}, that {told}. Architecture: {model.arch}"
        + (f" ({model.source})." if model.source else "."),
        "",
        f"    {verdict.line()}",
        "",
        f"- size: {model.macs_per_pixel / 1e3:.2f} kMAC per pixel, {model.parameters:,} parameters "
        f"(before compression {model.original_macs_per_pixel / 1e3:.2f} and {model.original_parameters:,})",
        f"- input: tiles of {manifest.tile}x{manifest.tile}; a pixel depends on the {model.halo} around it (halo); "
        f"height and width are multiples of {model.stride}",
        f"- made for noise: {_noise(manifest)}",
        "",
        "## Quality",
        "",
        f"PSNR in dB on the golden tiles of `{manifest.golden}`, which no stage saw: clipped 8-bit input, rounded "
        "8-bit output, measured on the machine that compressed it.",
        "",
        f"| sigma | noisy | FP32 original | FP32 compressed | {verdict.variant} | total | quantization |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (*verdict.rows, verdict.total):
        lines.append(
            f"| {'mean' if row.sigma is None else format(row.sigma, 'g')} | {row.noisy:.2f} | {row.fp32_original:.2f} "
            f"| {row.fp32_compressed:.2f} | {row.device:.2f} | {-row.total_drop:+.2f} | {-row.quantization_drop:+.2f} |"
        )
    lines += ["", "## Licences", ""]
    lines += [f"- {what}: {terms}" for what, terms in manifest.licences.items()] or ["- not stated"]
    lines += [
        "",
        "## Using it",
        "",
        f"- Python: `pip install '.[{_engine(manifest)}]'` in a clone of edgekit, then as in `samples/python.py`, or "
        "`edgekit denoise IN -o OUT --model THIS_FOLDER`.",
        "- Prove that it arrived intact: `edgekit check THIS_FOLDER`; on a device without edgekit `python verify.py`.",
        _ELSEWHERE.get(manifest.target, "- Any other language: open a model file below and feed tiles.").format(
            sample="; `samples/denoise.c` does" if samples.c(manifest) else ""
        ),
        f"- Larger images: {_tiling(manifest)}",
        "",
        "| variant | file | tensors |",
        "|---|---|---|",
        *(f"| {_default(manifest, v)} | `{v.file}` | {_tensors(v)} |" for v in manifest.variants),
        "",
        *_feeding(manifest),
        "",
    ]
    return "\n".join(lines)


def _tiling(manifest: Manifest) -> str:
    """How an image that is no tile is cut into tiles, in words."""
    model = manifest.model
    whole = any(n < 0 for v in manifest.variants for s in v.inputs if s.role == "image" for n in s.shape)
    distance = step(manifest.tile, model.halo, model.stride)
    return (
        f'mirror the border ("reflect") by {samples.margin(manifest)} pixels, the halo rounded up to the stride; run '
        f"tiles {distance} pixels apart, and keep of each what lies at least {model.halo} pixels inside it. At the "
        "bottom and right mirror as far as the last tile reaches"
        + (f", or run the mirrored image whole, its sides multiples of {model.stride}." if whole else ".")
    )


def _feeding(manifest: Manifest) -> list[str]:
    """What goes into the tensors and comes out, a line each."""
    specs = [spec for v in manifest.variants for spec in (*v.inputs, *v.outputs)]
    images = [spec for spec in specs if spec.role != "sigma"]
    lines = []
    if any(spec.scale is not None for spec in images):
        lines.append(
            "- An integer image tensor at scale 1/255 takes the bytes of an 8-bit image without arithmetic: as they "
            "are in uint8, less 128 in int8."
        )
    if any(spec.scale is None for spec in images):
        lines.append(
            "- A float image is pixels / 255 (0..1). A float result may leave 0..1: clip it, then round 255 times it."
        )
    lines += dict.fromkeys(_level(manifest, spec) for spec in specs if spec.role == "sigma")
    if manifest.target == "tflite":
        lines.append(
            "- Names are those of the signature. An interpreter's own lists have others (`serving_default_image`...), "
            "in any order: the image is the input with four axes."
        )
    return lines


def _level(manifest: Manifest, spec: TensorSpec) -> str:
    """How a noise level is given to the model, with an example."""
    level = min(25.0, manifest.sigma[1])
    real = f"{level:g} / 255 = {level / 255:.4f}"
    if spec.scale is None or spec.zero_point is None:
        return f"- `{spec.name}`, {spec.dtype}: the noise level in 8-bit units / 255. For {level:g} give {real}."
    integer = round(level / 255 / spec.scale) + spec.zero_point
    return (
        f"- `{spec.name}`, {spec.dtype}: the noise level in 8-bit units / 255, as an integer: round(level / 255 / "
        f"{spec.scale:.9g}) + ({spec.zero_point}). For {level:g} give {integer}."
    )


def _engine(manifest: Manifest) -> str:
    return next(v.engine for v in manifest.variants if v.name == manifest.default_variant)


def _range(manifest: Manifest) -> str:
    return f"{manifest.sigma[0]:g} to {manifest.sigma[1]:g}"


def _noise(manifest: Manifest) -> str:
    noise = manifest.recipe.get("noise")
    name = noise.get("model") if isinstance(noise, dict) else noise
    tuned = manifest.recipe.get("finetune")
    if isinstance(tuned, dict) and tuned.get("noises"):
        name = " and ".join(map(str, tuned["noises"]))
    return f"{name if isinstance(name, str) else 'see the recipe'}, sigma {_range(manifest)} in 8-bit units"


def _default(manifest: Manifest, variant: Variant) -> str:
    return f"{variant.name} (default)" if variant.name == manifest.default_variant else variant.name


def _tensors(variant: Variant) -> str:
    return "; ".join(f"`{spec.name}` ({spec.role}): {_spec(spec)}" for spec in (*variant.inputs, *variant.outputs))


def _spec(spec: TensorSpec) -> str:
    shape = " x ".join("any" if n < 0 else str(n) for n in spec.shape)
    if spec.scale is None:
        return f"{spec.dtype} {shape} {spec.layout}" + (", level / 255" if spec.role == "sigma" else "")
    scale = "1/255" if abs(spec.scale * 255 - 1) < 1e-6 else f"{spec.scale:.9g}"
    return f"{spec.dtype} {shape} {spec.layout} at scale {scale}, zero point {spec.zero_point}"
