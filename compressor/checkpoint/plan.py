"""How a small network is kept: weights in safetensors, and a plan that says how the user's own class becomes as small.

`plan.json` holds, in plain JSON:

    version     of this format
    arch        the code that builds the original network, and `arch_args` for it
    input_shape [channels, height, width] of one image; other inputs are a list of {name, shape, dtype}
    preprocessing  how an image becomes an input (size, crop, mode, mean, std, classes), where that is known
    steps       what was done to the original, one after the other. Either channels were cut:
        counts      module -> the counts it carries beside its tensors, after the cut (`in_channels`, `num_features`, ...)
        scatter     module -> {kept, width, dim}: where a narrow output is put back into a wide stream
        kept        tensor -> dimension -> name of a list in `indices`: which places remain of what was there before the step
    or layers were replaced:
        parts       module -> the plain layers that take its place, one after the other (replacements.py)
    indices     the lists

Building the network again needs no pickle and executes nothing but the code that builds the original.
"""

from __future__ import annotations

import ast
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from compressor.channels.surgery import Count, Cut, Spread, attach, set_counts
from compressor.checkpoint.arch import WithoutMemory
from compressor.checkpoint.file_formats import in_one_line
from compressor.checkpoint.fit_weights import ORDINARY
from compressor.errors import ArchitectureError, CheckpointError, printable
from compressor.files import read_text, write_text, write_whole
from compressor.network.cost import count_macs
from compressor.network.inputs import AnyInputs, Input, Inputs
from compressor.network.replacements import Chains, make, replaced

VERSION = 2
KEYS = ("arch", "arch_args", "input_shape", "steps", "indices")
CUT = ("counts", "scatter", "kept")
BUILT_IN = ("torchvision", "timm")
# timm would open the files that these name, or write into them
FROM_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
OUR_OWN = ("compressor.demo:DigitsNet",)
LARGEST_NETWORK = 2**31  # bytes; every run writes its original as one ONNX file, which holds no more
LARGEST_INPUT = 2**26  # numbers of one sample
LARGEST_INDEX = 2**26  # numbers, of all indices of all chains: they are computed from a few


Step = Cut | Chains

# What a plan can say of images, and how it is read: as in the report.
PREPROCESSING: dict[str, Callable[[Any], Any]] = {
    "size": lambda values: [_natural(value) for value in values],
    "crop": float,
    "mode": str,
    "mean": lambda values: _numbers(values),
    "std": lambda values: _numbers(values),
    "classes": lambda values: [str(value) for value in values],
}


@dataclass(frozen=True)
class Plan:
    """How `arch` becomes the small network. See the module's docstring."""

    arch: str
    arch_args: dict[str, object] = field(default_factory=dict)
    inputs: AnyInputs | None = None
    steps: tuple[Step, ...] = ()
    preprocessing: Mapping[str, Any] | None = None  # how an image becomes an input, where that is known: see PREPROCESSING

    def then(self, step: Step) -> Plan:
        """This plan followed by another step, unless that does nothing."""
        return self if step in (Cut(), Chains({})) else replace(self, steps=(*self.steps, step))


def to_json(plan: Plan) -> str:
    indices: dict[tuple[int, ...], str] = {}

    def written(step: Step) -> dict[str, object]:
        if isinstance(step, Chains):
            return {"parts": step.parts}
        return {
            "counts": step.counts,
            "scatter": {name: asdict(spread) for name, spread in step.spread.items()},
            "kept": {
                name: {str(dim): indices.setdefault(tuple(places.tolist()), f"i{len(indices)}") for dim, places in dims.items()}
                for name, dims in step.kept.items()
            },
        }

    return json.dumps(
        {
            "version": VERSION,
            "arch": plan.arch,
            "arch_args": plan.arch_args,
            "input_shape": None if plan.inputs is None else _written(Inputs.of(plan.inputs)),
            **({} if plan.preprocessing is None else {"preprocessing": dict(plan.preprocessing)}),
            "steps": [written(step) for step in plan.steps],
            "indices": {name: places for places, name in indices.items()},
        },
        default=list,
    )


def from_json(text: str, where: str) -> Plan:
    """Read a plan. Raises CheckpointError naming `where` when it is not one."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(
            f"{where} is not a plan of ours: {what}. Make the run again, or take the plan from its directory."
        )

    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(f"it is not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict) or "version" not in data:
        raise wrong("it has no `version`")
    if data["version"] == 1:  # a single cut, written into the plan itself
        data = {**data, "steps": [{key: data[key] for key in CUT if key in data}]}
    elif data["version"] != VERSION:
        raise CheckpointError(
            f"{where} has version {data['version']!r}, and this version of compress reads {VERSION}: update compress."
        )
    if missing := [key for key in KEYS if key not in data]:
        raise wrong(f"it has no `{missing[0]}`")
    try:
        indices = {str(name): _places(places) for name, places in data["indices"].items()}
        steps = tuple(_step(step, indices) for step in data["steps"])
        inputs = None if data["input_shape"] is None else _inputs(data["input_shape"])
        arch, arch_args = str(data["arch"]), dict(data["arch_args"])
        preprocessing = _preprocessing(data.get("preprocessing"))
        _check_chains(step for step in steps if isinstance(step, Chains))
    except Exception as error:  # the text may be anyone's: whatever goes wrong, it is no plan
        raise wrong(in_one_line(error)) from None
    if not arch.isprintable():
        raise wrong(f"{arch[:40]!r} is no name of code")
    return Plan(arch, arch_args, inputs, steps, preprocessing)


def _step(data: dict[str, Any], indices: Mapping[str, list[int]]) -> Step:
    if "parts" in data:
        return Chains(dict(data["parts"]))
    kept = {
        str(name): {int(dim): np.array(indices[index], np.int64) for dim, index in dims.items()}
        for name, dims in data["kept"].items()
    }
    counts = {str(module): _counts(changed) for module, changed in data["counts"].items()}
    return Cut(kept, counts, {str(module): _spread(row) for module, row in data["scatter"].items()})


def _check_chains(steps: Iterable[Chains]) -> None:
    """Raise one of many errors when parts cannot be made, or are larger than what is left of a network could be."""
    with torch.device("meta"), warnings.catch_warnings():  # sizes that are not true cost nothing
        warnings.simplefilter("ignore")  # of layers without weights, which are refused
        made = [make(parts) for step in steps for parts in step.parts.values()]
    if any(weight.numel() == 0 for part in made for weight in part.parameters()):
        raise ValueError("a layer has no weights")
    if sum(index.numel() for part in made for index in part.buffers()) > LARGEST_INDEX:
        raise ValueError(f"its chains have indices of more than {LARGEST_INDEX:,} numbers")


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is not a count")
    return value


def _places(values: Any) -> list[int]:
    places = [_natural(value) for value in values]
    if not places or places != sorted(set(places)):
        raise ValueError("places that are kept must be named in order")
    return places


def _preprocessing(values: Any) -> dict[str, Any] | None:
    """What a plan says of images; None where it says nothing. Raises ValueError, KeyError or TypeError."""
    if values is None:
        return None
    found = {name: read(values[name]) for name, read in PREPROCESSING.items()}
    if found["mode"] not in ("RGB", "L") or not 0 < found["crop"] <= 1 or len(found["size"]) != 2:
        raise ValueError("preprocessing that no image has")
    return found


def _numbers(values: Any) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number that is none")
    return numbers


def _written(inputs: Inputs) -> list[Any]:
    """One image as its three numbers, as in all plans so far; anything else with names and types."""
    first = inputs.each[0]
    if inputs == Inputs.of(first.shape) and len(first.shape) == 3:
        return list(first.shape)
    return [asdict(entry) for entry in inputs.each]


def _inputs(values: list[Any]) -> Inputs:
    if all(isinstance(entry, dict) for entry in values):
        inputs = Inputs(tuple(Input(tuple(entry["shape"]), entry["name"], entry["dtype"]) for entry in values))
    else:
        channels, height, width = (_natural(value) for value in values)
        inputs = Inputs.of((channels, height, width))
    if inputs.numbers > LARGEST_INPUT:
        raise ValueError(f"inputs of more than {LARGEST_INPUT:,} numbers")
    return inputs


def _counts(changed: dict[str, Any]) -> dict[str, Count]:
    counts: dict[str, Count] = {}
    for name, value in changed.items():
        counts[name] = [_natural(v) for v in value] if isinstance(value, list) else _natural(value)
    return counts


def _spread(row: dict[str, Any]) -> Spread:
    kept, width, dim = tuple(_places(row["kept"])), _natural(row["width"]), row["dim"]
    if dim not in (1, -1) or kept[-1] >= width:
        raise ValueError("a scatter that does not fit")
    return Spread(kept, width, dim)


def save_model(directory: Path, model: nn.Module, plan: Plan) -> None:
    """Write `model.safetensors` and `plan.json`. A tensor that has several names is written under the first."""
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) == name:
            weights[name] = tensor.detach().cpu().contiguous()
    packed = save(weights, metadata={"format": "pt"})
    write_whole(directory / "model.safetensors", lambda path: path.write_bytes(packed))
    write_text(directory / "plan.json", to_json(plan))


def rebuild(model: nn.Module, plan: Plan, weights: Mapping[str, Tensor]) -> nn.Module:
    """Turn the original network (its weights do not matter) into the small one, in place. Raises CheckpointError."""
    try:
        for step in plan.steps:
            _take(step, model)
        tensors: dict[str, Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        _check_names(model, tensors, weights, plan.arch)
        for name, value in weights.items():
            _check_shape(name, tensors[name], value, plan)
        for name, value in weights.items():
            _set(model, name, tensors[name], value)
        if plan.inputs is not None:
            count_macs(model.eval(), plan.inputs)  # one forward pass, of shapes alone where that is possible
    except CheckpointError:
        raise
    except Exception as error:  # what a plan says may be anyone's, and fail anywhere
        raise CheckpointError(
            f"the plan does not belong to {plan.arch} ({in_one_line(error)}).\nName the code it was made from with --arch."
        ) from error
    return model.eval()


def _take(step: Step, model: nn.Module) -> None:
    """Change the network as a step says, whatever its weights."""
    if isinstance(step, Chains):
        with WithoutMemory():
            replaced(model, {name: make(parts) for name, parts in step.parts.items()})
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, dims in step.kept.items():
        for dim, kept in dims.items():
            if kept[-1] >= tensors[name].shape[dim]:
                raise IndexError(f"it keeps place {kept[-1]} of {tensors[name].shape[dim]} in {name}")
            places = torch.from_numpy(kept).to(tensors[name].device)
            tensors[name].data = tensors[name].data.index_select(dim, places)
    set_counts(model, step.counts)
    for name, spread in step.spread.items():
        attach(model.get_submodule(name), spread)


def _set(model: nn.Module, name: str, tensor: Tensor, value: Tensor) -> None:
    if not tensor.is_meta:
        tensor.data = value  # in place, so that a tensor with several names stays one
        return
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value))


def _check_names(model: nn.Module, tensors: dict[str, Tensor], weights: Mapping[str, Tensor], arch: str) -> None:
    """Every tensor of the network that is saved must have a value, under one of its names."""
    unexpected = [name for name in weights if name not in tensors]
    known = {id(tensors[name]) for name in weights if name in tensors}
    missing = [name for name in model.state_dict() if name in tensors and id(tensors[name]) not in known]
    if unexpected or missing:
        raise CheckpointError(
            f"the weights do not belong to {arch}: {len(missing)} missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({printable(', '.join(unexpected[:3])) or 'none'}).\n"
            "Name the code it was made from with --arch."
        )


def _check_shape(name: str, tensor: Tensor, value: Tensor, plan: Plan) -> None:
    """The weights must have the shapes that the plan makes, and be numbers of the same kind."""
    if value.is_floating_point() != tensor.is_floating_point() or value.dtype not in ORDINARY:
        raise CheckpointError(
            f"{name} holds {str(value.dtype)[6:]} and {plan.arch} {str(tensor.dtype)[6:]}. Make the run again."
        )
    if value.shape != tensor.shape:
        raise CheckpointError(
            f"{name} has the shape {list(value.shape)}, but {plan.arch} and the plan make it {list(tensor.shape)}.\n"
            "Name the code it was made from with --arch."
        )


def read_plan(directory: Path) -> Plan:
    """The plan of a run directory. Raises CheckpointError."""
    path = directory / "plan.json"
    try:
        return from_json(read_text(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory} is not a finished run: {path.name} cannot be read ({error}).") from None


def check_trusted(plan: Plan, directory: Path) -> None:
    """A run may come from anyone, so it must not choose what code is executed here.

    Trusted are torchvision, timm, and a class or function that a file below the working directory defines, unless that file
    came with the run. Raises ArchitectureError for anything else. No code is imported to find out.
    """
    where, _, name = plan.arch.rpartition(":")
    if plan.arch in OUR_OWN or (where in BUILT_IN and not FROM_FILES & plan.arch_args.keys()):
        return
    if where in ("pickle", "pt2"):
        raise ArchitectureError(
            f"{directory} was made from {plan.arch}, whose code lies in that file.\n"
            "Name the code that builds the network: --arch path/to/file.py:NAME, or compressor.load(run, arch=...)."
        )
    here = Path.cwd().resolve()
    with suppress(OSError, ValueError, RuntimeError):  # names that are too long, have no letters, or lead in a circle
        for path in _files(where):
            inside = path.is_relative_to(here) and not path.is_relative_to(directory.resolve())
            if inside and path.is_file() and _defines(path, name, called_with=plan.arch_args):
                return
    raise ArchitectureError(
        f"{directory} was made from {plan.arch}, which is no class or function of a file below {here}: "
        "code from elsewhere is not executed unasked.\n"
        "Go to the directory it was made in, or name the code: --arch path/to/file.py:NAME, or compressor.load(run, arch=...)."
    )


def _files(where: str) -> list[Path]:
    """Where the code of `path/to/file.py` or `package.module` may lie, links followed."""
    if where.endswith(".py"):
        return [Path(where).resolve()]
    parts = where.split(".")
    if parts[0] in sys.stdlib_module_names or not all(part.isidentifier() for part in parts):
        return []
    place = Path(*parts)
    return [place.with_suffix(".py").resolve(), (place / "__init__.py").resolve()]


def _defines(path: Path, name: str, called_with: Mapping[str, object]) -> bool:
    """Whether the file itself defines a class, function or, when it is not called with anything, a value of this name.

    `os.system` is no such name, even where the file imports os.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    values = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    ready = {target.id for target in values if isinstance(target, ast.Name)}
    return name in defined or (name in ready and not called_with)
