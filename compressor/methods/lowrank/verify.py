"""Verification of a factored network against its dense equivalent, whose weights are the products of the factors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from compressor.methods.lowrank.decompositions import Layer
from compressor.methods.lowrank.factorable import Shape
from compressor.network.copying import clone_network
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import without_tf32
from compressor.network.outputs import tensors_in
from compressor.network.replacements import replaced

TOLERANCE = 1e-5  # as for pruning: largest difference relative to the largest output


def difference(
    model: nn.Module,
    chains: Mapping[str, nn.Sequential],
    dense: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[Shape]],
    inputs: AnyInputs,
    copies: Mapping[str, Tensor] | None = None,
) -> float:
    """Largest difference between `model` with `chains` and with their `dense` weights, relative to the largest output.

    `copies` is for perforated layers: for each position of the output plane, in row-major order, the index of the position that
    it copies [height * width].
    Compared on two random samples, in float64 if the model's code allows it; and for each chain alone, on inputs of `shapes`,
    because a difference in one layer may not reach the output of the network.
    """
    multiplied = clone_network(model).double()
    for name, weight in dense.items():
        layer, last = multiplied.get_submodule(name), [part for part in chains[name] if isinstance(part, Layer)][-1]
        assert isinstance(layer, Layer)
        layer.weight = nn.Parameter(weight.double())
        layer.bias = None if last.bias is None else nn.Parameter(last.bias.detach().double())
        if copies and name in copies:
            layer.register_forward_hook(partial(_copied, copies[name]))
    apart = [gap_between(chains[name], multiplied.get_submodule(name), shape[1:]) for name in dense for shape in shapes[name]]
    return max(gap_between(multiplied, replaced(clone_network(model), copy.deepcopy(dict(chains))), inputs), *apart)


def _copied(places: Tensor, layer: nn.Module, args: object, out: Tensor) -> Tensor:
    return out.flatten(2)[:, :, places].reshape(out.shape)


def gap_between(model: nn.Module, other: nn.Module, inputs: AnyInputs) -> float:
    """Largest difference between the outputs of two networks on two random samples, relative to the largest output.

    In float64 if the networks' code allows it. The networks are copied.
    """
    model, other, inputs = clone_network(model).eval(), clone_network(other).eval(), Inputs.of(inputs)
    try:
        return _gap(model.double(), other.double(), inputs)
    except RuntimeError as error:
        if "type" not in str(error):
            raise
        return _gap(model.float(), other.float(), inputs)  # their code creates float32 tensors


def _gap(model: nn.Module, other: nn.Module, inputs: Inputs) -> float:
    samples = inputs.random(2, like=model)
    with torch.no_grad(), without_tf32():
        answers = [tensors_in(inputs.call(network, samples)) for network in (model, other)]
    pairs = [(a, b) for a, b in zip(*answers, strict=True) if a.is_floating_point() and a.numel()]
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0)
