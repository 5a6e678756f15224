"""Taking the detours out of a converted .tflite file: pixels move by one operator, not by a chain of transposes.

litert-torch writes a pixel-shuffle as up to seven reshapes and transposes, which cost a small network more than its
convolutions. TFLite has SPACE_TO_DEPTH and DEPTH_TO_SPACE; they number the channels differently, which the neighbouring
convolution's weights can absorb. Every integer stays what it was.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.block_order import block_first
from edgekit.targets import tflite_file

_MOVES = ("TRANSPOSE", "RESHAPE")
_ELEMENTWISE = ("ADD", "SUB", "MUL")
# Of SPACE_TO_DEPTH and DEPTH_TO_SPACE. Version 2 only announces 8 bits; TFLite's plain kernels, which compute those,
# too, and are what proves a bundle where XNNPACK is missing, are registered as version 1 alone.
_VERSION = 1
Array = NDArray[Any]


def simplify(path: Path) -> None:
    """Rewrite a file in place.

    Chains that give back what they began with are left out; those that are a pixel-shuffle or its inverse next to a
    convolution become one operator; all others stay.
    """
    model = tflite_file.read(path)
    graph = _Graph(model)
    graph.lift()
    changed = graph.shorten()
    if changed:
        graph.sweep()
    if graph.plain() or changed:
        tflite_file.write(model, path)


class _Graph:
    """The main graph of a file, with the operators' names beside them."""

    def __init__(self, model: Any) -> None:
        import ai_edge_litert.schema_py_generated as schema

        self.schema = schema
        self.model = model
        self.graph = model.subgraphs[0]
        self.nodes: list[tuple[str, Any]] = list(
            zip(tflite_file.operator_names(model), self.graph.operators, strict=True)
        )
        self.outputs = {int(i) for i in self.graph.outputs}

    def lift(self) -> None:
        """Move a transpose behind an addition, subtraction or product in front of it, where it may meet its inverse."""
        for op, node in list(self.nodes):
            if op not in _ELEMENTWISE or len(readers := self._readers(int(node.outputs[0]))) != 1:
                continue
            moved_op, moved = readers[0]
            shapes = {self._shape(int(i)) for i in (*node.inputs, *node.outputs)}
            if moved_op != "TRANSPOSE" or len(shapes) != 1 or int(node.outputs[0]) in self.outputs:
                continue
            if not any((w := self._writer(int(i))) is not None and w[0] in _MOVES for i in node.inputs):
                continue
            place = self._place(node)
            sources = [int(i) for i in node.inputs]
            node.inputs = list(sources)
            for slot, source in enumerate(sources):
                turned = self._tensor_like(source, self._shape(int(moved.outputs[0])))
                twin = self.schema.OperatorT()
                twin.opcodeIndex, twin.inputs, twin.outputs = moved.opcodeIndex, [source, moved.inputs[1]], [turned]
                twin.builtinOptionsType, twin.builtinOptions = moved.builtinOptionsType, moved.builtinOptions
                self.nodes.insert(place + slot, ("TRANSPOSE", twin))
                node.inputs[slot] = turned
            node.outputs = [moved.outputs[0]]
            self.nodes.remove((moved_op, moved))

    def shorten(self) -> bool:
        """Replace chains of moves; True when there was one."""
        changed = False
        for op, node in list(self.nodes):
            if op not in _MOVES or (op, node) not in self.nodes:
                continue
            # The longest chain that ends where something else begins.
            output = int(node.outputs[0])
            readers = self._readers(output)
            if output not in self.outputs and len(readers) == 1 and readers[0][0] in _MOVES:
                continue
            chain = self._chain(node)
            changed |= any(self._replace(chain[first:]) for first in range(len(chain)))
        return changed

    def sweep(self) -> None:
        """Drop operators that nobody reads any more, and store the order of what is left."""
        while True:
            read = {int(i) for _, node in self.nodes for i in node.inputs} | self.outputs
            kept = [(op, node) for op, node in self.nodes if any(int(i) in read for i in node.outputs)]
            if len(kept) == len(self.nodes):
                break
            self.nodes = kept
        self.graph.operators = [node for _, node in self.nodes]

    def _chain(self, last: Any) -> list[Any]:
        """The moves that lead to one, first to last, whoever else reads what is between."""
        chain = [last]
        while (before := self._writer(int(chain[0].inputs[0]))) is not None and before[0] in _MOVES:
            chain.insert(0, before[1])
        return chain

    def _replace(self, chain: list[Any]) -> bool:
        source, result = int(chain[0].inputs[0]), int(chain[-1].outputs[0])
        before, after = self._shape(source), self._shape(result)
        if len(chain) < 2 or len(before) != 4 or len(after) != 4 or not self._same_scale(source, result):
            return False
        places = np.arange(math.prod(before)).reshape(before)
        moved = self._apply(chain, places)
        if before == after and np.array_equal(moved, places):
            return self._bypass(source, result)
        if after[1] > before[1] and after[1] % before[1] == 0:
            block = after[1] // before[1]
            return self._widens(places, moved, block) and self._depth_to_space(source, result, block, chain)
        if before[1] > after[1] and before[1] % after[1] == 0:
            block = before[1] // after[1]
            return self._widens(moved, places, block) and self._space_to_depth(source, result, block, chain[-1])
        return False

    def _apply(self, chain: list[Any], places: Array) -> Array:
        for node in chain:
            if self._name(node) == "TRANSPOSE":
                places = places.transpose(self._data(int(node.inputs[1]), np.int32))
            else:
                places = places.reshape(self._shape(int(node.outputs[0])))
        return places

    @staticmethod
    def _widens(cells: Array, pixels: Array, block: int) -> bool:
        """Whether `pixels` is the pixel-shuffle of `cells` in torch's order of channels."""
        count, height, width, deep = cells.shape
        if deep % block**2 or pixels.shape != (count, height * block, width * block, deep // block**2):
            return False
        parts = cells.reshape(count, height, width, deep // block**2, block, block).transpose(0, 1, 4, 2, 5, 3)
        return np.array_equal(parts.reshape(pixels.shape), pixels)

    def _bypass(self, source: int, result: int) -> bool:
        if result in self.outputs:
            return False
        for _, node in self._readers(result):
            node.inputs = [source if int(i) == result else i for i in node.inputs]
        return True

    def _depth_to_space(self, source: int, result: int, block: int, chain: list[Any]) -> bool:
        """The convolution in front numbers its output channels as TFLite does."""
        writer = self._writer(source)
        between = [source, *(int(node.outputs[0]) for node in chain[:-1])]
        if writer is None or writer[0] != "CONV_2D":
            return False
        if any(len(self._readers(i)) != 1 or i in self.outputs for i in between):
            return False  # someone else would see the channels in another order
        convolution = writer[1]
        if self._shape(int(convolution.inputs[1]))[3] != self._shape(int(convolution.inputs[0]))[3]:
            return False  # grouped: its channels would change groups
        order = block_first(self._shape(source)[3], block)
        parts = [int(i) for i in convolution.inputs[1:] if int(i) >= 0]
        if not all(self._is_own(index) for index in parts):
            return False
        for index in parts:
            self._reorder(index, order, axis=0)
        self._insert(chain[-1], "DEPTH_TO_SPACE", source, result, block)
        return True

    def _space_to_depth(self, source: int, result: int, block: int, last: Any) -> bool:
        """The convolutions behind read their input channels in TFLite's order."""
        readers = self._readers(result)
        if result in self.outputs or not readers or any(op != "CONV_2D" for op, _ in readers):
            return False
        order = block_first(self._shape(result)[3], block)
        weights = [int(node.inputs[1]) for _, node in readers]
        # A grouped convolution would take other channels together.
        if not all(self._is_own(i) and self._shape(i)[3] == len(order) for i in weights):
            return False
        for index in weights:
            self._reorder(index, order, axis=3)
        self._insert(last, "SPACE_TO_DEPTH", source, result, block)
        return True

    def _insert(self, last: Any, op: str, source: int, result: int, block: int) -> None:
        """Put an operator in the place of the last one of a chain; the sweep takes away the rest."""
        schema = self.schema
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = self._opcode(op), [source], [result]
        options = schema.DepthToSpaceOptionsT() if op == "DEPTH_TO_SPACE" else schema.SpaceToDepthOptionsT()
        options.blockSize = block
        node.builtinOptions = options
        kinds = schema.BuiltinOptions
        node.builtinOptionsType = kinds.DepthToSpaceOptions if op == "DEPTH_TO_SPACE" else kinds.SpaceToDepthOptions
        self.nodes[self._place(last)] = (op, node)

    def _opcode(self, op: str) -> int:
        value = getattr(self.schema.BuiltinOperator, op)
        for index, code in enumerate(self.model.operatorCodes):
            if value == code.builtinCode:
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = value, min(value, 127), _VERSION
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def plain(self) -> bool:
        """Give operators that move pixels the version that plain kernels know, also those of the converter's own.

        Returns: whether one had another.
        """
        moving = (self.schema.BuiltinOperator.SPACE_TO_DEPTH, self.schema.BuiltinOperator.DEPTH_TO_SPACE)
        others = [c for c in self.model.operatorCodes if c.builtinCode in moving and c.version != _VERSION]
        for code in others:
            code.version = _VERSION
        return bool(others)

    def _reorder(self, index: int, order: Array, axis: int) -> None:
        """Reorder a constant along an axis, and the scales that belong to it."""
        tensor = self.graph.tensors[index]
        size = np.dtype(tflite_file.DTYPES[tensor.type])
        axis = axis if len(tensor.shape) > 1 else 0
        data = self._data(index, size).take(order, axis)
        self.model.buffers[tensor.buffer].data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        scales = tensor.quantization
        if scales is not None and scales.scale is not None and len(scales.scale) == len(order) and axis == 0:
            scales.scale = np.asarray(scales.scale)[order]
            scales.zeroPoint = np.asarray(scales.zeroPoint)[order]

    def _is_own(self, index: int) -> bool:
        """Whether a constant is read here alone."""
        buffer = self.graph.tensors[index].buffer
        sharing = [t for t in self.graph.tensors if t.buffer == buffer]
        return len(sharing) == 1 and len(self._readers(index)) == 1 and self.model.buffers[buffer].data is not None

    def _same_scale(self, first: int, second: int) -> bool:
        a, b = (self.graph.tensors[i].quantization for i in (first, second))
        return all(
            np.array_equal(x if x is not None else [], y if y is not None else [])
            for x, y in (
                (a and a.scale, b and b.scale),
                (a and a.zeroPoint, b and b.zeroPoint),
            )
        )

    def _tensor_like(self, index: int, shape: tuple[int, ...]) -> int:
        tensor = copy.deepcopy(self.graph.tensors[index])
        tensor.shape, tensor.shapeSignature, tensor.buffer = list(shape), None, 0
        # Other tools take names for unique.
        tensor.name = f"moved_{len(self.graph.tensors)}"
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _data(self, index: int, kind: Any) -> Array:
        tensor = self.graph.tensors[index]
        return np.frombuffer(bytes(self.model.buffers[tensor.buffer].data), kind).reshape(self._shape(index))

    def _shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(side) for side in self.graph.tensors[index].shape)

    def _readers(self, index: int) -> list[tuple[str, Any]]:
        return [(op, node) for op, node in self.nodes if any(int(i) == index for i in node.inputs)]

    def _writer(self, index: int) -> tuple[str, Any] | None:
        return next(((op, node) for op, node in self.nodes if any(int(i) == index for i in node.outputs)), None)

    def _name(self, node: Any) -> str:
        return next(op for op, other in self.nodes if other is node)

    def _place(self, node: Any) -> int:
        return next(i for i, (_, other) in enumerate(self.nodes) if other is node)
