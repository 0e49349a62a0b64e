"""A user's DataLoaders and streams, which are used as they are: their order, their batches, their transforms.

Nothing is known of a sample's position, so that an index is the number of a sample in its epoch. Random numbers are seeded for
each epoch, and are separate from those of the training; what depends on others, or on generators of the user, is not repeated
exactly when a run resumes.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from compressor.data.batches import Batch, Fit, Kind, Split, check_batch_size, check_unsupported
from compressor.data.own import AsGiven, parsed
from compressor.data.paired import told
from compressor.data.pixels import Scale, Scaled
from compressor.data.preparation import TEST_SEED
from compressor.data.readers import seed_from
from compressor.data.samples import Sample, Size
from compressor.errors import DataError, first_line


def is_stream(given: Any) -> bool:
    """Whether it must be used as it is: an IterableDataset, or a DataLoader with a collate function or a sampler of its own."""
    if not isinstance(given, DataLoader):
        return isinstance(given, IterableDataset)
    usual = type(given.sampler) in (SequentialSampler, RandomSampler) and type(given.batch_sampler).__module__.startswith(
        "torch."
    )
    return isinstance(given.dataset, IterableDataset) or given.collate_fn is not default_collate or not usual


SPLITS: tuple[Split, ...] = ("train", "held_out", "test")


class UnknownLength(DataError, TypeError):
    """A stream does not tell its length. As a TypeError, it lets `list` iterate over one."""


@dataclass(frozen=True)
class Streams:
    """What a user's function returned: data sets or loaders by the names of their splits, and the classes if they are given."""

    parts: dict[Split, Any]
    classes: list[str] | None
    title: str


class Apart:
    """The random numbers of torch, NumPy and Python in a `with` block, which continue in the next one with the same object."""

    def __init__(self, seed: int) -> None:
        outside = self._get()
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self._inside = self._get()
        self._set(outside)

    def __enter__(self) -> None:
        self._outside = self._get()
        self._set(self._inside)

    def __exit__(self, *error: object) -> None:
        self._inside = self._get()
        self._set(self._outside)

    @staticmethod
    def _get() -> tuple[Tensor, Any, Any]:
        return torch.default_generator.get_state(), np.random.get_state(), random.getstate()

    @staticmethod
    def _set(states: tuple[Tensor, Any, Any]) -> None:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@dataclass(frozen=True)
class LoadedBatches:
    """The batches of one epoch: see `Batches`. `chosen` are the positions of each batch, if not all."""

    loader: DataLoader[Any]
    preparation: AsGiven
    device: torch.device
    seed: int
    limit: int | None = None
    chosen: Sequence[Tensor] | None = None

    @property
    def plan(self) -> Sequence[Tensor]:
        return self.chosen if self.chosen is not None else self._all

    @property
    def _all(self) -> Sequence[Tensor]:
        """Running numbers. Raises DataError if the length is unknown, unless there is a limit."""
        with Apart(self.seed):
            sizes = _sizes(self.loader, self.preparation.title, self.limit)
        parts = torch.split(torch.arange(sum(sizes)), sizes)
        limited = parts if self.limit is None else [part[part < self.limit] for part in parts]
        return [part for part in limited if len(part)]

    def with_plan(self, plan: Sequence[Tensor]) -> "LoadedBatches":
        return replace(self, chosen=plan)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        starts = [] if self.chosen is None else [int(positions[0]) for positions in self._all]
        for number, raw in enumerate(self._raw()):
            sample = batch_of(raw, self.preparation.kind, self.preparation.title)
            n = _length(sample.input)
            positions = torch.arange(first, first + n)[: None if self.limit is None else self.limit - first]
            if self.chosen is not None:
                if number == len(self.chosen):
                    return
                positions = self.chosen[number] - starts[number] + first
            yield self._batch(sample, positions, first)
            first += n
            if self.limit is not None and first >= self.limit:
                return

    def _raw(self) -> Iterator[Any]:
        """What the loader gives, with random numbers of its own."""
        apart = Apart(self.seed)
        with apart:
            batches = iter(self.loader)
        while True:
            with apart:
                try:
                    raw = next(batches)
                except StopIteration:
                    return
                except DataError:
                    raise
                except Exception as error:
                    raise DataError(
                        f"{self.preparation.title} cannot be read: fix its data set or its collate function.\n"
                        f"{first_line(error)}"
                    ) from error
            if isinstance(raw, DataError):
                raise raw
            yield raw

    def _batch(self, sample: Sample, positions: Tensor, first: int) -> Batch:
        rows = positions - first
        if len(rows) != _length(sample.input):
            sample = Sample(*tree_map(lambda value: value[rows] if isinstance(value, Tensor) else value, tuple(sample)))
        inputs, targets = tree_map(
            lambda value: value.to(self.device) if isinstance(value, Tensor) else value, (sample.input, sample.target)
        )
        return Batch(*self.preparation.finish(inputs, targets), positions.to(self.device))


def _sizes(loader: DataLoader[Any], title: str, limit: int | None) -> list[int]:
    """The number of samples in each batch, up to a limit if it is unknown. Raises DataError if there is none."""
    batches = loader.batch_sampler
    if not isinstance(loader.dataset, IterableDataset) and batches is not None and type(batches) is not BatchSampler:
        return [len(positions) for positions in batches]
    try:
        n = len(loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.sampler)  # type: ignore[arg-type]
    except TypeError:
        n = -1 if limit is None else limit
    if n < 0 or loader.batch_size is None:
        raise UnknownLength(
            f"{title} are a stream of unknown length, so that the steps of an epoch are unknown: give its data set a "
            "__len__, and the DataLoader a batch_size."
        )
    whole, rest = divmod(n, loader.batch_size)
    return [loader.batch_size] * whole + ([rest] if rest and not loader.drop_last else [])


def _length(inputs: Any) -> int:
    return next((len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim), 0)


def batch_of(raw: Any, kind: Kind | None, title: str) -> Sample:
    """A batch of a loader as inputs and targets of tensors, whose first sample is of this kind. Raises DataError."""
    inputs, targets = raw if isinstance(raw, tuple | list) and len(raw) == 2 else (raw, None)
    if isinstance(raw, tuple | list) and len(raw) == 1:
        (inputs,) = raw
    inputs = tree_map(_tensor, inputs)
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    found = _tensor(targets)
    if kind is not None and not _fits(found, kind):
        word = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise DataError(f"{title} has a batch with targets of {word}, but the first ones are {told(kind)}: return one kind.")
    if kind == "masks" and found.ndim == 4:
        found = found[:, 0]
    return Sample(inputs, found.long() if kind == "classes" else found)


def _fits(targets: Any, kind: Kind) -> bool:
    if kind == "nothing" or not isinstance(targets, Tensor):
        return targets is None and kind == "nothing"
    whole = not targets.is_floating_point()
    return {"classes": whole and targets.ndim == 1, "masks": whole and targets.ndim in (3, 4), "images": targets.ndim == 4}[
        kind
    ]


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor).float() if value.is_floating_point() else value.detach().as_subclass(Tensor)
    return value


class Collate:
    """Stacks the samples of a stream that has no loader. An error is returned."""

    def __init__(self, preparation: AsGiven | None, title: str) -> None:
        self.preparation = preparation
        self.title = title

    def __call__(self, items: list[Any]) -> Sample | DataError:
        try:
            rows = [parsed(item, f"a sample of {self.title}") for item in items]
            if self.preparation is None:
                return rows[0][0]
            if wrong := {kind for _, kind in rows} - {self.preparation.kind}:
                raise DataError(f"{self.title} have {told(wrong.pop())} and {told(self.preparation.kind)}: return one kind.")
            return self.preparation.stack([row for row, _ in rows])
        except DataError as error:
            return error


@dataclass(frozen=True)
class LoadedData(Scaled):
    """See `Data`. `parts` are data sets and loaders by the names of their splits."""

    spec: str
    classes: list[str]
    shape: tuple[int, ...]
    scale: Scale
    notes: list[str]
    parts: dict[Split, Any]
    preparations: dict[Split, AsGiven]
    workers: int = 0
    indexed: bool = False
    pad_to: int = 1
    tile: Size | None = None

    @property
    def kind(self) -> Kind:
        return self.preparations["train"].kind

    @property
    def fit(self) -> Fit:
        return "own"

    @property
    def counts(self) -> dict[Split, int]:
        """Number of samples in each split; 0 if it is unknown."""
        return {split: _count(self.parts.get(split)) for split in SPLITS}

    def targets(self, split: Split) -> tuple[Tensor, Tensor]:
        """Raises DataError: the samples of a loader are unknown."""
        raise DataError(
            f"This method needs the class number of each image, and the DataLoaders of {self.spec} do not tell them: return "
            "data sets, or use another method."
        )

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str,
        epoch: int = 0,
        seed: int = 0,
        augment: bool = True,
        cutout: float = 0.0,
        limit: int | None = None,
        views: int = 1,
        by_class: int = 1,
    ) -> LoadedBatches:
        """A DataLoader has its own batch size and augmentation; `limit` are the first samples of every split."""
        check_batch_size(batch_size)
        check_unsupported(f"{self.spec} has DataLoaders of its own", views > 1, by_class > 1, cutout > 0)
        seeds = (seed, epoch) if split == "train" else (TEST_SEED,)
        given = self.parts.get(split, _Nothing())
        preparation = self.preparations.get(split, self.preparations["train"])
        if not isinstance(given, DataLoader):
            given = DataLoader(
                given, batch_size, num_workers=self.workers, collate_fn=Collate(preparation, preparation.title), shuffle=False
            )
        return LoadedBatches(given, preparation, torch.device(device), seed_from(*seeds), limit)


class _Nothing(Dataset[Any]):
    """A split without samples."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


def _count(given: Any) -> int:
    """The number of samples of a data set or loader, 0 if it is unknown."""
    try:
        if isinstance(given, DataLoader):
            return len(given.dataset if isinstance(given.dataset, IterableDataset) else given.sampler)  # type: ignore[arg-type]
        return 0 if given is None else len(given)
    except TypeError:
        return 0


def first_of(given: Any, title: str) -> tuple[Any, Kind]:
    """The input and the kind of target of the first sample of a data set or loader. Raises DataError."""
    if not isinstance(given, DataLoader):
        loader: DataLoader[Any] = DataLoader(given, 1, collate_fn=Collate(None, title))
        raw = next(LoadedBatches(loader, _unknown(title), torch.device("cpu"), 0)._raw(), None)
        if raw is None:
            raise DataError(f"{title} are empty: return a data set with samples.")
        return raw.input, parsed(tuple(raw), f"a sample of {title}")[1]
    raw = next(LoadedBatches(given, _unknown(title), torch.device("cpu"), 0)._raw(), None)
    if raw is None:
        raise DataError(f"{title} are empty: return a loader with batches.")
    sample = batch_of(raw, None, title)
    single = tree_map(lambda value: value[0] if isinstance(value, Tensor | list) else value, (sample.input, sample.target))
    found, kind = parsed(single, f"a sample of {title}")
    return found.input, kind


def _unknown(title: str) -> AsGiven:
    return AsGiven(Scale((), ()), "nothing", 0, title)
