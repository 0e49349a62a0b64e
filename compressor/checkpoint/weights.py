"""Find the weights in a checkpoint, and rename them as the network expects.

Training programs save the weights along with other objects (`{"model": ..., "optimizer": ...}`), sometimes twice (the plain
weights and their exponential moving average, EMA), and under names with a prefix of the wrapper they were trained in (`module.`
of DataParallel, `_orig_mod.` of torch.compile, `model.` of Lightning).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compressor.checkpoint.read import Closed, Content, Tensors, refusal
from compressor.errors import CheckpointError, did_you_mean, printable

# In the order of the search.
PLAIN_KEYS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "net_state_dict",
    "weights",
    "params",
    "module",
)
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
DEPTH = 4  # of nested dictionaries; a pickle may also contain itself

Weights = Tensors | nn.Module


@dataclass(frozen=True)
class Found:
    """The weights (or the module itself, from a trusted pickle) and the dotted key they were found under; "" for the root."""

    value: Weights
    key: str
    notes: list[str]


def find_weights(content: Content, *, key: str | None = None, ema: bool = False) -> Found:
    """The weights in a checkpoint: under `key` if given, else where training programs usually store them.

    The moving average is used with `ema`, or when there are no other weights.
    Raises CheckpointError when there are none, several, or only weights that would have to be unpickled.
    """
    value, trail = (content.value, []) if key is None else (_descend(content, key), [key])
    found = _unwrap(value, EMA_KEYS, trail) if ema else _unwrap(value, PLAIN_KEYS, trail)
    if ema and (found is None or found[1] == trail):
        raise CheckpointError(
            f"{content.path}: no EMA weights were found: it has {_keys(value)}. Omit --ema, or name the weights with --key."
        )
    if found is None and _is_weights(value):
        found = value, trail
    if found is None:
        found = _unwrap(value, EMA_KEYS, trail)
    if found is None:
        _refuse_closed(content, value)
        found = _only_one(content, value, trail)
    weights, trail = found
    notes = [f"weights taken from {'.'.join(trail)!r}"] if trail else []
    averages = [name for name in EMA_KEYS if isinstance(value, Mapping) and value.get(name) is not None]
    if averages and not set(averages) & set(trail):
        notes.append(f"the file also contains EMA weights under {averages[0]!r}: use them with --ema")
    if content.closed:
        notes.append(
            f"not unpickled, besides the weights: {', '.join(content.closed[:6])}{' ...' if len(content.closed) > 6 else ''}"
        )
    if isinstance(weights, nn.Module):
        return Found(_unwrapped(weights), ".".join(trail), notes)
    return Found({name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}, ".".join(trail), notes)


def rename(tensors: Tensors, wanted: Iterable[str]) -> tuple[Tensors, list[str]]:
    """The tensors under the names of the network, and notes on what was changed.

    A prefix is removed only if more names match then. Names without it are ignored if the others suffice.
    """
    wanted = set(wanted)
    best = max(spellings(tensors), key=lambda spelling: (len(wanted & spelling.tensors.keys()), -len(spelling.cuts)))
    if not best.cuts:
        return tensors, []
    cut = "".join(f"{part}." for part in best.cuts)
    notes = [f"removed {cut!r} from {best.changed} of {len(tensors)} names"]
    outside = [name for name in tensors if name not in best.origins]
    if not outside:
        return best.tensors, notes
    if wanted <= best.tensors.keys() | {name for name in wanted if name.endswith("num_batches_tracked")}:
        return best.tensors, [
            *notes,
            f"ignored {len(outside)} tensors without it ({', '.join(outside[:3])}{' ...' * (len(outside) > 3)})",
        ]
    return best.tensors | {name: tensors[name] for name in outside if name not in best.tensors}, notes


@dataclass(frozen=True)
class Spelling:
    """The tensors under names without the components in `cuts`; `origins` are the old names, `changed` counts changed ones."""

    tensors: Tensors
    cuts: tuple[str, ...]
    origins: frozenset[str]
    changed: int


def spellings(tensors: Tensors) -> list[Spelling]:
    """All ways to remove wrapper prefixes, up to three in a row; the unchanged names come first."""
    plain = {name: name for name in tensors}
    reached: dict[frozenset[str], tuple[dict[str, str], tuple[str, ...]]] = {frozenset(plain): (plain, ())}
    newest = list(reached.values())
    for _ in range(3):
        older, newest = newest, []
        for names, cuts in older:
            for part, cut in {**_common_prefix(names), **CUTS}.items():
                shorter = {short: origin for name, origin in names.items() if (short := cut(name, part)) is not None}
                if shorter and shorter != names and frozenset(shorter) not in reached:
                    reached[frozenset(shorter)] = shorter, (*cuts, part)
                    newest.append((shorter, (*cuts, part)))
    return [
        Spelling(
            {name: tensors[origin] for name, origin in names.items()},
            cuts,
            frozenset(names.values()),
            sum(name != origin for name, origin in names.items()),
        )
        for names, cuts in reached.values()
    ]


def _common_prefix(names: Iterable[str]) -> dict[str, Callable[[str, str], str | None]]:
    """The first component, if all names have the same: a wrapper that no list has."""
    first = {name.partition(".")[0] for name in names if "." in name} | {"" for name in names if "." not in name}
    return {part: _cut_front for part in first if part} if len(first) == 1 else {}


def _cut_anywhere(name: str, part: str) -> str | None:
    return ".".join(piece for piece in name.split(".") if piece != part)


def _cut_front(name: str, part: str) -> str | None:
    """None for a name without the prefix: it belongs to something else (a loss, a teacher)."""
    return name.removeprefix(f"{part}.") if name.startswith(f"{part}.") else None


# DataParallel and torch.compile may wrap a part of a network; the others wrap all of it.
CUTS: dict[str, Callable[[str, str], str | None]] = {
    "module": _cut_anywhere,
    "_orig_mod": _cut_anywhere,
    "_forward_module": _cut_front,
    "model": _cut_front,
    "net": _cut_front,
    "network": _cut_front,
    "backbone": _cut_front,
}


def _is_weights(value: object) -> bool:
    """Whether it is a dictionary with printable names, mostly of tensors, of which at least one is not a scalar."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name.isprintable() for name in value):
        return False
    tensors = [item for item in value.values() if isinstance(item, torch.Tensor)]
    return 2 * len(tensors) >= len(value) and any(tensor.dim() for tensor in tensors)


def _unwrap(value: object, keys: tuple[str, ...], trail: list[str]) -> tuple[Any, list[str]] | None:
    """The weights or module under the first of `keys` that leads to one, and the path of keys."""
    if isinstance(value, nn.Module):
        return value, trail
    if not isinstance(value, Mapping) or len(trail) > DEPTH:
        return None
    for name in keys:
        inner = value.get(name)
        found = _unwrap(inner, PLAIN_KEYS, [*trail, name])
        if found is not None:
            return found
        if _is_weights(inner):
            return inner, [*trail, name]
    return None


def _only_one(content: Content, value: object, trail: list[str]) -> tuple[Any, list[str]]:
    """The only weights under a non-standard key."""
    items = value.items() if isinstance(value, Mapping) else ()
    named = {name: item for name, item in items if isinstance(name, str) and (_is_weights(item) or isinstance(item, nn.Module))}
    if len(named) == 1:
        name, item = next(iter(named.items()))
        return item, [*trail, name]
    if named:
        raise CheckpointError(
            f"{content.path} has several sets of weights: {', '.join(list(named)[:8])}. Choose one: --key {next(iter(named))}."
        )
    raise CheckpointError(f"{content.path} has no weights: it has {_keys(value)}. Give a file of model.state_dict().")


def _descend(content: Content, key: str) -> Any:
    """The value under a dotted key; names that contain dots themselves are tried first."""
    value, rest = content.value, key
    while rest:
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{content.path}: --key {key} leads to {type(value).__name__}, which has no {rest!r}.")
        parts = rest.split(".")
        heads = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        head = next((head for head in heads if head in value), None)
        if head is None:
            known = [name for name in value if isinstance(name, str)]
            raise CheckpointError(
                f"{content.path}: no {rest!r} for --key {key}: it has {_keys(value)}{did_you_mean(rest, known) or '.'}"
            )
        value, rest = value[head], rest[len(head) + 1 :]
    if not isinstance(value, Mapping | nn.Module | Closed):
        raise CheckpointError(
            f"{content.path}: --key {key} leads to {_what(value)}, not to weights: the file has {_keys(content.value)}."
        )
    return value


def _refuse_closed(content: Content, value: object) -> None:
    """Raise CheckpointError if there is a pickled object where the weights should be."""
    if isinstance(value, Closed):
        raise refusal(content.path, content.closed, f"a pickled {value.name}")
    if isinstance(value, Mapping):
        for name in (*PLAIN_KEYS, *EMA_KEYS):
            if isinstance(inner := value.get(name), Closed):
                raise refusal(content.path, content.closed, f"a pickled {inner.name} under {name!r}")


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def _keys(value: object) -> str:
    if not isinstance(value, Mapping):
        return _what(value)
    names = [printable(str(name)) for name in value]
    return f"the keys {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else "an empty dictionary"


def _what(value: object) -> str:
    return f"a {value.name} that was not unpickled" if isinstance(value, Closed) else f"a {type(value).__name__}"
