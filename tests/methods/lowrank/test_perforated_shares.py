"""Perforation rates: each step has the least increase of the loss, and the positions of largest impact are kept."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn
from toy import Toy, batches

from compressor.methods.lowrank.perforated_conv import Grid, Places, Rows, perforate
from compressor.methods.lowrank.perforated_shares import RATES, Trial, greedily, sparse
from compressor.tasks.classify import Classify

COSTS = {"cheap": 90.0, "dear": 900.0, "flat": 90.0}  # with all positions


def cost(name: str, share: float) -> float:
    return COSTS[name] if name == "flat" else COSTS[name] * share


def test_the_next_step_is_the_one_with_the_least_loss_for_what_it_saves() -> None:
    """To 2/3, `cheap` loses 0.3 for 30 and `dear` 0.9 for 300; then `dear` to 1/2 costs 3 more for 150, `cheap` to 2/3 0.3."""
    lost = {"cheap": {1: 0, RATES[0]: 0.3, RATES[1]: 9}, "dear": {1: 0, RATES[0]: 0.9, RATES[1]: 3.9}}
    asked = []

    def loss(shares: Mapping[str, float]) -> float:
        asked.append(dict(shares))
        return 2 + sum(lost[name][shares[name]] for name in lost)

    def steps(count: int) -> dict[str, float]:
        wanted = [1.0, RATES[0], RATES[1]]
        return greedily(list(COSTS), cost, loss, lambda s: sum(wanted.index(share) for share in s.values()) == count)

    assert steps(0) == {"cheap": 1, "dear": 1, "flat": 1}
    assert steps(1) == {"cheap": 1, "dear": RATES[0], "flat": 1}
    # (0.3 + 0.9) / 330 against (0.9 + 3) / 450
    assert list(steps(2).items()) == [("flat", 1), ("dear", RATES[0]), ("cheap", RATES[0])]
    asked.clear()
    assert steps(3) == {"cheap": RATES[0], "dear": RATES[1], "flat": 1}
    assert len(asked) == len({tuple(sorted(shares.items())) for shares in asked}), "no loss is measured twice"


def test_what_cannot_be_lowered_further_ends_the_search() -> None:
    shares = greedily(list(COSTS), cost, lambda shares: 0.0, lambda shares: False)
    assert shares == {"cheap": RATES[-1], "dear": RATES[-1], "flat": 1.0}


def test_what_is_kept_is_at_most_the_share_and_what_matters_most() -> None:
    worth = torch.arange(48.0).reshape(6, 8)
    assert sparse(worth, "rows", 0.34) == Rows((4, 5))
    assert sparse(worth, "places", 0.05) == Places((46, 47))
    assert [sparse(worth, "grid", share) for share in (0.9, 0.5, 0.4, 0.25, 0.01)] == [
        Grid(2, 1),
        Grid(2, 1),
        Grid(2, 2),
        Grid(2, 2),
        Grid(4, 4),
    ]


@pytest.mark.parametrize("kind", ["grid", "rows", "places"])
def test_the_loss_is_that_of_the_network_with_such_layers(kind: str) -> None:
    model, seen = Toy().train(), list(batches(2))
    layers = {"stem": (nn.Sequential(model.stem), (12, 12))}
    trial = Trial(model, layers, kind, seen, Classify())
    whole = trial.loss({})
    assert trial.kept("stem", 1.0) is None and trial.loss({"stem": 1.0}) == whole
    kept = trial.kept("stem", 0.5)
    assert kept is not None and kept.share((12, 12)) == 0.5
    found = trial.loss({"stem": 0.5})
    network = trial.network.eval()
    network.stem = perforate(layers["stem"][0], (12, 12), kept)
    with torch.no_grad():
        losses = [float(Classify().loss(network(batch.inputs), batch)["cross_entropy"]) for batch in seen]
    assert found == pytest.approx(sum(losses) / 2, rel=1e-5) and found != pytest.approx(whole, rel=1e-5)
    assert trial.loss({}) == whole
    assert model.training and model.stages[0].bn1.num_batches_tracked == 0, "it works on a copy"
