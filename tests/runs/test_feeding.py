"""The program in a report that runs model.onnx on an image file is executed, and gives what the run has for its test images."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from example import example
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small import compress

from compressor.data import Batch, Data, open_data
from compressor.network.tiles import in_tiles
from compressor.onnx.runtime import onnx_predict
from compressor.report import read_report
from compressor.report.feeding import feeding
from compressor.runs.reporting import preprocessing
from compressor.tasks.restore import Restore
from compressor.tasks.segment import Segment

COLORFUL = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )
"""
HIDDEN = 'print(logits[0].tolist(), classes[logits[0].argmax()], sep="\\n")'


def photos(folder: Path, width: int, height: int) -> None:
    """Three classes of smooth colours, six images each."""
    for label, (name, part) in enumerate(
        [("cat's", "train"), ("dog", "train"), ("owl", "train"), ("cat's", "test"), ("dog", "test"), ("owl", "test")]
    ):
        (folder / part / name).mkdir(parents=True)
        for number in range(6):
            coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(100 * label + number))
            pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
            image = Image.fromarray((255 * pixels.permute(1, 2, 0)).byte().numpy())
            image.save(folder / part / name / f"{number}.png")


def lines_of(run: Path) -> str:
    """The program in the Markdown report; the page holds the same."""
    found = re.search(
        r"### Run `model.onnx` on an image\n\n```python\n(.*?)\n```", (run / "report.md").read_text("utf-8"), re.DOTALL
    )
    assert found is not None
    return found[1]


def fed(run: Path, image: Path) -> tuple[list[float], str]:
    """The logits, and the class, that the program prints for an image file."""
    (run / "image.jpg").write_bytes(image.read_bytes())  # Pillow detects the format
    program = lines_of(run).replace("print(classes[logits[0].argmax()])", HIDDEN)
    assert program.endswith(HIDDEN)
    done = subprocess.run([sys.executable, "-c", program], cwd=run, capture_output=True, text=True, check=True, timeout=120)
    logits, name = done.stdout.splitlines()
    return json.loads(logits), name


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (40, 40, None),
        (50, 40, 32),
        (120, 90, 72),
    ],  # no resizing; resized and cropped; with a margin, as usual for ImageNet
)
def test_the_program_preprocesses_images_as_the_run_does(project: Path, width: int, height: int, size: int | None) -> None:
    photos(project / "photos", width, height)
    (project / "net.py").write_text(COLORFUL)
    names: dict[str, type] = {}
    exec(compile(COLORFUL, "net.py", "exec"), names)
    torch.save(names["Net"]().state_dict(), "net.pt")
    options = ["--data", "imagefolder:photos", "--epochs", "0", *(["--size", str(size)] if size else [])]
    result = compress("prune", "net.pt", "--arch", "net.py:Net", *options, "--rate", "0.3", "--out", "half", "-q")
    assert result.exit_code == 0, result.output
    data = open_data("imagefolder:photos", size=size)
    (batch,) = data.batches("test", batch_size=100, device="cpu")
    session = onnxruntime.InferenceSession("half/model.onnx")
    right = session.run(None, {"images": batch.inputs.numpy()})[0]
    for number in (0, 7, 17):
        path = sorted((project / "photos" / "test").rglob("*.png"))[number]
        logits, name = fed(project / "half", path)
        np.testing.assert_allclose(logits, right[number], atol=0.02 * np.abs(right).max())
        assert name == data.classes[right[number].argmax()]


def test_grey_images_and_the_metadata_on_preprocessing(finished: Path, tmp_path: Path) -> None:
    run, how = finished / "half", read_report(finished / "half").preprocessing
    assert how is not None and (how.size, how.crop, how.mode, how.classes) == ([8, 8], 1.0, "L", list("0123456789"))
    facts = json.loads((run / "plan.json").read_text("utf-8"))["preprocessing"]
    assert facts == json.loads({e.key: e.value for e in onnx.load(run / "model.onnx").metadata_props}["preprocessing"])
    assert facts["mean"] == how.mean and 'convert("L")' in lines_of(run)
    page = (run / "report.html").read_text("utf-8")
    assert "Run model.onnx on an image" in page and "convert(&#34;L&#34;)" in page
    data = open_data("digits")
    (batch,) = data.batches("test", batch_size=5, device="cpu", limit=5)
    right = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"images": batch.inputs.numpy()})[0]
    copy = tmp_path / "half"
    copy.mkdir()
    for name in ("model.onnx", "report.md"):
        (copy / name).write_bytes((run / name).read_bytes())
    pixels = (batch.inputs[2, 0] * data.std[0] + data.mean[0]) * 255
    Image.fromarray(pixels.round().byte().numpy()).save(tmp_path / "digit.png")
    logits, name = fed(copy, tmp_path / "digit.png")
    np.testing.assert_allclose(logits, right[2], atol=1e-3)
    assert name == str(right[2].argmax())


def test_without_data_a_run_keeps_the_preprocessing_of_the_run_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    result = compress("lowrank", "half", "--rate", "0.1", "--out", tmp_path / "again", "-q")
    assert result.exit_code == 0, result.output
    again = read_report(tmp_path / "again").preprocessing
    assert again == read_report(finished / "half").preprocessing
    result = compress(
        "prune", "net.pt", "--arch", "net.py:Net", "--input", "1x8x8", "--rate", "0.3", "--out", tmp_path / "bare", "-q"
    )
    assert result.exit_code == 0, result.output
    assert (
        read_report(tmp_path / "bare").preprocessing is None and "on an image" not in (tmp_path / "bare/report.md").read_text()
    )


# Maps and images: the program, with networks of one layer -----------------------------------------------------------------


def network(path: Path, channels: int, into: int, enlarged: int = 1, stride: int = 1) -> None:
    """A convolution of 3x3 pixels, or of `stride`, for images of any size, whose output may be `enlarged`."""
    side, pads = (3, [1] * 4) if stride == 1 else (stride, [0] * 4)
    weight = np.random.default_rng(0).normal(0, 0.3, (into * enlarged**2, channels, side, side)).astype(np.float32)
    weight[..., side // 2, side // 2] += 0.5
    nodes = [helper.make_node("Conv", ["images", "weight"], ["conv"], pads=pads, strides=[stride] * 2)]
    nodes.append(helper.make_node("DepthToSpace", ["conv"], ["output"], blocksize=enlarged))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, height, width])
        for name, count, height, width in (("images", channels, "height", "width"), ("output", into, "rows", "columns"))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def draw(folder: Path, ratio: int = 1, size: tuple[int, int] = (37, 50), mode: str = "RGB") -> None:
    """Noise as inputs, with masks of three classes, and with targets that are `ratio` times as large."""
    random, (height, width) = np.random.default_rng(1), size
    for split, name in (("train", "a"), ("train", "b"), ("test", "c")):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
        mask = Image.fromarray(random.integers(0, 3, (height, width), np.uint8))
        pairs = {"images": image, "masks": mask, "lq": image, "gt": image.resize((width * ratio, height * ratio))}
        for kind, pixels in pairs.items():
            root = folder / ("pairs" if kind in ("lq", "gt") else "seg")
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            pixels.save(root / split / kind / f"{name}.png")
    (folder / "image.jpg").write_bytes((folder / "seg/test/images/c.png").read_bytes())  # Pillow detects the format


def executed(data: Data, output: str) -> dict[str, np.ndarray]:
    """The variables of the program for `data`, after its execution in the present directory."""
    report = dataclasses.replace(
        example(), preprocessing=preprocessing(data, None), output=output, inputs={"images": [3, 8, 8]}
    )
    found: dict[str, np.ndarray] = {}
    exec(compile(feeding(report), "the program", "exec"), found)
    return found


def one(data: Data) -> Batch:
    """The test image."""
    (batch,) = data.batches("test", batch_size=1, device="cpu")
    return batch


WHOLE = 1e-5  # the largest difference of inputs and outputs of order 1; in proportion for pixels to 255
SETTINGS = [
    {},
    {"color": "bgr"},
    {"color": "grey"},
    {"color": "bgr", "max_value": 255, "mean": (100.0, 110.0, 120.0), "std": (50.0, 60.0, 70.0)},
    {"max_value": 255},
    {"pad_to": 32},
    {"color": "bgr", "pad_to": 8, "tile": (24, 16)},
    {"tile": 16},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_program_gives_the_masks_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict) -> None:
    monkeypatch.chdir(tmp_path)
    grey = settings.get("color") == "grey"
    draw(tmp_path, mode="L" if grey else "RGB")
    network(tmp_path / "model.onnx", 1 if grey else 3, 3)
    data = open_data("segmentation:seg", **settings)
    found, batch, task = executed(data, "map"), one(data), Segment(tuple(data.classes))
    largest = settings.get("max_value", 1)
    np.testing.assert_allclose(found["batch"], batch.inputs, atol=WHOLE * largest, rtol=0)
    logits = task.answers(onnx_predict(Path("model.onnx")), batch)
    np.testing.assert_allclose(found["logits"], logits[..., :37, :50], atol=WHOLE * largest, rtol=0)
    saved = np.array(Image.open("mask.png"))
    assert saved.shape == (37, 50) and (saved == task.decode(logits, batch)[0, :37, :50].numpy()).mean() > 0.999


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_program_gives_the_restored_images_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, ratio: int
) -> None:
    monkeypatch.chdir(tmp_path)
    grey = settings.get("color") == "grey"
    draw(tmp_path, ratio, mode="L" if grey else "RGB")
    channels = 1 if grey else 3
    network(tmp_path / "model.onnx", channels, channels, enlarged=ratio)
    data = open_data("pairs:pairs", **settings)
    largest = settings.get("max_value", 1)
    found, batch, task = executed(data, "image"), one(data), Restore(largest, ratio, bgr=data.color == "bgr")
    np.testing.assert_allclose(found["batch"], batch.inputs, atol=WHOLE * largest, rtol=0)
    images = task.answers(onnx_predict(Path("model.onnx")), batch)
    right = task.decode(images, batch)
    assert right.shape[2:] == (37 * ratio, 50 * ratio)
    np.testing.assert_allclose(found["restored"].clip(0, largest), right, atol=WHOLE * largest, rtol=0)
    saved = np.array(Image.open("restored.png").convert("RGB"), dtype=int)
    shown = task.picture(right, 0)
    assert shown is not None
    assert np.abs(saved - shown.permute(1, 2, 0).numpy().astype(int)).max() <= 1  # two ways of rounding a half


def test_the_program_puts_maps_of_a_quarter_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    network(tmp_path / "model.onnx", 3, 3, stride=4)
    data = open_data("segmentation:seg", pad_to=4, tile=32)
    batch = one(data)
    logits = in_tiles(onnx_predict(Path("model.onnx")), (32, 32))(batch.inputs)
    assert logits.shape[2:] == (10, 13)
    np.testing.assert_allclose(executed(data, "map")["logits"], logits, atol=WHOLE, rtol=0)


def test_the_program_turns_colors_grey_within_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow rounds the sum of the colors, and torchvision cuts it."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    network(tmp_path / "model.onnx", 1, 3)
    data = open_data("segmentation:seg", color="grey", mean=(0.0,), std=(1.0,))
    gap = executed(data, "map")["batch"] - one(data).inputs.numpy()
    assert gap.min() > -WHOLE and gap.max() < 1 / 255 + WHOLE


@pytest.mark.parametrize("color", ["rgb", "bgr", "grey"])
@pytest.mark.parametrize("size", [(32, 32), (20, 64), (64, 48)])
def test_the_program_letterboxes_as_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], color: str
) -> None:
    """Pillow and torchvision resize with rounding at other places: single pixels differ by one of 255, bars by nothing."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    network(tmp_path / "model.onnx", 1 if color == "grey" else 3, 3)
    data = open_data("segmentation:seg", size=size, fit="letterbox", color=color)
    found, batch = executed(data, "map"), one(data)
    gap = np.abs(found["batch"] - batch.inputs.numpy())
    byte = 1 / 255 / min(data.std)
    assert found["batch"].shape[2:] == size and gap.max() < (1 if color != "grey" else 2) * byte + WHOLE
    bars = (batch.targets == -100).expand(gap.shape[1], -1, -1).numpy()
    assert bars.any() and gap[0][bars].max() < WHOLE


def test_the_program_letterboxes_images_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    (tmp_path / "photos").mkdir()
    for split in ("train", "test"):
        (tmp_path / "seg" / split / "images").rename(tmp_path / "photos" / split)
    network(tmp_path / "model.onnx", 3, 3)
    data = open_data("images:photos", size=(64, 30), fit="letterbox")
    assert np.abs(executed(data, "output")["batch"] - one(data).inputs.numpy()).max() < 1 / 255 / min(data.std) + WHOLE


def test_the_program_separates_one_class_from_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    network(tmp_path / "model.onnx", 3, 1)
    data = dataclasses.replace(open_data("segmentation:seg"), classes=["road"])  # type: ignore[type-var]  # it is a dataclass
    executed(data, "map")
    batch, task = one(data), Segment(("road",))
    right = task.decode(task.answers(onnx_predict(Path("model.onnx")), batch), batch)[0]
    assert 0 < right.float().mean() < 1 and (np.array(Image.open("mask.png")) == right.numpy()).mean() > 0.999
