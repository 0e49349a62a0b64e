"""AHBF-OKD: assistants and loss terms in numbers, the depth of branches, and the ramp."""

import copy
from math import exp

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import Toy, batches, job, optimizer, train

from compressor.errors import UsageError
from compressor.methods.distill.papers.ahbf import AHBF, ramp
from compressor.tasks.likeness import softened
from compressor.training.method import Progress


def test_the_ramp_ends_after_240_epochs() -> None:
    assert ramp(0) == pytest.approx(0.75 * exp(-5))
    assert ramp(120) == pytest.approx(0.75 * exp(-5 / 4))
    assert ramp(240) == ramp(299) == 0.75


def test_each_assistant_is_fused_from_the_one_before_and_a_branch() -> None:
    method, (batch,) = AHBF(job("macs=50%"), branches=3).eval(), batches(1)
    answers = method.answers(batch.inputs)
    u = method.assistants(answers)
    assert len(u) - 1 == len(method.others) == 2 and torch.equal(u[0], method.model(batch.inputs))
    fused = answers[0].features[-1]  # [n, 16, 2, 2]
    for m, (mix, gate) in enumerate(zip(method.mixers, method.gates, strict=True), start=1):
        joined = torch.cat([fused, answers[m].features[-1]], 1)
        fused = mix[1](F.conv2d(joined, mix[0].weight[..., None], mix[0].bias).flatten(2)).unflatten(2, (2, 2))
        shares = F.relu(gate[1](gate[0](fused.mean((2, 3))))).softmax(1)
        torch.testing.assert_close(u[m], shares[:, :1] * u[m - 1] + shares[:, 1:] * answers[m].logits)


def test_each_term_by_hand() -> None:
    settings = {"cross_entropy": 2.0, "fused": 0.5, "assistant": 3.0, "branch": 0.25}
    method, (batch,) = AHBF(job("macs=50%"), branches=3, **settings).eval(), batches(1)
    method.begin_epoch(Progress(120, 300))
    terms = method.loss(batch)
    answers = method.answers(batch.inputs)
    z, u, r = [answer.logits for answer in answers], method.assistants(answers), 0.75 * exp(-5 / 4)
    down = softened(u[0], u[1], 3.0) + softened(u[1], u[2], 3.0)
    own = softened(z[1], u[1], 3.0) + softened(z[2], u[2], 3.0)
    wanted = {
        "cross_entropy": 2.0 * sum(F.cross_entropy(logits, batch.targets) for logits in z),
        "fused": 0.5 * sum(F.cross_entropy(logits, batch.targets) for logits in u[1:]),
        "assistant": 3.0 * r * (down + own),
        "branch": 0.25 * r * (softened(u[0], z[1], 3.0) + softened(u[1], z[2], 3.0)),
    }
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value)
        off = {**dict.fromkeys(settings, 0.0), name: 1.0}
        assert list(AHBF(job("macs=50%"), branches=2, **off).loss(batch)) == [name]


def test_branches_that_agree_have_nothing_to_teach() -> None:
    method, (batch,) = AHBF(job("macs=50%")), batches(1)
    heads = [method.model.head, *(other.rest.network.head for other in method.others)]
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    terms = method.loss(batch)
    assert len(heads) == 4
    assert terms["assistant"].item() == pytest.approx(0, abs=1e-6) and terms["branch"].item() == pytest.approx(0, abs=1e-6)


def test_who_teaches_can_stand_still() -> None:
    """In the term `branch`, the last branch is only a teacher."""
    (batch,) = batches(1)
    off = {"cross_entropy": 0.0, "fused": 0.0, "assistant": 0.0}
    for detached in (False, True):
        method = AHBF(job("macs=50%"), branches=2, detach_teacher=detached, **off)
        sum(method.loss(batch).values()).backward()
        assert method.model.head.weight.grad is not None
        assert all((parameter.grad is None) == detached for parameter in method.others.parameters())


class Blocks(nn.Sequential):
    """[n, 3, 12, 12] -> logits [n, 5]; the last of two stages ends in a block that can be repeated."""

    def __init__(self) -> None:
        last = [nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))]
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(*last), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        )


def test_branches_get_deeper() -> None:
    method = AHBF(job("macs=50%", Blocks()), blocks=2)
    assert [len(branch.more) for branch in method.others] == [2, 4, 6]
    assert all(isinstance(block[0], nn.Conv2d) and block[0].kernel_size == (3, 3) for block in method.others[0].more)
    assert [len(branch.more) for branch in AHBF(job("macs=50%"), blocks=0).others] == [0, 0, 0]
    with pytest.raises(UsageError, match="--set blocks=-1"):
        AHBF(job("macs=50%"), blocks=-1)


def test_what_is_kept_is_the_bare_network() -> None:
    task = job("macs=50%")
    method = AHBF(task)
    train(method, optimizer(method, lr=0.01), range(1), 1)
    small = method.finish()
    assert type(small) is Toy and list(small.state_dict()) == list(task.model.state_dict())
    again = AHBF(task)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    assert all(torch.equal(value, again.finish().state_dict()[name]) for name, value in small.state_dict().items())
