"""The proof of a factored network: it answers as the one whose layers have the chains' weights multiplied out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from compressor.methods.lowrank.decompositions import Layer
from compressor.methods.lowrank.factorable import Shape
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.outputs import tensors_in
from compressor.network.replacements import replaced

TOLERANCE = 1e-5  # as of a cut: largest difference over largest output


def difference(
    model: nn.Module,
    chains: Mapping[str, nn.Sequential],
    dense: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[Shape]],
    inputs: AnyInputs,
    copies: Mapping[str, Tensor] | None = None,
) -> float:
    """Largest difference between `model` with `chains` and with the `dense` weights they stand for, over the largest output.

    `copies` tells of layers that are not computed everywhere: for each place of the output plane, line by line, the number of
    that which it copies [height * width].
    On two random samples, in float64 where the model's own code allows it; and of each chain alone, with the `shapes` that it
    reads: a network may hide what a layer gives, as untrained ones do.
    """
    multiplied = copy.deepcopy(model).double()
    for name, weight in dense.items():
        layer, last = multiplied.get_submodule(name), [part for part in chains[name] if isinstance(part, Layer)][-1]
        assert isinstance(layer, Layer)
        layer.weight = nn.Parameter(weight.double())
        layer.bias = None if last.bias is None else nn.Parameter(last.bias.detach().double())
        if copies and name in copies:
            layer.register_forward_hook(partial(_copied, copies[name]))
    apart = [gap_between(chains[name], multiplied.get_submodule(name), shape[1:]) for name in dense for shape in shapes[name]]
    return max(gap_between(multiplied, replaced(copy.deepcopy(model), copy.deepcopy(dict(chains))), inputs), *apart)


def _copied(places: Tensor, layer: nn.Module, args: object, out: Tensor) -> Tensor:
    return out.flatten(2)[:, :, places].reshape(out.shape)


def gap_between(model: nn.Module, other: nn.Module, inputs: AnyInputs) -> float:
    """Largest difference between what two networks answer to two random samples, over the largest output.

    In float64 where the networks' own code allows it. They are copied.
    """
    model, other, inputs = copy.deepcopy(model).eval(), copy.deepcopy(other).eval(), Inputs.of(inputs)
    try:
        return _gap(model.double(), other.double(), inputs)
    except RuntimeError as error:
        if "type" not in str(error):
            raise
        return _gap(model.float(), other.float(), inputs)  # they make float32 values of their own


def _gap(model: nn.Module, other: nn.Module, inputs: Inputs) -> float:
    samples = inputs.random(2, like=model)
    with torch.no_grad():
        answers = [tensors_in(inputs.call(network, samples)) for network in (model, other)]
    pairs = [(a, b) for a, b in zip(*answers, strict=True) if a.is_floating_point() and a.numel()]
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0)
