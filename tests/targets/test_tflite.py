"""Lowering to .tflite, on a tiny network: the tensors, the integers, and what is left in float."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("litert_torch")

from edgekit.bundle.manifest import Variant
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.errors import ExportError, UnknownNameError
from edgekit.models import create
from edgekit.models.base import DenoiserModel
from edgekit.runtime.engines.registry import open_engine
from edgekit.runtime.verdict import int8_share
from edgekit.targets import registry, tflite_file
from edgekit.targets.base import Lowered

SIDE = 32
# Two neighbours: a lone float convolution between two integer tensors is made integer by the converter itself.
WIDE = frozenset({"decoder.0.0.depthwise", "decoder.0.0.expand"})


@dataclass
class Case:
    """A lowered model and what it was lowered from."""

    model: DenoiserModel
    program: QuantizedProgram
    folder: Path
    lowered: Lowered
    noisy: torch.Tensor
    sigma: torch.Tensor

    def variant(self, name: str) -> Variant:
        return next(v for v in self.lowered.variants if v.name == name)


def lower(folder: Path, scheme: Scheme) -> Case:
    torch.manual_seed(0)
    model = create("dsunet-n", widths=[8, 16], encoder=[[]], middle=[16], decoder=[[16]], up_width=0).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    noisy, sigma = torch.randint(0, 256, (1, 3, SIDE, SIDE)) / 255, torch.tensor([25 / 255])
    program = QuantizedProgram(model, scheme, (0.0, 55 / 255))
    with program.in_float(), torch.no_grad():
        program(noisy, sigma)
    for bounds in program.ranges:
        bounds.learn()
    lowered = registry.get("tflite").lower(model, program, folder, name="tiny", tile=SIDE, precision="int8")
    return Case(model, program, folder, lowered, noisy, sigma)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return lower(tmp_path_factory.mktemp("whole"), registry.get("tflite").scheme())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return lower(tmp_path_factory.mktemp("mixed"), Scheme("tflite", wide=WIDE))


def run(case: Case, name: str) -> NDArray[np.float32]:
    """The output of a variant as real numbers, [H, W, C]."""
    from ai_edge_litert.interpreter import Interpreter

    variant = case.variant(name)
    runner = Interpreter(str(case.folder / variant.file), num_threads=1).get_signature_runner()
    values = {"image": case.noisy.permute(0, 2, 3, 1).numpy(), "sigma": case.sigma.numpy()}
    fed = {}
    for spec in variant.inputs:
        real = values[spec.role]
        fed[spec.name] = real if spec.scale is None else np.rint(real / spec.scale + spec.zero_point).astype(spec.dtype)
    (raw,) = runner(**fed).values()
    spec = variant.outputs[0]
    return (raw[0].astype(np.float32) - (spec.zero_point or 0)) * (spec.scale or 1.0)


def test_images_enter_and_leave_as_8_bit_levels(whole: Case) -> None:
    for name, dtype, zero_point in (("int8", "int8", -128), ("int8-uint8io", "uint8", 0)):
        variant = whole.variant(name)
        image = next(spec for spec in variant.inputs if spec.role == "image")
        for spec in (image, variant.outputs[0]):
            assert spec.shape == (1, SIDE, SIDE, 3)
            assert (spec.layout, spec.dtype, spec.zero_point) == ("NHWC", dtype, zero_point)
            assert spec.scale == pytest.approx(1 / 255)
        sigma = next(spec for spec in variant.inputs if spec.role == "sigma")
        assert sigma.shape == (1,)
        assert (sigma.dtype, sigma.zero_point) == ("int8", -128)
        assert sigma.scale == pytest.approx(55 / 255 / 255)


def test_tensors_are_named_after_what_they_hold(whole: Case) -> None:
    for variant in whole.lowered.variants:
        assert {spec.name for spec in variant.inputs} == {"image", "sigma"}
        assert [spec.name for spec in variant.outputs] == ["clean"]


def test_the_precision_asked_for_comes_first(whole: Case) -> None:
    assert [v.name for v in whole.lowered.variants] == ["int8", "int8-uint8io", "fp16", "fp32"]


def test_int8_file_agrees_with_the_program(whole: Case) -> None:
    with torch.no_grad():
        program = whole.program(whole.noisy, whole.sigma)[0].permute(1, 2, 0).numpy()
    error = np.abs(run(whole, "int8") - program) * 255
    # Each of the chained requantizations may round the other way, and random weights amplify that: the output
    # spans several times the image's range. A wrong scale or zero point would shift the mean by tens of levels.
    assert error.max() <= 20
    assert error.mean() < 2


def test_uint8_io_gives_the_very_same_levels(whole: Case) -> None:
    np.testing.assert_array_equal(np.rint(run(whole, "int8") * 255), np.rint(run(whole, "int8-uint8io") * 255))


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3)])  # float16 keeps 11 bits
def test_float_files_agree_with_the_model(whole: Case, name: str, tolerance: float) -> None:
    with torch.no_grad():
        expected = whole.model(whole.noisy, whole.sigma)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(run(whole, name), expected, rtol=0, atol=tolerance)


def test_fp16_file_is_smaller_than_fp32(whole: Case) -> None:
    sizes = {v.name: (whole.folder / v.file).stat().st_size for v in whole.lowered.variants}
    assert sizes["fp16"] < sizes["fp32"]


def test_report_names_layers_by_module_path_and_counts_the_models_macs(whole: Case) -> None:
    report = whole.lowered.layers
    # What a module does for one pixel of its own grid, at the grid its level has; names are not taken on trust.
    modules = dict(whole.model.named_modules())
    grid = {"head": 2, "tail": 2, "up.0": 4, "down.0": 4, "sigma_bias": SIDE}
    for layer in report:
        side = SIDE // grid.get(layer.name, 4 if layer.name.startswith("middle") else 2)
        assert layer.macs == modules[layer.name].weight.numel() * side**2, layer.name  # type: ignore[operator, union-attr]
    assert len({layer.name for layer in report}) == len(report)
    assert sum(layer.macs for layer in report) == pytest.approx(whole.model.macs_per_pixel() * SIDE**2, rel=1e-3)


def test_everything_is_int8_and_xnnpack_took_it(whole: Case) -> None:
    assert int8_share(whole.lowered.layers) == 1.0
    assert all(layer.delegated for layer in whole.lowered.layers)


def test_layers_left_in_float_are_not_counted_as_int8(mixed: Case) -> None:
    report = mixed.lowered.layers
    assert {layer.name for layer in report if layer.dtype == "float32"} == WIDE
    wide, total = (sum(r.macs for r in report if r.name in names) for names in (WIDE, {r.name for r in report}))
    assert int8_share(report) == pytest.approx(1 - wide / total)
    # What a user reads is counted in the file by the engine that runs it.
    variant = mixed.variant("int8")
    macs = open_engine(variant, mixed.folder / variant.file, 1).macs
    assert macs["int8"] / sum(macs.values()) == pytest.approx(1 - wide / total)


def test_layers_that_do_not_match_the_program_keep_the_names_of_the_file(whole: Case) -> None:
    known = whole.program.layers()
    report = tflite_file.layers(whole.folder / whole.variant("int8").file, [*known[1:], known[0]])
    assert not {layer.name for layer in report} & {layer.name for layer in known}


def test_int8_without_a_program_is_refused(whole: Case, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs a quantized program"):
        registry.get("tflite").lower(whole.model, None, tmp_path, name="x", tile=SIDE, precision="int8")


def test_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown target 'coreml': expected one of .*tflite"):
        registry.get("coreml")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layers_of_one_shape_keep_their_own_weights(tmp_path: Path, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    # Training leaves weights in the layout of the images, and the converter took several such for one and the same.
    model = create("dncnn-color-blind", widths=[8] * 5).eval().to(memory_format=layout)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    noisy, sigma = torch.randint(0, 256, (1, 3, SIDE, SIDE)) / 255, torch.tensor([0.1])
    program = QuantizedProgram(model, registry.get("tflite").scheme(), (0.0, 55 / 255))
    with program.in_float(), torch.no_grad():
        expected = program(noisy, sigma)
    for bounds in program.ranges:
        bounds.learn()
    with torch.no_grad():
        rounded = program(noisy, sigma)
    lowered = registry.get("tflite").lower(model, program, tmp_path, name="tiny", tile=SIDE, precision="int8")
    given = noisy.permute(0, 2, 3, 1).numpy()
    for variant in lowered.variants:
        feed = {"float32": given, "int8": np.round(255 * given - 128).astype(np.int8)}
        if (image := feed.get(variant.inputs[0].dtype)) is None:
            continue
        engine = open_engine(variant, tmp_path / variant.file, 1)
        found = torch.from_numpy(engine.run({variant.inputs[0].name: image}).astype(np.float32)).permute(0, 3, 1, 2)
        engine.close()
        if variant.integer:
            assert float(((found + 128) / 255 - rounded.clamp(0, 1)).abs().mean()) < 2 / 255
        else:
            assert float((found - expected).abs().max()) < (1e-4 if variant.name == "fp32" else 2e-2)
