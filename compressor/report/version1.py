"""Version 1 of the report, which was for classifiers alone: read, and the keys of it that version 2 keeps for them.

In version 1 a network had an `accuracy`, and a change a `top1`; now both have scores by name. For classification `report.json`
still has `accuracy`, `change.top1`, `fidelity.agreement` and `fidelity.mean_kl`, so that scripts that read it go on working.
They are written from the scores, and may not contradict them when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from compressor.errors import UsageError, printable
from compressor.report.schema import Report, Score
from compressor.report.typed import found, read, schema_of


@dataclass(frozen=True)
class Accuracy:
    """Scores of a classifier, as in version 1: top-1 with its 95 % interval, top-5, and the mean cross-entropy."""

    top1: float
    low: float | None
    high: float | None
    n: int
    top5: float | None = None
    loss: float | None = None

    def scores(self) -> list[Score]:
        """Those that were measured."""
        top5 = [] if self.top5 is None else [Score("top5", "top-5", self.top5, "%", 2, self.n)]
        loss = [] if self.loss is None else [Score("loss", "cross-entropy", self.loss, "", 4, self.n, more_is_better=False)]
        return [Score("top1", "top-1", self.top1, "%", 2, self.n, self.low, self.high), *top5, *loss]


@dataclass(frozen=True)
class _Fidelity:
    agreement: float
    mean_kl: float
    n: int
    inputs: str

    def scores(self) -> list[Score]:
        agreement = Score("agreement", "same top-1 prediction", self.agreement, "%", 2, self.n)
        return [agreement, Score("kl", "mean KL divergence", self.mean_kl, "nats", 3, self.n, more_is_better=False)]


# Files of version 1 ---------------------------------------------------------------------------------------------------


def upgrade(data: dict[str, Any]) -> None:
    """Make a report of version 1 one of version 2. Raises UsageError naming the key of a wrong value."""
    data["version"] = 2
    measured: dict[str, list[Score]] = {}
    for path, part in _measured(data):
        measured[path] = _upgrade_measured(part, path)
    if isinstance(change := data.get("change"), dict):
        top1 = read(float | None, change.pop("top1", None), "change.top1")
        before = {score.name: score.value for score in measured.get("baseline", [])}
        after = {score.name: score.value for score in measured.get("compressed", [])}
        values = {name: after[name] - before[name] for name in after if name in before}
        values |= {} if top1 is None else {"top1": top1}
        change["scores"] = {name: {"value": value} for name, value in values.items()}
    for place, epoch in enumerate(_objects(data.get("epochs"))):
        upgrade_epoch(epoch, f"epochs[{place}]")
    if data.get("fidelity") is not None:
        fidelity = read(_Fidelity, data["fidelity"], "fidelity")
        data["fidelity"] = {"scores": [*map(asdict, fidelity.scores())], "n": fidelity.n, "inputs": fidelity.inputs}


def upgrade_epoch(epoch: dict[str, Any], path: str) -> None:
    """Make an epoch of version 1 one of version 2. Others are not changed."""
    if "held_out" in epoch:
        return
    top1 = read(float | None, epoch.pop("held_out_top1", None), f"{path}.held_out_top1")
    epoch.pop("train_top1", None)
    # The number of images was not written.
    epoch["held_out"] = None if top1 is None else asdict(Score("top1", "top-1", top1, "%", 2, 0))


def upgrade_stage(stage: dict[str, Any]) -> None:
    """Make a stage of version 1, which an interrupted run has left, one of version 2. Others are not changed."""
    if "accuracy" in stage:
        _upgrade_measured(stage, "stage")


def _upgrade_measured(part: dict[str, Any], path: str) -> list[Score]:
    """Put the scores in place of the `accuracy` of a profile or a stage."""
    accuracy = read(Accuracy | None, part.pop("accuracy", None), f"{path}.accuracy")
    scores = accuracy.scores() if accuracy else []
    part["scores"] = [*map(asdict, scores)]
    return scores


def _measured(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The profiles and stages, and their places."""
    for name in ("baseline", "compressed"):
        if isinstance(data.get(name), dict):
            yield name, data[name]
    yield from ((f"stages[{place}]", stage) for place, stage in enumerate(_objects(data.get("stages"))))


def _objects(value: object) -> list[dict[str, Any]]:
    """A list of objects; anything else is refused when the report is read."""
    return value if isinstance(value, list) and all(isinstance(part, dict) for part in value) else []


# Keys of version 1 in files of version 2 ------------------------------------------------------------------------------


def add_keys(data: dict[str, Any]) -> None:
    """Add the keys of version 1 to a classifier's report of version 2."""
    if data["task"] != "classify":
        return
    for _, part in _measured(data):
        part["accuracy"] = _accuracy(part["scores"])
    data["change"]["top1"] = data["change"]["scores"].get("top1", {}).get("value")
    if data["fidelity"] is not None:
        values = {score["name"]: score["value"] for score in data["fidelity"]["scores"]}
        data["fidelity"] |= {"agreement": values.get("agreement"), "mean_kl": values.get("kl")}


def _accuracy(scores: list[dict[str, Any]]) -> dict[str, Any] | None:
    named = {score["name"]: score for score in scores}
    if "top1" not in named:
        return None
    top1, others = named["top1"], {name: named[name]["value"] if name in named else None for name in ("top5", "loss")}
    return {"top1": top1["value"], "low": top1["low"], "high": top1["high"], "n": top1["n"], **others}


def take_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Remove the keys of version 1 from a classifier's report of version 2; returns their values by place."""
    if data.get("task", "classify") != "classify":
        return {}
    others = [("change", ["top1"]), ("fidelity", ["agreement", "mean_kl"])]
    parts = [(path, part, ["accuracy"]) for path, part in _measured(data)]
    parts += [(name, data[name], keys) for name, keys in others if isinstance(data.get(name), dict)]
    return {f"{path}.{key}": part.pop(key) for path, part, keys in parts for key in keys if key in part}


def check_keys(kept: dict[str, Any], report: Report) -> None:
    """Raise UsageError naming a value of `take_keys` that contradicts the scores of `report`."""
    data = asdict(report)
    add_keys(data)
    told = take_keys(data)
    for place, value in kept.items():
        _check(place, value, told[place])


def _check(place: str, value: object, told: object) -> None:
    if isinstance(value, dict) and isinstance(told, dict):
        for key, part in value.items():
            if key not in told:
                raise UsageError(f'{place}: unknown key "{printable(key)}"')
            _check(f"{place}.{key}", part, told[key])
    elif value != told:
        raise UsageError(f"{place}: expected {found(told)}, as in the scores, found {found(value)}")


def describe_keys(definitions: dict[str, Any]) -> None:
    """Add the keys of version 1 to the JSON Schema of version 2."""
    accuracy = {"anyOf": [schema_of(Accuracy, definitions), {"type": "null"}]}
    share = {"type": ["number", "null"]}
    kept: dict[str, dict[str, dict[str, Any]]] = {
        "Profile": {"accuracy": accuracy},
        "Stage": {"accuracy": accuracy},
        "Change": {"top1": share},
        "Fidelity": {"agreement": share, "mean_kl": share},
    }
    for name, keys in kept.items():
        described = {key: {**kind, "description": "Of a classifier: from the scores."} for key, kind in keys.items()}
        definitions[name]["properties"] |= described
