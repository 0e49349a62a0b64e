"""What every method must do, whatever its paper: run on its defaults, cut what was asked, be resumed, and name its source."""

import copy
import math
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy import SHAPE, batches, job, optimizer, train

from compressor.catalogue import Entry, catalogue, create
from compressor.filters import FilterPruning

EPOCHS = 2
every_method = pytest.mark.parametrize("entry", catalogue().values(), ids=lambda entry: entry.name)
of_channels = [entry for entry in catalogue().values() if entry.family == "prune" and not entry.weights]
every_method_of_channels = pytest.mark.parametrize("entry", of_channels, ids=lambda entry: entry.name)


def macs(model: torch.nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *SHAPE))
    return counter.get_total_flops() // 2


@every_method_of_channels
@pytest.mark.parametrize("residual", ["coupled", "scatter"])
def test_it_makes_the_network_as_small_as_asked(entry: Entry, residual: str) -> None:
    task = job("macs=50%", residual=residual)
    before = copy.deepcopy(task.model.state_dict())
    method = create(entry, task, {})
    method.prepare()
    losses = train(method, optimizer(method), range(EPOCHS), EPOCHS)
    small = method.finish()
    assert all(map(math.isfinite, losses))
    assert 1 - macs(small) / macs(task.model) == pytest.approx(0.5, abs=0.02)
    assert isinstance(method, FilterPruning) and method.removed is not None
    assert method.removed.difference < 1e-10 and not method.removed.channels.held
    (batch,) = batches(1, seed=9)
    answers = small.eval()(batch.images)
    assert answers.shape == (8, 5) and answers.isfinite().all() and (answers[0] - answers[1]).abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items()), "it works on a copy"


@every_method_of_channels
def test_what_it_trains_moves(entry: Entry) -> None:
    """An optimizer that still holds the parameters of before the cut would train nothing."""
    method = create(entry, job("macs=30%"), {})
    method.prepare()
    before = {name: parameter.detach().clone() for name, parameter in method.model.named_parameters()}
    sgd = optimizer(method)
    train(method, sgd, range(1), EPOCHS)
    assert {id(p) for p in method.model.parameters()} <= {id(p) for group in sgd.param_groups for p in group["params"]}
    assert all(not torch.equal(before[name], parameter) for name, parameter in method.model.named_parameters())


@every_method_of_channels
def test_it_goes_on_where_it_was_interrupted(entry: Entry) -> None:
    """All that it must remember between epochs is in its state: the second epoch ends with the same weights."""
    task = job("filters=40%")

    def begin() -> tuple[FilterPruning, torch.optim.SGD]:
        torch.manual_seed(0)
        method = create(entry, task, {})
        assert isinstance(method, FilterPruning)
        method.prepare()
        return method, optimizer(method)

    whole, sgd = begin()
    train(whole, sgd, range(1), EPOCHS)
    method_state, sgd_state = copy.deepcopy(whole.state_dict()), copy.deepcopy(sgd.state_dict())
    torch.manual_seed(1)
    train(whole, sgd, range(1, EPOCHS), EPOCHS)

    resumed, sgd = begin()
    resumed.load_state_dict(method_state)
    sgd.load_state_dict(sgd_state)
    torch.manual_seed(1)
    train(resumed, sgd, range(1, EPOCHS), EPOCHS)
    ends = [method.finish().state_dict() for method in (whole, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@every_method
def test_it_says_where_it_is_from(entry: Entry) -> None:
    year, where = r"\b(19|20)\d\d\b", r"\barXiv \d{4}\.\d{4,5}\b|\b(IJCAI|AAAI|TPAMI) 20\d\d\b"  # some are in no archive
    for text in (entry.text, entry.paper):
        assert re.search(year, text) and re.search(where, text)
    assert re.fullmatch(year, entry.year)
    assert re.search(r"(?i)(section|equation|algorithm) \d|only the abstract", entry.text), (
        "where in the paper, or what was read of it"
    )
    assert entry.title.endswith(".") and entry.does.endswith(".")


@every_method
def test_its_settings_have_a_type_a_default_and_a_sentence(entry: Entry) -> None:
    for setting in entry.settings:
        assert setting.kind in ("bool", "int", "float", "str")
        assert type(setting.default).__name__ == setting.kind
        assert len(setting.text.split()) > 3, f"{setting.name} is not explained in the class's docstring"
