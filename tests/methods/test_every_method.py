"""Requirements on every method: it runs with its defaults, meets the target, can be resumed, and cites its paper."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer, mobilenet_v3_small, squeezenet1_1
from toy import SHAPE, Toy, Wide, batches, job, optimizer, train

from compressor.methods.catalogue import Entry, Value, catalogue, create
from compressor.methods.distill.teaching import Distillation
from compressor.methods.lowrank.factor import LowRank
from compressor.methods.prune.filters import FilterPruning
from compressor.network.replacements import Chains, make, replaced
from compressor.onnx.export import check_onnx, export_onnx
from compressor.training.method import Job, Method, Progress

EPOCHS = 2
every_method = pytest.mark.parametrize("entry", catalogue().values(), ids=lambda entry: entry.name)
of_channels = [entry for entry in catalogue().values() if entry.family == "prune" and not entry.weights]
every_method_of_channels = pytest.mark.parametrize("entry", of_channels, ids=lambda entry: entry.name)
of_rank = [entry for entry in catalogue().values() if entry.family == "lowrank"]
of_distillation = [entry for entry in catalogue().values() if entry.family == "distill"]
every_method_of_distillation = pytest.mark.parametrize("entry", of_distillation, ids=lambda entry: entry.name)
every_method_of_rank = pytest.mark.parametrize("entry", of_rank, ids=lambda entry: entry.name)


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
    answers = small.eval()(batch.inputs)
    assert answers.shape == (8, 5) and answers.isfinite().all() and (answers[0] - answers[1]).abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items()), "it works on a copy"


@every_method_of_channels
def test_what_it_trains_moves(entry: Entry) -> None:
    """An optimizer with the parameters of before the pruning would train nothing."""
    method = create(entry, job("macs=30%"), {})
    method.prepare()
    before = {name: parameter.detach().clone() for name, parameter in method.model.named_parameters()}
    sgd = optimizer(method)
    train(method, sgd, range(1), EPOCHS)
    assert {id(p) for p in method.model.parameters()} <= {id(p) for group in sgd.param_groups for p in group["params"]}
    assert all(not torch.equal(before[name], parameter) for name, parameter in method.model.named_parameters())


@every_method_of_channels
def test_it_goes_on_where_it_was_interrupted(entry: Entry) -> None:
    assert_resuming_changes_nothing(entry, job("filters=40%"))


def assert_resuming_changes_nothing(entry: Entry, task: Job) -> None:
    """The state dict has all state between epochs: the second epoch ends with the same weights."""

    def begin() -> tuple[Method, torch.optim.SGD]:
        torch.manual_seed(0)
        method = create(entry, task, {})
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


# Methods that factor layers -------------------------------------------------------------------------------------------


def factored(entry: Entry, task: Job | None = None) -> LowRank:
    """A prepared method, on a network in which either convolutions or fully-connected layers alone can meet the target."""
    method = create(entry, task or job("macs=30%", Wide()), {})
    assert isinstance(method, LowRank)
    method.prepare()
    return method


@every_method_of_rank
def test_it_factors_as_much_as_asked(entry: Entry) -> None:
    task = job("macs=30%", Wide())
    before = copy.deepcopy(task.model.state_dict())
    method = factored(entry, task)
    assert method.difference is not None and method.difference < 1e-10
    assert all(map(math.isfinite, train(method, optimizer(method), range(EPOCHS), EPOCHS)))
    small = method.finish()
    assert 1 - macs(small) / macs(task.model) == pytest.approx(0.3, abs=0.02)
    assert method.made().planned["macs"] == macs(small)
    (batch,) = batches(1, seed=9)
    answers = small.eval()(batch.inputs)
    assert answers.shape == (8, 5) and answers.isfinite().all() and (answers[0] - answers[1]).abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items()), "it works on a copy"


@every_method_of_rank
def test_what_it_trains_moves_and_all_chains_are_trained(entry: Entry) -> None:
    method = factored(entry)
    before = {name: parameter.detach().clone() for name, parameter in method.model.named_parameters()}
    trained = {name for name, parameter in method.model.named_parameters() if parameter.requires_grad}
    assert trained >= {name for name in before if any(name.startswith(f"{chain}.") for chain in method.chains)}
    train(method, optimizer(method), range(1), EPOCHS)
    after = dict(method.model.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained


@every_method_of_rank
def test_factored_it_goes_on_where_it_was_interrupted(entry: Entry) -> None:
    assert_resuming_changes_nothing(entry, job("macs=30%", Wide()))


@every_method_of_rank
def test_its_result_is_built_again_from_plain_data_and_exported(entry: Entry, tmp_path: Path) -> None:
    task = job("macs=30%", Wide())
    method = factored(entry, task)
    train(method, optimizer(method), range(1), 1)
    small, step = method.finish().eval(), method.made().step
    assert isinstance(step, Chains)
    again = replaced(copy.deepcopy(task.model), {name: make(parts) for name, parts in step.parts.items()}).eval()
    again.load_state_dict(small.state_dict())
    (batch,) = batches(1, seed=9)
    with torch.no_grad():
        assert torch.equal(again(batch.inputs), small(batch.inputs))
    export_onnx(small, SHAPE, tmp_path / "small.onnx")
    check_onnx(small, tmp_path / "small.onnx", SHAPE, tolerance=1e-4)


# Methods that distil ---------------------------------------------------------------------------------------------------


def lesson(entry: Entry, model: torch.nn.Module | None = None, shape: tuple[int, int, int] = SHAPE) -> Job:
    """A student, and a teacher if the method needs one."""
    torch.manual_seed(0)
    teacher = None if entry.teacher_is == "none" else copy.deepcopy(model) or Toy()
    return job("macs=50%", model, shape, teacher=teacher)


def taught(entry: Entry, task: Job, settings: dict[str, Value] | None = None) -> Distillation:
    """A prepared method."""
    torch.manual_seed(0)
    method = create(entry, task, settings or {})
    assert isinstance(method, Distillation)
    method.first()
    method.prepare()
    return method


@every_method_of_distillation
def test_the_student_is_left_bare_and_the_teacher_untouched(entry: Entry) -> None:
    task = lesson(entry)
    before = {net: copy.deepcopy(net.state_dict()) for net in (task.model, task.teacher) if net is not None}
    method = taught(entry, task)
    wanted = {name: value.shape for name, value in task.model.state_dict().items()}
    student = copy.deepcopy(method.model.state_dict())
    assert all(map(math.isfinite, train(method, optimizer(method), range(EPOCHS), EPOCHS)))
    small = method.finish()
    assert {name: value.shape for name, value in small.state_dict().items()} == wanted
    assert any(not torch.equal(value, student[name]) for name, value in small.state_dict().items())
    assert macs(small) == macs(task.model)
    for net, values in before.items():
        assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items()), "it works on copies"
    if method.teacher is not None:
        kept = method.teacher.network
        assert task.teacher is not None and not kept.training
        assert all(torch.equal(v, before[task.teacher][name]) for name, v in kept.state_dict().items()), "statistics, too"
        assert all(p.grad is None and not p.requires_grad for p in kept.parameters())
        assert not {id(p) for p in kept.parameters()} & {id(p) for p in method.parameters()}


@every_method_of_distillation
def test_taught_it_goes_on_where_it_was_interrupted(entry: Entry) -> None:
    assert_resuming_changes_nothing(entry, lesson(entry))


@every_method_of_distillation
def test_each_term_of_its_loss_can_be_switched_off(entry: Entry) -> None:
    task, (batch,) = lesson(entry), batches(1)
    whole = taught(entry, task)
    whole.begin_epoch(Progress(1, 2))
    terms = set(whole.loss(batch))
    assert terms == {name for name, weight in whole.weights.items() if weight}
    for name in terms if len(terms) > 1 else ():
        without = taught(entry, task, {name: 0.0})
        without.begin_epoch(Progress(1, 2))
        assert set(without.loss(batch)) == terms - {name}


@every_method_of_distillation
@pytest.mark.parametrize("network", ["mobilenet", "transformer", "squeezenet"])
def test_it_teaches_networks_that_nobody_has_changed_for_it(entry: Entry, network: str) -> None:
    shape = (3, 32, 32)
    torch.manual_seed(0)
    model: torch.nn.Module = {
        "mobilenet": lambda: mobilenet_v3_small(num_classes=5),
        "transformer": lambda: VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5),
        "squeezenet": lambda: squeezenet1_1(num_classes=5),
    }[network]()
    method = taught(entry, lesson(entry, model, shape))
    method.train()
    method.begin_epoch(Progress(1, 2))
    (batch,) = batches(1, shape)
    terms = method.loss(batch)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    assert sum(p.grad is not None and bool(p.grad.any()) for p in method.model.parameters()) > 1


# Descriptions --------------------------------------------------------------------------------------------------------


@every_method
def test_it_says_where_it_is_from(entry: Entry) -> None:
    year, where = r"\b(19|20)\d\d\b", r"\barXiv \d{4}\.\d{4,5}\b|\b(CVPR|IJCAI|AAAI|TPAMI)\s20\d\d\b"  # not all have a preprint
    for text in (entry.text, entry.paper):
        assert re.search(year, text) and re.search(where, text)
    assert re.fullmatch(year, entry.year)
    assert re.search(r"(?i)(section|equation|algorithm) \d|only the\s+abstract", entry.text), (
        "the section of the paper, or what was available of it"
    )
    assert entry.title.endswith(".") and entry.does.endswith(".")


@every_method
def test_its_settings_have_a_type_a_default_and_a_sentence(entry: Entry) -> None:
    for setting in entry.settings:
        assert setting.kind in ("bool", "int", "float", "str")
        assert type(setting.default).__name__ == setting.kind
        assert len(setting.text.split()) > 3, f"{setting.name} is not explained in the class's docstring"
