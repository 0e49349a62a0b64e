"""What papers on distillation share: a teacher that only answers, or peers that learn together, and terms that can be weighed.

A paper's loss is a sum of named terms. Each has a setting of the same name, its weight, and is not computed where that is 0:

    def __init__(self, job, *, cross_entropy: float = 0.1, kd: float = 0.9, temperature: float = 4.0):
        super().__init__(job, {"cross_entropy": cross_entropy, "kd": kd})

    def loss(self, batch):
        student, teacher = self.student.ask(self.model, batch.images), self.teacher.logits(batch)
        return self.weigh({
            "cross_entropy": lambda: self.labels(student, batch),
            "kd": lambda: softened(student.logits, teacher, self.temperature),
        })

All that a paper adds to the network (heads, branches, peers) is a module beside `self.model`, trained with it and left behind.
"""

from __future__ import annotations

import copy
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
from compressor.training.method import Job, Method

TIMED = 50  # calls of a teacher are timed, after the first few
WARMING = 3
KEPT = 2e9  # bytes of answers that are kept for images that are always the same


class Frozen(nn.Module):
    """A network that only answers: in eval mode, whatever `train` says, without gradients, trained and saved by nobody.

    Its parameters are not found, so no optimizer moves them and no state holds them; it goes to a device with its owner.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._hidden = (network.eval().requires_grad_(False),)  # a tuple, for a module would be found
        self.calls, self._times = 0, list[float]()

    @property
    def network(self) -> nn.Module:
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn)  # type: ignore[no-untyped-call]  # untyped in torch
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, *args: Any) -> Any:
        """What the network gives for tensors; those in its answer can be used in a loss."""
        with self._answering():
            answer = self.network(*args)
        return _usable(answer)

    @property
    def seconds(self) -> float | None:
        """Of one call: the median; None before enough calls."""
        times = sorted(self._times)
        return times[len(times) // 2] if times else None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The first calls are timed; not all, for to wait for a GPU takes time, too."""
        self.calls += 1
        timed = WARMING < self.calls <= WARMING + TIMED
        with torch.inference_mode():  # 15 % faster than no_grad on a ResNet-56
            began = _now(timed)
            yield
            if timed:
                self._times.append(_now(timed) - began)


class Teacher(Frozen):
    """A copy of the network that teaches, with its anatomy. `images_stay`: an image is the same in every epoch."""

    def __init__(self, job: Job) -> None:
        assert job.teacher is not None, "the command sees to it"
        super().__init__(copy.deepcopy(job.teacher))
        self.anatomy = Anatomy.of(self.network, job.inputs, job.teacher_taps)
        self.known = Remembered(lambda images: [self.ask(images).logits], KEPT if job.images_stay else 0)

    def ask(self, images: Tensor) -> Answer:
        """Its answer to images [n, channels, height, width], no part of which wants a gradient."""
        with self._answering():
            answer = self.anatomy.ask(self.network, images)
        return Answer(*map(_usable, answer))

    @property
    def keeps(self) -> bool:
        """Whether answers were kept."""
        return bool(self.known.rows)

    def logits(self, batch: Batch) -> Tensor:
        """[n, classes], computed once for each image where images stay the same."""
        (logits,) = self.known(batch)
        return logits  # type: ignore[no-any-return]


def _now(wait: bool) -> float:
    """The time, when the GPU has done what it was told, if there is one."""
    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _usable(value: Any) -> Any:
    """What was made in inference mode, as tensors that autograd may keep."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, list | tuple):
        return [_usable(part) for part in value]
    return value


class Distillation(Method):
    """Abstract. `model` is the student, or the one of several peers that is kept.

    `weights` are those of the loss's terms, by name. A paper's class says what `teacher_is` to it: "needed",
    "optional", or "none" where networks teach each other.
    """

    def __init__(self, job: Job, weights: Mapping[str, float]) -> None:
        super().__init__(job)
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise UsageError(f"--set {name}={weight}: the weight of a loss's term is a number, 0 or more.")
        if not any(weights.values()):
            raise UsageError(f"All terms of the loss are off: leave one of {', '.join(weights)} above 0.")
        self.weights = dict(weights)
        self.student = Anatomy.of(self.model, job.inputs, job.taps)
        self.teacher = Teacher(job) if job.teacher is not None else None

    def weigh(self, terms: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """Each term times its weight; those that weigh nothing are not computed."""
        return {name: self.weights[name] * term() for name, term in terms.items() if self.weights[name]}

    def labels(self, answer: Answer, batch: Batch) -> Tensor:
        """The cross-entropy with the labels, those of auxiliary classifiers included."""
        return total(self.job.task.loss(answer.output, batch).values())

    def taught(self) -> Teacher:
        """The teacher. Raises UsageError when there is none."""
        if self.teacher is None:
            raise UsageError("This method learns from a teacher: give one with --teacher.")
        return self.teacher

    def copies(self, count: int) -> nn.ModuleList:
        """So many networks of the same build, with new weights; near a network that is trained.

        Interpretation: papers train all from new weights. Beside them a trained network would first unlearn.
        """
        begin = near if self.job.trained else fresh
        return nn.ModuleList(begin(copy.deepcopy(self.model)).requires_grad_(True) for _ in range(count))

    def pairs(self) -> list[tuple[int, int]]:
        """Which tap of the student goes with which of the teacher: from the deepest backwards, as many as both have."""
        ours, theirs = self.student.taps, self.taught().anatomy.taps
        return [(len(ours) - i, len(theirs) - i) for i in range(min(len(ours), len(theirs)), 0, -1)]


def ordered_pairs(count: int) -> list[tuple[int, int]]:
    """All (m, n) with m != n."""
    return [(m, n) for m in range(count) for n in range(count) if m != n]


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of scalars."""
    return torch.stack(list(terms)).sum()


def above(least: float, **settings: float) -> None:
    """Raise UsageError for a setting that is not above `least`."""
    for name, value in settings.items():
        if not value > least:
            raise UsageError(f"--set {name}={value}: give a number above {least:g}.")


class Branched(Distillation):
    """Abstract. So many networks that share the first stages: `model`, and `others`, each with new weights behind them.

    `share` is the number of stages that are shared; 0: all but the last. Each branch has `deeper` blocks more than the one
    before. Raises UsageError for a network that has but one stage.
    """

    def __init__(self, job: Job, weights: Mapping[str, float], branches: int, share: int = 0, deeper: int = 0) -> None:
        super().__init__(job, weights)
        above(1, branches=branches)
        taps = self.student.taps
        if len(taps) < 2:
            found = f"{taps[0]} alone" if taps else "nothing"
            raise UsageError(
                f"Branches grow where a stage ends that is not the last, and {found} was found: name two with --taps."
            )
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
        """Of all branches to images [n, channels, height, width]: first the one that is kept."""
        kept = self.student.ask(self.model, images)
        return [kept, *(branch(kept.features[self.shared]) for branch in self.others)]
