"""Reading and rewriting .tflite flatbuffers: layers, MACs, what XNNPACK took, unsigned 8-bit input and output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import LayerReport
from edgekit.compress.program import QuantizedLayer
from edgekit.errors import ExportError
from edgekit.runtime.engines.litert import PRODUCTS, delegated, node_macs

# TensorType of the TFLite schema -> numpy's name.
DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 7: "int16", 9: "int8"}
_INT8, _UINT8 = 9, 3


def read(path: Path) -> Any:
    """Unpack a .tflite file into the schema's object tree (ModelT)."""
    import ai_edge_litert.schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def write(model: Any, path: Path) -> None:
    """Pack an object tree (ModelT) into a .tflite file."""
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def operator_names(model: Any) -> list[str]:
    """Operator name of each node of the main graph, in order."""
    import ai_edge_litert.schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    def code(entry: Any) -> int:
        # Old files keep small codes in the deprecated byte.
        return max(int(entry.builtinCode), int(entry.deprecatedBuiltinCode))

    return [names[code(model.operatorCodes[node.opcodeIndex])] for node in model.subgraphs[0].operators]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def layers(path: Path, known: Sequence[QuantizedLayer] = ()) -> tuple[LayerReport, ...]:
    """Report every layer with MACs, from the file itself and from what XNNPACK takes of it on this machine.

    Args:
        path: the .tflite file.
        known: these layers as the program has them, in the order they run; their names are used when the file has as
            many, with as many weights each.
    Raises: ExportError: the file has no layer with MACs.
    """
    from ai_edge_litert.interpreter import Interpreter

    model = read(path)
    graph = model.subgraphs[0]
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    taken = delegated(interpreter._get_ops_details())
    found, sizes = [], []
    for index, (op, node) in enumerate(zip(operator_names(model), graph.operators, strict=True)):
        if op not in PRODUCTS:
            continue
        # TRANSPOSE_CONV takes (output shape, weights, input); the others (input, weights, bias).
        source, weights = (node.inputs[2], node.inputs[1]) if op == "TRANSPOSE_CONV" else node.inputs[:2]
        tensors = [graph.tensors[i] for i in (source, weights, node.outputs[0])]
        shapes = [[int(side) for side in t.shape] for t in tensors]
        kinds = {DTYPES.get(t.type, f"type {t.type}") for t in tensors[:2]}
        dtype = kinds.pop() if len(kinds) == 1 else "float32"
        found.append(LayerReport(_text(tensors[2].name), op, node_macs(op, *shapes), dtype, index in taken))
        sizes.append(math.prod(shapes[1]))
    if not found:
        raise ExportError(f"{path.name} has no convolution: nothing to report")
    if [layer.weights for layer in known] == sizes:
        found = [replace(layer, name=own.name) for own, layer in zip(known, found, strict=True)]
    return tuple(found)


def name_output(path: Path, name: str) -> None:
    """Give the one output of a file's signature a name that says what it is; the converter numbers them."""
    model = read(path)
    for signature in model.signatureDefs or []:
        (output,) = signature.outputs
        output.name = name
    write(model, path)


def unsigned_io(source: Path, destination: Path) -> None:
    """Rewrite an int8 file so that images enter and leave as uint8 (scale 1/255, zero point 0); the rest is unchanged.

    A QUANTIZE node at each end adds 128: exact, because both sides share the scale.
    """
    import ai_edge_litert.schema_py_generated as schema

    model = read(source)
    graph = model.subgraphs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 2  # requantization between 8-bit types
    model.operatorCodes.append(code)
    opcode = len(model.operatorCodes) - 1

    def twin(index: int) -> int:
        tensor = graph.tensors[index]
        unsigned = schema.TensorT()
        unsigned.name, unsigned.shape, unsigned.type = _text(tensor.name) + "_uint8", tensor.shape, _UINT8
        unsigned.shapeSignature, unsigned.hasRank = tensor.shapeSignature, tensor.hasRank
        unsigned.buffer = 0  # by convention the empty buffer: the tensor is computed
        unsigned.quantization = schema.QuantizationParametersT()
        unsigned.quantization.scale = list(tensor.quantization.scale)
        unsigned.quantization.zeroPoint = [int(z) + 128 for z in tensor.quantization.zeroPoint]
        graph.tensors.append(unsigned)
        return len(graph.tensors) - 1

    def convert(source: int, result: int) -> Any:
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = opcode, [source], [result]
        node.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
        node.builtinOptions = schema.QuantizeOptionsT()
        return node

    floats = [_text(graph.tensors[i].name) for i in graph.outputs if graph.tensors[i].type != _INT8]
    if floats:
        raise ExportError(
            f"{source.name} ends in an operator that gives floats ({', '.join(floats)}): end the network in a "
            "convolution, an addition, a subtraction or a clip"
        )
    images_in = [i for i in graph.inputs if len(graph.tensors[i].shape) == 4 and graph.tensors[i].type == _INT8]
    swap = {int(i): twin(int(i)) for i in [*images_in, *graph.outputs]}
    first = [convert(swap[int(i)], int(i)) for i in images_in]
    last = [convert(int(i), swap[int(i)]) for i in graph.outputs]
    graph.operators = [*first, *graph.operators, *last]
    graph.inputs = [swap.get(int(i), int(i)) for i in graph.inputs]
    graph.outputs = [swap[int(i)] for i in graph.outputs]
    for signature in model.signatureDefs or []:
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = swap.get(int(entry.tensorIndex), int(entry.tensorIndex))
    write(model, destination)
