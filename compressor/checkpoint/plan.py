"""How a small network is kept: weights in safetensors, and a plan that says how the user's own class becomes as small.

`plan.json` holds, in plain JSON:

    version     of this format
    arch        the code that builds the original network, and `arch_args` for it
    input_shape [channels, height, width]
    counts      module -> the counts it carries beside its tensors, after the cut (`in_channels`, `num_features`, ...)
    scatter     module -> {kept, width, dim}: where a narrow output is put back into a wide stream
    kept        tensor -> dimension -> name of a list in `indices`: which places of the original remain
    indices     the lists

Building the network again needs no pickle and executes nothing but the code that builds the original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor.channels.surgery import COUNTS, Count, Cut, Spread, attach, set_counts
from compressor.errors import ArchitectureError, CheckpointError
from compressor.files import write_text, write_whole

VERSION = 1
BUILT_IN = ("torchvision:", "timm:")


@dataclass(frozen=True)
class Plan:
    """How `arch` becomes the small network. See the module's docstring."""

    arch: str
    arch_args: dict[str, object] = field(default_factory=dict)
    input_shape: tuple[int, int, int] | None = None
    cut: Cut = field(default_factory=Cut)

    def then(self, cut: Cut) -> Plan:
        """This plan followed by another cut, as one plan relative to the original."""
        kept = {name: dict(dims) for name, dims in self.cut.kept.items()}
        for name, dims in cut.kept.items():
            for dim, places in dims.items():
                before = kept.setdefault(name, {}).get(dim)
                kept[name][dim] = places if before is None else before[places]
        counts = {**self.cut.counts}
        for module, changed in cut.counts.items():
            counts[module] = {**counts.get(module, {}), **changed}
        spread = {**self.cut.spread, **cut.spread}
        return Plan(self.arch, self.arch_args, self.input_shape, Cut(kept, counts, spread))


def to_json(plan: Plan) -> str:
    indices: dict[tuple[int, ...], str] = {}
    kept = {
        name: {str(dim): indices.setdefault(tuple(places.tolist()), f"i{len(indices)}") for dim, places in dims.items()}
        for name, dims in plan.cut.kept.items()
    }
    return json.dumps(
        {
            "version": VERSION,
            "arch": plan.arch,
            "arch_args": plan.arch_args,
            "input_shape": plan.input_shape,
            "counts": plan.cut.counts,
            "scatter": {
                name: {"kept": spread.kept, "width": spread.width, "dim": spread.dim}
                for name, spread in plan.cut.spread.items()
            },
            "kept": kept,
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
    if not isinstance(data, dict) or "arch" not in data:
        raise wrong("it names no `arch`")
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"{where} has version {data.get('version')!r}, and this version of compress reads {VERSION}: update compress."
        )
    try:
        indices = {str(name): np.array([_natural(i) for i in places], np.int64) for name, places in data["indices"].items()}
        kept = {
            str(name): {_natural(int(dim)): indices[index] for dim, index in dims.items()}
            for name, dims in data["kept"].items()
        }
        counts = {str(module): _counts(changed) for module, changed in data["counts"].items()}
        spread = {str(module): _spread(row) for module, row in data["scatter"].items()}
        shape = data["input_shape"]
        input_shape = None if shape is None else (_natural(shape[0]), _natural(shape[1]), _natural(shape[2]))
        arch, arch_args = str(data["arch"]), dict(data["arch_args"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise wrong(f"{type(error).__name__}: {error}") from None
    return Plan(arch, arch_args, input_shape, Cut(kept, counts, spread))


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is not a count")
    return value


def _counts(changed: dict[str, Any]) -> dict[str, Count]:
    counts: dict[str, Count] = {}
    for name, value in changed.items():
        if name not in COUNTS:  # a file must not set any other attribute of a module
            raise ValueError(f"{name!r} is not a count of a layer")
        counts[name] = [_natural(v) for v in value] if isinstance(value, list) else _natural(value)
    return counts


def _spread(row: dict[str, Any]) -> Spread:
    kept, width, dim = tuple(_natural(i) for i in row["kept"]), _natural(row["width"]), row["dim"]
    if dim not in (1, -1) or not kept or list(kept) != sorted(set(kept)) or kept[-1] >= width:
        raise ValueError("a scatter that does not fit")
    return Spread(kept, width, dim)


def save_model(directory: Path, model: nn.Module, plan: Plan) -> None:
    """Write `model.safetensors` and `plan.json`. A tensor that has several names is written under the first."""
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) == name:
            weights[name] = tensor.detach().cpu().contiguous()
    write_whole(directory / "model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"}))
    write_text(directory / "plan.json", to_json(plan))


def rebuild(model: nn.Module, plan: Plan, weights: Mapping[str, Tensor]) -> nn.Module:
    """Turn the original network (its weights do not matter) into the small one, in place. Raises CheckpointError."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    names: dict[str, int] = {}
    for owner, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((table, leaf))
                    names[f"{owner}.{leaf}" if owner else leaf] = id(tensor)
    unexpected = [name for name in weights if name not in names]
    known = {names[name] for name in weights if name in names}
    missing = [name for name in model.state_dict() if names[name] not in known]
    if unexpected or missing:
        raise CheckpointError(
            f"the weights do not belong to {plan.arch}: {len(missing)} missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'}).\n"
            "Name the code it was made from with --arch."
        )
    for name, dims in plan.cut.kept.items():
        if name in weights or name not in names:
            continue
        table, leaf = places[names[name]][0]
        for dim, kept in dims.items():  # a buffer that is not saved is cut here
            table[leaf] = table[leaf].index_select(dim, torch.from_numpy(kept))
    for name, value in weights.items():
        table, leaf = places[names[name]][0]
        old = table[leaf]
        if value.dim() != old.dim() or any(new > size for new, size in zip(value.shape, old.shape, strict=True)):
            raise CheckpointError(
                f"{name} has the shape {list(value.shape)}, which cannot be cut from {list(old.shape)} of {plan.arch}.\n"
                "Name the code it was made from with --arch."
            )
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for table, leaf in places[names[name]]:
            table[leaf] = new
    try:
        set_counts(model, plan.cut.counts)
        for name, spread in plan.cut.spread.items():
            attach(model.get_submodule(name), spread)
    except AttributeError as error:
        raise CheckpointError(f"the plan does not belong to {plan.arch}: {error}. Name its code with --arch.") from None
    return model.eval()


def read_plan(directory: Path) -> Plan:
    path = directory / "plan.json"
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory} is not a finished run: {path.name} cannot be read ({error}).") from None


def load_run(directory: Path, arch: str | None, arch_args: Mapping[str, object] | None = None) -> Any:
    """The network of a run directory, as `Loaded`. Raises CheckpointError or ArchitectureError."""
    from compressor.checkpoint import Loaded, build

    plan = read_plan(directory)
    if arch is None:
        _check_trusted(plan, directory)
    plan = Plan(arch or plan.arch, dict(arch_args or plan.arch_args), plan.input_shape, plan.cut)
    try:
        weights = load_file(directory / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / 'model.safetensors'} cannot be read: {error}.") from None
    model = rebuild(build(plan.arch, plan.arch_args), plan, weights)
    return Loaded(model, str(directory), plan.arch, plan.arch_args, plan.input_shape, [f"a run of {plan.arch}"], None, plan)


def _check_trusted(plan: Plan, directory: Path) -> None:
    """A run that came from elsewhere must not choose what code is executed here: only code below the working directory."""
    where, _, name = plan.arch.rpartition(":")
    if plan.arch.startswith(BUILT_IN):
        return
    if plan.arch.startswith(("pickle:", "pt2:")):
        raise ArchitectureError(
            f"{directory} was made from {plan.arch}, whose code lies in that file.\n"
            "Name the code that builds the network: --arch path/to/file.py:NAME, or compressor.load(run, arch=...)."
        )
    here = Path.cwd().resolve()
    place = Path(where) if where.endswith(".py") else Path(*where.split("."))
    candidates = [place] if where.endswith(".py") else [place.with_suffix(".py"), place / "__init__.py"]
    if not any(path.resolve().is_relative_to(here) and path.is_file() for path in candidates):
        raise ArchitectureError(
            f"{directory} was made from {plan.arch}, which is not below {here}: code from elsewhere is not executed unasked.\n"
            f"Go to that directory, or name the code: --arch {where or 'path/to/file.py'}:{name}."
        )
