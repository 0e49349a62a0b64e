"""Tucker decomposition of convolutions into three layers: 1 x 1, a core with fewer channels, 1 x 1.

Kim, Park, Yoo, Choi, Yang, Shin: "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", ICLR 2016, arXiv 1511.06530. Only the abstract was available: rank selection by variational Bayesian matrix
factorisation, Tucker decomposition of the kernel tensors, fine-tuning of the whole network in one step.

    W = sum over a, b of  last[:, a] core[a, b, :, :] first[b, :]        W [N, C, k, k], core [r2, r1, k, k]

is a 1 x 1 convolution from C to r1 channels, the core, and a 1 x 1 convolution to N (Tucker-2). The spatial dimensions are too
small to be decomposed. Without images the factors are found by higher-order orthogonal iteration (HOOI). With images, they are
the principal components of the output on one side, and the decomposition by input channels (`input`) on the other.
Fully-connected layers and 1 x 1 convolutions have no core and are factored into two layers by SVD.

Unlike the paper: one rank for both sides, so that the search has one variable per layer, and ranks that jointly meet a budget.
`--set ranks=evbmf` distributes the budget in proportion to the ranks that variational Bayes finds; of the two unfoldings of W,
the one with the higher rank is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from compressor.methods.lowrank.decompositions import (
    CHANNEL,
    INPUT,
    SPLITS,
    TINY,
    Layer,
    Seen,
    Split,
    balanced,
    conv_like,
    places_of,
    small,
    weight_of,
)
from compressor.methods.lowrank.factor import LowRank
from compressor.methods.lowrank.factorable import Site
from compressor.training.method import Job

HOOI = 20  # maximum number of iterations


class Tucker(LowRank):
    """Factors convolutions into three layers by Tucker decomposition, linear layers into two by SVD, then fine-tunes.

    ranks: rank selection rule: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: minimise the error of layer outputs on images (if there are any) instead of the error of the weights
    """

    paper = "Kim et al., ICLR 2016 (arXiv 1511.06530)"

    def __init__(self, job: Job, *, ranks: str = "knapsack", whiten: bool = True) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        if isinstance(layer, nn.Linear):
            return [SPLITS["linear"]]
        return [CHANNEL if max(layer.kernel_size) == 1 else IN_THREE]

    def sites(self, seen: Mapping[str, Seen]) -> list[Site]:
        return [_by_unfolding(site, seen.get(site.name)) for site in super().sites(seen)]


def _by_unfolding(site: Site, seen: Seen | None) -> Site:
    """The site with the singular values of the unfolding with the higher variational Bayesian rank."""
    if site.split is not IN_THREE:
        return site
    unfolded = [CHANNEL, INPUT]
    ladders = [
        replace(site.ladder, singular=s.singular(site.layer, seen).cpu().numpy(), shape=s.shape(site.layer)) for s in unfolded
    ]
    return replace(site, ladder=max(ladders, key=lambda ladder: ladder.analytic))


# The decomposition ----------------------------------------------------------------------------------------------------


class InThree(Split):
    """1 x 1 from C to r1 = min(rank, C), k x k to r2 = min(rank, N), 1 x 1 to N: params C r1 + k^2 r1 r2 + r2 N.

    Tucker-2. Errors are those of the truncated higher-order singular value decomposition. Without images, `factor` refines it
    by orthogonal iteration (HOOI), which does not increase the error. With images, it is `input` followed by the projection
    onto the principal components of the output. The error of the projection is exact; that of `input` is an estimate under
    the assumptions of `input`.
    """

    name = "tucker"

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or small(layer)

    def shape(self, layer: Layer) -> tuple[int, int]:
        """[N, C]: the two dimensions that are reduced."""
        outputs, inputs = layer.weight.shape[:2]
        return outputs, inputs

    def most(self, layer: Layer) -> int:
        return min(max(self.shape(layer)), places_of(layer) * min(self.shape(layer)))

    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        """[most] float64: squares are the error reduction by each rank, in the order of ranks; not strictly descending."""
        (basis, worth), (read, values) = CHANNEL.spectrum(layer, seen), INPUT.spectrum(layer, seen)
        core = torch.einsum("nq,nkr->qkr", basis, (read * values).reshape(len(basis), -1, len(values)))
        energy = core.square().sum(1).cumsum(0).cumsum(1)  # [r2, r1] energy of the truncated core
        ranks = torch.arange(self.most(layer), device=energy.device)
        left, right = (ranks.clamp(max=size - 1) for size in energy.shape)
        variance = worth.square().cumsum(0)  # [r2] of the output
        by_outputs = 1 - variance[left] / variance[-1].clamp(min=TINY)
        by_inputs = (energy[left, -1] - energy[left, right]) / energy[-1, -1].clamp(min=TINY)
        lost = (by_outputs + by_inputs).flip(0).cummax(0).values.flip(0)  # relative error, non-increasing in the rank
        saved = -lost.clamp(0, 1).diff(prepend=lost.new_ones(1))
        return (saved * variance[-1]).sqrt()

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        left, right = min(rank, outputs), min(rank, inputs)
        return [
            conv_like(layer, inputs, right),
            conv_like(layer, right, left, (0, 1)),
            conv_like(layer, left, outputs, bias=bias),
        ]

    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        left, right = (min(rank, size) for size in self.shape(layer))
        lost = torch.zeros(())
        if seen is None:
            last, core, first = _hooi(weight_of(layer).flatten(2), left, right)
        else:
            last, read = CHANNEL.spectrum(layer, seen)[0][:, :left], INPUT.spectrum(layer, seen)[0][:, :right]
            first = read.mT @ INPUT.matrix(weight_of(layer))
            core = torch.einsum("nq,nkr->qkr", last, read.reshape(len(last), -1, right))
            mean = CHANNEL.mean(layer, seen)
            lost = mean - last @ (last.mT @ (mean - INPUT.lost(layer, read, seen)))
        inner, first = balanced(core.flatten(0, 1), first)
        last, inner = balanced(last, inner.reshape(left, -1))
        return [first, inner.reshape(left, -1, right).mT, last], lost


def _hooi(tensor: Tensor, left: int, right: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, C, places] -> [N, left], [left, places, right] and [right, C]."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    with tensorly.backend_context("numpy"), np.errstate(invalid="ignore"):  # for zero weights the relative error is 0 / 0
        found, _ = partial_tucker(tensor.cpu().numpy(), rank=[left, right], modes=[0, 1], n_iter_max=HOOI)
    core, (last, first) = found
    return tensor.new_tensor(last), tensor.new_tensor(core).mT, tensor.new_tensor(first).mT


IN_THREE = InThree()
