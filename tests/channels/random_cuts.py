"""Helpers for the tests of channels: prune a network at random, and check everything that must hold afterwards."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from compressor.channels import Channels, Mask, Residual, Verified, analyse, mask, remove
from compressor.channels.trace import plain_attention
from compressor.network.outputs import tensors_in

EXACT = 1e-10  # of float64 arithmetic, relative to the difference between the outputs of two images
ROUNDING = 1e-3  # of float32 arithmetic, likewise, in networks of up to two hundred layers


def liven(model: nn.Module) -> nn.Module:
    """Random weights that keep the size of signals when half of them are pruned, and random norms. In eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            inputs = parameter[0].numel() if parameter.dim() > 1 else 25
            parameter.normal_(0, (4 / inputs) ** 0.5, generator=generator)
        for module in model.modules():
            if isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5, generator=generator)
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def at_random(share: float = 0.5, seed: int = 0) -> Callable[[Channels], Mask]:
    """A choice that prunes `share` of the channels of every group, rounded down."""

    def choose(channels: Channels) -> Mask:
        generator = np.random.default_rng(seed)
        parts = [generator.permutation(group.size) >= int(group.size * share) for group in channels.groups]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    return choose


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    with torch.no_grad(), plain_attention(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape).to(next(model.parameters())))
    return counter.get_total_flops() // 2


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def apart(model: nn.Module, other: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Largest difference between the outputs of two networks, relative to that between the outputs of two images."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    worst = 0.0
    for mine, theirs in zip(answers(model.to(dtype), images), answers(other.to(dtype), images), strict=True):
        assert mine.shape == theirs.shape
        worst = max(worst, float((mine - theirs).abs().max() / (theirs[0] - theirs[1]).abs().max()))
    return worst


def lively(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the outputs depend on the image by more than a thousandth: else a comparison would test nothing."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()))
    return all((out[0] - out[1]).abs().max() > 1e-3 * out.abs().max() for out in answers(model, images))


def answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(model(images))


def check(model: nn.Module, verified: Verified, shape: tuple[int, ...]) -> None:
    """The pruned network must equal the masked `model`, and its cost must equal that of the table."""
    small = verified.model
    assert not verified.channels.held, "the rules allowed a cut that breaks the model"
    assert verified.difference <= EXACT
    assert verified.channels.macs.total(verified.mask) == macs(small, shape)
    assert verified.channels.params.total(verified.mask) == params(small)
    own_width = nn.LayerNorm | nn.GroupNorm | nn.MultiheadAttention  # these depend on their number of channels
    if not any(isinstance(module, own_width) for module in model.modules()):
        large = mask(model, verified.cut)
        assert apart(small, large, shape, torch.float32) <= ROUNDING
        assert apart(small, large, shape, torch.float64) <= EXACT
        small.float()


def cut_and_check(
    model: nn.Module, shape: tuple[int, ...] = (3, 8, 8), *, channels: Channels | None = None, residual: Residual = "coupled"
) -> Verified:
    """Prune half of every group of `model` with random weights, and check the result."""
    channels = channels or analyse(liven(model), shape, residual)
    verified = remove(model, channels, at_random(), shape)
    assert not verified.mask.all(), "nothing was cut"
    assert lively(verified.model, shape)
    check(model, verified, shape)
    return verified
