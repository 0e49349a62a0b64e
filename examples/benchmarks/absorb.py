"""Data-free bias correction of a pruned network, measured by recovery.py: it recovers less than a few hundred images do.

    absorb(original, small, cut, inputs)

It absorbs the mean of each pruned channel into the next layer, as in Nagel, van Baalen, Blankevoort, Welling: "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv 1906.04721 (section 4.2.1): the output of a
batch norm has mean `bias` and standard deviation `|weight|`. The effect of the activations after it is not derived but
sampled, with normal noise in place of the output of each batch norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.channels import Cut
from compressor.network.inputs import AnyInputs, Inputs
from compressor.recovery.forward_passes import (
    Layer,
    Pass,
    Source,
    groups_of,
    kept_places,
    layer_of,
    norm_of,
    plain_layers,
    table_of,
    that_lost_inputs,
)
from compressor.recovery.repair import NOT_PLAIN, Repaired

NOISE = 32  # samples of noise


def absorb(original: nn.Module, small: nn.Module, cut: Cut, inputs: AnyInputs) -> Repaired:
    """Add the mean contribution of pruned channels to the bias of their consumers, or subtract it from a running mean.

    `small` is `original` after `cut`. Changed biases and means are computed from those of the original, so that a second call
    changes nothing. Zero padding of convolutions is not taken into account.
    """
    inputs, lost = Inputs.of(inputs), that_lost_inputs(small, cut)
    listening = _Listening(original, [name for name in plain_layers(small) if name in lost])
    listening.run(inputs, inputs.random(NOISE, like=original))
    done, left = [], {}
    for name in lost:
        norm, mean = listening.norms.get(name), listening.means.get(name)
        if name not in listening.layers:
            left[name] = NOT_PLAIN
        elif any(listening.calls[each] != 1 for each in (name, norm) if each):
            left[name] = "it is not called exactly once"
        elif mean is None:
            left[name] = "no batch norm comes before it"
        elif not _absorb(name, norm, mean, original, small, cut):
            left[name] = "it has no bias, and no batch norm follows it"
        else:
            done.append(name)
    return Repaired([name for name in listening.means if name in done], left)


def _absorb(name: str, norm: str | None, mean: Tensor, original: nn.Module, small: nn.Module, cut: Cut) -> bool:
    """Whether the layer `name` has a bias or batch norm to correct; `mean` [channels] is that of its original input."""
    now, before = layer_of(small, name), layer_of(original, name)
    reads, gives = (kept_places(cut, name, dim, before.weight.shape[dim]).to(mean.device) for dim in (1, 0))
    gone = _given(before, mean, reads)[gives]  # [channels]
    if now.bias is not None and before.bias is not None:
        now.bias.detach().copy_(before.bias[gives] + gone)
    elif norm is not None:
        means, old = norm_of(small, norm).running_mean, norm_of(original, norm).running_mean
        assert means is not None and old is not None
        means.copy_(old[gives] - gone)
    return now.bias is not None or norm is not None


class _Listening(Pass):
    """A forward pass of the original with noise as the output of batch norms: the mean of each input channel of a layer."""

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
            self.means[name] = table_of(layer, x).double().mean(0)

    def normed(self, made: Source, norm: str) -> None:
        self.norms[made.layer] = norm


def _given(layer: Layer, mean: Tensor, stays: Tensor) -> Tensor:
    """The mean contribution of the pruned inputs of each group [outputs]."""
    outputs, inputs = layer.weight.shape[:2]
    groups = groups_of(layer)
    weight = layer.weight.detach().double().reshape(outputs, inputs, -1).sum(2)
    gone = weight.index_fill(1, stays, 0).reshape(groups, outputs // groups, inputs)
    return torch.einsum("goi,gi->go", gone, mean.reshape(groups, inputs)).flatten()
