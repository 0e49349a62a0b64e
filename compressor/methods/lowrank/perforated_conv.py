"""Perforated convolutions: computed at a subset of spatial output positions; the others copy the nearest computed position.

Figurnov, Ibraimova, Vetrov, Kohli, "PerforatedCNNs: Acceleration through Elimination of Redundant Convolutions", NIPS 2016,
arXiv 1504.08362. The perforation mask is the same for all channels and all images, so that whole rows of the matrix product
are skipped. It can be combined with low rank: in a chain of two convolutions, the second is computed at the kept positions
only, and the first at the positions that the second needs.

The kinds of masks differ in their implementation. A grid is a stride and a nearest-neighbour resize, rows are a gather of whole
rows before a convolution, and scattered positions are a gather of patches before a matrix product.
"""

from __future__ import annotations

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
from compressor.network.copying import clone_network
from compressor.network.replacements import Fill, Pair, Patches, Take
from compressor.tasks import Task

# --- masks -----------------------------------------------------------------------------------------------------------


class Kept(ABC):
    """Abstract. A perforation mask: the positions of an output plane that are computed."""

    @abstractmethod
    def mask(self, size: Pair) -> Tensor:
        """True at the computed positions of a plane of `size` (height, width): bool [height, width]."""

    def share(self, size: Pair) -> float:
        """The fraction of the positions that are computed, 0..1."""
        return float(self.mask(size).double().mean())


@dataclass(frozen=True)
class Grid(Kept):
    """A regular grid of every `rows`-th row and `columns`-th column: `Grid(2, 1)` keeps a half, `Grid(2, 2)` a quarter."""

    rows: int
    columns: int

    def mask(self, size: Pair) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[:: self.rows, :: self.columns] = True
        return mask


@dataclass(frozen=True)
class Rows(Kept):
    """Whole rows, by index."""

    rows: tuple[int, ...]

    def mask(self, size: Pair) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[list(self.rows)] = True
        return mask


@dataclass(frozen=True)
class Places(Kept):
    """Single positions, by index in row-major order."""

    places: tuple[int, ...]

    def mask(self, size: Pair) -> Tensor:
        mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
        mask[list(self.places)] = True
        return mask.reshape(size)


def nearest(mask: Tensor) -> Tensor:
    """For each position of `mask` [height, width] the nearest kept one, as index among the kept: int64 [height * width].

    Positions are in row-major order; the nearest to a kept position is itself. Ties are resolved by scipy, deterministically:
    along one row or column, the first is used. Raises ValueError if nothing is kept.
    """
    if not mask.any():
        raise ValueError(f"the mask keeps none of {mask.numel()} positions: keep at least one")
    row, column = torch.from_numpy(distance_transform_edt(~mask.numpy(), return_distances=False, return_indices=True)).long()
    number = mask.flatten().cumsum(0).reshape(mask.shape) - 1  # index among the kept positions
    return number[row, column].flatten()


def copied(mask: Tensor) -> Tensor:
    """The same as indices into the whole plane."""
    return mask.flatten().nonzero()[:, 0][nearest(mask)]


# --- perforated layers -----------------------------------------------------------------------------------------------


def plane(chain: Iterable[nn.Module], size: Pair) -> Pair:
    """Height and width of the output of a chain of convolutions for an input plane of `size`."""
    for part in chain:
        conv = cast(nn.Conv2d, part)
        size = (_length(conv, 0, size[0]), _length(conv, 1, size[1]))
    return size


def perforate(chain: nn.Sequential, size: Pair, kept: Kept) -> nn.Sequential:
    """`chain` computed at the kept positions of its output, and filled up to the whole plane: same shapes, copied weights.

    `chain` is one convolution or several in sequence, of which at most one has several kernel rows and at most one several
    kernel columns: k x k; k x k then 1 x 1, or in reverse order; k x 1 then 1 x k. `size` is (height, width) of its input. With
    scattered positions of k x 1 then 1 x k, the first is not perforated, because nearly all of its output is needed. Raises
    ValueError for any other chain, for grouped convolutions, for padding other than zeros, or if nothing is kept.
    """
    convs = [conv for conv in chain if isinstance(conv, nn.Conv2d)]
    if len(convs) < len(chain) or any(conv.groups > 1 or conv.padding_mode != "zeros" for conv in convs):
        raise ValueError("only ungrouped convolutions with zero padding can be perforated")
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
    if max(grid.rows, grid.columns) <= 2:  # with larger steps, it does not always copy the nearest position
        yield nn.Upsample(size=(height, width), mode="nearest")
        return
    for dim, line, step in ((2, mask[:, :1], grid.rows), (3, mask[:1], grid.columns)):
        if step > 1:
            yield Take(dim, nearest(line).tolist())


def _on_rows(convs: Sequence[nn.Conv2d], mask: Tensor) -> nn.Sequential:
    down = _reader(convs, 0)
    before, conv, after = convs[:down], convs[down], convs[down + 1 :]
    padding, columns = _padding(conv)
    first = mask[:, 0].nonzero() * conv.stride[0]  # [rows, 1] of the padded plane: first input row of each kept row
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
    """The index of the convolution with a kernel, stride or padding along rows (`dim` 0) or columns (1); 0 if there is none."""
    found = [i for i, c in enumerate(convs) if (c.kernel_size[dim], c.stride[dim], _padding(c)[dim]) != (1, 1, 0)]
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} convolutions have a kernel, stride or padding along {('rows', 'columns')[dim]}: at most one can"
        )
    return found[0] if found else 0


def _padding(conv: nn.Conv2d) -> Pair:
    if isinstance(conv.padding, str):
        raise ValueError(f"padding={conv.padding!r} of a convolution is not a number: give the number of rows and columns")
    return cast(Pair, conv.padding)


def _length(conv: nn.Conv2d, dim: int, length: int) -> int:
    reach = conv.dilation[dim] * (conv.kernel_size[dim] - 1) + 1
    return (length + 2 * _padding(conv)[dim] - reach) // conv.stride[dim] + 1


def _changed(conv: nn.Conv2d, **geometry: Pair) -> nn.Conv2d:
    """A copy of `conv` with another stride, padding or dilation."""
    changed = clone_network(conv)
    for name, pair in geometry.items():
        setattr(changed, name, pair)
    return changed


def _linear(conv: nn.Conv2d) -> nn.Linear:
    """The convolution as a linear layer on patches in (row, column, channel) layout."""
    weight = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)  # [out, kernel * kernel * in]
    options = {"bias": conv.bias is not None, "device": weight.device, "dtype": weight.dtype}
    linear = nn.utils.skip_init(nn.Linear, *weight.T.shape, **options)  # type: ignore[no-untyped-call]  # untyped in torch
    linear.load_state_dict({**conv.state_dict(), "weight": weight})
    return cast(nn.Linear, linear)


# --- impact of positions ---------------------------------------------------------------------------------------------


def impact(model: nn.Module, layers: Sequence[str], batches: Iterable[Batch], task: Task) -> dict[str, Tensor]:
    """The impact of each position of a layer's output: the first-order change of the loss without it: layer -> [height, width].

        B(y, x) = mean over images of sum over channels n of |dL/du(n, y, x) u(n, y, x)|

    u is the output of the named module for an image, and L the loss of that image (Figurnov et al.). The network runs in eval
    mode, and its weights, their gradients and the batch norm statistics are not changed. If a layer is called several times for
    an image, its impact is the sum over the calls.
    """
    totals: dict[str, Tensor] = {}
    images = 0
    with task.learning(model):
        for batch in batches:
            with torch.enable_grad(), _outputs(model, layers) as outputs:
                loss = torch.stack(list(task.loss(task.call(model, batch.inputs), batch).values())).sum()
            gradients = torch.autograd.grad(loss, [u for _, u in outputs], materialize_grads=True)
            images += batch.size
            for (name, u), gradient in zip(outputs, gradients, strict=True):
                # The loss is a mean over the batch: the gradient of the loss of one image is larger by the batch size.
                change = (gradient * u.detach()).abs().sum((0, 1)).double() * batch.size
                totals[name] = totals[name] + change if name in totals else change
    return {name: total / images for name, total in totals.items()}


@contextmanager
def _outputs(model: nn.Module, layers: Iterable[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """The outputs of the named modules in the order of the calls, with gradients enabled."""
    outputs: list[tuple[str, Tensor]] = []

    def note(name: str, module: nn.Module, args: object, output: Tensor) -> Tensor:
        outputs.append((name, output if output.requires_grad else output.requires_grad_()))
        return output.clone()  # later operators can work in place

    handles = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def strongest(impact: Tensor, kind: Literal["places", "rows"], share: float) -> Kept:
    """The fraction `share` of the positions, or of the rows, with the largest `impact` [height, width]: at least one.

    The number is rounded down; among equal ones the first are kept.
    """
    worth = impact.sum(1) if kind == "rows" else impact.flatten()
    count = max(1, math.floor(share * len(worth) + 1e-9))  # 0.29 * 100 is slightly less than 29 in floating point
    chosen = tuple(sorted(worth.sort(descending=True, stable=True).indices[:count].tolist()))
    return Rows(chosen) if kind == "rows" else Places(chosen)
