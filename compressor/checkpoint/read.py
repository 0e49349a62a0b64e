"""Read a file of weights without letting it run code.

`torch.save` writes a pickle, and a pickle is a small program: opening one from a stranger can do anything. PyTorch's
weights-only reader runs only a handful of harmless calls, and refuses the whole file at the first other name, even if that is
just the settings of a training run beside the weights. So every such name is given a stand-in that does nothing: the weights
are read, and what the stand-ins took the place of stays closed.

Memory is bounded too: a file may declare a storage of any size, so nothing is allocated beyond what the file really holds.
"""

import io
import mmap
import pickle
import pickletools
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file

from compressor.checkpoint.exported_program import read_weights
from compressor.checkpoint.file_formats import check_archive, in_one_line, kind_of
from compressor.checkpoint.pickle_calls import Excessive, check_calls
from compressor.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
CONTENT = 3  # the number of a pickle in an old file


class Closed:
    """What stands where an object was that is not opened: it keeps its parts, and does nothing."""

    name = ""

    def __new__(cls, *parts: object) -> Self:
        closed = super().__new__(cls)
        closed.__dict__["parts"] = list(parts)
        return closed

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.__dict__["parts"].append(state)


class ClosedDict:
    """The same for classes that are dictionaries by their name: the reader fills them entry by entry, so one is made."""

    def __new__(cls, *parts: object) -> OrderedDict[object, object]:  # type: ignore[misc]  # the reader fills plain ones only
        return OrderedDict()


@dataclass(frozen=True)
class Content:
    """What a file holds: `value` as it was saved, and the names in it that were not opened."""

    path: Path
    kind: str
    value: Any
    closed: tuple[str, ...] = ()


def read(path: str | Path, *, trust_pickle: bool = False) -> Content:
    """Everything a checkpoint holds, its tensors on the CPU.

    A file of `torch.save` is read with `weights_only=True`; with `trust_pickle` it may run code, and whole modules open. Of a
    `torch.export` archive the weights alone are read. Tensors may share memory with the file: copy what is kept.

    Raises CheckpointError for a file that is not a checkpoint, is damaged, declares more than it holds, or needs trust.
    """
    path, kind = Path(path), kind_of(path)
    if kind == "safetensors":
        return Content(path, kind, _read_safetensors(path))
    if kind == "pt2":
        check_archive(path)
        return Content(path, kind, _checked(path, read_weights(path)))
    if kind == "torchscript":
        raise CheckpointError(
            f"{path} is a TorchScript archive: a finished program, without the source that compressing needs. "
            "Save model.state_dict() with torch.save and give that with --arch."
        )
    if kind == "onnx":
        raise CheckpointError(
            f"{path} is an ONNX file, which holds no PyTorch module. `compress eval {path}` measures it; "
            "to compress the network give its PyTorch checkpoint (`compress export` writes ONNX from the result)."
        )
    if kind == "run":
        raise CheckpointError(f"{path} is a run directory: load_model rebuilds it; only single files are read as they are.")
    return _read_pickle(path, kind, trust_pickle)


def _read_safetensors(path: Path) -> Tensors:
    try:
        return dict(load_file(path))
    except Exception as error:  # the bytes may be anyone's: whatever goes wrong, they are no tensors
        raise CheckpointError(
            f"{path} begins like a safetensors file, but is truncated or damaged ({in_one_line(error)}). Download it again."
        ) from error


def _read_pickle(path: Path, kind: str, trust_pickle: bool) -> Content:
    if kind == "zip-checkpoint":
        check_archive(path)
    if trust_pickle:
        return Content(path, kind, _open_trusted(path))
    try:
        closed = _blocked_names(path, kind)
    except Excessive as error:
        raise CheckpointError(
            f"{path} is refused, since reading it could fill the memory or never end: {error}. "
            "It is damaged or forged: download it again, or save model.state_dict() alone."
        ) from error
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    try:
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in closed]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped, a zip's storages are pieces of the file: whatever size is declared, nothing is allocated.
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip-checkpoint")
    except pickle.UnpicklingError as error:
        if closed:
            raise refusal(path, closed, "a pickle") from error
        raise _unreadable(path, error) from error
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    return Content(path, kind, _checked(path, value), closed)


def refusal(path: Path, closed: tuple[str, ...], what: str) -> CheckpointError:
    """The answer to a file whose weights lie behind code: it names the code."""
    # What is not torch's own says most about whose module it is.
    names = sorted(closed, key=lambda name: (name.startswith(("torch.", "builtins.", "collections.", "numpy.")), name))
    named = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return CheckpointError(
        f"{path} holds {what}, and opening it may run code: it names {named}. "
        "Save model.state_dict() alone and give --arch; or, if you trust whoever made the file, add --trust-pickle."
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    said = in_one_line(error)
    if isinstance(error, pickle.UnpicklingError):
        # Torch's own text is long, and its advice is about its Python arguments.
        said = next((line for line in str(error).splitlines() if "Unsupported operand" in line), "not a pickle of torch.save")
    return CheckpointError(
        f"{path} cannot be read: it is truncated, damaged, or of an unusual pickle protocol ({said.strip()}). "
        "Save it again with torch.save, or download it again."
    )


def _stand_in(name: str) -> type:
    last = name.rpartition(".")[2]
    return type(last, (ClosedDict,), {}) if last.lower().endswith("dict") else type(last, (Closed,), {"name": name})


def _blocked_names(path: Path, kind: str) -> tuple[str, ...]:
    """The names in the pickle that torch does not know to be harmless; found without opening it.

    Raises Excessive when it calls what could fill the memory.
    """
    if kind == "zip-checkpoint":
        with zipfile.ZipFile(path) as archive:
            # Torch does not look at the case of names.
            (name,) = (name for name in archive.namelist() if name.lower().endswith("data.pkl"))
            pickles = [archive.read(name)]
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    else:
        pickles, shown = _old_pickles(path), io.BytesIO()
        with zipfile.ZipFile(shown, "w") as archive:  # torch answers for zip files alone
            archive.writestr("old/data.pkl", pickles[CONTENT])
            archive.writestr("old/version", "3")
        shown.seek(0)
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(shown)
    closed = tuple(sorted(unsafe))
    for pickled in pickles:
        check_calls(pickled, closed, path.stat().st_size)
    return closed


def _old_pickles(path: Path) -> list[bytes]:
    """Magic number, protocol, what machine wrote the file, its content, and the names of the storages that follow."""
    pickles = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(5):
            start = mapped.tell()
            for _ in pickletools.genops(mapped):  # type: ignore[arg-type]  # it reads files and maps alike
                pass
            pickles.append(mapped[start : mapped.tell()])
    return pickles


def _checked(path: Path, value: Any) -> Any:
    """`value` itself, without what a pickle may have hung on its parts. Raises CheckpointError for a tensor above the file.

    Such a tensor is a view that shows a few numbers many times. A network that is built for it would take the memory.
    """
    size = path.stat().st_size
    for part in _parts_of(value):
        if isinstance(part, torch.Tensor | dict):
            getattr(part, "__dict__", {}).clear()  # a name there would hide a method
        if isinstance(part, torch.Tensor) and part.numel() > size:
            raise CheckpointError(
                f"{path} declares a tensor of {'x'.join(map(str, part.shape))} numbers in a file of {size:,} bytes: refused, "
                "since a network of that size could fill the memory. Save it again with torch.save, each tensor cloned."
            )
    return value


def _parts_of(value: object) -> Iterator[object]:
    """Everything inside dictionaries, lists and closed objects, however they refer to each other, and these themselves."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting.extend(dict.values(value))
        elif isinstance(value, list | tuple | set):
            waiting.extend(value)
        elif isinstance(value, Closed):
            waiting.extend(value.__dict__["parts"])


def _open_trusted(path: Path) -> Any:
    """Unpickle without restraint. The working directory is importable, as it was for the script that saved the file."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} needs code that was not found ({in_one_line(error)}). "
            "Run from the directory of the project that saved it, or install that project."
        ) from error
    except Exception as error:  # the pickle runs its own code: anything may come
        raise CheckpointError(
            f"{path} could not be opened, though trusted: {in_one_line(error)}. Save the state dict instead."
        ) from error
