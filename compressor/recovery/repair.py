"""Repair before training: re-estimate the consumers of pruned channels by least squares, without labels.

    refit(original, small, cut, batches, inputs)    from a few hundred images, in closed form

It changes the weights of `small` in place, not their shapes.

`refit` runs the pruned network once, layer by layer in the order of the forward pass. From the first layer on whose input
differs from before pruning, it re-estimates the weights of each layer such that, for the inputs that the pruned network gives
it *now*, its outputs are nearest to the original's; the forward pass continues with these weights. Least squares for the
outputs of a layer are those of He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, arXiv
1707.06168 (sections 3.1 and 3.2), here with a ridge towards the weights after pruning (least_squares.py).

Where the output, directly or after a batch norm, is added to another tensor, as at the end of a residual block, the target is
such that the sum equals the original's: the layer also corrects the error of the pruned network's shortcut. The intercept is
stored in the layer's bias or, where there is none, in the running mean of the batch norm that follows. Of a few ridges, each
layer uses the one with the smallest error on the last quarter of the images when fitted to the others; then all are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.channels import Cut
from compressor.data import Batch
from compressor.network.inputs import AnyInputs, Inputs
from compressor.recovery.forward_passes import (
    Layer,
    Pass,
    Source,
    groups_of,
    kept_places,
    norm_of,
    plain_layers,
    source_of,
    table_of,
    that_lost_inputs,
)
from compressor.recovery.least_squares import Squares, patches_of

RIDGES = (1.0, 0.1, 0.01, 1e-3)
CHECKED = 4  # one of so many positions, those of the last images, is used to select the ridge
ROWS = 1 << 15  # maximum number of positions that a layer is fitted to
CHUNK = 1 << 24  # maximum number of values in the patches in memory
MULTIPLE = 32  # pixels
SILENT = 1e-3  # below this scale of a batch norm, its input hardly matters


@dataclass(frozen=True)
class Repaired:
    """layers: the re-estimated layers, in the order of the forward pass. left: consumers of pruned channels that were not
    re-estimated -> reason."""

    layers: list[str]
    left: dict[str, str]


def refit(
    original: nn.Module,
    small: nn.Module,
    cut: Cut,
    batches: Iterable[Batch],
    inputs: AnyInputs,
    last: Mapping[str, str] | None = None,
    ridges: Sequence[float] = RIDGES,
    rows: int = ROWS,
) -> Repaired:
    """Re-estimate each layer of `small` whose inputs have changed, from the outputs of `original` on the images of `batches`.

    These are the consumers of pruned channels and the layers after them. Depthwise convolutions are not changed; labels are
    unused. `small` is `original` after `cut`, on the device of the images. If a chain of layers has replaced a layer, `last`
    maps the chain's last layer to that layer; it is re-estimated like the consumers of pruned channels.
    Batch norms that follow a re-estimated layer get the original's statistics, minus the intercept, so recalibrate afterwards
    if at all. Where every norm directly follows a layer, as in most residual networks, there is nothing left to recalibrate,
    and it costs accuracy.
    All images are one batch, so use a few hundred, and fewer if they are large: the activations of a layer for all of them must
    fit into memory. A layer is fitted to at most `rows` positions, sampled at random, the same in each call. Without images
    nothing changes.
    """
    inputs = Inputs.of(inputs)
    each = zip(*(inputs.tensors(batch.inputs) for batch in batches), strict=True)  # the batches of each input
    together = [torch.cat(of_one_size(images)) for images in each]
    last, before = last or {}, plain_layers(original)
    lost, layers = (
        [*that_lost_inputs(small, cut), *last],
        [name for name in plain_layers(small) if last.get(name, name) in before],
    )
    if not together:
        return Repaired([], dict.fromkeys(lost, "there were no images"))
    looking = _Looking(original, [last.get(name, name) for name in layers], cut, rows)
    looking.run(inputs, together)
    now = {last.get(name, name): name for name in layers}
    targets = {now[name]: target for name, target in looking.targets.items() if looking.once(name, target.norm)}
    fitting = _Fitting(small, original, targets, ridges)
    fitting.run(inputs, together)
    left = {name: fitting.left.get(name) or why_left(name, layers) for name in lost if name not in fitting.done}
    return Repaired(fitting.done, left)


def of_one_size(images: Sequence[Tensor]) -> list[Tensor]:
    """Batches of images [n, channels, height, width], cropped at the bottom and right to the size that all have.

    That is a multiple of `MULTIPLE` pixels, for networks that halve the resolution, if images are cropped at all.
    """
    sizes = {tensor.shape[2:] for tensor in images}
    if len(sizes) < 2:
        return list(images)
    common = (min(side) for side in zip(*sizes, strict=True))
    places = [slice(side // MULTIPLE * MULTIPLE or side) for side in common]
    return [tensor[(slice(None), slice(None), *places)] for tensor in images]


def why_left(name: str, layers: list[str]) -> str:
    """Why a layer was not re-estimated."""
    if name not in layers:
        return "it is not a convolution or linear layer of torch, or it shares its weights"
    return "it is not called exactly once"


@dataclass
class _Target:
    """The target outputs of a layer at the positions `rows`, and how its output is used."""

    rows: Tensor  # [rows] indices of positions
    read: float  # the sum of the layer's input in the original
    stays: Tensor  # [channels] kept output channels of the original
    output: Tensor  # [rows, channels] output of the original there
    norm: str | None = None  # the batch norm that follows
    added: Tensor | None = None  # [rows, channels] the tensor that the original adds to it

    def at(self, table: Tensor) -> Tensor:
        """[rows, channels] of a table of all positions, with all channels of the original or only the kept ones."""
        chosen = table[self.rows]
        return chosen if chosen.shape[1] == len(self.stays) else chosen[:, self.stays]


class _Looking(Pass):
    """The pass of the original: records the target outputs of each layer, in the order of the forward pass."""

    def __init__(self, original: nn.Module, layers: Iterable[str], cut: Cut, rows: int) -> None:
        super().__init__(original, layers)
        self.cut, self.rows = cut, rows
        self.targets: dict[str, _Target] = {}
        self.read: dict[str, float] = {}

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        self.read[name] = _total(x)

    def after(self, name: str, layer: Layer, out: Tensor) -> None:
        table = table_of(layer, out)
        rows, stays = _draw(len(table), self.rows), kept_places(self.cut, name, 0, table.shape[1])
        target = self.targets[name] = _Target(rows.to(out.device), self.read[name], stays.to(out.device), out)
        target.output = target.at(table)

    def normed(self, name: str, norm: str) -> None:
        self.targets[name].norm = norm

    def added(self, made: Source, one: Tensor, other: Tensor) -> None:
        partner, order = source_of(other), list(self.targets)
        is_last = partner is None or order.index(partner.layer) < order.index(made.layer)  # the later one corrects the sum
        target = self.targets[made.layer]
        if is_last and target.added is None:
            target.added = target.at(table_of(self.layers[made.layer], other))


def _total(x: Tensor) -> float:
    """A checksum that tells tensors apart."""
    return float(x.sum(dtype=torch.float64))


def _parts(rows: int) -> tuple[slice, slice]:
    """The rows to fit to, and the rows to select the ridge with."""
    first = rows - rows // CHECKED
    return slice(0, first), slice(first, rows)


def _draw(count: int, most: int) -> Tensor:
    """At most `most` of `count` positions, in order."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


class _Fitting(Pass):
    """The pass of the pruned network. A layer is fitted before it runs; if its output is added to another tensor, it is fitted
    at the addition, and its output is recomputed there."""

    def __init__(self, small: nn.Module, original: nn.Module, targets: dict[str, _Target], ridges: Sequence[float]) -> None:
        super().__init__(small, targets)
        self.original, self.targets, self.ridges = original, targets, ridges
        self.waiting: dict[str, tuple[Tensor, int]] = {}  # the input of a layer, and the version of that tensor
        self.done: list[str] = []
        self.left: dict[str, str] = {}  # layers that have been passed over, and why

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        target = self.targets[name]
        is_depthwise = layer.weight.shape[1] == 1 < groups_of(layer)
        is_as_before = target.read == _total(x)
        if name in self.done or is_depthwise or is_as_before:
            self.left[name] = "it is a depthwise convolution" if is_depthwise else "its input is the same as before"
            return
        if target.added is None:
            self._fit(name, x, target.output)
        else:
            self.waiting[name] = x, x._version

    def added(self, made: Source, one: Tensor, other: Tensor) -> None:
        x, version = self.waiting.pop(made.layer, (one, -1))
        if x._version != version:
            return
        layer, target = self.layers[made.layer], self.targets[made.layer]
        assert target.added is not None
        lacking = target.added - target.at(table_of(layer, other))
        if made.norm:
            scale = scale_of(norm_of(self.original, made.norm))[target.stays]
            lacking = torch.where(scale == 0, 0, lacking / scale)
        self._fit(made.layer, x, target.output + lacking)
        again = layer(x)
        one.copy_(self.model.get_submodule(made.norm)(again) if made.norm else again)

    def _fit(self, name: str, x: Tensor, output: Tensor) -> None:
        """Set the weights and bias of the layer such that, for the input `x`, its output is nearest to `output`."""
        layer = self.layers[name]
        means = self._restored(self.targets[name])
        intercept = layer.bias is not None or means is not None
        fitted, checked = (self._squares(name, x, output, part, intercept) for part in _parts(len(output)))
        ridge = min(self.ridges, key=lambda ridge: checked.error(fitted.solve(ridge)))
        weights = fitted.with_all_of(checked).solve(ridge).flatten(0, 1)  # [outputs, inputs]
        layer.weight.copy_(weights[:, : layer.weight[0].numel()].reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(weights[:, -1])
        elif means is not None:
            means.sub_(weights[:, -1])
        self.done.append(name)

    def _squares(self, name: str, x: Tensor, output: Tensor, part: slice, intercept: bool) -> Squares:
        layer, groups = self.layers[name], groups_of(self.layers[name])
        squares = Squares(layer.weight.reshape(groups, len(layer.weight) // groups, -1), intercept)
        step = max(1, CHUNK // (groups * layer.weight[0].numel()))
        patches = patches_of(layer, x, self.targets[name].rows[part], step)
        for read, wanted in zip(patches, torch.split(output[part], step), strict=True):
            squares.add(read, wanted)
        return squares

    def _restored(self, target: _Target) -> Tensor | None:
        """Reset the statistics of the batch norm that follows a layer to the original's, and return its running mean."""
        if target.norm is None:
            return None
        now, before = norm_of(self.model, target.norm), norm_of(self.original, target.norm)
        means, variances = now.running_mean, now.running_var
        assert before.running_mean is not None and before.running_var is not None
        assert means is not None and variances is not None
        variances.copy_(before.running_var[target.stays])
        return means.copy_(before.running_mean[target.stays])


def scale_of(norm: _BatchNorm) -> Tensor:
    """The factor of a batch norm for each channel [channels]; 0 where its scale is close to zero."""
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else torch.where(norm.weight.abs() < SILENT, 0, scale * norm.weight)
