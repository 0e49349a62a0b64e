"""Detect the format of a model file from its content, not its suffix, and refuse files that cannot be a model.

Many kinds of files have the suffix `.pth`: new and old `torch.save` files, safetensors, truncated downloads, error pages saved
as a download. Nothing is unpickled or decompressed here; a few bytes and the list of a zip archive's members are enough.
"""

import os
import zipfile
from pathlib import Path

from compressor.errors import CheckpointError, did_you_mean, printable

LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # the pickled integer at the beginning of files of torch < 1.6
FOREIGN = {
    b"\x89HDF": "an HDF5 file (often Keras weights)",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}


def in_one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, at most 200 characters."""
    first = (str(error).strip().splitlines() or [""])[0].strip()
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def kind_of(path: str | Path) -> str:
    """The kind of file at `path`: "zip-checkpoint" or "legacy-checkpoint" (both of `torch.save`), "safetensors", "pt2",
    "torchscript", "onnx", or "run" (a run directory of compress).

    Raises CheckpointError for anything else: missing, empty, truncated, a text or web page, an unknown format.
    """
    path = Path(path)
    if path.is_dir():
        return _kind_of_directory(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file{_neighbour(path)}. Give the path of a checkpoint, or torchvision:NAME.")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes). Save or download it again.")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[0] == 0x80 and LEGACY_MAGIC in head[:64]:
        return "legacy-checkpoint"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return _safetensors(path, header=int.from_bytes(head[:8], "little"))
    if text := _text(head):
        raise CheckpointError(f"{path} is not a model: {text}.")
    for magic, name in FOREIGN.items():
        if head.startswith(magic):
            raise CheckpointError(f"{path} is not a PyTorch checkpoint: it is {name}.")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive: unpack it, and give the checkpoint inside.")
    if head[0] == 0x80 and head[1] <= 5:
        raise CheckpointError(
            f"{path} is a plain Python pickle, not a file of torch.save. Load it where it was made, and torch.save its weights."
        )
    if head[0] == 0x08 or path.suffix == ".onnx":
        return _onnx(path)
    raise CheckpointError(
        f"{path} has an unknown file format (it begins with {head[:8].hex(' ')}). "
        "Give a torch.save checkpoint, .safetensors, .pt2 or a run directory."
    )


def check_archive(path: Path) -> None:
    """Raise CheckpointError for a zip archive that could take more memory than the size of the file.

    `torch.save` does not compress members, so they cannot declare more bytes than the file has. The list of members must be at
    the end of the file: if a comment follows, or data precedes, torch could use another list than the one checked here.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if archive.comment or archive.start_dir != _start_of_list(path):
            raise CheckpointError(f"{path} is an archive with data before or after it: save the checkpoint again.")
    declared, size = sum(member.file_size for member in members), path.stat().st_size
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or declared > size:
        raise CheckpointError(
            f"{path} declares {declared:,} bytes in a file of {size:,}: refused, since unpacking could fill the memory. "
            "Save the checkpoint again with torch.save, which does not compress."
        )


def _start_of_list(path: Path) -> int:
    """The offset of the list of members, as stored at the end of a zip archive."""
    with path.open("rb") as file:
        file.seek(-min(98, path.stat().st_size), os.SEEK_END)
        end = file.read().rjust(
            98, b"\0"
        )  # the zip64 end record and its locator (large archives only), and the end record of all archives
    large = end[56:60] == b"PK\x06\x07"
    return int.from_bytes(end[48:56] if large else end[92:96], "little")


def _neighbour(path: Path) -> str:
    """A hint for a missing file."""
    if path.suffix == ".py" or ".py:" in path.name:
        return "; give Python code with --arch, and the checkpoint as MODEL"
    if not path.parent.is_dir():
        return f" (the directory {path.parent} does not exist)"
    return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])


def _kind_of_directory(path: Path) -> str:
    if (path / "plan.json").is_file():
        return "run"
    inside = sorted(
        printable(entry.name)
        for entry in path.iterdir()
        if entry.suffix in {".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin"}
    )
    instead = f"Give one of its files, such as {inside[0]}" if inside else "Give a checkpoint file"
    raise CheckpointError(f"{path} is a directory without plan.json, so it is not a run of compress. {instead}.")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged: it begins like a torch.save file, but its end is missing. Download it again."
        ) from error
    last = {name.rpartition("/")[2] for name in names}
    if "archive_format" in last or "serialized_exported_program.json" in last:
        return "pt2"
    if "constants.pkl" in last:
        return "torchscript"
    if "data.pkl" in last:
        return "zip-checkpoint"
    if any(name.endswith(".npy") for name in names):
        raise CheckpointError(
            f"{path} contains NumPy arrays, not a PyTorch checkpoint: torch.save a dictionary of tensors with the same names."
        )
    raise CheckpointError(
        f"{path} is a zip archive, but not of torch.save: it contains {printable(', '.join(names[:3])) or 'nothing'}. "
        "If there is a checkpoint inside, unpack it and give that."
    )


def _safetensors(path: Path, header: int) -> str:
    if header + 8 > path.stat().st_size:
        raise CheckpointError(
            f"{path} is truncated: its safetensors header should have {header:,} bytes, the file has {path.stat().st_size:,}. "
            "Download it again."
        )
    return "safetensors"


def _text(head: bytes) -> str | None:
    """The kind of a text file; None if it is not text."""
    if b"\0" in head:
        return None
    try:
        text = head.decode().lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a multi-byte character may be truncated at the end
            return None
        text = head[: error.start].decode().lstrip()
    if any(ord(letter) < 32 and letter not in "\t\r\n\f\x1b" for letter in text):
        return None
    if text.startswith("version https://git-lfs"):
        return "it is a git-lfs pointer to the file; run `git lfs pull` to fetch the file itself"
    if text[:200].lower().startswith(("<!doctype", "<html", "<?xml")):
        return "it is a web page, saved instead of the file; open the address in a browser and download the file itself"
    first = text.splitlines()[0][:60] if text.strip() else ""
    return f"it is a text file that begins with {first!r}; give the checkpoint itself"


def _onnx(path: Path) -> str:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf has its own exception types
        raise CheckpointError(
            f"{path} begins like an ONNX file, but cannot be read: it is truncated or has another format."
        ) from error
    if not model.ir_version or not model.graph.node:
        raise CheckpointError(f"{path} is not an ONNX network: it contains no graph.")
    return "onnx"
