"""CP decomposition of convolutions into four layers: the fewest weights, but the most difficult to fit and fine-tune.

Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky: "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition",
ICLR 2015, arXiv 1412.6553. Only the abstract was available: the kernel tensor is approximated by a sum of rank-one tensors with
non-linear least squares, the convolution is replaced by four with small kernels, and the whole network is fine-tuned.

    W = sum over r of  last[:, r] x first[:, r] x rows[:, r] x columns[:, r]        W [N, C, k, k]

is a 1 x 1 convolution from C to r channels, two depthwise convolutions of k x 1 and 1 x k, and a 1 x 1 convolution to N.
Fully-connected layers, 1 x 1 convolutions and kernels with a single row or column are factored into two layers by SVD.

CP decomposition is unstable. A best approximation of a given rank need not exist: the fit can diverge, with growing components
that cancel each other, which makes rounding and fine-tuning unstable (Phan et al., "Stable Low-Rank Tensor Decomposition for
Compression of Convolutional Neural Network", ECCV 2020, arXiv 2008.05441). Here each step of the fit therefore has a ridge
penalty, which bounds all components, and the norm of a component is distributed equally over its four vectors.

Unlike the paper: alternating least squares instead of Gauss-Newton, and all layers are factored at once. Errors are estimated
by short fits at a few ranks per layer; the method is still the slowest one. Images affect the selection of ranks, but not the
fit.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compressor.methods.lowrank.decompositions import (
    CHANNEL,
    SPLITS,
    TINY,
    Layer,
    Seen,
    Split,
    conv_like,
    narrow,
    small,
    weight_of,
)
from compressor.methods.lowrank.factor import LowRank
from compressor.training.method import Job

SWEEPS = 50  # of alternating least squares
FEW_SWEEPS = 10  # to estimate an error
FITS = 8  # maximum number of ranks at which it is estimated
RIDGE = 1e-5  # for a tensor of norm 1


class CP(LowRank):
    """Factors convolutions into four layers by CP decomposition, linear layers into two by SVD, then fine-tunes.

    ranks: rank selection rule: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: for layers factored by SVD, minimise the error of outputs on images instead of the error of the weights
    """

    paper = "Lebedev et al., ICLR 2015 (arXiv 1412.6553)"

    def __init__(self, job: Job, *, ranks: str = "knapsack", whiten: bool = True) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        if isinstance(layer, nn.Linear):
            return [SPLITS["linear"]]
        return [CHANNEL if min(layer.kernel_size) == 1 else IN_FOUR]


# The decomposition ----------------------------------------------------------------------------------------------------


class InFour(Split):
    """1 x 1 from C to rank, depthwise k x 1, depthwise 1 x k, 1 x 1 to N: params rank (C + 2k + N). Uses the weights alone.

    By alternating least squares from a fixed random initialisation, on which the result depends.
    """

    # Not tensorly's `parafac`, which materialises the Khatri-Rao product of all factors but one: 3 GB at 512 x 512 x 3 x 3 and
    # rank 512.

    name = "cp"
    whitens = False

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or small(layer) or narrow(layer)

    def shape(self, layer: Layer) -> tuple[int, int]:
        """Shape of the unfolding by output channels. A rank can be higher than its sides."""
        return CHANNEL.shape(layer)

    def most(self, layer: Layer) -> int:
        return layer.weight.numel() // max(layer.weight.shape)

    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        """[most] float64, descending: of the unfolding by output channels, then zeros. They bound the error from below."""
        return nn.functional.pad(CHANNEL.singular(layer), (0, self.most(layer) - CHANNEL.most(layer)))

    def errors(self, layer: Layer, ranks: Sequence[int], seen: Seen | None = None) -> npt.NDArray[np.float64]:
        """Relative squared error of short fits; for more than `FITS` ranks, interpolated linearly between fits of some."""
        weight, rising = weight_of(layer), np.unique(ranks)
        whole = weight.square().sum().clamp(min=TINY)
        tried = rising[np.unique(np.geomspace(1, len(rising), FITS).round().astype(int)) - 1]
        left = [weight - torch.einsum("nr,cr,yr,xr->ncyx", *_fit(weight, int(rank), FEW_SWEEPS)) for rank in tried]
        lost = np.minimum.accumulate([float(rest.square().sum() / whole) for rest in left])
        errors: npt.NDArray[np.float64] = np.interp(ranks, tried, lost)
        return errors

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        rows, columns = (conv_like(layer, rank, rank, (axis,), depthwise=True) for axis in (0, 1))
        return [conv_like(layer, inputs, rank), rows, columns, conv_like(layer, rank, outputs, bias=bias)]

    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        last, first, rows, columns = _fit(weight_of(layer), rank, SWEEPS)
        return [first.mT, rows.mT, columns.mT, last], torch.zeros(())


def _fit(tensor: Tensor, rank: int, sweeps: int) -> list[Tensor]:
    """Factors [size, rank] of each dimension of `tensor`, with the norm of a component equal in all of them."""
    norm = tensor.norm().clamp(min=TINY)
    unit, dims, component = tensor / norm, list(range(tensor.dim())), tensor.dim()
    start = torch.Generator().manual_seed(0)
    factors = [torch.randn(size, rank, generator=start).to(tensor) / size**0.5 for size in tensor.shape]
    ridge = RIDGE * torch.eye(rank).to(tensor)
    for _ in range(sweeps):
        for dim in dims:
            others = [other for other in dims if other != dim]
            gram = torch.stack([factors[other].mT @ factors[other] for other in others]).prod(0) + ridge  # [rank, rank]
            operands = [operand for other in others for operand in (factors[other], [other, component])]
            product = torch.einsum(unit, dims, *operands, [dim, component])  # [size, rank]
            factors[dim] = torch.linalg.solve(gram, product.mT).mT
    lengths = torch.stack([factor.norm(dim=0) for factor in factors])  # [dimensions, rank]
    scales = ((norm * lengths.prod(0)) ** (1 / tensor.dim()) / lengths).nan_to_num(posinf=0)
    return [factor * scale for factor, scale in zip(factors, scales, strict=True)]


IN_FOUR = InFour()
