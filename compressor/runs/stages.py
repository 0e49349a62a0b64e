"""The network at each stage of a run, always measured on the same test images: original, cut, recalibrated, fine-tuned, ONNX.

Evaluating a large network takes minutes, so nothing is measured twice: a resumed run reads the results of its first part, and
the original's logits for the test images are kept for the comparison at the end.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.data import Batch, Batches, Data
from compressor.errors import UsageError
from compressor.files import read_text, write_text
from compressor.network.cost import count_macs, count_params
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import evaluating
from compressor.network.outputs import Predict, logits_of, torch_predict
from compressor.onnx.runtime import onnx_predict
from compressor.report import Accuracy, Fidelity, Stage, formatting
from compressor.report.read import stage_from
from compressor.runs.evaluation_batch import MOST, batch_for
from compressor.runs.journal import Journal
from compressor.tasks import metrics


class Stages:
    """Measures a network that is called with `inputs`, and reports to the journal.

    `file` stores the stages, with `identity`, the hash of the model's file. Raises UsageError if it has another identity.
    """

    def __init__(
        self,
        inputs: AnyInputs,
        data: Data | None,
        device: torch.device,
        journal: Journal,
        file: Path,
        identity: str | None,
    ) -> None:
        self.inputs, self.data, self.device = Inputs.of(inputs), data, device
        self.journal, self.file, self.identity = journal, file, identity
        self.batch = MOST  # images that are evaluated at a time
        self.rows: list[Stage] = []
        self._known = self._read()
        self._original: list[Tensor] = []  # the original's logits for each batch of test images
        self._marked = time.perf_counter()

    def original(self, model: nn.Module) -> None:
        """The first stage."""
        if self.data is None:
            self._add("original", model, None)
            return
        self.batch = batch_for(model, self.inputs)
        predict = _remembering(torch_predict(model, self.device), self._original)
        self._add("original", model, metrics.accuracy(predict, self.test()))

    def add(self, name: str, model: nn.Module, note: str = "") -> None:
        """Measure `model` through PyTorch, unless that was done before the run was interrupted."""
        if name in self._known:
            self.rows.append(self._known[name])
            self._marked = time.perf_counter()
            return
        predict = torch_predict(model, self.device)
        self._add(name, model, None if self.data is None else metrics.accuracy(predict, self.test()), note)

    def written(
        self, model: nn.Module, original: nn.Module, after: Path | None, seed: int, name: str = "ONNX"
    ) -> Fidelity | None:
        """The stage `name`: the ONNX file `after` of the compressed `model`, and its agreement with the `original` network.

        Without a file, `model` itself runs in PyTorch. Without test images both run on random inputs; None when the outputs are
        not one row per image.
        """
        if self.data is None:
            ask = in_torch(model, self.inputs) if after is None else onnx_predict(after, names=self.inputs.names)
            self._add(name, model, None)
            return on_random_images(in_torch(original, self.inputs), ask, self.inputs, seed)
        ask, answers = torch_predict(model, self.device) if after is None else onnx_predict(after), list[Tensor]()
        self._add(name, model, metrics.accuracy(_remembering(ask, answers), self.test()))
        model.cpu()
        return metrics.fidelity(_recalling(self._original), _recalling(answers), _blank(answers), "test images")

    def test(self) -> Batches:
        """All test images, in order."""
        assert self.data is not None
        return self.data.batches("test", batch_size=self.batch, device=self.device)

    def _add(self, name: str, model: nn.Module, accuracy: Accuracy | None, note: str = "") -> None:
        macs, params = count_macs(model, self.inputs), count_params(model)
        now = time.perf_counter()
        row = Stage(name, macs, params, accuracy, now - self._marked, note)
        self._marked = now
        self.rows.append(row)
        self.journal.event("stage", **asdict(row))
        write_text(self.file, json.dumps({"identity": self.identity, "stages": [asdict(row) for row in self.rows]}))
        top1 = "" if accuracy is None else f", top-1 {formatting.percent(accuracy.top1)} of {accuracy.n:,} test images"
        self.journal.say(f"{name}: {formatting.count(macs)} MACs, {formatting.count(params)} parameters{top1}")

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


def in_torch(model: nn.Module, inputs: Inputs) -> Predict:
    """A function that takes all inputs and returns the logits on the CPU, in float32; `model` stays on its device."""

    def predict(*samples: Tensor) -> Tensor:
        weight = next((weight for weight in model.parameters() if weight.is_floating_point()), torch.empty(0))
        placed = [sample.to(weight) if sample.is_floating_point() else sample.to(weight.device) for sample in samples]
        with evaluating(model), torch.inference_mode():
            return logits_of(inputs.call(model, placed)).float().cpu()  # [n, classes]

    return predict


def _remembering(predict: Predict, answers: list[Tensor]) -> Predict:
    """Predicts as `predict`, and appends every output to `answers`."""

    def ask(images: Tensor) -> Tensor:
        answers.append(predict(images).cpu())
        return answers[-1]

    return ask


def _recalling(answers: list[Tensor]) -> Predict:
    """Returns the kept outputs again, in the same order, whatever the images."""
    left = iter(answers)
    return lambda images: next(left)


def _blank(answers: list[Tensor]) -> list[Batch]:
    """As many batches as there are outputs: `_recalling` ignores the images."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return [Batch(nothing, nothing, nothing) for _ in answers]


def on_random_images(original: Predict, small: Predict, inputs: Inputs, seed: int) -> Fidelity | None:
    """The agreement of two networks on random inputs; None when the outputs are not one row per image."""
    batches = [inputs.random(8, seed + i) for i in range(8)]
    before, after = [original(*batch) for batch in batches], [small(*batch) for batch in batches]
    if before[0].dim() != 2:
        return None
    return metrics.fidelity(_recalling(before), _recalling(after), _blank(before), "random inputs")
