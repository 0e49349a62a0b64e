"""Whole runs with images in tiles: the scores are those of whole images, and no network sees more than a tile."""

import json
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from small import compress
from torch import nn

from compressor.report import Report, read_report

NETS = """
import torch
from torch import nn


class Segment(nn.Sequential):
    '''It sees one pixel around each.'''

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))


class OneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.place = nn.Parameter(torch.randn(1, 8, 16, 16))

    def forward(self, x):
        return self.last((self.norm(self.first(x)) + self.place).relu())


class Eighth(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Conv2d(8, 2, 1))


class Enlarge(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.PixelShuffle(2))
"""
TILE = 16  # its margin of two pixels covers what these networks see


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks in `seg`, images in `photos`, of two sizes, and weights for each network."""
    folder = tmp_path_factory.mktemp("tiled")
    random = np.random.default_rng(0)
    for number in range(16):
        height, width = (40, 56) if number % 3 else (24, 16)
        mask = (random.random((height // 8, width // 8)) < 0.5).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = (random.normal(90, 30, (height, width, 3)) + 60 * mask[..., None]).clip(0, 255).astype(np.uint8)
        for kind, pixels in (("images", image), ("masks", mask)):
            path = folder / "seg" / ("train" if number < 10 else "test") / kind / f"{'abcdefghijklmnop'[number]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (folder / "photos").mkdir()
    for split in ("train", "test"):
        (folder / "photos" / split).symlink_to(folder / "seg" / split / "images")
    (folder / "nets.py").write_text(NETS)
    names: dict[str, type[nn.Module]] = {}
    exec(compile(NETS, "nets.py", "exec"), names)
    for name in ("Segment", "OneSize", "Eighth", "Enlarge"):
        torch.manual_seed(1)
        torch.save(names[name]().state_dict(), folder / f"{name}.pt")
    return folder


def pruned(place: Path, name: str, data: str, *options: object) -> Path:
    """The run of a network on `data`, without training."""
    out = place / f"{name}-{len(list(place.iterdir()))}"
    asked = ("prune", place / f"{name}.pt", "--arch", f"{place / 'nets.py'}:{name}", "--rate", "0.25", "--epochs", "0")
    asked += ("--no-repair",)  # which sees parts of training images where there are tiles
    result = compress(*asked, "--data", data, "--out", out, *options)
    assert result.exit_code == 0, result.output
    return out


def scores(report: Report) -> list[tuple[str, list[float]]]:
    return [(stage.name, [score.value for score in stage.scores]) for stage in report.stages]


def assert_close(one: Report, other: Report) -> None:
    assert [name for name, _ in scores(one)] == [name for name, _ in scores(other)]
    for (name, found), (_, wanted) in zip(scores(one), scores(other), strict=True):
        assert found == pytest.approx(wanted, abs=1e-6), name


@pytest.fixture(scope="module")
def segmented(place: Path) -> Path:
    """The ONNX file takes 16x16 pixels alone."""
    return pruned(place, "Segment", f"segmentation:{place / 'seg'}", "--tile", TILE, "--dynamic", "none")


def test_scores_are_those_of_whole_images(place: Path, segmented: Path) -> None:
    report, whole = read_report(segmented), read_report(pruned(place, "Segment", f"segmentation:{place / 'seg'}"))
    assert_close(report, whole)
    assert report.compressed.scores[0].n == 6
    assert (report.input_shape, whole.input_shape) == ([3, TILE, TILE], [3, 40, 56])
    assert onnxruntime.InferenceSession(segmented / "model.onnx").get_inputs()[0].shape[2:] == [TILE, TILE]
    assert report.fidelity is not None and whole.fidelity is not None
    assert report.fidelity.scores[0].value == pytest.approx(whole.fidelity.scores[0].value, abs=1e-6)


def test_the_tile_is_recorded_and_used_again(place: Path, segmented: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = read_report(segmented).preprocessing
    assert how is not None and how.tile == [TILE, TILE] and how.size == [40, 56]
    plan = json.loads((segmented / "plan.json").read_text())["preprocessing"]
    metadata = {entry.key: entry.value for entry in onnx.load(segmented / "model.onnx").metadata_props}
    assert plan["tile"] == json.loads(metadata["preprocessing"])["tile"] == [TILE, TILE]
    assert tomllib.loads((segmented / "config.toml").read_text())["tile"] == TILE
    monkeypatch.chdir(place)  # where the code is trusted
    result = compress("verify", segmented)
    assert result.exit_code == 0 and "ok       mIoU" in result.stdout, result.output
    again = compress("lowrank", segmented, "--rate", "0.1", "--out", place / "again")
    assert again.exit_code == 0, again.output
    assert read_report(place / "again").preprocessing == how


def test_a_network_for_one_size_is_recalibrated_repaired_trained_and_quantized(place: Path) -> None:
    data, out = f"segmentation:{place / 'seg'}", place / "one-size"
    asked = ("--arch", f"{place / 'nets.py'}:OneSize", "--data", data, "--tile", TILE)
    result = compress("prune", place / "OneSize.pt", *asked, "--rate", "0.25", "--epochs", "1", "--out", out)
    assert result.exit_code == 0, result.output
    report = read_report(out)
    assert "recalibrated: discarded" in result.stdout or "recalibrated" in [stage.name for stage in report.stages]
    assert report.input_shape == [3, TILE, TILE] and len(report.epochs) == 1
    result = compress("quantize", out, *asked, "--out", place / "int8")
    assert result.exit_code == 0, result.output


def test_without_labels_a_network_for_one_size_learns_from_parts_of_images(place: Path) -> None:
    data, out = f"images:{place / 'photos'}", place / "unlabelled"
    asked = ("--arch", f"{place / 'nets.py'}:OneSize", "--data", data, "--size", "40x48", "--tile", TILE)
    result = compress("prune", place / "OneSize.pt", *asked, "--rate", "0.25", "--epochs", "1", "--lr", "1e-3", "--out", out)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("file", [True, False], ids=["ONNX", "network"])
def test_a_network_is_evaluated_in_tiles(place: Path, segmented: Path, file: bool) -> None:
    asked = ("--data", f"segmentation:{place / 'seg'}", "--arch", f"{place / 'nets.py'}:Segment", "--json", "--tile", "16x16")
    result = compress("eval", segmented / "model.onnx" if file else segmented, *(asked[:2] + asked[4:] if file else asked))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    wanted = read_report(segmented).compressed.scores[0].value
    for key in ("onnx",) if file else ("onnx", "torch"):
        assert found[key]["miou"] == pytest.approx(wanted, abs=1e-6)


def test_images_are_enlarged_in_tiles(place: Path) -> None:
    data = f"superres:{place / 'photos'}?scale=2", "--no-onnx"
    tiled, whole = (read_report(pruned(place, "Enlarge", *data, *options)) for options in (("--tile", 8), ()))
    assert_close(tiled, whole)
    assert tiled.input_shape == [3, 8, 8]


def test_without_labels_both_networks_are_called_in_tiles(place: Path) -> None:
    data = f"images:{place / 'photos'}"
    tiled, whole = (
        read_report(pruned(place, "Segment", data, "--size", "40x48", "--no-onnx", *options))
        for options in (("--tile", TILE), ())
    )
    assert_close(tiled, whole)
    assert tiled.input_shape == [3, TILE, TILE]


def test_maps_of_an_eighth_need_a_tile_that_is_divisible(place: Path) -> None:
    data = f"segmentation:{place / 'seg'}"
    asked = ("prune", place / "Eighth.pt", "--arch", f"{place / 'nets.py'}:Eighth", "--rate", "0.25", "--epochs", "0")
    result = compress(*asked, "--data", data, "--tile", 32, "--out", place / "refused")
    assert result.exit_code == 2 and "maps have 1/8 of the image's size, and 32 is not divisible" in result.stderr
    assert result.stderr.strip().count("\n") <= 1
    large = "--size", "128x192", "--no-onnx"
    tiled, whole = (read_report(pruned(place, "Eighth", data, *large, *options)) for options in (("--tile", 64), ()))
    assert_close(tiled, whole)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--tile", "x"), "--tile 'x' is not a size in pixels"),
        (("--tile", "0"), "A side of a tile is 0 pixels"),
        (("--tile", "20", "--pad-to", "8"), "must be a multiple of 8"),
    ],
)
def test_bad_tiles_are_told(place: Path, options: tuple[str, ...], complaint: str) -> None:
    asked = ("eval", place / "Segment.pt", "--arch", f"{place / 'nets.py'}:Segment", "--data", f"segmentation:{place / 'seg'}")
    result = compress(*asked, *options)
    assert result.exit_code == 2 and complaint in result.stderr and result.stderr.strip().count("\n") <= 1
