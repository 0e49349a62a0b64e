"""Low-rank decompositions of one layer into a chain of smaller layers, with or without images.

    split = SPLITS["channel"]                      k x k to `rank` channels, then 1 x 1
    split.why_not(layer)                           "" if it applies to the layer, else the reason
    split.errors(layer, [8, 16], seen)             relative squared error at these ranks, 0..1
    split.factor(layer, 16, seen)                  the chain of Conv2d or Linear layers that replaces the layer

    seen = watch(model, ["features.0"], batches)   statistics of layer inputs and outputs; None: decompose the weights alone

W is [N outputs, C inputs, kernel rows, kernel columns], or [N, C] of a linear layer.

    linear      out x in as out x rank times rank x in
    channel     k x k from C to rank, 1 x 1 to N
    input       1 x 1 from C to rank, k x k to N
    separable   k x 1 from C to rank, 1 x k to N

All four approximate one matrix M, an unfolding of W, by U U^T M, where U has `rank` orthonormal columns. Without images these
are the first left singular vectors of M, which gives the best approximation of that rank. With images they minimise the change
of the layer's *output*:

- `linear` and `channel`: the first principal components of the output, as in Zhang, Zou, He, Sun: "Accelerating Very Deep
  Convolutional Networks for Classification and Detection", TPAMI 2016, arXiv 1505.06798 (section 2.1). The output is centred,
  and its mean is absorbed by the bias: b' = b + (I - U U^T) (mean - b).
- `input`: the left singular vectors of M S, where S is the square root of the covariance of the input channels. Interpretation:
  the positions of a patch are assumed to be uncorrelated, and for the mean in the bias, padding is ignored.
- `separable` uses the weights alone, also with images.

Decompositions of single papers are in the file of the paper (papers/tucker.py, papers/cp.py).

Each of the `rank` pairs of a column of U and a row of U^T M is scaled to equal norms: without images this gives U S^1/2 and
S^1/2 V^T. All computation is in float64.
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

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.network.inputs import call
from compressor.network.meta_device import evaluating, separate_attention

ROWS = 8191  # maximum positions per layer and batch; prime, so that evenly spaced ones do not fall into a few columns
TIE = 1e-9  # of the variance: orders directions without activations by the weights, with fewer samples than channels
TINY = torch.finfo(torch.float64).tiny

Layer = nn.Linear | nn.Conv2d


# Activation statistics ------------------------------------------------------------------------------------------------


@dataclass
class Moments:
    """Running mean and covariance of rows, accumulated over batches in float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # [n]
    scatter: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # [n, n] sum of outer products

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
        """[n, n] covariance over all rows."""
        return self.scatter / self.count


@dataclass
class Seen:
    """Statistics of the input and output channels of a layer, over images and spatial positions."""

    outputs: Moments
    inputs: Moments | None  # only for convolutions larger than 1 x 1


def watch(model: nn.Module, layers: Iterable[str], batches: Iterable[Batch]) -> dict[str, Seen]:
    """Activation statistics of each of `layers` while `model` runs on `batches`, in eval mode and without gradients.

    At most `ROWS` evenly spaced positions per layer and batch are used. Layers that are not called are absent. The training
    mode of the model is restored. Use enough images: directions of the output without variance on them are ordered by the
    weights alone.
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
            call(model, batch.inputs)
    return seen


def _look(seen: dict[str, Seen], name: str, layer: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
    """Add one call of `layer` to its statistics."""
    assert isinstance(layer, Layer)
    known = seen.setdefault(name, Seen(Moments(), Moments() if places_of(layer) > 1 else None))
    known.outputs.add(_rows(layer, out))
    if known.inputs is not None:
        known.inputs.add(_rows(layer, next(iter((*args, *kwargs.values())))))


def _rows(layer: Layer, tensor: Tensor) -> Tensor:
    """The input or output of `layer` at some positions [rows, channels]."""
    table = (tensor if isinstance(layer, nn.Linear) else tensor.movedim(1, -1)).flatten(0, -2)
    return table if len(table) <= ROWS else table[torch.arange(ROWS, device=table.device) * len(table) // ROWS]


def places_of(layer: Layer) -> int:
    """Number of positions of the kernel."""
    return prod(layer.weight.shape[2:])


# Base class of decompositions -----------------------------------------------------------------------------------------


class Split(ABC):
    """Abstract. One decomposition of a layer; one instance is used for all layers."""

    name: ClassVar[str]
    kind: ClassVar[type[nn.Module]] = nn.Conv2d  # type of layer that it applies to
    whitens: ClassVar[bool] = True  # whether it uses activation statistics

    def why_not(self, layer: Layer) -> str:
        """The reason why `layer` cannot be decomposed in this way; "" if it can."""
        if not isinstance(layer, self.kind):
            return f"not a {self.kind.__name__}"
        if type(layer) is not self.kind:
            return f"its class {type(layer).__name__} is a subclass of {self.kind.__name__}"
        return _odd(layer) if isinstance(layer, nn.Conv2d) else ""

    @abstractmethod
    def shape(self, layer: Layer) -> tuple[int, int]:
        """Shape of the matrix that is truncated."""

    def most(self, layer: Layer) -> int:
        """The highest useful rank."""
        return min(self.shape(layer))

    def chain(self, layer: Layer, rank: int, bias: bool | None = None) -> nn.Sequential:
        """The layers of the chain, on the `meta` device. `bias` is for the last layer; None: as in `layer`.

        Raises UsageError if the rank is out of range.
        """
        if not 1 <= rank <= self.most(layer):
            sizes = " x ".join(map(str, layer.weight.shape))
            raise UsageError(f"Rank {rank} is out of range for weights of {sizes} ({self.name}): use 1 to {self.most(layer)}.")
        parts = self._parts(layer, rank, layer.bias is not None if bias is None else bias)
        return nn.Sequential(*parts).train(layer.training)

    @abstractmethod
    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        """Singular values [most], float64, descending: the squared error at rank r is the sum of squares after the first r.

        They are those of the weights or, with `seen`, of the output, where squares are variances.
        """

    def errors(self, layer: Layer, ranks: Sequence[int], seen: Seen | None = None) -> npt.NDArray[np.float64]:
        """Relative squared error at each of `ranks`, 0..1: of the weights or, with `seen`, of the output."""
        energies = self.singular(layer, seen).square().cpu().numpy()
        left = np.append(energies[::-1].cumsum()[::-1], 0.0)  # [most + 1] energy after each rank
        errors: npt.NDArray[np.float64] = left[list(ranks)] / max(left[0], TINY)
        return errors

    def factor(self, layer: Layer, rank: int, seen: Seen | None = None) -> nn.Sequential:
        """The chain with its weights, with the dtype, device and training mode of the layer.

        The last part has a bias if `layer` has one, or if activation statistics are used. Raises UsageError like `chain`.
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
        """The product of the factors, float64: [N, C, rows, columns], or [N, C] for linear layers."""
        weights = [weight_of(part) for part in chain if isinstance(part, Layer)]
        whole = reduce(_behind, [weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1))) for weight in weights])
        return whole.flatten(1) if weights[0].dim() == 2 else whole

    @abstractmethod
    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        """The layers of the chain, on the `meta` device."""

    @abstractmethod
    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        """Weights of each part, in any shape with the same element order, and the bias correction [N] for the mean output."""


def _odd(layer: nn.Conv2d) -> str:
    """The property of a convolution that prevents a decomposition; "" if there is none."""
    if layer.groups > 1:
        return "a grouped convolution"
    if layer.padding_mode != "zeros":
        return f"{layer.padding_mode} padding"
    return f"padding {layer.padding!r} instead of numbers" if isinstance(layer.padding, str) else ""


def _behind(first: Tensor, then: Tensor) -> Tensor:
    """The kernel of two consecutive convolutions, of which at most one has several rows and at most one several columns.

    `first` is [r, C, rows, columns], `then` [N, r, rows, columns] or, depthwise, [r, 1, rows, columns].
    """
    depthwise = then.shape[1] == 1 < len(first)
    both = torch.einsum("rab,rcde->rcadbe", then[:, 0], first) if depthwise else torch.einsum("nrab,rcde->ncadbe", then, first)
    return both.flatten(4, 5).flatten(2, 3)


def weight_of(layer: Layer) -> Tensor:
    return layer.weight.detach().double()


def conv_like(
    layer: Layer, inputs: int, outputs: int, axes: Sequence[int] = (), depthwise: bool = False, bias: bool = False
) -> nn.Conv2d:
    """A convolution on `meta` with the kernel of `layer` along `axes` (0: rows, 1: columns), and 1 x 1 along the others."""
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


def balanced(last: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Rescale `last` [m, rank] and `first` [rank, n] to equal norms of columns and rows, without changing the product."""
    scale = (first.norm(dim=1) / last.norm(dim=0)).sqrt()
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
    return last * scale, first / scale[:, None]


# Truncation of one matrix ---------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """The cached spectrum of a layer, with the weight and statistics it was computed from."""

    weight: Tensor
    seen: Seen | None
    spectrum: tuple[Tensor, Tensor]

    def still_holds(self, layer: Layer, seen: Seen | None) -> bool:
        known, now = self.weight, layer.weight
        alike = (known.dtype, known.device) == (now.dtype, now.device)
        return self.seen is seen and alike and torch.equal(known, now)


class Truncation(Split):
    """Abstract. Truncates one matrix of shape [N * kernel of the last part, C * kernel of the first part]."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Layer, Known] = WeakKeyDictionary()

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The unfolding of the weights that is truncated."""

    def spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        """Orthonormal columns [rows, k], the most important first, and their singular values [k], k >= most.

        Cached for the lifetime of the layer, because errors, singular values and factors of several ranks are computed from it.
        """
        seen = seen if self.whitens else None
        known = self._known.get(layer)
        if known is None or not known.still_holds(layer, seen):
            known = Known(layer.weight.detach().clone(), seen, self._spectrum(layer, seen))
            self._known[layer] = known
        return known.spectrum

    def _spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        matrix = self.matrix(weight_of(layer))
        if len(matrix) > matrix.shape[1]:
            left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
            return left, values
        # Much faster for a wide matrix. Singular values are norms, because roots of eigenvalues lose half of the precision.
        _, left = torch.linalg.eigh(matrix @ matrix.mT)
        values, order = (left.mT @ matrix).norm(dim=1).sort(descending=True)
        return left[:, order], values

    def mean(self, layer: Layer, seen: Seen | None) -> Tensor:
        """Mean of the matrix times the input [rows]; 0 without activation statistics."""
        return weight_of(layer).new_zeros(self.shape(layer)[0])

    def lost(self, layer: Layer, basis: Tensor, seen: Seen | None) -> Tensor:
        """The change of the mean output [N] when the matrix is projected onto `basis`."""
        mean = self.mean(layer, seen)
        return (mean - basis @ (basis.mT @ mean)).reshape(len(layer.weight), -1).sum(1)

    def shape(self, layer: Layer) -> tuple[int, int]:
        rows, columns = self.matrix(layer.weight.detach().to("meta")).shape
        return rows, columns

    def singular(self, layer: Layer, seen: Seen | None = None) -> Tensor:
        return self.spectrum(layer, seen)[1][: self.most(layer)]

    def _factors(self, layer: Layer, rank: int, seen: Seen | None) -> tuple[list[Tensor], Tensor]:
        basis = self.spectrum(layer, seen)[0][:, :rank]
        last, first = balanced(basis, basis.mT @ self.matrix(weight_of(layer)))
        return [first, last.reshape(len(layer.weight), -1, rank).mT], self.lost(layer, basis, seen)


class ByOutputs(Truncation):
    """Abstract. The matrix has one row per output channel, so `basis` is the principal components of the output."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)  # [N, C * kernel]

    def _spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        if seen is None:
            return super()._spectrum(layer, seen)
        matrix = self.matrix(weight_of(layer))
        covariance = seen.outputs.covariance.to(matrix)
        unseen = matrix @ matrix.mT  # covariance of the output for white inputs
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
        return [conv_like(layer, inputs, rank, (0, 1)), conv_like(layer, rank, outputs, bias=bias)]


class Input(Truncation):
    """1 x 1 from C to rank, k x k to N: params rank (C + k^2 N)."""

    name = "input"

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or small(layer)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(0, 2, 3, 1).flatten(0, 2)  # [N * kernel, C]

    def _spectrum(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        if seen is None:
            return super()._spectrum(layer, seen)
        assert seen.inputs is not None
        matrix = self.matrix(weight_of(layer))
        values, vectors = torch.linalg.eigh(seen.inputs.covariance.to(matrix))
        values = values.clamp(min=0) + TIE * values.mean().clamp(min=0)
        left, values, _ = torch.linalg.svd(matrix @ vectors * values.sqrt(), full_matrices=False)
        return left, values

    def mean(self, layer: Layer, seen: Seen | None) -> Tensor:
        if seen is None:
            return super().mean(layer, seen)
        assert seen.inputs is not None
        matrix = self.matrix(weight_of(layer))
        return matrix @ seen.inputs.mean.to(matrix)

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        return [conv_like(layer, inputs, rank), conv_like(layer, rank, outputs, (0, 1), bias=bias)]


class Separable(Truncation):
    """k x 1 from C to rank, 1 x k to N: params k rank (C + N). Uses the weights alone.

    Tai, Xiao, Zhang, Wang, E: "Convolutional Neural Networks with Low-Rank Regularization", ICLR 2016, arXiv 1511.06067: the
    best approximation of this form is a truncated singular value decomposition.
    """

    name = "separable"
    whitens = False

    def why_not(self, layer: Layer) -> str:
        return super().why_not(layer) or small(layer) or narrow(layer)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(0, 3, 1, 2).flatten(2, 3).flatten(0, 1)  # [N * columns, C * rows]

    def _parts(self, layer: Layer, rank: int, bias: bool) -> list[nn.Module]:
        outputs, inputs = layer.weight.shape[:2]
        return [conv_like(layer, inputs, rank, (0,)), conv_like(layer, rank, outputs, (1,), bias=bias)]


def small(layer: Layer) -> str:
    return "a 1 x 1 convolution" if places_of(layer) == 1 else ""


def narrow(layer: Layer) -> str:
    rows, columns = layer.weight.shape[2:]
    return f"its {rows} x {columns} kernel is already separable" if min(rows, columns) == 1 else ""


CHANNEL, INPUT = Channel(), Input()
SPLITS: dict[str, Split] = {split.name: split for split in (Linear(), CHANNEL, INPUT, Separable())}
