"""What is taken out of an exported graph, and that it computes the same without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgekit.models import create
from edgekit.models.graph import GraphModel
from edgekit.targets import onnx_graph, onnx_layout


def run(path: Path, **feed: NDArray[Any]) -> NDArray[Any]:
    import onnxruntime

    result: NDArray[Any] = onnxruntime.InferenceSession(str(path)).run(None, feed)[0]
    return result


def operators(path: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(str(path)).graph.node}


def test_a_student_has_no_shapes_computed_on_the_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create("dsunet-n", widths=[8, 16], encoder=[[]], middle=[16], decoder=[[16]], up_width=0).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    tidy, plain = tmp_path / "tidy.onnx", tmp_path / "plain.onnx"
    onnx_graph.write(model, model, tidy)
    onnx_graph.write(model, model, plain, tidy=False)
    assert {"Shape", "Reshape", "Transpose"} <= operators(plain)
    assert not {"Shape", "Reshape", "Transpose"} & operators(tidy)
    assert {"SpaceToDepth", "DepthToSpace"} <= operators(tidy)
    feed = {"noisy": np.random.default_rng(0).random((2, 3, 16, 24), np.float32), "sigma": np.float32([0.1, 0.2])}
    np.testing.assert_allclose(run(tidy, **feed), run(plain, **feed), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_shuffle_is_renumbered_only_behind_an_ungrouped_convolution(tmp_path: Path, groups: int) -> None:
    torch.manual_seed(0)
    head: dict[str, Any] = {
        "op": "conv", "name": "head", "inputs": ["cells"], "in": 4, "out": 8, "kernel": [3, 3], "stride": [1, 1],
        "pad": [1] * 4, "dilation": [1, 1], "groups": groups, "bias": True,
    }  # fmt: skip
    tail = {**head, "name": "tail", "inputs": ["up"], "in": 2, "out": 1, "groups": 1}
    nodes = [
        {"op": "space_to_depth", "name": "cells", "inputs": ["noisy"], "block": 2, "order": "channel"},
        head,
        {"op": "depth_to_space", "name": "up", "inputs": ["head"], "block": 2, "order": "channel"},
        tail,
    ]
    model = GraphModel(channels=1, nodes=nodes, level="none").eval()
    path = tmp_path / "x.onnx"
    onnx_graph.write(model, model, path)
    import onnx

    (shuffle,) = [node for node in onnx.load(str(path)).graph.node if node.op_type == "DepthToSpace"]
    assert onnx_layout._setting(shuffle, "mode") == (b"DCR" if groups == 1 else b"CRD")
    noisy = torch.rand(1, 1, 16, 24)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, noisy=noisy.numpy()), model(noisy, torch.zeros(1)).numpy(), atol=1e-5)
