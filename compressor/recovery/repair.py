"""Repair before training: what a cut took from the layers that read the cut channels is made up for, without a label.

    refit(original, small, cut, batches, inputs)    from a few hundred images, in closed form

It changes `small` in place, and nothing about its shape.

`refit` goes through the small network once, layer by layer in the order of the forward pass. From the first layer on that reads
something else than before the cut, it stops at each, finds the weights with which this layer, reading what the network before
it gives *now*, comes nearest to what the original gives there, and goes on with these. Least squares for the outputs of a layer
are those of He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, arXiv 1707.06168 (sections
3.1 and 3.2), here with a ridge that pulls towards the weights that the cut left (least_squares.py).

Where the output, or what a batch norm makes of it, is then added to another tensor, as at the end of a residual block, the
output that a layer is fitted to is such that the sum comes out right: what the small network's shortcut lacks by then is asked
of this layer. The intercept goes into the layer's bias or, where there is none, into the running mean of the batch norm that
reads its output. Of a few ridges, a layer takes the one that does best on the last quarter of the images when it is fitted to
the others; then all are used.
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
CHECKED = 4  # one in so many places, those of the last images, judges the ridges
ROWS = 1 << 15  # places at most at which a layer is looked at
CHUNK = 1 << 24  # numbers at most in the patches that are held at one time
SILENT = 1e-3  # a batch norm's scale below which what it reads hardly matters


@dataclass(frozen=True)
class Repaired:
    """layers: those that were changed, in the order of the forward pass. left: layers that lost inputs and were not -> why."""

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
    """Fit each layer of `small` that reads something else than before to what `original` gives on the images of `batches`.

    These are the layers that lost inputs, and those behind them. Depthwise convolutions stay as they are; labels are unused.
    `small` is `original` after `cut`, on the device of the images. Where a chain of layers took a layer's place, `last` says
    whose place: the chain's last layer -> that layer. It is fitted like those that lost inputs.
    Batch norms that read a fitted layer get the original's statistics back, less the intercept: whoever recalibrates does so
    afterwards. Where every norm reads a layer directly, as in most residual networks, there is nothing left to recalibrate,
    and it costs accuracy.
    All images go through at once, so a few hundred of them, and fewer where they are large: what one layer after the other
    gives for all of them must fit into memory. A layer is looked at in at most `rows` places, drawn at random, the same in each
    call. Without images nothing changes.
    """
    images = [batch.images for batch in batches]
    last, before = last or {}, plain_layers(original)
    lost, layers = (
        [*that_lost_inputs(small, cut), *last],
        [name for name in plain_layers(small) if last.get(name, name) in before],
    )
    if not images:
        return Repaired([], dict.fromkeys(lost, "there were no images"))
    together, inputs = [torch.cat(images)], Inputs.of(inputs)
    looking = _Looking(original, [last.get(name, name) for name in layers], cut, rows)
    looking.run(inputs, together)
    now = {last.get(name, name): name for name in layers}
    targets = {now[name]: target for name, target in looking.targets.items() if looking.once(name, target.norm)}
    fitting = _Fitting(small, original, targets, ridges)
    fitting.run(inputs, together)
    return Repaired(fitting.done, {name: why_left(name, layers) for name in lost if name not in fitting.done})


def why_left(name: str, layers: list[str]) -> str:
    """Why a layer was left alone."""
    if name not in layers:
        return "it is no convolution or linear layer of torch, or shares its weights"
    return "it is not called exactly once"


@dataclass
class _Target:
    """What a layer is to give at the places `rows` of its output, and where that goes."""

    rows: Tensor  # [rows] numbers of places
    read: float  # the sum of what the layer reads in the original
    stays: Tensor  # [channels] output channels of the original that stay
    output: Tensor  # [rows, channels] what the original gives there
    norm: str | None = None  # the batch norm that reads it
    added: Tensor | None = None  # [rows, channels] what the original adds to it

    def at(self, table: Tensor) -> Tensor:
        """[rows, channels] of a table of all places, whose channels are those of the original or just those that stay."""
        chosen = table[self.rows]
        return chosen if chosen.shape[1] == len(self.stays) else chosen[:, self.stays]


class _Looking(Pass):
    """The original's pass: what each layer is to give, in the order of the forward pass."""

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
        is_last = partner is None or order.index(partner.layer) < order.index(made.layer)  # of two, it makes the sum right
        target = self.targets[made.layer]
        if is_last and target.added is None:
            target.added = target.at(table_of(self.layers[made.layer], other))


def _total(x: Tensor) -> float:
    """Tells one tensor from another."""
    return float(x.sum(dtype=torch.float64))


def _parts(rows: int) -> tuple[slice, slice]:
    """Rows to fit with, and rows to choose the ridge with."""
    first = rows - rows // CHECKED
    return slice(0, first), slice(first, rows)


def _draw(count: int, most: int) -> Tensor:
    """At most `most` of `count` places, in order."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


class _Fitting(Pass):
    """The small network's pass. A layer is fitted before it gives anything; if something is added to what it gives, then at
    the addition, and what it gave is put right there."""

    def __init__(self, small: nn.Module, original: nn.Module, targets: dict[str, _Target], ridges: Sequence[float]) -> None:
        super().__init__(small, targets)
        self.original, self.targets, self.ridges = original, targets, ridges
        self.waiting: dict[str, tuple[Tensor, int]] = {}  # what a layer has read, and the version of that
        self.done: list[str] = []

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        target = self.targets[name]
        is_depthwise = layer.weight.shape[1] == 1 < groups_of(layer)
        is_as_before = target.read == _total(x)
        if name in self.done or is_depthwise or is_as_before:
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
        """Give the layer, which reads `x`, the weights and the bias with which it comes nearest to `output`."""
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
        """The running mean of the batch norm that reads a layer, after its statistics were made those of the original."""
        if target.norm is None:
            return None
        now, before = norm_of(self.model, target.norm), norm_of(self.original, target.norm)
        means, variances = now.running_mean, now.running_var
        assert before.running_mean is not None and before.running_var is not None
        assert means is not None and variances is not None
        variances.copy_(before.running_var[target.stays])
        return means.copy_(before.running_mean[target.stays])


def scale_of(norm: _BatchNorm) -> Tensor:
    """What a batch norm multiplies each channel with [channels]; 0 where that hardly lets anything through."""
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else torch.where(norm.weight.abs() < SILENT, 0, scale * norm.weight)
