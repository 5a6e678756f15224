"""Which channels of a model can be removed together, what that saves, and removing them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import RecipeError
from edgekit.models import registry
from edgekit.models.base import DenoiserModel

# Two ways of computing the same sums in float32 differ by about this share of the largest value.
_TOLERANCE = 1e-4
# Of those why a network cannot be pruned; a deep one has hundreds.
_MOST_REASONS = 6


class Channels:
    """The channel groups of a model: sets of channels, coupled through additions, that can only go together.

    Torch-pruning traces what is coupled (Fang et al. 2023, arXiv:2301.12900). It has no rule for a pixel-shuffle in
    the middle of a network and gets the channels in front of it wrong, so each group is first tried on a copy with
    random weights: it counts as removable only if the architecture can rebuild what is left, and the result computes
    what the whole network does when nobody reads the removed channels.

    Args:
        model: changed in place by `remove`.
        round_to: channels go in steps that leave a multiple of this.

    Attributes:
        sizes: number of channels of each removable group, by the module that writes them first.
        kept: why each other group stays, by its module.

    Raises: RecipeError: no group can be removed.
    """

    def __init__(self, model: DenoiserModel, round_to: int) -> None:
        self.model = model
        self._round_to = round_to
        self._graph, groups = _trace(model)
        self.sizes: dict[str, int] = {}
        self.kept: dict[str, str] = {}
        for name, size in groups.items():
            reason = self._why_not(name, size)
            if reason is None:
                self.sizes[name] = size
            else:
                self.kept[name] = reason
        if not self.sizes:
            shown = [f"{name}: {reason}" for name, reason in list(self.kept.items())[:_MOST_REASONS]]
            more = [f"and {len(self.kept) - len(shown)} more"] if len(self.kept) > len(shown) else []
            reasons = "; ".join([*shown, *more])
            raise RecipeError(
                f"{model.arch} cannot be pruned in steps of {round_to} channels ({reasons}); use --prune 0, or a "
                "smaller pruning.round_to in a recipe"
            )
        self._macs = _layer_macs(model)

    @property
    def macs_per_pixel(self) -> float:
        """Multiply-accumulates of the layers per input pixel, with what was removed so far taken off."""
        return sum(self._macs.values())

    def step(self, name: str) -> int:
        """How many channels the group loses next, so that a multiple of `round_to` is left; 0 when none may go."""
        return _step(self.sizes[name], self._round_to)

    def saving(self, name: str, channels: Sequence[int]) -> float:
        """Multiply-accumulates per input pixel that removing these channels of the group would save."""
        return sum(self._macs[layer] * (1 - left) for layer, left in self._shares_left(name, channels).items())

    def most_removable(self) -> float:
        """Share of the multiply-accumulates that are gone when every group is down to its last step, 0..1."""
        macs = dict(self._macs)
        for name, size in self.sizes.items():
            last = size
            while _step(last, self._round_to):
                last -= _step(last, self._round_to)
            for layer, left in self._shares_left(name, range(size - last)).items():
                macs[layer] *= left
        return 1 - sum(macs.values()) / self.macs_per_pixel

    def remove(self, name: str, channels: Sequence[int]) -> None:
        """Remove channels of a group from every layer that writes or reads them."""
        for layer, left in self._shares_left(name, channels).items():
            self._macs[layer] *= left
        self._group(name, channels).prune()
        self.sizes[name] -= len(channels)

    def readers(self, name: str) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """The layers that read a group: (layer, indices of its input channels, the group's channel each one reads)."""
        return _readers(self._graph, self._group(name, range(self.sizes[name])))

    def l1_norms(self, name: str) -> Tensor:
        """L1 norm of the weights of each channel, over the mean of the group (Li et al. 2017, arXiv:1608.08710)."""
        import torch_pruning

        norm = torch_pruning.importance.GroupMagnitudeImportance(p=1, group_reduction="mean", normalizer="mean")
        scores: Tensor = norm(self._group(name, range(self.sizes[name])))
        return scores

    def _group(self, name: str, channels: Sequence[int]) -> Any:
        return _group(self._graph, self.model.get_submodule(name), channels)

    def _shares_left(self, name: str, channels: Sequence[int]) -> dict[str, float]:
        """For each layer that the removal touches, the share of its multiply-accumulates that is left."""
        names = {module: layer for layer, module in self.model.named_modules()}
        left: dict[str, float] = {}
        for dependency, indices in self._group(name, channels):
            layer = names.get(dependency.target.module)
            if layer in self._macs:
                writes = self._graph.is_out_channel_pruning_fn(dependency.handler)
                count = self._graph.get_out_channels if writes else self._graph.get_in_channels
                left[layer] = left.get(layer, 1.0) * (1 - len(indices) / count(dependency.target.module))
        return left

    def _why_not(self, name: str, size: int) -> str | None:
        """Try to remove one step of a group; None when that works, else what goes wrong."""
        step = _step(size, self._round_to)
        if not step:
            return f"has {size} channels"
        whole = copy.deepcopy(self.model).cpu().eval()
        # A property of the architecture, so it must not depend on weights that happen to be zero.
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in whole.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(max(1, p[0].numel())))
        noisy, sigma = _example(whole)
        channels = torch.randperm(size, generator=generator)[:step].tolist()
        try:
            cut = copy.deepcopy(whole)
            graph, _ = _trace(cut)
            _group(graph, cut.get_submodule(name), channels).prune()
            with torch.no_grad():
                rebuilt = rebuild(cut)(noisy, sigma)
                # Silence the same channels in the whole network, at whoever reads them.
                graph, _ = _trace(whole)
                for layer, inputs, _ in _readers(graph, _group(graph, whole.get_submodule(name), channels)):
                    if isinstance(layer, nn.ConvTranspose2d):
                        layer.weight[inputs] = 0
                    else:
                        layer.weight[:, inputs] = 0  # type: ignore[operator]
                silenced = whole(noisy, sigma)
        except Exception as error:  # noqa: BLE001 - whatever tracing, cutting or the model raises, the group stays
            words = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            return "its widths follow from others" if "loading state_dict" in words else words
        if rebuilt.shape != silenced.shape or (rebuilt - silenced).abs().max() > _TOLERANCE * silenced.abs().max():
            return "what is left does not compute the same"
        return None


def rebuild(model: DenoiserModel) -> DenoiserModel:
    """A new module of the registry's from a model's own configuration, with its weights, device and mode."""
    new = registry.build(model.arch, model.config())
    new.load_state_dict(model.state_dict())
    return new.to(next(model.parameters()).device).train(model.training)


def _step(size: int, round_to: int) -> int:
    step = size % round_to or round_to
    return step if size - step >= round_to else 0


def _example(model: DenoiserModel) -> tuple[Tensor, Tensor]:
    """Inputs to trace with: small, but with several positions at the coarsest level."""
    side = model.stride * math.ceil(32 / model.stride)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    noisy = torch.rand(1, model.channels, side, side, generator=generator)
    return noisy.to(device), torch.full((1,), 0.1, device=device)


def _trace(model: DenoiserModel) -> tuple[Any, dict[str, int]]:
    """Torch-pruning's graph, and the size of each channel group by the name of the module that roots it."""
    import torch_pruning

    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=_example(model), verbose=False)
    groups: dict[str, int] = {}
    seen: set[nn.Module] = set()
    for name, module in model.named_modules():
        # Fixed weights, such as a wavelet's, are no parameters: torch-pruning has no way to cut them.
        own = isinstance(getattr(module, "weight", None), nn.Parameter)
        if own and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module not in seen:
            size = graph.get_out_channels(module)
            groups[name] = size
            for dependency, _ in _group(graph, module, range(size)):
                if graph.is_out_channel_pruning_fn(dependency.handler):
                    seen.add(dependency.target.module)
    return graph, groups


def _group(graph: Any, root: nn.Module, channels: Sequence[int]) -> Any:
    return graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, list(channels))


def _readers(graph: Any, group: Any) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    for item in group:
        layer, cut = item.dep.target.module, item.dep.handler
        # A depthwise layer passes its channels on: one function cuts both sides of it, and those behind it read.
        reads = graph.is_in_channel_pruning_fn(cut) and not graph.is_out_channel_pruning_fn(cut)
        if reads and isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            yield layer, torch.tensor(item.idxs), torch.tensor(item.root_idxs)


def _layer_macs(model: DenoiserModel) -> dict[str, float]:
    """Multiply-accumulates per input pixel of each convolution and matrix product, by module name."""
    macs: dict[str, float] = {}
    noisy, sigma = _example(model)
    pixels = noisy.shape[-2] * noisy.shape[-1]

    def count(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            # Every weight is used once at each position: of the output, or of the input where that is what it spreads.
            grid = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
            positions = grid[0].numel() / (grid.shape[-1] if isinstance(layer, nn.Linear) else grid.shape[1])
            macs[name] = macs.get(name, 0.0) + weight.numel() * positions / pixels

        return hook

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [m.register_forward_hook(count(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(noisy, sigma)
    for hook in hooks:
        hook.remove()
    return macs
