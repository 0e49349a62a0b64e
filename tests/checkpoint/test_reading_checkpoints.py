"""Common checkpoint files, and malicious ones."""

import argparse
import codecs
import collections
import functools
import io
import json
import os
import pathlib
import pickle
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from compressor.checkpoint import kind_of, load_model, read
from compressor.errors import CheckpointError, CompressError, UsageError

CODE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=3, width=4):
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, num_classes))
"""
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "code.py").write_text(CODE)
    return f"{tmp_path / 'code.py'}:Net"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def save(content: object, path: Path, zipped: bool = True) -> str:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return str(path)


def same(model: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)


def refused(source: Path | str, *words: str, **options: object) -> str:
    with pytest.raises(CompressError) as caught:
        load_model(str(source), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert len(message.splitlines()) <= 2
    for word in words:
        assert word in message, message
    return message


# Common files


@FORMATS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3, "best_prec1": torch.tensor(0.5)},
        lambda w: {"model": w, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}},
        lambda w: {"model_state_dict": w, "loss": 0.1},
        lambda w: {"net": {f"module.{name}": tensor for name, tensor in w.items()}, "acc": 90.0},
        lambda w: {"model": {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in w.items()}}},
        lambda w: {"my_own_name": w, "history": [1, 2]},
        lambda w: {f"model.{name}": tensor for name, tensor in w.items()} | {"criterion.weight": torch.ones(3)},
        lambda w: {name.replace("0.", "0._orig_mod."): tensor for name, tensor in w.items()},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict", "net", "nested", "own key", "lightning", "inner compile"],
)
def test_weights_are_found_however_they_are_wrapped(
    tmp_path: Path, arch: str, zipped: bool, wrap: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    weights = net().state_dict()
    loaded = load_model(save(wrap(weights), tmp_path / "a.pth", zipped), arch=arch)
    assert same(loaded.model, weights)
    assert not loaded.model.training
    assert loaded.arch == arch
    assert loaded.sha256 is not None and len(loaded.sha256) == 64


def test_the_notes_say_what_was_done(tmp_path: Path, arch: str) -> None:
    weights = {f"module.{name}": tensor.half() for name, tensor in net().state_dict().items() if "num_batches" not in name}
    notes = load_model(save({"state_dict": weights, "ema": weights}, tmp_path / "a.pth"), arch=arch).notes
    told = "\n".join(notes)
    for word in (
        "'state_dict'",
        "'ema': use them with --ema",
        "removed 'module.' from 8 of 8",
        "1 batch counters",
        "float16 weights were cast to float32",
    ):
        assert word in told, told


def test_the_moving_average_is_taken_when_asked_for_or_alone(tmp_path: Path, arch: str) -> None:
    plain, average = net().state_dict(), net().state_dict()
    both = save({"model": plain, "model_ema": average}, tmp_path / "both.pth")
    assert same(load_model(both, arch=arch).model, plain)
    assert same(load_model(both, arch=arch, ema=True).model, average)
    assert same(load_model(save({"ema": {"module": average}}, tmp_path / "one.pth"), arch=arch).model, average)
    refused(save({"model": plain}, tmp_path / "none.pth"), "no EMA weights were found", "the keys model", arch=arch, ema=True)


def test_a_key_chooses_among_several_sets_of_weights(tmp_path: Path, arch: str) -> None:
    first, second = net().state_dict(), net().state_dict()
    path = save({"nets": {"a": first, "b.c": second}, "netD": first, "netG": second}, tmp_path / "a.pth")
    assert same(load_model(path, arch=arch, key="netG").model, second)
    assert same(load_model(path, arch=arch, key="nets.b.c").model, second)
    refused(path, "several sets of weights: netD, netG", "--key netD", arch=arch)
    refused(path, "no 'netF'", "did you mean", arch=arch, key="netF")
    refused(save({"lr": 0.1, "net": first}, tmp_path / "b.pth"), "leads to a float", arch=arch, key="lr")


def test_a_safetensors_file_is_known_by_its_content(tmp_path: Path, arch: str) -> None:
    weights = net().state_dict()
    save_file(weights, tmp_path / "a.pth", metadata={"format": "pt"})
    assert kind_of(tmp_path / "a.pth") == "safetensors"
    assert same(load_model(str(tmp_path / "a.pth"), arch=arch).model, weights)


@FORMATS
def test_a_lightning_file_is_read_and_its_settings_stay_closed(tmp_path: Path, arch: str, zipped: bool) -> None:
    weights = net().state_dict()
    content = {
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"args": argparse.Namespace(lr=0.1), "dir": pathlib.PurePosixPath("x"), "lr": np.float64(0.1)},
        "callbacks": {"best": collections.defaultdict(list, {"a": [torch.ones(2)]})},
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
    }
    loaded = load_model(save(content, tmp_path / "a.ckpt", zipped), arch=arch)
    assert same(loaded.model, weights)
    assert any("argparse.Namespace" in note and "not unpickled" in note for note in loaded.notes)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet20-jpeg.pt"])
def test_a_downloaded_checkpoint_loads(shared: Path, name: str) -> None:
    path = shared / "checkpoints" / name
    held = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    loaded = load_model(str(path), arch=f"{Path(__file__).parents[2] / 'examples/cifar/resnet.py'}:resnet20")
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name.removeprefix("module.")], tensor) for name, tensor in held.items())
    assert loaded.model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    refused(path, "No torchvision network", "--arch path/to/file.py:NAME")


# Pickled modules


@FORMATS
@pytest.mark.parametrize(
    "wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}, lambda m: {"ema": m}], ids=["bare", "model", "ema"]
)
def test_a_pickled_module_needs_trust(tmp_path: Path, zipped: bool, wrap: Callable[[nn.Module], object]) -> None:
    model = nn.DataParallel(net().half())
    path = save(wrap(model), tmp_path / "a.pt", zipped)
    refused(path, "loading it may run code", "torch.nn.", "--trust-pickle", "--arch")
    loaded = load_model(path, trust_pickle=True)
    assert loaded.arch == "pickle:a.pt"
    assert type(loaded.model) is nn.Sequential and not loaded.model.training
    assert next(loaded.model.parameters()).dtype == torch.float32
    refused(path, "takes no --arch-arg", trust_pickle=True, arch_args={"width": 3})


def test_a_trusted_module_can_fill_an_architecture(tmp_path: Path, arch: str) -> None:
    model = net()
    loaded = load_model(save(model, tmp_path / "a.pt"), arch=arch, trust_pickle=True)
    assert type(loaded.model).__name__ == "Net" and same(loaded.model, model.state_dict())


def test_a_trusted_module_without_its_code_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(net(), path)
    raw = zipfile.ZipFile(path)
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as changed:
        for name in raw.namelist():
            changed.writestr(name, raw.read(name).replace(b"torch.nn.modules.container", b"gone.nn"))
    refused(tmp_path / "b.pt", "gone.nn.Sequential", "--trust-pickle")
    refused(tmp_path / "b.pt", "code that was not found", "gone", trust_pickle=True)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


@FORMATS
@pytest.mark.parametrize("place", ["beside", "around", "instead"])
@pytest.mark.parametrize("call", [io.open, os.system, eval, pickle.loads], ids=["open", "system", "eval", "loads"])
def test_a_hostile_pickle_does_nothing(
    tmp_path: Path, arch: str, zipped: bool, place: str, call: Callable[..., object]
) -> None:
    flag = tmp_path / "flag"
    args: dict[Callable[..., object], tuple[object, ...]] = {
        io.open: (str(flag), "w"),
        os.system: (f"touch {flag}",),
        eval: (f"open({str(flag)!r}, 'w')",),
        pickle.loads: (pickle.dumps(Hostile(io.open, str(flag), "w")),),
    }
    harm, weights = Hostile(call, *args[call]), net().state_dict()
    content = {"beside": {"state_dict": weights, "x": harm}, "around": {"state_dict": {**weights, "x": harm}}, "instead": harm}[
        place
    ]
    path = save(content, tmp_path / "a.pt", zipped)
    try:
        assert same(load_model(path, arch=arch).model, weights)
    except CheckpointError as error:
        assert "--trust-pickle" in str(error)
    assert not flag.exists()


# Exported programs


@pytest.fixture
def exported(tmp_path: Path) -> tuple[nn.Module, Path]:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    program = torch.export.export(model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "a.pt2")
    return model, tmp_path / "a.pt2"


def test_the_weights_of_an_exported_program_are_read_and_the_program_on_trust(exported: tuple[nn.Module, Path]) -> None:
    model, path = exported
    weights = read(path).value
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    refused(path, "No torchvision network", "--trust-pickle")
    loaded = load_model(str(path), trust_pickle=True)
    images = torch.randn(3, 3, 8, 8)
    assert loaded.arch == "pt2:a.pt2"
    torch.testing.assert_close(loaded.model(images), model(images))


def test_a_hostile_program_does_nothing(tmp_path: Path, exported: tuple[nn.Module, Path]) -> None:
    _, path = exported
    harm = io.BytesIO()
    torch.save(Hostile(io.open, str(tmp_path / "flag"), "w"), harm)
    raw = zipfile.ZipFile(path)
    with zipfile.ZipFile(tmp_path / "b.pt2", "w") as changed:
        for name in raw.namelist():
            changed.writestr(name, harm.getvalue() if "sample_inputs" in name else raw.read(name))
    assert len(read(tmp_path / "b.pt2").value) == 9
    assert not (tmp_path / "flag").exists()


def test_an_exported_program_with_pickled_weights_is_refused(tmp_path: Path, exported: tuple[nn.Module, Path]) -> None:
    raw = zipfile.ZipFile(exported[1])
    with zipfile.ZipFile(tmp_path / "b.pt2", "w") as changed:
        for name in raw.namelist():
            changed.writestr(name, raw.read(name).replace(b'"use_pickle": false', b'"use_pickle": true'))
    refused(tmp_path / "b.pt2", "cannot be read", "Export it again")


# Files that cannot be loaded


def test_torchscript_and_onnx_are_told_what_can_be_done(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated TorchScript, but the files still exist
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    assert kind_of(tmp_path / "a.pt") == "torchscript"
    refused(tmp_path / "a.pt", "TorchScript", "state_dict", "--arch")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:])), tmp_path / "b.bin")
    assert kind_of(tmp_path / "b.bin") == "onnx"
    refused(tmp_path / "b.bin", "compress eval", "compress export")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\n  <html>\n", "web page"),
        (b"import torch\nprint('\xc3\xa9')\n", "text file that begins with 'import torch'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip"),
        (bytes(257) + b"ustar\0" + bytes(300), "tar archive"),
        (pickle.dumps({"a": 1}), "plain Python pickle"),
        (b"\x08\x07\x12\xff" + bytes(50), "ONNX"),
        (bytes(range(200, 256)), "unknown file format"),
        ((1 << 30).to_bytes(8, "little") + b'{"a":', "truncated"),
        ((20).to_bytes(8, "little") + b'{"a":1}             ', "truncated or damaged"),
    ],
)
def test_what_is_not_a_checkpoint_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", words)


def test_a_missing_file_or_plain_directory_is_told(tmp_path: Path, arch: str) -> None:
    save(net().state_dict(), tmp_path / "model.pth")
    refused(tmp_path / "modle.pth", "no such file", "did you mean 'model.pth'")
    refused(tmp_path / "no" / "a.pth", "no such file", "no does not exist")
    refused(arch, "give Python code with --arch")
    refused(tmp_path, "directory without plan.json", "model.pth")
    (tmp_path / "plan.json").write_text("{}")
    assert kind_of(tmp_path) == "run"


@FORMATS
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_told(tmp_path: Path, arch: str, zipped: bool, share: float) -> None:
    whole = Path(save(net().state_dict(), tmp_path / "a.pth", zipped)).read_bytes()
    (tmp_path / "b.pth").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "b.pth", "download it again" if not zipped else "Download it again", arch=arch)


def test_a_foreign_zip_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    refused(tmp_path / "a.npz", "NumPy")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("model.pth", b"x")
    refused(tmp_path / "b.zip", "contains model.pth", "unpack")


def test_a_newer_pickle_protocol_is_told(tmp_path: Path, arch: str) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pth", pickle_protocol=4)
    refused(tmp_path / "a.pth", "protocol", "torch.save", arch=arch)


def test_a_file_without_weights_is_told(tmp_path: Path) -> None:
    refused(save({"epoch": 1, "loss": torch.tensor(1.0)}, tmp_path / "a.pth"), "no weights", "epoch, loss")
    refused(save([1, 2], tmp_path / "b.pth"), "no weights", "a list")
    refused(save({}, tmp_path / "c.pth"), "no weights", "an empty dictionary")


# Files that would fill the memory


def test_an_archive_that_would_grow_is_refused_before_it_does(tmp_path: Path) -> None:
    save(net().state_dict(), tmp_path / "a.pth")
    raw = zipfile.ZipFile(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in raw.namelist():
            packed.writestr(name, raw.read(name) + (bytes(30_000_000) if name.endswith("data/0") else b""))
    tracemalloc.start()
    refused(tmp_path / "b.pth", "fill the memory", "30,0")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("numel", [300, 2**31 - 1])
def test_a_declared_size_is_not_believed(tmp_path: Path, numel: int) -> None:
    """A storage of 300 elements that declares two thousand million."""
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        save({"a.weight": torch.ones(300)}, path, zipped)
        honest, lie = b"M,\x01", b"J" + numel.to_bytes(4, "little")
        if zipped:
            raw = zipfile.ZipFile(path)
            members = {name: raw.read(name) for name in raw.namelist()}
            with zipfile.ZipFile(path, "w") as changed:
                for name, data in members.items():
                    changed.writestr(name, data.replace(honest, lie) if name.endswith("data.pkl") else data)
        else:
            path.write_bytes(path.read_bytes().replace(honest, lie))
        if numel == 300:
            assert read(path).value["a.weight"].shape == (300,)
        else:
            with pytest.raises(CheckpointError, match="fill the memory"):
                read(path)


def test_a_declared_shape_is_not_believed(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    refused(tmp_path / "a.safetensors", "truncated or damaged")


def test_an_expanded_tensor_is_never_written_out(tmp_path: Path, arch: str) -> None:
    """One element that is expanded to a billion is a view: it is refused by its shape."""
    path = save({**net().state_dict(), "3.weight": torch.ones(1).expand(3, 10**9)}, tmp_path / "a.pth")
    refused(path, "it declares a tensor with more elements than the file has bytes", arch=arch)


@FORMATS
def test_a_view_of_more_numbers_than_the_file_has_bytes_is_no_number_of_classes(tmp_path: Path, zipped: bool) -> None:
    """Else the network would be recognised, and built for a thousand million classes."""
    weights = torchvision.models.squeezenet1_1().state_dict()
    for name in ("classifier.1.weight", "classifier.1.bias"):
        weights[name] = weights[name][:1].expand(10**9, *weights[name].shape[1:])
    refused(save(weights, tmp_path / "a.pth", zipped), "more elements than the file has bytes")


def _tower(height: int) -> tuple[object, ...]:
    tower: tuple[object, ...] = ("a", "b")
    for _ in range(height):
        tower = tower, tower
    return tower


class Keyed:
    """A dictionary with a key that is hashed when the file is read, and not before."""

    def __init__(self, key: object) -> None:
        self.key = key

    def __reduce__(self) -> object:
        return collections.OrderedDict, (), None, None, iter([(self.key, 1)])


CALLS = {
    "a bytearray": lambda: Hostile(bytearray, 10**11),
    "a bytearray, by a detour": lambda: Hostile(torch._tensor._rebuild_from_type_v2, bytearray, bytearray, (10**11,), None),
    "text that doubles": lambda: Hostile(codecs.encode, Hostile(codecs.encode, "a" * 99, "hex"), "hex"),
    "a tensor": lambda: Hostile(torch.Tensor, 10**11),
    "a storage": lambda: Hostile(torch.UntypedStorage, 10**12),
    "another type": lambda: Hostile(
        torch._utils._rebuild_device_tensor_from_cpu_tensor, torch.ones(1).expand(99), torch.float64, "cpu", False
    ),
    "a tower of tuples": lambda: Keyed(_tower(60)),
    "tuples without a bottom": lambda: Keyed(functools.reduce(lambda inner, _: (inner,), range(200), ())),
}


@FORMATS
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_would_fill_the_memory_or_never_end_is_refused(tmp_path: Path, arch: str, zipped: bool, call: str) -> None:
    """The weights-only unpickler of torch calls all of these."""
    path = save({"state_dict": net().state_dict(), "x": CALLS[call]()}, tmp_path / "a.pth", zipped)
    refused(path, "could fill the memory or never end", arch=arch)


@FORMATS
def test_what_training_programs_keep_beside_the_weights_is_no_such_call(tmp_path: Path, arch: str, zipped: bool) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    beside = [optimizer.state_dict(), torch.get_rng_state(), b"\xff", bytearray(b"x"), 1j, {1, 2}, collections.Counter("aab")]
    more = [torch.Size([3]), torch.device("cpu"), torch.float16, torch.empty(2, device="meta")]
    path = save({"model": model.state_dict(), "x": [*beside, *more, np.ones(2), ((1, 2), (1, 2))]}, tmp_path / "a.pth", zipped)
    assert same(load_model(path, arch=arch).model, model.state_dict())


def test_an_archive_with_a_second_list_of_members_is_refused(tmp_path: Path, arch: str) -> None:
    whole = Path(save(net().state_dict(), tmp_path / "a.pth")).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        archive.comment = b"another list"
    refused(tmp_path / "a.pth", "data before or after it", arch=arch)
    (tmp_path / "b.pth").write_bytes(b"PK\x03\x04" + whole)
    refused(tmp_path / "b.pth", "data before or after it", arch=arch)


def test_names_hung_on_what_a_pickle_holds_hide_no_method(tmp_path: Path, arch: str) -> None:
    class Hung:
        def __reduce__(self) -> object:
            hung = dict.fromkeys(("items", "values", "get", "keys"), 5)
            return collections.OrderedDict, (), hung, None, iter(weights.items())

    weights = net().state_dict()
    weights["0.weight"].numel = 5
    assert same(load_model(save({"state_dict": Hung()}, tmp_path / "a.pth"), arch=arch).model, weights)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e5m2])
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path: Path, arch: str, dtype: torch.dtype) -> None:
    weights = net().state_dict()
    weights["3.weight"] = weights["3.weight"].to(dtype)
    refused(save(weights, tmp_path / "a.pth"), "3.weight", str(dtype)[6:], "unquantized weights", arch=arch)


def test_a_name_in_a_file_does_not_steer_the_terminal(tmp_path: Path, arch: str) -> None:
    path = save({f"a\x1b[2J\r\n::error::{'x' * 9999}\u202e": torch.ones(2)}, tmp_path / "a.pth")
    message = refused(path, r"a\x1b[2J\r\n::error::x", arch=arch)
    assert message.isprintable() and len(message) < 1100


# Options that exclude each other


def test_a_name_takes_no_architecture() -> None:
    with pytest.raises(UsageError, match="already names"):
        load_model("torchvision:alexnet", arch="torchvision:resnet18")
