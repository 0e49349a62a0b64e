"""What each group costs when it alone is cut: the rows of `compress sensitivity`, as a table and as curves for a budget."""

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
from compressor.errors import UsageError
from compressor.files import read_text
from compressor.training.goal import Curve

TABLE = "sensitivity.csv"


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
