"""A tiny network, quantized for a scheme: what the targets' tests lower."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgekit.batch import Batch
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.models import create
from edgekit.models.base import DenoiserModel

SIDE = 32


@dataclass
class Tiny:
    """A model, its program with ranges observed, and the batch they were observed on."""

    model: DenoiserModel
    program: QuantizedProgram
    noisy: torch.Tensor
    sigma: torch.Tensor

    def batches(self, step: int) -> Batch:
        return Batch(self.noisy, self.noisy, self.sigma)


def quantized(scheme: Scheme) -> Tiny:
    """A network of random weights whose output differs from its input, and its program for a scheme."""
    torch.manual_seed(0)
    model = create("dsunet-n", widths=[8, 16], encoder=[[]], middle=[16], decoder=[[]], up_width=8, finish=16).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    noisy, sigma = torch.randint(0, 256, (1, 3, SIDE, SIDE)) / 255, torch.tensor([25 / 255])
    return Tiny(model, observed(model, scheme, noisy, sigma), noisy, sigma)


def observed(model: DenoiserModel, scheme: Scheme, noisy: torch.Tensor, sigma: torch.Tensor) -> QuantizedProgram:
    """The program of a model with ranges observed on one batch."""
    program = QuantizedProgram(model, scheme, (0.0, 55 / 255))
    with program.in_float(), torch.no_grad():
        program(noisy, sigma)
    for bounds in program.ranges:
        bounds.learn()
    return program
