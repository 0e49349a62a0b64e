"""Build the network that an architecture string names.

    torchvision:resnet18          a torchvision network, without weights
    timm:convnext_tiny            a timm network, without weights
    path/to/file.py:Net           a class, a function or a module instance in a file
    package.module:Net            the same in an importable package; the working directory is importable, too

A class or function is called with the arguments given as `--arch-arg name=value`.
"""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compressor.checkpoint.file_formats import in_one_line
from compressor.errors import ArchitectureError, UsageError, did_you_mean
from compressor.modules import from_file, importable, no_file, without_arguments
from compressor.network.copying import clone_network
from compressor.network.inputs import Inputs

FORMS = "torchvision:NAME, timm:NAME, path/to/file.py:NAME or package.module:NAME"
WORDS = {"true": True, "false": False, "null": None, "none": None}


def parse_arch_args(pairs: Sequence[str], option: str = "--arch-arg", example: str = "num_classes=10") -> dict[str, object]:
    """`["num_classes=10", "bias=false"]` -> `{"num_classes": 10, "bias": False}`.

    A value is a number, true, false, null, a Python literal, or else a string. Raises UsageError for anything but `name=value`.
    """
    args: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"{option} {pair!r} is not of the form name=value; write for example {option} {example}.")
        args[name.strip()] = _value(text.strip())
    return args


def build(arch: str, args: Mapping[str, object] | None = None) -> nn.Module:
    """The network `arch` names, on the CPU, with random weights.

    Raises ArchitectureError when the code is not found, fails, or returns something other than a module.
    """
    args = dict(args or {})
    where, colon, name = arch.rpartition(":")
    if not colon or not where or not name:
        near = f"; did you mean torchvision:{arch}?" if arch in _torchvision().models.list_models() else "."
        raise ArchitectureError(f"--arch {arch} is not of the form {FORMS}{near}")
    if where == "torchvision":
        return _called(arch, args, torchvision_builder(name), extra=torchvision_extras(name))
    if where == "timm":
        return _timm(arch, name, args)
    found = find_code(arch)
    if isinstance(found, nn.Module):
        if args:
            raise ArchitectureError(
                f"--arch {arch} is a module instance, which takes no --arch-arg ({', '.join(args)}). Give its class."
            )
        return clone_network(found).cpu()
    return _called(arch, args, found)


def accepts(arch: str, name: str) -> bool:
    """Whether the signature of the code behind `arch` has an argument of this name."""
    where, _, _ = arch.rpartition(":")
    if where in {"torchvision", "timm"}:
        return True
    found = find_code(arch)
    if isinstance(found, nn.Module) or not callable(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # code written in C may have no signature
        return False
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def inputs_of(arch: str, model: nn.Module) -> Inputs | None:
    """The image shape that a torchvision, timm or Hugging Face network was made for; None if unknown."""
    shape = _image_shape(arch, model)
    return None if shape is None else Inputs.of(shape)


def _image_shape(arch: str, model: nn.Module) -> tuple[int, int, int] | None:
    where, _, name = arch.rpartition(":")
    if where == "timm":
        settings = getattr(model, "default_cfg", None) or {}
        size = settings.get("input_size")
        return (int(size[0]), int(size[1]), int(size[2])) if size else None
    if where != "torchvision":
        config = getattr(model, "config", None)  # of Hugging Face
        channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
        return (channels, size, size) if isinstance(channels, int) and isinstance(size, int) else None
    if isinstance(size := getattr(model, "image_size", None), int):  # a vision transformer takes one size only
        return 3, size, size
    try:
        transforms = _torchvision().models.get_model_weights(name).DEFAULT.transforms()
    except (AttributeError, ValueError):  # some networks have no trained weights
        return None
    sizes = getattr(transforms, "crop_size", None) or getattr(transforms, "resize_size", None)
    if not sizes:
        return None
    sizes = list(sizes) if isinstance(sizes, Sequence) else [sizes]
    return 3, int(sizes[0]), int(sizes[-1])


def outline(arch: str, args: Mapping[str, object] | None = None) -> nn.Module:
    """The network `arch` names, without data where possible: cheap, for its shapes only. Raises as `build` does."""
    try:
        with WithoutMemory():
            return build(arch, args)
    except ArchitectureError:  # some networks run a forward pass while they are built, which needs data
        return build(arch, args)


class Sparingly(TorchFunctionMode):
    """While active, limits the total size of new tensors to `most` bytes. Raises ValueError before that is exceeded."""

    MADE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.eye)

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = self.left = most

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch gives it no types
        kwargs = kwargs or {}
        if func in self.MADE:
            self.left -= func(*args, **{**kwargs, "device": "meta"}).nbytes
            if self.left < 0:
                raise ValueError(f"its weights take more than {self.most:,} bytes")
        return func(*args, **kwargs)


class WithoutMemory(TorchFunctionMode):
    """While active, layers create their weights on the `meta` device: shapes without data.

    `with torch.device("meta")` would move every tensor there, and networks that compute their widths with tensors would fail.
    Layers create their weights with `torch.empty`, which is not used for such computations.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch gives it no types
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _torchvision() -> Any:
    """Imported lazily: it takes as long as importing torch."""
    import torchvision

    return torchvision


def torchvision_builder(name: str) -> object:
    """The function that builds a torchvision network. Raises ArchitectureError for an unknown name."""
    try:
        return _torchvision().models.get_model_builder(name)
    except ValueError as error:
        known = _torchvision().models.list_models()
        raise ArchitectureError(
            f"torchvision {_torchvision().__version__} has no network {name!r}{did_you_mean(name, known) or '.'} "
            "`torchvision.models.list_models()` lists them all."
        ) from error


def torchvision_extras(name: str) -> dict[str, object]:
    """Arguments with which a torchvision network neither downloads a backbone nor spends minutes on random initialisation."""
    parameters = inspect.signature(_torchvision().models.get_model_builder(name)).parameters
    extras: dict[str, object] = {"weights": None}
    if "weights_backbone" in parameters:
        extras["weights_backbone"] = None
    if name.endswith(("googlenet", "inception_v3")):
        extras["init_weights"] = False
    return extras


def find_code(arch: str) -> object:
    """The class, function or module named by `file.py:name` or `package.module:name`. Raises ArchitectureError."""
    where, _, name = arch.rpartition(":")
    module = _module_from_file(arch, Path(where)) if where.endswith(".py") else _imported(arch, where)
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError as error:
        known = [known for known in vars(module) if not known.startswith("_")]
        raise ArchitectureError(f"--arch {arch}: {where} has no {name!r}{did_you_mean(name, known) or '.'}") from error


def _value(text: str) -> object:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value


def _called(arch: str, args: dict[str, object], code: object, extra: Mapping[str, object] | None = None) -> nn.Module:
    if not callable(code):
        raise ArchitectureError(f"--arch {arch} is a {type(code).__name__}; give a class, a function or a torch.nn.Module.")
    given = ", ".join(f"{name}={value!r}" for name, value in args.items()) or "no arguments"
    try:
        with without_arguments():
            model = code(**{**(extra or {}), **args})
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ArchitectureError(
            f"--arch {arch} could not be built with {given}: {in_one_line(error)}. Set arguments with --arch-arg name=value."
        ) from error
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"--arch {arch} returned a {type(model).__name__}, not a torch.nn.Module. Give the code that builds the network."
        )
    return model.cpu() if not _on_meta(model) else model


def _on_meta(model: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in model.parameters())


def _timm(arch: str, name: str, args: dict[str, object]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ArchitectureError(f"{arch} needs timm, which is not installed: pip install 'compressor[timm]'.") from error
    if not timm.is_model(name):
        raise ArchitectureError(
            f"timm {timm.__version__} has no network {name!r}{did_you_mean(name, timm.list_models()) or '.'}"
        )
    return _called(arch, args, timm.create_model, extra={"model_name": name, "pretrained": False})


def _imported(arch: str, name: str) -> ModuleType:
    importable(Path.cwd(), first=True)
    try:
        with without_arguments():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        near = did_you_mean(name, ["torchvision", "timm"])
        raise ArchitectureError(
            f"--arch {arch}: {name} could not be imported from {Path.cwd()} or the Python path: {in_one_line(error)}{near}."
        ) from error


def _module_from_file(arch: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ArchitectureError(f"--arch {arch}: {no_file(path)}")
    try:
        return from_file(path)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        package = " For code in a package, write package.module:NAME." if "relative import" in str(error) else ""
        raise ArchitectureError(f"--arch {arch}: {path.name} could not be imported: {in_one_line(error)}.{package}") from error
