"""Images with masks, and images to be restored: an input and its target stay aligned, and errors name files."""

import itertools
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from compressor.data import IGNORED, Batch, Batches, Data, input_shape, open_data
from compressor.data.paired import PairedData
from compressor.data.pixels import Scale
from compressor.data.preparation import ForMasks, pad
from compressor.data.samples import Sample, Size
from compressor.errors import DataError
from compressor.tasks.segment import Segment

# Python 3.12 and 3.13 warn of what torch's loader does by default: to fork a process that has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def coordinates(height: int, width: int) -> Tensor:
    """An image [3, h, w] whose pixels tell where they are: row, column, and 7 everywhere."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 7)]).to(torch.uint8)


def classes_of(image: Tensor) -> Tensor:
    """The mask [h, w] of such an image: 5 classes, which are the blocks of 8x8 pixels that a pixel lies in."""
    return (image[0].long() // 8 + 2 * (image[1].long() // 8)) % 5


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    TF.to_pil_image(image).save(path)


def street(root: Path, counts: dict[str, tuple[str, int]], size: tuple[int, int] = (24, 32)) -> Path:
    """Images in the folders `counts`, each with the folder of its masks and their number."""
    for place, (masks, count) in counts.items():
        for i in range(count):
            image = coordinates(*size)
            image[2] = i
            save(image, root / place / f"car{'abcdefghijklmnopqrstuvwxyz'[i]}.png")
            save(classes_of(image).to(torch.uint8), root / masks / f"car{'abcdefghijklmnopqrstuvwxyz'[i]}.png")
    return root


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    return street(tmp_path / "streets", {f"{split}/images": (f"{split}/masks", n) for split, n in (("train", 10), ("test", 4))})


def read(data: Data, split: str, batch_size: int = 4, **settings) -> list[Batch]:
    batches = data.batches(split, batch_size=batch_size, device="cpu", **settings)
    found = list(batches)
    assert len(found) == len(batches) == len(batches.plan)
    assert [len(positions) for positions in batches.plan] == [batch.size for batch in found]
    return found


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for first, second in zip(one, other, strict=True) for a, b in zip(first[:3], second[:3], strict=True)
    )


def fails(spec: str, **settings) -> str:
    """The message of the DataError raised by opening `spec` or iterating over it."""
    with pytest.raises(DataError) as caught:
        data = open_data(spec, **settings)
        for split in data.counts:
            read(data, split)
    message = str(caught.value)
    assert message.count("\n") <= 1 and len(message) < 600
    return message


# --- images with masks: what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        {f"{split}/images": (f"{split}/masks", n) for split, n in (("train", 10), ("test", 4))},
        {f"images/{split}": (f"masks/{split}", n) for split, n in (("train", 10), ("test", 4))},
        {split: (f"{split}annot", n) for split, n in (("train", 10), ("test", 4))},
        {f"{split}/images": (f"{split}/masks", n) for split, n in (("train", 10), ("val", 4))},
    ],
    ids=["under splits", "splits under", "CamVid", "val"],
)
@pytest.mark.parametrize("plain", [False, True])
def test_masks_are_found(tmp_path: Path, layout: dict, plain: bool):
    root = street(tmp_path, layout)
    data = open_data(str(root) if plain else f"segmentation:{root}", **PLAIN)
    assert isinstance(data, Data) and data.kind == "masks" and data.indexed
    assert data.classes == list("01234") and data.shape == (3, 24, 32)
    assert data.counts == {"train": 9, "held_out": 1, "test": 4}
    for batch in read(data, "test"):
        assert batch.inputs.dtype == torch.float32 and batch.targets.dtype == torch.int64
        for image, mask in zip((batch.inputs * 255).round(), batch.targets, strict=True):
            assert mask.equal(classes_of(image))


def test_images_and_masks_beside_each_other_are_split(tmp_path: Path):
    root = street(tmp_path, {"images": ("masks", 20)})
    one, other = (open_data(f"segmentation:{root}", seed=seed) for seed in (0, 1))
    assert one.counts == {"train": 14, "held_out": 2, "test": 4}
    assert one.positions["test"].equal(other.positions["test"]) and not one.positions["train"].equal(other.positions["train"])
    assert sorted(torch.cat([*one.positions.values()]).tolist()) == list(range(20))


def test_val_is_held_out_beside_test(tmp_path: Path):
    root = street(tmp_path, {f"{name}/images": (f"{name}/masks", n) for name, n in (("train", 5), ("val", 2), ("test", 3))})
    assert open_data(f"segmentation:{root}").counts == {"train": 5, "held_out": 2, "test": 3}


def test_a_test_split_alone_can_be_measured(tmp_path: Path):
    data = open_data(f"segmentation:{street(tmp_path, {'test/images': ('test/masks', 3)})}")
    assert data.counts == {"train": 0, "held_out": 0, "test": 3} and "no images to train on" in data.notes[0]
    assert sum(batch.size for batch in read(data, "test")) == 3
    with pytest.raises(DataError, match="no training images"):
        data.batches("train", batch_size=2, device="cpu")


def with_masks(root: Path, *masks: Image.Image) -> str:
    """Grey images of the size of these masks, beside them."""
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for i, mask in enumerate(masks):
        Image.new("L", mask.size, i).save(root / "images" / f"{'abcde'[i]}.png")
        mask.save(root / "masks" / f"{'abcde'[i]}.png")
    return f"segmentation:{root}"


def all_masks(data: Data) -> dict[str, list]:
    """The masks by the name of their image."""
    found = {}
    for split in data.counts:
        for batch in read(data, split, augment=False):
            for index, mask in zip(batch.indices.tolist(), batch.targets.tolist(), strict=True):
                found[Path(data.samples[split].names[index]).stem] = mask
    return found


def test_masks_of_every_kind_are_read(tmp_path: Path):
    grey = Image.fromarray(np.array([[0, 1, 2], [3, 255, 0]], dtype=np.uint8))
    palette = grey.copy()
    palette.putpalette([*range(256)] * 3)
    wide = Image.fromarray(np.array([[300, 1, 0], [255, 3, 0]], dtype=np.uint16))
    binary = Image.fromarray(np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)).convert("1")
    data = open_data(with_masks(tmp_path, grey, palette, wide, binary))
    assert len(data.classes) == 301
    assert all_masks(data) == {
        "a": [[0, 1, 2], [3, IGNORED, 0]],
        "b": [[0, 1, 2], [3, IGNORED, 0]],
        "c": [[300, 1, 0], [IGNORED, 3, 0]],
        "d": [[0, 1, 0], [1, 1, 0]],
    }


def mask(*numbers: int) -> Image.Image:
    """A mask of two rows, which both have these numbers."""
    return Image.fromarray(np.array([numbers] * 2, dtype=np.uint8))


def test_numbers_can_be_ignored(tmp_path: Path):
    spec = with_masks(tmp_path, mask(0, 1, 11), mask(1, 2, 12), mask(2, 1, 255))
    data = open_data(f"{spec}?ignore=11,12")
    assert data.classes == ["0", "1", "2"]
    assert all_masks(data) == {name: [row] * 2 for name, row in (("a", [0, 1, -100]), ("b", [1, 2, -100]), ("c", [2, 1, -100]))}
    assert len(open_data(f"{spec}?ignore=12").classes) == 12
    data = open_data(f"{spec}?ignore=0,11,12")
    assert data.classes == ["0", "1", "2"], "numbers stay those of the network's outputs"
    assert all_masks(data)["a"] == [[IGNORED, 1, IGNORED]] * 2


def test_names_of_classes_are_read(tmp_path: Path):
    spec = with_masks(tmp_path, mask(0, 1), mask(2, 3))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\nvoid\n\n")
    assert open_data(spec).classes == ["sky", "road", "car", "void"]
    assert open_data(f"{spec}?ignore=3").classes == ["sky", "road", "car"]
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar")
    assert f"masks{os.sep}b.png has the number 3, but there are 3 classes, from 0 to 2: add their names to" in fails(spec)


def test_more_than_255_classes_can_be_named(tmp_path: Path):
    wide = Image.fromarray(np.array([[299, 255], [7, 0]], dtype=np.uint16))
    spec = with_masks(tmp_path, wide, mask(255, 1))
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(300)))
    assert all_masks(open_data(f"{spec}?ignore=7")) == {"a": [[299, 255], [IGNORED, 0]], "b": [[255, 1]] * 2}


BAD_MASKS = {
    "colours": (lambda: Image.new("RGB", (3, 2)), "b.png cannot be read as a mask: it has colours (RGB)"),
    "another size": (lambda: mask(0, 1, 2, 3), "b.png is 4x2 pixels, but"),
    "one class": (lambda: mask(0, 0, 255), "have one class, apart from 255"),
    "damaged": (None, "b.png cannot be read as an image"),
    "too high": (lambda: Image.fromarray(np.full((2, 3), 70_000, dtype=np.int32)), "numbers up to 70000"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_mask_that_is_none_is_told(tmp_path: Path, kind: str):
    spec = with_masks(tmp_path, mask(0, 0, 0), mask(0, 0, 0), mask(0, 0, 0) if kind == "one class" else mask(0, 1, 0))
    make, complaint = BAD_MASKS[kind]
    path = tmp_path / "masks" / "b.png"
    if make is None:
        path.write_bytes(b"no image")
    else:
        make().save(path, format="TIFF" if kind == "too high" else "PNG")
    assert complaint in fails(spec)


def test_masks_in_jpeg_are_refused(streets: Path):
    path = streets / "test/masks/cara.png"
    Image.open(path).save(path, format="JPEG")
    assert "cara.png cannot be read as a mask: JPEG changes class numbers" in fails(f"segmentation:{streets}")


def test_folders_that_are_not_as_they_should_be_are_told(streets: Path, tmp_path: Path):
    spec = f"segmentation:{streets}"
    (streets / "train/masks/carb.png").unlink()
    assert "train/images/carb.png has no mask: add one of the same name to" in fails(spec)
    (streets / "train/masks/carc.png").unlink()
    assert "(2 of 10 have none)" in fails(spec)
    for name in ("b", "c"):
        (streets / f"train/images/car{name}.png").unlink()
    (streets / "train/images/card.png").unlink()
    data = open_data(spec)
    assert data.counts == {"train": 6, "held_out": 1, "test": 4} and "1 masks without image were ignored" in data.notes[0]
    (streets / "train/images/cara.jpg").touch()
    assert "cara.jpg and" in fails(spec) and "have the same name" in fails(spec)


def test_folders_without_images_are_told(streets: Path, tmp_path: Path):
    (tmp_path / "none").mkdir()
    assert "none contains no folder: images are expected in images/" in fails(f"segmentation:{tmp_path / 'none'}")
    for file in (streets / "test/masks").iterdir():
        file.unlink()
    assert "test/masks contains no images" in fails(f"segmentation:{streets}")
    (streets / "test/masks").rmdir()
    assert "test/masks does not exist" in fails(f"segmentation:{streets}")


def test_a_single_pixel_is_no_image(tmp_path: Path):
    spec = with_masks(tmp_path, mask(0, 1), Image.new("L", (1, 1)), mask(1, 0))
    assert "b.png is a single pixel" in fails(spec)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("segmentation:", "needs a folder"),
        ("segmentation:nowhere", "does not exist"),
        ("segmentation:{}?ignore=x", "ignore=x is not a list of class numbers"),
        ("segmentation:{}?ignore=-1", "not a list"),
        ("segmentation:{}?ignroe=1", "did you mean 'ignore'?"),
        ("segmentation:{}?ignore", "has the option 'ignore'"),
        ("segmentation:{}/train/images", "contains no folder"),
        ("imagefolder:{}", "use segmentation:"),
        ("images:{}", "looks like labels"),
        ("superres:{}?scale=2", "use segmentation:"),
    ],
)
def test_a_spec_that_does_not_fit_is_told(streets: Path, spec: str, complaint: str):
    assert complaint in fails(spec.format(streets))


# --- images with masks: alignment ------------------------------------------------------------------------------------


def bytes_of(batch: Batch) -> Tensor:
    return (batch.inputs * 255).round().to(torch.uint8)


def test_whole_images_and_masks_are_padded_at_the_right_and_bottom(streets: Path):
    data = open_data(f"segmentation:{streets}", pad_to=20, **PLAIN)
    assert data.shape == (3, 40, 40) and data.pad_to == 20
    for batch in read(data, "test"):
        assert batch.inputs.shape[2:] == batch.targets.shape[1:] == (40, 40)
        images = bytes_of(batch)
        assert images[:, :2, :24, :32].equal(coordinates(24, 32)[:2].expand(len(images), -1, -1, -1))
        assert (images[:, 0, 24:] == 23).all() and (images[:, 1, :, 32:] == 31).all(), "the last row and column are repeated"
        assert (batch.targets[:, 24:] == IGNORED).all() and (batch.targets[:, :, 32:] == IGNORED).all()
        assert batch.targets[:, :24, :32].equal(torch.stack([classes_of(image[:, :24, :32]) for image in images]))


def test_held_out_and_test_images_come_with_the_size_of_their_tiles(streets: Path):
    plain, data = (open_data(f"segmentation:{streets}", tile=tile, **PLAIN) for tile in (None, (16, 8)))
    assert data.shape == (3, 24, 32) and input_shape(data) == (3, 16, 8) and input_shape(plain) == (3, 24, 32)
    assert data.tile == (16, 8) and data.notes[-1].endswith("costs are those of 8x16 pixels.")
    assert open_data(f"segmentation:{streets}", tile=(99, 8)).notes[-1].endswith("costs are those of 8x24 pixels.")
    tiled = read(data, "test", batch_size=12)  # 12 tiles have the pixels of two images
    assert [(batch.size, batch.tile) for batch in tiled] == [(2, (16, 8))] * 2
    assert torch.cat([batch.inputs for batch in tiled]).equal(read(plain, "test")[0].inputs)
    assert read(data, "held_out")[0].tile == (16, 8)
    assert {batch.tile for augment in (True, False) for batch in read(data, "train", augment=augment)} == {None}
    assert [batch.size for batch in read(open_data(f"segmentation:{streets}", tile=64), "test", batch_size=3)] == [3, 1]


def test_images_without_labels_can_be_tiled_and_those_with_classes_cannot(tmp_path: Path):
    for number in range(20):
        save(coordinates(24, 24), tmp_path / f"photos/{number}.png")
    data = open_data(f"images:{tmp_path}/photos", tile=12)
    assert [(batch.size, batch.tile) for batch in read(data, "test", batch_size=8)] == [(2, (12, 12))] * 2
    assert {batch.tile for batch in read(data, "train")} == {None}
    assert "class of an image is not that of its tiles: omit the tile" in fails("digits", tile=4)


def test_images_are_resized_with_their_masks(streets: Path):
    data = open_data(f"segmentation:{streets}", size=(16, 64), **PLAIN)
    assert data.shape == (3, 16, 64)
    batch = read(data, "test")[0]
    expected = TF.resize(TF.pil_to_tensor(Image.open(streets / "test/images/cara.png")), [16, 64], antialias=True)
    assert bytes_of(batch)[0].equal(expected)
    by_pillow = Image.open(streets / "test/masks/cara.png").resize((64, 16), Image.Resampling.NEAREST)
    assert batch.targets[0].equal(TF.pil_to_tensor(by_pillow)[0].long())


@pytest.mark.parametrize(
    ("size", "inner", "place"),
    [((32, 32), (24, 32), (4, 0)), ((16, 64), (16, 21), (0, 21)), ((49, 64), (48, 64), (0, 0)), ((24, 32), (24, 32), (0, 0))],
    ids=str,
)
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_letterboxed_images_and_masks_keep_their_aspect_ratio(streets: Path, size: Size, inner: Size, place: Size, color: str):
    """Images of 24x32: 64 / 32 = 2 and 49 / 24 = 2.04, so that 48x64 fit into 49x64, with the odd row below."""
    data = open_data(f"segmentation:{streets}", size=size, fit="letterbox", color=color, mean=(0.2, 0.4, 0.6), std=(1.0,) * 3)
    assert data.shape == (3, *size) and data.fit == "letterbox"
    batch = read(data, "test")[0]
    (top, left), (height, width) = place, inner
    image, mask = (TF.pil_to_tensor(Image.open(streets / f"test/{kind}/cara.png")) for kind in ("images", "masks"))
    inside = torch.zeros(size, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    expected = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(3, *size).clone()  # the mean becomes zero
    resized = TF.resize(image, [height, width], antialias=True) / 255
    expected[:, inside] = (resized if color == "rgb" else resized.flip(0)).flatten(1)
    wanted = torch.full(size, IGNORED)
    wanted[inside] = TF.resize(mask, [height, width], TF.InterpolationMode.NEAREST_EXACT)[0].long().flatten()
    assert batch.targets[0].equal(wanted)
    torch.testing.assert_close(batch.inputs[0] + torch.tensor([0.2, 0.4, 0.6])[:, None, None], expected, atol=1e-5, rtol=0)


def test_bars_are_not_scored(streets: Path):
    """A network that has class 1 everywhere is right where the resized masks have it, and nowhere else."""
    data = open_data(f"segmentation:{streets}", size=(64, 64), fit="letterbox", pad_to=5, **PLAIN)
    masks = torch.cat([TF.pil_to_tensor(Image.open(path)) for path in sorted((streets / "test/masks").iterdir())])
    share = float((masks == 1).float().mean())  # 24x32 becomes 48x64: each pixel four times

    def ones(images: Tensor) -> Tensor:
        return torch.eye(5)[1][:, None, None].expand(len(images), 5, *images.shape[2:])

    scores = Segment(tuple(data.classes)).measure(ones, data.batches("test", batch_size=3, device="cpu")).compute()
    assert {score.name: score.value for score in scores}["pixel_accuracy"] == pytest.approx(share)
    assert 0 < share < 0.5


def test_training_images_of_a_letterbox_keep_their_aspect_ratio(tmp_path: Path):
    root = street(tmp_path, {"train/images": ("train/masks", 12), "test/images": ("test/masks", 1)}, size=(64, 96))
    for fit, ratio in (("letterbox", 1), ("stretch", 1.5)):
        data = open_data(f"segmentation:{root}", size=(96, 96), fit=fit, crop=24, held_out=0, **PLAIN)
        (batch,) = read(data, "train", batch_size=12)
        known = batch.targets != IGNORED
        down = (batch.inputs[:, 0].diff(dim=1).abs())[known[:, 1:] & known[:, :-1]].mean()
        right = (batch.inputs[:, 1].diff(dim=2).abs())[known[..., 1:] & known[..., :-1]].mean()
        assert float(right / down) == pytest.approx(ratio, rel=0.1)


def test_images_without_labels_are_letterboxed(tmp_path: Path):
    for split in ("train", "test"):
        for name, size in (("flat", (10, 20)), ("square", (20, 20))):
            save(coordinates(*size), tmp_path / split / f"{name}.png")
    data = open_data(f"images:{tmp_path}", size=(20, 20), fit="letterbox", mean=(0.2, 0.4, 0.6), std=(1.0,) * 3)
    assert data.fit == "letterbox"
    (batch,) = read(data, "test")
    flat, square = ((batch.inputs + torch.tensor([0.2, 0.4, 0.6])[:, None, None]) * 255).round().to(torch.uint8)
    bars = torch.tensor([51, 102, 153], dtype=torch.uint8)[:, None, None].expand(3, 5, 20)
    assert flat.equal(torch.cat([bars, coordinates(10, 20), bars], 1)) and square.equal(coordinates(20, 20))


def test_training_images_and_masks_are_scaled_cropped_and_mirrored_together(tmp_path: Path):
    """The channels of these images are smooth, so that a resized one still tells where a pixel comes from, up to its edges."""
    root = street(tmp_path, {"train/images": ("train/masks", 20), "test/images": ("test/masks", 1)}, size=(64, 96))
    data = open_data(f"segmentation:{root}", crop=48, held_out=0, **PLAIN)
    steps, mirrored, outside = [], Counter(), 0
    for batch in read(data, "train", batch_size=20):
        assert batch.inputs.shape == (20, 3, 48, 48) and batch.targets.shape == (20, 48, 48)
        for image, found in zip(batch.inputs * 255, batch.targets, strict=True):
            known = found != IGNORED
            outside += int((~known).any())
            right = classes_of(image.round())[known] == found[known]
            assert right.float().mean() > 0.7
            row = int(known.sum(1).argmax())
            columns = image[1, row, known[row]]
            step = float((columns[-1] - columns[0]) / (len(columns) - 1))
            mirrored[step < 0] += 1
            steps.append(abs(step))
    assert mirrored[True] > 3 and mirrored[False] > 3 and outside > 3
    assert 0.45 < min(steps) < 0.8 < 1.4 < max(steps) < 2.1, "scales from 0.5 to 2"


def test_what_lies_outside_has_no_class_and_the_mean_color():
    preparation = ForMasks(Scale((0.2, 0.4, 0.6), (0.5, 0.5, 0.5), "bgr"), (40, 40), 1)
    sample = Sample(torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.uint8))
    inputs, targets = preparation.finish(*(part[None] for part in preparation.train(sample, seed=1)))
    outside = targets[0] == IGNORED
    assert outside.any() and (targets[0][~outside] == 1).all()
    assert (inputs[0][:, outside].abs() < 0.01).float().mean() > 0.9, "except beside the image, where both are mixed"


# --- both: determinism -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["segmentation", "superres", "denoise"])
def dense(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "segmentation":
        return f"segmentation:{street(tmp_path / 'dense', {'images': ('masks', 16)})}"
    for i in range(16):
        noise = np.random.default_rng(i).integers(0, 256, (3, 40, 48), np.uint8)
        save(torch.from_numpy(noise), tmp_path / "dense" / f"{'abcdefghijklmnop'[i]}.png")
    return f"{request.param}:{tmp_path / 'dense'}?" + {"superres": "scale=2", "denoise": "sigma=25"}[request.param]


@pytest.mark.parametrize("memory", [2**30, 0])
def test_batches_do_not_depend_on_workers_or_memory(dense: str, memory: int):
    reference = open_data(dense, crop=16)
    other = open_data(dense, crop=16, workers=2, memory_limit=memory)
    assert any("read again for each batch" in note for note in other.notes) == (memory == 0)
    for split in reference.counts:
        torch.manual_seed(5)
        state = torch.get_rng_state()
        assert same(read(reference, split, seed=1, epoch=2), read(other, split, seed=1, epoch=2))
        assert torch.get_rng_state().equal(state), "the global generator was used"


def test_an_epoch_can_be_repeated_and_another_is_another(dense: str):
    data, again = (open_data(dense, crop=16) for _ in range(2))
    first = read(data, "train", seed=1, epoch=2)
    read(again, "train", seed=1, epoch=1)
    assert same(first, read(again, "train", seed=1, epoch=2))
    for change in ({"epoch": 3}, {"seed": 2}):
        assert not same(first, read(data, "train", **{"seed": 1, "epoch": 2, **change}))
    for split in ("held_out", "test"):
        assert same(read(data, split), read(data, split, seed=3, epoch=7))


def test_a_restricted_plan_gives_the_same_samples(dense: str):
    """As one of several processes reads its part of each batch."""
    batches: Batches = open_data(dense, crop=16).batches("train", batch_size=4, device="cpu", epoch=1)
    part = batches.with_plan([positions[1:3] for positions in batches.plan])
    for whole, own in zip(batches, part, strict=True):
        assert own.indices.equal(whole.indices[1:3])
        assert own.inputs.equal(whole.inputs[1:3]) and own.targets.equal(whole.targets[1:3])


def test_data_can_be_sent_to_a_process_that_is_not_forked(dense: str):
    data = open_data(dense, crop=16)
    first = [read(data, split, augment=False) for split in data.counts][-1]
    copied: PairedData = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 30_000, "without the images that are kept in memory"
    assert same(first, read(copied, "test"))


def test_limits_are_as_for_class_numbers(dense: str):
    data = open_data(dense, crop=16)
    assert sum(batch.size for batch in read(data, "test", limit=2)) == 2
    first = torch.cat([batch.indices for batch in read(data, "train", limit=8)])
    assert first.tolist() == torch.cat([batch.indices for batch in read(data, "train")])[:8].tolist()
    assert [batch.size for batch in read(data, "train", batch_size=11)] == [11], "a single last image is dropped"
    whole = read(data, "train", augment=False, batch_size=3)
    assert len({batch.inputs.shape[1:] for batch in whole}) == 1 and sum(batch.size for batch in whole) == data.counts["train"]


@pytest.mark.parametrize("change", [{"views": 2}, {"by_class": 2}, {"cutout": 0.5}], ids=str)
def test_what_needs_class_numbers_is_refused(dense: str, change: dict):
    data = open_data(dense)
    with pytest.raises(DataError, match="cannot be used"):
        data.batches("train", batch_size=4, device="cpu", **change)
    with pytest.raises(DataError, match="needs the class number"):
        data.targets("train")


def test_batches_of_whole_images_are_bounded_and_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i, size in enumerate([(20, 30), (20, 30), (20, 30), (30, 20), (30, 20), (20, 30)]):
        save(coordinates(*size), tmp_path / "test" / f"{'abcdef'[i]}.png")
    data = open_data(f"denoise:{tmp_path}?sigma=5")
    assert data.shape == (3, 20, 30) and "different sizes" in data.notes[-1]  # the most frequent one
    assert [positions.tolist() for positions in data.batches("test", batch_size=8, device="cpu").plan] == [
        [0, 1, 2],
        [3, 4],
        [5],
    ]
    monkeypatch.setattr("compressor.data.paired.MOST_PIXELS", 1250)
    assert [len(positions) for positions in data.batches("test", batch_size=8, device="cpu").plan] == [2, 1, 2, 1]
    monkeypatch.setattr("compressor.data.paired.MOST_PIXELS", 1)
    assert [len(positions) for positions in data.batches("test", batch_size=8, device="cpu").plan] == [1] * 6


# --- images to be restored -------------------------------------------------------------------------------------------


def test_superres_reduces_images_as_pillow_does(tmp_path: Path):
    save(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 43, 50), np.uint8)), tmp_path / "test/a.png")
    data = open_data(f"superres:{tmp_path}?scale=4")
    (batch,) = read(data, "test")
    image = Image.open(tmp_path / "test/a.png").crop((0, 0, 48, 40))
    assert (batch.targets[0] * 255).round().to(torch.uint8).equal(TF.pil_to_tensor(image))
    assert bytes_of(batch)[0].equal(TF.pil_to_tensor(image.resize((12, 10), Image.Resampling.BICUBIC)))
    assert data.kind == "images" and data.classes == [] and data.shape == (3, 10, 12) and data.mean == (0, 0, 0)


def test_noise_has_its_deviation_and_is_not_clipped(tmp_path: Path):
    for name in ("a", "b"):
        save(torch.zeros(3, 100, 100, dtype=torch.uint8), tmp_path / f"test/{name}.png")
        save(torch.full((3, 100, 100), 200, dtype=torch.uint8), tmp_path / f"train/{name}.png")
    for max_value in (1, 255):
        data = open_data(f"denoise:{tmp_path}?sigma=25", max_value=max_value, held_out=0)
        (batch,) = read(data, "test")
        assert batch.targets.unique().tolist() == [0] and batch.inputs.min() < 0
        assert abs(float(batch.inputs.std()) - 25 / 255 * max_value) < 0.3 / 255 * max_value
        assert not batch.inputs[0].equal(batch.inputs[1])
        first, later = (read(data, "train", epoch=epoch)[0] for epoch in (0, 1))
        assert abs(float((first.inputs - first.targets).std()) - 25 / 255 * max_value) < 0.3 / 255 * max_value
        assert torch.allclose(first.targets, torch.tensor(200 / 255 * max_value)) and not first.inputs.equal(later.inputs)


def pairs(root: Path, ratio: int, n: int = 12) -> str:
    """Inputs that tell where they are, and targets that repeat each of their pixels `ratio` times in both directions."""
    for i in range(n):
        image = coordinates(24, 30 + i)
        save(image, root / "lq" / f"{'abcdefghijkl'[i]}.png")
        save(image.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2), root / "gt" / f"{'abcdefghijkl'[i]}.png")
    return f"pairs:{root}"


@pytest.mark.parametrize("ratio", [1, 3])
def test_targets_are_cropped_mirrored_and_turned_with_their_inputs(tmp_path: Path, ratio: int):
    data = open_data(pairs(tmp_path, ratio), crop=16, held_out=0)
    moves, corners = Counter(), set()
    for epoch in range(8):
        for batch in read(data, "train", batch_size=9, epoch=epoch):
            assert batch.inputs.shape[1:] == (3, 16, 16) and batch.targets.shape[1:] == (3, 16 * ratio, 16 * ratio)
            assert batch.targets.equal(batch.inputs.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3))
            for rows, columns, _ in bytes_of(batch).long():
                turned = bool(rows[0, 0] == rows[1, 0])
                moves[turned, bool(rows[0, 0] > rows[-1, -1]), bool(columns[0, 0] > columns[-1, -1])] += 1
                corners.add((int(rows.min()), int(columns.min())))
                assert rows.max() - rows.min() == columns.max() - columns.min() == 15
    assert len(moves) == 8 and min(moves.values()) > 1, "all eight moves of a square"
    assert len(corners) > 20


@pytest.mark.parametrize("ratio", [1, 3])
def test_only_inputs_of_restoration_are_padded(tmp_path: Path, ratio: int):
    data = open_data(pairs(tmp_path, ratio), pad_to=32)
    for batch in read(data, "test"):
        (height, width), (rows, columns) = batch.inputs.shape[2:], batch.targets.shape[2:]
        assert height % 32 == width % 32 == 0 and rows == 24 * ratio and columns % ratio == 0
        inside = batch.inputs[:, :, : rows // ratio, : columns // ratio]
        assert batch.targets.equal(inside.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3))


def test_small_images_are_brought_to_the_size_of_a_crop(tmp_path: Path):
    data = open_data(pairs(tmp_path, 2), crop=64)
    (batch, *_) = read(data, "train")
    assert batch.inputs.shape[2:] == (64, 64) and batch.targets.equal(
        batch.inputs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


def test_padding_repeats_the_edge():
    assert pad(torch.tensor([[[1, 2], [3, 4]]]), 3).tolist() == [[[1, 2, 2], [3, 4, 4], [3, 4, 4]]]


def test_the_size_never_resizes_images_to_be_restored(tmp_path: Path):
    spec = pairs(tmp_path, 1)
    plain, given = open_data(spec), open_data(spec, size=(48, 64))
    assert given.shape == (3, 48, 64) and same(read(plain, "test"), read(given, "test"))


def test_suffixes_of_names_are_understood(tmp_path: Path):
    save(coordinates(4, 4), tmp_path / "test/lq/babyx2.png")
    save(coordinates(8, 8), tmp_path / "test/gt/baby.png")
    assert open_data(f"pairs:{tmp_path}").counts["test"] == 1


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("superres:{}", "needs ?scale=NUMBER: write superres:DIR?scale=4"),
        ("superres:{}?scale=1", "scale=1 is not a whole number from 2 to 16"),
        ("superres:{}?scale=2.5", "not a whole number"),
        ("superres:{}?scale=nan", "not a whole number"),
        ("denoise:{}?sigma=0", "sigma=0 is not a number from 0.01 to 255"),
        ("denoise:{}?sigma=x", "sigma=x"),
        ("denoise:{}?scale=2", "Options of denoise: ?sigma=VALUE"),
        ("pairs:{}", "inputs are expected in lq/"),
        ("superres:{}?scale=16", "cannot be reduced 16 times"),
        ("imagefolder:{}/pairs", "use pairs:"),
        ("denoise:{}/pairs?sigma=3", "use pairs:"),
        ("pairs:{}/pairs", "gt/b.png is 20x20 pixels, but"),
        ("pairs:{}/wrong", "gt/a.png is 9x8 pixels, but"),
        ("pairs:{}/half", "contains lq/ but no gt/"),
        ("denoise:{}/empty?sigma=3", "contains no images"),
    ],
)
def test_what_cannot_be_restored_is_told(tmp_path: Path, spec: str, complaint: str):
    for name in "abcdef":
        save(coordinates(10, 12), tmp_path / f"{name}.png")
        save(coordinates(10, 10), tmp_path / f"pairs/lq/{name}.png")
        save(coordinates(20, 20) if name == "b" else coordinates(10, 10), tmp_path / f"pairs/gt/{name}.png")
    save(coordinates(4, 4), tmp_path / "wrong/lq/a.png")
    save(coordinates(8, 9), tmp_path / "wrong/gt/a.png")
    save(coordinates(8, 9), tmp_path / "half/lq/a.png")
    (tmp_path / "empty").mkdir()
    assert complaint in fails(spec.format(tmp_path))


# --- colors and values -----------------------------------------------------------------------------------------------


def test_colors_come_in_the_order_that_is_asked_for(streets: Path):
    spec = f"segmentation:{streets}"
    rgb = read(open_data(spec, **PLAIN), "test")[0].inputs
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    bgr = read(open_data(spec, color="bgr", mean=mean, std=std), "test")[0].inputs
    expected = (rgb.flip(1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(bgr, expected)
    white = open_data(spec, max_value=255)
    assert read(white, "test")[0].inputs.equal((rgb * 255).round()) and "without normalisation" in white.notes[-1]
    grey = open_data(spec, color="grey", mean=(0.0,), std=(1.0,))
    assert grey.shape == (1, 24, 32) and grey.color == "grey"
    assert bytes_of(read(grey, "test")[0])[0].equal(
        TF.rgb_to_grayscale(TF.pil_to_tensor(Image.open(streets / "test/images/cara.png")))
    )


def test_imagenets_mean_follows_the_order_of_colors(streets: Path):
    rgb, bgr = (open_data(f"segmentation:{streets}", color=color) for color in ("rgb", "bgr"))
    assert bgr.mean == rgb.mean[::-1] and bgr.mean[2] == 0.485
    assert read(rgb, "test")[0].inputs.flip(1).equal(read(bgr, "test")[0].inputs)


def test_targets_to_be_restored_have_the_order_and_the_range_but_no_normalisation(tmp_path: Path):
    spec = pairs(tmp_path, 1)
    plain = read(open_data(spec), "test")[0]
    other = read(open_data(spec, color="bgr", max_value=255, mean=(100.0,) * 3, std=(2.0,) * 3), "test")[0]
    assert other.targets.equal((plain.targets.flip(1) * 255).round())
    assert other.inputs.equal((other.targets - 100) / 2)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"color": "cmyk"}, "color 'cmyk' is unknown"),
        ({"color": "grey", "channels": 3}, "color grey has 1 channels"),
        ({"color": "bgr", "channels": 1}, "color bgr has 3 channels"),
        ({"max_value": 2}, "value of white is 2"),
        ({"crop": 0}, "crop is 0 pixels"),
        ({"pad_to": 0}, "multiple to pad to is 0"),
        ({"size": 0}, "0x0 pixels"),
        ({"fit": "letterbox"}, "The fit letterbox is that of images to a size, and there is none"),
        ({"fit": "leterbox", "size": 8}, "did you mean 'letterbox'?"),
        ({"fit": "cover", "size": 8}, "would crop the masks"),
        ({"tile": (8, 0)}, "A side of a tile is 0 pixels, but must be 1 or more"),
        ({"tile": 48, "pad_to": 32}, "A side of a tile is 48 pixels, but must be a multiple of 32"),
        ({"mean": (0.5,)}, "mean has 1 values"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(streets: Path, settings: dict, complaint: str):
    assert complaint in fails(f"segmentation:{streets}", **settings)


def test_images_to_be_restored_are_never_fitted(streets: Path):
    assert "never resized: omit the fit" in fails(f"superres:{streets}/test/images?scale=2", size=8, fit="letterbox")
    assert "use cover or letterbox" in fails(f"images:{streets}/test/images", size=8, fit="stretch")


def test_crops_are_not_for_class_numbers():
    assert "neither cropped nor padded" in fails("digits", crop=8)
    assert "neither cropped nor padded" in fails("digits", pad_to=8)


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_camvid_is_read(shared: Path, tmp_path: Path):
    with tarfile.open(shared / "data/camvid.tar.gz") as archive:
        wanted = (member for member in archive if Path(member.name).stem.endswith("0") and member.isfile())
        archive.extractall(tmp_path, (member for i, member in enumerate(wanted)), filter="data")
    data = open_data(f"segmentation:{tmp_path / 'camvid'}?ignore=11")
    assert data.shape == (3, 360, 480) and len(data.classes) == 11
    assert "frames of a video" in data.notes[0]
    names = data.samples["train"].names
    held_out = {names[position] for position in data.positions["held_out"].tolist()}
    train = sorted({names[position] for position in data.positions["train"].tolist()} | held_out)
    borders = sum((one in held_out) != (other in held_out) for one, other in itertools.pairwise(train))
    assert borders <= 8, "held-out frames come in blocks, not scattered"
    pixels = torch.zeros(12, dtype=torch.int64)
    for batch in read(data, "test", limit=24):
        pixels += torch.where(batch.targets == IGNORED, 11, batch.targets).flatten().bincount(minlength=12)
    assert pixels[3] > pixels[2] > 0 and pixels[11] > 0, "there is more road than poles"


@pytest.mark.shared
def test_real_images_are_reduced_and_made_noisy(shared: Path, tmp_path: Path):
    with tarfile.open(shared / "data/superres.tar.gz") as archive:
        archive.extractall(tmp_path, (member for member in archive if "Set5" in member.name and member.isfile()), filter="data")
    (tmp_path / "superres/CSet5").rename(tmp_path / "test")
    reduced, noisy = open_data(f"superres:{tmp_path}?scale=2"), open_data(f"denoise:{tmp_path}?sigma=25")
    psnrs = [[], []]
    for data, found in zip((reduced, noisy), psnrs, strict=True):
        for batch in read(data, "test", batch_size=1):
            enlarged = TF.resize(batch.inputs, [*batch.targets.shape[2:]], TF.InterpolationMode.BICUBIC)
            found.append(float(-10 * (enlarged - batch.targets).square().mean().log10()))
    assert 29 < sum(psnrs[0]) / 5 < 34, "of bicubic interpolation, in RGB"
    assert all(abs(found - 20.17) < 0.1 for found in psnrs[1]), "20 log10(255 / 25)"
