"""Bias correction: what rounding a layer's weights adds to its output on average is taken off its bias.

A rounding error of a weight, times an input whose mean is not zero, is a constant: it shifts a channel everywhere, and
the layers behind it add such shifts up to a tint of the whole image (Nagel et al. 2019, arXiv:1906.04721). In published
denoisers that is most of what integers cost without training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from edgekit.compress.annotate import CONVOLUTIONS, behind
from edgekit.compress.batches import Batch
from edgekit.compress.fake_quant import ChannelWeights
from edgekit.compress.program import QuantizedProgram


def correct_biases(program: QuantizedProgram, observed: Sequence[Batch]) -> None:
    """Correct the biases of a program in place, from the float means of what its convolutions read.

    Convolutions without a bias stay as they are, and transposed ones, whose borders see fewer inputs.

    Args:
        observed: noisy batches.
    """
    with program.in_float(), torch.no_grad():
        means = _Means(program)
        for batch in observed:
            means.run(batch.noisy, batch.sigma)
    found: dict[ChannelWeights, tuple[str, str, list[Tensor]]] = {}
    for node, seen in means.seen.items():
        read, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        if CONVOLUTIONS[node.target] != 0 or not isinstance(read, Node) or not isinstance(bias, Node):  # type: ignore[index]
            continue
        quantizer = program.quantizer(node)
        if quantizer is not None and bias.op == "get_attr":
            # A layer that is run several times has one bias.
            found.setdefault(quantizer, (str(behind(read).target), str(bias.target), []))[2].extend(seen)
    for quantizer, (name, bias_name, seen) in found.items():
        weight = program.module.get_parameter(name)
        program.shift(quantizer, bias_name, added(quantizer, weight, torch.stack(seen).mean(0)))


def added(quantizer: ChannelWeights, weight: Tensor, mean: Tensor) -> Tensor:
    """What rounding a convolution's weights adds to its output on average, [out].

    Args:
        weight: [out, in / groups, h, w].
        mean: of each channel that it reads, [in].
    """
    with torch.no_grad():
        error = (quantizer(weight) - weight).sum((2, 3))
    return outputs(error, mean.view(-1, error.shape[1]))


def outputs(error: Tensor, mean: Tensor) -> Tensor:
    """What errors of weights add to a convolution's output on average, [out].

    Args:
        error: of each weight, [out, ...].
        mean: of what each weight of a group reads, [groups, inputs].
    """
    blocks: Tensor = error.reshape(len(mean), -1, mean.shape[1]) @ mean[:, :, None]
    return blocks.flatten()


class _Means(Interpreter):
    """Runs a program and keeps, for each convolution, the mean of every channel that it reads."""

    def __init__(self, program: QuantizedProgram) -> None:
        super().__init__(program.module)
        self.seen: dict[Node, list[Tensor]] = defaultdict(list)

    def run_node(self, n: Node) -> object:
        if n.op == "call_function" and n.target in CONVOLUTIONS:
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self.seen[n].append(arguments[0].mean((0, 2, 3)))
        return super().run_node(n)
