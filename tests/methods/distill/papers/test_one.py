"""ONE: the gated ensemble and each term in numbers, where branches begin, and the network that is kept."""

import pytest
import torch
import torch.nn.functional as F
from toy import Toy, Wide, batches, job, optimizer, train

from compressor.errors import UsageError
from compressor.methods.distill.papers.one import ONE, ensemble
from compressor.methods.distill.taps import by_channel
from compressor.tasks.likeness import softened


def test_the_gate_weighs_logits_image_by_image() -> None:
    logits = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[1.0, 0.0], [3.0, 4.0]]])  # [2 images, 2 branches, 2 classes]
    shares = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert ensemble(shares, logits).tolist() == [[2, 2], [1, 0]]


def test_the_gate_reads_the_mean_of_each_channel_however_features_are_laid_out() -> None:
    maps = torch.randn(2, 6, 4, 4)
    means = maps.mean((2, 3))
    for features in (maps, maps.permute(0, 2, 3, 1), maps.flatten(2).transpose(1, 2), means):
        torch.testing.assert_close(by_channel(features).mean(2), means)


def test_each_term_by_hand() -> None:
    method, (batch,) = ONE(job("macs=50%"), cross_entropy=2.0, ensemble=0.5, distillation=0.25).eval(), batches(1)
    assert method.student.taps[method.shared] == "stages.1"
    terms = method.loss(batch)
    model, linear, norm = method.model, method.gate[0], method.gate[1]
    shared = model.stages[1](model.stages[0](F.relu(model.stem(batch.inputs))))  # [n, 16, 3, 3]
    logits = [model(batch.inputs), *(other(shared).logits for other in method.others)]
    assert len(logits) == 3
    g = F.relu(norm(linear(shared.mean((2, 3))))).softmax(1)  # [n, 3]
    mixed = sum(g[:, m, None] * z for m, z in enumerate(logits))
    wanted = {
        "cross_entropy": 2.0 * sum(F.cross_entropy(z, batch.targets) for z in logits),
        "ensemble": 0.5 * F.cross_entropy(mixed, batch.targets),
        "distillation": 0.25 * sum(softened(z, mixed, 3.0) for z in logits),
    }
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value)


def test_the_gate_learns_from_the_labels_alone() -> None:
    """As a teacher the ensemble is detached; all branches, and the layers they share, get gradients."""
    (batch,) = batches(1)
    for term, gate_learns in (("distillation", False), ("ensemble", True)):
        off = {"cross_entropy": 0.0, "ensemble": 0.0, "distillation": 0.0, term: 1.0}
        method = ONE(job("macs=50%"), **off)
        terms = method.loss(batch)
        assert list(terms) == [term]
        terms[term].backward()
        assert (method.gate[0].weight.grad is not None) == gate_learns
        learn = (method.model.stem, method.model.head, *method.others)
        assert all(p.grad is not None for module in learn for p in module.parameters())


def test_how_much_is_shared() -> None:
    for share, tap in ((1, "stem"), (2, "stages.0"), (0, "stages.1")):
        method = ONE(job("macs=50%"), share=share)
        assert method.student.taps[method.shared] == tap and len(method.others) == 2
    with pytest.raises(UsageError, match=r"--set share=4: of the stages stem, stages\.0, stages\.1, stages, 1 to 3 can"):
        ONE(job("macs=50%"), share=4)
    with pytest.raises(UsageError, match="was found: name two with --taps"):
        ONE(job("macs=50%", Wide()))
    with pytest.raises(UsageError, match="--set branches=1"):
        ONE(job("macs=50%"), branches=1)


def test_what_is_kept_is_the_bare_network() -> None:
    task = job("macs=50%")
    method = ONE(task)
    train(method, optimizer(method), range(1), 1)
    small = method.finish()
    assert type(small) is Toy and list(small.state_dict()) == list(task.model.state_dict())
    assert not torch.equal(small.stem.weight, task.model.stem.weight)
