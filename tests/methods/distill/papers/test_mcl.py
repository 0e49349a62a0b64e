"""MCL: its sums over networks and pairs of networks, distillation from the mean logits, and the network that is kept."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import Toy, batches, job, optimizer, train

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.distill.papers.mcl import MCL
from compressor.tasks.likeness import softened

TARGETS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])  # two images of each class


def twos() -> Batch:
    (batch,) = batches(1)
    return batch._replace(targets=TARGETS)


def distance(anchors: Tensor, keys: Tensor, tau: float = 0.1) -> float:
    """The mean of -log(exp(S_ij) / sum over k != i of exp(S_ik)), where j is the one other image of i's class."""
    similarities, found = (anchors @ keys.T / tau).double(), []
    for i in range(len(TARGETS)):
        j = i ^ 1
        found.append(sum(similarities[i, k].exp() for k in range(len(TARGETS)) if k != i).log() - similarities[i, j])
    return (sum(found) / len(found)).item()


def kl(student: Tensor, target: Tensor) -> float:
    """9 KL of rows softened by T = 3."""
    p, q = ((rows / 3).softmax(1) for rows in (target, student))
    return 9 * (p * (p / q).log()).sum(1).mean().item()


@pytest.mark.parametrize("peers", [2, 3])
def test_each_term_by_its_formula(peers: int) -> None:
    batch = twos()
    method = MCL(job("macs=50%"), peers=peers, kd=0.5).eval()
    networks = [method.model, *method.others]
    with torch.no_grad():
        terms = {name: term.item() for name, term in method.loss(batch).items()}
        answers = [method.student.ask(network, batch.inputs) for network in networks]
        e = [project(answer.embedding) for project, answer in zip(method.projectors, answers, strict=True)]
    s = {(m, n): e[m] @ e[n].T / 0.1 for m in range(peers) for n in range(peers)}
    pairs = list(permutations(range(peers), 2))
    wanted = {
        "cross_entropy": sum(F.cross_entropy(answer.logits, TARGETS).item() for answer in answers),
        "vcl": 0.1 * sum(distance(e[m], e[m]) for m in range(peers)),
        "soft_vcl": sum(kl(s[m, m], s[n, n]) for m, n in pairs),
        "icl": 0.1 * sum(distance(e[m], e[n]) for m, n in pairs),
        "soft_icl": sum(kl(s[m, n], s[n, m]) for m, n in pairs),
        "kd": terms["kd"],
    }
    assert list(terms) == list(wanted) and terms == pytest.approx(wanted, rel=1e-4)


def test_two_networks_learn_from_the_mean_of_their_answers_and_of_three_the_one_that_is_kept() -> None:
    method, logits = MCL(job("macs=50%")), [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    two, three = sum(logits[:2]) / 2, sum(logits) / 3
    found = method.together(logits[:2]).item()
    assert found == pytest.approx(softened(logits[0], two, 3.0).item() + softened(logits[1], two, 3.0).item(), rel=1e-5)
    assert method.together(logits).item() == pytest.approx(softened(logits[0], three, 3.0).item(), rel=1e-5)


def test_all_networks_and_projectors_are_trained_and_the_kept_one_is_bare() -> None:
    task = job("macs=50%")
    method = MCL(task)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    assert not torch.equal(method.others[0].head.weight, method.model.head.weight), "peers have weights of their own"
    losses = train(method, optimizer(method, lr=0.01), range(1), 1)
    assert torch.tensor(losses).isfinite().all()
    assert not [name for name, p in method.named_parameters() if torch.equal(p, before[name])]
    assert isinstance(method.finish(), Toy) and method.finish().state_dict().keys() == task.model.state_dict().keys()


def test_terms_that_weigh_nothing_are_not_there() -> None:
    method = MCL(job("macs=50%"), vcl=0, soft_vcl=0, icl=0, soft_icl=0)
    assert list(method.loss(twos())) == ["cross_entropy"]
    assert list(MCL(job("macs=50%"), cross_entropy=0, icl=0).loss(twos())) == ["vcl", "soft_vcl", "soft_icl"]


def test_it_asks_for_two_images_of_a_class() -> None:
    assert MCL.by_class == 2


@pytest.mark.parametrize("setting", [{"peers": 1}, {"tau": 0.0}, {"temperature": -1.0}, {"vcl": -0.1}])
def test_settings_that_make_no_sense_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        MCL(job("macs=50%"), **setting)
