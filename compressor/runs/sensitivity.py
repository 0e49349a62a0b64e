"""Sensitivity analysis: the loss of quality when one group of coupled channels alone is pruned, at several rates.

    for each group:  for each rate:  prune its weakest channels ──> verified network ──> outputs ──> a row

The weakest channels have the lowest scores of a pruning method. They are really removed, so that normalization layers see what
they would see after pruning. Outputs are compared with the targets of held-out training images, never of test images, and with
the original's outputs for them. `prune` uses the rows as curves, to spare sensitive groups.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from compressor.channels import Channels, analyse
from compressor.channels.groups import Group
from compressor.errors import Infeasible, OutputError, UsageError
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.catalogue import Value
from compressor.methods.prune.filters import FilterPruning
from compressor.network.inputs import AnyInputs, Inputs
from compressor.report import formatting
from compressor.runs.group_ablation import Bench, Sample
from compressor.runs.journal import Journal
from compressor.runs.run import Order, check_fits
from compressor.runs.sensitivity_table import TABLE, Row, Sensitivity, read_sensitivity, to_csv
from compressor.runs.settings import Setting, first_change, to_toml
from compressor.runs.sources import Images, Opened, Source, device_errors, open_both, pick_device, task_of
from compressor.tasks import Task
from compressor.training.goal import Goal
from compressor.training.method import Job
from compressor.training.recipe import Recipe
from compressor.training.train import seed_all

RATES = (0.25, 0.5, 0.75)
PLOT, SETTINGS = "sensitivity.svg", "config.toml"


class Measurement:
    """One run of `compress sensitivity`. Call `run()` once."""

    def __init__(
        self,
        order: Order,
        *,
        rates: Sequence[float] = RATES,
        method: str = "magnitude",
        settings: Mapping[str, Value] | None = None,
        count: int | None = None,
    ) -> None:
        """`count` limits the held-out images. Of the recipe of `order`, only the seed is used. Raises UsageError."""
        if order.images.spec is None:
            raise UsageError("Sensitivity is measured on images: give --data. A folder of images without labels is enough.")
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
            "method_sha256": self.entry.sha256,
            "set": [f"{name}={value}" for name, value in self.method_settings.items()] or None,
            "rates": list(self.rates),
            **self.images.settings,
            "images": self.count,
            "input": None if self.inputs is None else [str(entry) for entry in self.inputs.each],
            "seed": self.seed,
        }

    def run(self) -> Sensitivity:
        """Measure every group that is not yet in the table, and draw the plot. Raises a CompressError."""
        with device_errors(), catalogue.blaming(self.entry):
            return self._measured()

    def _measured(self) -> Sensitivity:
        journal, device = Journal(self.console), pick_device(self.device_name)
        seed_all(self.seed)  # a model given by name has random weights: the same in every run
        opened = open_both(self.source, self.images, self.inputs, self.seed)
        task = task_of(opened, self.images, device)
        check_fits(self.entry, task)
        channels = analyse(opened.loaded.model, opened.inputs)
        if not channels.atoms:
            raise Infeasible(
                "No channel of this model can be pruned: `compress inspect` lists the frozen layers, with the reason."
            )
        rows = self._begin(opened)
        sample = Sample.take(opened, task, self.count, device)
        for line in (f"{self.source.model}: {opened.loaded.arch}, measured on {sample.described}", *opened.notes):
            journal.say(line)
        scores = channels.split(self._method(opened, channels, task).scores(channels))
        bench = Bench(opened.loaded.model.to(device), opened.inputs, channels, sample, task)
        known = {row.group for row in rows}
        left = [group for group in channels.groups if group.size > 1 and group.name not in known]
        began = time.perf_counter()
        for done, group in enumerate(left, 1):
            own = bench.rows(group, scores[group.name], self.rates)
            rows += own
            write_text(self.out / TABLE, to_csv(rows))
            ahead = (time.perf_counter() - began) / done * (len(left) - done)
            journal.say(f"  {_told(group, own)}" + (f", about {formatting.duration(ahead)} left" if ahead else ""))
        if not rows:
            raise Infeasible("No group of this model can be pruned alone: the network's code depends on its widths.")
        result = Sensitivity(rows)
        write_text(self.out / PLOT, draw(result))
        return result

    def _begin(self, opened: Opened) -> list[Row]:
        """The existing rows. Raises OutputError when they would be lost, UsageError when they have other settings."""
        table, record = self.out / TABLE, self.out / SETTINGS
        config = to_toml({**self.settings, "sha256": opened.loaded.sha256})
        rows = []
        if table.exists() and self.resume:
            if change := first_change(record.read_text(encoding="utf-8") if record.exists() else "", config):
                raise UsageError(f"--resume: {self.out} was started with other settings: {change}. --force starts over.")
            rows = read_sensitivity(table).rows
        elif table.exists() and not self.force:
            raise OutputError(
                f"{table} exists: --resume adds the missing groups, --force starts over, --out DIR chooses another directory."
            )
        else:
            table.unlink(missing_ok=True)  # before its settings are replaced
        write_text(record, config)
        return rows

    def _method(self, opened: Opened, channels: Channels, task: Task) -> FilterPruning:
        """The method, used only for its scores: it prunes nothing."""
        goal = Goal("filters", "--rates", share=self.rates[-1])  # one that every network can meet
        job = Job(opened.loaded.model, opened.inputs, channels, goal, task)
        method = catalogue.create(self.entry, job, self.method_settings)
        assert isinstance(method, FilterPruning)
        return method


def _checked(rates: Sequence[float]) -> tuple[float, ...]:
    """In ascending order. Raises UsageError unless all are between 0 and 1."""
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise UsageError(f"--rates are fractions of a group's channels, between 0 and 1, both excluded; found {list(rates)}.")
    return tuple(sorted(set(rates)))


def _told(group: Group, rows: Sequence[Row]) -> str:
    if not rows:
        return f"{group.name}: not pruned, the network's code depends on its width"
    first, *cut = rows
    lost = ", ".join(f"{formatting.points(row.quality - first.quality)} at {100 * row.rate:.3g}%" for row in cut)
    return f"{group.name}, {group.size} channels: {lost}"


def draw(sensitivity: Sensitivity) -> str:
    """The plot as an SVG file: the loss of each group, one line per rate."""
    from compressor.report.plots import as_file, by_group  # matplotlib takes a second to import

    groups = sensitivity.groups
    lines: dict[str, list[float]] = {}
    for first, *cut in groups.values():
        for row in cut:
            lines.setdefault(f"{100 * row.rate:.3g}% of its channels pruned", []).append(100 * (row.quality - first.quality))
    return as_file(
        by_group("sensitivity", "Each group pruned alone", f"change of {sensitivity.measured}, points", list(groups), lines)
    )


def measure_sensitivity(
    model: str,
    *,
    data: str,
    rates: Sequence[float] = RATES,
    out: str | Path,
    method: str = "magnitude",
    settings: Mapping[str, Value] | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    images: int | None = None,
    inputs: AnyInputs | None = None,
    device: str = "auto",
    force: bool = False,
) -> Sensitivity:
    """Prune every group of `model` (as on the command line) alone at `rates`, and write the results into the directory `out`.

    `images` limits the held-out images. Raises a CompressError.
    """
    order = Order(
        Source(model, arch, arch_args or {}),
        Images(data),
        Recipe(),
        Path(out),
        device,
        inputs=None if inputs is None else Inputs.of(inputs),
        force=force,
    )
    return Measurement(order, rates=rates, method=method, settings=settings, count=images).run()
