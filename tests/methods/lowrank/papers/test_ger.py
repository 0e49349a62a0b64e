"""GER: the reconstruction error in numbers, the trained parameters, and the cache of fixed activations."""

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import compress, make_net
from torch import Tensor, nn
from toy import Wide, batches, job, optimizer, train

import compressor
from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.lowrank.papers.ger import Ger
from compressor.report import read_report
from compressor.training.method import Progress


class Dropping(Wide):
    """With dropout, and an in-place activation after the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn(self.conv(F.relu(self.stem(x)))), 2).flatten(1)
        x = F.dropout(F.relu(x, inplace=True), training=self.training)
        return self.head(F.relu(self.fc2(F.dropout(F.relu(self.fc1(x)), training=self.training))))


class Branching(Wide):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def ger(model: nn.Module | None = None, target: str = "params=50%", **settings: bool | str | float) -> Ger:
    torch.manual_seed(0)
    method = Ger(job(target, model or Wide()), **settings)
    method.prepare()
    return method


def wide(kind: type[nn.Module] = Wide) -> nn.Module:
    """The same network each time, with batch norm statistics as after training."""
    torch.manual_seed(1)
    model = kind()
    for batch in batches(4, seed=3):
        model.train()(batch.inputs)
    return model


def one(x: Tensor) -> Batch:
    return Batch(x, torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)))


def diagonal() -> tuple[Ger, Tensor]:
    """z = diag(4, 3, 2, 1) x, which rank one reduces to 4 x_1; and two images."""
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    method = Ger(job("params<=12", model, (4,), images=None))
    method.prepare()
    return method, torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 1.0, 2.0]])


def test_the_error_by_hand() -> None:
    method, x = diagonal()
    (terms,) = method.loss(one(x)).items()
    assert terms[0] == "reconstruction"
    assert terms[1].item() == pytest.approx(((9 + 4 + 1) + (4 + 4)) / (2 * 2))


def test_the_gradients_by_hand() -> None:
    """With delta = (z' - z) / B: dJ/dP = delta^T (Q a), dJ/dQ = P^T delta^T a, dJ/db = the sum of delta."""
    method, x = diagonal()
    method.loss(one(x))["reconstruction"].backward()
    q, p = method.chains["0"]
    delta = -torch.tensor([[0.0, 3, 2, 1], [0, 0, 2, 2]]) / 2
    torch.testing.assert_close(p.weight.grad, delta.T @ (x @ q.weight.T))
    torch.testing.assert_close(q.weight.grad, p.weight.T @ delta.T @ x, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(p.bias.grad, delta.sum(0))


def test_probabilities_instead_of_logits() -> None:
    model = wide()
    method = ger(model, output="probabilities")
    (batch,) = batches(1)
    with torch.no_grad():
        apart = method.model(batch.inputs).softmax(1) - model.eval()(batch.inputs).softmax(1)
        assert method.loss(batch)["reconstruction"].item() == pytest.approx(float(apart.square().sum() / 16), rel=1e-4)


def test_each_layer_by_itself() -> None:
    """For the inputs and outputs in the original, whatever the errors of earlier layers."""
    model = wide()
    method = ger(model, joint=False)
    (batch,) = batches(1)
    x, model = batch.inputs, model.eval()
    with torch.no_grad():
        x = F.max_pool2d(F.relu(model.bn(model.conv(F.relu(model.stem(x))))), 2).flatten(1)
        squares = 0.0
        for name in ("fc1", "fc2"):
            z = model.get_submodule(name)(x)
            squares += float((z - method.chains[name](x)).square().sum())
            x = F.relu(z)
        assert set(method.chains) == {"fc1", "fc2"}
        assert method.loss(batch)["reconstruction"].item() == pytest.approx(squares / 16, rel=1e-4)


@pytest.mark.parametrize("joint", [True, False])
def test_the_error_falls_and_nothing_but_chains_changes(joint: bool) -> None:
    """Steps at a small learning rate on one fixed batch, in the modes of the training loop, with batch norm and dropout."""
    method = ger(wide(Dropping), joint=joint)
    before = copy.deepcopy(method.model.state_dict())
    (batch,) = batches(1)
    sgd = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=2e-2 if joint else 3e-4)
    losses = []
    for epoch in range(30):
        method.train()
        method.begin_epoch(Progress(epoch, 30))
        sgd.zero_grad()
        loss = method.loss(batch)["reconstruction"]
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert all(after < earlier for earlier, after in pairwise(losses)) and losses[-1] < 0.9 * losses[0]
    changed = {name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.{part}" for name in method.chains for part in ("0.weight", "1.weight", "1.bias")}


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("kind", [Wide, Dropping, Branching])
def test_what_is_kept_changes_nothing(kind: type[nn.Module], joint: bool) -> None:
    """Three passes over the same images, with a cache for all, for a batch or two, and without a cache."""
    found = []
    for cache in (1.0, 4 * 8 * 1200 / 1e9, 0.0):
        method = ger(wide(kind), joint=joint, cache=cache)
        sgd = optimizer(method, 1e-4)
        losses = []
        for _ in range(3):
            losses += train(method, sgd, range(1), 1)
        found.append((losses, method.chains["fc1"][0].weight.detach()))
    for losses, weight in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        torch.testing.assert_close(weight, found[0][1], atol=1e-5, rtol=1e-4)
    assert all(map(math.isfinite, found[0][0]))


def test_convolutions_look_at_each_image_once() -> None:
    method = ger(wide())
    seen: list[int] = []
    method.model.conv.register_forward_hook(lambda conv, args, out: seen.append(len(out)))
    for _ in range(3):
        train(method, optimizer(method, 1e-4), range(1), 1)
    assert seen.count(8) == 4, "two batches, in the network and in the original"


def test_labels_are_unused() -> None:
    method = ger(wide())
    (batch,) = batches(1)
    losses = [method.loss(batch._replace(targets=targets))["reconstruction"] for targets in (batch.targets, 4 - batch.targets)]
    assert torch.equal(*losses)


@pytest.mark.parametrize(("name", "value"), [("output", "probabilites"), ("cache", -1.0)])
def test_settings_that_make_no_sense(name: str, value: str | float) -> None:
    with pytest.raises(UsageError, match=f"--set {name}={value}"):
        Ger(job("params=50%", Wide()), **{name: value})


def test_a_run_trains_at_the_paper_s_rate_and_leaves_norms_alone(project: Path) -> None:
    given = ("--method", "ger", "--rank", "2", "--data", "digits", "--epochs", "2", "--no-repair")
    result = compress("lowrank", "net.pt", "--arch", "net.py:Net", *given, "--out", "small")
    assert result.exit_code == 0, result.output
    report = read_report(project / "small")
    assert (report.settings["lr"], report.settings["weight_decay"]) == (1e-3, 0.0)
    assert [stage.name for stage in report.stages] == ["original", "factored", "fine-tuned", "ONNX"]
    assert list(report.epochs[0].losses) == ["reconstruction"]
    torch.manual_seed(0)
    before, after = make_net().state_dict(), compressor.load(project / "small").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("head"))
