"""TensorRT: ONNX with explicit quantize and dequantize operators, which the device builds its engine from.

TensorRT is not run here. What is proven on the host: the graph, computed by ONNX Runtime in TensorRT's place.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.bundle import build_engine, trtexec
from edgekit.bundle.manifest import Manifest, Variant
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.errors import RecipeError
from edgekit.models.base import DenoiserModel
from edgekit.runtime.engines import onnxruntime, tensorrt
from edgekit.targets import onnx_graph
from edgekit.targets.base import Lowered, Plain, ShapeProfile

# What stands in for it, in words.
_LIBRARY = "TensorRT"


class TensorRT(Plain):
    """Writes QDQ ONNX by TensorRT's rules for explicit quantization; `build_engine.py` in the bundle does the rest."""

    name = "tensorrt"
    extra = "tensorrt-target"
    engine = onnxruntime.NAME
    precisions = ("int8", "fp16", "fp32")
    libraries = ("onnx", "onnxscript", "onnxruntime")

    def scheme(self) -> Scheme:
        """Symmetric int8 with zero point 0 at the inputs and weights of convolutions, and at residual additions.

        Source: "Working with Quantized Types" in the TensorRT documentation: per-channel weights, nothing between a
        convolution and its ReLU, the residual branch quantized so that the addition fuses.
        """
        return Scheme(
            name=self.name,
            symmetric_activations=True,
            every_tensor=False,
            quantized_io=False,
            float_terms=True,
        )

    def check_profile(self, profile: ShapeProfile | None, *, channels: int, tile: int) -> None:
        said = {key: list(shape) for key, shape in profile.items()} if profile else None
        try:
            build_engine.shape_profile(
                {"model": {"channels": channels}, "tile": tile, "recipe": {"shape_profile": said}}
            )
        except build_engine.CannotTellError as error:
            raise RecipeError(str(error)) from error

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
        """Write NAME.int8.onnx (with program), .fp16.onnx and .fp32.onnx, each for ONNX Runtime and for TensorRT.

        TensorRT 11 takes every type from the file, so that FP16 is a file of its own; up to 10 it is a flag.
        """
        self.require(precision, program)
        files = {kind: folder / f"{name}.{kind}.onnx" for kind in ("fp32", "fp16")}
        onnx_graph.write(model.eval(), model, files["fp32"])
        onnx_graph.write(onnx_graph.Half(model), model, files["fp16"])
        if precision == "int8":
            assert program is not None  # self.require
            files["int8"] = folder / f"{name}.int8.onnx"
            onnx_graph.write(program.converted(fold=True), model, files["int8"], zero_points=True)
        inputs, outputs = onnx_graph.specs(model)
        found = []
        for kind, path in sorted(files.items(), key=lambda item: item[0] != precision):
            graph = Variant(kind, path.name, onnxruntime.NAME, inputs, outputs, made_for=_LIBRARY)
            found += [graph, replace(graph, name=f"{kind}-tensorrt", engine=tensorrt.NAME, made_for="")]
        found.sort(key=lambda v: v.engine != onnxruntime.NAME)
        return Lowered(tuple(found), onnx_graph.layers(files[precision], model, tile))

    def extras(self, manifest: Manifest) -> dict[str, str]:
        """What a Jetson's user needs: the script that builds the engine there, and the same as command lines."""
        script = Path(build_engine.__file__).read_text(encoding="utf-8")
        return {"build_engine.py": script, "trtexec.txt": "\n".join(trtexec.lines(manifest)) + "\n"}


TARGET = TensorRT()
