"""The schedules of the soft pruning methods, and that hard filters are kept at zero."""

import pytest
import torch
from torch import nn
from toy import job, optimizer, train

from compressor.methods.catalogue import catalogue, create
from compressor.methods.prune.papers.ghfp import GHFP
from compressor.methods.prune.papers.pgmpf import PGMPF
from compressor.methods.prune.soft import SoftPruning, asymptotic, cubic, decaying
from compressor.training.method import Method, Progress

T = 100
TABLE = {  # epoch: lambda, alpha, fraction of filters kept at a final rate of 40 %; output of the authors' code of PGMPF
    0: (0.0297010, 1.0, 1.0),
    1: (0.0588080, 0.8912509, 0.9580100),
    2: (0.0873270, 0.7943282, 0.9204280),
    3: (0.1152640, 0.7079458, 0.8867910),
    6: (0.1956430, 0.5011872, 0.8056228),
    80: (1.0, 0.0, 0.60005),
    89: (1.0, 0.0, 0.60002),
    90: (1.0, 0.0, 0.6),
    99: (1.0, 0.0, 0.6),
}


@pytest.mark.parametrize(("epoch", "row"), TABLE.items())
def test_the_schedules_are_those_that_the_authors_printed(epoch: int, row: tuple[float, float, float]) -> None:
    now = Progress(epoch, T)
    found = cubic(now, 0.8), decaying(now, 1.0, 1e-5, 0.8), 1 - 0.4 * asymptotic(now, 0.9)
    assert found == pytest.approx(row, abs=1e-5 if 80 <= epoch < 90 else 6e-8)  # the last ones are truncated
    assert epoch < 90 or found == row  # exact at the end


def test_the_rate_has_three_quarters_after_an_eighth_of_training() -> None:
    shares = [asymptotic(Progress(epoch, T), 0.9) for epoch in (0, 1, 5, 12, 25, 50)]
    assert shares == pytest.approx([0, 0.105, 0.426, 0.736, 0.938, 0.996], abs=6e-4)
    assert asymptotic(Progress(25, 200), 0.9) == pytest.approx(0.75)


@pytest.mark.parametrize(("sigma", "kappa"), [(1e-5, 0.115), (1e-7, 0.161), (1e-9, 0.207)])
def test_a_smaller_sigma_decays_faster(sigma: float, kappa: float) -> None:
    assert decaying(Progress(10, T), 1.0, sigma, 0.8) == pytest.approx(torch.exp(torch.tensor(-kappa * 10)).item(), rel=0.01)


def test_what_is_almost_nothing_counts_as_nothing() -> None:
    assert decaying(Progress(79, T), 1.0, 1e-5, 0.8) == pytest.approx(1.1e-4, rel=0.05)
    assert decaying(Progress(50, T), 1.0, 1e-9, 0.8) == 0


@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
def test_one_epoch_at_least_trains_what_remains(epochs: int) -> None:
    now = Progress(max(epochs - 2, 0), epochs)
    assert (cubic(now, 0.8), decaying(now, 1.0, 1e-5, 0.8), asymptotic(now, 0.9)) == (1, 0, 1)


def ten_filters() -> nn.Sequential:
    """Ten filters of norms 1 to 10, a batch norm of scale 1 and shift 5, and a layer that consumes them."""
    model = nn.Sequential(nn.Conv2d(1, 10, 1, bias=False), nn.BatchNorm2d(10), nn.Conv2d(10, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 11.0).view(10, 1, 1, 1))
        model[1].bias.fill_(5.0)
    return model


def test_half_of_the_weak_are_hard() -> None:
    """Of ten filters four are weak; with lambda = 1/2 two of them are hard, and with alpha = 0.1 two are scaled."""
    method = GHFP(job("filters=40%", ten_filters(), (1, 4, 4)))
    method.weaken(rate=1.0, softness=0.1, hardness=0.5)
    assert method.model[0].weight.flatten().tolist() == pytest.approx([0, 0, 0.3, 0.4, 5, 6, 7, 8, 9, 10])
    assert method.model[1].bias.tolist() == pytest.approx([0, 0, 0.5, 0.5, 5, 5, 5, 5, 5, 5])
    assert method.weak.sum() == 4 and method.hard.sum() == 2


def test_hard_filters_do_not_move_whatever_the_optimizer() -> None:
    for make in (optimizer, lambda method: torch.optim.AdamW(method.parameters(), lr=0.1)):
        method = GHFP(job("filters=40%"))
        steps = make(method)
        train(method, steps, range(1), 2)  # gives all filters momentum
        method.weaken(rate=1.0, softness=0.0, hardness=1.0)
        train(method, steps, range(1), 2)
        parts = dict(
            zip((g.name for g in method.channels.groups), method.channels.split(method.hard.numpy()).values(), strict=True)
        )
        inside = method.model.stages[1]
        hard = torch.from_numpy(parts["stages.1.conv1"])
        assert hard.sum() == 6 and not inside.conv1.weight[hard].any() and not inside.bn1.bias[hard].any()
        assert inside.conv1.weight[~hard].flatten(1).any(1).all()


def test_weak_filters_learn_half_of_the_time_and_less_and_less() -> None:
    method = PGMPF(job("filters=40%"))
    method.weaken(rate=1.0, softness=1.0, hardness=0.0)
    method.damping.fill_(0.75)
    method.begin_epoch(Progress(1, 2))
    seen = []
    for _ in range(200):
        for parameter in method.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.edit_gradients()
        seen.append(method.model.stages[1].conv1.weight.grad[:, 0, 0, 0])
    weak = torch.from_numpy(method.channels.split(method.weak.numpy())["stages.1.conv1"])
    found = torch.stack(seen)  # [iterations, filters]
    assert (found[:, ~weak] == 1).all()
    assert set(found[:, weak].flatten().tolist()) == {0.0, 0.25}
    assert found[:, weak].mean() == pytest.approx(0.125, abs=0.02)
    assert method.model.head.weight.grad.eq(1).all()


# Papers as special cases of each other ----------------------------------------------------------------------------------


def trained(name: str, weights: dict[str, float] | None = None, **settings: float | bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method = create(catalogue()[name], job("filters=40%"), settings)
    assert isinstance(method, SoftPruning)
    for schedule, value in (weights or {}).items():
        setattr(method, schedule, lambda progress, value=value: value)
    method.prepare()
    train(method, optimizer(method), range(6), 6)
    return method.finish().state_dict()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("srfp", {}, {"alpha": 0.0}), ("sfp", {}, {})),
        (("asrfp", {}, {"alpha": 0.0}), ("asfp", {}, {})),
        (("ghfp", {"hardness": 0.0}, {"alpha": 1.0}), ("asrfp", {}, {})),
        (("ghfp", {"hardness": 0.0}, {"alpha": 0.0}), ("asfp", {}, {})),
        (("ghfp", {"hardness": 0.0, "rate": 1.0}, {"alpha": 1.0}), ("srfp", {}, {})),
        (("asfp", {"rate": 1.0, "hardness": 1.0}, {}), ("ghfp", {"rate": 1.0, "hardness": 1.0}, {})),
    ],
)
def test_papers_meet_where_their_schedules_do(left: tuple, right: tuple) -> None:  # type: ignore[type-arg]
    a, b = (trained(name, schedules, **settings) for name, schedules, settings in (left, right))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_pgmpf_with_no_damping_and_no_coin_is_asrfp() -> None:
    class Undamped(PGMPF):
        def end_epoch(self, progress: Progress) -> None:
            super().end_epoch(progress)
            self.damping.zero_()

        def hardness(self, progress: Progress) -> float:
            return 0.0

    torch.manual_seed(0)
    method = Undamped(job("filters=40%"), coin=False)
    method.prepare()
    train(method, optimizer(method), range(6), 6)
    mine, theirs = method.finish().state_dict(), trained("asrfp")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_nothing_pruned_is_plain_training_bit_for_bit() -> None:
    torch.manual_seed(0)
    task = job("filters=40%")
    plain, method = Method(task), PGMPF(task)
    method.shares[:] = 0
    method.counts[:] = 0
    for each in (plain, method):
        torch.manual_seed(1)
        each.prepare()
        train(each, optimizer(each), range(3), 3)
    assert not method.weak.any()
    assert all(
        torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(), method.model.state_dict().values(), strict=True)
    )
