"""Read the archive that `torch.export.save` writes (`.pt2`).

Such an archive contains a program and its weights. Opening the program can run code: torch unpickles the example inputs, looks
up operators by name anywhere in torch, and generates Python source from names in the file. The weights are stored separately,
as plain bytes with a JSON list, under the names of the exported module. So the weights are always read, and the program only if
the file is trusted.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from compressor.checkpoint.file_formats import in_one_line
from compressor.errors import CheckpointError

# The type numbers of the archive's format.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The parameters and buffers in an archive, under the names of the exported module. Nothing is executed.

    Raises CheckpointError when there are none, or they are not plain bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_weights(archive)
    except CheckpointError:
        raise
    except Exception as error:  # untrusted file: on any error, it is not a valid archive
        raise CheckpointError(
            f"{path} looks like a torch.export archive, but its weights cannot be read ({in_one_line(error)}). "
            "Export it again, or give model.state_dict() saved with torch.save."
        ) from error


def open_program(path: Path) -> nn.Module:
    """The exported program as a module. This can run code from the file: for trusted files only.

    Raises CheckpointError when torch cannot load it.
    """
    try:
        return move_to_device_pass(torch.export.load(path), "cpu").module()
    except Exception as error:  # the program's code may raise anything
        raise CheckpointError(
            f"{path} could not be opened by torch {torch.__version__}: {in_one_line(error)}. Export it again with this version."
        ) from error


def _read_weights(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    lists = [name for name in archive.namelist() if name.endswith("_weights_config.json")]
    if not lists:
        raise CheckpointError(
            f"{archive.filename} is a torch.export archive without plain weights (compiled, or written by an old torch). "
            "Export it again, or give the checkpoint it was exported from."
        )
    folder = lists[0].rpartition("/")[0]
    entries = json.loads(archive.read(lists[0]))["config"]
    records = {entry["path_name"] for entry in entries.values() if not entry["use_pickle"]}
    data = {record: bytearray(archive.read(f"{folder}/{record}")) for record in records}
    return {name: _tensor(data[entry["path_name"]], entry["tensor_meta"]) for name, entry in entries.items()}


def _tensor(data: bytearray, meta: dict[str, Any]) -> torch.Tensor:
    size, stride = ([number["as_int"] for number in meta[part]] for part in ("sizes", "strides"))
    dtype = DTYPES[meta["dtype"]]
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.as_strided(size, stride, meta["storage_offset"]["as_int"])
