"""Pruning removes what it says, in the order it says, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from toys import SmoothBatches, assert_same_weights, random_model, smooth_tiles, weights_of

from edgekit.batch import Batch
from edgekit.compress.channels import Channels, rebuild
from edgekit.compress.prune import _SCORES, prune
from edgekit.errors import RecipeError, TrainingError
from edgekit.models import registry
from edgekit.models.base import DenoiserModel
from edgekit.models.graph import GraphModel
from edgekit.recipe import PruneSettings

# Steps of 8: the networks here are small.
QUICK = PruneSettings(batches=2, round_to=8)
# Where only the hidden width of the middle block, 16, can shrink.
ONE_GROUP: dict[str, Any] = {"widths": [8, 8], "encoder": [[]], "middle": [16], "decoder": [[]], "finish": 0}


def example(model: DenoiserModel) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, model.channels, 32, 32, generator=generator), torch.tensor([0.05, 0.15])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dsunet-n", {}),
        ("dsunet-s", {"channels": 1}),
        ("dsunet-m", {}),
        ("unet", {"widths": [16, 32, 48], "encoder": [[16], [32]], "middle": [48], "decoder": [[16], [32]]}),
        ("dncnn-25", {"widths": [32] * 4}),
        ("ffdnet-color", {"widths": [32, 40, 32]}),
    ],
)
def test_a_quarter_of_the_macs_goes_and_the_rest_is_rebuilt_from_its_config(
    name: str, overrides: dict[str, Any]
) -> None:
    model = random_model(name, **overrides)
    before = weights_of(model)
    pruned, record = prune(model, QUICK, SmoothBatches(model.channels), smooth_tiles(1, model.channels))
    removed = 1 - pruned.macs_per_pixel() / model.macs_per_pixel()
    # At most one step more than asked: 8 of 32 channels of a chain are an eighth of it, of a student much less.
    assert 0.25 <= removed < 0.36
    assert record.details["macs_removed"] == pytest.approx(removed)
    assert record.before.macs_per_pixel == model.macs_per_pixel()
    assert record.after.parameters == pruned.parameter_count() < model.parameter_count()
    changed = [after for was, after in record.details["widths"].values() if was != after]
    assert changed
    assert all(width % 8 == 0 for width in changed)
    again = registry.build(pruned.arch, pruned.config())
    again.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(again.eval()(*example(model)), pruned(*example(model)))
    assert pruned(*example(model)).isfinite().all()
    assert_same_weights(model, before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def from_a_file() -> GraphModel:
    """A network with slopes, a constant and a transposed convolution."""
    layer: dict[str, Any] = {"dilation": [1, 1], "groups": 1, "bias": True, "op": "conv"}
    same = {**layer, "kernel": [3, 3], "stride": [1, 1], "pad": [1] * 4}
    halves = {**layer, "kernel": [2, 2], "stride": [2, 2], "pad": [0] * 4}
    nodes = [
        {**same, "name": "a", "inputs": ["noisy"], "in": 3, "out": 32},
        {"op": "prelu", "name": "p", "inputs": ["a"], "slopes": 32},
        {"op": "const", "name": "k", "inputs": [], "shape": [1, 32, 1, 1]},
        {"op": "mul", "name": "m", "inputs": ["p", "k"]},
        {**halves, "name": "d", "inputs": ["m"], "in": 32, "out": 32},
        {**halves, "op": "conv_transpose", "more": [0, 0], "name": "u", "inputs": ["d"], "in": 32, "out": 32},
        {"op": "concat", "name": "c", "inputs": ["u", "m"]},
        {**same, "name": "t", "inputs": ["c"], "in": 64, "out": 3},
    ]
    model = GraphModel(channels=3, nodes=nodes, level="none").eval()
    torch.nn.init.normal_(model.constants["k"])
    return model


def test_channels_that_a_transposed_convolution_ignores_go_first() -> None:
    model = from_a_file()
    idle = torch.tensor([1, 2, 3, 8, 9, 20, 21, 30])
    with torch.no_grad():
        model.layers["u"].weight[idle] = 0
    pruned, record = prune(model, QUICK.model_copy(update={"ratio": 0.01}), SmoothBatches(), smooth_tiles(1))
    assert record.details["channels_removed"] == {"layers.d": 8}
    kept = [i for i in range(32) if i not in idle]
    assert torch.equal(pruned.layers["d"].weight, model.layers["d"].weight[kept])
    torch.testing.assert_close(pruned(*example(model)), model(*example(model)))


def test_a_network_read_from_a_file_shrinks_with_its_slopes_constants_and_transposed_convolutions() -> None:
    model = from_a_file()
    pruned, record = prune(model, QUICK.model_copy(update={"ratio": 0.6}), SmoothBatches(), smooth_tiles(1))
    assert {name for name, (was, left) in record.details["widths"].items() if left < was} == {
        "layers.a", "layers.d", "layers.u",
    }  # fmt: skip
    told = {node["name"]: node for node in pruned.config()["nodes"]}
    width = told["a"]["out"]
    assert (told["p"]["slopes"], told["k"]["shape"], told["d"]["in"]) == (width, [1, width, 1, 1], width)
    assert (told["d"]["out"], told["u"]["out"] + width) == (told["u"]["in"], told["t"]["in"])
    assert 1 - pruned.macs_per_pixel() / model.macs_per_pixel() == pytest.approx(record.details["macs_removed"])
    assert pruned(*example(model)).isfinite().all()


def test_the_overshoot_is_less_than_one_step_of_the_hidden_widths() -> None:
    model = random_model("dsunet-n")
    macs = model.macs_per_pixel()
    step = 8 * 2 * 32 / 16  # 8 hidden channels, read and written by 32, at a quarter of the height and of the width
    for ratio in (0.05, 0.4):
        _, record = prune(model, QUICK.model_copy(update={"ratio": ratio}), SmoothBatches(), smooth_tiles(1))
        assert 0 <= (record.details["macs_removed"] - ratio) * macs <= step


@pytest.mark.parametrize("group", ["middle.0.expand", "finish", "down.0"])
def test_channels_that_nobody_reads_go_first_and_the_output_stays(group: str) -> None:
    model = random_model("dsunet-n", middle=[80] * 4)
    idle = torch.tensor([0, 3, 4, 9, 10, 11, 12, 15])
    readers = {
        "middle.0.expand": ["middle.0.project"],
        "finish": ["tail"],
        "down.0": ["up.0", *(f"middle.{k}.expand" for k in range(4))],
    }[group]
    with torch.no_grad():
        for name in readers:
            model.get_submodule(name).weight[:, idle] = 0
    channels = Channels(copy.deepcopy(model), 8)
    # A hair less than what these channels save: a step of any other group would not be enough.
    ratio = 0.99 * channels.saving(group, idle.tolist()) / channels.macs_per_pixel
    pruned, record = prune(model, PruneSettings(round_to=8, ratio=ratio, batches=2), SmoothBatches(), smooth_tiles(1))
    assert record.details["channels_removed"] == {group: 8}
    torch.testing.assert_close(pruned(*example(model)), model(*example(model)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("criterion", "harmless"), [("taylor", True), ("l1", False)])
def test_taylor_keeps_small_weights_that_matter_where_l1_keeps_large_ones_that_do_not(
    criterion: str, harmless: bool
) -> None:
    model = random_model("dsunet-n", **ONE_GROUP)
    block = model.get_submodule("middle.0")
    with torch.no_grad():
        # Channels 0..7 have weights ten times as large, but their ReLU never opens.
        for layer, part in ((block.expand, slice(0, 8)), (block.project, (slice(None), slice(0, 8)))):
            layer.weight[part] *= 10
        block.expand.bias[:8] = -1000
    settings = PruneSettings(round_to=8, ratio=0.01, batches=2, criterion=criterion)
    pruned, record = prune(model, settings, SmoothBatches(), smooth_tiles(1))
    assert record.details["channels_removed"] == {"middle.0.expand": 8}
    change = (pruned(*example(model)) - model(*example(model))).abs().max()
    assert bool(change < 1e-5) is harmless


def test_what_a_pixel_shuffle_or_the_image_holds_together_is_kept_and_said() -> None:
    _, record = prune(random_model("dsunet-n"), QUICK, SmoothBatches(), smooth_tiles(1))
    assert set(record.details["kept"]) == {"head", "tail"}


def test_pruning_is_the_same_each_time() -> None:
    first, _ = prune(random_model("dsunet-n"), QUICK, SmoothBatches(), smooth_tiles(1))
    second, _ = prune(random_model("dsunet-n"), QUICK, SmoothBatches(), smooth_tiles(1))
    assert first.config() == second.config()
    assert_same_weights(second, weights_of(first))


def test_a_ratio_of_zero_is_a_copy() -> None:
    model = random_model("dsunet-n")
    pruned, record = prune(model, PruneSettings(round_to=8, ratio=0), SmoothBatches(), smooth_tiles(1))
    assert pruned is not model
    assert_same_weights(pruned, weights_of(model))
    assert record.details["macs_removed"] == 0
    assert record.db_before == record.db_after


def test_the_count_while_pruning_is_the_models_own() -> None:
    model = random_model("dsunet-n")
    channels = Channels(model, 8)
    for name in ("down.0", "middle.1.expand"):
        expected = channels.macs_per_pixel - channels.saving(name, range(8))
        channels.remove(name, range(8))
        assert channels.macs_per_pixel == pytest.approx(expected)
        # The model counts on a larger image, where the work on sigma, once an image, weighs less.
        assert channels.macs_per_pixel == pytest.approx(rebuild(model).macs_per_pixel(), rel=1e-4)


def test_the_most_that_can_go_is_what_goes_when_everything_does() -> None:
    model = random_model("dsunet-n")
    channels = Channels(model, 8)
    most, before = channels.most_removable(), channels.macs_per_pixel
    for name in channels.sizes:
        while count := channels.step(name):
            channels.remove(name, range(count))
    assert 1 - channels.macs_per_pixel / before == pytest.approx(most)
    assert all(size == 8 for size in channels.sizes.values())


@pytest.mark.parametrize("ratio", [-0.1, 0.95])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    settings = QUICK.model_copy(update={"ratio": ratio})
    with pytest.raises(RecipeError, match=rf"prune ratio is {ratio}: expected 0 to 0.9"):
        prune(random_model("dsunet-n"), settings, SmoothBatches(), smooth_tiles(1))


def test_more_than_the_widths_allow_says_how_much_they_do() -> None:
    with pytest.raises(
        RecipeError, match=r"prune ratio is 0.9: with widths in steps of 8, dsunet can lose at most 0\.\d\d"
    ):
        prune(random_model("dsunet-n"), QUICK.model_copy(update={"ratio": 0.9}), SmoothBatches(), smooth_tiles(1))


def test_a_model_with_nothing_to_remove_says_why() -> None:
    model = random_model("dsunet-n", **{**ONE_GROUP, "middle": [8]})
    with pytest.raises(
        RecipeError, match=r"dsunet cannot be pruned in steps of 8 channels \(.*middle.0.expand: has 8 channels"
    ):
        prune(model, QUICK, SmoothBatches(), smooth_tiles(1))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("nafnet-width16", {"encoder": [1], "decoder": [1], "middle": 1}),
        ("mwrcanet-s", {"widths": [16, 16], "blocks": 1}),
    ],
)
def test_networks_with_one_width_for_all_are_refused_and_left_whole(name: str, overrides: dict[str, Any]) -> None:
    model = random_model(name, **overrides)
    before = weights_of(model)
    with pytest.raises(RecipeError, match=r"cannot be pruned in steps of 8 channels .*follow from others.*--prune 0"):
        prune(model, QUICK, SmoothBatches(), smooth_tiles(1))
    assert_same_weights(model, before)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("autoencoder", {}),
        ("edsr-s", {"width": 16, "blocks": [16, 16]}),
        ("mrdn-s", {"groups": [[[16, 16], [16]]]}),
        ("pmrid", {"widths": [16, 16, 32], "encoder": [[16], [16, 16]], "decoder": [16, 16, 16]}),
        ("dsunet-gpu-s", {}),
    ],
)
def test_the_zoo_is_pruned_where_its_widths_are_its_own(name: str, overrides: dict[str, Any]) -> None:
    model = random_model(name, **overrides)
    pruned, record = prune(model, QUICK.model_copy(update={"ratio": 0.02}), SmoothBatches(), smooth_tiles(1))
    assert record.details["macs_removed"] >= 0.02
    assert pruned.config() != model.config()
    assert (pruned.halo, pruned.stride) == (model.halo, model.stride)


def test_nan_stops_the_scoring() -> None:
    def broken(step: int) -> Batch:
        batch = SmoothBatches()(step)
        return Batch(batch.clean, batch.noisy * float("nan"), batch.sigma) if step == 1 else batch

    with pytest.raises(TrainingError, match="the loss is nan on batch 1"):
        prune(random_model("dsunet-n"), QUICK, broken, smooth_tiles(1))


def test_channels_are_scored_on_all_batches_alike() -> None:
    model, asked = random_model("dsunet-n", **{**ONE_GROUP, "finish": 16}), []

    def watched(step: int) -> Batch:
        asked.append(step)
        return SmoothBatches()(step)

    prune(model, PruneSettings(batches=3, round_to=8, ratio=0.01), watched, smooth_tiles(1))
    assert asked == [0, 1, 2]

    def scores(*steps: int) -> dict[str, torch.Tensor]:
        return _SCORES["taylor"](Channels(copy.deepcopy(model), 8), [SmoothBatches()(step) for step in steps])

    together, alone = scores(0, 1, 2), [scores(step) for step in range(3)]
    for name, values in together.items():
        torch.testing.assert_close(values, torch.stack([one[name] for one in alone]).mean(0))


def test_the_published_taylor_score_counts_a_stream_once_for_each_of_its_readers() -> None:
    model = random_model("dsunet-n")
    drawn = [SmoothBatches()(0)]
    ours, published = (_SCORES[name](Channels(copy.deepcopy(model), 8), drawn) for name in ("taylor", "taylor-sum"))
    assert ours.keys() == published.keys()
    # The middle stream is read by four depthwise-expand pairs and what goes up; a hidden layer by one.
    torch.testing.assert_close(ours["down.0"] * 5**0.5, published["down.0"])
    torch.testing.assert_close(ours["middle.0.expand"], published["middle.0.expand"])
