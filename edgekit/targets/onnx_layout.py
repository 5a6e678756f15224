"""Taking the detours out of an exported ONNX graph: a pixel-unshuffle is one operator, zero points of 0 are left out.

torch's exporter writes it as three reshapes and a transpose whose sizes are computed while the graph runs. ONNX has
SpaceToDepth; it numbers the channels differently, which the weights of the convolutions behind can absorb.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from edgekit.block_order import block_first

# torch.nn.functional.pixel_unshuffle: [N, C, H/b, b, W/b, b] -> [N, C, b, b, H/b, W/b].
_UNSHUFFLE = [0, 1, 3, 5, 2, 4]
_SCALED = ("QuantizeLinear", "DequantizeLinear")


def simplify(graph: Any) -> None:
    """Rewrite a graph in place; an unshuffle that feeds anything but convolutions stays as it is."""
    for node in list(graph.node):
        if node.op_type == "Transpose" and list(_setting(node, "perm")) == _UNSHUFFLE:
            _rewrite(graph, node)
    _drop_zeros(graph)
    for node in graph.node:
        if node.op_type == "DepthToSpace" and _setting(node, "mode") == b"CRD":
            _renumber(graph, node)
    _sweep(graph)


def _rewrite(graph: Any, transpose: Any) -> None:
    import onnx

    source, block = transpose.input[0], None
    while (writer := _writer(graph, source)) is not None and writer.op_type == "Reshape":
        block = block or _block(graph, writer)
        source = writer.input[0]
    result = transpose.output[0]
    while (behind := _only_reader(graph, result)) is not None and behind.op_type == "Reshape":
        result = behind.output[0]
    weights = _weights(graph, result)
    if block is None or not weights:
        return
    for tensor in weights:
        _reorder(tensor, block, axis=1)
    last = _writer(graph, result)
    place = list(graph.node).index(last)
    node = onnx.helper.make_node("SpaceToDepth", [source], [result], name="space_to_depth", blocksize=block)
    graph.node.remove(last)
    graph.node.insert(place, node)


def _renumber(graph: Any, shuffle: Any) -> None:
    """Let a pixel-shuffle count the place in the block first, which moves whole runs of channels and so is faster."""
    from onnx import helper

    value = shuffle.input[0]
    while (writer := _writer(graph, value)) is not None and len(_readers(graph, value)) == 1:
        if writer.op_type not in _SCALED or not _is_number(graph, writer.input[1]):
            break
        value = writer.input[0]
    if writer is None or writer.op_type != "Conv" or len(_readers(graph, value)) != 1:
        return
    if _setting(writer, "group", 1) != 1:  # its channels would change groups
        return
    names = [name for name in writer.input[1:] if name]
    stored = [_stored(graph, name) for name in names]
    scales = [_scale(graph, name) for name in names]
    through = [(name, w) for name in names if (w := _writer(graph, name)) is not None]
    if any(len(w.input) > 2 or not (_scale(graph, n) or _is_number(graph, w.input[1])) for n, w in through):
        return  # zero points of their own, or scales that are not stored: they could not follow
    if any(tensor is None for tensor in stored) or any(t and len(_readers(graph, t.name)) != 1 for t in scales):
        return
    block = _setting(shuffle, "blocksize")
    for tensor in [*stored, *(tensor for tensor in scales if tensor is not None)]:
        _reorder(tensor, block, axis=0)
    shuffle.attribute.remove(next(a for a in shuffle.attribute if a.name == "mode"))
    shuffle.attribute.append(helper.make_attribute("mode", "DCR"))


def _reorder(tensor: Any, block: int, axis: int) -> None:
    """Renumber a stored tensor's channels by the place in the block first."""
    from onnx import numpy_helper

    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(value.take(block_first(value.shape[axis], block), axis), tensor.name))


def _scale(graph: Any, name: str) -> Any:
    """The scales of a stored weight, if it has one for each of its channels."""
    writer = _writer(graph, name)
    if writer is None or writer.op_type != "DequantizeLinear":
        return None
    scale = next((tensor for tensor in graph.initializer if tensor.name == writer.input[1]), None)
    return None if scale is None or not scale.dims or list(scale.dims) == [1] else scale


def make_unsigned(graph: Any) -> None:
    """Turn the int8 integers of activations into uint8, in place: the same scales, zero points 128 higher.

    OpenVINO computes in uint8. Of int8 it makes uint8 itself, but (2026.4) loses what is negative in a tensor that both
    a convolution and a concatenation read.
    """
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in _SCALED or node.input[0] in stored or len(node.input) < 3:
            continue
        zero = _constant(graph, node.input[2])
        if zero is None or zero.dtype != np.int8:
            continue
        name = f"{node.input[2]}_unsigned"
        if name not in stored:
            graph.initializer.append(numpy_helper.from_array((zero.astype(np.int16) + 128).astype(np.uint8), name))
            stored.add(name)
        node.input[2] = name
    # Types that the graph states of its values are those of before.
    del graph.value_info[:]
    _sweep(graph)


def _drop_zeros(graph: Any) -> None:
    """Stored integers with zero point 0 need not name it, and their channels can move; OpenVINO's files halve."""
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in stored:
            zero = _constant(graph, node.input[2])
            if zero is not None and not zero.any():
                del node.input[2]


def write_zeros(graph: Any) -> None:
    """Name the zero point of stored integers where none is named, in place: zeros of their type, shaped as the scale.

    The parsers of TensorRT's older releases take no DequantizeLinear of two inputs.
    """
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) > 2 or node.input[0] not in stored:
            continue
        name = f"{node.input[0]}_zero_point"
        if name not in stored:
            stored[name] = np.zeros_like(stored[node.input[1]], stored[node.input[0]].dtype)
            graph.initializer.append(numpy_helper.from_array(stored[name], name))
        node.input.append(name)


def _only_reader(graph: Any, value: str) -> Any:
    """Who reads a value, if it is one; the exporter also asks for its shape, to put back sizes that it had folded."""
    readers = [node for node in _readers(graph, value) if node.op_type != "Shape"]
    return readers[0] if len(readers) == 1 else None


def _block(graph: Any, reshape: Any) -> int | None:
    """The block of [N, C, H/b, b, W/b, b], from the constants among its sizes."""
    shape = _writer(graph, reshape.input[1])
    if shape is None or shape.op_type != "Concat" or len(shape.input) != 6:
        return None
    sides = {int(value[0]) for i in (3, 5) if (value := _constant(graph, shape.input[i])) is not None}
    return sides.pop() if len(sides) == 1 else None


def _weights(graph: Any, value: str) -> list[Any]:
    """The stored weights of all that reads a value, if those are ungrouped convolutions with weights of their own."""
    found = []
    for node in _readers(graph, value):
        if node.op_type in _SCALED and node.input[0] == value and _is_number(graph, node.input[1]):
            behind = _weights(graph, node.output[0])
            if not behind:
                return []
            found += behind
        elif node.op_type == "Conv" and node.input[0] == value and _setting(node, "group", 1) == 1:
            tensor = _stored(graph, node.input[1])
            if tensor is None:
                return []
            found.append(tensor)
        else:
            return []
    return found


def _stored(graph: Any, name: str) -> Any:
    """A weight that is read here alone, itself or through DequantizeLinear."""
    if len(_readers(graph, name)) != 1:
        return None
    writer = _writer(graph, name)
    if writer is not None and writer.op_type == "DequantizeLinear":
        return _stored(graph, writer.input[0])
    return next((tensor for tensor in graph.initializer if tensor.name == name), None)


def _is_number(graph: Any, name: str) -> bool:
    value = _constant(graph, name)
    return value is not None and value.size == 1


def _constant(graph: Any, name: str) -> NDArray[Any] | None:
    from onnx import numpy_helper

    tensor = next((t for t in graph.initializer if t.name == name), None)
    writer = _writer(graph, name)
    if tensor is None and writer is not None and writer.op_type == "Constant":
        tensor = _setting(writer, "value")
    return None if tensor is None else numpy_helper.to_array(tensor)


def _setting(node: Any, name: str, default: Any = ()) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _writer(graph: Any, name: str) -> Any:
    return next((node for node in graph.node if name in node.output), None)


def _readers(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.node if name in node.input]


def _sweep(graph: Any) -> None:
    """Drop what nobody reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        idle = [node for node in graph.node if not read.intersection(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for kept in (graph.initializer, graph.value_info):
        made = {name for node in graph.node for name in node.output}
        for item in [i for i in kept if i.name not in read and i.name not in made]:
            kept.remove(item)
