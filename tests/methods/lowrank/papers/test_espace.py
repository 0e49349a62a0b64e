"""ESPACE: the reduction by low rank and by masks, layers that are not changed, and the verified result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import compress, interrupt_at
from torch import Tensor, nn
from toy import SHAPE, Toy, Wide, batches, job

from compressor.errors import Infeasible, UsageError
from compressor.methods.lowrank.papers.espace import Espace
from compressor.methods.lowrank.perforated_conv import copied, plane
from compressor.methods.lowrank.verify import difference
from compressor.network.cost import count_macs
from compressor.network.replacements import describe
from compressor.onnx.export import check_onnx, export_onnx
from compressor.report import read_report
from compressor.training.goal import parse_energy, parse_rank
from compressor.training.method import Job
from compressor.training.train import Training

MASKS = ("grid", "rows", "places")


def prepared(task: Job, **settings: Any) -> Espace:
    torch.manual_seed(0)
    method = Espace(task, **settings)
    method.prepare()
    return method


def asked(target: str, model: nn.Module | None = None, **more: Any) -> Job:
    torch.manual_seed(0)
    return job(target, model or Toy(), round_to=1, **more)


def saved(method: Espace) -> float:
    return 1 - count_macs(method.model, SHAPE) / method.job.macs


def alike(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The budget -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", ["greedy", "global"])
@pytest.mark.parametrize("split", ["separable", "channel"])
@pytest.mark.parametrize("mask", MASKS)
def test_ranks_and_masks_meet_the_budget_together(mask: str, split: str, rates: str) -> None:
    method = prepared(asked("macs=60%"), mask=mask, split=split, rates=rates)
    assert saved(method) == pytest.approx(0.6, abs=0.01)
    assert method.ranks and method.kept
    assert method.made().planned["macs"] == count_macs(method.model, SHAPE)
    assert method.difference is not None and method.difference < 1e-10


def test_low_rank_takes_its_share_in_the_logarithm() -> None:
    alone = prepared(asked("macs=36%"), lowrank=1.0)
    assert not alone.kept and saved(alone) == pytest.approx(0.36, abs=0.01)
    half = prepared(asked("macs=36%"), mask="rows")
    unmasked = half.macs(half.ranks, {})
    assert unmasked / half.job.macs == pytest.approx(0.8, abs=0.05)  # the square root of 0.64


@pytest.mark.parametrize("mask", ["rows", "places"])
def test_masks_alone_meet_the_budget(mask: str) -> None:
    method = prepared(asked("macs=50%"), mask=mask, lowrank=0.0)
    assert not method.ranks and saved(method) == pytest.approx(0.5, abs=0.01)


def test_what_one_part_cannot_save_is_left_to_the_other() -> None:
    """Convolutions have half of the MACs of `Wide`. At the lowest ranks, they have 12 % of those of the original network."""
    by_ranks = prepared(asked("macs=46%", Wide()), lowrank=0.9)
    assert saved(by_ranks) == pytest.approx(0.46, abs=0.015)
    with pytest.raises(Infeasible, match=r"requires 46.0% fewer MACs, but low ranks and masks can save"):
        prepared(asked("macs=46%", Wide()), lowrank=1.0)
    with pytest.raises(Infeasible, match=r"requires 60.0% fewer MACs"):
        prepared(asked("macs=60%", Wide()))


def test_a_goal_of_ranks_leaves_masks_the_share_that_was_set() -> None:
    task = replace(asked("macs=50%"), goal=parse_rank(4))
    alone = prepared(task, lowrank=1.0)
    method = prepared(task, mask="rows", keep=0.5)
    assert method.ranks == alone.ranks and 4 in method.ranks.values()
    fixed = method.job.macs - sum(count(alone, name) for name in alone.sizes)
    masked = count_macs(method.model, SHAPE) - fixed
    assert masked / (count_macs(alone.model, SHAPE) - fixed) == pytest.approx(0.5, abs=0.03)


def count(method: Espace, name: str) -> int:
    """MACs of the original layer."""
    (shape,) = method.read[name]
    return count_macs(method.job.model.get_submodule(name), shape[1:])


def test_all_places_are_the_network_of_low_rank() -> None:
    task = replace(asked("macs=50%"), goal=parse_energy(0.6))
    alone, all_kept = prepared(task, lowrank=1.0), prepared(task, keep=1.0)
    assert alone.ranks and not all_kept.kept
    assert alike(alone.model, all_kept.model)


def test_steps_of_grids_may_not_meet_the_budget_alone() -> None:
    method = prepared(asked("macs=30%", Wide()), lowrank=0.0)
    assert saved(method) > 0.32 and method.granularity == "masks (grid) have discrete steps"


# Result ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
def test_layers_give_at_kept_places_what_they_gave_and_copy_it_elsewhere(mask: str) -> None:
    method = prepared(asked("macs=50%"), mask=mask, lowrank=0.0)
    for name, kept in method.kept.items():
        layer, (shape,) = method.job.model.get_submodule(name), method.read[name]
        images = torch.randn(2, *shape[1:])
        with torch.no_grad():
            dense, found = layer(images).flatten(2), method.model.get_submodule(name)(images).flatten(2)
        places = copied(kept.mask(plane([layer], method.sizes[name])))
        torch.testing.assert_close(found, dense[:, :, places], atol=1e-5, rtol=1e-5)
        assert 0 < len(set(places.tolist())) < dense.shape[2]


def test_a_plane_that_is_filled_up_wrongly_is_found_out() -> None:
    method = prepared(asked("macs=50%"), mask="rows", lowrank=0.0)
    (name, kept), *_ = method.kept.items()
    layer = method.job.model.get_submodule(name)
    places = copied(kept.mask(plane([layer], method.sizes[name])))

    def gap(copies: Tensor) -> float:
        return difference(
            method.job.model, {name: method.chains[name]}, {name: layer.weight}, method.read, SHAPE, {name: copies}
        )

    assert gap(places) < 1e-10
    assert gap(places.flip(0)) > 1e-3


@pytest.mark.parametrize("mask", MASKS)
def test_onnx_runtime_answers_as_torch_does(mask: str, tmp_path: Path) -> None:
    method = prepared(asked("macs=60%"), mask=mask)
    export_onnx(method.model, SHAPE, tmp_path / "small.onnx")
    assert set(check_onnx(method.model, tmp_path / "small.onnx", SHAPE)) == {"1", "2", "3"}


def test_a_layer_with_a_mask_is_not_refitted_at_all_places() -> None:
    method = prepared(asked("macs=60%"), mask="rows")
    unmasked = {name for name in method.ranks if name not in method.kept}
    assert unmasked and set(method.made().last.values()) == unmasked


def test_the_first_layer_is_not_split_and_may_have_a_mask() -> None:
    method = prepared(asked("macs=60%"), mask="rows", rates="global")
    assert "stem" not in method.ranks and "stem" in method.kept and "stem" not in method.left
    assert method.made().remarks["stem"].endswith("x fewer MACs")
    assert method.left["head"] == "the method does not factor this type of layer"


def test_layers_that_are_kept_as_asked_have_no_mask() -> None:
    method = prepared(asked("macs=40%", keep=("stem", "*.conv1")), rates="global")
    assert method.kept and not any(name == "stem" or name.endswith("conv1") for name in {**method.kept, **method.ranks})


# Latency --------------------------------------------------------------------------------------------------------------


def by_size(module: nn.Module, shape: tuple[int, ...], slow: str = "") -> float:
    """A latency proportional to the multiply-adds; modules with a part named `slow` take a second."""
    if slow in (part["type"] for part in describe(module)):
        return 1000.0
    return count_macs(module, shape[1:]) / 1e3


def test_what_is_not_faster_stays_as_it_is_and_the_others_meet_the_budget() -> None:
    def clock(module: nn.Module, shape: tuple[int, ...]) -> float:
        changed = isinstance(module, nn.Sequential) and len(module) > 1
        return 1000.0 if changed and shape[1] == 8 else by_size(module, shape)  # layers with eight input channels

    method = prepared(asked("macs=50%", clock=clock), mask="rows")
    assert saved(method) == pytest.approx(0.5, abs=0.01)
    stay = {name for name, shapes in method.read.items() if shapes[0][1] == 8}
    assert stay and not stay & set(method.chains)
    tried = stay & set(method.slow)
    before, after = method.slow[name := min(tried)]
    made = method.made()
    assert after == 1000.0 and made.times[name] == (before, before)
    assert made.remarks[name] == f"not changed: it takes {before:.2f} ms, and would take 1000.00 ms"
    for name in method.chains:
        before, after = made.times[name]
        assert after < before and f"x as fast alone ({before:.2f} -> {after:.2f} ms)" in made.remarks[name]


def test_where_masks_are_not_faster_ranks_alone_meet_the_budget() -> None:
    def clock(module: nn.Module, shape: tuple[int, ...]) -> float:
        return by_size(module, shape, slow="Take")

    method = prepared(asked("macs=50%", clock=clock), mask="rows")
    assert not method.kept and saved(method) == pytest.approx(0.5, abs=0.01)
    ignored = prepared(asked("macs=50%", clock=clock), mask="rows", only_if_faster=False)
    assert ignored.kept and not ignored.made().times


# The command ----------------------------------------------------------------------------------------------------------


NET = """
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 256, 5, padding=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )
"""


def test_the_report_tells_the_times_that_decided_before_an_interruption_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth of 26 M multiply-adds remains, which is faster on any machine."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    names: dict[str, Any] = {}
    exec(compile(NET, "net.py", "exec"), names)
    torch.save(names["net"]().state_dict(), "net.pt")
    what = ("--arch", "net.py:net", "--data", "digits", "--rate", "0.95", "--keep", "0", "--epochs", "2", "--no-repair")
    run = ("lowrank", "net.pt", *what, "--method", "espace", "--set", "lowrank=1", "--out", "small")
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", interrupt_at(11 + 5, Training._step))  # in the second epoch
        assert compress(*run).exit_code == 130
    known = json.loads(Path("small/state/times.json").read_text())
    result = compress(*run, "--resume")
    assert result.exit_code == 0, result.output
    first, second, head = read_report(tmp_path / "small").layers
    assert first.ms is None and head.ms is None
    assert second.ms is not None and second.ms_after is not None and second.ms_after < second.ms
    assert {second.ms, second.ms_after} <= set(known.values())
    assert f"x fewer MACs, {second.ms / second.ms_after:.1f} x as fast alone" in second.group
    assert not Path("small/state/times.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask": "row"}, "mask=row is unknown: use grid, rows, places.*rows"),
        ({"split": "cp"}, "split=cp"),
        ({"rates": "all"}, "rates=all"),
        ({"lowrank": 1.5}, "lowrank must be 0 to 1.*lowrank=1.5"),
        ({"keep": 0.0}, "keep=0"),
        ({"images": 0}, "images=0"),
    ],
)
def test_settings_that_make_no_sense_are_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Espace(asked("macs=50%"), **settings)


def test_masks_alone_cannot_meet_a_goal_of_parameters() -> None:
    with pytest.raises(UsageError, match="needs a target in MACs; found params=50%"):
        Espace(asked("params=50%"), lowrank=0.0)


def test_it_needs_images() -> None:
    with pytest.raises(UsageError, match="give --data"):
        prepared(asked("macs=50%", images=None))
    assert Espace.looks and next(batches(1)).inputs.shape[1:] == SHAPE
