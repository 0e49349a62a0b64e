"""The ways in which one layer becomes a chain of smaller ones, with images or without.

    split = SPLITS["channel"]                      k x k to `rank` channels, then 1 x 1
    split.why_not(layer)                           "" where it can be done
    split.errors(layer, [8, 16], seen)             what is lost at these ranks, 0..1
    split.factor(layer, 16, seen)                  the chain: plain Conv2d and Linear layers, to stand in the layer's place

    seen = watch(model, ["features.0"], batches)   what layers read and give on images; None instead: the weights alone decide

W is [N outputs, C inputs, kernel rows, kernel columns], or [N, C] of a linear layer.

    linear      out x in as out x rank times rank x in
    channel     k x k from C to rank, 1 x 1 to N
    input       1 x 1 from C to rank, k x k to N
    separable   k x 1 from C to rank, 1 x k to N
    tucker      1 x 1 from C to min(rank, C), k x k to min(rank, N), 1 x 1 to N
    cp          1 x 1 from C to rank, depthwise k x 1, depthwise 1 x k, 1 x 1 to N

The first four cut one matrix M, an unfolding of W, down to U U^T M, where U has `rank` orthonormal columns. Without images
these are the first left singular vectors of M: no matrix of that rank is nearer. With images they are such that the layer's
*output* changes least:

- `linear` and `channel`: the first principal components of the output, as in Zhang, Zou, He, Sun: "Accelerating Very Deep
  Convolutional Networks for Classification and Detection", TPAMI 2016, arXiv 1505.06798 (section 2.1). The output is centred,
  and its mean goes into the bias: b' = b + (I - U U^T) (mean - b).
- `input`: the left singular vectors of M S, where S is the root of the covariance of the input channels. Interpretation: the
  places of a patch are taken as uncorrelated, and for the mean that goes into the bias, a plane is taken to have no border.
- `tucker`: principal components of the output on one side, `input` on the other.
- `separable` and `cp` cut by the weights alone, whatever was seen.

Then each of the `rank` pairs, a column of U and a row of U^T M, is scaled so that both have the same norm: without images this
is U S^1/2 and S^1/2 V^T. All is computed in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from math import prod
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.network.meta import evaluating, separate_attention
from compressor.training.method import Batch

ROWS = 8191  # places at most of a layer that a batch counts with; a prime, lest evenly spaced ones all lie in a few columns
TIE = 1e-9  # of the variance: makes what was never seen follow the weights, where fewer images than channels were seen
HOOI = 20  # iterations at most
SWEEPS = 50  # of alternating least squares
FEW_SWEEPS = 10  # to estimate an error
FITS = 8  # ranks at most at which it is estimated
RIDGE = 1e-5  # for a tensor of norm 1
TINY = torch.finfo(torch.float64).tiny

Layer = nn.Linear | nn.Conv2d


# What is seen on images -----------------------------------------------------------------------------------------------


@dataclass
class Moments:
    """Mean and covariance of rows that come one batch after the other, in float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # [n]
    scatter: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # [n, n] sum of centred squares

    def add(self, x: Tensor) -> None:
        """x [rows, n]."""
        x = x.detach().double()
        total, mean = self.count + len(x), x.mean(0)
        centred, moved = x - mean, mean - self.mean
        self.scatter = self.scatter + centred.mT @ centred + torch.outer(moved, moved) * (self.count * len(x) / total)
        self.mean = self.mean + moved * (len(x) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """[n, n], centred; the mean over all rows."""
        return self.scatter / self.count


@dataclass
class Seen:
    """What a layer read and gave on images, channel by channel, over images and places."""

    outputs: Moments
    inputs: Moments | None  # for convolutions of more than 1 x 1 alone


def watch(model: nn.Module, layers: Iterable[str], batches: Iterable[Batch]) -> dict[str, Seen]:
    """What each of `layers` reads and gives while `model` looks at `batches`, in eval mode and without gradients.

    Of a batch, all places of a layer count up to `ROWS`, and beyond that so many, evenly spaced. A layer that is not called is
    absent. Afterwards the model's modes are as before. Look at enough images: directions of the output that were not seen are
    ordered by the weights alone.
    """
    seen: dict[str, Seen] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name in layers:
            hook = model.get_submodule(name).register_forward_hook(partial(_look, seen, name), with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(separate_attention())
        for batch in batches:
            model(batch.images)
    return seen


def _look(seen: dict[str, Seen], name: str, layer: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
    """Add what `layer` just read and gave to what was seen of it."""
    assert isinstance(layer, Layer)
    known = seen.setdefault(name, Seen(Moments(), Moments() if _places(layer) > 1 else None))
    known.outputs.add(_rows(layer, out))
    if known.inputs is not None:
        known.inputs.add(_rows(layer, next(iter((*args, *kwargs.values())))))


def _rows(layer: Layer, tensor: Tensor) -> Tensor:
    """What `layer` reads or gives at some places [rows, channels]."""
    table = (tensor if isinstance(layer, nn.Linear) else tensor.movedim(1, -1)).flatten(0, -2)
    return table if len(table) <= ROWS else table[torch.arange(ROWS, device=table.device) * len(table) // ROWS]


def _places(layer: Layer) -> int:
    """Of the kernel."""
    return prod(layer.weight.shape[2:])


# What all ways share --------------------------------------------------------------------------------------------------


class Split(ABC):
    """Abstract. One way to split a layer; one of each serves all layers."""

    name: ClassVar[str]
    kind: ClassVar[type[nn.Module]] = nn.Conv2d  # what it splits
    whitens: ClassVar[bool] = True  # whether what was seen makes a difference

    def why_not(self, layer: Layer) -> str:
        """Why this way cannot split `layer`, in a few words; "" if it can."""
        if not isinstance(layer, self.kind):
            return f"no {self.kind.__name__}"
        if type(layer) is not self.kind:
            return f"its class, {type(layer).__name__}, may do more than {self.kind.__name__}"
        return _odd(layer) if isinstance(layer, nn.Conv2d) else ""

    @abstractmethod
    def shape(self, layer: Layer) -> tuple[int, int]:
        """Of the matrix that is truncated."""

    def most(self, layer: Layer) -> int:
        """The highest rank that means anything."""
        return min(self.shape(layer))

    def chain(self, layer: Layer, rank: int, bias: bool | None = None) -> nn.Sequential:
        """The layers at that rank, on `meta`. The last has a bias if `bias` says so, None: if `layer` has one.

        Raises UsageError when there is no such rank.
        """
        if not 1 <= rank <= self.most(layer):
            sizes = " x ".join(map(str, layer.weight.shape))
            raise UsageError(f"Rank {rank} was asked of weights of {sizes} ({self.name}): give 1 to {self.most(layer)}.")
        parts = self._parts(layer, rank, layer.bias is not None if bias is None else bias)
        return nn.Sequential(*parts).train(layer.training)

    @abstractmethod
    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        """[most] float64, falling: what a rank r loses is the sum of the squares beyond the first r.

        They are those of the weights or, with `seen`, of the output: then squares are the variances that are lost.
        """

    def errors(self, layer: Layer, ranks: Sequence[int], seen: Seen | None = None) -> npt.NDArray[np.float64]:
        """Squared error at each of `ranks`, as a share of the whole, 0..1: of the weights or, with `seen`, of the output."""
        energies = self.singular(layer, seen).square().cpu().numpy()
        left = np.append(energies[::-1].cumsum()[::-1], 0.0)  # [most + 1] beyond each rank
        errors: npt.NDArray[np.float64] = left[list(ranks)] / max(left[0], TINY)
        return errors

    def factor(self, layer: Layer, rank: int, seen: Seen | None = None) -> nn.Sequential:
        """The chain with its weights, of the layer's type, on its device and in its mode.

        The last part has a bias if `layer` has one, and if what was seen makes a difference. Raises UsageError as `chain` does.
        """
        seen = seen if self.whitens else None
        chain = self.chain(layer, rank, bias=None if seen is None else True).to_empty(device=layer.weight.device)
        with torch.no_grad():
            weights, lost = self._factors(layer, rank, seen)
            for part, weight in zip(chain, weights, strict=True):
                assert isinstance(part, Layer)
                part.weight.copy_(weight.reshape(part.weight.shape))
                if part.bias is not None:
                    part.bias.copy_(lost if layer.bias is None else layer.bias.double() + lost)
        return chain

    def dense(self, chain: nn.Sequential) -> Tensor:
        """The weights that the chain stands for, float64: [N, C, rows, columns], or [N, C] of linear layers."""
        weights = [_weight(part) for part in chain if isinstance(part, Layer)]
        whole = reduce(_behind, [weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1))) for weight in weights])
        return whole.flatten(1) if weights[0].dim() == 2 else whole

    @abstractmethod
    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        """The layers of the chain, on `meta`."""

    @abstractmethod
    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        """Weights of each part, in any shape that has the right order; what the mean output [N] would lose without a bias."""


def _odd(layer: nn.Conv2d) -> str:
    """What there is to a convolution that no chain could do."""
    if layer.groups > 1:
        return "grouped"
    if layer.padding_mode != "zeros":
        return f"{layer.padding_mode} padding"
    return f"padding {layer.padding!r}, not in numbers" if isinstance(layer.padding, str) else ""


def _behind(first: Tensor, then: Tensor) -> Tensor:
    """The kernel of two convolutions that come one after the other, at most one of them with several rows, and columns.

    `first` is [r, C, rows, columns], `then` [N, r, rows, columns] or, depthwise, [r, 1, rows, columns].
    """
    depthwise = then.shape[1] == 1 < len(first)
    both = torch.einsum("rab,rcde->rcadbe", then[:, 0], first) if depthwise else torch.einsum("nrab,rcde->ncadbe", then, first)
    return both.flatten(4, 5).flatten(2, 3)


def _weight(layer: Layer) -> Tensor:
    return layer.weight.detach().double()


def _conv(
    layer: Layer, inputs: int, outputs: int, axes: Sequence[int] = (), depthwise: bool = False, bias: bool = False
) -> nn.Conv2d:
    """A convolution on `meta` that does along `axes` (0: rows, 1: columns) what `layer` does, and nothing along others."""
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)

    def along(values: Sequence[int], neutral: int) -> tuple[int, int]:
        rows, columns = (value if axis in axes else neutral for axis, value in enumerate(values))
        return rows, columns

    return nn.Conv2d(
        inputs,
        outputs,
        along(layer.kernel_size, 1),
        stride=along(layer.stride, 1),
        padding=along(layer.padding, 0),
        dilation=along(layer.dilation, 1),
        groups=inputs if depthwise else 1,
        bias=bias,
        device="meta",
        dtype=layer.weight.dtype,
    )


def _balanced(last: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """`last` [m, rank] and `first` [rank, n] with the same product, each column of one as long as its row of the other."""
    scale = (first.norm(dim=1) / last.norm(dim=0)).sqrt()
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
    return last * scale, first / scale[:, None]


# One matrix that is cut -----------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """The spectrum of a layer, and what it was computed from."""

    weight: Tensor
    seen: Seen | None
    spectrum: tuple[Tensor, Tensor]

    def still_holds(self, layer: Layer, seen: Seen | None) -> bool:
        known, now = self.weight, layer.weight
        alike = (known.dtype, known.device) == (now.dtype, now.device)
        return self.seen is seen and alike and torch.equal(known, now)


class Truncation(Split):
    """Abstract. The truncation of one matrix, [N * places of the last part, C * places of the first]."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Layer, Known] = WeakKeyDictionary()

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The unfolding of a layer's weights."""

    def spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        """Orthonormal columns [rows, k], the most important first, and what each is worth [k], k >= most.

        Kept while the layer lives: its errors are asked for, then its singular values, and the factors of several ranks.
        """
        seen = seen if self.whitens else None
        known = self._known.get(layer)
        if known is None or not known.still_holds(layer, seen):
            known = Known(layer.weight.detach().clone(), seen, self._spectrum(layer, seen))
            self._known[layer] = known
        return known.spectrum

    def _spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        matrix = self.matrix(_weight(layer))
        if len(matrix) > matrix.shape[1]:
            left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
            return left, values
        # The same for a wide matrix, many times faster; values are read off the matrix, for roots would lose half their digits.
        _, left = torch.linalg.eigh(matrix @ matrix.mT)
        values, order = (left.mT @ matrix).norm(dim=1).sort(descending=True)
        return left[:, order], values

    def mean(self, layer: Layer, seen: Seen | None) -> Tensor:
        """[rows] of the matrix times what it reads; 0 where nothing was seen, or it makes no difference."""
        return _weight(layer).new_zeros(self.shape(layer)[0])

    def lost(self, layer: Layer, basis: Tensor, seen: Seen | None) -> Tensor:
        """What the mean output [N] loses when the matrix is projected on `basis`."""
        mean = self.mean(layer, seen)
        return (mean - basis @ (basis.mT @ mean)).reshape(len(layer.weight), -1).sum(1)

    def shape(self, layer: Layer) -> tuple[int, int]:
        rows, columns = self.matrix(layer.weight.detach().to("meta")).shape
        return rows, columns

    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        return self.spectrum(layer, seen)[1][: self.most(layer)]

    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        basis = self.spectrum(layer, seen)[0][:, :rank]
        last, first = _balanced(basis, basis.mT @ self.matrix(_weight(layer)))
        return [first, last.reshape(len(layer.weight), -1, rank).mT], self.lost(layer, basis, seen)


class ByOutputs(Truncation):
    """Abstract. The matrix has a row for each output: the output's principal components are those of the layer."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)  # [N, C * kernel]

    def _spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        if seen is None:
            return super()._spectrum(layer, seen)
        matrix = self.matrix(_weight(layer))
        covariance = seen.outputs.covariance.to(matrix)
        unseen = matrix @ matrix.mT  # the covariance if all that it reads were white
        unseen *= covariance.trace() / unseen.trace().clamp(min=TINY)
        values, vectors = torch.linalg.eigh(covariance + TIE * unseen)
        return vectors.flip(1), values.flip(0).clamp(min=0).sqrt()

    def mean(self, layer: Layer, seen: Seen | None) -> Tensor:
        if seen is None:
            return super().mean(layer, seen)
        mean = seen.outputs.mean.to(layer.weight.device)
        return mean if layer.bias is None else mean - layer.bias.detach().double()


class Linear(ByOutputs):
    """out x in as out x rank times rank x in: params rank (in + out)."""

    name = "linear"
    kind = nn.Linear

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape
        dtype = layer.weight.dtype
        first = nn.Linear(inputs, rank, bias=False, device="meta", dtype=dtype)
        return [first, nn.Linear(rank, outputs, bias=bias, device="meta", dtype=dtype)]


class Channel(ByOutputs):
    """k x k from C to rank, 1 x 1 to N: params rank (k^2 C + N)."""

    name = "channel"

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        return [_conv(layer, inputs, rank, (0, 1)), _conv(layer, rank, outputs, bias=bias)]


class Input(Truncation):
    """1 x 1 from C to rank, k x k to N: params rank (C + k^2 N)."""

    name = "input"

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or _small(layer)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(0, 2, 3, 1).flatten(0, 2)  # [N * kernel, C]

    def _spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        if seen is None:
            return super()._spectrum(layer, seen)
        assert seen.inputs is not None
        matrix = self.matrix(_weight(layer))
        values, vectors = torch.linalg.eigh(seen.inputs.covariance.to(matrix))
        values = values.clamp(min=0) + TIE * values.mean().clamp(min=0)
        left, values, _ = torch.linalg.svd(matrix @ vectors * values.sqrt(), full_matrices=False)
        return left, values

    def mean(self, layer: Layer, seen: Seen | None) -> Tensor:
        if seen is None:
            return super().mean(layer, seen)
        assert seen.inputs is not None
        matrix = self.matrix(_weight(layer))
        return matrix @ seen.inputs.mean.to(matrix)

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        return [_conv(layer, inputs, rank), _conv(layer, rank, outputs, (0, 1), bias=bias)]


class Separable(Truncation):
    """k x 1 from C to rank, 1 x k to N: params k rank (C + N). The weights alone decide.

    Tai, Xiao, Zhang, Wang, E: "Convolutional Neural Networks with Low-Rank Regularization", ICLR 2016, arXiv 1511.06067: the
    nearest such chain is a truncated singular value decomposition.
    """

    name = "separable"
    whitens = False

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or _small(layer) or _narrow(layer)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(0, 3, 1, 2).flatten(2, 3).flatten(0, 1)  # [N * columns, C * rows]

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        return [_conv(layer, inputs, rank, (0,)), _conv(layer, rank, outputs, (1,), bias=bias)]


def _small(layer: Layer) -> str:
    return "a 1 x 1 convolution" if _places(layer) == 1 else ""


def _narrow(layer: Layer) -> str:
    rows, columns = layer.weight.shape[2:]
    return f"a {rows} x {columns} kernel, already separate" if min(rows, columns) == 1 else ""


# Tensors --------------------------------------------------------------------------------------------------------------


class Tucker(Split):
    """1 x 1 from C to r1 = min(rank, C), k x k to r2 = min(rank, N), 1 x 1 to N: params C r1 + k^2 r1 r2 + r2 N.

    Tucker-2, as in Kim, Park, Yoo, Choi, Yang, Shin: "Compression of Deep Convolutional Neural Networks for Fast and Low Power
    Mobile Applications", ICLR 2016, arXiv 1511.06530. Errors are those of the truncated higher-order singular value
    decomposition. Without images, `factor` goes on from there by orthogonal iteration (HOOI), which does not make it worse.
    With images, it is `input` followed by the projection on the output's principal components. What the latter loses is known;
    what the former adds to it is an estimate, by what `input` takes for granted.
    """

    name = "tucker"

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or _small(layer)

    def shape(self, layer: Layer) -> tuple[int, int]:
        """[N, C]: the sides that are cut, both at once."""
        outputs, inputs = layer.weight.shape[:2]
        return outputs, inputs

    def most(self, layer: Layer) -> int:
        return min(max(self.shape(layer)), _places(layer) * min(self.shape(layer)))

    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        """[most] float64: squares are what each rank saves, in the order of ranks, which need not quite be that of size."""
        (basis, worth), (read, values) = CHANNEL.spectrum(layer, seen), INPUT.spectrum(layer, seen)
        core = torch.einsum("nq,nkr->qkr", basis, (read * values).reshape(len(basis), -1, len(values)))
        energy = core.square().sum(1).cumsum(0).cumsum(1)  # [r2, r1] of the core that is kept
        ranks = torch.arange(self.most(layer), device=energy.device)
        left, right = (ranks.clamp(max=size - 1) for size in energy.shape)
        variance = worth.square().cumsum(0)  # [r2] of the output
        by_outputs = 1 - variance[left] / variance[-1].clamp(min=TINY)
        by_inputs = (energy[left, -1] - energy[left, right]) / energy[-1, -1].clamp(min=TINY)
        lost = (by_outputs + by_inputs).flip(0).cummax(0).values.flip(0)  # a share; never less than at a higher rank
        saved = -lost.clamp(0, 1).diff(prepend=lost.new_ones(1))
        return (saved * variance[-1]).sqrt()

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        left, right = min(rank, outputs), min(rank, inputs)
        return [_conv(layer, inputs, right), _conv(layer, right, left, (0, 1)), _conv(layer, left, outputs, bias=bias)]

    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        left, right = (min(rank, size) for size in self.shape(layer))
        lost = torch.zeros(())
        if seen is None:
            last, core, first = _hooi(_weight(layer).flatten(2), left, right)
        else:
            last, read = CHANNEL.spectrum(layer, seen)[0][:, :left], INPUT.spectrum(layer, seen)[0][:, :right]
            first = read.mT @ INPUT.matrix(_weight(layer))
            core = torch.einsum("nq,nkr->qkr", last, read.reshape(len(last), -1, right))
            mean = CHANNEL.mean(layer, seen)
            lost = mean - last @ (last.mT @ (mean - INPUT.lost(layer, read, seen)))
        inner, first = _balanced(core.flatten(0, 1), first)
        last, inner = _balanced(last, inner.reshape(left, -1))
        return [first, inner.reshape(left, -1, right).mT, last], lost


def _hooi(tensor: Tensor, left: int, right: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, C, places] -> [N, left], [left, places, right] and [right, C]."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    with tensorly.backend_context("numpy"), np.errstate(invalid="ignore"):  # zeros, whose relative error is 0 / 0, are no fault
        found, _ = partial_tucker(tensor.cpu().numpy(), rank=[left, right], modes=[0, 1], n_iter_max=HOOI)
    core, (last, first) = found
    return tensor.new_tensor(last), tensor.new_tensor(core).mT, tensor.new_tensor(first).mT


class CP(Split):
    """1 x 1 from C to rank, depthwise k x 1, depthwise 1 x k, 1 x 1 to N: params rank (C + 2k + N). The weights alone decide.

    Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky: "Speeding-up Convolutional Neural Networks Using Fine-tuned
    CP-decomposition", ICLR 2015, arXiv 1412.6553, by alternating least squares from a fixed random start.

    It is unstable: there may be no nearest tensor of a rank, and then components grow without bound that cancel each other,
    which rounding and training feel (Phan et al., ECCV 2020, arXiv 2008.05441). So each step has a small ridge, which bounds
    them. What comes out still depends on the start.
    """

    # Own code, for tensorly's `parafac` multiplies out the Khatri-Rao product of all factors but one: at 512 x 512 x 3 x 3 and
    # rank 512, 3 GB.

    name = "cp"
    whitens = False

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or _small(layer) or _narrow(layer)

    def shape(self, layer: Layer) -> tuple[int, int]:
        """Of the unfolding by outputs. A rank may be higher than its sides."""
        return CHANNEL.shape(layer)

    def most(self, layer: Layer) -> int:
        return layer.weight.numel() // max(layer.weight.shape)

    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        """[most] float64, falling: of the unfolding by outputs, then zeros. A rank loses at least what is beyond it."""
        return nn.functional.pad(CHANNEL.singular(layer), (0, self.most(layer) - CHANNEL.most(layer)))

    def errors(self, layer: Layer, ranks: Sequence[int], seen: Seen | None = None) -> npt.NDArray[np.float64]:
        """Squared error of short fits, as a share of the whole; of more than `FITS` ranks, on lines between fits of some."""
        weight, rising = _weight(layer), np.unique(ranks)
        whole = weight.square().sum().clamp(min=TINY)
        tried = rising[np.unique(np.geomspace(1, len(rising), FITS).round().astype(int)) - 1]
        left = [weight - torch.einsum("nr,cr,yr,xr->ncyx", *_fit(weight, int(rank), FEW_SWEEPS)) for rank in tried]
        lost = np.minimum.accumulate([float(rest.square().sum() / whole) for rest in left])
        errors: npt.NDArray[np.float64] = np.interp(ranks, tried, lost)
        return errors

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        rows, columns = (_conv(layer, rank, rank, (axis,), depthwise=True) for axis in (0, 1))
        return [_conv(layer, inputs, rank), rows, columns, _conv(layer, rank, outputs, bias=bias)]

    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        last, first, rows, columns = _fit(_weight(layer), rank, SWEEPS)
        return [first.mT, rows.mT, columns.mT, last], torch.zeros(())


def _fit(tensor: Tensor, rank: int, sweeps: int) -> list[Tensor]:
    """Factors [size, rank] of each dimension of `tensor`, each component equally long in all of them."""
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


CHANNEL, INPUT = Channel(), Input()
SPLITS: dict[str, Split] = {split.name: split for split in (Linear(), CHANNEL, INPUT, Separable(), Tucker(), CP())}
