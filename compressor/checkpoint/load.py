"""Load a network from any supported MODEL: a checkpoint file, a run directory, or the name of an architecture.

    name or file ──kinds──> read ──weights──> tensors ──recognise──> architecture ──arch──> network ──fit──> Loaded

Nothing in a file is executed unless the user declares it trusted.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from compressor.checkpoint.arch import Sparingly, build, inputs_of
from compressor.checkpoint.exported_program import open_program
from compressor.checkpoint.file_formats import check_archive, in_one_line, kind_of
from compressor.checkpoint.fit_weights import check_finite, fit
from compressor.checkpoint.plan import LARGEST_NETWORK, Plan, check_trusted, read_plan, rebuild
from compressor.checkpoint.read import read
from compressor.checkpoint.recognise import recognise
from compressor.checkpoint.weights import find_weights
from compressor.errors import CheckpointError, UsageError
from compressor.files import sha256_of
from compressor.network.inputs import Inputs


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode on the CPU, and its origin.

    `arch` rebuilds it with `arch_args`, except "pickle:FILE" and "pt2:FILE", whose code is in the file. `inputs` is its input
    shape, if known from torchvision, timm or the network's config. `notes` are sentences on what was found and done. `sha256`
    is the file's; None for a name.
    """

    model: nn.Module
    source: str
    arch: str
    arch_args: dict[str, object] = field(default_factory=dict)
    inputs: Inputs | None = None
    notes: list[str] = field(default_factory=list)
    sha256: str | None = None
    plan: Plan | None = None  # of a run directory: how its network was compressed


def load_model(
    source: str,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    key: str | None = None,
    ema: bool = False,
    trust_pickle: bool = False,
) -> Loaded:
    """The network of MODEL: `torchvision:NAME`, `timm:NAME`, a checkpoint file or a run directory.

    `arch` is the code that builds it; without it, a torchvision network is recognised from the weights. `key` and `ema` choose
    among several sets of weights in a file. `trust_pickle` lets the file run code, for pickled modules and exported programs.

    Raises CheckpointError (the file), ArchitectureError (the code) or UsageError (the options).
    """
    args = dict(arch_args or {})
    if source.startswith(("torchvision:", "timm:")):
        if arch is not None:
            raise UsageError(f"MODEL {source} already names an architecture, and so does --arch {arch}. Omit one of them.")
        return from_code(source, args)
    path = Path(source)
    if (kind := kind_of(path)) == "run":
        return load_run(path, arch, args or None)
    if kind == "pt2" and trust_pickle and arch is None:
        _refuse_args(path, args)
        return _program(path)
    found = find_weights(read(path, trust_pickle=trust_pickle), key=key, ema=ema)
    notes = list(found.notes)
    if isinstance(found.value, nn.Module):
        if arch is None:
            _refuse_args(path, args)
            return _module(path, found.value, notes)
        tensors = {name: item for name, item in found.value.state_dict().items() if isinstance(item, torch.Tensor)}
    else:
        tensors = found.value
    try:
        if arch is None:
            arch, args = _recognised(tensors, args, notes)
        model, args, done = fit(arch, args, tensors)
    except CheckpointError as error:
        raise _in_file(path, error) from error
    return Loaded(model, source, arch, args, inputs_of(arch, model), [*notes, *done], sha256_of(path))


def from_code(source: str, args: Mapping[str, object]) -> Loaded:
    """The network that an architecture string builds (`torchvision:NAME`, `path/to/file.py:NAME`), with its initial weights.

    Raises ArchitectureError.
    """
    args = dict(args)
    model = build(source, args).eval()
    trained = args.get("weights") or args.get("pretrained")
    notes = [] if trained else [f"the weights are random: {source} is an architecture without weights"]
    return Loaded(model, source, source, args, inputs_of(source, model), notes)


def load_run(directory: Path, arch: str | None, arch_args: Mapping[str, object] | None = None) -> Loaded:
    """The network of a run directory. Raises CheckpointError or ArchitectureError."""
    plan = read_plan(directory)
    if arch is None:
        check_trusted(plan, directory)
    plan = replace(plan, arch=arch or plan.arch, arch_args=dict(arch_args or plan.arch_args))
    file = directory / "model.safetensors"
    try:
        # Cloned, as unaligned memory of a mapped file is slower and may change rounding.
        weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    except Exception as error:  # untrusted file: on any error, it is not valid
        raise CheckpointError(f"{file} cannot be read: {in_one_line(error)}. Repeat the run.") from None
    try:
        with Sparingly(LARGEST_NETWORK), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about layers without weights
            model = build(plan.arch, plan.arch_args)
        model = rebuild(model, plan, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    inputs = None if plan.inputs is None else Inputs.of(plan.inputs)
    return Loaded(model, str(directory), plan.arch, plan.arch_args, inputs, [f"a run of {plan.arch}"], None, plan)


def load(run: str | Path, arch: str | None = None, arch_args: Mapping[str, object] | None = None) -> nn.Module:
    """Load the compressed network of a run directory (or any MODEL), in eval mode on the CPU; nothing is unpickled.

    `arch` and `arch_args` name the code that builds the original network, if the code that the run names is not trusted.
    Raises a CompressError.
    """
    return load_model(str(run), arch=arch, arch_args=arch_args).model


def _recognised(tensors: dict[str, torch.Tensor], args: dict[str, object], notes: list[str]) -> tuple[str, dict[str, object]]:
    """The recognised architecture; the user's arguments take precedence over recognised ones."""
    found = recognise(tensors)
    count = found.args.get("num_classes")
    notes.append(f"recognised as {found.arch}" + (f" with {count} classes" if count else ""))
    if found.arch in {"torchvision:googlenet", "torchvision:inception_v3"}:
        notes.append("if it was fine-tuned from torchvision's weights, add --arch-arg transform_input=true")
    return found.arch, {**found.args, **args}


def _refuse_args(path: Path, args: dict[str, object]) -> None:
    if args:
        raise UsageError(
            f"{path} contains the network itself, which takes no --arch-arg ({', '.join(args)}). Omit it, or give --arch."
        )


def _module(path: Path, model: nn.Module, notes: list[str]) -> Loaded:
    """A module from a trusted pickle."""
    half = {tensor.dtype for tensor in model.parameters()} & {torch.float16, torch.bfloat16}
    if half:
        notes.append(f"{', '.join(str(dtype)[6:] for dtype in half)} weights were cast to float32")
        model = model.float()
    try:
        check_finite(model)
    except CheckpointError as error:
        raise _in_file(path, error) from error
    notes.append("the pickled module was loaded (--trust-pickle)")
    arch = f"pickle:{path.name}"
    return Loaded(model.cpu().eval(), str(path), arch, {}, inputs_of(arch, model), notes, sha256_of(path))


def _program(path: Path) -> Loaded:
    """The graph of a trusted `torch.export` archive."""
    check_archive(path)
    model = open_program(path)
    for module in nn.Module.modules(model):  # an exported program refuses .eval(): its graph has a fixed mode
        module.training = False
    notes = ["the exported program was loaded (--trust-pickle); it stays in the mode, train or eval, in which it was exported"]
    return Loaded(model, str(path), f"pt2:{path.name}", {}, None, notes, sha256_of(path))


def _in_file(path: Path, error: CheckpointError) -> CheckpointError:
    beside = f" {path.parent} is a run directory: give that instead." if (path.parent / "plan.json").is_file() else ""
    program = " Or, if you trust the file, load its program with --trust-pickle." if kind_of(path) == "pt2" else ""
    return CheckpointError(f"{path}: {error}{beside}{program}")
