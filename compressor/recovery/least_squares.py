"""Ridge regression for the weights of one layer, from its inputs and its target outputs.

    min over W, b:   mean of || t - W x - b ||^2   +   ridge * (mean variance of x) * || W - W_cut ||^2

x [inputs] is an input patch of the layer, t [outputs] the target output, W_cut the weights after pruning.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.recovery.forward_passes import Layer, table_of


class Squares:
    """Least squares for the weights [groups, outputs, inputs] of a layer, separately for each group, with sums in float64.

    With an intercept, each position has an additional input, which is always 1.
    """

    def __init__(self, old: Tensor, intercept: bool) -> None:
        groups, _, size = old.shape
        self.count, self.intercept = 0, intercept
        self.old = functional.pad(old.double(), (0, int(intercept)))
        self.gram = self.old.new_zeros(groups, size + intercept, size + intercept)
        self.cross = torch.zeros_like(self.old)

    def add(self, patches: Tensor, wanted: Tensor) -> None:
        """patches [rows, groups, inputs], wanted [rows, groups * outputs]."""
        x = functional.pad(patches.double(), (0, int(self.intercept)), value=1.0).transpose(0, 1)  # [groups, rows, inputs]
        t = wanted.double().reshape(len(wanted), len(self.old), -1).permute(1, 2, 0)  # [groups, outputs, rows]
        self.gram += x.mT @ x
        self.cross += t @ x
        self.count += len(patches)

    def with_all_of(self, other: Squares) -> Squares:
        """The sums over the rows of both."""
        both = copy.copy(self)
        both.gram, both.cross, both.count = self.gram + other.gram, self.cross + other.cross, self.count + other.count
        return both

    def solve(self, ridge: float) -> Tensor:
        """[groups, outputs, inputs], the intercept last."""
        spread = self.gram.diagonal(dim1=1, dim2=2) / self.count  # [groups, inputs]
        if self.intercept:
            spread = (spread - (self.gram[:, -1] / self.count).square()).clamp(min=0)  # 0 for the intercept
        pull = ridge * self.count * spread.sum(1, keepdim=True) / (spread.shape[1] - self.intercept)
        pull = pull.expand_as(spread).clone()
        pull[spread.sum(1) == 0] = 1.0  # constant inputs: the weights do not change
        if self.intercept:
            pull[:, -1] = 0.0
        ridged = self.gram + torch.diag_embed(pull)
        missed = self.cross - self.old @ self.gram
        return self.old + torch.cholesky_solve(missed.mT, torch.linalg.cholesky(ridged)).mT

    def error(self, weights: Tensor) -> float:
        """The residual sum of squares of `weights`, minus a constant."""
        return float(((weights @ self.gram - 2 * self.cross) * weights).sum())


def patches_of(layer: Layer, x: Tensor, rows: Tensor, step: int) -> Iterator[Tensor]:
    """The input patches of `layer` for the positions `rows` of its output, `step` at a time: [rows, groups, inputs]."""
    if isinstance(layer, nn.Linear):
        yield from (part[:, None] for part in torch.split(table_of(layer, x)[rows], step))
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode)  # [n, channels, *sizes]
    table, sizes = table_of(layer, x), x.shape[2:]
    firsts, offsets = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for size, kernel, stride, dilation in zip(sizes, layer.kernel_size, layer.stride, layer.dilation, strict=True):
        starts = torch.arange(0, size - dilation * (kernel - 1), stride)
        firsts = (firsts[:, None] * size + starts).flatten()  # of each patch, its first pixel in an image
        offsets = (offsets[:, None] * size + torch.arange(kernel) * dilation).flatten()  # of each pixel from the patch's first
    firsts, offsets = firsts.to(x.device), offsets.to(x.device)
    for part in torch.split(rows, step):
        pixels = part // len(firsts) * prod(sizes) + firsts[part % len(firsts)]  # [rows]
        patches = table[pixels[:, None] + offsets]  # [rows, kernel, channels]
        apart = patches.reshape(*patches.shape[:2], layer.groups, -1)
        yield apart.permute(0, 2, 3, 1).flatten(2)  # in the order of weights: channels, then kernel
