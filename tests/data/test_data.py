"""Data specs give the right images in the right splits, and errors name invalid data."""

import itertools
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as TF

from compressor.data import Batch, Data, check_classes, open_data
from compressor.data.cutout import Cutout
from compressor.data.framed import FramedImages
from compressor.data.images import Frame, ImageFiles, ImageTensor, to_pixels
from compressor.data.pixels import Scale
from compressor.data.readers import InMemory, move
from compressor.data.splits import cut, whole
from compressor.errors import DataError

# Python 3.12 and 3.13 warn of what torch's loader does by default: to fork a process that has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def random_image(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_folder(root: Path, counts: dict[str, int], width: int = 12, height: int = 12) -> Path:
    """Random images, no two alike: `counts` says how many for each folder, such as {"train/cat": 5}."""
    for place, count in counts.items():
        (root / place).mkdir(parents=True)
        for i in range(count):
            seed = sum(place.encode()) * 1000 + i
            random_image(seed, width, height).save(root / place / f"{i}.png")
    return root


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets", {"train/cat": 20, "train/dog": 30, "test/cat": 4, "test/dog": 5})


def gather(data: FramedImages, split: str, batch_size: int = 16, **settings) -> tuple[Tensor, Tensor, Tensor]:
    """Images, targets and indices of a whole split."""
    batches = data.batches(split, batch_size=batch_size, device="cpu", **settings)
    found = list(batches)
    assert len(found) == len(batches)
    return tuple(torch.cat(column) for column in zip(*(batch[:3] for batch in found), strict=True))


def pixels(data: Data, images: Tensor) -> Tensor:
    """The bytes that normalised images [n, c, h, w] came from."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return ((images * std + mean) * 255).round().to(torch.uint8)


def fails(spec: str | Path, **settings) -> str:
    """The message of the DataError raised by opening `spec` or iterating over it."""
    with pytest.raises(DataError) as caught:
        data = open_data(str(spec), **settings)
        for split in data.counts:
            gather(data, split)
    message = str(caught.value)
    assert message.count("\n") <= 1
    return message


# --- what specs name -------------------------------------------------------------------------------------------------


def test_all_targets_of_a_part_are_told_without_reading_images(pets: Path) -> None:
    data = open_data(f"imagefolder:{pets}")
    for split in ("train", "held_out"):
        _, targets, indices = gather(data, split)
        wanted = dict(zip(indices.tolist(), targets.tolist(), strict=True))
        found_indices, found_targets = data.targets(split)
        assert dict(zip(found_indices.tolist(), found_targets.tolist(), strict=True)) == wanted


def test_digits_need_no_files():
    data = open_data("digits")
    assert data.shape == (1, 8, 8) and data.classes == list("0123456789")
    assert sum(data.counts.values()) == 1797 and data.counts["test"] == 359
    images, targets, indices = gather(data, "train", augment=False)
    assert images.dtype == torch.float32 and targets.dtype == indices.dtype == torch.int64
    assert abs(float(images.mean())) < 0.02 and abs(float(images.std()) - 1) < 0.02


def test_digits_can_be_shown_to_a_network_for_photographs():
    data = open_data("digits", size=32, channels=3)
    images, _, _ = gather(data, "test", limit=4)
    assert images.shape == (4, 3, 32, 32) and images[:, 0].equal(images[:, 2])


def test_the_test_digits_are_the_same_for_every_seed():
    one, other = open_data("digits", seed=0), open_data("digits", seed=1)
    assert one.positions["test"].equal(other.positions["test"])
    assert not one.positions["held_out"].equal(other.positions["held_out"])


def test_a_folder_has_its_classes_in_order(pets: Path):
    data = open_data(f"imagefolder:{pets}")
    assert data.classes == ["cat", "dog"] and data.shape == (3, 12, 12)
    assert data.counts == {"train": 45, "held_out": 5, "test": 9}
    assert data.notes == []
    reference = datasets.ImageFolder(pets / "test")
    images, targets, _ = gather(data, "test")
    assert targets.tolist() == reference.targets
    assert pixels(data, images).equal(torch.stack([TF.pil_to_tensor(image) for image, _ in reference]))


def test_a_plain_folder_is_an_imagefolder(pets: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(pets.parent)
    assert [open_data(spec).counts["test"] for spec in ("pets", "imagefolder:pets", str(pets))] == [9, 9, 9]


def test_val_is_the_test_part_when_there_is_no_other(tmp_path: Path):
    root = make_folder(tmp_path, {"train/cat": 9, "train/dog": 9, "val/cat": 2, "val/dog": 3})
    data = open_data(str(root), held_out=0.2)
    assert data.counts == {"train": 14, "held_out": 4, "test": 5}


def test_val_is_the_held_out_part_beside_test(tmp_path: Path):
    places = {"train/cat": 9, "train/dog": 9, "val/cat": 2, "val/dog": 3, "test/cat": 1, "test/dog": 1}
    data = open_data(str(make_folder(tmp_path, places)))
    assert data.counts == {"train": 18, "held_out": 5, "test": 2}
    assert data.notes == [f"{tmp_path / 'val'} is used as the held-out (validation) split."]


def test_class_folders_alone_are_cut(tmp_path: Path):
    data = open_data(str(make_folder(tmp_path, {"cat": 20, "dog": 30})))
    assert data.counts == {"train": 36, "held_out": 4, "test": 10}
    assert "has no train/ and test/: 20%" in data.notes[0]


def test_other_files_are_left_out_with_a_note(pets: Path):
    (pets / "train/cat/notes.txt").write_text("my cats")
    (pets / "train/cat/.DS_Store").write_text("")
    (pets / "train/.ipynb_checkpoints").mkdir()
    data = open_data(str(pets))
    assert data.counts["test"] == 9
    assert data.notes == [
        f"1 file that is not an image was ignored in {pets / 'train'}, for example {pets / 'train/cat/notes.txt'}."
    ]


def write_cifar(root: Path, kind: type, names: Sequence[str], label_key: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Five images per file in the format of the real data set, with the checksums disabled."""
    monkeypatch.setattr(kind, "train_list", [["train", None]])
    monkeypatch.setattr(kind, "test_list", [["test", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "names", "md5": None})
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    stored = np.random.default_rng(0).integers(0, 256, (5, 3 * 32 * 32), dtype=np.uint8)
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps({"data": stored, label_key: [0, 1, 0, 1, 1]}))
    (folder / "meta").write_bytes(pickle.dumps({"names": list(names)}))
    return stored.reshape(5, 3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "key"), [(datasets.CIFAR10, "labels"), (datasets.CIFAR100, "fine_labels")], ids=["cifar10", "cifar100"]
)
def test_cifar_is_read_where_torchvision_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, key: str):
    stored = write_cifar(tmp_path, kind, ["cat", "dog"], key, monkeypatch)
    name = kind.__name__.lower()
    for folder in (tmp_path, tmp_path / kind.base_folder):
        data = open_data(f"{name}:{folder}", held_out=0)
        images, targets, _ = gather(data, "test")
        assert data.shape == (3, 32, 32) and data.classes == ["cat", "dog"] and targets.tolist() == [0, 1, 0, 1, 1]
        assert pixels(data, images).equal(torch.from_numpy(stored))


def write_fashion(root: Path) -> np.ndarray:
    """Four images per file in the format of the real data set."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    stored = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *stored.shape) + stored.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 4) + bytes([3, 1, 3, 1]))
    return stored


def test_fashionmnist_is_read_where_torchvision_keeps_it(tmp_path: Path):
    stored = write_fashion(tmp_path)
    data = open_data(f"fashionmnist:{tmp_path}")
    images, targets, _ = gather(data, "test")
    assert data.shape == (1, 28, 28) and data.classes[3] == "Dress" and targets.tolist() == [3, 1, 3, 1]
    assert pixels(data, images)[:, 0].equal(torch.from_numpy(stored))


def test_an_unknown_spec_lists_the_known_ones(pets: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(pets.parent)
    message = fails("imagefoldr:some/where")
    assert "did you mean 'imagefolder'?" in message and "fashionmnist:DIR" in message and "file.py:function" in message
    assert "did you mean 'pets'?" in fails("pet")
    assert "cifar10:DIR" in fails("cifar10")


# --- parts -----------------------------------------------------------------------------------------------------------


def test_parts_share_no_image(tmp_path: Path):
    data = open_data(str(make_folder(tmp_path, {"cat": 20, "dog": 30})))
    parts = [gather(data, split, augment=False) for split in ("train", "held_out", "test")]
    indices = torch.cat([part[2] for part in parts])
    contents = {image.numpy().tobytes() for part in parts for image in part[0]}
    assert sorted(indices.tolist()) == list(range(50)) and len(contents) == 50


def test_every_class_gives_its_share():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10 + [3])
    images = ImageTensor(torch.zeros(161, 1, 1, 1, dtype=torch.uint8), labels, "test")
    rest, taken = cut(whole(images), 0.1, seed=3)
    assert taken.labels.bincount(minlength=4).tolist() == [10, 5, 1, 0]
    assert rest.labels.bincount(minlength=4).tolist() == [90, 45, 9, 1]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 1), (0.5, 2)])
def test_a_class_keeps_an_image(share: float, count: int):
    images = ImageTensor(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), "test")
    rest, taken = cut(whole(images), share, seed=0)
    assert len(taken.positions) == count and set(rest.labels.tolist()) == {0, 1}


def test_nothing_is_held_out_when_nothing_is_asked_for(pets: Path):
    data = open_data(str(pets), held_out=0)
    assert data.counts == {"train": 50, "held_out": 0, "test": 9}
    assert len(data.batches("held_out", batch_size=4, device="cpu")) == 0


# --- batches, from memory and streamed -------------------------------------------------------------------------------

PATHS = pytest.mark.parametrize("path", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])


@PATHS
def test_an_epoch_can_be_repeated(pets: Path, path: dict):
    data = open_data(str(pets), **path)
    first = gather(data, "train", seed=1, epoch=2)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = gather(open_data(str(pets), **path), "train", seed=1, epoch=2)
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))
    assert torch.get_rng_state().equal(state), "the global generator was used"


@PATHS
@pytest.mark.parametrize("change", [{"epoch": 3}, {"seed": 2}, {"epoch": 1, "seed": 2}])
def test_another_epoch_or_seed_is_another_order(pets: Path, path: dict, change: dict):
    data = open_data(str(pets), **path)
    first, other = gather(data, "train", seed=1, epoch=2), gather(data, "train", **{"seed": 1, "epoch": 2, **change})
    assert not first[2].equal(other[2]) and sorted(first[2].tolist()) == sorted(other[2].tolist())
    by_index = [part[0][part[2].argsort()] for part in (first, other)]
    assert not by_index[0].equal(by_index[1]), "the same image is moved in the same way"


def test_the_number_of_workers_changes_nothing(pets: Path):
    alone, shared = (open_data(str(pets), memory_limit=0, workers=n) for n in (0, 2))
    for split in ("train", "test"):
        assert all(one.equal(other) for one, other in zip(gather(alone, split), gather(shared, split), strict=True))


@pytest.mark.parametrize("size", [None, 8, (10, 6), 80], ids=str)
def test_both_paths_agree_on_images_for_measuring(tmp_path: Path, size: int | tuple[int, int] | None):
    counts = {"train/cat": 5, "train/dog": 5, "test/cat": 3, "test/dog": 3}
    root = make_folder(tmp_path, counts, width=100, height=90)
    memory, streamed = (open_data(str(root), size=size, memory_limit=limit) for limit in (2**30, 0))
    assert streamed.notes and not memory.notes
    for split in memory.counts:
        one, other = (gather(data, split, augment=False) for data in (memory, streamed))
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
        assert one[0].shape[1:] == memory.shape


@PATHS
def test_held_out_and_test_images_come_in_order_and_unchanged(pets: Path, path: dict):
    data = open_data(str(pets), **path)
    for split in ("held_out", "test"):
        first, other = gather(data, split), gather(data, split, epoch=5, seed=5, batch_size=2)
        assert all(one.equal(later) for one, later in zip(first, other, strict=True))
        assert first[2].equal(data.positions[split])


@PATHS
def test_training_images_can_be_had_unchanged(pets: Path, path: dict):
    data = open_data(str(pets), **path)
    images, _, indices = gather(data, "train", augment=False)
    paths = data.readers["train"].images.paths
    for image, index in zip(pixels(data, images), indices.tolist(), strict=True):
        assert image.equal(TF.pil_to_tensor(Image.open(paths[index])))


def test_a_single_last_training_image_is_dropped(pets: Path):
    data = open_data(str(pets))  # 45 for training, 9 for the test
    lengths = {size: [len(b.targets) for b in data.batches("train", batch_size=size, device="cpu")] for size in (22, 20, 1)}
    assert lengths == {22: [22, 22], 20: [20, 20, 5], 1: [1] * 45}
    assert [len(b.targets) for b in data.batches("test", batch_size=4, device="cpu")] == [4, 4, 1]


def test_limit_takes_the_beginning_of_an_epoch(pets: Path):
    data = open_data(str(pets))
    whole_epoch, beginning = gather(data, "train"), gather(data, "train", limit=10, batch_size=3)[2]
    assert beginning.tolist() == whole_epoch[2][: len(beginning)].tolist() and len(beginning) == 9
    assert gather(data, "train", limit=32)[0].equal(whole_epoch[0][:32])


def test_limit_reaches_all_classes_of_the_test_part(pets: Path):
    _, targets, indices = gather(open_data(str(pets)), "test", limit=4)
    assert targets.tolist() == [0, 0, 1, 1] and indices.tolist() == [0, 2, 4, 6]


def test_an_empty_batch_is_refused(pets: Path):
    with pytest.raises(DataError, match="batch size is 0"):
        open_data(str(pets)).batches("train", batch_size=0, device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@PATHS
def test_a_gpu_gets_the_same_batches(pets: Path, path: dict):
    data = open_data(str(pets), **path)
    for split in data.counts:
        for here, there in zip(*(data.batches(split, batch_size=8, device=place) for place in ("cpu", "cuda")), strict=True):
            assert there.inputs.is_cuda and torch.allclose(here.inputs, there.inputs.cpu(), atol=1e-5)
            assert here.targets.equal(there.targets.cpu()) and here.indices.equal(there.indices.cpu())


# --- changes to training images --------------------------------------------------------------------------------------


def test_a_move_can_be_read_off():
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    moves = torch.tensor([[1, 1, 0], [0, 0, 0], [2, 1, 0], [1, 1, 1], [1, 2, 1]])
    moved = move(image.expand(5, -1, -1, -1), moves, shift=1)[:, 0]
    stays, down_right, up, mirrored, left_and_mirrored = moved.tolist()
    assert stays == [[1, 2], [3, 4]]
    assert down_right == [[0, 0], [0, 1]]
    assert up == [[3, 4], [0, 0]]
    assert mirrored == [[2, 1], [4, 3]]
    assert left_and_mirrored == [[0, 2], [0, 4]]


def find_move(before: Tensor, after: Tensor, shift: int) -> tuple[int, int, bool] | None:
    """Top, left and flip of the move that makes image `after` [c, h, w] from `before`."""
    border = TF.pad(before, [shift])
    _, height, width = before.shape
    for top, left in itertools.product(range(2 * shift + 1), repeat=2):
        window = border[:, top : top + height, left : left + width]
        for flip in (False, True):
            if after.equal(window.flip(2) if flip else window):
                return top, left, flip
    return None


@PATHS
def test_a_training_image_is_one_of_its_shifts(tmp_path: Path, path: dict):
    root = make_folder(tmp_path, {"train/cat": 40, "train/dog": 40, "test/cat": 1, "test/dog": 1}, width=32, height=32)
    data = open_data(str(root), held_out=0, **path)
    still, moved = (pixels(data, gather(data, "train", augment=augment)[0]) for augment in (False, True))
    moves = [find_move(before, after, shift=4) for before, after in zip(still, moved, strict=True)]
    assert None not in moves
    tops, lefts, flips = (set(column) for column in zip(*moves, strict=True))
    assert tops == lefts == set(range(9)) and flips == {False, True}


@PATHS
def test_digits_move_by_a_pixel_and_are_not_mirrored(path: dict):
    data = open_data("digits", **path)
    still, moved = (pixels(data, gather(data, "train", augment=augment, limit=100)[0]) for augment in (False, True))
    moves = [find_move(before, after, shift=1) for before, after in zip(still, moved, strict=True)]
    assert {flip for _, _, flip in moves} == {False}
    assert len(set(moves)) == 9


def hidden(images: Tensor) -> Tensor:
    """Which pixels of normalised `images` [n, c, h, w] are exactly zero in all channels [n, h, w]; no byte becomes zero."""
    return (images == 0).all(1)


def test_a_square_around_its_centre_is_hidden_as_far_as_it_lies_inside():
    squares = Cutout(2, torch.tensor([[0, 0], [1, 1], [9, 9], [3, 2]]))
    shown = squares.hide(torch.ones(3, 1, 4, 3), torch.tensor([0, 1, 3]))[:, 0].int().tolist()
    assert shown == [
        [[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]],
        [[0, 0, 1], [0, 0, 1], [1, 1, 1], [1, 1, 1]],
        [[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]],
    ]


def test_the_centres_of_squares_are_all_over_the_image():
    squares = Cutout.draw(4000, (4, 8), share=0.5, seed=1)
    assert squares.side == 2
    counts = torch.zeros(4, 8).index_put_(tuple(squares.centres.T), torch.ones(4000), accumulate=True)
    assert counts.min() > 80 and counts.max() < 175  # 125 each: four standard deviations


@PATHS
def test_squares_are_hidden_in_training_alone_and_anew_in_each_epoch(pets: Path, path: dict):
    data = open_data(str(pets), **path)
    first, again, other = (hidden(gather(data, "train", cutout=0.5, epoch=epoch)[0]) for epoch in (1, 1, 2))
    height, width = data.shape[1:]
    areas = first.flatten(1).sum(1)
    assert first.equal(again) and not first.equal(other)
    assert areas.max() == (round(0.5 * min(height, width))) ** 2 and 0 < areas.min() < areas.max()
    for split, augment in (("train", False), ("test", True), ("held_out", True)):
        assert not hidden(gather(data, split, cutout=0.5, augment=augment)[0]).any()
    whole, parts = (gather(data, "train", **change) for change in ({}, {"cutout": 0.5}))
    assert whole[2].equal(parts[2])
    shown = ~hidden(parts[0])[:, None].expand_as(whole[0])
    assert whole[0][shown].equal(parts[0][shown]), "all else stays as it was"


def test_large_streamed_images_are_cut_out_at_random(tmp_path: Path):
    root = make_folder(tmp_path, {"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 1}, width=100, height=90)
    data = open_data(str(root), size=80, memory_limit=0)
    changed, still = gather(data, "train")[0], gather(data, "train", augment=False)[0]
    assert changed.shape == still.shape and not changed.isclose(still).flatten(1).all(1).any()
    assert "random resized crops" in data.notes[-1]


@PATHS
def test_further_views_are_moved_and_hidden_anew_and_the_first_is_as_without_them(tmp_path: Path, path: dict):
    root = make_folder(tmp_path, {"train/cat": 10, "train/dog": 10, "test/cat": 1, "test/dog": 1}, width=32, height=32)
    data = open_data(str(root), held_out=0, **path)

    def read(**settings) -> list[Batch]:
        return list(data.batches("train", batch_size=8, device="cpu", **settings))

    for alone, batch, again in zip(read(), read(views=3), read(views=3), strict=True):
        assert alone.views == () and batch.inputs is batch.views[0] and len(batch.views) == 3
        assert alone.inputs.equal(batch.inputs) and alone.indices.equal(batch.indices)
        assert all(one.equal(other) for one, other in zip(batch.views, again.views, strict=True))
    stills, first = read(augment=False, views=2), read(views=3)
    for still, batch in zip(stills, first, strict=True):
        assert still.inputs.equal(still.views[1])
        before = pixels(data, still.inputs)
        after = [pixels(data, view) for view in batch.views]
        moves = [[find_move(*pair, shift=4) for pair in zip(before, view, strict=True)] for view in after]
        assert None not in itertools.chain(*moves)
        assert moves[0] != moves[1] != moves[2] != moves[0]
    squares = [[hidden(view) for view in batch.views] for batch in read(views=2, cutout=0.5)]
    assert all(one.any() and other.any() and not one.equal(other) for one, other in squares)
    assert all(one.equal(hidden(batch.inputs)) for (one, _), batch in zip(squares, read(cutout=0.5), strict=True))


# --- batches of several images of a class ----------------------------------------------------------------------------


def of_classes(*counts: int) -> Data:
    """Black images, `counts` of each class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = ImageTensor(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, "counted")
    reader = InMemory(images, Frame(1, 8, 8, resize=False), flip=False)
    positions = {"train": torch.arange(len(labels))}
    names = [str(i) for i in range(len(counts))]
    return FramedImages("counted", names, (1, 8, 8), Scale((0.0,), (1.0,), "grey"), [], {"train": reader}, positions)


@pytest.mark.parametrize(
    ("counts", "batch_size", "most"),
    [
        ((10,) * 6, 8, 1),
        ((9, 10, 11, 10, 12), 8, 1),
        ((20,) * 4, 8, 1),
        ((30, 31), 8, 2),
        ((12,) * 2, 7, 2),
        ((40, 2, 2), 8, 4),
    ],
    ids=["six classes", "unequal", "as many as fit", "two classes", "odd batches", "one is most of all"],
)
def test_images_of_a_class_come_in_twos_from_as_many_classes_as_there_is_room_for(
    counts: tuple[int, ...], batch_size: int, most: int
):
    data = of_classes(*counts)
    batches = list(data.batches("train", batch_size=batch_size, device="cpu", by_class=2))
    for batch in batches:
        first, second = batch.targets.view(-1, 2).T
        assert first.equal(second) and len(batch.targets) <= batch_size
        assert first.bincount().max() <= most
    indices = torch.cat([batch.indices for batch in batches])
    assert len(indices.unique()) == len(indices) == sum(count // 2 * 2 for count in counts), "odd ones are left out"


def test_the_order_by_class_is_that_of_an_epoch():
    data = of_classes(*[12] * 5)
    first, again, other = (gather(data, "train", 8, by_class=2, epoch=epoch)[2] for epoch in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)
    assert {*map(frozenset, first.view(-1, 2).tolist())} != {*map(frozenset, other.view(-1, 2).tolist())}, "other pairs, too"
    few = gather(data, "train", 8, by_class=2, epoch=1, limit=20)[2]
    assert {*few.tolist()} <= {*gather(data, "train", epoch=1, limit=20)[2].tolist()}


def test_groups_of_three_can_be_had():
    _, targets, _ = gather(of_classes(7, 8, 9), "train", 9, by_class=3)
    assert (targets.view(-1, 3) == targets[::3, None]).all() and targets.bincount().tolist() == [6, 6, 9]


@pytest.mark.parametrize(("counts", "batch_size"), [((1, 1), 8), ((4, 4), 1)])
def test_two_of_a_class_that_there_are_not_are_missed(counts: tuple[int, ...], batch_size: int):
    with pytest.raises(DataError, match="needs 2 images per class"):
        of_classes(*counts).batches("train", batch_size=batch_size, device="cpu", by_class=2)


# --- shape and scale -------------------------------------------------------------------------------------------------


def test_normalisation_is_imagenets_unless_given(pets: Path):
    usual, given = open_data(str(pets)), open_data(str(pets), mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    first = TF.pil_to_tensor(Image.open(pets / "test/cat/0.png")) / 255
    expected = TF.normalize(first, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(gather(usual, "test")[0][0], expected, atol=1e-6)
    assert torch.allclose(gather(given, "test")[0][0], TF.normalize(first, [0.5] * 3, [0.5, 0.25, 0.5]), atol=1e-6)


def test_images_of_several_sizes_become_224(pets: Path):
    random_image(0, 40, 30).save(pets / "train/cat/0.png")
    data = open_data(str(pets))
    assert data.shape == (3, 224, 224) and "224x224" in data.notes[0]
    assert gather(data, "test", limit=2)[0].shape == (2, 3, 224, 224)


def test_a_large_image_is_seen_as_imagenet_is(tmp_path: Path):
    data = open_data(str(make_folder(tmp_path, {"cat": 4, "dog": 4}, width=300, height=260)), size=224)
    images, _, indices = gather(data, "test")
    original = TF.pil_to_tensor(Image.open(data.readers["test"].images.paths[indices[0]]))
    assert pixels(data, images)[0].equal(TF.center_crop(TF.resize(original, [256], antialias=True), [224, 224]))


@PATHS
def test_an_odd_one_out_is_named(pets: Path, path: dict):
    data = open_data(str(pets), **path)
    random_image(0, 13, 12).save(pets / "train/dog/17.png")
    with pytest.raises(DataError, match=r"17\.png is 13x12 pixels.* 12x12"):
        gather(data, "train")


def test_grey_and_transparent_files_become_rgb(pets: Path):
    random_image(1).convert("L").save(pets / "test/cat/0.png")
    random_image(2).convert("RGBA").save(pets / "test/cat/1.png")
    random_image(3).convert("P").save(pets / "test/cat/2.png", transparency=bytes(range(256)))
    random_image(4).convert("CMYK").save(pets / "test/cat/4.jpg")
    data = open_data(str(pets))
    images, _, _ = gather(data, "test")
    found = pixels(data, images)
    assert images.shape == (10, 3, 12, 12) and found[0, 0].equal(found[0, 1]) and not found[1, 0].equal(found[1, 1])


def test_rgb_files_become_grey_on_request(pets: Path):
    data = open_data(str(pets), channels=1)
    images, _, _ = gather(data, "test")
    grey = TF.pil_to_tensor(Image.open(pets / "test/cat/0.png").convert("L"))
    assert data.shape == (1, 12, 12) and len(data.mean) == 1
    assert (pixels(data, images)[0].int() - grey.int()).abs().max() <= 1


def test_sixteen_bits_become_eight():
    stored = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    assert to_pixels(Image.fromarray(stored)).tolist() == [[[0, 0, 1], [128, 255, 255]]]
    with pytest.raises(ValueError, match="32 bits"):
        to_pixels(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mean": (0.5,)}, "mean has 1 values, but the images have 3 channels"),
        ({"std": (0.5, 0.5)}, "std has 2 values"),
        ({"std": (0.5, 0.0, 0.5)}, "a std above 0"),
        ({"mean": (0.5, float("nan"), 0.5)}, "use finite numbers"),
        ({"held_out": 0.6}, "held-out share of the training images is 0.6"),
        ({"held_out": -0.1}, "held-out share of the training images is -0.1"),
        ({"size": 0}, "0x0 pixels"),
        ({"channels": 4}, "4 channels"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(pets: Path, settings: dict, complaint: str):
    assert complaint in fails(pets, **settings)


def test_the_network_must_know_as_many_classes(pets: Path):
    data = open_data(str(pets))
    check_classes(data, 2)
    with pytest.raises(DataError, match=r"has 1000 classes, but .* has 2 \(cat, dog\)"):
        check_classes(data, 1000)


# --- data that are not as they should be -----------------------------------------------------------------------------


def test_a_missing_folder_is_told_with_its_neighbours(pets: Path):
    message = fails(pets.parent / "pest" / "images")
    assert f"{pets.parent} contains pets/ but no pest; did you mean 'pets'?" in message


def test_an_archive_is_no_folder(tmp_path: Path):
    (tmp_path / "pets.tar").write_bytes(b"")
    assert "unpack it" in fails(tmp_path / "pets.tar")


def test_train_is_needed(tmp_path: Path):
    assert "test/ but no train/" in fails(make_folder(tmp_path, {"test/cat": 1, "test/dog": 1}))


def test_test_or_val_is_needed(tmp_path: Path):
    root = make_folder(tmp_path, {"train/cat": 4, "train/dog": 4})
    assert f"neither test/ nor val/: add one, or use {root / 'train'}" in fails(root)
    assert open_data(str(root / "train")).counts["test"] == 2


def test_an_empty_class_folder_is_named(pets: Path):
    for file in (pets / "train/dog").iterdir():
        file.unlink()
    assert f"class folder {pets / 'train/dog'} contains no images" in fails(pets)


def test_different_classes_are_named(pets: Path):
    (pets / "test/dog").rename(pets / "test/dogs")
    assert "missing: dog/, unexpected: dogs/" in fails(pets)


def test_a_folder_around_the_data_is_noticed(pets: Path):
    assert f"but {pets} does: use {pets}" in fails(pets.parent)


@pytest.mark.parametrize("places", [["images"], []], ids=str)
def test_one_class_is_none(tmp_path: Path, places: list[str]):
    assert "two or more classes" in fails(make_folder(tmp_path, dict.fromkeys(places, 3)))


@PATHS
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_broken_image_is_named(pets: Path, path: dict, damage: str):
    broken = pets / "train/dog/7.jpg"
    random_image(0, 64, 64).save(broken, quality=95)
    broken.write_bytes({"truncated": broken.read_bytes()[:3000], "empty": b"", "text": b"not an image"}[damage])
    message = fails(pets, size=16, **path)
    assert message.startswith(f"{broken} cannot be read as an image: ")


def declare(path: Path, width: int, height: int) -> None:
    """A PNG file whose header declares this size, with a valid checksum."""
    random_image(0).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


@PATHS
@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_an_image_of_endless_size_is_refused_before_it_is_read(pets: Path, path: dict, size: tuple[int, int]):
    declare(pets / "train/dog/7.png", *size)
    tracemalloc.start()
    message = fails(pets, size=16, **path)
    assert "train/dog/7.png cannot be read as an image" in message
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_line_of_pixels_is_refused_before_it_is_made_large(pets: Path):
    Image.new("L", (60_000, 1)).save(pets / "train/dog/7.png")
    assert "is 60000x1 pixels; with its shorter side resized to 256, it would be 15360000 long" in fails(pets, size=224)


def test_a_file_is_read_as_an_image_of_the_common_kinds_alone(pets: Path):
    """For other formats Pillow starts external programs: Ghostscript for this one."""
    (pets / "train/dog/7.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n")
    assert "UnidentifiedImageError" in fails(pets)


def test_a_pipe_is_not_waited_for(pets: Path):
    os.mkfifo(pets / "train/dog/7.jpg")
    assert "train/dog/7.jpg cannot be read as an image" in fails(pets)


def test_links_that_lead_in_a_circle_are_followed_once(pets: Path):
    for name in ("a", "b", "c"):
        (pets / "train/dog" / name).symlink_to("..")
        (pets / "train/dog" / f"{name}{name}").symlink_to("../cat")
    data = open_data(str(pets))
    assert data.counts["train"] + data.counts["held_out"] == 20 + 30 + 20


def test_a_name_of_a_file_does_not_steer_the_terminal(pets: Path):
    (pets / "train/dog" / "a\n::error::\x1b[2J.png").write_bytes(b"not an image")
    (pets / "train/dog" / "b\n.txt").touch()
    assert r"dog/a\n::error::\x1b[2J.png cannot be read" in fails(pets)
    (pets / "train/dog" / "a\n::error::\x1b[2J.png").unlink()
    assert open_data(str(pets)).notes[0].isprintable()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_while_training_is_named(pets: Path, workers: int):
    data = open_data(str(pets), size=12, memory_limit=0, workers=workers)
    batches = iter(data.batches("train", batch_size=2, device="cpu"))
    next(batches)
    gone = pets / "train/dog"
    for file in gone.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train/dog/\d+\.png was deleted after its folder was listed"):
        list(batches)


def test_a_worker_that_dies_is_told(pets: Path, monkeypatch: pytest.MonkeyPatch):
    data = open_data(str(pets), memory_limit=0, workers=1)
    monkeypatch.setattr(ImageFiles, "read", lambda *_: os._exit(9))
    with pytest.raises(DataError, match="use fewer workers"):
        gather(data, "test")


@pytest.mark.parametrize(("kind", "place"), [("cifar10", "cifar-10-batches-py"), ("fashionmnist", "FashionMNIST/raw")])
def test_a_set_that_is_not_downloaded_is_told(tmp_path: Path, kind: str, place: str):
    message = fails(f"{kind}:{tmp_path}")
    assert str(tmp_path / place) in message and "download=True" in message


DAMAGE = {
    "fewer labels": ("train-labels-idx1-ubyte", struct.pack(">2i", 2049, 3) + bytes(3)),
    "a label too high": ("t10k-labels-idx1-ubyte", struct.pack(">2i", 2049, 4) + bytes([0, 10, 1, 2])),
    "images of another size": ("train-images-idx3-ubyte", struct.pack(">4i", 2051, 4, 14, 56) + bytes(4 * 784)),
    "images in a line": ("train-images-idx3-ubyte", struct.pack(">2i", 2049, 4 * 784) + bytes(4 * 784)),
    "endless images": ("train-images-idx3-ubyte", struct.pack(">4i", 2051, 2**31 - 1, 2**31 - 1, 28)),
    "no images": ("train-images-idx3-ubyte", struct.pack(">4i", 2051, 0, 28, 28)),
    "half a head": ("train-images-idx3-ubyte", b"\0\0\x08"),
    "another format": ("t10k-images-idx3-ubyte", bytes(99)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_fashionmnist_that_is_damaged_is_told(tmp_path: Path, kind: str):
    write_fashion(tmp_path)
    name, content = DAMAGE[kind]
    (tmp_path / "FashionMNIST" / "raw" / name).write_bytes(content)
    assert "FashionMNIST" in fails(f"fashionmnist:{tmp_path}")


def test_fashionmnist_is_not_read_from_a_pickle(tmp_path: Path):
    write_fashion(tmp_path)
    (tmp_path / "FashionMNIST" / "processed").mkdir()
    (tmp_path / "FashionMNIST" / "processed" / "training.pt").touch()
    assert "is a pickle file of torchvision before 2021" in fails(f"fashionmnist:{tmp_path}")


def test_cifar_is_not_unpickled_without_its_checksum(tmp_path: Path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(f"cos\nmkdir\n(S'{tmp_path / 'flag'}'\ntR.".encode())
    assert "are missing or damaged" in fails(f"cifar10:{tmp_path}")
    assert not (tmp_path / "flag").exists()


def test_cifar_in_class_folders_is_an_imagefolder(pets: Path):
    assert f"use imagefolder:{pets}" in fails(f"cifar10:{pets}")


# --- the user's own function -----------------------------------------------------------------------------------------

PROLOGUE = """
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2
images = torch.arange(40 * 3 * 4 * 4).reshape(40, 3, 4, 4).remainder(251).to(torch.uint8)
labels = torch.arange(40) % 4
class Bad(Dataset):
    def __init__(self, item): self.item = item
    def __len__(self): return 3
    def __getitem__(self, index): return self.item
def data():
"""


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch):
    """Importing a user's file adds it to sys.modules and its folder to sys.path; undo both after each test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def write_function(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(PROLOGUE + "    " + body + "\n")
    return f"{folder / 'mine.py'}:data"


@pytest.mark.parametrize(
    "body",
    [
        "return TensorDataset(images, labels), TensorDataset(images[:8], labels[:8])",
        "return {'test': TensorDataset(images[:8], labels[:8]), 'train': TensorDataset(images / 255, labels)}",
        "return [DataLoader(TensorDataset(images[:n], labels[:n])) for n in (40, 8)]",
    ],
    ids=["tuple", "dict", "loaders"],
)
def test_a_function_may_return_data_sets(tmp_path: Path, body: str):
    data = open_data(write_function(tmp_path, body))
    assert data.shape == (3, 4, 4) and data.classes == ["0", "1", "2", "3"]
    assert data.counts == {"train": 36, "held_out": 4, "test": 8}
    assert gather(data, "train")[1].equal(gather(data, "train")[2] % 4)
    images, targets, _ = gather(data, "test")
    assert targets.tolist() == [0, 1, 2, 3] * 2
    assert pixels(data, images)[0].equal(torch.arange(48).reshape(3, 4, 4).to(torch.uint8))


def test_a_function_may_give_a_held_out_part(tmp_path: Path):
    body = "return [TensorDataset(images[:n], labels[:n]) for n in (40, 8, 5)]"
    assert open_data(write_function(tmp_path, body)).counts == {"train": 40, "held_out": 5, "test": 8}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_may_return_pillow_images(tmp_path: Path, pets: Path, workers: int):
    spec = write_function(tmp_path, f"return ImageFolder({str(pets / 'train')!r}), ImageFolder({str(pets / 'test')!r})")
    mine, plain = open_data(spec, memory_limit=0, workers=workers), open_data(str(pets))
    assert mine.classes == ["cat", "dog"]
    assert gather(mine, "test")[0].equal(gather(plain, "test")[0])
    assert mine.counts == plain.counts


def test_a_function_may_return_finished_data(tmp_path: Path):
    spec = write_function(tmp_path, "from compressor.data import open_data; return open_data('digits')")
    assert open_data(spec).spec == spec and open_data(spec, size=8).shape == (1, 8, 8)
    assert "size (16, 16) was requested" in fails(spec, size=16)


def test_a_function_may_import_its_neighbours(tmp_path: Path):
    (tmp_path / "neighbour_of_mine.py").write_text("spec = 'digits'")
    body = "from compressor.data import open_data; import neighbour_of_mine; return open_data(neighbour_of_mine.spec)"
    assert open_data(write_function(tmp_path, body)).shape == (1, 8, 8)


def test_a_function_is_not_given_our_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["compress", "prune", "net.pt"])
    body = "import argparse; argparse.ArgumentParser().parse_args(); from compressor.data import open_data"
    assert open_data(write_function(tmp_path, f"{body}; return open_data('digits')")).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return 1 / 0", "failed (line 13): it is called without arguments.\nZeroDivisionError"),
        ("return 7", "returned int instead of data sets"),
        ("return {'train': [], 'tset': []}", "returned a dict with 'train', 'tset'"),
        ("return {'train': [], 'test': []}", "are empty"),
        ("return iter([]), iter([])", "returned a tuple_iterator")
        if False
        else ("return (x for x in ()), 3", "are a generator"),
        ("return Bad((images[0], 0.5)), Bad((images[0], 0))", "has the label 0.5"),
        ("return Bad((images[0], 0)), Bad((images[0], 3))", "labels from 3 to 3, but the training data have 1 classes"),
        ("return Bad((images[0], -1)), Bad((images[0], 0))", "labels from -1 to -1"),
        ("return Bad((images[0] - 1.0, 0)), Bad((images[0], 0))", "are bytes, but those of the training data are not"),
        ("return Bad((images[:2], 0)), Bad((images[0], 0))", "of shape [2, 3, 4, 4]"),
        ("return Bad(images[0]), Bad((images[0], 0))", "have class numbers, but the training data no labels"),
        ("return Bad(('cat.png', 0)), Bad((images[0], 0))", "has an input of type str"),
    ],
)
def test_a_function_that_fails_is_told(tmp_path: Path, body: str, complaint: str):
    assert complaint in fails(write_function(tmp_path, body))


def test_a_function_that_is_not_there_is_told(tmp_path: Path):
    spec = write_function(tmp_path, "return 7")
    assert "has no function 'dta'; did you mean 'data'?" in fails(spec.replace(":data", ":dta"))
    assert "does not exist; did you mean 'mine.py'?" in fails(spec.replace("mine", "mien"))
    (tmp_path / "mine.py").write_text("import nothing_of_this_name")
    assert "cannot be imported (line 1).\nModuleNotFoundError" in fails(spec)


# --- real photographs ------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_real_photographs_are_read(shared: Path, tmp_path: Path):
    with tarfile.open(shared / "data/cifar10.tar.gz") as archive:
        wanted = (member for member in archive if member.isfile() and int(Path(member.name).stem) < 20)
        archive.extractall(tmp_path, wanted, filter="data")
    data = open_data(f"imagefolder:{tmp_path}")
    assert data.shape == (3, 32, 32) and data.counts == {"train": 180, "held_out": 20, "test": 200}
    images, targets, _ = gather(data, "test")
    assert targets.bincount().tolist() == [20] * 10
    assert abs(float(images.mean())) < 0.3 and 0.8 < float(images.std()) < 1.3
    streamed = open_data(f"imagefolder:{tmp_path}", memory_limit=0)
    assert gather(streamed, "test")[0].equal(images)
