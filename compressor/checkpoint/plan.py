"""How a compressed network is stored: weights in safetensors, and a plan with the changes to the user's original network.

`plan.json` holds, in plain JSON:

    version     of this format
    arch        the code that builds the original network, and `arch_args` for it
    input_shape [channels, height, width] of one image; other inputs are a list of {name, shape, dtype}
    preprocessing  of images (size, crop, mode, mean, std, classes), if known
    input_range [low, high] of the values of random inputs, if it was given
    constants   of `forward`, by name, if there are any
    steps       the changes to the original, in order. Either channels were pruned:
        counts      module -> its attributes that count channels, after pruning (`in_channels`, `num_features`, ...)
        scatter     module -> {kept, width, dim}: a narrow output is scattered into a zero tensor at the indices `kept`
        kept        tensor -> dimension -> name of a list in `indices`: the kept indices, relative to the step before
    or layers were replaced:
        parts       module -> the chain of plain layers that replaces it (replacements.py)
    indices     the lists

Rebuilding the network needs no pickle and executes only the code that builds the original.
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
from compressor.network.constants import Constant, bind, checked, constants_of
from compressor.network.cost import count_macs
from compressor.network.inputs import AnyInputs, Input, Inputs
from compressor.network.replacements import Chains, make, replaced

VERSION = 2
KEYS = ("arch", "arch_args", "input_shape", "steps", "indices")
CUT = ("counts", "scatter", "kept")
BUILT_IN = ("torchvision", "timm")
# timm would read or write the files that these arguments name
FROM_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
OUR_OWN = ("compressor.demo:DigitsNet",)
LARGEST_NETWORK = 2**31  # bytes; every run writes its original as one ONNX file, which cannot be larger
LARGEST_INPUT = 2**26  # values in one sample
LARGEST_INDEX = 2**26  # entries in all indices of all chains, which are computed from a few numbers


Step = Cut | Chains

# The preprocessing of images in a plan, with the function that reads each entry: as in the report.
PREPROCESSING: dict[str, Callable[[Any], Any]] = {
    "size": lambda values: [_natural(value) for value in values],
    "crop": float,
    "mode": str,
    "mean": lambda values: _numbers(values),
    "std": lambda values: _numbers(values),
    "classes": lambda values: [str(value) for value in values],
    "fit": lambda value: _one_of(value, "cover", "stretch", "letterbox", "whole"),
    "color": lambda value: _one_of(value, "rgb", "bgr", "grey"),
    "max_value": lambda value: _positive(value),
    "pad_to": lambda value: max(1, _natural(value)),
    "tile": lambda values: None if values is None else _sides(values),
    "bars": lambda values: None if values is None else [_natural(value) for value in values],
}
LATER = ("fit", "color", "max_value", "pad_to", "tile", "bars")  # entries that older plans have not


@dataclass(frozen=True)
class Plan:
    """How `arch` becomes the compressed network. See the module's docstring."""

    arch: str
    arch_args: dict[str, object] = field(default_factory=dict)
    inputs: AnyInputs | None = None
    steps: tuple[Step, ...] = ()
    preprocessing: Mapping[str, Any] | None = None  # of images, if known: see PREPROCESSING
    constants: Mapping[str, Constant] = field(default_factory=dict)  # of `forward`

    def then(self, step: Step) -> Plan:
        """This plan with another step appended, unless that is empty."""
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
            **({} if plan.inputs is None or (span := Inputs.of(plan.inputs).range) is None else {"input_range": span}),
            **({"constants": dict(plan.constants)} if plan.constants else {}),
            "steps": [written(step) for step in plan.steps],
            "indices": {name: places for places, name in indices.items()},
        },
        default=list,
    )


def from_json(text: str, where: str) -> Plan:
    """Read a plan. Raises CheckpointError, with the name `where`, when it is not valid."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(
            f"{where} is not a valid plan: {what}. Repeat the run, or use the plan.json of its run directory."
        )

    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(f"it is not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict) or "version" not in data:
        raise wrong("it has no `version`")
    if data["version"] == 1:  # a single cut, not a list of steps
        data = {**data, "steps": [{key: data[key] for key in CUT if key in data}]}
    elif data["version"] != VERSION:
        raise CheckpointError(
            f"{where} has version {data['version']!r}, but this version of compress reads versions 1 and {VERSION}: "
            "update compress."
        )
    if missing := [key for key in KEYS if key not in data]:
        raise wrong(f"it has no `{missing[0]}`")
    try:
        indices = {str(name): _places(places) for name, places in data["indices"].items()}
        steps = tuple(_step(step, indices) for step in data["steps"])
        inputs = None if data["input_shape"] is None else _inputs(data["input_shape"], data.get("input_range"))
        arch, arch_args = str(data["arch"]), dict(data["arch_args"])
        preprocessing = _preprocessing(data.get("preprocessing"))
        constants = checked(dict(data.get("constants", {})))
        _check_chains(step for step in steps if isinstance(step, Chains))
    except Exception as error:  # untrusted file: on any error, it is not a valid plan
        raise wrong(in_one_line(error)) from None
    if not arch.isprintable():
        raise wrong(f"{arch[:40]!r} is not a valid architecture name")
    return Plan(arch, arch_args, inputs, steps, preprocessing, constants)


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
    """Raise any of several exceptions when parts cannot be built, or are too large."""
    with torch.device("meta"), warnings.catch_warnings():  # forged sizes take no memory there
        warnings.simplefilter("ignore")  # about layers without weights, which are refused below
        made = [make(parts) for step in steps for parts in step.parts.values()]
    if any(weight.numel() == 0 for part in made for weight in part.parameters()):
        raise ValueError("a layer has no weights")
    if sum(index.numel() for part in made for index in part.buffers()) > LARGEST_INDEX:
        raise ValueError(f"the indices of its chains have more than {LARGEST_INDEX:,} entries")


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is not a count")
    return value


def _places(values: Any) -> list[int]:
    places = [_natural(value) for value in values]
    if not places or places != sorted(set(places)):
        raise ValueError("kept indices must be sorted and unique")
    return places


def _preprocessing(values: Any) -> dict[str, Any] | None:
    """The preprocessing of images; None if the plan has none. Raises ValueError, KeyError or TypeError."""
    if values is None:
        return None
    found = {name: read(values[name]) for name, read in PREPROCESSING.items() if name in values or name not in LATER}
    if found["mode"] not in ("RGB", "L") or not 0 < found["crop"] <= 1 or len(found["size"]) != 2:
        raise ValueError("the preprocessing is not valid")
    return found


def _sides(values: Any) -> list[int]:
    height, width = (_natural(value) for value in values)
    if not height * width:
        raise ValueError("a tile has no pixels")
    return [height, width]


def _one_of(value: Any, *known: str) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return str(value)


def _positive(value: Any) -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{value!r} is not positive")
    return float(value)


def _numbers(values: Any) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a value is not finite")
    return numbers


def _written(inputs: Inputs) -> list[Any]:
    """A single image as its three sizes, as in earlier plans; other inputs with names and types."""
    first = inputs.each[0]
    if inputs.each == Inputs.of(first.shape).each and len(first.shape) == 3:
        return list(first.shape)
    return [asdict(entry) for entry in inputs.each]


def _inputs(values: list[Any], span: Any) -> Inputs:
    if all(isinstance(entry, dict) for entry in values):
        inputs = Inputs(tuple(Input(tuple(entry["shape"]), entry["name"], entry["dtype"]) for entry in values))
    else:
        channels, height, width = (_natural(value) for value in values)
        inputs = Inputs.of((channels, height, width))
    if inputs.numbers > LARGEST_INPUT:
        raise ValueError(f"its inputs have more than {LARGEST_INPUT:,} values")
    if span is None:
        return inputs
    low, high = _numbers(span)
    return replace(inputs, range=(low, high))


def _counts(changed: dict[str, Any]) -> dict[str, Count]:
    counts: dict[str, Count] = {}
    for name, value in changed.items():
        counts[name] = [_natural(v) for v in value] if isinstance(value, list) else _natural(value)
    return counts


def _spread(row: dict[str, Any]) -> Spread:
    kept, width, dim = tuple(_places(row["kept"])), _natural(row["width"]), row["dim"]
    if dim not in (1, -1) or kept[-1] >= width:
        raise ValueError("a scatter does not fit its width or dimension")
    return Spread(kept, width, dim)


def save_model(directory: Path, model: nn.Module, plan: Plan) -> None:
    """Write `model.safetensors` and `plan.json`, with the constants of `model`. A shared tensor is written once, under its
    first name.
    """
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) == name:
            weights[name] = tensor.detach().cpu().contiguous()
    packed = save(weights, metadata={"format": "pt"})
    write_whole(directory / "model.safetensors", lambda path: path.write_bytes(packed))
    write_text(directory / "plan.json", to_json(replace(plan, constants=constants_of(model))))


def rebuild(model: nn.Module, plan: Plan, weights: Mapping[str, Tensor]) -> nn.Module:
    """Turn the original network (its weights do not matter) into the compressed one, in place. Raises CheckpointError."""
    try:
        bind(model, plan.constants)
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
            count_macs(model.eval(), plan.inputs)  # one forward pass, on `meta` where possible
    except CheckpointError:
        raise
    except Exception as error:  # an untrusted plan may fail anywhere
        raise CheckpointError(
            f"the plan does not fit {plan.arch} ({in_one_line(error)}).\nGive the code that builds the original with --arch."
        ) from error
    return model.eval()


def _take(step: Step, model: nn.Module) -> None:
    """Apply a step to the network; the weights do not matter."""
    if isinstance(step, Chains):
        with WithoutMemory():
            replaced(model, {name: make(parts) for name, parts in step.parts.items()})
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, dims in step.kept.items():
        for dim, kept in dims.items():
            if kept[-1] >= tensors[name].shape[dim]:
                raise IndexError(f"it keeps index {kept[-1]} of {tensors[name].shape[dim]} in {name}")
            places = torch.from_numpy(kept).to(tensors[name].device)
            tensors[name].data = tensors[name].data.index_select(dim, places)
    set_counts(model, step.counts)
    for name, spread in step.spread.items():
        attach(model.get_submodule(name), spread)


def _set(model: nn.Module, name: str, tensor: Tensor, value: Tensor) -> None:
    if not tensor.is_meta:
        tensor.data = value  # in place, so that shared tensors stay shared
        return
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value))


def _check_names(model: nn.Module, tensors: dict[str, Tensor], weights: Mapping[str, Tensor], arch: str) -> None:
    """Every saved tensor of the network must have a value, under one of its names."""
    unexpected = [name for name in weights if name not in tensors]
    known = {id(tensors[name]) for name in weights if name in tensors}
    missing = [name for name in model.state_dict() if name in tensors and id(tensors[name]) not in known]
    if unexpected or missing:
        raise CheckpointError(
            f"the weights do not fit {arch}: {len(missing)} missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({printable(', '.join(unexpected[:3])) or 'none'}).\n"
            "Give the code that builds the original with --arch."
        )


def _check_shape(name: str, tensor: Tensor, value: Tensor, plan: Plan) -> None:
    """The weights must have the shapes that the plan gives, and types of the same kind."""
    if value.is_floating_point() != tensor.is_floating_point() or value.dtype not in ORDINARY:
        raise CheckpointError(f"{name} is {str(value.dtype)[6:]}, but {plan.arch} has {str(tensor.dtype)[6:]}. Repeat the run.")
    if value.shape != tensor.shape:
        raise CheckpointError(
            f"{name} has the shape {list(value.shape)}, but {list(tensor.shape)} in {plan.arch} with this plan.\n"
            "Give the code that builds the original with --arch."
        )


def read_plan(directory: Path) -> Plan:
    """The plan of a run directory. Raises CheckpointError."""
    path = directory / "plan.json"
    try:
        return from_json(read_text(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory} is not a finished run: {path.name} cannot be read ({error}).") from None


def check_trusted(plan: Plan, directory: Path) -> None:
    """Check that the code named by a plan is trusted: a run directory may be untrusted, so it must not choose what is executed.

    Trusted are torchvision, timm, and a class or function that is defined in a file below the working directory, unless that
    file is in the run directory. Raises ArchitectureError for anything else. No code is imported for this check.
    """
    where, _, name = plan.arch.rpartition(":")
    if plan.arch in OUR_OWN or (where in BUILT_IN and not FROM_FILES & plan.arch_args.keys()):
        return
    if where in ("pickle", "pt2"):
        raise ArchitectureError(
            f"{directory} was made from {plan.arch}, whose code is in that file.\n"
            "Give the code that builds the network: --arch path/to/file.py:NAME, or compressor.load(run, arch=...)."
        )
    here = Path.cwd().resolve()
    with suppress(OSError, ValueError, RuntimeError):  # names that are too long, cannot be encoded, or are circular links
        for path in _files(where):
            inside = path.is_relative_to(here) and not path.is_relative_to(directory.resolve())
            if inside and path.is_file() and _defines(path, name, called_with=plan.arch_args):
                return
    raise ArchitectureError(
        f"{directory} was made from {plan.arch}, which is not a class or function in a file below {here}: "
        "other code is not executed unless you name it.\n"
        "Run in the directory where it was made, or give --arch path/to/file.py:NAME, or compressor.load(run, arch=...)."
    )


def _files(where: str) -> list[Path]:
    """The possible files of `path/to/file.py` or `package.module`, with links resolved."""
    if where.endswith(".py"):
        return [Path(where).resolve()]
    parts = where.split(".")
    if parts[0] in sys.stdlib_module_names or not all(part.isidentifier() for part in parts):
        return []
    place = Path(*parts)
    return [place.with_suffix(".py").resolve(), (place / "__init__.py").resolve()]


def _defines(path: Path, name: str, called_with: Mapping[str, object]) -> bool:
    """Whether the file itself defines a class or function of this name or, if there are no arguments, a value.

    Imported names, such as `os.system`, do not count.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    values = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    ready = {target.id for target in values if isinstance(target, ast.Name)}
    return name in defined or (name in ready and not called_with)
