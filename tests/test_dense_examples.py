"""The networks of examples/segmentation and examples/restoration load real checkpoints, and reach known scores on images."""

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from compressor.checkpoint import build

EXAMPLES = Path(__file__).parents[1] / "examples"
MEAN, STD = torch.tensor((0.41118, 0.42384, 0.43137)), torch.tensor((69.40, 72.11, 71.64))  # of ESPNet for CamVid, RGB
VOID = 11


def load(shared: Path, arch: str, checkpoint: str) -> nn.Module:
    network = build(f"{EXAMPLES / arch}", {})
    state = torch.load(shared / "checkpoints" / checkpoint, map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})  # strictly
    return network.eval()


def read(archive: Path, wanted: list[str]) -> list[Image.Image]:
    with tarfile.open(archive) as files:
        found = {}
        for member in files:
            name = member.name.removeprefix("./")
            if name in wanted:
                found[name] = Image.open(BytesIO(files.extractfile(member).read()))
                if len(found) == len(wanted):
                    break
    return [found[name] for name in wanted]


def planes(image: Image.Image) -> Tensor:
    """[1, channels, h, w] from 0 to 1"""
    pixels = torch.from_numpy(np.asarray(image).copy()).float() / 255
    return pixels[None, None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)[None]


def luma(image: Tensor) -> Tensor:
    """Y of BT.601, 16 to 235, of an image [1, 3, h, w] that is rounded to bytes first."""
    red, green, blue = (image.clamp(0, 1) * 255).round().double()[0]
    return 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255


def psnr(one: Tensor, other: Tensor, peak: float) -> float:
    return 10 * float(torch.log10(peak**2 / (one.double() - other.double()).square().mean()))


@pytest.mark.shared
def test_espnet_segments_streets(shared: Path) -> None:
    network = load(shared, "segmentation/espnet.py:espnet_rgb", "segmentation/espnet_p_2_q_8_camvid.pth")
    names = "0001TP_010350", "Seq05VD_f03540"
    files = [file for name in names for file in (f"camvid/test/{name}.jpg", f"camvid/testannot/{name}.png")]
    found = read(shared / "data/camvid.tar.gz", files)
    matrix = torch.zeros(12, 12)
    for image, mask in zip(found[::2], found[1::2], strict=True):
        x = (planes(image.convert("RGB")) - MEAN[:, None, None]) / STD[:, None, None]
        truth = torch.from_numpy(np.asarray(mask).astype(np.int64))
        with torch.no_grad():
            segmented = network(x)[0].argmax(0)
        assert segmented.shape == truth.shape
        seen = truth != VOID
        matrix += torch.bincount(truth[seen] * 12 + segmented[seen], minlength=144).reshape(12, 12)
    hit = matrix.diag()
    iou = (hit / (matrix.sum(0) + matrix.sum(1) - hit))[:VOID]
    assert 100 * iou.nanmean() == pytest.approx(48.12, abs=0.02)


@pytest.mark.shared
def test_imdn_doubles_the_resolution(shared: Path) -> None:
    network = load(shared, "restoration/imdn.py:imdn_x2", "superres/IMDN_x2.pth")
    (image,) = read(shared / "data/superres.tar.gz", ["superres/CSet5/butterfly.png"])
    image = image.convert("RGB").crop((0, 0, 128, 128))
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    with torch.no_grad():
        large = network(planes(half))
    inner = slice(2, -2)  # without the border
    truth, ours, bicubic = (
        luma(found)[inner, inner] for found in (planes(image), large, planes(half.resize(image.size, Image.Resampling.BICUBIC)))
    )
    assert psnr(bicubic, truth, 255) == pytest.approx(27.06, abs=0.01)
    assert psnr(ours, truth, 255) == pytest.approx(34.55, abs=0.01)


@pytest.mark.shared
def test_dncnn_denoises(shared: Path) -> None:
    network = load(shared, "restoration/dncnn.py:dncnn", "restore/dncnn_s25.pth")
    (image,) = read(shared / "data/superres.tar.gz", ["superres/CSet5/butterfly.png"])
    clean = planes(image.convert("L"))[..., :128, :128]
    noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        restored = network(noisy).clamp(0, 1)
    assert psnr(noisy, clean, 1) == pytest.approx(20.14, abs=0.02)
    assert psnr(restored, clean, 1) == pytest.approx(29.13, abs=0.02)
