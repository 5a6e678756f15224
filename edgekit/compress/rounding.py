"""Rounding a layer's weights together: where one is rounded up, another makes up for it.

What a layer reads is correlated - neighbouring pixels, and channels that saw the same ones - so that the errors of two
weights add up or cancel at its output. Each weight alone goes to the nearest integer; here the integers are chosen that
change the layer's output the least, one after the other, given all others, until none wants to move:

    minimise over Q   (W - s Q) H (W - s Q)^T,   H = the second moment of what the layer reads

as the layerwise objective of AdaRound (Nagel et al. 2020, arXiv:2004.10568) and GPTQ (Frantar et al. 2022,
arXiv:2210.17323), by coordinate descent. It needs no gradient and takes seconds. QAT finds more
(docs/int8-experiments.md), and what it has learned must not be rounded again: its weights are good as they are rounded,
not as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Interpreter, Node

from edgekit.compress.annotate import CONVOLUTIONS
from edgekit.compress.batches import Batch, Progress, silent
from edgekit.compress.bias_correction import outputs
from edgekit.compress.fake_quant import ChannelWeights, Pairs
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.share import own_error
from edgekit.models.base import DenoiserModel

# Positions of each image that a layer's inputs are looked at: eight batches of eight give some 32,000.
_POSITIONS = 512
# Of the mean power of a layer's inputs, added to each: weights that nothing reads stay where they are.
_DAMPING = 1e-3
# The least of it, as a share of the power before the mean was taken off: of a constant input nothing else is left.
_FLOOR = 1e-6
# Passes over all weights at most; most layers are done after five.
_SWEEPS = 8
# Weights of an output that are looked at before the others hear of it: one product of matrices instead of many.
_BLOCK = 128
# Inputs of a kernel above which its weights go to the nearest: 256 channels by 3x3. Twice its square in doubles is held
# for each layer, and time goes with the square, too.
_MOST_INPUTS = 2304


def round_together(
    program: QuantizedProgram, model: DenoiserModel, observed: Sequence[Batch], progress: Progress = silent
) -> dict[str, float]:
    """Choose the integers of convolutions' weights, in place; ranges must be set.

    Weights and the corrections of biases are replaced: in float the program is the model no longer. Transposed
    convolutions, kernels of very many inputs, and layers whose error does not become less on the last batch, which is
    kept out of the choice, stay rounded to the nearest. Pairs of weights that would saturate are kept out.

    Args:
        model: the float model, whose error says how much each image counts.
        observed: noisy batches, at least two; with fewer nothing is done.
        progress: told how many layers are done.
    Returns: by layer, the squared error at its output as a share of that of rounding to the nearest, on the last batch.
    """
    if len(observed) < 2:
        return {}
    corrected = program.corrected
    chosen, held_out = _Moments(program), _Moments(program)
    with program.in_float(), torch.no_grad():
        for moments, batches in ((chosen, observed[:-1]), (held_out, observed[-1:])):
            for batch in batches:
                moments.look(batch, 1 / own_error(model(batch.noisy, batch.sigma), batch.clean))
    found = {}
    for done, (quantizer, seen) in enumerate(chosen.seen.items(), 1):
        weight = program.module.get_parameter(seen.weight).detach()
        bias = seen.bias if corrected else None
        nearest = quantizer(weight)  # sets the scale, too
        rounded = _along(quantizer.scale, weight) * _descend(quantizer, weight, seen, centred=bias is not None)
        mean = None if bias is None else seen.mean
        before, after = (held_out.seen[quantizer].error(weight - made, mean) for made in (nearest, rounded))
        if after < before:
            program.shift_back(quantizer)
            if bias is not None:
                program.shift(quantizer, bias, outputs((rounded - weight).double(), seen.mean))
            weight.copy_(rounded)
            quantizer.hold()
            found[seen.weight.removesuffix(".weight")] = round(after / before, 4)
        progress(done, len(chosen.seen), "rounding")
    return found


@dataclass
class _Seen:
    """What a convolution reads: names of its weight and bias, and moments of its inputs, summed until `count`.

    Attributes:
        second: [groups, inputs, inputs].
        first: [groups, inputs].
    """

    weight: str
    bias: str | None
    second: Tensor
    first: Tensor
    count: float

    @property
    def mean(self) -> Tensor:
        return self.first / self.count

    def around(self, mean: Tensor | None) -> Tensor:
        """The second moment around a mean [groups, inputs], or around 0."""
        moment = self.second / self.count
        if mean is None:
            return moment
        across = mean[:, :, None] * self.mean[:, None, :]
        return moment - across - across.mT + mean[:, :, None] * mean[:, None, :]

    def error(self, error: Tensor, mean: Tensor | None) -> float:
        """The squared error at the output that errors of the weight make, what they make of `mean` taken away."""
        rows = error.double().reshape(len(self.first), -1, self.first.shape[1])
        return float((rows @ self.around(mean) * rows).sum())


class _Moments(Interpreter):
    """Runs a program and gathers the moments of what each of its convolutions reads, image by weighted image."""

    def __init__(self, program: QuantizedProgram) -> None:
        super().__init__(program.module)
        self.program = program
        self.seen: dict[ChannelWeights, _Seen] = {}
        self.weights = torch.ones(())
        self.generator = torch.Generator()

    def look(self, batch: Batch, weights: Tensor) -> None:
        """Run a batch, each image as important as `weights` [N] says."""
        self.weights = weights.double() / weights.sum()
        self.generator.manual_seed(0)
        self.run(batch.noisy, batch.sigma)

    def run_node(self, n: Node) -> object:
        if n.op == "call_function" and n.target in CONVOLUTIONS and CONVOLUTIONS[n.target] == 0:
            quantizer = self.program.quantizer(n)
            if quantizer is not None:
                self.add(quantizer, n)
        return super().run_node(n)

    def add(self, quantizer: ChannelWeights, node: Node) -> None:
        arguments, _ = self.fetch_args_kwargs_from_env(node)
        x, weight = arguments[:2]
        given: list[Any] = list(arguments[3:])
        stride, padding, dilation, groups = given + [[1, 1], [0, 0], [1, 1], 1][len(given) :]
        inputs = weight.shape[1] * weight.shape[2] * weight.shape[3]
        if inputs > _MOST_INPUTS or isinstance(padding, str):
            return
        if quantizer not in self.seen:
            name, bias = self.program.named(node)
            if name is None:
                return
            nothing = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
            self.seen[quantizer] = _Seen(name, bias, nothing, nothing[:, 0].clone(), 0.0)
        places: Tensor | None = None
        drawn = []
        for image in x.split(1):  # all windows of a batch may be gigabytes
            windows = F.unfold(image, weight.shape[2:], dilation, padding, stride)
            if places is None:
                places = torch.randperm(windows.shape[2], generator=self.generator)[:_POSITIONS]
            drawn.append(windows[:, :, places].double())
        columns = torch.cat(drawn).view(len(x), groups, inputs, -1)
        # Where a network folds something else into the batch, no image is known to be more important.
        weights = self.weights if len(self.weights) == len(x) else torch.full((len(x),), 1 / len(x)).double()
        heavy = columns * weights.view(-1, 1, 1, 1)
        seen = self.seen[quantizer]
        seen.second += torch.einsum("ngkl,ngjl->gkj", heavy, columns)
        seen.first += heavy.sum((0, 3))
        seen.count += float(columns.shape[3])


def _descend(quantizer: ChannelWeights, weight: Tensor, seen: _Seen, *, centred: bool) -> Tensor:
    """The integers of a weight, in its shape; the quantizer's scale is set.

    Args:
        centred: a bias takes the mean of the error away, so that it does not count.
    """
    groups, inputs = seen.first.shape
    moment = seen.around(seen.mean if centred else None)
    raw = (seen.second / seen.count).diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    damping = torch.maximum(_DAMPING * moment.diagonal(dim1=1, dim2=2).mean(1, keepdim=True), _FLOOR * raw)
    moment = moment + torch.diag_embed(damping.expand(groups, inputs))
    own = moment.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(torch.float64).tiny)
    scale = _along(quantizer.scale, weight).double().reshape(groups, -1, 1)
    target = weight.double().reshape(groups, -1, inputs)
    low, high = quantizer.quant_min, quantizer.quant_max
    integers = (target / scale).round().clamp(low, high)
    error = target - scale * integers
    pull = error @ moment
    taps = weight.shape[2] * weight.shape[3]
    for _ in range(_SWEEPS):
        before = integers.clone()
        for start in range(0, inputs, _BLOCK):
            block = slice(start, start + _BLOCK)
            near, old = pull[:, :, block].clone(), error[:, :, block].clone()
            for k in range(start, min(start + _BLOCK, inputs)):
                # What the others' errors leave for this weight to make up.
                wanted = target[:, :, k] + near[:, :, k - start] / own[:, k, None] - error[:, :, k]
                best = (wanted / scale[:, :, 0]).round().clamp(low, high)
                if quantizer.pairs is not None:
                    best = _beside(best, _taken_together(integers, k, taps, quantizer.pairs), high)
                step = scale[:, :, 0] * (integers[:, :, k] - best)
                integers[:, :, k] = best
                error[:, :, k] += step
                near += step[:, :, None] * moment[:, None, k, block]
            pull += (error[:, :, block] - old) @ moment[:, block]
        if torch.equal(before, integers):
            break
    return integers.reshape(weight.shape).to(weight.dtype)


def _taken_together(integers: Tensor, k: int, taps: int, pairs: Pairs) -> Tensor:
    """The integers that a kernel may take together with its input k, [groups, out, others]: others at the same tap."""
    channel, tap = divmod(k, taps)
    at_tap = integers[:, :, tap::taps]
    if pairs == "any":
        return torch.cat((at_tap[:, :, :channel], at_tap[:, :, channel + 1 :]), 2)
    return at_tap[:, :, [order[order.index(channel) ^ 1] for order in pairs]]


def _beside(wanted: Tensor, others: Tensor, high: int) -> Tensor:
    """The integers nearest to those wanted that add up to 128 at most with each of the others of the same sign."""
    zero = torch.zeros_like(wanted)[:, :, None]
    above, below = torch.cat((others, zero), 2).amax(2), torch.cat((others, zero), 2).amin(2)
    most, least = (high + 1 - above).clamp(max=high), (-high - 1 - below).clamp(min=-high)
    return torch.minimum(torch.maximum(wanted, least), most)


def _along(scale: Tensor, weight: Tensor) -> Tensor:
    """Scales of output channels, in the shape that multiplies a kernel [out, in / groups, h, w]."""
    return scale.view(-1, *[1] * (weight.dim() - 1))
