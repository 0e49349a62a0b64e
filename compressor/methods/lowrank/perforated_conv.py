"""Convolutions that are computed at some places of their output alone; every other place copies the nearest computed one.

Figurnov, Ibraimova, Vetrov, Kohli, "PerforatedCNNs: Acceleration through Elimination of Redundant Convolutions", NIPS 2016,
arXiv 1504.08362. The places are the same for all channels and all images, so that whole rows of a matrix product fall away.
It goes with low rank: where a convolution has become a chain of two, the second is computed at the kept places alone, and the
first at those that the second reads.

The kinds of what is kept differ in how they run. A grid is a stride and a nearest-neighbour resize, rows are a gather of whole
rows before a convolution, and scattered places are a gather of patches before a matrix product.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from compressor.data import Batch
from compressor.network.meta_device import evaluating
from compressor.network.replacements import Fill, Pair, Patches, Take
from compressor.tasks.classify import Classify

# --- what is kept ----------------------------------------------------------------------------------------------------


class Kept(ABC):
    """Abstract. Which places of an output plane are computed."""

    @abstractmethod
    def mask(self, size: Pair) -> Tensor:
        """True where a place of a plane of `size` (height, width) is computed: bool [height, width]."""

    def share(self, size: Pair) -> float:
        """The share of the places that are computed, 0..1."""
        return float(self.mask(size).double().mean())


@dataclass(frozen=True)
class Grid(Kept):
    """Every so many rows and columns, from the first on: `Grid(2, 1)` keeps half of all rows, `Grid(2, 2)` a quarter."""

    rows: int
    columns: int

    def mask(self, size: Pair) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[:: self.rows, :: self.columns] = True
        return mask


@dataclass(frozen=True)
class Rows(Kept):
    """Whole rows, by their numbers."""

    rows: tuple[int, ...]

    def mask(self, size: Pair) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[list(self.rows)] = True
        return mask


@dataclass(frozen=True)
class Places(Kept):
    """Single places, by their numbers line by line."""

    places: tuple[int, ...]

    def mask(self, size: Pair) -> Tensor:
        mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
        mask[list(self.places)] = True
        return mask.reshape(size)


def nearest(mask: Tensor) -> Tensor:
    """For each place of `mask` [height, width] the nearest kept one, as its number among the kept: int64 [height * width].

    Places are numbered line by line; a kept one is its own nearest. Of several at the same distance scipy takes the same each
    time: in one row or column the first. Raises ValueError when nothing is kept.
    """
    if not mask.any():
        raise ValueError(f"of {mask.numel()} places none is kept: keep at least one")
    row, column = torch.from_numpy(distance_transform_edt(~mask.numpy(), return_distances=False, return_indices=True)).long()
    number = mask.flatten().cumsum(0).reshape(mask.shape) - 1  # of a kept place, among the kept
    return number[row, column].flatten()


def copied(mask: Tensor) -> Tensor:
    """The same as numbers of places of the whole plane."""
    return mask.flatten().nonzero()[:, 0][nearest(mask)]


# --- what is computed ------------------------------------------------------------------------------------------------


def plane(chain: Iterable[nn.Module], size: Pair) -> Pair:
    """Height and width of what a chain of convolutions gives for a plane of `size`."""
    for part in chain:
        conv = cast(nn.Conv2d, part)
        size = (_length(conv, 0, size[0]), _length(conv, 1, size[1]))
    return size


def perforate(chain: nn.Sequential, size: Pair, kept: Kept) -> nn.Sequential:
    """`chain` computed at the kept places of its output, and filled up to the whole plane: the same shapes, copied weights.

    `chain` is one convolution or several in a row, of which at most one reads across rows and at most one across columns:
    k x k; k x k then 1 x 1, or the other way round; k x 1 then 1 x k. `size` is (height, width) of its input. Scattered places
    of k x 1 then 1 x k need nearly all that the first gives, and so it stays as it is. Raises ValueError when the chain is of
    another kind, a convolution has groups or pads with anything but zeros, or nothing is kept.
    """
    convs = [conv for conv in chain if isinstance(conv, nn.Conv2d)]
    if len(convs) < len(chain) or any(conv.groups > 1 or conv.padding_mode != "zeros" for conv in convs):
        raise ValueError("only convolutions without groups that pad with zeros can be perforated")
    mask = kept.mask(plane(convs, size))
    if isinstance(kept, Grid):
        perforated = _on_grid(convs, kept, mask)
    else:
        perforated = _on_rows(convs, mask) if isinstance(kept, Rows) else _at_places(convs, size, mask)
    return perforated.to(convs[0].weight.device)


def _on_grid(convs: Sequence[nn.Conv2d], grid: Grid, mask: Tensor) -> nn.Sequential:
    down, across = _reader(convs, 0), _reader(convs, 1)
    steps = [(grid.rows if i == down else 1, grid.columns if i == across else 1) for i in range(len(convs))]
    strided = (
        _changed(conv, stride=(conv.stride[0] * rows, conv.stride[1] * columns))
        for conv, (rows, columns) in zip(convs, steps, strict=True)
    )
    return nn.Sequential(*strided, *_filled_grid(grid, mask))


def _filled_grid(grid: Grid, mask: Tensor) -> Iterator[nn.Module]:
    height, width = mask.shape
    if max(grid.rows, grid.columns) <= 2:  # with longer steps, it does not always copy the nearest
        yield nn.Upsample(size=(height, width), mode="nearest")
        return
    for dim, line, step in ((2, mask[:, :1], grid.rows), (3, mask[:1], grid.columns)):
        if step > 1:
            yield Take(dim, nearest(line).tolist())


def _on_rows(convs: Sequence[nn.Conv2d], mask: Tensor) -> nn.Sequential:
    down = _reader(convs, 0)
    before, conv, after = convs[:down], convs[down], convs[down + 1 :]
    padding, columns = _padding(conv)
    first = mask[:, 0].nonzero() * conv.stride[0]  # [rows, 1] of the padded plane: the first that each kept row reads
    read = first + torch.arange(conv.kernel_size[0]) * conv.dilation[0]  # [rows, kernel]
    pad = [nn.ZeroPad2d((0, 0, padding, padding))] if padding else []
    taken = _changed(conv, stride=(conv.kernel_size[0], conv.stride[1]), padding=(0, columns), dilation=(1, conv.dilation[1]))
    take, fill = Take(2, read.flatten().tolist()), Take(2, nearest(mask[:, :1]).tolist())
    return nn.Sequential(*map(_changed, before), *pad, take, taken, *map(_changed, after), fill)


def _at_places(convs: Sequence[nn.Conv2d], size: Pair, mask: Tensor) -> nn.Sequential:
    last = max(_reader(convs, 0), _reader(convs, 1))
    before, conv, after = convs[:last], convs[last], convs[last + 1 :]
    height, width = mask.shape
    shape = (conv.kernel_size, conv.stride, _padding(conv), conv.dilation)
    patches = Patches(plane(before, size), *cast(tuple[Pair, Pair, Pair, Pair], shape), mask.flatten().nonzero()[:, 0].tolist())
    products = map(_linear, (conv, *after))
    return nn.Sequential(*map(_changed, before), patches, *products, Fill((height, width), nearest(mask).tolist()))


def _reader(convs: Sequence[nn.Conv2d], dim: int) -> int:
    """The number of the one convolution that reads across rows (`dim` 0) or columns (1) or skips some; 0 where none does."""
    found = [i for i, c in enumerate(convs) if (c.kernel_size[dim], c.stride[dim], _padding(c)[dim]) != (1, 1, 0)]
    if len(found) > 1:
        raise ValueError(f"{len(found)} convolutions of the chain read across {('rows', 'columns')[dim]}: at most one may")
    return found[0] if found else 0


def _padding(conv: nn.Conv2d) -> Pair:
    if isinstance(conv.padding, str):
        raise ValueError(f"padding={conv.padding!r} of a convolution is not a number: write how many rows and columns")
    return cast(Pair, conv.padding)


def _length(conv: nn.Conv2d, dim: int, length: int) -> int:
    reach = conv.dilation[dim] * (conv.kernel_size[dim] - 1) + 1
    return (length + 2 * _padding(conv)[dim] - reach) // conv.stride[dim] + 1


def _changed(conv: nn.Conv2d, **geometry: Pair) -> nn.Conv2d:
    """A copy of it with another stride, padding or dilation."""
    changed = copy.deepcopy(conv)
    for name, pair in geometry.items():
        setattr(changed, name, pair)
    return changed


def _linear(conv: nn.Conv2d) -> nn.Linear:
    """The convolution as a matrix product of patches that are laid out as (row, column, channel)."""
    weight = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)  # [out, kernel * kernel * in]
    options = {"bias": conv.bias is not None, "device": weight.device, "dtype": weight.dtype}
    linear = nn.utils.skip_init(nn.Linear, *weight.T.shape, **options)  # type: ignore[no-untyped-call]  # torch leaves it so
    linear.load_state_dict({**conv.state_dict(), "weight": weight})
    return cast(nn.Linear, linear)


# --- what is worth keeping -------------------------------------------------------------------------------------------


def impact(model: nn.Module, layers: Sequence[str], batches: Iterable[Batch], task: Classify) -> dict[str, Tensor]:
    """How much the loss would change without a place of a layer's output, to first order: layer -> [height, width].

        B(y, x) = mean over images of sum over channels n of |dL/du(n, y, x) u(n, y, x)|

    u is what the named module gives for an image, and L the loss of that image (Figurnov et al.). The network answers as in
    evaluation: neither its weights nor their gradients, its statistics or its dropout take notice. A layer that is called
    several times for an image has the sum of all calls.
    """
    totals: dict[str, Tensor] = {}
    images = 0
    with evaluating(model):
        for batch in batches:
            with torch.enable_grad(), _outputs(model, layers) as outputs:
                loss = torch.stack(list(task.loss(model(batch.images), batch).values())).sum()
            gradients = torch.autograd.grad(loss, [u for _, u in outputs], materialize_grads=True)
            images += len(batch.images)
            for (name, u), gradient in zip(outputs, gradients, strict=True):
                # The loss is the mean over the batch: that of one image has a gradient as many times larger.
                change = (gradient * u.detach()).abs().sum((0, 1)).double() * len(batch.images)
                totals[name] = totals[name] + change if name in totals else change
    return {name: total / images for name, total in totals.items()}


@contextmanager
def _outputs(model: nn.Module, layers: Iterable[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """What the named modules give while the network runs, fit to be derived by, in the order of the calls."""
    outputs: list[tuple[str, Tensor]] = []

    def note(name: str, module: nn.Module, args: object, output: Tensor) -> Tensor:
        outputs.append((name, output if output.requires_grad else output.requires_grad_()))
        return output.clone()  # what comes next may work in place

    handles = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def strongest(impact: Tensor, kind: Literal["places", "rows"], share: float) -> Kept:
    """The given share of the places, or of the rows, that have the largest `impact` [height, width]: at least one.

    The share is rounded down; of equal ones the first are kept.
    """
    worth = impact.sum(1) if kind == "rows" else impact.flatten()
    count = max(1, math.floor(share * len(worth) + 1e-9))  # 0.29 * 100 is a little less than 29
    chosen = tuple(sorted(worth.sort(descending=True, stable=True).indices[:count].tolist()))
    return Rows(chosen) if kind == "rows" else Places(chosen)
