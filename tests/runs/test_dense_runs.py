"""Whole runs of segmentation and restoration, with and without labels, on small images: what is published, and what is told."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from small import compress

from compressor.report import read_report

EXAMPLES = Path(__file__).parents[2] / "examples"
UNET = f"{EXAMPLES / 'segmentation/unet.py'}:UNet"


def draw(folder: Path, count: int = 20) -> None:
    """Images of bright squares, of two sizes, with masks: 255 is no class."""
    random = np.random.default_rng(0)
    for number in range(count):
        height, width = (32, 32) if number % 4 else (32, 48)
        mask = np.zeros((height, width), np.uint8)
        top, left = random.integers(4, 20, 2)
        mask[top : top + 10, left : left + 10] = 1
        mask[:2] = 255
        image = (random.normal(60, 20, (height, width, 3)) + 120 * (mask == 1)[..., None]).clip(0, 255).astype(np.uint8)
        for kind, pixels in (("images", image), ("masks", mask)):
            place = folder / ("train" if number < count - 6 else "test") / kind / f"{number:03}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with masks in `seg`, and the weights of a U-Net."""
    import torch

    folder = tmp_path_factory.mktemp("dense")
    draw(folder / "seg")
    torch.manual_seed(0)
    torch.save(runpy.run_path(UNET.rpartition(":")[0])["UNet"]().state_dict(), folder / "unet.pt")
    return folder


@pytest.fixture(scope="module")
def segmented(place: Path) -> Path:
    """A run on masks."""
    out = place / "half"
    train = ("--epochs", "2", "--lr", "0.05", "--batch-size", "8", "--schedule", "poly")
    result = compress(
        "prune",
        place / "unet.pt",
        "--arch",
        UNET,
        "--rate",
        "0.5",
        "--data",
        f"segmentation:{place / 'seg'}",
        *train,
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    return out


def test_a_run_on_masks_reports_its_scores(segmented: Path) -> None:
    report = read_report(segmented)
    assert report.task == "segment" and report.output == "map"
    names = [score.name for score in report.compressed.scores]
    assert names == ["miou", "pixel_accuracy", "iou_0", "iou_1"]
    miou, *_, square = report.compressed.scores
    assert miou.n == 6 and miou.value > 0.7 > report.baseline.scores[0].value and square.value > 0.4
    change = report.change.scores["miou"]
    assert change.low is not None and change.high is not None and change.low < change.value < change.high
    assert report.epochs[-1].held_out is not None and report.epochs[-1].held_out.name == "miou"
    assert report.epochs[0].losses.keys() == {"cross_entropy", "teacher"}
    assert report.fidelity is not None and report.fidelity.scores[0].label == "same class of pixel"
    assert "mIoU" in report.verdict


def test_test_images_are_shown_with_both_outputs(segmented: Path) -> None:
    with Image.open(segmented / "examples.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(2**24) or []}
    assert {(127, 127, 127), (31, 119, 180), (0, 0, 0)} <= colors  # of both classes, and of no class
    assert "data:image/png;base64," in (segmented / "report.html").read_text()


def test_the_file_takes_images_of_other_sizes(segmented: Path) -> None:
    session = onnxruntime.InferenceSession(str(segmented / "model.onnx"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    for shape in ((1, 3, 32, 32), (2, 3, 64, 32)):
        (output,) = session.run(None, {entry.name: np.zeros(shape, np.float32)})
        assert output.shape == (shape[0], 2, *shape[2:])
    told = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert (told["fit"], told["color"], told["max_value"]) == ("whole", "rgb", 1.0)


def test_the_run_can_be_verified(segmented: Path) -> None:
    result = compress("verify", segmented)
    assert result.exit_code == 0, result.output
    assert "ok       mIoU" in result.stdout


def test_a_letterbox_is_recorded_and_used_again(place: Path) -> None:
    out, data = place / "letterboxed", f"segmentation:{place / 'seg'}"
    fit = ("--data", data, "--size", "32x32", "--fit", "letterbox", "--epochs", "0")
    result = compress("prune", place / "unet.pt", "--arch", UNET, "--rate", "0.3", *fit, "--out", out)
    assert result.exit_code == 0, result.output
    how = read_report(out).preprocessing
    assert how is not None and (how.fit, how.size, how.bars) == ("letterbox", [32, 32], [124, 116, 104])  # ImageNet's mean
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    plan = json.loads((out / "plan.json").read_text())["preprocessing"]
    assert told == plan and (plan["fit"], plan["bars"]) == ("letterbox", [124, 116, 104])
    verified = compress("verify", out)
    assert verified.exit_code == 0 and "ok       mIoU" in verified.stdout, verified.output
    refused = compress("eval", out, "--data", data, "--fit", "letterbox")
    assert refused.exit_code == 2 and "there is none: give one, as in 480x640" in refused.stderr


def test_budgets_are_in_the_unit_of_the_score(segmented: Path) -> None:
    met = compress(
        "check", segmented, "--budget", "miou>=70%", "--budget", "drop<=1", "--budget", "drop.high<=5", "--budget", "iou_1>=40%"
    )
    assert met.exit_code == 0, met.output
    missed = compress("check", segmented, "--budget", "miou>=99.9%", "--budget", "psnr>=30dB")
    assert missed.exit_code == 1 and "psnr>=30dB: not measured" in missed.stdout


def test_the_network_is_quantized_and_its_groups_measured(place: Path, segmented: Path) -> None:
    data = ("--data", f"segmentation:{place / 'seg'}")
    result = compress("quantize", segmented, *data, "--calibrate", "8", "--out", place / "int8")
    assert result.exit_code == 0, result.output
    report = read_report(place / "int8")
    assert report.change.size_bytes is not None and report.change.size_bytes < 0.7
    assert abs(report.change.scores["miou"].value) < 0.1
    result = compress("sensitivity", place / "unet.pt", "--arch", UNET, *data, "--rates", "0.5", "--out", place / "sensitivity")
    assert result.exit_code == 0, result.output
    assert "Change of mIoU in points" in result.stdout


def test_a_denoiser_is_pruned_trained_and_scored(place: Path) -> None:
    import torch

    dncnn = EXAMPLES / "restoration/dncnn.py"
    torch.manual_seed(0)
    torch.save(runpy.run_path(str(dncnn))["DnCNN"](3, 4, 16).state_dict(), place / "denoiser.pt")
    (place / "clean").mkdir()
    for split in ("train", "test"):
        (place / "clean" / split).symlink_to(place / "seg" / split / "images")
    arch = ("--arch", f"{dncnn}:DnCNN", "--arch-arg", "channels=3", "--arch-arg", "depth=4", "--arch-arg", "width=16")
    train = ("--epochs", "2", "--lr", "1e-2", "--optimizer", "adamw", "--crop", "24")
    out = place / "clearer"
    result = compress(
        "prune",
        place / "denoiser.pt",
        *arch,
        "--rate",
        "0.3",
        "--data",
        f"denoise:{place / 'clean'}?sigma=25",
        *train,
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    report = read_report(out)
    psnr, ssim = report.compressed.scores
    assert report.task == "restore" and (psnr.name, psnr.unit, ssim.name) == ("psnr", "dB", "ssim")
    assert psnr.value > 15
    assert report.epochs[-1].losses.keys() == {"l1", "teacher"}
    with Image.open(out / "examples.png") as picture:
        assert picture.height > 8 * 200  # four images, each with an enlarged part


def test_a_program_with_the_owners_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = EXAMPLES / "segmentation/own_labels.py"
    assert len(program.read_text().splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(program.parent))
    runpy.run_path(str(program), run_name="__main__")
    assert "mIoU" in capsys.readouterr().out and (tmp_path / "half/model.onnx").exists()


def test_a_program_without_labels(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = EXAMPLES / "restoration/without_labels.py"
    assert len(program.read_text().splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(program.parent))
    monkeypatch.setattr(sys, "argv", [str(program), str(place / "seg/train/images")])
    runpy.run_path(str(program), run_name="__main__")
    assert "relative error of the outputs" in capsys.readouterr().out
    stages = {stage.name: stage.scores[0].value for stage in read_report(tmp_path / "half").stages}
    assert stages["original"] == 0 and stages["repaired"] < stages["cut"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--method", "taylor", "--task", "imitate"), "--method taylor needs targets, and the task imitate has none"),
        (("--label-smoothing", "0.1"), "--label-smoothing is for class labels, not for the task segment"),
        (("--task", "classify"), "--task classify needs classes as targets"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(place: Path, arguments: tuple[str, ...], told: str) -> None:
    asked = ("prune", place / "unet.pt", "--arch", UNET, "--rate", "0.5", "--data", f"segmentation:{place / 'seg'}")
    result = compress(*asked, *arguments, "--out", place / "refused")
    assert result.exit_code == 2 and told in result.stderr and not (place / "refused").exists()


def test_a_distillation_method_for_classifiers_is_refused(place: Path) -> None:
    asked = ("distill", "--teacher", place / "unet.pt", "--arch", UNET, "--data", f"segmentation:{place / 'seg'}")
    result = compress(*asked, "--method", "hsakd", "--epochs", "1", "--out", place / "refused")
    assert result.exit_code == 2 and "--method hsakd is for the task classify, not for segment: use kd." in result.stderr


def test_knowledge_is_distilled_on_maps(place: Path) -> None:
    asked = ("distill", "--teacher", place / "unet.pt", "--arch", UNET, "--data", f"segmentation:{place / 'seg'}")
    result = compress(*asked, "--epochs", "1", "--out", place / "student", "--no-onnx")
    assert result.exit_code == 0, result.output
    assert read_report(place / "student").epochs[0].losses.keys() == {"cross_entropy", "kd"}
