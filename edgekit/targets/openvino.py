"""OpenVINO: .xml and .bin, any height, width and batch; int8 with 8-bit images in and out, and float fallbacks."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from edgekit.bundle.manifest import LayerReport, TensorSpec, Variant
from edgekit.compress.batches import Batches
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.errors import MissingExtraError
from edgekit.models.base import DenoiserModel
from edgekit.quiet import quietly
from edgekit.runtime import unreported
from edgekit.runtime.engines import openvino as engine
from edgekit.targets import onnx_graph
from edgekit.targets.base import Lowered, Plain

# Integers 0..255 stand for 0..1.
_BYTES = 255.0


class OpenVINO(Plain):
    """Lowers through ONNX: OpenVINO's converter reads quantize and dequantize operators as they are."""

    name = "openvino"
    extra = "openvino-target"
    engine = engine.NAME
    precisions = ("int8", "fp16", "fp32")
    libraries = ("openvino", "onnx", "onnxscript")
    quantizers = ("nncf",)

    def scheme(self) -> Scheme:
        """Affine int8 activations of every tensor, weights whose pairs cannot saturate.

        Without VNNI an x86 processor adds two products of 8 by 8 bits in 16, which saturates. Weights of 7 bits would
        leave the room everywhere; where kernels' pairs are known, it is enough that no two neighbours are large
        together, which costs a third of a bit. Every tensor: else the residual stream is float32, whose memory
        traffic eats what the products gain. But what a convolution writes only for a sum stays float32 on the way: that
        costs a few hundredths of the time and wins more dB than anything else would for them
        (docs/int8-experiments.md).
        """
        return Scheme(name=self.name, paired=True, float_terms=True)

    def lower(
        self,
        model: DenoiserModel,
        program: QuantizedProgram | None,
        folder: Path,
        *,
        name: str,
        tile: int,
        precision: str,
    ) -> Lowered:
        """Write NAME.int8 (8-bit NHWC images) and NAME.int8-floatio (with program), NAME.fp16 and NAME.fp32."""
        self.require(precision, program)
        variants = _floats(model, folder, name)
        if precision == "int8":
            assert program is not None  # self.require
            integers = folder / f"{name}.int8.onnx"
            onnx_graph.write(program.converted(fold=True), model, integers, unsigned=True)
            variants = [
                _save(_read(integers), folder, f"{name}.int8", "int8", model, True),
                _save(_read(integers), folder, f"{name}.int8-floatio", "int8-floatio", model),
                *variants,
            ]
        variants.sort(key=lambda v: v.name != precision)
        return Lowered(tuple(variants), _layers(folder / variants[0].file, variants[0], model, tile))

    def quantized_by(
        self,
        quantizer: str,
        model: DenoiserModel,
        batches: Batches,
        count: int,
        folder: Path,
        *,
        name: str,
        tile: int,
    ) -> Lowered:
        """Write NAME.int8-nncf.xml: NNCF's post-training quantization with its defaults, of the float model."""
        if importlib.util.find_spec("nncf") is None:
            raise MissingExtraError.needs("quantizer nncf", "nncf", "nncf")
        source = folder / f"{name}.nncf.onnx"
        # As its users bring it: NNCF does not know SpaceToDepth and would leave the convolution behind it in float.
        onnx_graph.write(model.eval(), model, source, tidy=False)
        variant = _save(_nncf(source, model, batches, count), folder, f"{name}.int8-{quantizer}", "int8", model, True)
        return Lowered((variant, *_floats(model, folder, name)), _layers(folder / variant.file, variant, model, tile))


TARGET = OpenVINO()


def _floats(model: DenoiserModel, folder: Path, name: str) -> list[Variant]:
    """Write NAME.fp16 and NAME.fp32: the same, whoever makes the integers beside them."""
    source = folder / f"{name}.fp32.onnx"
    onnx_graph.write(model.eval(), model, source)
    return [_save(_read(source), folder, f"{name}.{kind}", kind, model) for kind in ("fp16", "fp32")]


def _read(source: Path) -> Any:
    openvino = unreported.openvino()
    # Not convert_model, which reports its use over the network from a forked process.
    return openvino.Core().read_model(str(source))


def _nncf(source: Path, model: DenoiserModel, batches: Batches, count: int) -> Any:
    """The float graph quantized by NNCF as its documentation shows it, calibrated on training batches."""
    # NNCF's own way to say that it must not report its use over the network.
    os.environ.setdefault("NNCF_CI", "1")
    with quietly():
        import nncf

        # Not nncf.set_log_level, which also raises the level of handlers that are not its own.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        images = []
        for step in range(count):
            batch = batches(step)
            for noisy, sigma in zip(batch.noisy, batch.sigma, strict=True):
                feed = {onnx_graph.IMAGE: noisy[None].numpy()}
                images.append(feed if model.blind else {**feed, onnx_graph.SIGMA: sigma[None].numpy()})
        return nncf.quantize(_read(source), nncf.Dataset(images), subset_size=len(images))


def _save(
    graph: Any, folder: Path, stem: str, kind: str, model: DenoiserModel, bytes_in_and_out: bool = False
) -> Variant:
    openvino = unreported.openvino()
    inputs, outputs = onnx_graph.specs(model)
    if bytes_in_and_out:
        graph = _bytes(graph)
        inputs = (_as_bytes(inputs[0]), *inputs[1:])
        outputs = (_as_bytes(outputs[0]),)
    openvino.save_model(graph, str(folder / f"{stem}.xml"), compress_to_fp16=kind == "fp16")
    _tighten(folder / f"{stem}.xml")
    return Variant(
        name=kind,
        file=f"{stem}.xml",
        engine=engine.NAME,
        inputs=inputs,
        outputs=outputs,
        companions=(f"{stem}.bin",),
    )


def _tighten(path: Path) -> None:
    """Take out what only indents: of a small network's .xml a sixth."""
    tree = ElementTree.parse(path)
    for element in tree.iter():
        element.text = (element.text or "").strip() or None
        element.tail = None
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _bytes(graph: Any) -> Any:
    """Bake the way from and to 8-bit images into the model: uint8 [N, H, W, C] in and out."""
    openvino = unreported.openvino()
    from openvino import opset13 as operators
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(graph)
    steps.input(onnx_graph.IMAGE).tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input(onnx_graph.IMAGE).preprocess().convert_element_type(openvino.Type.f32).scale(_BYTES)
    steps.input(onnx_graph.IMAGE).model().set_layout(openvino.Layout("NCHW"))

    def to_bytes(clean: Any) -> Any:
        # Not clamp and round: the CPU plugin, which computes them in the integers before, made 254 of 255.
        low, high = (operators.constant(np.float32(value)) for value in (0.0, _BYTES))
        scaled = operators.multiply(clean, operators.constant(np.float32(_BYTES)))
        return operators.fake_quantize(scaled, low, high, low, high, 256).output(0)

    steps.output(onnx_graph.CLEAN).model().set_layout(openvino.Layout("NCHW"))
    ends = steps.output(onnx_graph.CLEAN).postprocess()
    ends.custom(to_bytes).convert_element_type(openvino.Type.u8).convert_layout(openvino.Layout("NHWC"))
    return steps.build()


def _as_bytes(spec: TensorSpec) -> TensorSpec:
    shape = (spec.shape[0], spec.shape[2], spec.shape[3], spec.shape[1])
    return TensorSpec(spec.name, spec.role, shape, "NHWC", "uint8", 1 / _BYTES, 0)


def _layers(path: Path, variant: Variant, model: DenoiserModel, tile: int) -> tuple[LayerReport, ...]:
    """What this machine really runs: OpenVINO's runtime model, by the names of the network's own layers."""
    from edgekit.models.complexity import layer_macs

    openvino = unreported.openvino()

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    ran = [item for item in engine.executed(path, openvino.Core(), "CPU", settings, variant) if item.macs]
    wanted = layer_macs(model, tile)
    # Names of what was fused into it, with suffixes, separated by commas.
    parts = [{part.split("/")[0] for part in item.names.split(",")} for item in ran]
    named = list(zip(ran, parts, strict=True))
    # Of several that a name stands in, the first that runs.
    matches = {name: item for name, _ in wanted for item, names in reversed(named) if name in names}
    # A convolution whose output is subtracted may lose its name: what is left over on both sides is the same, if it is
    # as many and costs as much.
    unnamed = [item for item, names in named if not names & matches.keys()]
    unmatched = [(name, macs) for name, macs in wanted if name not in matches]
    if _alike([macs for _, macs in unmatched], [item.macs for item in unnamed]):
        matches.update((name, item) for (name, _), item in zip(unmatched, unnamed, strict=True))
    found = []
    for name, macs in wanted:
        match = matches.get(name)
        kind, dtype, why = ("Convolution", "unknown", "") if match is None else (match.kind, match.dtype, match.why)
        found.append(LayerReport(name, kind, macs, dtype, delegated=dtype == "int8", why=why))
    return tuple(found)


def _alike(costs: Sequence[int], others: Sequence[int]) -> bool:
    """Whether two lists are the same but for a factor."""
    return len(costs) == len(others) and all(
        a * sum(others) == b * sum(costs) for a, b in zip(costs, others, strict=True)
    )
