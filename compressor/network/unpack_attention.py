"""Split layers that hold the queries, keys and values of attention in one weight, as the three have different ranks.

    nn.MultiheadAttention                     -> Attention: q, k, v and out_proj, each a linear layer
    a linear layer to three times its inputs  -> Apart: three linear layers, concatenated (in attention only)

The outputs of the network do not change. The caller merges a split layer again if none of its parts was factored.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import meta_copy, separate_attention
from compressor.network.replacements import Apart, Attention

FUSED = re.compile(r"attention|attn|qkv|in_proj", re.IGNORECASE)  # in the names of attention layers
MASKS = ("key_padding_mask", "attn_mask", "is_causal")


def unpacked(model: nn.Module, inputs: AnyInputs) -> dict[str, nn.Module]:
    """Replacements, with the same weights, for the layers of `model` that hold queries, keys and values in one weight.

    `nn.MultiheadAttention` is not replaced if it is called with a mask, or if the model does not run on the `meta` device.
    """
    found: dict[str, nn.Module] = {}
    plain = _without_masks(model, Inputs.of(inputs))
    for name, module in model.named_modules():
        if name in plain and isinstance(module, nn.MultiheadAttention):
            found[name] = _attention(module)
        elif type(module) is nn.Linear and module.out_features == 3 * module.in_features and FUSED.search(name):
            found[name] = _three(module)
    return found


def _without_masks(model: nn.Module, inputs: Inputs) -> set[str]:
    """The plain `nn.MultiheadAttention` modules that are called without a mask."""
    masked: dict[str, bool] = {}

    def heard(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        more = [*args[3:4], *args[5:6], *(kwargs.get(mask) for mask in MASKS)]
        masked[name] = masked.get(name, False) or any(value is not None and value is not False for value in more)

    try:
        twin = meta_copy(model).eval()
        for name, module in twin.named_modules():
            if type(module) is nn.MultiheadAttention and _is_simple(module):
                module.register_forward_pre_hook(partial(heard, name), with_kwargs=True)
        with torch.no_grad(), separate_attention():
            inputs.call(twin, inputs.random(1, like=twin))
    except Exception:  # a network whose control flow depends on values
        return set()
    return {name for name, has_mask in masked.items() if not has_mask}


def _is_simple(module: nn.MultiheadAttention) -> bool:
    """Whether queries, keys and values have the same width and one common weight, without extras or hooks."""
    extras = module.bias_k is not None or module.add_zero_attn
    return module._qkv_same_embed_dim and not extras and not module._forward_hooks and not module._forward_pre_hooks


def _attention(module: nn.MultiheadAttention) -> Attention:
    bias = module.in_proj_bias
    whole = Attention(module.embed_dim, module.num_heads, bias is not None, module.batch_first, module.dropout)
    weights, biases = module.in_proj_weight.chunk(3), [None] * 3 if bias is None else bias.chunk(3)
    for layer, weight, shift in zip((whole.q, whole.k, whole.v), weights, biases, strict=True):
        _set(layer, weight, shift)
    _set(whole.out_proj, module.out_proj.weight, module.out_proj.bias)
    return whole.train(module.training)


def _three(module: nn.Linear) -> Apart:
    layers = [nn.Linear(module.in_features, module.in_features, bias=module.bias is not None) for _ in range(3)]
    biases = [None] * 3 if module.bias is None else module.bias.chunk(3)
    for layer, weight, bias in zip(layers, module.weight.chunk(3), biases, strict=True):
        _set(layer, weight, bias)
    return Apart(layers).train(module.training)


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
