"""How much a network suffers when one group of coupled channels alone is cut, at several rates.

    for each group:  for each rate:  cut its weakest channels ──> verified small network ──> answers ──> a row

The weakest channels are those of a pruning method's scores, and really cut, so that norms over channels see what they would see
after pruning. With data, answers are compared with the labels of held-out training images, never of test images; without, with
the original's own answers to random inputs. The rows are the curves that `prune` can take to spare the sensitive groups.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels import Channels, Mask, analyse, remove
from compressor.channels.groups import Group
from compressor.errors import DataError, Infeasible, OutputError, UsageError
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.catalogue import Value
from compressor.methods.prune.filters import FilterPruning
from compressor.methods.widths import Curve, Goal, Scores
from compressor.network import cost
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.outputs import logits_of
from compressor.report import figures
from compressor.runs.journal import Journal
from compressor.runs.run import Order
from compressor.runs.settings import Setting, first_change, to_toml
from compressor.runs.sources import Images, Opened, Source, check_answers, open_both, pick_device
from compressor.runs.stages import EVALUATION_BATCH
from compressor.tasks.classify import Classify
from compressor.texts import read_text
from compressor.training.method import Batch, Job
from compressor.training.recipe import Recipe
from compressor.training.train import seed_all

RATES = (0.25, 0.5, 0.75)
HELD_OUT_IMAGES, RANDOM_INPUTS = 2000, 64
RANDOM_BATCH = 8
DIGITS = 6  # of what is written down
TABLE, PLOT, SETTINGS = "sensitivity.csv", "sensitivity.svg", "config.toml"


@dataclass(frozen=True)
class Row:
    """One group cut alone. Shares are of the whole network; `kl` is KL(original || cut) of the softmax outputs, in nats."""

    group: str
    channels: int
    rate: float  # the share of its channels that was to go; 0 is the original
    kept: int
    accuracy: float | None  # top-1 on held-out images
    agreement: float  # share of the original's top-1 answers that stay
    kl: float
    macs_removed: float
    params_removed: float

    @property
    def quality(self) -> float:
        """Accuracy where it was measured, else agreement."""
        return self.agreement if self.accuracy is None else self.accuracy


@dataclass(frozen=True)
class Sensitivity:
    """All rows, those of one group after another, with rates that rise from 0."""

    rows: list[Row]

    @property
    def measured(self) -> str:
        """What `Row.quality` is."""
        return "top-1" if any(row.accuracy is not None for row in self.rows) else "agreement with the original"

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The rows of each group."""
        return {name: list(rows) for name, rows in groupby(self.rows, lambda row: row.group)}

    @property
    def curves(self) -> dict[str, Curve]:
        """What each group loses, for the budget."""
        return {name: _curve(rows) for name, rows in self.groups.items()}

    @property
    def ranked(self) -> list[str]:
        """The groups, the most sensitive first: by the mean loss over the rates, then by the mean divergence."""

        def suffering(name: str) -> tuple[float, float]:
            first, *cut = self.groups[name]
            return float(np.mean([first.quality - row.quality for row in cut])), float(np.mean([row.kl for row in cut]))

        return sorted(self.groups, key=suffering, reverse=True)


def _curve(rows: Sequence[Row]) -> Curve:
    losses = {1 - row.kept / row.channels: rows[0].quality - row.quality for row in rows}  # few channels: two rates may be one
    return Curve(rows[0].channels, tuple(losses), tuple(losses.values()))


# The table as a file --------------------------------------------------------------------------------------------------


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row below the names of the columns; what was not measured is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return file.getvalue()


def read_sensitivity(path: str | Path) -> Sensitivity:
    """What `compress sensitivity` wrote. Raises UsageError when the file is not there, or is something else."""
    path = Path(path)
    try:
        table = Sensitivity([_parsed(line) for line in csv.DictReader(io.StringIO(read_text(path), newline=""))])
        for name, curve in table.curves.items():
            if curve.rates[0] != 0 or len(curve.rates) < 2 or not all(a < b for a, b in pairwise(curve.rates)):
                raise ValueError(f"the rates of {name} do not rise from 0")
        return table
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): give the {TABLE} of `compress sensitivity`.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} is not a table of `compress sensitivity` ({error}): give its {TABLE}.") from error


def read_curves(path: str | Path, channels: Channels) -> dict[str, Curve]:
    """The curves in a table of the groups that `channels` has. Raises UsageError when there are none."""
    known = read_sensitivity(path).curves
    sizes = {group.name: group.size for group in channels.groups}
    found = {name: curve for name, curve in known.items() if curve.size == sizes.get(name)}
    if not found:
        raise UsageError(
            f"--sensitivity {path} has no group of this model: it is about {', '.join([*known][:3]) or 'none'}, ...\n"
            "Measure this one with `compress sensitivity MODEL`."
        )
    return found


def _parsed(line: Mapping[str, str]) -> Row:
    accuracy = float(line["accuracy"]) if line["accuracy"] else None
    shares = {name: float(line[name]) for name in ("rate", "agreement", "kl", "macs_removed", "params_removed")}
    row = Row(line["group"], int(line["channels"]), kept=int(line["kept"]), accuracy=accuracy, **shares)
    if not 0 < row.kept <= row.channels or not all(map(math.isfinite, (accuracy or 0.0, *shares.values()))):
        raise ValueError(f"no group has the row {','.join(line.values())}")
    return row


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """What the networks are asked: batches with one tensor for each input, and the labels [n] where there are any."""

    batches: list[list[Tensor]]
    targets: Tensor | None
    name: str

    @staticmethod
    def take(opened: Opened, count: int | None, device: torch.device, seed: int) -> _Sample:
        """`count` held-out images, spread evenly; without data random inputs. Raises DataError when none are held out."""
        data = opened.data
        if data is None:
            count = count or RANDOM_INPUTS
            drawn = opened.inputs.random(count, seed, opened.loaded.model.to(device))
            return _Sample(
                [list(batch) for batch in zip(*(torch.split(t, RANDOM_BATCH) for t in drawn), strict=True)],
                None,
                "random inputs",
            )
        if not data.counts.get("held_out"):
            raise DataError(
                f"{data.spec} holds out no images, and test images must not choose: have it return held-out images."
            )
        read = list(data.batches("held_out", batch_size=EVALUATION_BATCH, device=device, limit=count or HELD_OUT_IMAGES))
        return _Sample(
            [[batch.images] for batch in read], torch.cat([batch.targets for batch in read]).cpu(), "held-out images"
        )

    @property
    def described(self) -> str:
        return f"{sum(len(tensors[0]) for tensors in self.batches):,} {self.name}"

    def ask(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The scores [n, classes] on the CPU; one row a pixel where a network classifies pixels. Raises UsageError."""
        with torch.inference_mode():
            answers = [logits_of(inputs.call(model.eval(), tensors)).float().cpu() for tensors in self.batches]
        if answers[0].dim() < 2 or len({answer.shape[1:] for answer in answers}) > 1:
            raise UsageError("The network does not answer with scores for classes: its sensitivity cannot be measured.")
        return torch.cat([answer.movedim(1, -1).flatten(0, -2) for answer in answers])


class _Bench:
    """The network, and what it answers as long as nothing is cut."""

    def __init__(self, model: nn.Module, inputs: Inputs, channels: Channels, sample: _Sample) -> None:
        self.model, self.inputs, self.channels, self.sample = model, inputs, channels, sample
        self.before = sample.ask(model, inputs)  # [n, classes]

    def rows(self, group: Group, scores: Scores, rates: Sequence[float]) -> list[Row]:
        """The original, and the network without the weakest channels of one group at each rate. `scores` [group.size].

        Empty when the group cannot be cut.
        """
        order = np.argsort(scores, kind="stable")
        rows = [self._row(group, 0.0, np.ones(group.size, bool), self.before)]
        for rate in rates:
            kept = np.ones(group.size, bool)
            kept[order[: min(max(round(rate * group.size), 1), group.size - 1)]] = False
            small = self._cut(group, kept)
            if small is None:
                return []
            rows.append(self._row(group, rate, kept, self.sample.ask(small, self.inputs)))
        return rows

    def _cut(self, group: Group, kept: Mask) -> nn.Module | None:
        """The verified network of which one group keeps `kept` [group.size] alone; None when it cannot be cut."""
        removed = remove(self.model, self.channels, lambda channels: channels.join({group.name: kept}), self.inputs)
        return None if removed.mask.all() else removed.model

    def _row(self, group: Group, rate: float, kept: Mask, after: Tensor) -> Row:
        whole, mask = self.channels.all_kept(), self.channels.join({group.name: kept})
        shares = [1 - table.total(mask) / table.total(whole) for table in (self.channels.macs, self.channels.params)]
        targets = self.sample.targets
        blank = torch.zeros(0)
        closeness = cost.fidelity(lambda _: self.before, lambda _: after, [Batch(blank, blank, blank)], self.sample.name)
        accuracy = None if targets is None else cost.accuracy(lambda logits: logits, [Batch(after, targets, blank)]).top1
        rest = [round(figure, DIGITS) for figure in (closeness.agreement, closeness.mean_kl, *shares)]
        return Row(group.name, group.size, rate, int(kept.sum()), accuracy, *rest)


class Measurement:
    """One `compress sensitivity`. `run()` goes through it once."""

    def __init__(
        self,
        order: Order,
        *,
        rates: Sequence[float] = RATES,
        method: str = "magnitude",
        settings: Mapping[str, Value] | None = None,
        count: int | None = None,
    ) -> None:
        """`count` bounds the held-out images, or random inputs. Of the recipe of `order`, the seed alone counts."""
        self.source, self.images, self.inputs, self.device_name = order.source, order.images, order.inputs, order.device
        self.out, self.force, self.resume, self.console = order.out, order.force, order.resume, order.console
        self.rates, self.count, self.seed = _checked(rates), count, order.recipe.seed
        self.entry, self.method_settings = catalogue.find(method, "prune"), settings or {}

    @property
    def settings(self) -> dict[str, Setting]:
        """What the rows depend on, under the names of the command line's options."""
        return {
            **self.source.settings,
            "method": self.entry.name,
            "set": [f"{name}={value}" for name, value in self.method_settings.items()] or None,
            "rates": list(self.rates),
            **self.images.settings,
            "images": self.count,
            "input": None if self.inputs is None else [str(entry) for entry in self.inputs.each],
            "seed": self.seed,
        }

    def run(self) -> Sensitivity:
        """Measure every group that is not yet in the table, and draw the plot. Raises a CompressError."""
        journal, device = Journal(self.console), pick_device(self.device_name)
        seed_all(self.seed)  # a model that is named alone has random weights: the same ones in every run
        opened = open_both(self.source, self.images, self.inputs, self.seed)
        check_answers(opened.loaded.model, opened.data)
        channels = analyse(opened.loaded.model, opened.inputs)
        if not channels.atoms:
            raise Infeasible("Nothing can be cut from this model: see `compress inspect` for what is frozen, and why.")
        rows = self._begin(opened)
        sample = _Sample.take(opened, self.count, device, self.seed)
        for line in (f"{self.source.model}: {opened.loaded.arch}, measured on {sample.described}", *opened.notes):
            journal.say(line)
        scores = channels.split(self._method(opened, channels).scores(channels))
        bench = _Bench(opened.loaded.model.to(device), opened.inputs, channels, sample)
        known = {row.group for row in rows}
        left = [group for group in channels.groups if group.size > 1 and group.name not in known]
        began = time.perf_counter()
        for done, group in enumerate(left, 1):
            own = bench.rows(group, scores[group.name], self.rates)
            rows += own
            write_text(self.out / TABLE, to_csv(rows))
            ahead = (time.perf_counter() - began) / done * (len(left) - done)
            journal.say(f"  {_told(group, own)}" + (f", about {figures.duration(ahead)} left" if ahead else ""))
        if not rows:
            raise Infeasible("No group of this model can be cut alone: the network's code relies on its widths.")
        result = Sensitivity(rows)
        write_text(self.out / PLOT, draw(result))
        return result

    def _begin(self, opened: Opened) -> list[Row]:
        """The rows that are there. Raises OutputError when they would be lost, UsageError when they are of other settings."""
        table, record = self.out / TABLE, self.out / SETTINGS
        config = to_toml({**self.settings, "sha256": opened.loaded.sha256})
        rows = []
        if table.exists() and self.resume:
            if change := first_change(record.read_text(encoding="utf-8") if record.exists() else "", config):
                raise UsageError(f"--resume: {self.out} was begun with other settings: {change}. --force starts anew.")
            rows = read_sensitivity(table).rows
        elif table.exists() and not self.force:
            raise OutputError(f"{table} exists: --resume adds what is missing, --force starts anew, --out DIR goes elsewhere.")
        else:
            table.unlink(missing_ok=True)  # before its settings go
        write_text(record, config)
        return rows

    def _method(self, opened: Opened, channels: Channels) -> FilterPruning:
        """The method, for its scores alone: it cuts nothing."""
        goal = Goal("filters", "--rates", share=self.rates[-1])  # one that every network can meet
        job = Job(opened.loaded.model, opened.inputs, channels, goal, Classify())
        method = catalogue.create(self.entry, job, self.method_settings)
        assert isinstance(method, FilterPruning)
        return method


def _checked(rates: Sequence[float]) -> tuple[float, ...]:
    """In rising order. Raises UsageError unless all lie between 0 and 1."""
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise UsageError(f"--rates are shares of a group's channels, between 0 and 1, both excluded; found {list(rates)}.")
    return tuple(sorted(set(rates)))


def _told(group: Group, rows: Sequence[Row]) -> str:
    if not rows:
        return f"{group.name}: stays whole, the network's code relies on its width"
    first, *cut = rows
    lost = ", ".join(f"{figures.points(row.quality - first.quality)} at {100 * row.rate:.3g}%" for row in cut)
    return f"{group.name}, {group.size} channels: {lost}"


def draw(sensitivity: Sensitivity) -> str:
    """The plot as an SVG file: what each group loses, one line a rate."""
    from compressor.report.plots import as_file, by_group  # matplotlib takes a second to import

    groups = sensitivity.groups
    lines: dict[str, list[float]] = {}
    for first, *cut in groups.values():
        for row in cut:
            lines.setdefault(f"{100 * row.rate:.3g}% of its channels cut", []).append(100 * (row.quality - first.quality))
    return as_file(
        by_group("sensitivity", "Each group cut alone", f"change of {sensitivity.measured}, points", list(groups), lines)
    )


def measure_sensitivity(
    model: str,
    *,
    data: str | None = None,
    rates: Sequence[float] = RATES,
    out: str | Path,
    method: str = "magnitude",
    settings: Mapping[str, Value] | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    images: int | None = None,
    inputs: AnyInputs | None = None,
    force: bool = False,
) -> Sensitivity:
    """Cut every group of `model` (as on the command line) alone at `rates`, and write the results into the directory `out`.

    `images` bounds the held-out images, or random inputs without `data`. Raises a CompressError.
    """
    order = Order(
        Source(model, arch, arch_args or {}),
        Images(data),
        Recipe(),
        Path(out),
        inputs=None if inputs is None else Inputs.of(inputs),
        force=force,
    )
    return Measurement(order, rates=rates, method=method, settings=settings, count=images).run()
