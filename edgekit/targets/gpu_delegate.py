"""Which operators of a TFLite file a phone's GPU delegate refuses, and what makes them: asked before training.

What the delegate refuses runs on the CPU, and the graph is cut there: each cut copies a tensor from the GPU and back,
which often costs more than the GPU gains.

Source: "GPU delegates for LiteRT", section "GPU ML operations support", ai.google.dev/edge/litert/performance/gpu
(2025-07-24; the same list as in TensorFlow's lite/g3doc). The list is shorter than what newer delegates take - their
source knows MEAN or SPACE_TO_DEPTH - but it is what is promised for every phone.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgekit.models.base import DenoiserModel
from edgekit.targets import tflite_file
from edgekit.targets.tflite import TARGET

# The newest version of each operator that the delegate takes in float.
PUBLISHED = {
    "ADD": 1,
    "AVERAGE_POOL_2D": 1,
    "CONCATENATION": 1,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 2,
    "EXP": 1,
    "FULLY_CONNECTED": 1,
    "LOGICAL_AND": 1,
    "LOGISTIC": 1,
    "LSTM": 2,
    "MAX_POOL_2D": 1,
    "MAXIMUM": 1,
    "MINIMUM": 1,
    "MUL": 1,
    "PAD": 1,
    "PRELU": 1,
    "RELU": 1,
    "RELU6": 1,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 3,
    "SOFTMAX": 1,
    "STRIDED_SLICE": 1,
    "SUB": 1,
    # The page has no version for it, which there means 1; the delegate's source takes up to 3, which has a bias
    # (TransposeConvBuiltinOperationParser in lite/delegates/gpu/common/model_builder.cc).
    "TRANSPOSE_CONV": 3,
}
# Tensors of more axes than batch, height, width and channels are refused, whatever the operator.
_MOST_AXES = 4
_SHUFFLE = (
    "a strided convolution in place of a pixel-unshuffle, a transposed one in place of a pixel-shuffle, as in "
    "dsunet-gpu-s"
)
_FIXES = {
    "SPACE_TO_DEPTH": _SHUFFLE,
    "DEPTH_TO_SPACE": _SHUFFLE,
    "TRANSPOSE": _SHUFFLE,
    "RESHAPE": _SHUFFLE,
    "CONV_2D": "a convolution without groups, or a depthwise one",
    "BROADCAST_TO": "add a value a channel, which ADD spreads itself, in place of a concatenated map",
    "MEAN": "an average pool of fixed size, or no attention over the whole image",
    "SUM": "an average pool of fixed size, or no attention over the whole image",
    "RESIZE_NEAREST_NEIGHBOR": "bilinear upsampling, or a transposed 2x2 convolution of stride 2",
    "RSQRT": "no normalisation over channels, or one that is folded into a convolution",
    "SLICE": "two convolutions in place of one whose channels are divided",
    "SPLIT": "two convolutions in place of one whose channels are divided",
    "DIV": "MUL by the inverse",
}


@dataclass(frozen=True)
class Refusal:
    """An operator that the delegate does not take.

    Attributes:
        operator: its name in TFLite, "DEPTH_TO_SPACE".
        module: the path of the module that makes it, or whose output it moves; the class of the network where that is
            the network itself.
        why: what is refused: the operator, its version, or the number of axes.
        fix: what to build instead.
    """

    operator: str
    module: str
    why: str
    fix: str


def refusals(model: DenoiserModel, tile: int | None = None) -> tuple[Refusal, ...]:
    """Lower a network, trained or not, and name what the delegate refuses of it; empty when it takes everything.

    Args:
        model: untouched; which weights it has is of no interest.
        tile: height and width to lower it for; None: 16 strides.
    Raises: MissingExtraError: the tflite target is not installed. ExportError: it cannot be lowered.
    """
    random = copy.deepcopy(model).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Of a fresh network's zeros the converter makes constants, and leaves out what they are multiplied with.
        for parameter in random.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 16)
    with tempfile.TemporaryDirectory() as folder:
        side = tile or 16 * model.stride
        lowered = TARGET.lower(random, None, Path(folder), name="lint", tile=side, precision="fp32")
        return refused(Path(folder) / lowered.variants[0].file, model)


def refused(path: Path, model: DenoiserModel) -> tuple[Refusal, ...]:
    """The same for a .tflite file that the network was lowered to."""
    return tuple(_refused(tflite_file.read(path), model))


def _refused(file: Any, model: DenoiserModel) -> Iterator[Refusal]:
    graph = file.subgraphs[0]
    for name, node in zip(tflite_file.operator_names(file), graph.operators, strict=True):
        version = _version(file, graph, name, node)
        used = [int(i) for i in (*node.inputs, *node.outputs) if i >= 0]
        axes = max(len(graph.tensors[i].shape) if graph.tensors[i].shape is not None else 0 for i in used)
        if name not in PUBLISHED:
            why = "is not on its list"
        elif version > PUBLISHED[name]:
            why = f"is of version {version}: the list has it up to {PUBLISHED[name]}"
        elif axes > _MOST_AXES:
            why = f"has a tensor of {axes} axes: it takes {_MOST_AXES} at most"
        else:
            continue
        fix = _FIXES.get(name, f"one of {', '.join(PUBLISHED)}")
        yield Refusal(name, _maker(graph, node, model), why, fix)


def _version(file: Any, graph: Any, name: str, node: Any) -> int:
    """The operator's version. Converters write one for all convolutions of a file, 6 if any of them has groups."""
    if name != "CONV_2D":
        return int(file.operatorCodes[node.opcodeIndex].version)
    source, weight = (graph.tensors[int(i)].shape for i in node.inputs[:2])
    return 1 if source[3] == weight[3] else 6


def _maker(graph: Any, node: Any, model: DenoiserModel) -> str:
    """The module that an operator comes from, by the names that litert-torch gives tensors: scopes, outermost first."""
    own = _scopes(graph, node.outputs)
    if own:
        return _path(own, model)
    # What the network's own forward does is known by what it is done to.
    writers = (other for other in graph.operators if set(map(int, other.outputs)) & set(map(int, node.inputs)))
    before = next((scopes for other in writers if (scopes := _scopes(graph, other.outputs))), None)
    return type(model).__name__ + (f" (behind {_path(before, model)})" if before else "")


def _scopes(graph: Any, tensors: Any) -> list[tuple[str, str]]:
    """Class and name of each module inside the network that a tensor was made in, outermost first."""
    for index in tensors:
        text = graph.tensors[int(index)].name
        text = text.decode() if isinstance(text, bytes) else str(text)
        # A fused operator has the names of all that went into it; the last is the one behind the others. The first two
        # scopes are the wrapper that turns channels last, and the network.
        scopes = next((part for part in reversed(text.split(";")) if part.count("/") > 1), "").split("/")[2:]
        found = [match.groups() for scope in scopes if (match := re.search(r"([A-Za-z0-9]+)_(\w+)$", scope))]
        if found:
            return [(kind, name) for kind, name in found]
    return []


def _path(scopes: list[tuple[str, str]], model: DenoiserModel) -> str:
    """The path of a module among the network's own; those that it may be, where lists of modules, which are no scopes,
    leave that open.
    """
    kind, last = scopes[-1]

    def fits(path: str) -> bool:
        steps = iter(path.split("."))
        return all(name in steps for _, name in scopes) and path.split(".")[-1] == last

    found = [path for path, module in model.named_modules() if type(module).__name__ == kind and fits(path)]
    return " or ".join(found) if found else ".".join(name for _, name in scopes)
