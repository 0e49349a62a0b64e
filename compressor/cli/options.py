"""The options that commands share, and the error handling of every command."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json as json_
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console

from compressor.cli import config_file
from compressor.cli.help import HelpAll
from compressor.errors import CompressError, NotExported, UsageError
from compressor.training import distributed

if TYPE_CHECKING:
    from compressor.network.inputs import Inputs
    from compressor.onnx.form import WishedForm
    from compressor.onnx.latency import Timing
    from compressor.report import Comparison, Report
    from compressor.runs.run import Order, Run
    from compressor.runs.sources import Images, Source
    from compressor.training.recipe import Recipe

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Checkpoint, run directory, torchvision:NAME or timm:NAME.", show_default=False),
]
Arch = Annotated[
    str | None,
    typer.Option(help="Code that builds the network: file.py:NAME, package.module:NAME, torchvision:NAME or timm:NAME."),
]
ArchArg = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Keyword argument of that code. Repeatable.")]
Key = Annotated[str | None, typer.Option(help="Key of the state dict inside the checkpoint, if not a usual one.")]
Ema = Annotated[bool, typer.Option("--ema", help="Load the averaged (EMA) weights of the checkpoint.")]
Trust = Annotated[bool, typer.Option("--trust-pickle", help="Unpickle modules, which can execute any code in the file.")]
DataSpec = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="imagefolder:DIR, images:DIR (no labels), segmentation:DIR, pairs:DIR, superres:DIR?scale=4, denoise:DIR?sigma=25,"
        " cifar10:DIR, cifar100:DIR, fashionmnist:DIR, digits, or file.py:function.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Height and width that images are resized to: 224, or 360x480. Of images to be restored, those of one for costs.",
    ),
]
Fit = Annotated[
    Literal["cover", "stretch", "letterbox"] | None,
    typer.Option(
        metavar="NAME",
        help="How images are brought to --size: cover (resized and cropped), stretch (masks), or letterbox (with bars).",
    ),
]
Mean = Annotated[str | None, typer.Option(help="Mean per channel for normalization, for example 0.485,0.456,0.406.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation per channel.")]
Task = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What the network is for: classify, segment, restore or imitate. By default, by --data."),
]
Color = Annotated[
    Literal["rgb", "bgr", "grey"] | None,
    typer.Option(metavar="ORDER", help="Order of the channels given to the network, and of --mean, --std: rgb, bgr or grey."),
]
MaxValue = Annotated[
    int, typer.Option(help="Value of white, before --mean and --std: 1 or 255. Targets that are images have the same range.")
]
Crop = Annotated[int | None, typer.Option(help="Side of training crops of images with masks, or to be restored.")]
PadTo = Annotated[int, typer.Option(help="Pad such images to a multiple at the right and bottom, unless in training.")]
Tile = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Give larger held-out and test images to the network in overlapping tiles: 512, or 512x1024. Costs are of one.",
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Images whose names have the same captured text stay in one split, as in '(person.*)_'; frames: numbers in a row.",
    ),
]
Workers = Annotated[int, typer.Option(help="Data loader processes, for images that do not fit into memory.")]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="CxHxW",
        help="Input shape without data, for example 3x224x224. Repeatable, for networks of several inputs. "
        "NAME=1x3x224x224 is a keyword argument, with the batch dimension. Token ids: NAME=1x16:int64.",
    ),
]
Constant = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Constant argument of forward, for example scale=2. Repeatable."),
]
InputRange = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="Range of input values, for checks without data: 0,1. Normal noise by default."),
]
Out = Annotated[Path | None, typer.Option(help="Output directory; runs/MODEL-METHOD by default.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
Onnx = Annotated[bool, typer.Option(help="Export to ONNX, beside the network for PyTorch.")]
Dynamic = Annotated[
    str | None,
    typer.Option(
        metavar="SIDES",
        help="Open sides of images in the ONNX file: height,width, or none. By default both, where the output is a map.",
    ),
]
OnnxBatch = Annotated[
    int | None,
    typer.Option(metavar="N", help="Fixed batch size of the ONNX file; any by default, or 1 where that is not possible."),
]
LatencyBatches = Annotated[
    str | None,
    typer.Option(metavar="N,N", help="Batch sizes to time. By default 1, and 32 where a run takes a second at most."),
]
LatencyThreads = Annotated[
    int, typer.Option(metavar="N", help="CPU threads of the timed network; 1 is timed in processor time.")
]
LatencyProvider = Annotated[str, typer.Option(metavar="NAME", help="Where ONNX Runtime times the network: cpu or cuda.")]
LatencyRuns = Annotated[int, typer.Option(metavar="N", help="Timed runs of each file, or as many as fit into 2 seconds.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, and everything else to stderr.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate the result without training or writing anything.")]


def _configure(context: typer.Context, file: Path | None) -> Path | None:
    try:
        return config_file.configure(context, file)
    except CompressError as error:
        raise typer.Exit(_told(error)) from None


Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Settings file; compress.toml, or [tool.compress] in pyproject.toml, by default.",
        callback=_configure,
        is_eager=True,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

TRAINING = "Training"
RecipeName = Annotated[
    Literal["paper", "quick"] | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="paper (90 to 300 epochs) or quick (20). Other options override it.",
        rich_help_panel=TRAINING,
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Fine-tuning epochs; 10 by default with data.", rich_help_panel=TRAINING)]
BatchSize = Annotated[int, typer.Option(help="Batch size; 16 for masks and images to be restored.", rich_help_panel=TRAINING)]
Lr = Annotated[
    float | None,
    typer.Option(
        help="Learning rate; 0.02 (new weights: 0.05, AdamW: 5e-4).",
        rich_help_panel=TRAINING,
    ),
]
Optimizer = Annotated[
    Literal["sgd", "adamw"], typer.Option(metavar="NAME", help="Optimizer: sgd or adamw.", rich_help_panel=TRAINING)
]
Momentum = Annotated[float, typer.Option(help="Momentum of SGD.", rich_help_panel=TRAINING)]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        help="Weight decay; 1e-4 (new weights: 5e-4, AdamW: 0.05).",
        rich_help_panel=TRAINING,
    ),
]
Schedule = Annotated[
    Literal["cosine", "step", "poly"],
    typer.Option(metavar="NAME", help="Learning rate schedule: cosine, step or poly.", rich_help_panel=TRAINING),
]
Milestones = Annotated[
    str, typer.Option(help="Fractions of training at which --schedule step decays.", rich_help_panel=TRAINING)
]
Gamma = Annotated[float, typer.Option(help="Decay factor at each milestone.", rich_help_panel=TRAINING)]
Warmup = Annotated[float, typer.Option(help="Epochs of linear learning rate warmup.", rich_help_panel=TRAINING)]
Amp = Annotated[
    Literal["auto", "none", "bf16", "fp16"],
    typer.Option(metavar="TYPE", help="Mixed precision: none, bf16, fp16, or auto (bf16 on a GPU).", rich_help_panel=TRAINING),
]
ChannelsLast = Annotated[
    bool | None, typer.Option(help="Channels-last memory format; on by default on a GPU.", rich_help_panel=TRAINING)
]
Accumulate = Annotated[int, typer.Option(help="Batches per optimizer step (gradient accumulation).", rich_help_panel=TRAINING)]
EmaDecay = Annotated[
    float | None,
    typer.Option(help="Decay of an exponential moving average of the weights, e.g. 0.999.", rich_help_panel=TRAINING),
]
LabelSmoothing = Annotated[float, typer.Option(help="Label smoothing.", rich_help_panel=TRAINING)]
Cutout = Annotated[
    float,
    typer.Option(help="Side of the cutout square, as a fraction of the image's side.", rich_help_panel=TRAINING),
]
Augment = Annotated[
    bool,
    typer.Option(help="Random crops and flips of training images, unless the method disables them.", rich_help_panel=TRAINING),
]
Select = Annotated[
    Literal["last", "best"],
    typer.Option(metavar="EPOCH", help="The epoch to keep: last, or best by the held-out images.", rich_help_panel=TRAINING),
]
Patience = Annotated[
    int | None,
    typer.Option(metavar="N", help="End training after N epochs without a better held-out score.", rich_help_panel=TRAINING),
]
Teacher = Annotated[
    Literal["self", "none"],
    typer.Option(help="self: distil from the uncompressed network in addition to the task's loss.", rich_help_panel=TRAINING),
]


Option = tuple[Any, Any]  # its annotation for typer, and its default

# Options that several commands have, by the names of their parameters.
READING: dict[str, Option] = {
    "arch": (Arch, None),
    "arch_arg": (ArchArg, None),
    "input_": (Input, None),
    "input_range": (InputRange, None),
    "constant": (Constant, None),
    "key": (Key, None),
    "ema": (Ema, False),
    "trust_pickle": (Trust, False),
}
DATA: dict[str, Option] = {
    "data": (DataSpec, None),
    "size": (Size, None),
    "fit": (Fit, None),
    "task": (Task, None),
    "mean": (Mean, None),
    "std": (Std, None),
    "color": (Color, None),
    "max_value": (MaxValue, 1),
    "crop": (Crop, None),
    "pad_to": (PadTo, 1),
    "tile": (Tile, None),
    "group": (Group, None),
    "workers": (Workers, 0),
}
RECIPE: dict[str, Option] = {
    "recipe": (RecipeName, None),
    "epochs": (Epochs, None),
    "batch_size": (BatchSize, 128),
    "lr": (Lr, None),
    "optimizer": (Optimizer, "sgd"),
    "momentum": (Momentum, 0.9),
    "weight_decay": (WeightDecay, None),
    "schedule": (Schedule, "cosine"),
    "milestones": (Milestones, "0.5,0.75"),
    "gamma": (Gamma, 0.1),
    "warmup": (Warmup, 0.0),
    "amp": (Amp, "auto"),
    "channels_last": (ChannelsLast, None),
    "accumulate": (Accumulate, 1),
    "ema_decay": (EmaDecay, None),
    "label_smoothing": (LabelSmoothing, 0.0),
    "cutout": (Cutout, 0.0),
    "augment": (Augment, True),
    "select": (Select, "last"),
    "patience": (Patience, None),
}
TAUGHT: dict[str, Option] = {"teacher": (Teacher, "self")}
SEED: dict[str, Option] = {"seed": (Annotated[int, typer.Option(help="Random seed.", rich_help_panel=TRAINING)], 0)}
OUTPUT: dict[str, Option] = {"json": (Json, False), "quiet": (Quiet, False)}
PLACE: dict[str, Option] = {
    "device": (Device, "auto"),
    "out": (Out, None),
    "force": (Force, False),
    "resume": (Resume, False),
    **OUTPUT,
}
ONNX: dict[str, Option] = {"onnx": (Onnx, True)}
RUN: dict[str, Option] = PLACE | {"dry_run": (DryRun, False)}
FORM: dict[str, Option] = {"dynamic": (Dynamic, None), "onnx_batch": (OnnxBatch, None)}
LATENCY: dict[str, Option] = {
    "latency_batches": (LatencyBatches, None),
    "latency_threads": (LatencyThreads, 1),
    "latency_provider": (LatencyProvider, "cpu"),
    "latency_runs": (LatencyRuns, 100),
}


def methods_of(family: str) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion of the names of methods."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from compressor.methods.catalogue import known

        entries = [entry for entry in known().values() if entry.family == family]
        return [(entry.name, entry.does) for entry in entries if entry.name.startswith(incomplete)]

    return complete


def command(*shared: Mapping[str, Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that has the `shared` options after its own, and reports every error in one or two lines and with the exit
    status of `errors.py`. It finds the shared options in its context, by `Asked`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters
        ends: dict[str, Option] = {**({"config": (Config, None)} if shared else {}), "debug": (Debug, False)}
        if RECIPE in shared:
            ends["help_all"] = (HelpAll, False)
        options = {name: option for group in (*shared, ends) for name, option in group.items()}
        further = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in options.items()
            if name not in own
        ]

        def answered(**given: Any) -> None:
            try:
                if RUN in shared and RECIPE in shared:  # it trains
                    distributed.join(given["device"])
                else:
                    distributed.refuse(function.__name__)
                if READING in shared:
                    _announce(given)
                with _prints_aside() if given.get("json") else contextlib.nullcontext():
                    function(**{name: value for name, value in given.items() if name in own})
            except (typer.Exit, typer.Abort, BrokenPipeError):  # as in `compress methods | head`
                raise
            except KeyboardInterrupt:
                unit = "epoch" if "epochs" in given else "group"
                print(
                    "interrupted" + f": --resume continues after the last finished {unit}" * ("resume" in given),
                    file=sys.stderr,
                )
                raise typer.Exit(130) from None
            except Exception as error:
                if given["debug"]:
                    traceback.print_exc()
                raise typer.Exit(_told(error)) from None

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own.values()] + further
        answered.__name__, answered.__doc__ = function.__name__, function.__doc__
        answered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # as typer reads it
        answered.__annotations__ = {one.name: one.annotation for one in parameters}
        return answered

    return decorate


def _announce(given: Mapping[str, Any]) -> None:
    """Print on a terminal what the first seconds are spent on: nothing else is printed before PyTorch is imported."""
    silent = given.get("quiet") or given.get("json") or not distributed.speaks()
    if not silent and "torch" not in sys.modules and sys.stderr.isatty():
        print("loading PyTorch ...", file=sys.stderr, flush=True)


_results: list[TextIO] = []  # the standard output, while `_prints_aside` redirects it


@contextlib.contextmanager
def _prints_aside() -> Iterator[None]:
    """Redirect standard output to standard error, except for `print_json`: the network's own code may print, too."""
    _results.append(_results[-1] if _results else sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


def print_json(text: str) -> None:
    """Print the result of a command with --json, which is then all that is on standard output."""
    print(text.rstrip("\n"), file=_results[-1] if _results else sys.stdout)


def _told(error: Exception) -> int:
    """Print an error to standard error. Returns the exit status."""
    distributed.let_the_first_speak()
    if isinstance(error, CompressError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    first = (str(error).strip().splitlines() or [""])[0]
    print(f"error: internal error: {type(error).__name__}: {first}", file=sys.stderr)
    print("Rerun with --debug, and send us the output.", file=sys.stderr)
    return 5


class Asked:
    """The shared options of a call, as the library's own objects."""

    def __init__(self, context: typer.Context) -> None:
        self.context, self.options = context, context.params

    def source(self, model: str) -> Source:
        """How to read `model`."""
        from compressor.checkpoint import parse_arch_args
        from compressor.runs.sources import Source

        arch, arch_arg, key, ema, trust = (self.options[name] for name in ("arch", "arch_arg", "key", "ema", "trust_pickle"))
        return Source(
            model,
            arch,
            parse_arch_args(arch_arg or []),
            key,
            ema,
            trust,
            constants=self.constants,
            input_range=self.input_range,
        )

    @property
    def constants(self) -> dict[str, Any]:
        """Of forward. Raises UsageError."""
        from compressor.checkpoint import parse_arch_args
        from compressor.network.constants import checked

        return dict(checked(parse_arch_args(self.options["constant"] or [], "--constant", "scale=2")))

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Raises UsageError."""
        if (text := self.options["input_range"]) is None:
            return None
        found = numbers("--input-range", text, "write LOW,HIGH, as in 0,1")
        if len(found) != 2 or not (all(map(math.isfinite, found)) and found[0] < found[1]):
            raise UsageError(f"--input-range {text!r} is not a range: write LOW,HIGH with LOW below HIGH, as in 0,1.")
        return found[0], found[1]

    @property
    def images(self) -> Images:
        from compressor.runs.sources import Images

        form = "write one per channel, as in 0.485,0.456,0.406"
        mean, std = (
            None if self.options[name] is None else numbers(f"--{name}", self.options[name], form) for name in ("mean", "std")
        )
        return Images(
            self.options["data"],
            height_and_width("--size", self.options["size"]),
            mean,
            std,
            self.options["workers"],
            self.options["task"],
            color=self.options["color"],
            max_value=self.options["max_value"],
            crop=self.options["crop"],
            pad_to=self.options["pad_to"],
            fit=self.options["fit"],
            tile=height_and_width("--tile", self.options["tile"]),
            group=self.options["group"],
        )

    @property
    def inputs(self) -> Inputs | None:
        """The inputs of every --input, in order. Raises UsageError."""
        texts = self.options["input_"]
        if not texts:
            return None
        from compressor.network.inputs import Input, Inputs

        return Inputs(tuple(map(Input.parse, texts)))

    @property
    def form(self) -> WishedForm:
        """Of the ONNX files. Raises UsageError."""
        from compressor.onnx.form import WishedForm

        return WishedForm.parse(self.options.get("dynamic"), self.options.get("onnx_batch"))

    @property
    def timing(self) -> Timing:
        """How latency is measured. Raises UsageError."""
        from compressor.onnx.latency import Timing

        names = ("batches", "threads", "provider", "runs")
        given = {name: self.options[f"latency_{name}"] for name in names if f"latency_{name}" in self.options}
        return Timing.parse(**given) if given else Timing()

    @property
    def console(self) -> Console | None:
        """Where a command prints its progress: nowhere if quiet, or standard error when standard output is for JSON."""
        return None if self.options["quiet"] or not distributed.speaks() else Console(stderr=self.options["json"])

    def _introduced(self) -> Console | None:
        """The console, after printing which settings came from a file."""
        told = config_file.told(self.context)
        if told and self.console is not None:
            self.console.print(told, highlight=False, markup=False)
        return self.console

    def recipe(self, paper: Callable[[int], Recipe]) -> Recipe:
        """The training recipe: --recipe or the defaults, overridden by the other options. Raises UsageError.

        `paper` gives the recipe of the papers, for images of this side in pixels.
        """
        from compressor.data.specs import is_dense
        from compressor.training.recipe import DENSE_BATCH, Recipe

        sources = {name: self.context.get_parameter_source(name) for name in self.options}
        given = {name: self.options[name] for name, source in sources.items() if source and source.name != "DEFAULT"}
        ready, images = given.get("recipe"), self.images
        if ready and images.spec is None:
            raise UsageError(f"--recipe {ready} needs images to train on: give --data.")
        start = Recipe(epochs=10 if images.spec else 0)
        if images.spec and is_dense(images.spec):
            start = dataclasses.replace(start, batch_size=DENSE_BATCH)
        if ready == "quick":
            start = Recipe.quick(given.get("epochs", 20))
        elif ready == "paper" and (data := images.open(channels=None, seed=0)):  # for the size of its images alone
            start = paper(max(data.shape[1:]))
        if "milestones" in given:
            form = "write fractions of the training, as in 0.5,0.75"
            given["milestones"] = numbers("--milestones", given["milestones"], form)
        fields = {field.name for field in dataclasses.fields(Recipe)}
        return dataclasses.replace(start, **{name: value for name, value in given.items() if name in fields})

    def order(self, source: Source, recipe: Recipe, name: str) -> Order:
        """The order for a run in --out, by default in runs/MODEL-`name`."""
        from compressor.runs.run import Order

        return Order(
            source,
            self.images,
            recipe,
            out=self.options["out"] or Path("runs") / f"{stem(source.model)}-{name}",
            device=self.options["device"],
            inputs=self.inputs,
            console=self._introduced(),
            force=self.options["force"],
            resume=self.options.get("resume", False),
            onnx=self.options.get("onnx", True),
            form=self.form,
            timing=self.timing,
        )

    def show(self, run: Run) -> None:
        """Execute a run, and print its result: as JSON, or in tables on the console. Raises NotExported.

        A pipeline that only wants the run object receives it instead.
        """
        if self.context.obj is not None:
            self.context.obj(run)
            return
        if self.options["dry_run"]:
            self._foretell(run)
            return
        from compressor.report import to_json

        report, console = run.run(), run.console
        if not distributed.speaks():
            return
        if self.options["json"]:
            print_json(to_json(report))
        elif console is not None:
            tell(report, run.out, console)
        check_exported(report, run.out)

    def side_by_side(self, runs: Sequence[Path], out: Path | None) -> None:
        """Compare finished runs, and print the result."""
        from compressor.report.write import compare_runs

        place = out or Path("runs") / "compare"
        self.show_comparison(compare_runs(runs, place), place)

    def show_comparison(self, compared: Comparison, out: Path) -> None:
        """Print a comparison of runs: as JSON, or as a table on the console."""
        from compressor.report import comparison_to_json, print_comparison

        if self.options["json"]:
            print_json(comparison_to_json(compared))
        elif (console := self.console) is not None:
            print_comparison(compared, console)
            console.print(f"\nThe table and the plots are in {out}: comparison.html, .md, .csv, .json", highlight=False)

    def _foretell(self, run: Run) -> None:
        foreseen = run.foresee()
        if not distributed.speaks():
            return
        if self.options["json"]:
            print_json(json_.dumps(dataclasses.asdict(foreseen), indent=2))
        else:
            print(f"{run.method}: {foreseen}")


def tell(report: Report, out: Path, console: Console) -> None:
    """Print the result of a run, in tables, and its directory."""
    from compressor.report import print_report

    print_report(report, console)
    file = "model.onnx, " if report.compressed.size_bytes is not None else ""
    console.print(f"\nResults are in {out}: {file}model.safetensors + plan.json, report.html", highlight=False)


def check_exported(report: Report, out: Path) -> None:
    """Raise NotExported when a run was to write an ONNX file, and could not."""
    if report.onnx_failure is not None:
        raise NotExported(
            f"{out} holds the verified network for PyTorch, but no ONNX file: {report.onnx_failure}\n"
            f'compressor.load("{out}") loads it; --no-onnx does without the file.'
        )


def stem(model: str) -> str:
    """The name for the results of a model: `nets/a.pt` and `timm:a` are `a`."""
    return Path(model.rpartition(":")[2]).stem


def height_and_width(name: str, text: str | None) -> int | tuple[int, int] | None:
    """The pixels in the option `name`: `224`, or `360x480`, in a settings file also [360, 480]. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,9})\s*(?:[xX,]\s*(\d{1,9})\s*)?", text)
    if found is None:
        raise UsageError(f"{name} {text!r} is not a size in pixels: write 224, or height and width, as in 360x480.")
    height = int(found[1])
    return height if found[2] is None else (height, int(found[2]))


def numbers(name: str, text: str, form: str) -> tuple[float, ...]:
    """The numbers between the commas. Raises UsageError with the expected `form`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{name} {text!r} is not a list of numbers: {form}.") from None
