"""The rules: how each operator propagates labels. `labels.py` explains labels.

A rule reads the labels of its inputs, joins those of coupled channels, and sets the labels of its output. An output without
labels is untracked: tracked channels that are combined with it later are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from compressor.channels.labels import Call, Labels, Rule, Trace
from compressor.channels.sizes import Ids
from compressor.network.outputs import tensors_in

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, of ATen unless another library is named; without an overload, for all overloads."""

    def register(function: Rule) -> Rule:
        RULES.update({name if name.startswith("torchvision.") else f"aten.{name}": function for name in operators})
        return function

    return register


def unknown(trace: Trace, call: Call) -> None:
    """An operator without a rule: all channels of its inputs are frozen."""
    if trace.first or call.name not in trace.unknown:  # the second pass adds operators that only run in train mode
        trace.unknown[call.name] += 1
    for tensor in call.inputs:
        trace.freeze_all(tensor, f"operator {call.name} has no rule")


def _outputs(call: Call) -> list[Tensor]:
    return tensors_in(call.out)


def _normal(dim: int, dims: int) -> int:
    return dim % dims if dims else 0


# Layers ---------------------------------------------------------------------------------------------------------------


@rule("convolution", "_convolution")
def convolution(trace: Trace, call: Call) -> None:
    """The input's channels join dimension 1 of the weight, the output has dimension 0 (swapped if transposed)."""
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    out: Tensor = call.out
    channels = 1 if x.dim() == weight.dim() else 0
    x_ids, w_ids = trace.labels(x)[channels], trace.labels(weight)
    for dim, ids in enumerate(trace.labels(x)):
        if dim != channels:
            trace.freeze(ids, "a convolution uses it as a batch or spatial dimension")
    for kernel in w_ids[2:]:
        trace.freeze(kernel, "it is a kernel dimension")
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    made, read = w_ids[out_dim], w_ids[in_dim]
    if groups == 1:
        trace.join(read, x_ids, "no layer produces its input channels")
    elif transposed:
        trace.freeze_all(x, "it feeds a grouped transposed convolution")
        trace.freeze_all(weight, "it is a grouped transposed convolution")
        made = None
    elif read is not None and made is not None:
        wide = x_ids.reshape(groups, -1) if x_ids is not None else None  # [groups, inputs of each]
        if weight.shape[1] == 1:  # depthwise: filter i reads only channel i // multiplier
            expanded = None if wide is None else wide.repeat(len(made) // groups)
            made = trace.join(made, expanded, "its depthwise convolution filters values that no layer produces")
        else:
            trace.join(read, None if wide is None else trace.alike(wide), "no layer produces its input channels")
            trace.alike(made.reshape(groups, -1))  # [groups, filters of each]
    else:
        trace.freeze_all(x, "it feeds a grouped convolution with computed weights")
        trace.freeze_all(weight, "it is a grouped convolution with computed weights")
    if made is not None and bias is not None:
        trace.join(made, trace.labels(bias)[0], "its bias is not a parameter")
    if made is not None and not (groups > 1 and weight.shape[1] == 1):  # a depthwise filter only scales its channel
        trace.produced.append(made)
    if read is not None and weight.shape[in_dim] > 1:
        trace.consumed.append(read)
    labels: Labels = [None] * out.dim()
    labels[channels] = made
    trace.set(out, labels)
    trace.step(trace.layers, x, out, (weight, bias), groups)
    places = math.prod((x if transposed else out).shape[channels + 1 :]) * (out.shape[0] if channels else trace.batch)
    trace.cost(
        _layer(trace, weight),
        places * math.prod(weight.shape[2:]),
        trace.axis(weight, out_dim),
        trace.axis(weight, in_dim),
    )


def _layer(trace: Trace, weight: Tensor) -> str:
    name = trace.tensor_name(weight)
    return name.rpartition(".")[0] if name else "(computed weights)"


def _product(trace: Trace, a: Tensor, b: Tensor, out: Tensor) -> None:
    """[..., n, k] times [..., k, m]: the two k are joined, the other dimensions keep their labels."""
    a_ids, b_ids = trace.labels(a), trace.labels(b)
    trace.join(a_ids[-1], b_ids[-2], "it is multiplied by values that no layer produces")
    labels: Labels = [a_ids[-2], b_ids[-1]]
    if out.dim() > 2:  # one product for each index of the first dimension
        first = trace.join(a_ids[0], b_ids[0], "it is multiplied by values that no layer produces")
        labels.insert(0, None if a_ids[0] is None or b_ids[0] is None else first)
    trace.set(out, labels)
    own = b if trace.tensor_name(b) else a
    if not trace.tensor_name(own):
        trace.attended.extend(ids for ids in (*a_ids, *b_ids) if ids is not None)
    else:
        made, read = (b_ids[-1], b_ids[-2]) if own is b else (a_ids[-2], a_ids[-1])
        if made is not None and read is not None:
            trace.produced.append(made)
            trace.consumed.append(read)
    inner = trace.axis(own, -2 if own is b else -1)
    leading = [out.shape[i] if ids is None else trace.axis(out, i) for i, ids in enumerate(labels[:-2])]
    trace.cost(_layer(trace, own), 1.0, *leading, trace.axis(a, -2), inner, trace.axis(b, -1))


@rule("mm", "bmm")
def product(trace: Trace, call: Call) -> None:
    a, b = call.args[:2]
    _product(trace, a, b, call.out)
    if a.dim() == 2:
        trace.step(trace.layers, a, call.out, (b,))


@rule("addmm", "baddbmm")
def biased_product(trace: Trace, call: Call) -> None:
    bias, a, b = call.args[:3]
    _product(trace, a, b, call.out)
    trace.set(call.out, _meet(trace, [(call.out, trace.labels(call.out)), (bias, trace.labels(bias))], call.out.shape))
    trace.step(trace.layers, a, call.out, (b, bias))


# Normalisation --------------------------------------------------------------------------------------------------------


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
      "_batch_norm_with_update", "_batch_norm_no_update")  # fmt: skip
def batch_norm(trace: Trace, call: Call) -> None:
    """Channels are joined with all per-channel parameters and statistics."""
    x, *rest = call.args[:5]
    tensors = [tensor for tensor in rest if isinstance(tensor, Tensor)]
    labels = trace.labels(x)
    if not (x.shape[0] == 1 and trace.tensor_name(x)):  # else it is weight standardisation, of each filter over its inputs
        for dim in {*range(x.dim())} - {1}:
            trace.freeze(labels[dim], "a batch norm averages over it")
    for tensor in tensors:
        labels[1] = trace.join(labels[1], trace.labels(tensor)[0], "it normalises values that no layer produces")
    if labels[1] is not None and trace.labels(x)[1] is None:
        labels[1] = None
    out = _outputs(call)[0]
    trace.set(out, labels)
    trace.step(trace.norms, x, out, tensors)


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(trace: Trace, call: Call) -> None:
    """Normalises over the trailing dimensions; its weights are pruned with them."""
    x, shape, *affine = call.args[:4]
    labels = trace.labels(x)
    tensors = [tensor for tensor in affine if isinstance(tensor, Tensor)]
    first = x.dim() - len(shape)
    for dim in range(first, x.dim()):
        if not tensors:
            trace.freeze(labels[dim], "a layer norm without weights averages over it")
        elif len(shape) > 1:
            trace.freeze(labels[dim], "a layer norm averages over it and over spatial dimensions")
        for tensor in tensors:
            trace.join(labels[dim], trace.labels(tensor)[dim - first], "it normalises values that no layer produces")
    trace.set(_outputs(call)[0], labels)


@rule("native_group_norm")
def group_norm(trace: Trace, call: Call) -> None:
    """Index j of all groups is coupled, so that all groups keep the same number of channels."""
    x, weight, bias = call.args[:3]
    groups = int(call.args[6])
    labels = trace.labels(x)
    if labels[1] is not None:
        if weight is None:
            trace.freeze(labels[1], "a group norm without weights averages over it")
        elif groups == len(labels[1]):
            trace.freeze(labels[1], "each of its channels is a group of a group norm")
        trace.alike(labels[1].reshape(groups, -1))  # [groups, channels of each]
    for tensor in (weight, bias):
        if tensor is not None:
            trace.join(labels[1], trace.labels(tensor)[0], "it normalises values that no layer produces")
    trace.set(_outputs(call)[0], labels)


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(trace: Trace, call: Call) -> None:
    """A magnitude for each index along one dimension; a weight of zero adds nothing to it."""
    direction, length = call.args[:2]
    labels = trace.labels(direction)
    dim = _normal(call.arg(2, "dim", 0), direction.dim())
    labels[dim] = trace.join(labels[dim], trace.labels(length)[dim], "the magnitude of its weight norm is not a parameter")
    trace.set(_outputs(call)[0], labels)


# Element by element ---------------------------------------------------------------------------------------------------


def _meet(trace: Trace, operands: Sequence[tuple[Tensor, Labels]], shape: Sequence[int]) -> Labels:
    """Labels of an element-wise result: operands are joined along dimensions in which they are not broadcast."""
    labels: Labels = []
    for back in range(len(shape), 0, -1):
        full = [
            (tensor, ids[-back]) for tensor, ids in operands if tensor.dim() >= back and tensor.shape[-back] == shape[-back] > 1
        ]
        expanded = [trace.expanded(tensor, -back) for tensor, _ in full]
        here = [ids for (_, ids), size in zip(full, expanded, strict=True) if size is None] or [None]
        for ids in here:
            for size in expanded:
                if ids is not None:
                    trace.demand(ids, size)
        tracked = [ids for ids in here if ids is not None]
        if len(tracked) < len(here):
            for ids in tracked:
                trace.freeze(ids, "it is combined with values that no layer produces")
            labels.append(None)
            continue
        for ids in tracked[1:]:
            trace.join(tracked[0], ids, "it is combined with padding")
        labels.append(_steadiest(tracked))
    return labels


def _steadiest(tracked: Sequence[Ids]) -> Ids | None:
    """Of joined labels, those with the fewest constants, so that ids are still known after a sum with padding."""
    return min(tracked, key=lambda ids: int((ids == 0).sum()), default=None)


ELEMENTWISE = (
    "add add_ sub sub_ mul mul_ div div_ rsub pow pow_ maximum minimum where addcmul addcmul_ addcdiv addcdiv_ lerp "
    "lerp_ remainder fmod floor_divide atan2 copy_ masked_fill masked_fill_ eq ne lt le gt ge logical_and "
    "logical_or logical_not bitwise_and bitwise_or bitwise_not __and__ __or__ neg abs sgn sign exp exp_ log log_ "
    "log1p log2 sqrt sqrt_ rsqrt sin cos tanh tanh_ sigmoid sigmoid_ relu relu_ relu6 silu silu_ gelu elu elu_ celu "
    "celu_ selu selu_ leaky_relu leaky_relu_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ mish "
    "mish_ softplus log_sigmoid_forward clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ erf round floor ceil "
    "trunc reciprocal square square_ isnan isinf nan_to_num nan_to_num_ alias detach clone contiguous lift_fresh "
    "_to_copy to dropout dropout_ native_dropout threshold threshold_ bernoulli_ empty_like zeros_like ones_like "
    "full_like rand_like randn_like fill_ zero_ _prelu_kernel type_as silu_backward bernoulli "
).split()


@rule(*ELEMENTWISE)
def elementwise(trace: Trace, call: Call) -> None:
    operands = [(tensor, trace.labels(tensor)) for tensor in call.inputs]
    if call.name.startswith(("aten.add", "aten.sub")):
        computed = [(tensor, labels) for tensor, labels in operands if trace.tensor_name(tensor) is None]
        if len(computed) > 1:
            trace.sums.extend(ids for _, labels in computed for ids in labels if ids is not None)
        elif computed:
            trace.step(trace.biases, computed[0][0], call.out, [tensor for tensor, _ in operands])
    for out in _outputs(call):
        trace.set(out, _meet(trace, operands, out.shape))


@rule("cat")
def cat(trace: Trace, call: Call) -> None:
    """Channels are concatenated; untracked pieces are constants."""
    tensors = [tensor for tensor in call.args[0] if tensor.dim() == call.out.dim()]
    dim = _normal(call.arg(1, "dim", 0), call.out.dim())
    pieces = [trace.labels(tensor) for tensor in tensors]
    labels: Labels = []
    for here in range(call.out.dim()):
        column = [ids[here] for ids in pieces]
        if here == dim:
            known = any(ids is not None and len(ids) > 1 for ids in column)  # a single index (class token) is frozen anyway
            sizes = [tensor.shape[dim] for tensor in tensors]
            filled = [np.zeros(n, np.int64) if ids is None else ids for ids, n in zip(column, sizes, strict=True)]
            labels.append(np.concatenate(filled) if known else None)
        else:
            operands = [(tensor, [ids]) for tensor, ids in zip(tensors, column, strict=True)]
            one = [ids for _, (ids,) in operands if ids is not None]
            if one and len(one) < len(column):
                for ids in one:
                    trace.freeze(ids, "it is concatenated with values that no layer produces")
                labels.append(None)
            else:
                for ids in one[1:]:
                    trace.join(one[0], ids, "it is concatenated with constants")
                labels.append(one[0] if one else None)
    trace.set(call.out, labels)


# Views ----------------------------------------------------------------------------------------------------------------


@rule("slice")
def slice_(trace: Trace, call: Call) -> None:
    """A part of the channels. Its bounds must still be right for the remaining channels."""
    x = call.args[0]
    labels = trace.labels(x)
    dim = _normal(call.arg(1, "dim", 0), x.dim())
    bounds, step = (call.arg(2, "start"), call.arg(3, "end")), call.arg(4, "step", 1)
    start, stop, _ = slice(*bounds).indices(x.shape[dim])
    ids = labels[dim]
    if ids is not None:
        if trace.asked is None and step == 1:
            _chunk(trace, ids, start, stop)
        elif step == 1:
            for bound in bounds:
                _bound(trace, ids, bound)
        elif stop == len(ids) and start < step and len(ids) % step == 0:  # such as every second one, in whole rounds
            trace.alike(ids.reshape(-1, step).T)
        else:
            trace.freeze(ids, "the model slices it at fixed indices")
        labels[dim] = ids[start:stop:step]
    trace.set(call.out, labels)


def _bound(trace: Trace, ids: Ids, bound: int | None) -> None:
    """A slice begins or ends at `bound`: the number of channels before it (after it, if negative) must be kept."""
    if bound and abs(bound) < len(ids):
        size, parts = trace.asked_for(bound), (ids[:bound], ids[bound:])
        trace.demand(*((parts[0], size) if bound > 0 else (parts[1], -size)), parts)


def _chunk(trace: Trace, ids: Ids, start: int, stop: int) -> None:
    """Equal chunks of a tensor must stay equal, so they are joined index by index; unequal parts are frozen."""
    size = stop - start
    if 0 < size < len(ids):
        if len(ids) % size == 0 and start % size == 0:
            trace.alike(ids.reshape(-1, size))
        else:
            trace.freeze(ids, "the model splits it into unequal parts")


@rule("split", "split_with_sizes", "chunk")
def split(trace: Trace, call: Call) -> None:
    """Pieces of the sizes that the code passes, or equal ones."""
    x = call.args[0]
    dim = _normal(call.arg(2, "dim", 0), x.dim())
    asked = trace.asked if isinstance(call.args[1], list) or trace.asked is None else trace.asked[:1] * len(call.out)
    start = 0
    for i, out in enumerate(call.out):
        labels = trace.labels(x)
        stop = start + out.shape[dim]
        if (ids := labels[dim]) is not None:
            labels[dim] = ids[start:stop]
            if asked is None or call.name.startswith("aten.chunk"):
                _chunk(trace, ids, start, stop)
            elif asked[i] == stop - start:  # else it is the smaller last piece
                trace.demand(ids[start:stop], asked[i], [ids[start:stop]])
        start = stop
        trace.set(out, labels)


@rule("select")
def select(trace: Trace, call: Call) -> None:
    """One index: all indices up to it (from it on, if negative) are frozen, so that it does not move."""
    x, dim, index = call.args
    labels = trace.labels(x)
    ids = labels.pop(_normal(dim, x.dim()))
    if ids is not None:
        trace.freeze(ids[: index + 1] if index >= 0 else ids[index:], "the model selects it by index")
    trace.set(call.out, labels)


@rule("unbind")
def unbind(trace: Trace, call: Call) -> None:
    x = call.args[0]
    labels = trace.labels(x)
    trace.freeze(labels.pop(_normal(call.arg(1, "dim", 0), x.dim())), "the model unbinds it")
    for out in call.out:
        trace.set(out, labels)


@rule("stack")
def stack(trace: Trace, call: Call) -> None:
    """Tensors are stacked along a new dimension."""
    tensors = call.args[0]
    labels = _meet(trace, [(tensor, trace.labels(tensor)) for tensor in tensors], tensors[0].shape)
    labels.insert(_normal(call.arg(1, "dim", 0), call.out.dim()), None)
    trace.set(call.out, labels)


@rule("permute", "transpose", "t", "movedim", "numpy_T")
def permute(trace: Trace, call: Call) -> None:
    x = call.args[0]
    labels = trace.labels(x)
    if call.name.startswith("aten.permute"):
        labels = [labels[dim] for dim in call.args[1]]
    elif call.name.startswith("aten.transpose"):
        a, b = call.args[1:3]
        labels[a], labels[b] = labels[b], labels[a]
    else:
        labels = labels[::-1]
    trace.set(call.out, labels)


@rule("unsqueeze")
def unsqueeze(trace: Trace, call: Call) -> None:
    labels = trace.labels(call.args[0])
    labels.insert(_normal(call.args[1], call.out.dim()), None)
    trace.set(call.out, labels)


@rule("squeeze")
def squeeze(trace: Trace, call: Call) -> None:
    x = call.args[0]
    dims = range(x.dim()) if len(call.args) == 1 else call.args[1]
    gone = {_normal(d, x.dim()) for d in ([dims] if isinstance(dims, int) else dims)}
    kept = [ids for d, ids in enumerate(trace.labels(x)) if not (d in gone and x.shape[d] == 1)]
    trace.set(call.out, kept)


def _asked(trace: Trace, out: Tensor) -> list[int | None]:
    """The size that the model's code passed for each dimension of `out`; -1 where it passed none."""
    return trace.asked if trace.asked is not None and len(trace.asked) == out.dim() else [-1] * out.dim()


@rule("expand")
def expand(trace: Trace, call: Call) -> None:
    x, out = call.args[0], call.out
    labels: Labels = [*[None] * (out.dim() - x.dim()), *trace.labels(x)]
    labels = [ids if ids is not None and len(ids) == n else None for ids, n in zip(labels, out.shape, strict=True)]
    asked = _asked(trace, out)
    for ids, size in zip(labels, asked, strict=True):
        if ids is not None:
            trace.demand(ids, size)
    trace.set(out, labels)
    sizes = [1] * (out.dim() - x.dim()) + list(x.shape)
    trace.expand(out, {d - out.dim(): asked[d] for d, size in enumerate(sizes) if size == 1 < out.shape[d]})


@rule("repeat")
def repeat(trace: Trace, call: Call) -> None:
    x, times = call.args[:2]
    labels: Labels = [*[None] * (call.out.dim() - x.dim()), *trace.labels(x)]
    trace.set(call.out, [None if ids is None else np.tile(ids, n) for ids, n in zip(labels, times, strict=True)])


@rule("as_strided_")
def restride(trace: Trace, call: Call) -> None:
    """A new memory layout of the same shape (channels last)."""
    if tuple(call.args[1]) != tuple(call.args[0].shape):
        return unknown(trace, call)
    trace.set(call.out, trace.labels(call.args[0]))


@rule("roll", "flip")
def rearrange(trace: Trace, call: Call) -> None:
    """Allowed within untracked dimensions only: it would reorder channels."""
    x = call.args[0]
    labels = trace.labels(x)
    dims = call.arg(2, "dims", []) if call.name.startswith("aten.roll") else call.args[1]
    for dim in dims or range(x.dim()):
        trace.freeze(labels[dim], "the model rolls or flips it")
    trace.set(call.out, labels)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(trace: Trace, call: Call) -> None:
    """r x r consecutive channels become one channel of a larger plane; unshuffle turns one into r x r."""
    x, factor = call.args[:2]
    labels = trace.labels(x)
    for place in labels[-2:]:
        trace.freeze(place, "it is used as a spatial dimension")
    ids = labels[-3]
    if ids is not None:
        unshuffle = "unshuffle" in call.name
        ids = ids.repeat(factor**2) if unshuffle else trace.alike(ids.reshape(-1, factor**2).T)  # [r * r, channels]
    trace.set(call.out, [*labels[:-3], ids, None, None])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(trace: Trace, call: Call) -> None:
    """The channels of all groups are interleaved, so index j of all groups is coupled."""
    x, groups = call.args[:2]
    labels = trace.labels(x)
    if labels[1] is not None:
        labels[1] = trace.alike(labels[1].reshape(groups, -1)).repeat(groups)  # [groups, channels of each]
    trace.set(call.out, labels)


@rule("index", "embedding", "index_select")
def index(trace: Trace, call: Call) -> None:
    """Entries selected by index: the indexed dimensions are frozen, the others keep their labels."""
    x = call.args[0]
    labels = trace.labels(x)
    if call.name.startswith("aten.index.Tensor"):
        indices = [*call.args[1], *[None] * (x.dim() - len(call.args[1]))]
        dims = [d for d, places in enumerate(indices) if places is not None]
        if any(places.dtype == torch.bool for places in indices if places is not None):
            return unknown(trace, call)
        width = max(indices[d].dim() for d in dims)
    else:
        dims = [_normal(call.args[1], x.dim())] if call.name.startswith("aten.index_select") else [0]
        width = call.args[-1 if "select" in call.name else 1].dim()
    for dim in dims:
        trace.freeze(labels[dim], "the model selects its entries by index")
    together = dims == list(range(dims[0], dims[-1] + 1))  # else the indexed dimensions come first in the result
    kept = [ids for d, ids in enumerate(labels) if d not in dims]
    at = dims[0] if together else 0
    trace.set(call.out, [*kept[:at], *[None] * width, *kept[at:]])


@rule("index_put", "index_put_")
def index_put(trace: Trace, call: Call) -> None:
    """Rows of a tensor, selected along its first dimension, are replaced by others with the same channels."""
    x, indices, values = call.args[:3]
    if len(indices) != 1 or indices[0] is None or values.dim() != x.dim():
        return unknown(trace, call)
    labels, others = trace.labels(x), trace.labels(values)
    for ids in (labels[0], others[0]):
        trace.freeze(ids, "the model selects its entries by index")
    own = trace.carries(x)  # else it is a new tensor that is filled with these
    rest = [
        trace.join(a, b, "it is written into a tensor of other values") if own else b
        for a, b in zip(labels[1:], others[1:], strict=True)
    ]
    trace.set(x, [None, *rest])
    trace.set(call.out, [None, *rest])


@rule("index_copy")
def index_copy(trace: Trace, call: Call) -> None:
    """Values that are copied to fixed indices keep their width; this includes layers that were pruned with `scatter` before."""
    for tensor in call.inputs:
        trace.freeze_all(tensor, "the model copies it to fixed indices of a wider tensor")


@rule("constant_pad_nd")
def pad(trace: Trace, call: Call) -> None:
    """Padding adds constants: the amounts in the model's code do not change."""
    x, amounts = call.args[:2]
    labels = trace.labels(x)
    for i in range(len(amounts) // 2):
        dim, before, after = x.dim() - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        ids = labels[dim]
        if ids is not None:
            if before < 0 or after < 0:
                trace.freeze(ids, "the model crops it by a fixed amount")
            ids = ids[max(0, -before) : len(ids) - max(0, -after)]
            labels[dim] = np.concatenate([np.zeros(max(0, before), np.int64), ids, np.zeros(max(0, after), np.int64)])
    trace.set(call.out, labels)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(trace: Trace, call: Call) -> None:
    """Dimensions are merged and split; each keeps at most one tracked axis."""
    x, out = call.args[0], call.out
    labels = trace.labels(x)
    if not any(ids is not None for ids in labels):
        return trace.set(out, [None] * out.dim())
    if x.dim() > 3 and trace.tensor_name(x):  # the weights of a convolution before weight standardisation
        for kernel in labels[2:]:
            trace.freeze(kernel, "it is a kernel dimension")
        labels[2:] = [None] * (x.dim() - 2)
    asked = _asked(trace, out)
    new: Labels = [None] * out.dim()
    for olds, news in _blocks(x.shape, out.shape):
        merged = _merge(trace, [labels[d] for d in olds], [x.shape[d] for d in olds])
        parts = _separate(trace, merged, [out.shape[d] for d in news])
        heads = next((ids for ids in parts[:-1] if ids is not None), None)
        for dim, ids in zip(news, parts, strict=True):
            new[dim] = ids
            if ids is None:
                trace.pin(asked[dim], heads)
            else:
                trace.demand(ids, asked[dim])
    trace.set(out, new)


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of old and new dimensions with equal products; dimensions of size 1 belong to none."""
    blocks = []
    i = j = 0
    olds = [d for d, size in enumerate(old) if size != 1]
    news = [d for d, size in enumerate(new) if size != 1]
    while i < len(olds):
        a, b = [olds[i]], [news[j]]
        size_a, size_b = old[olds[i]], new[news[j]]
        i, j = i + 1, j + 1
        while size_a != size_b:
            if size_a < size_b:
                a.append(olds[i])
                size_a *= old[olds[i]]
                i += 1
            else:
                b.append(news[j])
                size_b *= new[news[j]]
                j += 1
        blocks.append((a, b))
    return blocks


def _merge(trace: Trace, labels: Labels, sizes: Sequence[int]) -> Ids | None:
    """Flatten several dimensions into one: each flat index has the id of its index along the one tracked dimension."""
    tracked = [d for d, ids in enumerate(labels) if ids is not None]
    if len(tracked) > 1:
        for d in tracked:
            trace.freeze(labels[d], "two channel dimensions are flattened into one")
        return np.zeros(math.prod(sizes), np.int64)
    if not tracked:
        return None
    (d,) = tracked
    ids = labels[d]
    assert ids is not None
    return np.tile(ids.repeat(math.prod(sizes[d + 1 :])), math.prod(sizes[:d]))


def _separate(trace: Trace, ids: Ids | None, sizes: Sequence[int]) -> Labels:
    """Split one dimension into several: the last axis along which ids differ stays tracked, and its copies are coupled.

    Where whole attention heads are pruned, it is the axis before that.
    """
    labels: Labels = [None] * len(sizes)
    if ids is None:
        return labels
    cube = ids.reshape(tuple(sizes))
    varies = [d for d in range(len(sizes)) if np.any(cube != cube.take([0], axis=d))]
    if len(varies) < 2:
        axis = varies[0] if varies else 0
        labels[axis] = np.moveaxis(cube, axis, -1).reshape(-1, sizes[axis])[0]
        return labels
    axis = varies[-2] if len(trace.splits) in trace.whole else varies[-1]
    labels[axis] = tracked = trace.alike(np.moveaxis(cube, axis, -1).reshape(-1, sizes[axis]))
    trace.splits.append(tracked)
    return labels


# Space and reductions -------------------------------------------------------------------------------------------------


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
      "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool2d", "adaptive_avg_pool1d", "adaptive_max_pool2d",
      "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
      "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
      "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
      "replication_pad1d", "replication_pad2d", "replication_pad3d", "grid_sampler_2d")  # fmt: skip
def space(trace: Trace, call: Call) -> None:
    """Spatial operators, which treat each channel separately."""
    x = call.args[0]
    labels = trace.labels(x)
    space_dims = 3 if "3d" in call.name else 1 if "1d" in call.name else 2
    for ids in labels[x.dim() - space_dims :]:
        trace.freeze(ids, "it is used as a spatial dimension")
    for out in _outputs(call):
        trace.set(out, labels[: x.dim() - space_dims] + [None] * space_dims)


@rule("torchvision.roi_align", "torchvision.roi_pool")
def regions(trace: Trace, call: Call) -> None:
    """Regions selected by boxes, for each channel separately."""
    x, boxes = call.args[:2]
    trace.freeze_all(boxes, "it holds box coordinates")
    trace.set(_outputs(call)[0], [None, trace.labels(x)[1], None, None])


def _reduced(call: Call, dims: int) -> set[int]:
    dim = call.arg(2 if "norm" in call.name else 1, "dim")  # a norm's second argument is its order
    if dim is None or dim == []:
        return set(range(dims))
    return {_normal(d, dims) for d in ([dim] if isinstance(dim, int) else dim)}


@rule("mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "std", "var", "var_mean", "std_mean",
      "linalg_vector_norm", "norm", "logsumexp", "any", "all")  # fmt: skip
def reduce(trace: Trace, call: Call) -> None:
    """Reduced dimensions are dropped. A channel of zeros changes neither a sum nor a Euclidean norm, but other reductions."""
    x = call.args[0]
    labels = trace.labels(x)
    if isinstance(call.arg(1, "dim"), Tensor):
        return elementwise(trace, call)
    gone = _reduced(call, x.dim())
    operator = call.name.split(".")[1]
    for dim in gone:
        if operator not in ("sum", "linalg_vector_norm", "norm"):
            trace.freeze(labels[dim], f"the model takes its {operator} over channels")
    for out in _outputs(call):
        if out.dim() == x.dim():
            trace.set(out, [None if d in gone else ids for d, ids in enumerate(labels)])
        else:
            trace.set(out, [ids for d, ids in enumerate(labels) if d not in gone])


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "cumsum", "cumprod", "sort", "topk")
def along(trace: Trace, call: Call) -> None:
    """Operators that mix the indices of one dimension."""
    x = call.args[0]
    labels = trace.labels(x)
    dim = _normal(call.arg(2 if "topk" in call.name else 1, "dim", -1), x.dim())
    trace.freeze(labels[dim], f"the model takes a {call.name.split('.')[1].strip('_')} over channels")
    for out in _outputs(call):
        trace.set(out, [None if d == dim else ids for d, ids in enumerate(labels)])


@rule("empty", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "new_empty", "sym_size", "sym_stride")
def fresh(trace: Trace, call: Call) -> None:
    """A new tensor that takes only its type from another."""
    for out in _outputs(call):
        trace.set(out, [None] * out.dim())
