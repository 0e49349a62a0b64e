"""A run of `compress distill`: the teacher, the student, and the distillation method.

The student is given by the user, or it is the teacher pruned to the target rate, as by `compress prune`, and starts from the
teacher's weights. Without a teacher, networks of the student's architecture teach each other, and one of them is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from compressor.checkpoint import Loaded, accepts
from compressor.checkpoint.file_formats import in_one_line
from compressor.checkpoint.plan import Plan
from compressor.errors import CheckpointError, CompressError, OutputError, UsageError
from compressor.files import write_whole
from compressor.methods import catalogue
from compressor.methods.catalogue import Entry, Value
from compressor.methods.distill.branches import fresh
from compressor.methods.distill.teaching import Distillation, Frozen, Teacher
from compressor.methods.prune.filters import FilterPruning
from compressor.network.constants import bind, takes
from compressor.network.copying import clone_network
from compressor.network.cost import count_macs
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.outputs import logits_of
from compressor.report import Epoch, Profile, Report, Target, Teaching
from compressor.runs import prune, reporting
from compressor.runs.journal import Journal
from compressor.runs.run import Order, Run, check_needs, with_range
from compressor.runs.run_directory import RunDirectory
from compressor.runs.settings import Setting
from compressor.runs.sources import Images, Opened, Source
from compressor.runs.stages import Stages
from compressor.training import distributed
from compressor.training.goal import Goal, parse_rate, parse_target
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

GIVEN = "a given student"
NARROWING = "magnitude"  # the method that prunes the teacher to a student
FROM_NEW_WEIGHTS = 0.05, 5e-4  # learning rate and weight decay of SGD
FROM_TRAINED_WEIGHTS = 0.02, 1e-4


@dataclass(frozen=True)
class Wish:
    """The student, and the method. `goal` is for a student pruned from the teacher: None when a student is given."""

    student: Source | None = None
    goal: Goal | None = None
    method: str = "kd"
    settings: Mapping[str, Value] = field(default_factory=dict)
    fresh: bool = False  # whether a given student is initialized at random
    taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    round_to: int | None = None
    repair: bool = True

    def __post_init__(self) -> None:
        if self.student is not None and (self.goal or self.keep or self.round_to):
            raise UsageError(
                "--rate, --target, --keep and --round-to are for a student pruned from the teacher: omit them, or --student."
            )
        if self.goal is not None and self.goal.quantity == "weights":
            raise UsageError(f"--target {self.goal.text} is for `compress prune`: use macs, params, size or filters.")
        if self.fresh and self.student is None:
            raise UsageError(
                "--fresh initializes a given student at random: give it with --student, --model or --student-arch."
            )


class Distilling(Run):
    """One distillation run. The source of `order` is the teacher, or without one the student."""

    does = "distill"
    entry: Entry

    def __init__(self, order: Order, wish: Wish) -> None:
        self.entry = catalogue.find(wish.method, "distill")
        self.teacher = None if order.source is wish.student else order.source
        self.wish, self.method, self.repair = wish, self.entry.name, wish.repair
        self.student: Loaded | None = None  # as given by the user
        self.paper: Distillation | None = None
        super().__init__(replace(order, recipe=self._suited(order.recipe)))

    def _suited(self, recipe: Recipe) -> Recipe:
        """With the default learning rate and weight decay for new or for trained weights, unless they are given."""
        usual = recipe.with_sgd(*(FROM_NEW_WEIGHTS if self._new else FROM_TRAINED_WEIGHTS))
        return replace(usual, teacher="none")  # the method defines the distillation

    @property
    def _new(self) -> bool:
        """Whether the student starts from random weights."""
        student = self.wish.student
        if student is None or not student.is_named:
            return self.wish.fresh
        return self.wish.fresh or not (student.arch_args.get("weights") or student.arch_args.get("pretrained"))

    def _check(self) -> None:
        name, is_one = self.entry.name, self.teacher is not None
        if self.entry.teacher_is == "needed" and not is_one:
            raise UsageError(f"--method {name} needs a teacher: give one with --teacher.")
        if self.entry.teacher_is == "none" and is_one:
            raise UsageError(f"--method {name} trains networks that teach each other: omit --teacher, and give --model.")
        check_needs(self.entry, self.recipe.epochs, self.images.spec)

    @property
    def wishes(self) -> dict[str, Setting]:
        wish, goal = self.wish, self.wish.goal
        student = wish.student.settings if wish.student is not None else {}
        is_rate = goal is not None and goal.text.startswith("--rate")
        return {
            "student": student.get("model"),
            "student_arch": student.get("arch"),
            "student_arch_arg": student.get("arch_arg"),
            "fresh": wish.fresh or None,
            "rate": goal.share if goal is not None and is_rate else None,
            "target": goal.text if goal is not None and not is_rate else None,
            "method": self.entry.name,
            "method_sha256": self.entry.sha256,
            "set": catalogue.written(self.entry, wish.settings),
            "taps": list(wish.taps) or None,
            "teacher_taps": list(wish.teacher_taps) or None,
            "keep": list(wish.keep) or None,
            "round_to": wish.round_to,
            "repair": wish.repair,
        }

    @property
    def settings(self) -> dict[str, Setting]:
        """`teacher` is the teacher's file here; the setting of that name in a recipe is left out."""
        settings = {**super().settings, "teacher": None}
        if self.teacher is not None:
            settings["teacher"] = settings.pop("model")
        return settings

    def _open(self, journal: Journal) -> Opened:
        """A student built from code has random weights, drawn with this run's seed."""
        seed_all(self.recipe.seed)
        return super()._open(journal)

    @property
    def counts_bytes(self) -> bool:
        return self.wish.goal is not None and self.wish.goal.quantity == "size"

    # The student ------------------------------------------------------------------------------------------------------

    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        """The method that makes the student: it prunes the teacher, or leaves a given student unchanged.

        Raises a CompressError.
        """
        wish = self.wish
        if self.teacher is None:
            self.student = opened.loaded
        elif wish.student is not None:
            self.student = self._opened_student(wish.student, opened)
        else:
            cut = prune.Wish(wish.goal or parse_rate(0.5), NARROWING, keep=wish.keep, round_to=wish.round_to)
            return prune.prepared(cut, opened, place.original, self.task, None, self.recipe.seed, journal, device)
        seed_all(self.recipe.seed)
        network = clone_network(self.student.model).requires_grad_(True)
        if wish.fresh:
            fresh(network)
        return Method(Job(network, opened.inputs, None, Goal("macs", GIVEN, share=0.0), self.task)).to(device)

    def _opened_student(self, source: Source, opened: Opened) -> Loaded:
        """Raises a CompressError that names the student if it cannot be read or predicts other classes than the teacher."""
        classes = _classes(opened.loaded.model, opened)
        if source.is_named and "num_classes" not in source.arch_args and accepts(source.model, "num_classes"):
            source = replace(source, arch_args={**source.arch_args, "num_classes": classes})
        try:
            loaded = source.load()
            known = takes(loaded.model)
            shared = {name: value for name, value in self.source.constants.items() if known is None or name in known}
            bind(loaded.model, {**shared, **source.constants})
            count_macs(loaded.model, opened.inputs)
        except CompressError as error:
            told = str(error).replace("--arch", "--student-arch")
            raise type(error)(f"the student: {told}") from error
        if (found := _classes(loaded.model, opened)) != classes:
            raise UsageError(
                f"The student {source.model} has {found} outputs, but the teacher {classes}: give a student for {classes} "
                f"classes, for example with --student-arch-arg num_classes={classes}."
            )
        opened.notes.extend(f"the student: {note}" for note in loaded.notes)
        return loaded

    # Training ---------------------------------------------------------------------------------------------------------

    def _trainer(self, method: Method, opened: Opened, stages: Stages, place: RunDirectory, journal: Journal) -> Method:
        """The distillation method, for the student that `method` made; its teacher is prepared first, if it needs that."""
        wish, job = self.wish, method.job
        if self.student is not None and (self.teacher is not None or wish.fresh):
            stages.add("student", method.model)
        job = replace(
            job,
            model=method.model,
            channels=None,
            images=opened.data,
            teacher=None if self.teacher is None else opened.loaded.model,
            taps=wish.taps,
            teacher_taps=wish.teacher_taps,
            trained=not self._new,
            images_stay=not self.recipe.augment,
        )
        seed_all(self.recipe.seed)
        self.paper = _created(self.entry, job, wish.settings).to(stages.device)
        self._make_ready(self.paper, opened, stages.device, place, journal)
        self.paper.prepare()
        return self.paper

    def _make_ready(
        self, paper: Distillation, opened: Opened, device: torch.device, place: RunDirectory, journal: Journal
    ) -> None:
        """Train the teacher for the method, or load what an earlier run saved next to the teacher's file."""
        first = paper.first()
        if first is None or opened.data is None:
            return
        kept = self._kept(first, opened)
        if kept is not None and distributed.agreed(kept.is_file()):
            if distributed.is_first():
                _take_up(first, kept)
            distributed.synchronise(first)
            journal.event("taken up", file=str(kept))
            journal.say(f"using the teacher that an earlier run prepared: {kept}")
            return
        share = paper.earlier
        recipe = replace(self.recipe, epochs=max(1, round(self.recipe.epochs * share)), warmup=self.recipe.warmup * share)
        journal.say(f"preparing the teacher: epochs 1 to {recipe.epochs}")
        training = Training(first, opened.data, recipe, device, place.earlier)
        if self.resume:
            training.resume()
        training.run(journal)
        if kept is not None and distributed.is_first():
            _keep(first, kept, journal)

    def _kept(self, first: Method, opened: Opened) -> Path | None:
        """The file for the prepared teacher, next to the teacher's own: its name has a hash of everything that affects it."""
        if self.source.is_named or opened.data is None:
            return None
        content = hashlib.sha256()
        for name, tensor in opened.loaded.model.state_dict().items():
            content.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        told = {
            "format": 1,
            "method": self.method,
            "made": {name: value for name, value in vars(first).items() if isinstance(value, int | float | str | dict)},
            "tensors": {name: list(tensor.shape) for name, tensor in first.state_dict().items()},
            "taps": self.wish.teacher_taps,
            "data": [self.images.settings, opened.data.counts],
            "recipe": asdict(self.recipe),
        }
        content.update(json.dumps(told, sort_keys=True, default=str).encode())
        path = Path(self.source.model)
        return path.with_name(f"{path.name}.{self.entry.name}-{content.hexdigest()[:12]}.safetensors")

    def _identity(self, opened: Opened) -> str | None:
        """Of the teacher and of the given student."""
        teacher = super()._identity(opened)
        return teacher if self.teacher is None or self.student is None else f"{teacher} {self.student.sha256}"

    # The report -------------------------------------------------------------------------------------------------------

    def _plan(self, opened: Opened) -> Plan:
        loaded = self.student or opened.loaded
        return with_range(loaded, opened.inputs)

    def _target(self, method: Method, small: nn.Module, baseline: Profile, compressed: Profile) -> Target:
        if not isinstance(method, FilterPruning):
            share = 1 - compressed.macs / baseline.macs
            return Target("macs", share, share, GIVEN)
        assert method.removed is not None, "the student was pruned"
        removed, goal = method.removed, method.job.goal
        return reporting.target_of_cut(goal, removed.channels, removed.mask, baseline, compressed, self.wish.round_to)

    def _teaching(self, history: list[Epoch]) -> Teaching | None:
        parts = [part for part in nn.Module.modules(self.paper) if isinstance(part, Frozen)] if self.paper is not None else []
        taken = [(part.seconds, part.calls) for part in parts if part.seconds is not None]
        if not taken or not history:
            return None
        seconds = sum(epoch.seconds for epoch in history)
        images = sum(epoch.images_per_second * epoch.seconds for epoch in history)
        kept = any(isinstance(part, Teacher) and part.keeps for part in parts)
        calls = taken[0][1] if kept else images / self.recipe.batch_size
        one = sum(part for part, _ in taken)
        return Teaching(1000 * one, min(1.0, one * calls / seconds), kept)


def _created(entry: Entry, job: Job, settings: Mapping[str, Value]) -> Distillation:
    paper = catalogue.create(entry, job, settings)
    assert isinstance(paper, Distillation)
    return paper


def _classes(model: nn.Module, opened: Opened) -> int:
    """The number of classes, or of channels, that a network on the CPU outputs."""
    with torch.no_grad():
        output = logits_of(opened.inputs.call(model.eval(), opened.inputs.random(1, like=model)))
    return output.shape[1] if output.dim() > 1 else 1


def _take_up(first: Method, kept: Path) -> None:
    """Raises CheckpointError when the file cannot be read."""
    try:
        first.load_state_dict(load_file(kept))
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{kept} is damaged ({in_one_line(error)}). Delete it: the next run regenerates it.") from None


def _keep(first: Method, kept: Path, journal: Journal) -> None:
    """Save the prepared teacher. If its directory cannot be written to, the next run prepares it again."""
    packed = save({name: tensor.detach().cpu().contiguous() for name, tensor in first.state_dict().items()})
    try:
        write_whole(kept, lambda path: path.write_bytes(packed))
    except OutputError as error:
        journal.say(f"the prepared teacher was not saved: {error}")
    else:
        journal.say(f"the prepared teacher is saved for later runs: {kept}")


def distill(
    teacher: str | None = None,
    *,
    student: str | None = None,
    rate: float | None = None,
    target: str | None = None,
    method: str = "kd",
    data: str | None = None,
    out: str | Path,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    student_arch: str | None = None,
    student_arch_args: Mapping[str, object] | None = None,
    fresh: bool = False,
    settings: Mapping[str, Value] | None = None,
    taps: tuple[str, ...] = (),
    teacher_taps: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    round_to: int | None = None,
    repair: bool = True,
    recipe: Recipe | None = None,
    inputs: AnyInputs | None = None,
    device: str = "auto",
    onnx: bool = True,
    force: bool = False,
    resume: bool = False,
) -> Report:
    """Distil `teacher` (a checkpoint, `torchvision:NAME`, ... as on the command line) into a student, in the directory `out`.

    Without `student` and `student_arch` the student is the teacher pruned by `rate` (fraction of its MACs to remove, 0.5 by
    default) or to `target` (such as "params<=5M"). Without `teacher`, networks of the student's architecture teach each other.
    Returns the report; raises a CompressError.
    """
    given = student_source(student, student_arch, student_arch_args or {})
    goal = parse_goal(rate, target)
    order = Order(
        first_network(None if teacher is None else Source(teacher, arch, arch_args or {}), given),
        Images(data),
        recipe or Recipe(),
        Path(out),
        device,
        None if inputs is None else Inputs.of(inputs),
        force=force,
        resume=resume,
        command="compressor.distill(...)",
        onnx=onnx,
    )
    wish = Wish(given, goal, method, settings or {}, fresh, taps, teacher_taps, keep, round_to, repair)
    return Distilling(order, wish).run()


def first_network(teacher: Source | None, student: Source | None) -> Source:
    """The network that the result is compared with: the teacher, or without one the student. Raises UsageError."""
    source = teacher or student
    if source is None:
        raise UsageError(
            "There is no teacher and no student: give --teacher t.pt, or --model s.pt with a method that needs none."
        )
    return source


def student_source(
    student: str | None, arch: str | None, arch_args: Mapping[str, object], trust_pickle: bool = False
) -> Source | None:
    """The given student: a file of weights and the code that builds it, or the code alone; None without either.

    Raises UsageError.
    """
    if student is None and arch is None:
        if arch_args:
            raise UsageError("--student-arch-arg is an argument of the code that --student-arch names: give both.")
        return None
    if student is None:
        return Source(str(arch), None, arch_args, code=True)
    return Source(student, arch, arch_args, trust_pickle=trust_pickle)


def parse_goal(rate: float | None, target: str | None) -> Goal | None:
    """The target for a student that is pruned from the teacher. Raises UsageError."""
    if rate is not None and target is not None:
        raise UsageError("--rate and --target were both given: give one of the two.")
    if rate is not None:
        return parse_rate(rate)
    return None if target is None else parse_target(target)
