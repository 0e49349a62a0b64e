"""Images that belong together stay in one split, and images without labels are told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data import Data, open_data
from compressor.data.images import ImageFiles
from compressor.data.splits import choose_groups, cut, group, sequences, whole
from compressor.errors import DataError


def images(*places: Path) -> None:
    for i, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(place)


def fails(spec: str, **settings) -> str:
    with pytest.raises(DataError) as caught:
        open_data(spec, **settings)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def names_in(data: Data, split: str) -> list[str]:
    names = data.readers[split].images.names
    return [names[position] for position in data.positions[split].tolist()]


# --- groups ----------------------------------------------------------------------------------------------------------


def test_frames_are_taken_in_blocks_from_every_video():
    names = [f"{video}_{frame:03}.png" for video in ("a", "b") for frame in range(50)]
    for seed in range(5):
        taken = choose_groups(group(names, "frames"), 0.1, seed, "frames")
        for own in taken.view(2, 50):
            first = int(own.int().argmax())
            assert own.nonzero().flatten().tolist() == list(range(first, first + 5))


def test_frames_come_in_the_order_of_their_numbers():
    names = [f"frame{number}.png" for number in (1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20)]
    groups = group(names, "frames").group
    assert groups[names.index("frame9.png")] == groups[names.index("frame10.png")]
    assert groups[names.index("frame1.png")] == groups[names.index("frame2.png")] != groups[names.index("frame10.png")]


def test_captured_texts_are_groups():
    names = ["anna_1.png", "anna_2.png", "ben_1.png", "anna_3.png"]
    assert group(names, r"(.*)_").group.tolist() == [0, 0, 1, 0]
    assert group(names, r"[a-z]+").group.tolist() == [0, 0, 1, 0], "without brackets, the matched text"
    assert group(names, r"(.)n.*_(\d)").group.tolist() == [0, 1, 2, 3]


def test_a_share_of_groups_is_near_the_share_of_images():
    random = np.random.RandomState(0)
    names = [f"person{person}_{i}" for person in range(60) for i in range(random.randint(1, 12))]
    groups = group(names, r"person(\d+)")
    for seed in range(10):
        taken = choose_groups(groups, 0.2, seed, "").numpy()
        assert abs(taken.mean() - 0.2) < 0.02
        assert not set(groups.group[taken]) & set(groups.group[~taken])
    few = group(["a1", "a2", "b1"], "(.)")
    for share in (0.01, 0.5, 1.0):
        assert choose_groups(few, share, 0, "").sum() in (1, 2), "one is taken, and one stays"


def test_groups_are_reproducible():
    part = whole(ImageFiles([f"/x/v{video}/{i}.png" for video in range(20) for i in range(5)], root="/x"))
    one, same, other = (cut(part, 0.2, seed, r"v(\d+)/")[1].positions for seed in (0, 0, 1))
    assert one.equal(same) and not one.equal(other)
    assert one.tolist() == cut(part, 0.2, 0, r"v(\d+)/")[1].positions.sort().values.tolist()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([f"{i:04}.png" for i in range(1, 9)], True),
        ([f"cam_{i}.png" for i in (30, 60, 90, 210, 240, 300)], True),
        (["130026.png", "102061.png", "103070.png", "101085.png", "101087.png"], False),
        (["baby.png", "bird.png", "head.png"], False),
        (["one.png"], False),
        ([f"a{i}/1.png" for i in range(9)], False),
    ],
)
def test_frames_are_recognised(names: list[str], found: bool):
    assert sequences(names) == found


def test_class_folders_can_be_grouped(tmp_path: Path):
    images(*(tmp_path / kind / f"person{person}_{i}.png" for kind in ("cat", "dog") for person in range(10) for i in range(4)))
    data = open_data(str(tmp_path), group=r"person(\d+)_")
    people = {split: {name.split("person")[1].split("_")[0] for name in names_in(data, split)} for split in data.counts}
    assert sum(map(len, people.values())) == 10 and all(people.values())
    assert data.counts["test"] == 16
    plain = open_data(str(tmp_path))
    assert plain.counts == {"train": 58, "held_out": 6, "test": 16} and "frames" not in " ".join(plain.notes)
    frames = open_data(str(tmp_path), group="frames")
    assert {name.split("/")[0] for name in names_in(frames, "held_out")} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("group", "complaint"),
    [
        ("(", "is no regular expression"),
        ("x", "is not found in the name cat/"),
        ("(png)", "has the same text for all 40 images"),
    ],
)
def test_a_group_that_cannot_be_used_is_told(tmp_path: Path, group: str, complaint: str):
    images(*(tmp_path / kind / f"{i}.png" for kind in ("cat", "dog") for i in range(20)))
    assert complaint in fails(str(tmp_path), group=group)


def test_a_group_needs_names():
    assert "needs the names of files" in fails("digits", group="(.*)")


def test_a_group_without_effect_is_told(tmp_path: Path):
    images(*(tmp_path / split / kind / "1.png" for split in ("train", "val", "test") for kind in ("cat", "dog")))
    assert "has no effect" in open_data(str(tmp_path), group="(x)").notes[-1]


# --- images without labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "images:", "imagefolder:"])
def test_a_folder_of_images_has_no_labels(tmp_path: Path, kind: str):
    images(*(tmp_path / f"{name}.png" for name in "abcdefghijklmnopqrst"))
    data = open_data(f"{kind}{tmp_path}")
    assert isinstance(data, Data) and data.kind == "nothing" and data.classes == [] and data.shape == (3, 12, 12)
    assert data.counts == {"train": 14, "held_out": 2, "test": 4}
    assert data.notes[0] == f"{tmp_path}: no labels were found."
    for split in data.counts:
        for batch in data.batches(split, batch_size=5, device="cpu"):
            assert batch.targets is None and batch.inputs.shape[1:] == (3, 12, 12)
    with pytest.raises(DataError, match="has no labels"):
        data.targets("train")
    with pytest.raises(DataError, match="has no labels"):
        data.batches("train", batch_size=4, device="cpu", by_class=2)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_images_without_labels_are_augmented_as_others(tmp_path: Path, memory: int):
    images(*(tmp_path / split / f"{i}.png" for split in ("train", "test") for i in range(4)))
    data = open_data(f"images:{tmp_path}", held_out=0, memory_limit=memory)
    assert data.counts == {"train": 4, "held_out": 0, "test": 4}
    (first,), (later,) = (list(data.batches("train", batch_size=4, device="cpu", epoch=epoch)) for epoch in (0, 1))
    assert not first.inputs[first.indices.argsort()].equal(later.inputs[later.indices.argsort()])


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("cat/1.png", "cat/ with images"),
        ("masks/a.png", "masks/"),
        ("trainannot/a.png", "trainannot/"),
        ("labels/a.txt", "labels/"),
        ("a.txt", "a.txt"),
        ("a.xml", "a.xml"),
        ("_annotations.coco.json", "_annotations.coco.json"),
        ("labels.csv", "labels.csv"),
    ],
)
def test_labels_are_never_ignored_silently(tmp_path: Path, more: str, complaint: str):
    images(*(tmp_path / f"{name}.png" for name in "abcdef"))
    (tmp_path / more).parent.mkdir(exist_ok=True)
    images(tmp_path / more) if more.endswith("png") else (tmp_path / more).touch()
    message = fails(f"images:{tmp_path}")
    assert f"contains {complaint}, which looks like labels" in message or "use segmentation:" in message


def test_other_files_beside_images_are_noted(tmp_path: Path):
    images(*(tmp_path / f"{name}.png" for name in "abcdef"))
    (tmp_path / "readme.txt").touch()
    assert "1 file that is not an image was ignored" in " ".join(open_data(str(tmp_path)).notes)


def test_colors_of_images_with_classes(tmp_path: Path):
    images(*(tmp_path / kind / f"{i}.png" for kind in ("cat", "dog") for i in range(5)))
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    rgb, bgr = (
        next(iter(open_data(str(tmp_path), color=color, **plain).batches("test", batch_size=4, device="cpu")))
        for color in ("rgb", "bgr")
    )
    assert rgb.inputs.flip(1).equal(bgr.inputs)
    grey, white = open_data(str(tmp_path), color="grey"), open_data(str(tmp_path), max_value=255)
    assert grey.shape == (1, 12, 12) and grey.color == "grey"
    values = next(iter(white.batches("test", batch_size=4, device="cpu"))).inputs
    assert values.equal(values.round()) and values.equal((rgb.inputs * 255).round()) and torch.any(values > 1)
