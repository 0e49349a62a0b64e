"""L-MCL: logits at every layer, the sum over pairs of layers, and the meta-gradient of the weight network."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from toy import Toy, batches, job, optimizer, train

from compressor.data import Batch
from compressor.methods.distill.contrastive import contrast, matched
from compressor.methods.distill.papers.l_mcl import LMCL
from compressor.tasks.likeness import softened
from compressor.training.method import Progress

TAPS = ("stages.0", "stages.1", "stages.2")


def make(**settings: float) -> LMCL:
    torch.manual_seed(0)
    return LMCL(job("macs=50%", taps=TAPS), **settings)


def twos() -> Batch:
    (batch,) = batches(1)
    return batch._replace(targets=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))


def omega(method: LMCL) -> Tensor:
    return parameters_to_vector(method.omega.parameters()).detach().clone()


def step(method: LMCL, sgd: torch.optim.SGD) -> None:
    """A step of the networks, without a meta-step."""
    sgd.zero_grad()
    torch.stack(list(method.loss(twos()).values())).sum().backward()
    sgd.step()


# The loss -------------------------------------------------------------------------------------------------------------


def test_each_network_answers_at_each_layer() -> None:
    method = make().eval()
    peers = method.answers(twos())
    assert [[answer.logits.shape for answer in peer] for peer in peers] == [[(8, 5)] * 3] * 2
    torch.testing.assert_close(peers[0][-1].logits, method.model(twos().inputs))
    flat = [answer.logits for peer in peers for answer in peer]
    assert not any(torch.allclose(one, other) for i, one in enumerate(flat) for other in flat[:i])


def test_the_mixed_answer_is_made_of_the_layers_image_by_image() -> None:
    method = make().eval()
    peer = method.answers(twos())[1]
    last = method.mixers[1][2]
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor([0.5, 0.25, 0.25]).log())
    wanted = 0.5 * peer[0].logits + 0.25 * peer[1].logits + 0.25 * peer[2].logits
    torch.testing.assert_close(method.mixed(1, peer).logits, wanted)


def test_labels_and_mixed_answers_by_their_formulas() -> None:
    method, batch = make().eval(), twos()
    with torch.no_grad():
        terms, peers = method.loss(batch), method.answers(batch)
        mixed = [method.mixed(n, peer).logits for n, peer in enumerate(peers)]
    assert list(terms) == ["cross_entropy", "kd", "vcl", "soft_vcl", "icl", "soft_icl"]
    logits = [answer.logits for peer in peers for answer in peer] + mixed
    assert terms["cross_entropy"].item() == pytest.approx(
        sum(F.cross_entropy(z, batch.targets).item() for z in logits), rel=1e-5
    )
    wanted = sum(softened(peer[-1].logits, z, 3.0).item() for peer in peers for z in mixed)
    assert terms["kd"].item() == pytest.approx(wanted, rel=1e-4)


def test_layers_are_compared_in_both_directions_and_each_pair_is_met_twice() -> None:
    method, batch = make().eval(), twos()
    wanted = dict.fromkeys(("vcl", "soft_vcl", "icl", "soft_icl"), 0.0)
    with torch.no_grad():
        terms = {name: term.item() for name, term in method.loss(batch).items() if name in wanted}
        g = [answer.embedding for peer in method.answers(batch) for answer in peer]
        e = [project(x) for project, x in zip(method.projectors, g, strict=True)]
        v = [layer(x) for layer, x in zip(method.omega.layers, g, strict=True)]
        for n, m, k, z in product((0, 1), (0, 1), range(3), range(3)):
            if n != m:
                a, b = 3 * n + k, 3 * m + z
                w = F.cosine_similarity(v[a], v[b]).sigmoid()
                aa, ab, ba, bb = (e[i] @ e[j].T / 0.1 for i, j in ((a, a), (a, b), (b, a), (b, b)))
                for name, weight, rows in (
                    ("vcl", 0.1, contrast(aa, batch.targets) + contrast(bb, batch.targets)),
                    ("soft_vcl", 1, matched(aa, bb, 3.0) + matched(bb, aa, 3.0)),
                    ("icl", 0.1, contrast(ab, batch.targets) + contrast(ba, batch.targets)),
                    ("soft_icl", 1, matched(ab, ba, 3.0) + matched(ba, ab, 3.0)),
                ):
                    wanted[name] += weight * (w * rows).mean().item()
    assert terms == pytest.approx(wanted, rel=1e-4)


def test_all_but_the_weight_network_is_trained_and_the_kept_network_is_bare() -> None:
    method = make()
    sgd, before = optimizer(method), {name: p.detach().clone() for name, p in method.named_parameters()}
    step(method, sgd)
    still = {name for name, p in method.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if name.startswith("omega.")}, "not by a gradient, nor by weight decay"
    assert isinstance(method.finish(), Toy)
    assert method.finish().state_dict().keys() == method.job.model.state_dict().keys()


# The weight network ---------------------------------------------------------------------------------------------------


def test_a_meta_step_moves_the_weight_network_and_nothing_else() -> None:
    method = make()
    step(method, optimizer(method))
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    before = copy.deepcopy(method.state_dict())
    method.end_step(twos())
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("omega.")} | {"speed"}
    assert {name for name, p in method.named_parameters() if p.grad is not None} == gradients.keys()
    assert all(torch.equal(gradient, method.get_parameter(name).grad) for name, gradient in gradients.items())


class Smooth(nn.Module):
    """[n, 3, 12, 12] -> logits [n, 5]; its gradients are continuous, as finite differences need."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh())
        self.two = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.Tanh())
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).mean((2, 3)))


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    """Along the gradient itself, with torch's own SGD for the unrolled steps."""
    torch.manual_seed(0)
    method, batch = LMCL(job("macs=50%", Smooth(), taps=("one", "two")), meta_lr=0.01, tau=1.0).double(), twos()
    batch = batch._replace(inputs=batch.inputs.double())
    for project in method.projectors:
        project.layers[1] = nn.Tanh()
    gradient = method.hypergradient(batch)
    direction = gradient / gradient.norm()

    def after(distance: float) -> float:
        other = copy.deepcopy(method)
        vector_to_parameters(omega(method) + distance * direction, other.omega.parameters())
        networks = [p for name, p in other.named_parameters() if not name.startswith("omega.")]
        sgd = torch.optim.SGD(networks, lr=0.01, momentum=0.9, weight_decay=5e-4)
        for loss in (other.compared, other.compared, other.judged):
            sgd.zero_grad()
            loss(batch).backward()
            sgd.step()
        return other.judged(batch).item()

    assert (after(0.1) - after(-0.1)) / 0.2 == pytest.approx(gradient.norm().item(), rel=1e-3)


def test_it_takes_a_step_of_sgd_with_nesterovs_momentum() -> None:
    method = make(meta_lr=0.2)
    method.begin_epoch(Progress(2, 4))  # half of the training is over: half of the rate
    weights = omega(method).requires_grad_()
    sgd = torch.optim.SGD([weights], lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for i in range(3):
        weights.grad = torch.randn(len(weights), generator=torch.Generator().manual_seed(i))
        sgd.step()
        method.learn_shares(weights.grad)
    torch.testing.assert_close(omega(method), weights.detach())


def test_it_learns_at_the_first_step_of_an_epoch_and_then_every_so_many() -> None:
    method = make(meta_every=2)
    for epoch in range(2):
        method.begin_epoch(Progress(epoch, 2))
        moved = []
        for _ in range(3):
            before = omega(method)
            method.end_step(twos())
            moved.append(not torch.equal(omega(method), before))
        assert moved == [True, False, True]


def test_without_contrast_there_is_nothing_to_weigh() -> None:
    method = make(vcl=0, soft_vcl=0, icl=0, soft_icl=0, kd=0)
    before = omega(method)
    assert list(method.loss(twos())) == ["cross_entropy"]
    method.end_step(twos())
    assert torch.equal(omega(method), before)


def test_resumed_it_ends_as_if_it_had_not_been_interrupted() -> None:
    def begin() -> tuple[LMCL, torch.optim.SGD]:
        method = make()
        return method, optimizer(method, lr=0.01)

    whole, sgd = begin()
    train(whole, sgd, range(1), 2)
    saved = copy.deepcopy([whole.state_dict(), sgd.state_dict()])
    resumed, other = begin()
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for method, its in ((whole, sgd), (resumed, other)):
        train(method, its, range(1, 2), 2)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_network_with_one_layer_has_no_branches() -> None:
    method = LMCL(job("macs=50%", taps=TAPS[-1:]))
    assert [len(peer) for peer in method.answers(twos())] == [1, 1]
    assert torch.tensor(train(method, optimizer(method, lr=0.01), range(1), 1)).isfinite().all()
