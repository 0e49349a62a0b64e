"""The program in a report that runs model.onnx on an image file is executed, and gives the logits of the run's test images."""

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
from PIL import Image
from small import compress

from compressor.data import open_data
from compressor.report import read_report

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
