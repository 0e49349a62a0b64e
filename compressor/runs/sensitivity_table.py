"""The loss from pruning each group alone: the rows of `compress sensitivity`, as a table and as curves for the budget."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from compressor.channels import Channels
from compressor.errors import UsageError, printable
from compressor.files import read_text
from compressor.training.goal import Curve

TABLE = "sensitivity.csv"


@dataclass(frozen=True)
class Row:
    """One group pruned alone. Shares are of the whole network."""

    group: str
    channels: int
    rate: float  # the fraction of its channels to remove; 0 is the original
    kept: int
    measured: str  # what `quality` is
    quality: float  # the headline score on held-out images if it is a share, else the agreement with the original
    agreement: float  # with the outputs of the original, 0 to 1
    distance: float  # of the outputs from those of the original: the KL divergence of a classifier, in nats; a relative error
    macs_removed: float
    params_removed: float


@dataclass(frozen=True)
class Sensitivity:
    """All rows, group by group, with rates ascending from 0."""

    rows: list[Row]

    @property
    def measured(self) -> str:
        """What `Row.quality` is."""
        return self.rows[0].measured

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The rows of each group."""
        return {name: list(rows) for name, rows in groupby(self.rows, lambda row: row.group)}

    @property
    def curves(self) -> dict[str, Curve]:
        """The loss of each group, for the budget."""
        return {name: _curve(rows) for name, rows in self.groups.items()}

    @property
    def ranked(self) -> list[str]:
        """The groups, the most sensitive first: by the mean loss over the rates, then by the mean divergence."""

        def suffering(name: str) -> tuple[float, float]:
            first, *cut = self.groups[name]
            return float(np.mean([first.quality - row.quality for row in cut])), float(np.mean([row.distance for row in cut]))

        return sorted(self.groups, key=suffering, reverse=True)


def _curve(rows: Sequence[Row]) -> Curve:
    losses = {1 - row.kept / row.channels: rows[0].quality - row.quality for row in rows}  # two rates may have the same `kept`
    return Curve(rows[0].channels, tuple(losses), tuple(losses.values()))


# The table as a file --------------------------------------------------------------------------------------------------


def to_csv(rows: Sequence[Row]) -> str:
    """A header and one line per row; values that were not measured are empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return file.getvalue()


def read_sensitivity(path: str | Path) -> Sensitivity:
    """Read the table of `compress sensitivity`. Raises UsageError when the file is missing, or is something else."""
    path = Path(path)
    try:
        table = Sensitivity([_parsed(line) for line in csv.DictReader(io.StringIO(read_text(path), newline=""))])
        if not table.rows:
            raise ValueError("it has no rows")
        if len(measured := {row.measured for row in table.rows}) > 1:
            raise ValueError(f"its qualities are not comparable: {' and '.join(sorted(measured))}")
        for name, curve in table.curves.items():
            if curve.rates[0] != 0 or len(curve.rates) < 2 or not all(a < b for a, b in pairwise(curve.rates)):
                raise ValueError(f"the rates of {name} do not ascend from 0")
        return table
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): give the {TABLE} of `compress sensitivity`.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} is not a table of `compress sensitivity` ({error}): give its {TABLE}.") from error


def read_curves(path: str | Path, channels: Channels) -> dict[str, Curve]:
    """The curves in a table for the groups of `channels`. Raises UsageError when there are none."""
    known = read_sensitivity(path).curves
    sizes = {group.name: group.size for group in channels.groups}
    found = {name: curve for name, curve in known.items() if curve.size == sizes.get(name)}
    if not found:
        raise UsageError(
            f"--sensitivity {path} has no group of this model: its groups are {', '.join([*known][:3])}, ...\n"
            "Measure this model with `compress sensitivity MODEL`."
        )
    return found


def _parsed(line: Mapping[str, str]) -> Row:
    """A line of the table, also of one that names top-1 `accuracy` and the divergence `kl`, as older releases wrote it."""
    if "kl" in line:
        measured, quality = (
            ("top-1", line["accuracy"]) if line["accuracy"] else ("agreement with the original", line["agreement"])
        )
        line = {**line, "measured": measured, "quality": quality, "distance": line["kl"]}
    names = ("rate", "quality", "agreement", "distance", "macs_removed", "params_removed")
    shares = {name: float(line[name]) for name in names}
    row = Row(line["group"], int(line["channels"]), kept=int(line["kept"]), measured=printable(line["measured"]), **shares)
    if not 0 < row.kept <= row.channels or not all(map(math.isfinite, shares.values())):
        raise ValueError(f"invalid row {','.join(line.values())}")
    return row
