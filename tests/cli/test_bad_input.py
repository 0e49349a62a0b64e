"""Any wrong input of the user: an error of one or two lines, the documented exit status, and no files left behind."""

import errno
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from small import compress, make_net, prune
from typer.testing import Result

import compressor.runs.prune

FAST = ("--rate", "0.5", "--input", "1x8x8", "--out", "out")


def assert_told(result: Result, status: int, *words: str) -> None:
    """`error: ...` in one or two lines on standard error, and nothing else there or in the directory."""
    assert result.exit_code == status, result.output
    errors = result.stderr.rstrip("\n").split("\n")
    errors = errors[next(i for i, line in enumerate(errors) if line.startswith("error: ")) :]
    assert len(errors) <= 2 and all(len(line) < 500 for line in errors)
    for word in words:
        assert word in "\n".join(errors)
    assert "Traceback" not in result.output
    assert not Path("out").exists()


class Hostile:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("hacked",)


def write_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # what torch.jit.save writes has these members
        for name in ("a/data.pkl", "a/constants.pkl", "a/code/net.py", "a/version"):
            archive.writestr(name, b"3")


X, Y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
RELU = onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [X], [Y]))

FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "text": (lambda path: path.write_text("weights"), "is a text file that begins with 'weights'"),
    "truncated": (lambda path: path.write_bytes(Path("net.pt").read_bytes()[:900]), "is truncated or damaged"),
    "hostile": (lambda path: torch.save(Hostile(), path), "loading it may run code"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps(Hostile())), "is a plain Python pickle"),
    "TorchScript": (write_torchscript, "is a TorchScript archive"),
    "ONNX": (lambda path: onnx.save(RELU, path), "is an ONNX file"),
    "a directory": (lambda path: path.mkdir(), "is a directory without plan.json"),
    "other classes": (lambda path: torch.save({"head.weight": torch.zeros(3, 3)}, path), "do not fit net.py:Net"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_checkpoint_is_an_error_that_says_what_it_is(project: Path, kind: str) -> None:
    write, words = FILES[kind]
    write(project / "bad.pt")
    assert_told(compress("prune", "bad.pt", "--arch", "net.py:Net", *FAST), 2, "bad.pt", words)
    assert not (project / "hacked").exists()


def test_a_missing_file_is_reported_with_the_most_similar_one(project: Path) -> None:
    assert_told(compress("prune", "nett.pt", *FAST), 2, "nett.pt: no such file; did you mean 'net.pt'?")


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("net.py:Nett", "net.py has no 'Nett'; did you mean 'Net'?"),
        ("ned.py:Net", "there is no file ned.py; did you mean 'net.py'?"),
        ("resnet18", "did you mean torchvision:resnet18?"),
        ("torchvision:resnet81", "torchvision:resnet18"),
        ("torchvision:resnet18", "do not fit torchvision:resnet18"),
    ],
)
def test_a_wrong_architecture_is_an_error(project: Path, arch: str, words: str) -> None:
    result = compress("prune", "net.pt", "--arch", arch, *FAST)
    assert_told(result, 2, words.removeprefix("torchvision:") if "81" in arch else words)


def test_weights_that_are_nan_are_an_error(project: Path) -> None:
    weights = make_net().state_dict()
    weights["conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, "nan.pt")
    assert_told(compress("prune", "nan.pt", "--arch", "net.py:Net", *FAST), 2, "nan.pt: conv1.weight contains NaN")


def test_a_network_for_other_classes_than_the_images_is_an_error(project: Path) -> None:
    torch.save(make_net(num_classes=7).state_dict(), "seven.pt")
    result = compress("prune", "seven.pt", "--arch", "net.py:Net", "--data", "digits", "--rate", "0.5", "--out", "out")
    assert_told(result, 2, "The network has 7 classes, but digits has 10")


@pytest.mark.parametrize("rate", ["0", "1", "1.5", "-1", "nan"])
def test_a_rate_that_is_no_fraction_is_an_error(project: Path, rate: str) -> None:
    assert_told(prune("--rate", rate, "--out", "out"), 2, "between 0 and 1, both excluded; found " + rate)


def test_a_rate_that_is_no_number_is_an_error_of_the_command_line(project: Path) -> None:
    result = prune("--rate", "abc")
    assert result.exit_code == 2 and "Invalid value for '--rate'" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give either --rate 0.5"),
        (("--rate", "0.5", "--target", "macs=50%"), "give either --rate 0.5"),
        (("--target", "filter=50%"), "did you mean 'filters'?"),
        (("--rate", "0.5", "--method", "magnitud"), "did you mean 'magnitude'?"),
        (("--rate", "0.5", "--method", "sfp", "--set", "mask_norm=1"), "did you mean 'mask_norms'?"),
        (("--rate", "0.5", "--set", "p=1"), "magnitude"),
        (("--rate", "0.5", "--method", "sfp", "--set", "mask_norms"), "is not of the form name=value"),
        (("--rate", "0.5", "--method", "sfp", "--set", "mask_norms=2"), "mask_norms is a bool"),
        (("--rate", "0.5", "--epochs", "3"), "--epochs 3 needs images to train on: give --data"),
        (("--rate", "0.5", "--method", "sfp"), "--method sfp needs training: give --data"),
        (("--rate", "0.5", "--method", "sfp", "--data", "digits", "--epochs", "0"), "--epochs of at least 1"),
        (("--rate", "0.5", "--data", "digits", "--lr", "-1"), "--lr must be above 0; found -1.0"),
        (("--rate", "0.5", "--data", "digits", "--ema-decay", "2"), "--ema-decay must be between 0 and 1"),
        (("--rate", "0.5", "--max-rate", "1"), "--max-rate is the largest fraction of a group to prune"),
        (("--rate", "0.5", "--most", "nan"), "both excluded; found nan"),
        (("--rate", "0.5", "--input", "8x8"), "--input '8x8' is not a shape"),
        (("--rate", "0.5", "--input", "3x8x8"), "does not run on images of 3x8x8"),
        (("--rate", "0.5", "--input", "1x8x8", "--keep", "steem.*"), "--keep 'steem.*' matches no layer"),
        (("--rate", "0.5", "--data", "digits", "--mean", "a,b"), "--mean 'a,b' is not a list of numbers"),
        (("--rate", "0.5", "--data", "digits", "--mean", "1,2"), "2 values"),
        (("--rate", "0.5", "--data", "digit"), "did you mean 'digits'?"),
        (("--rate", "0.5", "--data", "imagefolder:photos"), "The folder photos does not exist"),
        (("--rate", "0.5", "--data", "digits", "--amp", "fp16", "--device", "cpu"), "--amp fp16 needs a GPU"),
        (("--rate", "0.5", "--device", "tpu"), "--device tpu"),
        (("--rate", "0.5", "--arch-arg", "classes"), "is not of the form name=value"),
    ],
)
def test_a_wrong_option_is_an_error(project: Path, options: tuple[str, ...], words: str) -> None:
    assert_told(prune(*options, "--out", "out"), 2, words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(project: Path) -> None:
    assert_told(prune(*FAST, "--device", "cuda"), 2, "--device cuda cannot be used here", "Try --device cpu")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (("--rate", "0.99999"), "requires 100.0% fewer macs, but at most "),
        (("--target", "params<=1M"), "The model already meets params<=1M, with 1.47 k parameters: set a lower target"),
        (("--target", "size<=1GB"), "The model already meets size<=1GB"),
    ],
)
def test_an_infeasible_target_is_reported_with_the_nearest_feasible_one(
    project: Path, wish: tuple[str, ...], words: str
) -> None:
    torch.save(make_net(width=6).state_dict(), "net.pt")
    assert_told(prune(*wish, "--arch-arg", "width=6", "--input", "1x8x8", "--out", "out"), 3, words)


def test_a_broken_image_is_named_and_ends_the_run(project: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            (project / "photos" / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), number * 50).save(project / "photos" / part / name / f"{number}.png")
    broken = project / "photos" / "train" / "b" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    torch.save(make_net(num_classes=2).state_dict(), "net.pt")
    result = prune("--data", "imagefolder:photos", "--rate", "0.5", "--out", "out", "--epochs", "1")
    assert_told(result, 2, f"{Path('photos') / 'train' / 'b' / '2.png'} cannot be read as an image")


def test_an_output_that_is_a_file_is_an_error(project: Path) -> None:
    assert_told(prune("--rate", "0.5", "--out", "net.py"), 2, "--out net.py is a file: give a directory")
    assert_told(prune("--rate", "0.5", "--out", "net.py/a"), 2, "net.py/a cannot be used: Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_write_permission_is_an_error(project: Path) -> None:
    (project / "locked").mkdir(mode=0o500)
    assert_told(prune("--rate", "0.5", "--out", "locked/a"), 2, "locked/a cannot be used: Permission denied")


def test_a_read_only_disk_is_an_error(project: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_told(prune("--rate", "0.5", "--out", small_disk / "a"), 2, "a cannot be used: Read-only file system")


def test_a_full_disk_leaves_no_incomplete_files(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        if "model.safetensors" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, content)

    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    assert_told(prune(*FAST), 2, "model.safetensors could not be written: No space left on device", "Free disk space")


def test_a_training_that_diverges_leaves_nothing(project: Path) -> None:
    result = prune("--rate", "0.5", "--data", "digits", "--epochs", "2", "--lr", "1e30", "--out", "out")
    assert_told(result, 2, "training diverged in epoch 1 of 2", "Lower --lr")


def test_a_fault_of_ours_is_reported_as_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(compressor.runs.prune, "analyse", fault)
    result = prune(*FAST)
    assert_told(result, 5, "error: internal error: ZeroDivisionError: division by zero", "Rerun with --debug")
    result = prune(*FAST, "--debug")
    assert result.exit_code == 5
    assert "Traceback" in result.stderr and "ZeroDivisionError" in result.stderr
