"""The base class of low-rank methods: factorable layers, costs of ranks, rank selection, and error messages."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from splits import SPLITS
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from toy import SHAPE, Random, Wide, batches, job

from compressor.channels import Frozen
from compressor.data import Batch
from compressor.errors import Infeasible, UsageError
from compressor.methods.lowrank.decompositions import Layer, Split
from compressor.methods.lowrank.factor import LowRank
from compressor.methods.lowrank.factorable import Site, cost, layers
from compressor.methods.lowrank.papers.svd import Svd
from compressor.methods.lowrank.verify import difference
from compressor.network.cost import count_macs, count_params
from compressor.tasks.classify import Classify
from compressor.training.goal import Goal, parse_energy, parse_rank, parse_rate, parse_target
from compressor.training.method import Job


class Ways(LowRank):
    """Factors layers by the given decompositions."""

    def __init__(self, job: Job, *ways: str, ranks: str = "knapsack", whiten: bool = True) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)
        self.ways = ways or ("channel", "linear")

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        return [SPLITS[way] for way in self.ways if isinstance(layer, SPLITS[way].kind)]


def wish(goal: Goal, model: nn.Module | None = None, shape: tuple[int, int, int] = SHAPE, **more: Any) -> Job:
    model = model or Wide()
    return Job(model, shape, None, goal, Classify(), **{"images": Random(shape), "macs": count_macs(model, shape), **more})


def prepared(task: Job, *ways: str, **settings: Any) -> Ways:
    method = Ways(task, *ways, **settings)
    method.prepare()
    return method


def sites_of(method: Ways) -> dict[str, Site]:
    return {site.name: site for site in method.sites(method.watched())}


# Layers ---------------------------------------------------------------------------------------------------------------


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Odd(nn.Module):
    """[n, 6, 4, 4] -> [n, 6], with layers that cannot be factored."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.line = nn.Conv1d(6, 6, 1)
        self.fc = nn.Linear(6, 6)
        self.one = self.another = nn.Linear(6, 6)
        self.tied, self.knot = nn.Linear(6, 6), nn.Linear(6, 6)
        self.knot.weight = self.tied.weight
        self.computed = weight_norm(nn.Linear(6, 6))
        self.hooked = nn.Linear(6, 6)
        self.hooked.register_forward_hook(lambda module, args, out: 2 * out)
        self.own = Own(6, 6)
        self.uncalled = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(self.grouped(self.conv(x)).flatten(2)).mean(2)
        x = self.knot(self.tied(self.another(self.one(self.fc(self.fc(x))))))
        return F.linear(self.own(self.hooked(self.computed(x))), self.uncalled.weight)


def test_layers_that_can_be_factored_and_why_others_cannot() -> None:
    fine, left = layers(Odd(), (6, 4, 4), keep=["con*"])
    assert fine == {"grouped": ((1, 6, 4, 4),), "fc": ((1, 6), (1, 6))}  # called twice
    shared = "its weights are shared, or computed from other parameters"
    assert left == {
        "conv": "excluded by --keep con*",
        "line": "no decomposition for Conv1d",
        "one": shared,
        "tied": shared,
        "knot": shared,
        "computed": shared,
        "hooked": "a hook can change its output",
        "own": "no decomposition for Own",
        "uncalled": "it is not called: its weights are unused, or used by another module",
    }


def test_a_pattern_that_matches_no_layer_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"--keep 'grouped.x' matches no layer.*grouped.*compress inspect"):
        layers(Odd(), (6, 4, 4), keep=["conv", "grouped.x"])


def test_a_network_that_branches_on_values_is_followed_too() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    fine, left = layers(Branching(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2))
    assert fine == {"1": ((1, 12),)} and not left


def test_what_no_way_fits_is_left_with_the_reason_and_reported() -> None:
    method = prepared(wish(parse_target("params=10%"), Odd(), (6, 4, 4)), "channel")
    assert method.left["grouped"] == "a grouped convolution"
    assert method.left["fc"] == "the method does not factor this type of layer"
    made = method.made()
    assert Frozen("grouped", "a grouped convolution") in made.frozen and made.remarks["grouped"] == "a grouped convolution"
    assert list(made.step.parts) == ["conv"] and made.last == {"conv.1": "conv"}
    assert made.remarks["conv"].startswith("channel, rank ") and "% of the energy" in made.remarks["conv"]


# Costs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [way for way in SPLITS if way != "linear"])
def test_a_chain_costs_what_is_counted(way: str) -> None:
    layer = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 3), dilation=(2, 1))
    chain = SPLITS[way].factor(layer, 3)
    for part in (layer, chain):
        found = cost(part, [(1, 6, 11, 12), (1, 6, 9, 8)])
        assert found.macs == count_macs(part, (6, 11, 12)) + count_macs(part, (6, 9, 8))
        assert found.params == count_params(part)


def test_a_linear_layer_is_counted_at_each_token() -> None:
    layer = nn.Linear(7, 5)
    assert cost(layer, [(1, 10, 7)]).macs == 10 * 35
    assert cost(SPLITS["linear"].factor(layer, 2), [(1, 10, 7)]).macs == 10 * 2 * 12


@pytest.mark.parametrize(
    ("way", "stride", "highest"),
    [
        ("input", 1, 14),  # 160 r < 2304 weights, and as many MACs per position
        ("input", 2, 11),  # 208 r < 2304 MACs, because the first part has four times as many positions
        ("separable", 1, 23),  # 96 r < 2304 weights
        ("separable", 2, 15),  # 144 r < 2304 MACs, because the first part has twice as many positions
    ],
)
def test_no_rank_is_thought_of_unless_macs_and_parameters_fall(way: str, stride: int, highest: int) -> None:
    conv = nn.Conv2d(16, 16, 3, stride=stride, padding=1)
    task = wish(parse_rate(0.2), nn.Sequential(conv, nn.Flatten()), (16, 8, 8), round_to=1)
    site = sites_of(Ways(task, way))["0"]
    assert site.ladder.ranks.tolist() == list(range(1, highest + 1))
    whole = cost(conv, site.shapes)
    for rank in site.ladder.ranks.tolist():
        found = cost(site.split.factor(conv, rank), site.shapes)
        assert found.macs < whole.macs and found.params < whole.params


def test_a_layer_in_which_no_rank_saves_anything_is_left() -> None:
    method = prepared(wish(parse_rate(0.3), round_to=8))
    assert method.left["head"] == "no rank saves both MACs and parameters"
    assert all(rank % 8 == 0 for rank in method.ranks.values())


@pytest.mark.parametrize("target", ["macs=40%", "params=60%", "params<=60K", "size=50%", "size<=300KB"])
def test_a_budget_is_met_and_used(target: str) -> None:
    task = wish(parse_target(target), overhead=20_000, round_to=1)
    method = prepared(task)
    params, macs = count_params(method.model), count_macs(method.model, SHAPE)
    assert method.planned == {"macs": macs, "params": params}
    before = count_params(task.model)
    reached, asked = {
        "macs=40%": (macs / task.macs, 0.6),
        "params=60%": (params / before, 0.4),
        "params<=60K": (params / before, 60_000 / before),
        "size=50%": ((4 * params + 20_000) / (4 * before + 20_000), 0.5),
        "size<=300KB": ((4 * params + 20_000) / (4 * before + 20_000), 300_000 / (4 * before + 20_000)),
    }[target]
    assert asked - 0.01 < reached <= asked


# Goals in energy or rank ----------------------------------------------------------------------------------------------


def test_each_layer_keeps_as_few_ranks_as_hold_the_energy() -> None:
    method = Ways(wish(parse_energy(0.8), round_to=1))
    sites = list(sites_of(method).values())
    choice = method.choose(sites)
    lost = []
    for site, index in zip(sites, choice, strict=True):
        assert index is not None
        lost.append(float(site.ladder.errors[index]))
        assert lost[-1] < 0.2 and (index == 0 or site.ladder.errors[index - 1] >= 0.2)
    assert method.asked == pytest.approx(0.2)
    assert method.reached == pytest.approx(sum(lost) / len(lost))


def test_each_layer_has_at_most_the_rank_asked_for() -> None:
    method = prepared(wish(parse_rank(8), keep=("head",)))
    assert method.ranks == {"stem": 8, "conv": 8, "fc1": 8, "fc2": 8}
    most = {"stem": 16, "conv": 32, "fc1": 288, "fc2": 256}
    assert method.asked == pytest.approx(1 - 4 * 8 / sum(most.values()))
    assert method.reached == pytest.approx(method.asked)


def test_the_rank_asked_for_is_on_every_ladder() -> None:
    keep = ("head", "stem", "conv")
    assert prepared(wish(parse_rank(63), keep=keep)).ranks == {"fc1": 63, "fc2": 63}
    assert prepared(wish(parse_rank(63), keep=keep, round_to=4)).ranks == {"fc1": 60, "fc2": 60}


# Infeasible goals -----------------------------------------------------------------------------------------------------


def test_a_goal_out_of_reach_is_refused_and_told_what_could_be() -> None:
    with pytest.raises(Infeasible, match=r"--rate 0.99 requires 99.0% fewer MACs.* have 9\d.\d% of them.* ranks save 8\d.\d%"):
        prepared(wish(parse_rate(0.99), keep=("head", "stem")))


def test_a_network_without_a_layer_to_factor_is_refused_with_the_reasons() -> None:
    with pytest.raises(Infeasible, match=r"no layer can be factored. Not factored: 5 x excluded by --keep \*."):
        prepared(wish(parse_rate(0.5), keep=("*",)))


def test_a_goal_that_factors_nothing_is_refused() -> None:
    with pytest.raises(Infeasible, match=r"--energy 0.9999: no layer would be factored. Request a larger reduction."):
        prepared(wish(parse_energy(0.9999), images=None))


def test_an_unknown_rule_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"--set ranks=evbfm is unknown: use knapsack, .*evbmf"):
        Ways(job("macs=50%"), ranks="evbfm")


def test_a_wrong_chain_does_not_pass() -> None:
    model = Wide()
    chain = SPLITS["channel"].factor(model.conv, 8)
    dense, shapes = {"conv": SPLITS["channel"].dense(chain)}, {"conv": ((1, 16, 6, 6),)}
    assert difference(model, {"conv": chain}, dense, shapes, SHAPE) < 1e-12
    wrong = copy.deepcopy(chain)
    wrong[0].weight.data[0] *= 1.01
    assert difference(model, {"conv": wrong}, dense, shapes, SHAPE) > 1e-6


# With images ----------------------------------------------------------------------------------------------------------


def lost(original: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((original(x) - small(x)).square().sum())


def test_images_decide_unless_told_otherwise() -> None:
    """Of twelve channels the last six are a hundred times larger, which is not visible in the weights."""
    model = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 16, 5))
    scale = torch.tensor([0.01] * 6 + [1.0] * 6).view(12, 1, 1)

    class Uneven(Random):
        def batches(self, *args: Any, **more: Any) -> Iterator[Batch]:
            return (batch._replace(inputs=batch.inputs * scale) for batch in super().batches(*args, **more))

    images = Uneven((12, 4, 4), 64)
    goal = parse_target("macs=40%")
    made = [prepared(wish(goal, model, (12, 4, 4), images=images), "input", whiten=whiten) for whiten in (True, False)]
    x = torch.cat([batch.inputs for batch in images.batches("train", batch_size=64)])
    seen, unseen = (lost(model, method.model.eval(), x) for method in made)
    assert seen < 0.5 * unseen
    blind = prepared(wish(goal, model, (12, 4, 4), images=None), "input")
    assert lost(blind.model, made[1].model, x) == 0


class Twins(nn.Module):
    """Two equal branches; the output hardly depends on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = nn.Linear(48, 48)
        self.faint = copy.deepcopy(self.heard)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.heard(x) + 0.01 * self.faint(x)


def test_errors_count_as_the_answers_suffer_from_them() -> None:
    task = wish(parse_rate(0.5), Twins(), (3, 4, 4))
    sites = sites_of(Ways(task))
    assert sites["heard"].ladder.weight > 100 * sites["faint"].ladder.weight
    ranks = prepared(task).ranks
    assert ranks["faint"] < ranks.get("heard", 48)
    even = prepared(wish(parse_rate(0.5), Twins(), (3, 4, 4), images=None)).ranks
    assert abs(even["heard"] - even["faint"]) <= 4


def test_of_several_ways_the_one_is_taken_that_hurts_least() -> None:
    """One kernel is a sum of few separable kernels, the other of few filters."""
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 5))
    for layer, way, rank in ((model[0], "separable", 10), (model[1], "channel", 6)):
        layer.weight.data = SPLITS[way].dense(SPLITS[way].factor(layer, rank)).float()
    for images in (Random((16, 4, 4)), None):
        task = wish(parse_rate(0.3), model, (16, 4, 4), images=images)
        sites = sites_of(Ways(task, "input", "separable", "channel"))
        assert {name: site.split.name for name, site in sites.items()} == {"0": "separable", "1": "channel"}


def test_the_network_stays_in_its_mode_and_answers_as_its_chains_say() -> None:
    task = wish(parse_rate(0.3))
    task.model.eval()
    method = prepared(task)
    assert not any(module.training for module in method.model.modules())
    (batch,) = batches(1)
    assert method.model(batch.inputs).shape == (8, 5)


# Latency --------------------------------------------------------------------------------------------------------------


def in_time(clock: Callable[[nn.Module, tuple[int, ...]], float] | None, cost: str = "latency") -> Svd:
    method = Svd(wish(parse_rate(0.3), clock=clock, round_to=1), cost=cost)
    method.prepare()
    return method


def by_size(chain: nn.Module, shape: tuple[int, ...]) -> float:
    return cost(chain, [shape]).macs / 1e4


def test_ranks_go_where_they_save_time() -> None:
    """Fully-connected layers would save more MACs, but their latency does not change when they are factored."""
    by_macs = Svd(wish(parse_rate(0.3)))
    by_macs.prepare()
    assert by_macs.ranks.keys() == {"fc1", "fc2"} and not by_macs.made().times
    method = in_time(lambda chain, shape: 1.0 if len(shape) == 2 else by_size(chain, shape))
    assert method.ranks.keys() == {"conv"}
    assert 1 - method.planned["macs"] / method.job.macs == pytest.approx(0.3, abs=0.02)
    times = method.made().times
    assert times.keys() == method.ranks.keys() and all(after < before for before, after in times.values())


def test_where_no_time_is_saved_the_goal_is_met_all_the_same() -> None:
    method = in_time(lambda chain, shape: 1.0)
    assert 1 - method.planned["macs"] / method.job.macs == pytest.approx(0.3, abs=0.01)


def test_times_need_a_clock_and_costs_a_name() -> None:
    with pytest.raises(UsageError, match=r"cost=latency needs Job\.clock"):
        in_time(None)
    with pytest.raises(UsageError, match="cost=time is unknown: use macs, latency"):
        in_time(by_size, cost="time")
