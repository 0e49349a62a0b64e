"""Load weights into a network strictly, or report readably what does not fit.

Only a different number of classes is handled automatically: the network is then built with the number in the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from compressor.checkpoint.arch import accepts, build, outline
from compressor.checkpoint.exported_program import DTYPES
from compressor.checkpoint.read import Tensors
from compressor.checkpoint.weights import rename
from compressor.errors import ArchitectureError, CheckpointError

NO_WEIGHTS = {"total_ops", "total_params", "mean", "std", "pixel_mean", "pixel_std"}  # last components of names
ORDINARY = frozenset(DTYPES.values())
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Difference:
    """Missing names, unexpected names, and tensors of another shape (name, shape in the file, shape in the network)."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({_first(self.missing, 3)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected ({_first(self.unexpected, 3)})")
        if self.reshaped:
            told = [
                f"{name} is {_written(held)} where the network has {_written(wanted)}" for name, held, wanted in self.reshaped
            ]
            parts.append(f"{len(self.reshaped)} of another shape ({_first(told, 2)})")
        return ", ".join(parts)

    @property
    def smaller(self) -> bool:
        """Whether tensors of another shape are narrower throughout, as after pruning."""
        return bool(self.reshaped) and all(
            len(held) == len(wanted) and all(a <= b for a, b in zip(held, wanted, strict=True))
            for _, held, wanted in self.reshaped
        )


def fit(arch: str, args: dict[str, object], tensors: Tensors) -> tuple[nn.Module, dict[str, object], list[str]]:
    """Build `arch` and load the tensors into it.

    Returns the network in eval mode, the arguments it was built with (the class count may be adapted), and notes on what was
    done. Raises CheckpointError when the tensors do not fit, and ArchitectureError when the network cannot be built.
    """
    model = build(arch, args)
    tensors, notes = rename(tensors, model.state_dict())
    difference = compare(shapes_of(tensors), shapes_of(model.state_dict()))
    if difference and "num_classes" not in args and (count := _other_count(arch, args, tensors, difference)):
        notes.append(f"the file has {count} classes, so the network was built with num_classes={count}")
        args = {**args, "num_classes": count}
        model = build(arch, args)
        difference = compare(shapes_of(tensors), shapes_of(model.state_dict()))
    if difference and (extra := _extra(difference, model)):
        notes.append(f"ignored {len(extra)} tensors that are not of the network ({_first(sorted(extra), 3)})")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in extra}
        difference = compare(shapes_of(tensors), shapes_of(model.state_dict()))
    if difference:
        _upgrade(model, arch, tensors, difference)
    else:
        notes += _load(model, tensors)
    check_finite(model)
    return model.eval(), args, notes


def compare(held: Shapes, wanted: Shapes) -> Difference:
    """How a file's tensors differ from a network's; batch counters (`num_batches_tracked`) may be absent on either side."""
    return Difference(
        missing=[name for name in wanted if name not in held and not _is_counter(name)],
        unexpected=[name for name in held if name not in wanted and not _is_counter(name)],
        reshaped=[(name, held[name], shape) for name, shape in wanted.items() if name in held and held[name] != shape],
    )


def _extra(difference: Difference, model: nn.Module) -> set[str]:
    """The unexpected names, if everything else fits and none of them can be a layer of a larger network of this kind.

    Counters of profilers (`total_ops`) and normalization constants (`mean`) may be anywhere. Other names must be in a module
    that the network does not have (`criterion.weight`); `layer5` of a network with `layer1` to `layer4` is a missing layer.
    """
    if difference.missing or difference.reshaped:
        return set()
    known = {_stem(name) for name in model.state_dict()}
    foreign = {name for name in difference.unexpected if name.rpartition(".")[2] in NO_WEIGHTS or _stem(name) not in known}
    return foreign if len(foreign) == len(difference.unexpected) else set()


def _stem(name: str) -> str:
    """The first component, without the number at its end."""
    return name.partition(".")[0].rstrip("0123456789").rstrip("_")


def class_counts(difference: Difference) -> list[int]:
    """The class counts that could explain a difference: names are equal, and shapes differ in some first dimensions only."""
    if difference.missing or difference.unexpected or not difference.reshaped:
        return []
    if any(not held or not wanted or held[1:] != wanted[1:] for _, held, wanted in difference.reshaped):
        return []
    counts = sorted({held[0] for _, held, _ in difference.reshaped})
    # The weights and biases of one or two heads differ in one or two numbers; a network of another width differs everywhere.
    return counts if len(counts) <= 2 and counts[0] > 0 else []


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


def check_finite(model: nn.Module) -> None:
    """Raise CheckpointError naming the first tensor with NaN, or a weight or statistic that is infinite."""
    weights = {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        # A mask may contain infinities on purpose.
        needs_finite = name in weights or name.endswith(("running_mean", "running_var"))
        if bool(tensor.isnan().any()) or (needs_finite and bool(tensor.isinf().any())):
            what = "NaN" if bool(tensor.isnan().any()) else "infinite values"
            raise CheckpointError(f"{name} contains {what}: the training diverged. Give an earlier checkpoint.")


def _other_count(arch: str, args: dict[str, object], tensors: Tensors, difference: Difference) -> int | None:
    """The class count with which the network fits, if there is one."""
    if not class_counts(difference) or not accepts(arch, "num_classes"):
        return None
    for count in class_counts(difference):
        try:
            wanted = shapes_of(outline(arch, {**args, "num_classes": count}).state_dict())
        except ArchitectureError:
            continue
        if not compare(shapes_of(tensors), wanted):
            return count
    return None


def _load(model: nn.Module, tensors: Tensors) -> list[str]:
    """Copy every tensor into the network; the notes report casts and batch counters."""
    if odd := next((name for name, tensor in tensors.items() if not _is_ordinary(tensor)), None):
        raise CheckpointError(
            f"{odd} is quantized, sparse or without data ({str(tensors[odd].dtype)[6:]}), but compression needs dense, "
            "unquantized weights: give the original checkpoint."
        )
    places = {name: place for name, place in model.state_dict().items() if isinstance(place, torch.Tensor)}
    notes = []
    casts = {(tensors[name].dtype, place.dtype) for name, place in places.items() if name in tensors}
    for held, wanted in sorted((str(held)[6:], str(wanted)[6:]) for held, wanted in casts if held != wanted):
        notes.append(f"{held} weights were cast to {wanted}")
    if absent := places.keys() - tensors.keys():
        notes.append(f"{len(absent)} batch counters (num_batches_tracked) are not in the file and start at 0")
    if homeless := tensors.keys() - places.keys():
        notes.append(
            f"{len(homeless)} batch counters (num_batches_tracked) in the file are not in the network and were ignored"
        )
    for name in places.keys() & tensors.keys():
        places[name].copy_(tensors[name])
    return notes


def _is_ordinary(tensor: torch.Tensor) -> bool:
    return tensor.dtype in ORDINARY and tensor.layout is torch.strided and not tensor.is_meta


def _upgrade(model: nn.Module, arch: str, tensors: Tensors, difference: Difference) -> None:
    """Let the network's own loading code translate names of older versions; raise CheckpointError if that fails."""
    try:
        model.load_state_dict(tensors, strict=True)
    except Exception as error:  # a network's loading code may raise anything
        raise CheckpointError(f"The weights do not fit {arch}: {difference}. {_advice(difference)}") from error


def _advice(difference: Difference) -> str:
    if any(name.endswith(("_orig", "_mask")) for name in difference.unexpected):
        return "Names ending in _orig and _mask are from torch.nn.utils.prune: call prune.remove on the modules before saving."
    if not difference.missing and not difference.unexpected:
        if counts := class_counts(difference):
            return f"If the number of classes differs, give --arch-arg num_classes={counts[0]}."
        if difference.smaller:
            return "If it was saved after pruning, give the run directory instead."
        return "Set the sizes with --arch-arg, for example --arch-arg num_classes=10."
    return "If it is another architecture, give it with --arch, and its arguments with --arch-arg."


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _first(items: list[str], shown: int) -> str:
    return ", ".join(items[:shown]) + (" ..." if len(items) > shown else "")


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "a scalar"
