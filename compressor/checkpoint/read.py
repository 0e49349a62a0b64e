"""Read a file of weights without executing code.

`torch.save` writes a pickle, and a pickle is a program: loading an untrusted one can execute anything. PyTorch's weights-only
unpickler allows only a few harmless calls, and refuses the whole file at the first other name, even if that only belongs to
the settings of a training run stored with the weights. So every such name is replaced by an inert class: the weights are read,
and the objects of these classes are not opened.

Memory is bounded, too: a file may declare a storage of any size, so no more is allocated than the file contains.
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
CONTENT = 3  # index of the content among the pickles of a legacy file


class Closed:
    """An inert replacement of an object that is not opened: it keeps the arguments and does nothing."""

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
    """The same for classes whose name ends in "dict": the unpickler adds entries to them, so it is given a dictionary."""

    def __new__(cls, *parts: object) -> OrderedDict[object, object]:  # type: ignore[misc]  # the unpickler fills only these
        return OrderedDict()


@dataclass(frozen=True)
class Content:
    """The content of a file: `value` as it was saved, and the names that were not opened."""

    path: Path
    kind: str
    value: Any
    closed: tuple[str, ...] = ()


def read(path: str | Path, *, trust_pickle: bool = False) -> Content:
    """The content of a checkpoint, with its tensors on the CPU.

    A file of `torch.save` is read with `weights_only=True`; with `trust_pickle` it may run code, and pickled modules are
    loaded. Only the weights of a `torch.export` archive are read. Tensors may share memory with the file: copy those you keep.

    Raises CheckpointError for a file that is not a checkpoint, is damaged, declares more than it contains, or must be trusted.
    """
    path, kind = Path(path), kind_of(path)
    if kind == "safetensors":
        return Content(path, kind, _read_safetensors(path))
    if kind == "pt2":
        check_archive(path)
        return Content(path, kind, _checked(path, read_weights(path)))
    if kind == "torchscript":
        raise CheckpointError(
            f"{path} is a TorchScript archive: a compiled program, without the source code that compression needs. "
            "Save model.state_dict() with torch.save and give that with --arch."
        )
    if kind == "onnx":
        raise CheckpointError(
            f"{path} is an ONNX file, which contains no PyTorch module. Evaluate it with `compress eval {path}`; "
            "to compress the network, give its PyTorch checkpoint (`compress export` writes ONNX from the result)."
        )
    if kind == "run":
        raise CheckpointError(f"{path} is a run directory, not a single file: use load_model to rebuild its network.")
    return _read_pickle(path, kind, trust_pickle)


def _read_safetensors(path: Path) -> Tensors:
    try:
        return dict(load_file(path))
    except Exception as error:  # untrusted file: on any error, it is not valid
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
            "It is damaged or forged: download it again, or save only model.state_dict()."
        ) from error
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    try:
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in closed]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # With mmap, the storages of a zip archive are parts of the file: nothing is allocated, whatever size it declares.
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip-checkpoint")
    except pickle.UnpicklingError as error:
        if closed:
            raise refusal(path, closed, "a pickle") from error
        raise _unreadable(path, error) from error
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    return Content(path, kind, _checked(path, value), closed)


def refusal(path: Path, closed: tuple[str, ...], what: str) -> CheckpointError:
    """The error for a file whose weights cannot be read without running code; it names the code."""
    # Names outside torch say most about the origin of the module.
    names = sorted(closed, key=lambda name: (name.startswith(("torch.", "builtins.", "collections.", "numpy.")), name))
    named = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return CheckpointError(
        f"{path} contains {what}, and loading it may run code: it refers to {named}. "
        "Save only model.state_dict() and give --arch; or, if you trust the file, add --trust-pickle."
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    said = in_one_line(error)
    if isinstance(error, pickle.UnpicklingError):
        # The message of torch is long, and its advice is about Python arguments.
        said = next((line for line in str(error).splitlines() if "Unsupported operand" in line), "not a pickle of torch.save")
    return CheckpointError(
        f"{path} cannot be read: it is truncated, damaged, or has an unsupported pickle protocol ({said.strip()}). "
        "Save it again with torch.save, or download it again."
    )


def _stand_in(name: str) -> type:
    last = name.rpartition(".")[2]
    return type(last, (ClosedDict,), {}) if last.lower().endswith("dict") else type(last, (Closed,), {"name": name})


def _blocked_names(path: Path, kind: str) -> tuple[str, ...]:
    """The names in the pickle that torch's weights-only unpickler does not allow, found without unpickling.

    Raises Excessive when the pickle could fill the memory or never end.
    """
    if kind == "zip-checkpoint":
        with zipfile.ZipFile(path) as archive:
            # Torch ignores the case of names.
            (name,) = (name for name in archive.namelist() if name.lower().endswith("data.pkl"))
            pickles = [archive.read(name)]
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    else:
        pickles, shown = _old_pickles(path), io.BytesIO()
        with zipfile.ZipFile(shown, "w") as archive:  # torch supports zip files only
            archive.writestr("old/data.pkl", pickles[CONTENT])
            archive.writestr("old/version", "3")
        shown.seek(0)
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(shown)
    closed = tuple(sorted(unsafe))
    for pickled in pickles:
        check_calls(pickled, closed, path.stat().st_size)
    return closed


def _old_pickles(path: Path) -> list[bytes]:
    """The pickles of a legacy file: magic number, protocol, system information, content, and the names of the storages."""
    pickles = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(5):
            start = mapped.tell()
            for _ in pickletools.genops(mapped):  # type: ignore[arg-type]  # it accepts maps like files
                pass
            pickles.append(mapped[start : mapped.tell()])
    return pickles


def _checked(path: Path, value: Any) -> Any:
    """`value`, without attributes that a pickle may have set on its parts. Raises CheckpointError for too large a tensor.

    A tensor with more elements than the file has bytes is a view that repeats a few values; a network built for it could
    fill the memory.
    """
    size = path.stat().st_size
    for part in _parts_of(value):
        if isinstance(part, torch.Tensor | dict):
            getattr(part, "__dict__", {}).clear()  # an attribute there would shadow a method
        if isinstance(part, torch.Tensor) and part.numel() > size:
            raise CheckpointError(
                f"{path} declares a tensor of shape {'x'.join(map(str, part.shape))} in a file of {size:,} bytes: refused, "
                "since a network of that size could fill the memory. Clone each tensor and save it again with torch.save."
            )
    return value


def _parts_of(value: object) -> Iterator[object]:
    """All objects inside dictionaries, lists and closed objects, also with circular references, and these themselves."""
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
    """Unpickle without restrictions. The working directory is importable, as for the script that saved the file."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} needs code that was not found ({in_one_line(error)}). "
            "Run in the directory of the project that saved it, or install that project."
        ) from error
    except Exception as error:  # the pickle's code may raise anything
        raise CheckpointError(
            f"{path} could not be loaded with --trust-pickle: {in_one_line(error)}. Save the state dict instead."
        ) from error
