"""Shared by all distillation methods: a frozen teacher, peers that are trained together, and a loss of weighted terms.

A method's loss is a sum of named terms. Each has a setting of the same name, its weight. A term of weight 0 is not computed:

    def __init__(self, job, *, cross_entropy: float = 0.1, kd: float = 0.9, temperature: float = 4.0):
        super().__init__(job, {"cross_entropy": cross_entropy, "kd": kd})

    def loss(self, batch):
        student, teacher = self.student.ask(self.model, batch.inputs), self.teacher.logits(batch)
        return self.weigh({
            "cross_entropy": lambda: self.labels(student, batch),
            "kd": lambda: softened(student.logits, teacher, self.temperature),
        })

Everything that a method adds (heads, branches, peers) is a module beside `self.model`, trained with it and then discarded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.distill.branches import Branch, fresh, near
from compressor.methods.distill.taps import Anatomy, Answer
from compressor.methods.output_cache import Remembered
from compressor.network.copying import clone_network
from compressor.training.method import Job, Method

TIMED = 50  # calls of a teacher are timed, after WARMING calls
WARMING = 3
KEPT = 2e9  # bytes of cached logits, for images that are the same in every epoch


class Frozen(nn.Module):
    """A network for inference only: always in eval mode, without gradients, and neither trained nor saved.

    `parameters()` and `state_dict()` of the owner do not contain its tensors; `to()` of the owner moves them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._hidden = (network.eval().requires_grad_(False),)  # a tuple: a module would be registered
        self.calls, self._times = 0, list[float]()

    @property
    def network(self) -> nn.Module:
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn)  # type: ignore[no-untyped-call]  # untyped in torch
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, *args: Any) -> Any:
        """The output of the network; its tensors can be used in a loss."""
        with self._answering():
            answer = self.network(*args)
        return _usable(answer)

    @property
    def seconds(self) -> float | None:
        """Median time of one call; None before enough calls."""
        times = sorted(self._times)
        return times[len(times) // 2] if times else None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Inference mode. Only the first calls are timed, because synchronising with a GPU takes time."""
        self.calls += 1
        timed = WARMING < self.calls <= WARMING + TIMED
        with torch.inference_mode():  # 15 % faster than no_grad on a ResNet-56
            began = _now(self.network, timed)
            yield
            if timed:
                self._times.append(_now(self.network, timed) - began)


class Teacher(Frozen):
    """A copy of `job.teacher`, with its anatomy. Its logits are cached if images are the same in every epoch."""

    def __init__(self, job: Job) -> None:
        assert job.teacher is not None, "checked by the command"
        super().__init__(clone_network(job.teacher))
        self.anatomy = Anatomy.of(self.network, job.inputs, job.teacher_taps)
        self.known = Remembered(lambda images: [self.ask(images).logits], KEPT if job.images_stay else 0)

    def ask(self, images: Tensor) -> Answer:
        """Its outputs for images [n, channels, height, width], without gradients."""
        with self._answering():
            answer = self.anatomy.ask(self.network, images)
        return Answer(*map(_usable, answer))

    @property
    def keeps(self) -> bool:
        """Whether logits were cached."""
        return bool(self.known.rows)

    def logits(self, batch: Batch) -> Tensor:
        """Its main output, of a classifier [n, classes], computed once per image if images are the same in every epoch."""
        (logits,) = self.known(batch)
        return logits  # type: ignore[no-any-return]


def _now(network: nn.Module, wait: bool) -> float:
    """The time; with `wait`, after the GPU has finished its work, if there is one."""
    device = next((p.device for p in network.parameters()), None)
    if wait and device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _usable(value: Any) -> Any:
    """Tensors made in inference mode, copied so that autograd can save them."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, list | tuple):
        return [_usable(part) for part in value]
    return value


class Distillation(Method):
    """Abstract. `model` is the student, or the peer that is kept.

    `weights` are those of the loss terms, by name. A method's class sets `teacher_is`: "needed", "optional", or "none" where
    networks teach each other.
    """

    def __init__(self, job: Job, weights: Mapping[str, float]) -> None:
        super().__init__(job)
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise UsageError(f"--set {name}={weight}: the weight of a loss term must be a number, 0 or more.")
        if not any(weights.values()):
            raise UsageError(f"All loss terms have weight 0: set at least one of {', '.join(weights)} above 0.")
        self.weights = dict(weights)
        self.student = Anatomy.of(self.model, job.inputs, job.taps)
        self.teacher = Teacher(job) if job.teacher is not None else None

    def weigh(self, terms: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """Each term times its weight; terms of weight 0 are not computed."""
        return {name: self.weights[name] * term() for name, term in terms.items() if self.weights[name]}

    def labels(self, answer: Answer, batch: Batch) -> Tensor:
        """The loss of the task: of a classifier the cross-entropy with the labels, including that of auxiliary classifiers."""
        return total(self.job.task.loss(answer.output, batch).values())

    def taught(self) -> Teacher:
        """The teacher. Raises UsageError when there is none."""
        if self.teacher is None:
            raise UsageError("This method needs a teacher: give one with --teacher.")
        return self.teacher

    def copies(self, count: int) -> nn.ModuleList:
        """`count` networks of the same architecture with new weights; with weights near those of a trained network.

        Interpretation: papers train all networks from scratch. With random peers, a trained network first loses accuracy.
        """
        begin = near if self.job.trained else fresh
        return nn.ModuleList(begin(clone_network(self.model)).requires_grad_(True) for _ in range(count))

    def pairs(self) -> list[tuple[int, int]]:
        """Indices of matched taps of student and teacher: from the last one backwards, as many as both have."""
        ours, theirs = self.student.taps, self.taught().anatomy.taps
        return [(len(ours) - i, len(theirs) - i) for i in range(min(len(ours), len(theirs)), 0, -1)]


def ordered_pairs(count: int) -> list[tuple[int, int]]:
    """All (m, n) with m != n."""
    return [(m, n) for m in range(count) for n in range(count) if m != n]


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of scalars."""
    return torch.stack(list(terms)).sum()


def above(least: float, **settings: float) -> None:
    """Raise UsageError if a setting is not above `least`."""
    for name, value in settings.items():
        if not value > least:
            raise UsageError(f"--set {name}={value}: give a number above {least:g}.")


class Branched(Distillation):
    """Abstract. Branches that share the first stages: `model`, and `others`, whose later stages have new weights.

    `share` is the number of shared stages; 0: all but the last. Each branch has `deeper` blocks more than the one before.
    Raises UsageError for a network with only one stage.
    """

    def __init__(self, job: Job, weights: Mapping[str, float], branches: int, share: int = 0, deeper: int = 0) -> None:
        super().__init__(job, weights)
        above(1, branches=branches)
        taps = self.student.taps
        if len(taps) < 2:
            found = f"only {taps[0]}" if taps else "none"
            raise UsageError(f"Branches need the ends of at least two stages, and {found} was found: name two with --taps.")
        if not 0 <= share < len(taps):
            raise UsageError(
                f"--set share={share}: of the stages {', '.join(taps)}, 1 to {len(taps) - 1} can be shared; 0: all but one."
            )
        self.shared = (share or len(taps) - 1) - 1  # the tap where branches begin
        tap = taps[self.shared]
        self.others = nn.ModuleList(
            Branch(self.model, self.student, tap, deeper=deeper * m, trained=job.trained) for m in range(1, branches)
        )

    def answers(self, images: Tensor) -> list[Answer]:
        """The outputs of all branches for images [n, channels, height, width]; the first branch is the one that is kept."""
        kept = self.student.ask(self.model, images)
        return [kept, *(branch(kept.features[self.shared]) for branch in self.others)]
