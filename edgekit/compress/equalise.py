"""Equalisation: a channel far larger than its neighbours is made smaller, and the next layer's weights as much larger.

All channels of a tensor share one scale. Where a few reach forty times as far as the rest - the last tensor of the
published blind DnCNN is such a one - the rest are left with a handful of integers. Between a convolution and those that
read it, with at most a ReLU in between, a channel can be divided by any positive number and the weights that read it
multiplied by it: in float nothing changes (Nagel et al. 2019, arXiv:1906.04721).

What a channel gains, the weights behind it may lose, for they share a scale per output. And a narrow channel may be
narrow because it matters little. So every tensor is tried, only what is measured to lose less at the output stays, and
all of it only if the whole network loses less.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from edgekit.compress.annotate import CONVOLUTIONS
from edgekit.compress.batches import Batch
from edgekit.compress.bias_correction import added, correct_biases
from edgekit.compress.program import Link, QuantizedProgram
from edgekit.compress.share import share

# How far channels above the middle one are drawn in: to it, or to the geometric mean of both.
_EXPONENTS = (1.0, 0.5)
# What is left of the error at most, of a tensor and of the whole: less of a gain is chance on so few images, and every
# change costs some precision.
_WORTH = 0.8
# An error not worth the trial, as a share of the float model's own: it costs 0.007 dB.
_LEAST = 0.04
# What the error is measured on: batches, and images of each. And positions of each batch that a range is fitted to.
_BATCHES = 2
_IMAGES = 4
_POSITIONS = 256


@dataclass
class _Seen:
    """What goes through one tensor: the extremes of each channel [C], and whole positions of it [n, C]."""

    lower: Tensor
    upper: Tensor
    sample: Tensor


def equalise(program: QuantizedProgram, observed: Sequence[Batch], *, fit: bool = True) -> dict[str, float]:
    """Equalise the channels of a program whose ranges were observed, in place; in float it computes what it did.

    Args:
        program: its ranges have begun to learn.
        observed: noisy batches.
        fit: draw ranges in to the least squared error, else they end at the extremes.
    Returns: the tensors that were changed, and what is left of the error that each made at the output, as a share.
    Raises: ValueError: biases were corrected before, for weights that would change now.
    """
    if program.corrected:
        raise ValueError("biases were corrected for these weights: equalise first")
    links = _scalable(program)
    if not links:
        return {}
    with program.in_float(), torch.no_grad():
        watch = _Watch(program, links)
        for batch in observed:
            watch.run(batch.noisy, batch.sigma)
        tried = [Batch(*(part[:_IMAGES] for part in batch)) for batch in observed[:_BATCHES]]
        expected = [program(batch.noisy, batch.sigma) for batch in tried]
    before = {name: value.clone() for name, value in program.module.state_dict().items()}
    changed = {}
    for link in links:
        left = _equalise(program, link, watch.seen(link.node), tried, expected, fit=fit)
        if left is not None:
            changed[link.name] = left
    if not changed:
        return {}
    after = {name: value.clone() for name, value in program.module.state_dict().items()}
    even = _whole_error(program, observed, tried, expected)
    program.module.load_state_dict(before)
    if even > _WORTH * _whole_error(program, observed, tried, expected):
        program.module.load_state_dict(before)
        return {}
    program.module.load_state_dict(after)
    return changed


def _whole_error(
    program: QuantizedProgram, observed: Sequence[Batch], tried: Sequence[Batch], expected: Sequence[Tensor]
) -> float:
    """The error with all of it rounded and biases corrected: what tensors gain alone, the whole need not gain."""
    correct_biases(program, observed)
    inside = [bounds for _, bounds in program.tensors()]
    weights = [layer.weight for layer in program.layers() if layer.weight is not None]
    with program.only(*inside, *weights), torch.no_grad():
        found = _error(program, tried, expected)
    program.shift_back()
    return found


def _equalise(
    program: QuantizedProgram,
    link: Link,
    seen: _Seen,
    tried: Sequence[Batch],
    expected: Sequence[Tensor],
    *,
    fit: bool,
) -> float | None:
    """Try one tensor. Returns what is left of its error as a share; None where it stays as it is."""
    peaks = torch.maximum(seen.upper, -seen.lower)
    alive = peaks[peaks > 0]
    if not len(alive):
        return None
    above = (peaks / alive.median()).clamp(min=1)
    if not (above > 1).any():
        return None
    rounded = [link.bounds, *filter(None, (program.quantizer(node) for node in link.readers))]

    def error(mean: Tensor) -> float:
        with _corrected(program, link, mean), program.only(*rounded), torch.no_grad():
            return _error(program, tried, expected)

    before = error(seen.sample.mean(0))
    if before < _LEAST:
        return None
    at_first = _state(program, link)
    best, kept = _WORTH * before, at_first
    for exponent in _EXPONENTS:
        _restore(at_first)
        scale = above**exponent
        _divide(program, link, scale)
        sample = seen.sample / scale
        link.bounds.begin((seen.lower / scale).amin(), (seen.upper / scale).amax(), sample if fit else None)
        if (found := error(sample.mean(0))) < best:
            best, kept = found, _state(program, link)
    _restore(kept)
    for node in (link.writer, *link.readers):
        if (weights := program.quantizer(node)) is not None:
            # It keeps the scale of what it saw last.
            weights(_parameters(program, node)[0])
    return None if kept is at_first else best / before


def _error(program: QuantizedProgram, tried: Sequence[Batch], expected: Sequence[Tensor]) -> float:
    """How far the output is from the float one, relative to what that is from the clean image, as QAT counts it."""
    shares = [
        share(program(batch.noisy, batch.sigma), wanted, batch.clean)
        for batch, wanted in zip(tried, expected, strict=True)
    ]
    return float(torch.cat(shares).sqrt().mean())


@contextmanager
def _corrected(program: QuantizedProgram, link: Link, mean: Tensor) -> Iterator[None]:
    """Within it the readers' biases are corrected for the rounding of their weights, as all will be afterwards."""
    shifted = []
    for node in link.readers:
        weight, *bias = _parameters(program, node)
        if bias and (quantizer := program.quantizer(node)) is not None:
            shifted.append((bias[0], bias[0].data))
            bias[0].data = bias[0].data - added(quantizer, weight, mean)
    try:
        yield
    finally:
        for parameter, value in shifted:
            parameter.data = value


def _scalable(program: QuantizedProgram) -> list[Link]:
    """The tensors whose channels can be scaled: nothing but the convolutions at their ends would notice."""
    readers = [n for n in program.module.graph.nodes if n.op == "call_function"]
    uses = Counter(program.parameter(read) for node in readers for read in node.all_input_nodes)
    modules = dict(program.module.named_modules(remove_duplicate=False))
    calls = Counter(modules[str(n.target)] for n in program.module.graph.nodes if n.op == "call_module")

    def own(convolution: Node) -> bool:
        # A transposed convolution orders its weights otherwise, by group; none of the networks here has one inside.
        names = [program.parameter(read) for read in convolution.args[1:3] if isinstance(read, Node)]
        return CONVOLUTIONS[convolution.target] == 0 and all(name and uses[name] == 1 for name in names)  # type: ignore[index]

    return [
        link
        for link in program.links()
        if calls[link.bounds] == 1 and _alone(link) and all(own(end) for end in (link.writer, *link.readers))
    ]


def _alone(link: Link) -> bool:
    """Whether a tensor is read through its quantizer alone, which stands right behind its writer or the ReLU there."""
    source = link.node.args[0]
    assert isinstance(source, Node)
    behind_relu = source is not link.writer
    if behind_relu and (source.args[0] is not link.writer or len(source.users) > 1):
        return False
    return len(link.writer.users) == 1


def _divide(program: QuantizedProgram, link: Link, scale: Tensor) -> None:
    """Divide the channels of a tensor by scale [C], and multiply what reads them by it."""
    with torch.no_grad():
        weight, *bias = _parameters(program, link.writer)
        weight.div_(scale.view(-1, 1, 1, 1))
        for shift in bias:
            shift.div_(scale)
        for node in link.readers:
            weight, *_ = _parameters(program, node)
            groups = len(scale) // weight.shape[1]
            # Output channels of one group read the same inputs.
            read = scale.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).reshape(len(weight), -1)
            weight.mul_(read[:, :, None, None])


def _state(program: QuantizedProgram, link: Link) -> list[tuple[Tensor, Tensor]]:
    """What `_divide` and a new range change, and its values."""
    weights = [p for end in (link.writer, *link.readers) for p in _parameters(program, end)]
    changing = [*weights, link.bounds.lower, link.bounds.upper, link.bounds.width]
    return [(tensor.data, tensor.data.clone()) for tensor in changing]


def _restore(state: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in state:
        tensor.copy_(value)


def _parameters(program: QuantizedProgram, convolution: Node) -> list[Tensor]:
    """A convolution's weight and, where it has one, its bias."""
    names = [program.parameter(read) for read in convolution.args[1:3] if isinstance(read, Node)]
    return [program.module.get_parameter(name) for name in names if name is not None]


class _Watch(Interpreter):
    """Runs a program and looks at the tensors of some links before they are rounded."""

    def __init__(self, program: QuantizedProgram, links: Sequence[Link]) -> None:
        super().__init__(program.module)
        self._nodes = {link.node for link in links}
        self._extremes: dict[Node, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._samples: dict[Node, list[Tensor]] = defaultdict(list)

    def run_node(self, n: Node) -> object:
        if n in self._nodes:
            (x,), _ = self.fetch_args_kwargs_from_env(n)
            flat = x.detach().transpose(0, 1).flatten(1)
            self._extremes[n].append((flat.amin(1), flat.amax(1)))
            generator = torch.Generator().manual_seed(len(self._samples[n]))
            at = torch.randint(flat.shape[1], (_POSITIONS,), generator=generator)
            self._samples[n].append(flat[:, at].T)
        return super().run_node(n)

    def seen(self, node: Node) -> _Seen:
        """What went through the tensor that is rounded at a node."""
        lower, upper = (torch.stack(ends) for ends in zip(*self._extremes[node], strict=True))
        return _Seen(lower.amin(0), upper.amax(0), torch.cat(self._samples[node]))
