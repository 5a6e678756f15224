"""The halo of a list of operators, held against what one changed pixel changes; sizes that cannot fit are refused."""

from __future__ import annotations

import pytest
import torch
from nodes import Node, conv, node, pool, spread

from edgekit.errors import ShapeError
from edgekit.models.graph import GraphModel
from edgekit.models.reach import reach


def down(name: str, source: str, size: int = 2, pad: int = 0) -> Node:
    return conv(name, source, 1, 1, size, stride=[2, 2], pad=[pad, size - 2 - pad] * 2)


def up(name: str, source: str, mode: str = "nearest") -> Node:
    return node("upsample", name, source, factor=[2, 2], mode=mode)


def deep(name: str, source: str) -> Node:
    return node("space_to_depth", name, source, block=2, order="channel")


def flat(name: str, source: str) -> Node:
    return node("depth_to_space", name, source, block=2, order="channel")


# Name -> the network, its stride, and whether its halo is met to the pixel.
NETWORKS: dict[str, tuple[list[Node], int, bool]] = {
    "one pixel": ([conv("a", "noisy", 1, 1, 1)], 1, True),
    "a chain": ([conv("a", "noisy", 1, 1), conv("b", "a", 1, 1, 5)], 1, True),
    "dilation": ([conv("a", "noisy", 1, 1, dilation=[3, 2], pad=[2, 2, 3, 3])], 1, True),
    "another width than height": ([conv("a", "noisy", 1, 1, kernel=[1, 7], pad=[3, 3, 0, 0])], 1, True),
    "uneven padding": ([conv("a", "noisy", 1, 1, 4, pad=[0, 3, 2, 1])], 1, True),
    "padding on its own": (
        [node("pad", "a", "noisy", pad=[3, 1, 2, 2], mode="reflect"), conv("b", "a", 1, 1, 5, pad=[0] * 4)],
        1,
        True,
    ),
    "a strided convolution": ([down("a", "noisy", 4, 1), conv("b", "a", 1, 1), up("c", "b")], 2, True),
    "odd padding of a strided one": ([down("a", "noisy", 3), up("b", "a")], 2, True),
    "two levels": (
        [down("a", "noisy"), down("b", "a"), conv("c", "b", 1, 1), up("d", "c"), conv("e", "d", 1, 1), up("f", "e")],
        4,
        True,
    ),
    "strides of two and three": (
        [
            conv("a", "noisy", 1, 1, 3, stride=[3, 3], pad=[0] * 4),
            node("upsample", "b", "a", factor=[3, 3], mode="nearest"),
            down("c", "noisy"),
            up("d", "c"),
            node("add", "e", "b", "d"),
        ],
        6,
        True,
    ),
    "pixels to channels": (
        [
            deep("a", "noisy"),
            conv("b", "a", 4, 4),
            deep("c", "b"),
            conv("d", "c", 16, 16),
            flat("e", "d"),
            flat("f", "e"),
        ],
        4,
        True,
    ),
    "a max pool": ([pool("max_pool", "a", "noisy"), conv("b", "a", 1, 1), up("c", "b")], 2, True),
    "overlapping pools": (
        [
            pool("max_pool", "a", "noisy", 3, stride=[2, 2], pad=[1, 0, 1, 0]),
            pool("avg_pool", "b", "a", 3, stride=[1, 1], pad=[1] * 4),
            up("c", "b"),
        ],
        2,
        True,
    ),
    "bilinear": ([pool("avg_pool", "a", "noisy"), up("b", "a", "bilinear")], 2, False),
    "transposed": ([down("a", "noisy"), spread("b", "a", 1, 1)], 2, False),
    "transposed and trimmed": (
        [down("a", "noisy"), spread("b", "a", 1, 1, 5, pad=[0] * 4, trim=[3, 0, 0, 3])],
        2,
        False,
    ),
    "transposed without overlap": ([down("a", "noisy"), spread("b", "a", 1, 1, 2)], 2, True),
    "transposed and dilated": (
        [down("a", "noisy"), spread("b", "a", 1, 1, 3, dilation=[2, 2], pad=[2] * 4, more=[1, 1])],
        2,
        False,
    ),
    "larger first": ([up("a", "noisy"), conv("b", "a", 1, 1, 5), down("c", "b")], 1, False),
    "skips of several lengths": (
        [
            conv("a", "noisy", 1, 1, 7),
            down("b", "noisy"),
            up("c", "b"),
            node("concat", "d", "a", "c", "noisy"),
            conv("e", "d", 3, 1),
        ],
        2,
        True,
    ),
}


def measured(model: GraphModel) -> int:
    """How far one pixel is felt: with nothing negative anywhere, whatever sees a brighter pixel is brighter."""
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.1)
    start = (model.halo // model.stride + 2) * model.stride
    side = 2 * start + model.stride
    dark = torch.full((1, 1, side, side), 0.5, dtype=torch.float64)
    sigma = torch.zeros(1, dtype=torch.float64)
    found = 0
    # Rows and columns stand for themselves, so a diagonal of one cell meets every place that a pixel can have in it.
    for i in range(start, start + model.stride):
        bright = dark.clone()
        bright[0, 0, i, i] = 100
        with torch.no_grad():
            rows, columns = (model(bright, sigma) - model(dark, sigma))[0, 0].abs().gt(1e-9).nonzero(as_tuple=True)
        found = max(found, *(int((axis - i).abs().max()) for axis in (rows, columns)))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_halo_is_how_far_one_pixel_is_felt(name: str) -> None:
    nodes, stride, exact = NETWORKS[name]
    model = GraphModel(channels=1, nodes=nodes, level="none")
    assert (model.stride, model.halo) == reach(nodes)
    assert model.stride == stride
    found = measured(model)
    if exact:
        assert found == model.halo
    else:
        assert model.halo - stride <= found <= model.halo


def test_a_constant_and_a_level_fit_any_size() -> None:
    nodes = [
        deep("a", "noisy"),
        node("expand", "level", "sigma", "a"),
        node("concat", "b", "a", "level"),
        node("const", "k", shape=[1, 5, 1, 1]),
        node("mul", "c", "b", "k"),
        conv("d", "c", 5, 4),
        flat("e", "d"),
    ]
    # A pixel at the edge of its cell sees the whole next one, two pixels wide, and the rest of its own.
    assert reach(nodes) == (2, 3)


def test_a_map_of_the_level_is_as_large_as_the_image() -> None:
    nodes = [deep("a", "noisy"), node("concat", "b", "a", "sigma"), flat("c", "b")]
    with pytest.raises(ShapeError, match=r"operator b \(concat\) joins tensors of 1/2, 1 times the image's size"):
        GraphModel(channels=3, nodes=nodes, level="map")


def test_what_a_map_of_the_level_reaches_counts_as_the_image_does() -> None:
    nodes = [
        node("space_to_depth", "a", "sigma", block=4, order="channel"),
        conv("b", "a", 16, 16),
        node("depth_to_space", "c", "b", block=4, order="channel"),
        node("mul", "d", "noisy", "c"),
    ]
    model = GraphModel(channels=1, nodes=nodes, level="map")
    assert (model.stride, model.halo) == (4, 7)


def test_tensors_of_different_sizes_cannot_be_joined() -> None:
    nodes = [down("small", "noisy"), node("add", "both", "noisy", "small")]
    with pytest.raises(ShapeError, match=r"operator both \(add\) joins tensors of 1, 1/2 times the image's size"):
        reach(nodes)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([down("a", "noisy")], "1/2 times the image"),
        ([up("a", "noisy")], "2 times the image"),
        ([node("const", "a", shape=[1, 3, 1, 1])], "a constant"),
        ([conv("a", "noisy", 1, 1, stride=[2, 1])], "1/2 times the image"),
        ([conv("a", "noisy", 1, 1, stride=[1, 2])], "1/2 times the image"),
    ],
)
def test_an_output_of_another_size_is_refused(nodes: list[Node], told: str) -> None:
    with pytest.raises(ShapeError, match=f"the network's output is {told}: a denoiser gives an image of the size"):
        reach(nodes)
