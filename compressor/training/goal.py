"""The compression target (`--rate 0.5`, `--target 'params<=5M'` and others), and sensitivity curves.

A goal is a share of the model's MACs, parameters or bytes to remove, or a share of the filters, or of the single weights, of
every layer; for low-rank factorization, also the energy that each layer keeps, or its rank.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from compressor.errors import UsageError, did_you_mean
from compressor.report.formatting import BYTES

Quantity = Literal["macs", "params", "size", "filters", "weights", "energy", "rank"]
TARGETS: tuple[Quantity, ...] = ("macs", "params", "size", "filters", "weights")
UNIT = {"macs": "MACs", "params": "parameters", "size": "bytes"}
WITHIN = 0.01  # a goal counts as met within one percentage point of the original


@dataclass(frozen=True)
class Goal:
    """Remove `share` of the quantity, or keep at most `limit` of it (in MACs, parameters or bytes)."""

    quantity: Quantity
    text: str  # as the user wrote it
    share: float | None = None
    limit: float | None = None

    def asked(self, full: float) -> float:
        """The share to remove from `full`."""
        if self.share is not None:
            return self.share
        assert self.limit is not None
        return max(0.0, 1.0 - self.limit / full)


def parse_rate(rate: float) -> Goal:
    """`--rate 0.5`: remove half of the MACs. Raises UsageError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        hint = f"; for {rate:g} % write {rate / 100:g}" if 1 < rate < 100 else ""
        raise UsageError(f"--rate is the share of MACs to remove, between 0 and 1, both excluded; found {rate:g}{hint}.")
    return Goal("macs", f"--rate {rate:g}", share=rate)


def parse_energy(energy: float) -> Goal:
    """`--energy 0.9`: each layer keeps the lowest rank with more than that share of its energy. Raises UsageError."""
    if not 0 < energy < 1:
        raise UsageError(
            f"--energy is the share of a layer's energy to keep, between 0 and 1, both excluded; found {energy:g}."
        )
    return Goal("energy", f"--energy {energy:g}", share=1 - energy)


def parse_rank(rank: int) -> Goal:
    """`--rank 64`: each layer keeps at most this rank. Raises UsageError."""
    if rank < 1:
        raise UsageError(f"--rank must be 1 or more; found {rank}.")
    return Goal("rank", f"--rank {rank}", limit=rank)


def parse_target(text: str) -> Goal:
    """`macs=50%` removes half; `params<=5M`, `size<=10MB`, `macs<=40%` bound what remains. Raises UsageError."""
    match = re.fullmatch(r"\s*(\w+)\s*(<=|=)\s*([0-9.eE+-]+)\s*([%A-Za-z]*)\s*", text)
    form = "write it like macs=50%, params<=5M, size<=10MB, filters=40% or weights=70%"
    if match is None:
        raise UsageError(f"--target {text!r} was not understood: {form}.")
    quantity, relation, number, unit = match.groups()
    if quantity not in TARGETS:
        raise UsageError(f"--target {quantity!r} is not one of {', '.join(TARGETS)}{did_you_mean(quantity, TARGETS) or '.'}")
    try:
        value = float(number)
    except ValueError:
        raise UsageError(f"--target {text!r}: {number!r} is not a number; {form}.") from None
    if unit == "%":
        share = value / 100 if relation == "=" else 1 - value / 100
        if not 0 < share < 1:
            raise UsageError(f"--target {text!r} removes {share:.0%}; the share must be between 0 % and 100 %, both excluded.")
        return Goal(quantity, text.strip(), share=share)
    if relation == "=" or quantity in ("filters", "weights") or unit.upper() not in BYTES or not value > 0 or math.isinf(value):
        raise UsageError(f"--target {text!r} was not understood: {form}.")
    return Goal(quantity, text.strip(), limit=value * BYTES[unit.upper()])


@dataclass(frozen=True)
class Curve:
    """The sensitivity of a network to one channel group of `size` channels: quality lost, 0..1, at shares of it pruned.

    `rates` increase from 0. A loss that is smaller than one before it, as noise on few images, counts as that one.
    """

    size: int
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    def at(self, rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The loss at each of `rates`: linear between measured rates, and extrapolated linearly beyond the last."""
        known, losses = np.array(self.rates), np.maximum.accumulate(np.maximum(self.losses, 0.0))
        if known[-1] < 1:
            slope = (losses[-1] - losses[-2]) / (known[-1] - known[-2])
            known, losses = np.append(known, 1.0), np.append(losses, losses[-1] + slope * (1 - known[-1]))
        found: npt.NDArray[np.float64] = np.interp(rates, known, np.minimum(losses, 1.0))
        return found
