"""Lowering to OpenVINO's files, on a tiny network: tensors, sizes, integers, what really ran, and the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("openvino")

from tiny import SIDE, Tiny, observed, quantized

from edgekit.batch import Batch
from edgekit.bundle.manifest import Variant
from edgekit.errors import EngineError, ExportError, RecipeError
from edgekit.models.graph import GraphModel
from edgekit.runtime.engines import openvino as engine
from edgekit.runtime.engines.base import EngineOptions
from edgekit.runtime.engines.registry import open_engine
from edgekit.runtime.verdict import int8_share
from edgekit.targets import registry
from edgekit.targets.base import Lowered


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return quantized(registry.get("openvino").scheme())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def lowered(tiny: Tiny, folder: Path) -> Lowered:
    return registry.get("openvino").lower(tiny.model, tiny.program, folder, name="tiny", tile=SIDE, precision="int8")


def variant(lowered: Lowered, name: str) -> Variant:
    return next(v for v in lowered.variants if v.name == name)


def images(tiny: Tiny, count: int = 1, height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def sigma(count: int = 1) -> NDArray[np.float32]:
    return np.full(count, 25 / 255, np.float32)


def test_the_default_takes_and_gives_8_bit_images(lowered: Lowered) -> None:
    assert [v.name for v in lowered.variants] == ["int8", "int8-floatio", "fp16", "fp32"]
    default = lowered.variants[0]
    for spec in (default.inputs[0], *default.outputs):
        assert (spec.dtype, spec.layout, spec.shape) == ("uint8", "NHWC", (-1, -1, -1, 3))
        assert (spec.scale, spec.zero_point) == (1 / 255, 0)
    assert default.files == ("tiny.int8.xml", "tiny.int8.bin")
    assert variant(lowered, "int8-floatio").inputs[0].dtype == "float32"


def test_every_convolution_runs_in_int8(lowered: Lowered, tiny: Tiny) -> None:
    assert {layer.dtype for layer in lowered.layers} == {"int8"}
    modules = [name for name, module in tiny.model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(layer.name for layer in lowered.layers) == sorted(modules)
    assert sum(layer.macs for layer in lowered.layers) == pytest.approx(tiny.model.macs_per_pixel() * SIDE**2, rel=1e-3)


def test_float_files_agree_with_the_model(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    feed = {"noisy": tiny.noisy.numpy(), "sigma": tiny.sigma.numpy()}
    with torch.no_grad():
        expected = tiny.model(tiny.noisy, tiny.sigma).numpy()
    for name, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):  # float16 keeps 11 bits of a weight
        chosen = variant(lowered, name)
        output = open_engine(chosen, folder / chosen.file, 1).run(feed)
        assert np.abs(output - expected).max() < tolerance * np.abs(expected).max()
    # The weights; the graph beside them is text, and larger than they are here.
    sizes = [(folder / variant(lowered, name).companions[0]).stat().st_size for name in ("fp16", "fp32")]
    assert sizes[0] < sizes[1]


def test_the_integer_file_is_the_program(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    default = lowered.variants[0]
    shown = np.rint(tiny.noisy.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    output = open_engine(default, folder / default.file, 1).run({"noisy": shown, "sigma": tiny.sigma.numpy()})
    with torch.no_grad():
        program = tiny.program(tiny.noisy, tiny.sigma).permute(0, 2, 3, 1).clamp(0, 1).numpy() * 255
    # Roundings that fall the other way are amplified by random weights; another scale would shift the mean by tens.
    assert np.abs(output - program).mean() < 2


def test_the_two_kinds_of_images_give_the_same_levels(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    bytes_in, floats_in = variant(lowered, "int8"), variant(lowered, "int8-floatio")
    shown = images(tiny)
    first = open_engine(bytes_in, folder / bytes_in.file, 1).run({"noisy": shown, "sigma": sigma()})
    planar = np.ascontiguousarray(shown.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    second = open_engine(floats_in, folder / floats_in.file, 1).run({"noisy": planar, "sigma": sigma()})
    np.testing.assert_array_equal(first, np.rint(np.clip(second, 0, 1) * 255).transpose(0, 2, 3, 1))


def test_any_size_and_batch(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    default = lowered.variants[0]
    opened = open_engine(default, folder / default.file, 1)
    both = images(tiny, 2, 24, 40)
    together = opened.run({"noisy": both, "sigma": sigma(2)})
    assert together.shape == both.shape
    for k in range(2):
        np.testing.assert_array_equal(together[k], opened.run({"noisy": both[k : k + 1], "sigma": sigma()})[0])


def test_weights_of_a_pair_fit_16_bits_together(folder: Path, lowered: Lowered) -> None:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(folder / "tiny.int8.onnx")).graph
    weights = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    kernels = [w for w in weights if w.ndim == 4]
    assert len(kernels) == len(lowered.layers)
    dense = [w.astype(int) for w in kernels if w.shape[1] % 4 == 0]
    assert len(dense) >= 6
    for sign in (1, -1):
        # 255 * 128 fits 16 bits with a sign.
        pairs = [np.clip(sign * w, 0, None).reshape(len(w), -1, 2, *w.shape[2:]).sum(2).max() for w in dense]
        assert max(pairs) <= 128
    # Depthwise products are added one by one; a single input (sigma) is padded and has no partner, but 7 bits.
    (depthwise,) = [w for w in kernels if w.shape[1:] == (1, 3, 3)]
    assert np.abs(depthwise.astype(int)).max() == 127
    (level,) = [w for w in kernels if w.shape[1:] == (1, 1, 1)]
    assert np.abs(level.astype(int)).max() == 63


def test_a_stream_comes_out_in_order_and_alike(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    default = lowered.variants[0]
    feeds = [{"noisy": image[None], "sigma": sigma()} for image in images(tiny, 7)]
    calm = open_engine(default, folder / default.file, 1)
    busy = open_engine(default, folder / default.file, 2, options=EngineOptions(hint="throughput"))
    assert "throughput" in busy.library
    expected = [calm.run(feed) for feed in feeds]
    for run in (calm.run_many, busy.run_many):  # type: ignore[attr-defined]
        found = list(run(iter(feeds)))
        assert len(found) == 7
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_stream_of_several_sizes_comes_out_in_order(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    default = lowered.variants[0]
    feeds = []
    for number, image in enumerate(images(tiny, 9)):
        side = SIDE if number % 3 else SIDE // 2
        feeds.append({"noisy": image[None, :side], "sigma": sigma()})
    calm = open_engine(default, folder / default.file, 1)
    # The tile has a model of its own, the other size has not.
    busy = open_engine(default, folder / default.file, 2, options=EngineOptions(hint="throughput", tile=SIDE))
    found = list(busy.run_many(iter(feeds)))  # type: ignore[attr-defined]
    for one, feed in zip(found, feeds, strict=True):
        np.testing.assert_array_equal(one, calm.run(feed))


def test_a_stream_that_breaks_off_gives_what_was_under_way(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    default = lowered.variants[0]
    busy = open_engine(default, folder / default.file, 2, options=EngineOptions(hint="throughput"))

    def feeds() -> Iterator[dict[str, NDArray[np.float32]]]:
        for image in images(tiny, 5):
            yield {"noisy": image[None], "sigma": sigma()}
        raise RuntimeError("the caller's own")

    found = []
    with pytest.raises(RuntimeError, match="the caller's own"):
        found += busy.run_many(feeds())  # type: ignore[attr-defined]
    assert len(found) == 5


def test_the_engine_tells_what_it_is(lowered: Lowered, folder: Path) -> None:
    default = lowered.variants[0]
    opened = open_engine(default, folder / default.file, 1)
    assert opened.library.startswith("openvino 20")
    assert opened.library.endswith("(CPU, latency, f32)")
    assert set(opened.macs) == {"int8"}
    assert opened.operators["Convolution"].delegated == opened.operators["Convolution"].total == len(lowered.layers)


def test_a_cache_is_filled(lowered: Lowered, folder: Path, tmp_path: Path) -> None:
    default = lowered.variants[0]
    open_engine(default, folder / default.file, 1, options=EngineOptions(cache=tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("*.blob"))


def test_what_the_engine_refuses(lowered: Lowered, tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    default = lowered.variants[0]
    with pytest.raises(RecipeError, match="device is 'TPU': OpenVINO sees AUTO, CPU"):
        open_engine(default, folder / default.file, 1, options=EngineOptions(device="tpu"))
    with pytest.raises(RecipeError, match="hint is 'fast': expected latency or throughput"):
        open_engine(default, folder / default.file, 1, options=EngineOptions(hint="fast"))
    with pytest.raises(EngineError, match="no portable kernels"):
        open_engine(default, folder / default.file, 1, portable=True)
    other = replace(default, inputs=(replace(default.inputs[0], shape=(-1, -1, -1, 1)), default.inputs[1]))
    with pytest.raises(
        EngineError, match=r"input 'noisy' of tiny.int8.xml is uint8 \[-1, -1, -1, 3\], the manifest says"
    ):
        open_engine(other, folder / default.file, 1)
    nameless = replace(default, inputs=default.inputs[:1])
    with pytest.raises(EngineError, match="has the inputs noisy, sigma, the manifest names noisy"):
        open_engine(nameless, folder / default.file, 1)
    (tmp_path / "broken.xml").write_text("<net>")
    with pytest.raises(EngineError, match="broken.xml cannot be opened by openvino"):
        open_engine(default, tmp_path / "broken.xml", 1)
    opened = open_engine(default, folder / default.file, 1)
    with pytest.raises(EngineError, match=r"was given the inputs \['noisy'\]: expected"):
        opened.run({"noisy": images(tiny)})
    with pytest.raises(EngineError, match=r"was given float32 .*: expected uint8 \[-1, -1, -1, 3\]"):
        opened.run({"noisy": images(tiny).astype(np.float32), "sigma": sigma()})
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="is closed"):
        opened.run({"noisy": images(tiny), "sigma": sigma()})


def test_layers_can_be_timed(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    default = lowered.variants[0]
    opened = open_engine(default, folder / default.file, 1)
    assert isinstance(opened, engine.OpenVINOEngine)
    times = opened.profile({"noisy": images(tiny), "sigma": sigma()})
    assert any(name.startswith("head") for name in times)
    assert all(value >= 0 for value in times.values())


def test_nncf_is_the_baseline(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    found = registry.get("openvino").quantized_by("nncf", tiny.model, tiny.batches, 4, tmp_path, name="tiny", tile=SIDE)
    assert found.variants[0].file == "tiny.int8-nncf.xml"
    # It leaves what it thinks sensitive in float.
    assert int8_share(found.layers) > 0.9
    output = open_engine(found.variants[0], tmp_path / found.variants[0].file, 1).run(
        {"noisy": images(tiny), "sigma": sigma()}
    )
    assert output.dtype == np.uint8


class _SeenError(Exception):
    """Nothing behind the calibration images matters."""


def test_nncf_calibrates_on_each_noisy_image_with_its_own_sigma(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nncf = pytest.importorskip("nncf")
    fed: list[dict[str, NDArray[np.float32]]] = []

    def watched(feeds: list[dict[str, NDArray[np.float32]]]) -> None:
        fed.extend(feeds)
        raise _SeenError

    monkeypatch.setattr(nncf, "Dataset", watched)
    drawn = [Batch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.rand(2) * 55 / 255) for _ in range(2)]
    with pytest.raises(_SeenError):
        registry.get("openvino").quantized_by(
            "nncf", tiny.model, drawn.__getitem__, 2, tmp_path, name="tiny", tile=SIDE
        )
    assert [set(feed) for feed in fed] == [{"noisy", "sigma"}] * 4
    for name in ("noisy", "sigma"):
        expected = torch.cat([getattr(batch, name) for batch in drawn]).numpy()
        np.testing.assert_array_equal(np.concatenate([feed[name] for feed in fed]), expected)


def operators(path: Path) -> list[str]:
    """Kinds of a file's layers in order; their names are numbered anew at each writing."""
    return [str(layer.get("type")) for layer in ElementTree.parse(path).iter("layer")]


def test_a_baseline_leaves_the_bundle_the_float_files_it_had(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    target = registry.get("openvino")
    own = target.lower(tiny.model, None, tmp_path, name="tiny", tile=SIDE, precision="fp32")
    before = {v.file: operators(tmp_path / v.file) for v in own.variants}
    assert all("SpaceToDepth" in kinds for kinds in before.values())
    found = target.quantized_by("nncf", tiny.model, tiny.batches, 4, tmp_path, name="tiny", tile=SIDE)
    assert {v.file: operators(tmp_path / v.file) for v in found.variants[1:]} == before


def test_what_the_target_refuses(tiny: Tiny, tmp_path: Path) -> None:
    target = registry.get("openvino")
    with pytest.raises(ExportError, match="precision 'int4': openvino exports int8, fp16, fp32"):
        target.lower(tiny.model, None, tmp_path, name="tiny", tile=SIDE, precision="int4")
    with pytest.raises(ExportError, match="needs a quantized program"):
        target.lower(tiny.model, None, tmp_path, name="tiny", tile=SIDE, precision="int8")


def beside_a_map() -> GraphModel:
    """A network that concatenates a map of sigma to the image, as FFDNet does."""

    def conv(name: str, source: str, into: int, out: int) -> dict[str, object]:
        return {
            "op": "conv", "name": name, "inputs": [source], "in": into, "out": out, "kernel": [3, 3], "stride": [1, 1],
            "pad": [1] * 4, "dilation": [1, 1], "groups": 1, "bias": True,
        }  # fmt: skip

    nodes = [
        {"op": "expand", "name": "map", "inputs": ["sigma", "noisy"]},
        {"op": "concat", "name": "both", "inputs": ["noisy", "map"]},
        conv("first", "both", 4, 8), {"op": "relu", "name": "r", "inputs": ["first"]}, conv("last", "r", 8, 3),
    ]  # fmt: skip
    torch.manual_seed(0)
    return GraphModel(channels=3, nodes=nodes, level="scalar").eval()


def test_a_convolution_in_float_says_why(tmp_path: Path) -> None:
    model = beside_a_map()
    scheme = replace(registry.get("openvino").scheme(), wide=frozenset({"layers.first"}))
    program = observed(model, scheme, torch.rand(2, 3, 32, 32), torch.tensor([0.1, 0.2]))
    lowered = registry.get("openvino").lower(model, program, tmp_path, name="x", tile=64, precision="int8")
    by_name = {layer.name.split(".")[-1]: layer for layer in lowered.layers}
    assert by_name["first"].dtype == "float32"
    assert by_name["first"].why.startswith("reads float32 from ")
    assert (by_name["last"].dtype, by_name["last"].why) == ("int8", "")


def test_a_convolution_that_reads_a_map_of_sigma_beside_the_image_is_integer(tmp_path: Path) -> None:
    model = beside_a_map()
    noisy, sigma = torch.randint(0, 256, (2, 3, 32, 32)) / 255, torch.tensor([0.1, 0.2])
    program = observed(model, registry.get("openvino").scheme(), noisy, sigma)
    lowered = registry.get("openvino").lower(model, program, tmp_path, name="x", tile=64, precision="int8")
    assert {layer.dtype for layer in lowered.layers} == {"int8"}
    default = lowered.variants[0]
    shown = np.rint(noisy.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    output = open_engine(default, tmp_path / default.file, 1).run({"noisy": shown, "sigma": sigma.numpy()})
    with torch.no_grad():
        expected = program(noisy, sigma).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(output - expected).mean() < 1
