"""The uncut network, trained as the pruned ones are: what the epochs alone give, and the mark that pruning is held against.

It is a run like any other, with a directory, stages and a report; only nothing is cut.
"""

from __future__ import annotations

import torch
from torch import nn

from compressor.errors import UsageError
from compressor.methods.widths import Goal
from compressor.report import Profile, Target
from compressor.runs.directory import RunDirectory
from compressor.runs.journal import Journal
from compressor.runs.run import Run
from compressor.runs.settings import Setting
from compressor.runs.sources import Opened
from compressor.training.method import Job, Method
from compressor.training.train import classify, seed_all

NAME = "dense"  # what it is called where methods are


class FineTuning(Run):
    """One such run."""

    method = NAME

    def _check(self) -> None:
        if not self.recipe.epochs or self.images.spec is None:
            raise UsageError("--dense trains the uncut network: give --data and at least one of --epochs, or --no-dense.")

    @property
    def wishes(self) -> dict[str, Setting]:
        return {"method": NAME}

    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        """A method that changes nothing."""
        model, nothing = opened.loaded.model, Goal("macs", NAME, share=0.0)
        seed_all(self.recipe.seed)
        return Method(Job(model, opened.inputs, None, nothing, classify(self.recipe, model, device))).to(device)

    def _target(self, method: Method, small: nn.Module, baseline: Profile, compressed: Profile) -> Target:
        return Target("macs", 0.0, 0.0, NAME)
