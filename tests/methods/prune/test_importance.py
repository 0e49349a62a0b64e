"""Gates, first-order terms and savings, compared with autograd and the cost tables."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import SHAPE, Random, Toy, batches, job

from compressor.methods.prune.importance import first_order, gates, gather, savings
from compressor.tasks.classify import Classify
from compressor.training.objective import Objective


def plain() -> nn.Sequential:
    """Two gates between two convolutions, without norms."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def slopes(model: nn.Module, residual: str = "coupled") -> dict[str, Tensor]:
    """dL/dm by group, from one batch."""
    task = job("macs=50%", model, residual=residual)
    (terms,) = first_order(model, task.objective, batches(1))
    found = task.channels.split(gather(task.channels, terms, gates(task.channels)))
    return {name: torch.from_numpy(own) for name, own in found.items()}


def by_autograd(model: nn.Module, module: nn.Module, width: int) -> Tensor:
    """dL/dm of a gate m that multiplies the output of `module`."""
    gate = torch.ones(width, requires_grad=True)
    hook = module.register_forward_hook(lambda module, args, output: output * gate.view(-1, 1, 1))
    (batch,) = batches(1)
    (loss,) = Classify().loss(model.eval()(batch.inputs), batch).values()
    hook.remove()
    return torch.autograd.grad(loss, gate)[0].double()


def test_a_gate_multiplies_what_is_read() -> None:
    model = plain()
    assert slopes(model)["0"].numpy() == pytest.approx(by_autograd(model, model[1], 4).numpy(), rel=1e-3, abs=1e-6)


def test_it_is_the_same_as_to_take_out_a_filter_with_its_bias() -> None:
    """After a ReLU, whose output is proportional to the filter: the sum of W dL/dW and b dL/db of Lin et al."""
    model = plain()
    (terms,) = first_order(model, Objective(Classify()), batches(1))
    made = terms["0.weight"].sum((1, 2, 3)) + terms["0.bias"]
    assert slopes(model)["0"].numpy() == pytest.approx(made.numpy(), rel=1e-3, abs=1e-6)


def test_a_stream_has_one_gate_and_a_scattered_layer_its_own() -> None:
    model = Toy()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    stage = model.stages[0]
    coupled, scattered = slopes(model), slopes(model, "scatter")
    assert coupled["stages.0.conv2"].numpy() == pytest.approx(by_autograd(model, stage, 8).numpy(), rel=1e-3, abs=1e-6)
    behind_norm = by_autograd(model, stage.bn2, 8)
    assert scattered["stages.0.conv2"].numpy() == pytest.approx(behind_norm.numpy(), rel=1e-3, abs=1e-6)
    no_norm = by_autograd(model, stage.shortcut, 8)
    assert scattered["stages.0.shortcut"].numpy() == pytest.approx(no_norm.numpy(), rel=1e-3, abs=1e-6)


def test_looking_changes_nothing() -> None:
    model = nn.Sequential(Toy(), nn.Dropout(0.5)).train()
    model[0].stages[1].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    looks = [list(first_order(model, Objective(Classify()), Random().batches("train", batch_size=8))) for _ in range(2)]
    assert len(looks[0]) == 2 and torch.equal(state, torch.get_rng_state())
    for one, other in zip(*looks, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model[0].stages[0].training and not model[0].stages[1].bn1.training


def test_savings_are_what_the_filter_and_its_readers_cost() -> None:
    channels = job("macs=50%", plain()).channels
    weights = 3 * 3 * 3 + 1 + 5 * 3 * 3
    assert savings(channels, channels.params).tolist() == [weights] * 4
    side = SHAPE[1] - 2
    assert savings(channels, channels.macs) == pytest.approx(np.full(4, 27 * side**2 + 45 * (side - 2) ** 2))
