"""Frozen teachers, weighted loss terms, and peers."""

import copy

import pytest
import torch
from torch import nn
from toy import SHAPE, Toy, batches, job

from compressor.errors import UsageError
from compressor.methods.distill.teaching import Branched, Distillation, Frozen, Teacher, ordered_pairs


def test_a_frozen_network_is_found_by_nobody_and_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    owner = nn.Sequential(nn.Linear(2, 2), Frozen(network))
    owner.train()
    before = copy.deepcopy(network.state_dict())
    (batch,) = batches(1)
    answer = owner[1](batch.inputs)
    assert not answer.requires_grad and not answer.is_inference()
    assert not network.training and len(list(owner.parameters())) == len(owner.state_dict()) == 2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert owner.double()[1].network[0].weight.dtype == torch.float64, "it moves with its owner"


def test_answers_in_lists_can_be_used_in_a_loss() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x * 2, x * 3]

    weight = torch.ones(2, requires_grad=True)
    (weight * Frozen(Two())(torch.ones(2))[1]).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [3, 3]


def test_a_teacher_answers_once_where_images_stay() -> None:
    (batch,) = batches(1)
    for stay, calls in ((True, 3), (False, 2)):  # two calls check that outputs do not depend on the batch
        teacher = Teacher(job("macs=50%", teacher=Toy(), images_stay=stay))
        first, again = teacher.logits(batch), teacher.logits(batch)
        torch.testing.assert_close(first, again)
        assert (teacher.calls, teacher.keeps) == (calls, stay)


def test_a_teacher_tells_how_long_it_takes() -> None:
    teacher = Teacher(job("macs=50%", teacher=Toy()))
    (batch,) = batches(1)
    assert teacher.seconds is None
    for _ in range(5):
        teacher.ask(batch.inputs)
    assert teacher.seconds is not None and teacher.seconds > 0


def test_terms_that_weigh_nothing_are_not_computed() -> None:
    method = Distillation(job("macs=50%"), {"one": 2.0, "none": 0.0})

    def never() -> torch.Tensor:
        raise AssertionError("computed")

    assert method.weigh({"one": lambda: torch.tensor(1.5), "none": never}) == {"one": torch.tensor(3.0)}


@pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": float("nan")}, {"a": 0.0, "b": 0.0}])
def test_weights_that_make_no_sense_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"weight|off"):
        Distillation(job("macs=50%"), weights)


def test_peers_of_a_trained_network_begin_near_it() -> None:
    for trained in (True, False):
        method = Distillation(job("macs=50%", trained=trained), {"a": 1.0})
        peers = method.copies(2)
        away = [(peer.head.weight - method.model.head.weight).abs().max().item() for peer in peers]
        assert all(0 < far < 0.1 for far in away) if trained else all(far > 0.1 for far in away)
        assert not torch.equal(peers[0].head.weight, peers[1].head.weight)


def test_branches_share_what_comes_before() -> None:
    method = Branched(job("macs=50%"), {"a": 1.0}, branches=3, share=2)
    (batch,) = batches(1)
    answers = method.answers(batch.inputs)
    assert len(answers) == 3 and all(answer.logits.shape == (8, 5) for answer in answers)
    answers[2].logits.sum().backward()
    assert method.model.stem.weight.grad is not None and method.model.head.weight.grad is None


@pytest.mark.parametrize("share", [-1, 4])
def test_as_many_stages_are_shared_as_there_are(share: int) -> None:
    with pytest.raises(UsageError, match=f"share={share}"):
        Branched(job("macs=50%"), {"a": 1.0}, branches=2, share=share)


def test_taps_are_matched_from_the_deepest() -> None:
    method = Distillation(job("macs=50%", teacher=Toy(), taps=("stages.1", "stages.2")), {"a": 1.0})
    ours, theirs = method.student.taps, method.taught().anatomy.taps
    assert [(ours[s], theirs[t]) for s, t in method.pairs()] == [("stages.1", "stages.1"), ("stages.2", "stages")]
    assert ordered_pairs(2) == [(0, 1), (1, 0)] and SHAPE == (3, 12, 12)
