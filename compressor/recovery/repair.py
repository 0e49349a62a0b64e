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

A layer that is called several times in a forward pass, such as a head that all levels of a pyramid share, is fitted to all
calls together: their sums are added up, and the weights are set after the pass. Layers that depend on it are fitted in the next
pass. Calls in the two networks are paired by their order. Layers for which that would be wrong are left alone: those whose
number of calls, or of positions in a call, differs between the networks; those whose positions were selected by values (region
proposals, NMS, top-k); and those of which a call depends on an earlier one.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.channels import Cut
from compressor.data import Batch
from compressor.network.inputs import AnyInputs, Inputs
from compressor.recovery.forward_passes import (
    CHOICE,
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

AS_BEFORE = "its input is the same as before"
NOT_PLAIN = "it is not a convolution or linear layer of torch, or it shares its weights"

Reasons = dict[str, str]  # layer -> why it was not re-estimated


@dataclass(frozen=True)
class Repaired:
    """layers: the re-estimated layers, in the order of the forward pass. left: layers that were not re-estimated -> reason;
    consumers of pruned channels, and layers whose calls in the two networks cannot be paired."""

    layers: list[str]
    left: Reasons


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
    fit into memory. A layer is fitted to at most `rows` positions of all its calls, sampled at random, the same each time.
    Without images nothing changes.
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
    now = {last.get(name, name): name for name in layers}
    looking = _Looking(original, now, cut, rows)
    looking.run(inputs, together)
    targets, unpaired = looking.found(now)
    start = copy.deepcopy(small.state_dict())
    while True:
        fitting = _Fitting(small, original, targets, ridges)
        fitting.fit(inputs, together)
        if not fitting.unpaired:
            break
        small.load_state_dict(start)  # other layers were fitted after them
        unpaired |= fitting.unpaired
        targets = {name: target for name, target in targets.items() if name not in unpaired}
    uncalled = dict.fromkeys(layers, "it is never called")
    reasons = dict.fromkeys(lost, NOT_PLAIN) | uncalled | fitting.left | unpaired
    return Repaired(
        [n for n in targets if n in fitting.done], {n: reasons[n] for n in [*lost, *unpaired] if n not in fitting.done}
    )


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


@dataclass
class _Call:
    """The target outputs of one call of a layer at the positions `rows`, and how its output is used."""

    time: int  # the number of calls of all layers before
    shape: torch.Size  # of the input in the original, without channels
    read: float  # the sum of that input
    count: int  # positions of the output
    rows: Tensor  # [rows] indices of positions, ascending
    order: Tensor  # [rows] the order in which they were drawn: the first ones stay when there must be fewer
    output: Tensor  # [rows, channels] output of the original there
    norms: list[str] = field(default_factory=list)  # the batch norms that follow
    added: Tensor | None = None  # [rows, channels] the tensor that the original adds to it

    def limit(self, rows: int) -> None:
        """Keep so many of the rows."""
        first = self.order < rows
        self.rows, self.order, self.output = self.rows[first], self.order[first], self.output[first]
        self.added = None if self.added is None else self.added[first]


@dataclass
class _Target:
    """All calls of a layer in the original, in their order."""

    stays: Tensor  # [channels] kept output channels of the original
    calls: list[_Call]
    behind: set[str]  # the layers that its inputs, and the tensors added to its outputs, depend on

    @property
    def is_shared(self) -> bool:
        return len(self.calls) > 1

    @property
    def norms(self) -> Counter[str]:
        """The batch norms that follow -> how often."""
        return Counter(norm for call in self.calls for norm in call.norms)

    def at(self, rows: Tensor, table: Tensor) -> Tensor:
        """[rows, channels] of a table of all positions, with all channels of the original or only the kept ones."""
        chosen = table[rows]
        return chosen if chosen.shape[1] == len(self.stays) else chosen[:, self.stays]


class _Looking(Pass):
    """The pass of the original: records the target outputs of each call of a layer, in the order of the forward pass."""

    def __init__(self, original: nn.Module, layers: Iterable[str], cut: Cut, rows: int) -> None:
        super().__init__(original, layers)
        self.cut, self.rows = cut, rows
        self.targets: dict[str, _Target] = {}

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        self.shape, self.total, self.behind = _positions(layer, x), _total(x), self.operators.behind(x)

    def after(self, name: str, layer: Layer, out: Tensor) -> None:
        table, device = table_of(layer, out), out.device
        if name not in self.targets:
            stays = kept_places(self.cut, name, 0, table.shape[1])
            self.targets[name] = _Target(stays.to(device), [], set())
        target = self.targets[name]
        target.behind |= self.behind
        calls, time = target.calls, sum(len(target.calls) for target in self.targets.values())
        total = sum(call.count for call in calls) + len(table)
        for call in calls:
            call.limit(self.some(call.count, total))
        drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[: self.some(len(table), total)]
        rows, order = (each.to(device) for each in drawn.sort())
        calls.append(_Call(time, self.shape, self.total, len(table), rows, order, target.at(rows, table)))

    def some(self, count: int, total: int) -> int:
        """How many of the `count` positions of a call are used, if all calls have `total`: all of them are equally likely."""
        return max(1, count * self.rows // max(total, self.rows))

    def normed(self, made: Source, norm: str) -> None:
        self.targets[made.layer].calls[made.call].norms.append(norm)

    def added(self, made: Source, one: Tensor, other: Tensor) -> None:
        target, partner, behind = self.targets[made.layer], source_of(other), self.operators.behind(other)
        call = target.calls[made.call]
        if self.additions[made.layer, made.call]:  # the output has been used before
            return
        if behind & {made.layer, CHOICE}:  # `other` changes with the layer, or has other positions
            return
        if partner is None or self.targets[partner.layer].calls[partner.call].time < call.time:  # the later corrects the sum
            call.added = target.at(call.rows, table_of(self.layers[made.layer], other))
            target.behind |= behind

    def found(self, now: Mapping[str, str]) -> tuple[dict[str, _Target], Reasons]:
        """The targets of all layers whose calls can be paired with those in a pruned network, and why others cannot be.

        `now` maps the names of layers to those in the pruned network, which are used in the result.
        """
        behind = _closed({name: target.behind & {CHOICE, *self.targets} for name, target in self.targets.items()})
        targets, unpaired = {}, {}
        for name, target in self.targets.items():
            if CHOICE in target.behind:
                unpaired[now[name]] = "its positions are selected by values: those of the two networks do not correspond"
            elif any(self.calls[norm] != often for norm, often in target.norms.items()):
                unpaired[now[name]] = "the batch norm after it also follows something else"
            elif target.is_shared and name in behind[name]:
                unpaired[now[name]] = "it is called several times, and a call depends on the output of an earlier one"
            else:
                target.behind = {now[other] for other in behind[name] - {CHOICE}}
                targets[now[name]] = target
        return targets, unpaired


def _closed(behind: dict[str, set[str]]) -> dict[str, set[str]]:
    """With all that each layer depends on through others."""
    while (
        wider := {name: own.union(*(behind[each] for each in own if each in behind)) for name, own in behind.items()}
    ) != behind:
        behind = wider
    return behind


def _total(x: Tensor) -> float:
    """A checksum that tells tensors apart."""
    return float(x.sum(dtype=torch.float64))


def _positions(layer: Layer, x: Tensor) -> torch.Size:
    """The shape of an input without its channels."""
    return x.shape[:-1] if isinstance(layer, nn.Linear) else torch.Size((len(x), *x.shape[2:]))


def _parts(rows: int) -> tuple[slice, slice]:
    """The rows to fit to, and the rows to select the ridge with."""
    first = rows - rows // CHECKED
    return slice(0, first), slice(first, rows)


@dataclass
class _Sums:
    """What is known of the inputs and target outputs of a layer in the present pass."""

    fitted: Squares
    checked: Squares
    calls: int = 0  # that have been added
    differs: bool = False  # whether any input differs from the original's


class _Fitting(Pass):
    """Passes of the pruned network. A layer is fitted before it runs; if its output is added to another tensor, it is fitted at
    the addition, and its output is recomputed there; if it is called several times, it is fitted after the pass."""

    def __init__(self, small: nn.Module, original: nn.Module, targets: dict[str, _Target], ridges: Sequence[float]) -> None:
        super().__init__(small, targets)
        self.original, self.targets, self.ridges = original, targets, ridges
        self.ready: set[str] = set()  # layers to fit in the present pass
        self.sums: dict[str, _Sums] = {}
        self.waiting: dict[tuple[str, int], tuple[Tensor, int]] = {}  # the input of a call, and the version of that tensor
        self.done: set[str] = set()
        self.left: Reasons = {}
        self.unpaired: Reasons = {}

    def fit(self, inputs: Inputs, tensors: Sequence[Tensor]) -> None:
        """Fit all layers, in as many passes as needed. Stops as soon as calls cannot be paired: see `unpaired`."""
        later = set(self.targets)
        while later and not self.unpaired:
            shared = {name for name in later if self.targets[name].is_shared}
            self.ready = {name for name in later if not self.targets[name].behind & shared}
            later -= self.ready
            self.run(inputs, tensors)
            for name, target in self.targets.items():
                if self.calls[name] != len(target.calls):
                    self.unpaired[name] = (
                        f"the original calls it {len(target.calls)} times, the pruned network {self.calls[name]}"
                    )
            with torch.no_grad():
                for name in self.ready - self.done - self.left.keys() - self.unpaired.keys():
                    self._conclude(name)
            self.sums.clear()
            self.waiting.clear()

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        target, number = self.targets[name], self.calls[name]
        if number >= len(target.calls):
            return
        call, shape = target.calls[number], _positions(layer, x)
        differs = call.read != _total(x)
        if shape != call.shape:
            self.unpaired[name] = f"its input has other positions: {list(call.shape)} in the original, {list(shape)} now"
        elif layer.weight.shape[1] == 1 < groups_of(layer):
            self.left[name] = "it is a depthwise convolution"
        elif not differs and not target.is_shared:
            self.left[name] = AS_BEFORE
        elif name in self.ready - self.unpaired.keys():
            self._sums_of(name).differs |= differs
            if call.added is None:
                self._add(name, number, x, call.output)
            else:
                self.waiting[name, number] = x, x._version

    def added(self, made: Source, one: Tensor, other: Tensor) -> None:
        x, version = self.waiting.pop((made.layer, made.call), (one, -1))
        if x._version != version:
            return
        layer, target = self.layers[made.layer], self.targets[made.layer]
        call = target.calls[made.call]
        assert call.added is not None
        lacking = call.added - target.at(call.rows, table_of(layer, other))
        if made.norm:
            scale = scale_of(norm_of(self.original, made.norm))[target.stays]
            lacking = torch.where(scale == 0, 0, lacking / scale)
        self._add(made.layer, made.call, x, call.output + lacking)
        if not target.is_shared:
            one.copy_(self.again(made.layer, made.norm, x))

    def _sums_of(self, name: str) -> _Sums:
        if name not in self.sums:
            layer, groups = self.layers[name], groups_of(self.layers[name])
            old = layer.weight.reshape(groups, len(layer.weight) // groups, -1)
            intercept = layer.bias is not None or all(call.norms for call in self.targets[name].calls)
            self.sums[name] = _Sums(Squares(old, intercept), Squares(old, intercept))
        return self.sums[name]

    def _add(self, name: str, number: int, x: Tensor, output: Tensor) -> None:
        """Add the rows of a call, whose target is `output`. The layer is fitted now if it has no other call."""
        layer, sums, target = self.layers[name], self.sums[name], self.targets[name]
        step = max(1, CHUNK // (groups_of(layer) * layer.weight[0].numel()))
        for squares, part in zip((sums.fitted, sums.checked), _parts(len(output)), strict=True):
            patches = patches_of(layer, x, target.calls[number].rows[part], step)
            for read, wanted in zip(patches, torch.split(output[part], step), strict=True):
                squares.add(read, wanted)
        sums.calls += 1
        if not target.is_shared:
            self._solve(name)

    def _conclude(self, name: str) -> None:
        """Fit a layer that is called several times, or say why not."""
        if self.sums[name].calls < len(self.targets[name].calls):
            self.left[name] = "its input is changed in place before its output is added"
        elif not self.sums[name].differs:
            self.left[name] = AS_BEFORE
        else:
            self._solve(name)

    def _solve(self, name: str) -> None:
        """Set the weights and bias of the layer such that, for its inputs, its outputs are nearest to the targets."""
        layer, sums = self.layers[name], self.sums.pop(name)
        means = [self._restored(norm, self.targets[name].stays) for norm in self.targets[name].norms]
        ridge = min(self.ridges, key=lambda ridge: sums.checked.error(sums.fitted.solve(ridge)))
        weights = sums.fitted.with_all_of(sums.checked).solve(ridge).flatten(0, 1)  # [outputs, inputs]
        inputs = layer.weight[0].numel()
        layer.weight.copy_(weights[:, :inputs].reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(weights[:, -1])
        elif sums.fitted.intercept:
            for mean in means:
                mean.sub_(weights[:, -1])
        self.done.add(name)

    def _restored(self, name: str, stays: Tensor) -> Tensor:
        """Reset the statistics of a batch norm that follows a layer to the original's, and return its running mean."""
        now, before = norm_of(self.model, name), norm_of(self.original, name)
        means, variances = now.running_mean, now.running_var
        assert before.running_mean is not None and before.running_var is not None
        assert means is not None and variances is not None
        variances.copy_(before.running_var[stays])
        return means.copy_(before.running_mean[stays])


def scale_of(norm: _BatchNorm) -> Tensor:
    """The factor of a batch norm for each channel [channels]; 0 where its scale is close to zero."""
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else torch.where(norm.weight.abs() < SILENT, 0, scale * norm.weight)
