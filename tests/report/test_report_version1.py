"""Version 1 of the report: read as what it said; its keys in version 2, which scripts read, may not contradict the scores."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import example
import pytest

from compressor.errors import UsageError
from compressor.report import Difference, Epoch, Fidelity, Score, Stage, from_json, read_report, to_json
from compressor.report.read import stage_from

OLD = Path(__file__).parents[1] / "old_files"


def old(edit: Callable[[dict[str, Any]], object] = lambda _: None) -> str:
    """The report of a quantization, as version 0.1.0 wrote it."""
    data = json.loads((OLD / "quantize" / "report.json").read_text(encoding="utf-8"))
    edit(data)
    return json.dumps(data)


def test_a_report_of_version_1_says_the_same_in_scores() -> None:
    report = read_report(OLD / "quantize")
    assert (report.version, report.task) == (2, "classify")
    assert report.baseline.scores == [
        Score("top1", "top-1", 0.10863509749303621, "%", 2, 359, 0.08049294521135365, 0.1450641316637502),
        Score("top5", "top-5", 0.4986072423398329, "%", 2, 359),
        Score("loss", "cross-entropy", 2.318898108012165, "", 4, 359, more_is_better=False),
    ]
    assert report.stages[0].scores == report.baseline.scores and report.stages[-1].scores == report.compressed.scores
    assert report.change.scores == {
        "top1": Difference(-0.011142061281337046),
        "top5": Difference(0.0),
        "loss": Difference(pytest.approx(-0.000455085945661, rel=1e-6)),
    }
    assert report.fidelity == Fidelity(
        [
            Score("agreement", "same top-1 prediction", 0.924791086350975, "%", 2, 359),
            Score("kl", "mean KL divergence", 0.00014303384924665467, "nats", 3, 359, more_is_better=False),
        ],
        359,
        "test images",
    )


def test_epochs_of_version_1_have_the_held_out_score() -> None:
    (epoch,) = from_json(old(lambda data: data.update(epochs=[OLD_EPOCH, OLD_EPOCH | {"held_out_top1": None}]))).epochs[:1]
    assert epoch == Epoch(1, 0.01, {"loss": 2.0}, Score("top1", "top-1", 0.25, "%", 2, 0), 3.0, 100.0)
    assert from_json(old(lambda data: data.update(epochs=[OLD_EPOCH | {"held_out_top1": None}]))).epochs[0].held_out is None


OLD_EPOCH = {
    "epoch": 1, "lr": 0.01, "losses": {"loss": 2.0}, "train_top1": 0.5, "held_out_top1": 0.25, "seconds": 3.0,
    "images_per_second": 100.0,
}  # fmt: skip


def test_what_version_1_did_not_measure_is_not_measured() -> None:
    def blind(data: dict[str, Any]) -> None:
        for part in (data["baseline"], data["compressed"], *data["stages"]):
            part["accuracy"] = None
        data["change"]["top1"] = data["fidelity"] = None

    report = from_json(old(blind))
    assert report.baseline.scores == report.stages[0].scores == [] and report.change.scores == {} and report.fidelity is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["baseline"]["accuracy"].update(top1="x"), 'baseline.accuracy.top1: expected a number, found "x"'),
        (lambda d: d["stages"][1].update(accuracy=3), "stages[1].accuracy: expected an object, found 3"),
        (lambda d: d["change"].update(top1=[]), "change.top1: expected a number or null, found a list"),
        (
            lambda d: d.update(epochs=[{"held_out_top1": {}}]),
            "epochs[0].held_out_top1: expected a number or null, found an object",
        ),
        (lambda d: d["fidelity"].pop("mean_kl"), 'fidelity: the key "mean_kl" is missing'),
        (lambda d: d.update(fidelity=3), "fidelity: expected an object, found 3"),
        (lambda d: d.update(stages=[3]), "stages[0]: expected an object, found 3"),
        (lambda d: d.update(baseline=3), "baseline: expected an object, found 3"),
        (lambda d: d.update(change=3), "change: expected an object, found 3"),
        (lambda d: d.update(epochs={}), "epochs: expected a list, found an object"),
    ],
)
def test_a_wrong_value_of_version_1_is_named_with_its_place(edit: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        from_json(old(edit))
    assert str(error.value) == message


def test_stages_that_an_older_release_has_left_are_read() -> None:
    written = json.loads((OLD / "unfinished" / "state" / "stages.json").read_text(encoding="utf-8"))["stages"]
    for row, stage in zip(written, map(stage_from, json.loads(json.dumps(written))), strict=True):
        assert [score.value for score in stage.scores] == [row["accuracy"][name] for name in ("top1", "top5", "loss")]
    stage = Stage("cut", 1, 2, example.scores(0.5), 3.0)
    assert stage_from(asdict(stage)) == stage
    assert stage_from({"name": "cut", "macs": 1, "params": 2, "accuracy": None, "seconds": 3.0}) == Stage("cut", 1, 2, [], 3.0)


# In version 2 ---------------------------------------------------------------------------------------------------------


def test_scripts_that_read_version_1_go_on_working() -> None:
    then = json.loads(old())
    now = json.loads(to_json(from_json(old())))
    assert now["version"] == 2
    assert now["baseline"]["accuracy"] == then["baseline"]["accuracy"]
    assert [stage["accuracy"] for stage in now["stages"]] == [stage["accuracy"] for stage in then["stages"]]
    assert now["change"]["top1"] == then["change"]["top1"]
    assert {name: now["fidelity"][name] for name in then["fidelity"]} == then["fidelity"]


def test_the_keys_of_version_1_are_null_without_data_and_absent_for_other_tasks() -> None:
    blind = json.loads(to_json(example.without_data()))
    assert blind["baseline"]["accuracy"] is None and blind["change"]["top1"] is None
    assert blind["fidelity"]["agreement"] == 0.41
    other = json.loads(to_json(example.restoration()))
    parts = other["baseline"], other["compressed"], *other["stages"], other["change"], other["fidelity"]
    assert not any({"accuracy", "top1", "agreement", "mean_kl"} & part.keys() for part in parts)


def edited(edit: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(to_json(example.example()))
    edit(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["compressed"]["accuracy"].update(top1=0.9),
            "compressed.accuracy.top1: expected 0.871, as in the scores, found 0.9",
        ),
        (
            lambda d: d["compressed"]["scores"][0].update(value=0.9),
            "compressed.accuracy.top1: expected 0.9, as in the scores, found 0.871",
        ),
        (
            lambda d: d["stages"][1].update(accuracy=None),
            "stages[1].accuracy: expected an object, as in the scores, found null",
        ),
        (lambda d: d["change"].update(top1=0.5), "change.top1: expected -0.008600000000000052, as in the scores, found 0.5"),
        (lambda d: d["fidelity"].update(mean_kl=0), "fidelity.mean_kl: expected 0.0874, as in the scores, found 0"),
        (lambda d: d["baseline"]["accuracy"].update(colour=1), 'baseline.accuracy: unknown key "colour"'),
        (lambda d: d.update(task="restore"), 'baseline: unknown key "accuracy"'),
    ],
)
def test_a_file_cannot_say_two_things(edit: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        from_json(edited(edit))
    assert str(error.value) == message


def test_the_keys_of_version_1_may_be_absent() -> None:
    def drop(data: dict[str, Any]) -> None:
        del data["baseline"]["accuracy"], data["stages"][0]["accuracy"], data["change"]["top1"], data["fidelity"]["agreement"]

    assert from_json(edited(drop)) == example.example()
