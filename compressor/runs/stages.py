"""The network at each stage of a run, always measured on the same test images: original, cut, recalibrated, fine-tuned, ONNX.

Evaluating a large network takes minutes, so nothing is measured twice: a resumed run reads the results of its first part, and
the original's outputs for the test images are kept for the comparison at the end, if they fit into memory.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.data import Batches, Data
from compressor.errors import UsageError
from compressor.files import read_text, write_text
from compressor.network.cost import count_macs, count_params
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.outputs import Predict, torch_predict
from compressor.onnx.runtime import onnx_predict
from compressor.report import Difference, Fidelity, Score, Stage, formatting
from compressor.report.read import stage_from
from compressor.runs.evaluation_batch import MOST, batch_for
from compressor.runs.journal import Journal
from compressor.runs.strips import Strips
from compressor.tasks import Task
from compressor.tasks.meter import Meter

KEPT = 2**28  # bytes of outputs of the original that are kept
EVALUATION = "evaluation"  # a part of a run, as its times name it
RANDOM_BATCHES, RANDOM_BATCH = 8, 8  # at most, without data
RANDOM_MACS = 5e10  # for more MACs than these, there is one batch


class Stages:
    """Measures a network that is called with `inputs`, and reports to the journal.

    `file` stores the stages, with `identity`, the hash of the model's file. Raises UsageError if it has another identity.
    """

    def __init__(
        self,
        inputs: AnyInputs,
        data: Data | None,
        task: Task,
        device: torch.device,
        journal: Journal,
        file: Path,
        identity: str | None,
    ) -> None:
        self.inputs, self.data, self.task, self.device = Inputs.of(inputs), data, task, device
        self.journal, self.file, self.identity = journal, file, identity
        self.batch = MOST  # images that are evaluated at a time
        self.rows: list[Stage] = []
        self.strips = None if data is None else Strips(task, data)
        self.differences: dict[str, Difference] = {}  # of the scores, between the original and the last stage
        self._known = self._read()
        self._outputs: list[tuple[Tensor, Tensor]] = []  # of the original: indices and outputs of the first test batches
        self._before: Meter | None = None
        self._marked = time.perf_counter()

    def original(self, model: nn.Module) -> None:
        """The first stage."""
        if self.data is None:
            self._add("original", model, [])
            return
        self.batch = batch_for(model, self.inputs)
        predict = torch_predict(model, self.device)
        self._before = self.task.meter()
        size = 0
        for batch in self.test():
            outputs = self.task.answers(predict, batch)
            self.task.score(self._before, outputs, batch)
            if (size := size + outputs.nbytes) <= KEPT:
                self._outputs.append((batch.indices.cpu(), outputs.cpu()))
        self._add("original", model, self._before.compute())

    def add(self, name: str, model: nn.Module, note: str = "") -> None:
        """Measure `model` through PyTorch, unless that was done before the run was interrupted."""
        if name in self._known:
            self.rows.append(self._known[name])
            self._marked = time.perf_counter()
            return
        with self.journal.part(EVALUATION):
            scores = self._scores(torch_predict(model, self.device))
        self._add(name, model, scores, note)

    def written(
        self, model: nn.Module, original: nn.Module, after: Path | None, seed: int, name: str = "ONNX"
    ) -> Fidelity | None:
        """The stage `name`: the ONNX file `after` of the compressed `model`, and its agreement with the `original` network.

        Without a file, `model` itself runs in PyTorch. Without test images both run on random inputs.
        """
        with self.journal.part(EVALUATION):
            return self._written(model, original, after, seed, name)

    def _written(self, model: nn.Module, original: nn.Module, after: Path | None, seed: int, name: str) -> Fidelity | None:
        if self.data is None:
            ask = torch_predict(model, "cpu") if after is None else onnx_predict(after)
            self._add(name, model, [])
            return on_random_inputs(self.task, torch_predict(original, "cpu"), ask, self.inputs, seed, self.rows[0].macs)
        ask = torch_predict(model, self.device) if after is None else onnx_predict(after)
        meter, likeness = self.task.meter(), self.task.likeness()
        self.strips = Strips(self.task, self.data)
        kept = iter(self._outputs)
        predict = torch_predict(original, self.device)
        for batch in self.test():
            outputs = self.task.answers(ask, batch)
            self.task.score(meter, outputs, batch)
            indices, wanted = next(kept, (None, None))
            if indices is None or wanted is None or not indices.equal(batch.indices.cpu()):
                wanted = self.task.answers(predict, batch)
            likeness.update(outputs, wanted, batch.indices)
            if self.strips is not None:
                self.strips.add(batch, wanted, outputs)
        self._add(name, model, meter.compute())
        model.cpu()
        if self._before is not None:
            self.differences = meter.differences(self._before)
        return Fidelity(likeness.compute(), likeness.n, "test images")

    def test(self) -> Batches:
        """All test images, in order."""
        assert self.data is not None
        return self.data.batches("test", batch_size=self.batch, device=self.device)

    def _scores(self, predict: Predict) -> list[Score]:
        return [] if self.data is None else self.task.measure(predict, self.test()).compute()

    def _add(self, name: str, model: nn.Module, scores: list[Score], note: str = "") -> None:
        macs, params = count_macs(model, self.inputs), count_params(model)
        now = time.perf_counter()
        row = Stage(name, macs, params, scores, now - self._marked, note)
        self._marked = now
        self.rows.append(row)
        self.journal.event("stage", **asdict(row))
        write_text(self.file, json.dumps({"identity": self.identity, "stages": [asdict(row) for row in self.rows]}))
        told = "".join(f", {one.label} {formatting.score(one)} of {one.n:,} test images" for one in scores[:1])
        self.journal.say(f"{name}: {formatting.count(macs)} MACs, {formatting.count(params)} parameters{told}")

    def _read(self) -> dict[str, Stage]:
        if not self.file.exists():
            return {}
        try:
            saved = json.loads(read_text(self.file))
            stages, identity = [stage_from(row) for row in saved["stages"]], saved["identity"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError):
            raise UsageError(f"--resume: {self.file} is damaged. --force starts the run over.") from None
        if identity != self.identity:
            raise UsageError("--resume: the model's file is not the one this run was started with. --force starts over.")
        return {stage.name: stage for stage in stages}


def on_random_inputs(task: Task, original: Predict, small: Predict, inputs: Inputs, seed: int, macs: int) -> Fidelity:
    """The agreement of two networks on random inputs: on 64, or on fewer if the original needs many MACs for one."""
    meter = task.likeness()
    for number in range(max(1, min(RANDOM_BATCHES, int(RANDOM_MACS / (RANDOM_BATCH * max(1, macs)))))):
        args, named = inputs.split(inputs.random(RANDOM_BATCH, seed + number))
        indices = torch.arange(RANDOM_BATCH) + number * RANDOM_BATCH
        meter.update(small(*args, **named), original(*args, **named), indices)
    return Fidelity(meter.compute(), meter.n, "random inputs")
