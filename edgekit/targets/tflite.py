"""TFLite: static NHWC tiles for LiteRT, int8 with int8 or uint8 images, and float fallbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.bundle.manifest import TensorSpec, Variant
from edgekit.compress.program import QuantizedLayer, QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.errors import ExportError, first_line
from edgekit.models.base import DenoiserModel
from edgekit.quiet import quietly
from edgekit.targets import tflite_file, tflite_layout
from edgekit.targets.base import Lowered, Plain


class _ChannelsLast(nn.Module):
    """Image in and out as [1, H, W, C], as TFLite and cameras hold it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        clean: Tensor = self.model(image.permute(0, 3, 1, 2), sigma).permute(0, 2, 3, 1)
        return clean


class _Blind(_ChannelsLast):
    """The same for a model that takes no noise level: its files have no such input."""

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image, torch.zeros(1))


class TFLite(Plain):
    """Lowers through litert-torch; no TensorFlow is involved."""

    name = "tflite"
    extra = "tflite"
    engine = "litert"
    precisions = ("int8", "fp16", "fp32")
    libraries = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")

    def scheme(self) -> Scheme:
        """Affine int8 activations, per-channel int8 weights, every tensor: XNNPACK then takes the whole graph."""
        return Scheme(name=self.name)

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
        """Write NAME.int8.tflite (with program), NAME.int8-uint8io.tflite, NAME.fp16.tflite and NAME.fp32.tflite."""
        self.require(precision, program)
        files = {p: folder / f"{name}.{p}.tflite" for p in ("int8", "int8-uint8io", "fp16", "fp32")}
        shape = (1, tile, tile, model.channels)
        _convert(model.eval(), shape, files["fp32"], blind=model.blind, quantized=False)
        _half(files["fp32"], files["fp16"])
        kinds = ["fp16", "fp32"]
        known: list[QuantizedLayer] = []
        if precision == "int8":
            assert program is not None  # self.require
            _convert(program.converted(), shape, files["int8"], blind=model.blind, quantized=True)
            tflite_file.unsigned_io(files["int8"], files["int8-uint8io"])
            kinds = ["int8", "int8-uint8io", *kinds]
            known = program.layers()
        with quietly(descriptors=True):
            variants = [_variant(kind, files[kind]) for kind in kinds]
            layers = tflite_file.layers(files[precision], known)
        variants.sort(key=lambda v: v.name != precision)
        return Lowered(tuple(variants), layers)


TARGET = TFLite()


def _convert(module: nn.Module, shape: tuple[int, ...], path: Path, *, blind: bool, quantized: bool) -> None:
    sample: dict[str, Any] = {"image": torch.rand(shape)}
    if not blind:
        sample["sigma"] = torch.rand(1)
    with quietly(descriptors=True):
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import (
            PT2EQuantizer,
            get_symmetric_quantization_config,
        )
        from litert_torch.quantize.quant_config import QuantConfig

        config = None
        if quantized:
            # Only tells the converter that the program carries its own integers; nothing is calibrated again.
            stated = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
            config = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(stated))
        wrapped = _Blind(module) if blind else _ChannelsLast(module)
        _lay_out(wrapped)
        try:
            litert_torch.convert(wrapped, sample_kwargs=sample, quant_config=config).export(str(path))
            tflite_layout.simplify(path)
            tflite_file.name_output(path, "clean")
        except Exception as error:  # the converter raises whatever its MLIR passes raise
            raise ExportError(f"litert-torch cannot convert the model: {first_line(error)}") from error


def _lay_out(module: nn.Module) -> None:
    """Bring every constant into the plain layout, in place.

    litert-torch 0.10 tells constants apart by shape and address. Of one in another layout, as training leaves them, it
    makes a copy that it frees at once; the next copy of that shape lies at the same address, and was written as the
    first one's values.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()


def _half(source: Path, destination: Path) -> None:
    """Store the weights of a float file as float16; XNNPACK widens them when the file is opened."""
    with quietly(descriptors=True):
        from ai_edge_quantizer import qtyping, quantizer
        from ai_edge_quantizer.algorithm_manager import AlgorithmName

        weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        caster = quantizer.Quantizer(str(source))
        caster.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT
            ),
            algorithm_key=AlgorithmName.FLOAT_CASTING,
        )
        caster.quantize().export_model(str(destination))


def _variant(kind: str, path: Path) -> Variant:
    """Read the tensors back from the file: the manifest states what was written, not what was meant."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    runner = interpreter.get_signature_runner()

    def spec(name: str, role: str, details: Any) -> TensorSpec:
        scale, zero_point = details["quantization"]
        integer = scale != 0
        shape = tuple(int(side) for side in details["shape"])
        return TensorSpec(
            name=name,
            role=role,
            shape=shape,
            layout="NHWC" if len(shape) == 4 else "N",
            dtype=details["dtype"].__name__,
            scale=float(scale) if integer else None,
            zero_point=int(zero_point) if integer else None,
        )

    inputs = tuple(spec(n, n, d) for n, d in sorted(runner.get_input_details().items()))
    outputs = tuple(spec(n, "clean", d) for n, d in runner.get_output_details().items())
    return Variant(name=kind, file=path.name, engine=TFLite.engine, inputs=inputs, outputs=outputs)
