"""Repair before training: what a cut took from the layers that read the cut channels is made up for, without a label.

    refit(original, small, cut, batches, inputs)    from a few hundred images, in closed form
    absorb(original, small, cut, inputs)            from no image at all: less comes back

Both change `small` in place, and nothing about its shape.

`refit` goes through the small network once, layer by layer in the order of the forward pass. From the first layer on that reads
something else than before the cut, it stops at each, finds the weights with which this layer, reading what the network before
it gives *now*, comes nearest to what the original gives there, and goes on with these. Least squares for the outputs of a layer
are those of He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, arXiv 1707.06168 (sections
3.1 and 3.2), here with a ridge that pulls towards the weights that the cut left:

    min over W, b:   mean of || t - W x - b ||^2   +   ridge * (mean variance of x) * || W - W_cut ||^2

x [inputs] is the patch that a layer reads, t [outputs] what the original gives. Where the output, or what a batch norm makes of
it, is then added to another tensor, as at the end of a residual block, t is such that the sum comes out right: what the small
network's shortcut lacks by then is asked of this layer. The intercept b goes into the layer's bias or, where there is none,
into the running mean of the batch norm that reads its output. Of a few ridges, a layer takes the one that does best on the last
quarter of the images when it is fitted to the others; then all are used.

`absorb` moves the mean of each removed channel into what comes next, as in Nagel, van Baalen, Blankevoort, Welling: "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv 1906.04721 (section 4.2.1): a batch norm says of
its own output that it has mean `bias` and standard deviation `|weight|`. What the activations behind it make of that is not
derived but sampled, with normal noise in place of what each batch norm gives.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.channels import Cut
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta import evaluating, separate_attention
from compressor.training.method import Batch

RIDGES = (1.0, 0.1, 0.01, 1e-3)
CHECKED = 4  # one in so many places, those of the last images, judges the ridges
ROWS = 1 << 15  # places at most at which a layer is looked at
CHUNK = 1 << 24  # numbers at most in the patches that are held at one time
NOISE = 32  # samples of noise
SILENT = 1e-3  # a batch norm's scale below which what it reads hardly matters
ADDITIONS = {"aten.add.Tensor", "aten.add_.Tensor"}
LINEAR = {nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}  # subclasses may compute otherwise

Layer = nn.Linear | _ConvNd


@dataclass(frozen=True)
class Repaired:
    """layers: those that were changed, in the order of the forward pass. left: layers that lost inputs and were not -> why."""

    layers: list[str]
    left: dict[str, str]


def _plain(model: nn.Module) -> list[str]:
    """Linear layers and convolutions that do what torch's own do, with a weight that is theirs alone."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return [
        name
        for name, module in model.named_modules()
        if type(module).forward in LINEAR and "weight" in module._parameters and owners[id(module.weight)] == 1
    ]


def _lost(model: nn.Module, cut: Cut) -> list[str]:
    """Modules with weights that lost inputs."""
    names = dict.fromkeys(tensor.rpartition(".")[0] for tensor, dims in cut.kept.items() if 1 in dims and "weight" in tensor)
    return [name for name in names if not isinstance(model.get_submodule(name), _ConvTransposeNd)]


def _layer(model: nn.Module, name: str) -> Layer:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear | _ConvNd)
    return module


def _batch_norm(model: nn.Module, name: str) -> _BatchNorm:
    module = model.get_submodule(name)
    assert isinstance(module, _BatchNorm)
    return module


def _groups(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _table(layer: Layer, tensor: Tensor) -> Tensor:
    """What `layer` reads or gives, as [places, channels]: image by image, then place by place."""
    return (tensor if isinstance(layer, nn.Linear) else tensor.movedim(1, -1)).flatten(0, -2)


def _stays(cut: Cut, layer: str, dim: int, size: int) -> Tensor:
    """Places along `dim` of the layer's weight that stay."""
    places = cut.kept.get(f"{layer}.weight", {}).get(dim)
    return torch.arange(size) if places is None else torch.from_numpy(places)


# A forward pass that is looked at -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """What a tensor is: the output of `layer`, or of the batch norm `norm` that reads exactly that."""

    layer: str
    version: int  # of the tensor: in-place changes since then make it something else
    norm: str | None = None


def _mark(tensor: Tensor, layer: str, norm: str | None = None) -> None:
    tensor._made = _Made(layer, tensor._version, norm)  # type: ignore[attr-defined]


def _made(tensor: Tensor) -> _Made | None:
    made: _Made | None = getattr(tensor, "_made", None)
    return made if made is not None and made.version == tensor._version else None


class _Additions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Tells `found` of each marked tensor that is about to be added to another of its shape, and of that other."""

    def __init__(self, found: Callable[[_Made, Tensor, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in ADDITIONS and not kwargs and isinstance(args[1], Tensor) and args[0].shape == args[1].shape:
            for one, other in (args, args[::-1]):
                if (made := _made(one)) is not None:
                    self.found(made, one, other)
        return func(*args, **(kwargs or {}))


class _Pass:
    """A forward pass of `model` in which `layers`, the batch norms behind them, and what both are added to are looked at."""

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.model, self.layers = model, {name: _layer(model, name) for name in layers}
        self.calls: Counter[str] = Counter()  # of layers, and of the norms that read what they give

    def run(self, inputs: Inputs, tensors: Sequence[Tensor]) -> None:
        with evaluating(self.model), torch.no_grad(), separate_attention(), ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.callback(layer.register_forward_pre_hook(partial(self._before, name), with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(partial(self._after, name)).remove)
            for name, module in self.model.named_modules():
                if isinstance(module, _BatchNorm) and module.running_mean is not None:
                    stack.callback(module.register_forward_hook(partial(self._normed, name), with_kwargs=True).remove)
            stack.enter_context(_Additions(self.added))
            inputs.call(self.model, tensors)

    def once(self, name: str, norm: str | None) -> bool:
        """Whether a layer, and the norm that reads what it gives, were called once."""
        return self.calls[name] == 1 and (norm is None or self.calls[norm] == 1)

    def _before(self, name: str, layer: Layer, args: Sequence[Tensor], kwargs: dict[str, Tensor]) -> None:
        self.before(name, layer, next(iter((*args, *kwargs.values()))))

    def _after(self, name: str, layer: Layer, args: Sequence[Tensor], out: Tensor) -> None:
        self.calls[name] += 1
        _mark(out, name)
        self.after(name, layer, out)

    def _normed(self, name: str, norm: _BatchNorm, args: Sequence[Tensor], kwargs: dict[str, Tensor], out: Tensor) -> None:
        made = _made(next(iter((*args, *kwargs.values()))))
        if made is not None and made.norm is None:
            self.calls[name] += 1
            _mark(out, made.layer, name)
            self.normed(made.layer, name)

    # What a pass is made for

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        """A layer is about to read `x`."""

    def after(self, name: str, layer: Layer, out: Tensor) -> None:
        """A layer gave `out`."""

    def normed(self, name: str, norm: str) -> None:
        """The batch norm `norm` read exactly what the layer `name` gave."""

    def added(self, made: _Made, one: Tensor, other: Tensor) -> None:
        """`one`, which is `made`, is about to be added to `other`."""


# From images ----------------------------------------------------------------------------------------------------------


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
    last, before = last or {}, _plain(original)
    lost, layers = [*_lost(small, cut), *last], [name for name in _plain(small) if last.get(name, name) in before]
    if not images:
        return Repaired([], dict.fromkeys(lost, "there were no images"))
    together, inputs = [torch.cat(images)], Inputs.of(inputs)
    looking = _Looking(original, [last.get(name, name) for name in layers], cut, rows)
    looking.run(inputs, together)
    now = {last.get(name, name): name for name in layers}
    targets = {now[name]: target for name, target in looking.targets.items() if looking.once(name, target.norm)}
    fitting = _Fitting(small, original, targets, ridges)
    fitting.run(inputs, together)
    return Repaired(fitting.done, {name: _why(name, layers) for name in lost if name not in fitting.done})


def _why(name: str, layers: list[str]) -> str:
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


class _Looking(_Pass):
    """The original's pass: what each layer is to give, in the order of the forward pass."""

    def __init__(self, original: nn.Module, layers: Iterable[str], cut: Cut, rows: int) -> None:
        super().__init__(original, layers)
        self.cut, self.rows = cut, rows
        self.targets: dict[str, _Target] = {}
        self.read: dict[str, float] = {}

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        self.read[name] = _total(x)

    def after(self, name: str, layer: Layer, out: Tensor) -> None:
        table = _table(layer, out)
        rows, stays = _draw(len(table), self.rows), _stays(self.cut, name, 0, table.shape[1])
        target = self.targets[name] = _Target(rows.to(out.device), self.read[name], stays.to(out.device), out)
        target.output = target.at(table)

    def normed(self, name: str, norm: str) -> None:
        self.targets[name].norm = norm

    def added(self, made: _Made, one: Tensor, other: Tensor) -> None:
        partner, order = _made(other), list(self.targets)
        is_last = partner is None or order.index(partner.layer) < order.index(made.layer)  # of two, it makes the sum right
        target = self.targets[made.layer]
        if is_last and target.added is None:
            target.added = target.at(_table(self.layers[made.layer], other))


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


class _Fitting(_Pass):
    """The small network's pass. A layer is fitted before it gives anything; if something is added to what it gives, then at
    the addition, and what it gave is put right there."""

    def __init__(self, small: nn.Module, original: nn.Module, targets: dict[str, _Target], ridges: Sequence[float]) -> None:
        super().__init__(small, targets)
        self.original, self.targets, self.ridges = original, targets, ridges
        self.waiting: dict[str, tuple[Tensor, int]] = {}  # what a layer has read, and the version of that
        self.done: list[str] = []

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        target = self.targets[name]
        is_depthwise = layer.weight.shape[1] == 1 < _groups(layer)
        is_as_before = target.read == _total(x)
        if name in self.done or is_depthwise or is_as_before:
            return
        if target.added is None:
            self._fit(name, x, target.output)
        else:
            self.waiting[name] = x, x._version

    def added(self, made: _Made, one: Tensor, other: Tensor) -> None:
        x, version = self.waiting.pop(made.layer, (one, -1))
        if x._version != version:
            return
        layer, target = self.layers[made.layer], self.targets[made.layer]
        assert target.added is not None
        lacking = target.added - target.at(_table(layer, other))
        if made.norm:
            scale = _scale(_batch_norm(self.original, made.norm))[target.stays]
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

    def _squares(self, name: str, x: Tensor, output: Tensor, part: slice, intercept: bool) -> _Squares:
        layer, groups = self.layers[name], _groups(self.layers[name])
        squares = _Squares(layer.weight.reshape(groups, len(layer.weight) // groups, -1), intercept)
        step = max(1, CHUNK // (groups * layer.weight[0].numel()))
        patches = _patches(layer, x, self.targets[name].rows[part], step)
        for read, wanted in zip(patches, torch.split(output[part], step), strict=True):
            squares.add(read, wanted)
        return squares

    def _restored(self, target: _Target) -> Tensor | None:
        """The running mean of the batch norm that reads a layer, after its statistics were made those of the original."""
        if target.norm is None:
            return None
        now, before = _batch_norm(self.model, target.norm), _batch_norm(self.original, target.norm)
        means, variances = now.running_mean, now.running_var
        assert before.running_mean is not None and before.running_var is not None
        assert means is not None and variances is not None
        variances.copy_(before.running_var[target.stays])
        return means.copy_(before.running_mean[target.stays])


def _scale(norm: _BatchNorm) -> Tensor:
    """What a batch norm multiplies each channel with [channels]; 0 where that hardly lets anything through."""
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else torch.where(norm.weight.abs() < SILENT, 0, scale * norm.weight)


def _patches(layer: Layer, x: Tensor, rows: Tensor, step: int) -> Iterator[Tensor]:
    """What `layer` reads for the places `rows` of its output, `step` of them at a time: [rows, groups, inputs]."""
    if isinstance(layer, nn.Linear):
        yield from (part[:, None] for part in torch.split(_table(layer, x)[rows], step))
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode)  # [n, channels, *sizes]
    table, sizes = _table(layer, x), x.shape[2:]
    firsts, offsets = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for size, kernel, stride, dilation in zip(sizes, layer.kernel_size, layer.stride, layer.dilation, strict=True):
        starts = torch.arange(0, size - dilation * (kernel - 1), stride)
        firsts = (firsts[:, None] * size + starts).flatten()  # of each patch, its first pixel in an image
        offsets = (offsets[:, None] * size + torch.arange(kernel) * dilation).flatten()  # of each pixel of a patch from that
    firsts, offsets = firsts.to(x.device), offsets.to(x.device)
    for part in torch.split(rows, step):
        pixels = part // len(firsts) * prod(sizes) + firsts[part % len(firsts)]  # [rows]
        patches = table[pixels[:, None] + offsets]  # [rows, kernel, channels]
        apart = patches.reshape(*patches.shape[:2], layer.groups, -1)
        yield apart.permute(0, 2, 3, 1).flatten(2)  # as weights are: channels, then kernel


class _Squares:
    """Least squares for the weights [groups, outputs, inputs] of a layer, each group by itself; sums are kept in float64.

    With an intercept, each place has one input more, which is always 1.
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

    def with_all_of(self, other: _Squares) -> _Squares:
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
        pull[spread.sum(1) == 0] = 1.0  # nothing varies: nothing changes
        if self.intercept:
            pull[:, -1] = 0.0
        ridged = self.gram + torch.diag_embed(pull)
        missed = self.cross - self.old @ self.gram
        return self.old + torch.cholesky_solve(missed.mT, torch.linalg.cholesky(ridged)).mT

    def error(self, weights: Tensor) -> float:
        """Sum of squares of what `weights` leave, less a constant."""
        return float(((weights @ self.gram - 2 * self.cross) * weights).sum())


# From no image --------------------------------------------------------------------------------------------------------


def absorb(original: nn.Module, small: nn.Module, cut: Cut, inputs: AnyInputs) -> Repaired:
    """Add what removed channels gave on average to the bias of the layers that read them, or take it off a running mean.

    `small` is `original` after `cut`. Biases and means that change are set anew from those of the original, so that a second
    call changes nothing. A patch is taken to have no border: zeros that a convolution pads with are not thought of.
    """
    inputs, lost = Inputs.of(inputs), _lost(small, cut)
    listening = _Listening(original, [name for name in _plain(small) if name in lost])
    listening.run(inputs, inputs.random(NOISE, like=original))
    done, left = [], {}
    for name in lost:
        norm, mean = listening.norms.get(name), listening.means.get(name)
        if not listening.once(name, norm):
            left[name] = _why(name, list(listening.layers))
        elif mean is None:
            left[name] = "no batch norm comes before it"
        elif not _absorb(name, norm, mean, original, small, cut):
            left[name] = "it has no bias, and no batch norm reads what it gives"
        else:
            done.append(name)
    return Repaired([name for name in listening.means if name in done], left)


def _absorb(name: str, norm: str | None, mean: Tensor, original: nn.Module, small: nn.Module, cut: Cut) -> bool:
    """Whether there was a place for what the layer `name` lost; `mean` [channels] is that of what it read."""
    now, before = _layer(small, name), _layer(original, name)
    reads, gives = (_stays(cut, name, dim, before.weight.shape[dim]).to(mean.device) for dim in (1, 0))
    gone = _given(before, mean, reads)[gives]  # [channels]
    if now.bias is not None and before.bias is not None:
        now.bias.detach().copy_(before.bias[gives] + gone)
    elif norm is not None:
        means, old = _batch_norm(small, norm).running_mean, _batch_norm(original, norm).running_mean
        assert means is not None and old is not None
        means.copy_(old[gives] - gone)
    return now.bias is not None or norm is not None


class _Listening(_Pass):
    """The original's pass with noise in place of what batch norms give: the mean of each channel that a layer reads."""

    def __init__(self, original: nn.Module, layers: Iterable[str]) -> None:
        super().__init__(original, layers)
        self.means: dict[str, Tensor] = {}  # [channels], in the order of the forward pass
        self.norms: dict[str, str] = {}
        self.noise: torch.Generator | None = None

    def run(self, inputs: Inputs, tensors: Sequence[Tensor]) -> None:
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        with ExitStack() as stack:
            for norm in norms:
                stack.callback(norm.register_forward_hook(self._sampled).remove)
            super().run(inputs, tensors)

    def _sampled(self, norm: _BatchNorm, args: Any, out: Tensor) -> Tensor:
        self.noise = self.noise or torch.Generator().manual_seed(0)
        noise = torch.randn(out.shape, generator=self.noise).to(out)
        if not norm.affine:
            return noise
        shape = (-1, *[1] * (out.dim() - 2))
        return noise * norm.weight.abs().reshape(shape) + norm.bias.reshape(shape)

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        if self.noise is not None:
            self.means[name] = _table(layer, x).double().mean(0)

    def normed(self, name: str, norm: str) -> None:
        self.norms[name] = norm


def _given(layer: Layer, mean: Tensor, stays: Tensor) -> Tensor:
    """What the inputs that do not stay, of each group, gave on average [outputs]."""
    outputs, inputs = layer.weight.shape[:2]
    groups = _groups(layer)
    weight = layer.weight.detach().double().reshape(outputs, inputs, -1).sum(2)
    gone = weight.index_fill(1, stays, 0).reshape(groups, outputs // groups, inputs)
    return torch.einsum("goi,gi->go", gone, mean.reshape(groups, inputs)).flatten()
