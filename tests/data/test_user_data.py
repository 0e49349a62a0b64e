"""A user's own data sets and loaders: what they return is recognised, and used as it is where it must be."""

import sys
from pathlib import Path

import pytest
import torch

from compressor.data import IGNORED, Batch, Data, open_data
from compressor.data.loaders import Apart, LoadedData
from compressor.data.paired import PairedData
from compressor.data.preparation import ForImages, ForMasks
from compressor.errors import DataError

# Python 3.12 and 3.13 warn of what torch's loader does by default: to fork a process that has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

PROLOGUE = """
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler
from torchvision import tv_tensors
from torchvision.transforms import v2

floats = torch.randn(20, 3, 6, 8, generator=torch.Generator().manual_seed(0)) * 3
images = torch.arange(20 * 3 * 6 * 8).reshape(20, 3, 6, 8).remainder(251).to(torch.uint8)
masks = torch.arange(20 * 6 * 8).reshape(20, 6, 8) % 4
labels = torch.arange(20) % 4

class Set(Dataset):
    "Item number i is function(i)."
    def __init__(self, function, n=20, classes=None):
        self.function, self.n = function, n
        if classes: self.classes = classes
    def __len__(self): return self.n
    def __getitem__(self, i):
        if i >= self.n: raise IndexError(i)
        return self.function(i)

class Stream(IterableDataset):
    def __init__(self, function, n=20): self.function, self.n = function, n
    def __iter__(self): return (self.function(i) for i in range(self.n))

class Long(Stream):
    def __len__(self): return self.n

def both(function): return Set(function), Set(function, 6)

"""


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch):
    """Importing a user's file adds it to sys.modules and its folder to sys.path; undo both after each test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two files of one size in one second have the same cache


@pytest.fixture
def opened(tmp_path: Path):
    """Data from a function with this body."""

    def open_it(body: str, **settings) -> Data:
        (tmp_path / "mine.py").write_text(f"{PROLOGUE}def data():\n    {body}\n")
        sys.modules.pop("mine", None)
        return open_data(f"{tmp_path / 'mine.py'}:data", **settings)

    return open_it


def read(data: Data, split: str, batch_size: int = 4, **settings) -> list[Batch]:
    return list(data.batches(split, batch_size=batch_size, device="cpu", **settings))


def inputs_of(data: Data, split: str, **settings) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in read(data, split, **settings)])


def own(name: str) -> dict:
    """The tensors of the prologue."""
    space: dict = {}
    exec(PROLOGUE, space)
    return space[name]


@pytest.mark.parametrize(
    ("item", "kind", "form"),
    [
        ("(floats[i], int(labels[i]))", "classes", PairedData),
        ("(floats[i], labels[i].numpy())", "classes", PairedData),
        ("(floats[i].numpy(), masks[i])", "masks", PairedData),
        ("(floats[i], masks[i][None])", "masks", PairedData),
        ("(floats[i], tv_tensors.Mask(masks[i].byte()[None]))", "masks", PairedData),
        ("(floats[i], masks[i] > 1)", "masks", PairedData),
        ("(floats[i], floats[i])", "images", PairedData),
        ("(floats[i], floats[i, :1, :2, :2].numpy().astype(np.float64))", "images", PairedData),
        ("floats[i]", "nothing", PairedData),
        ("(floats[i],)", "nothing", PairedData),
        ("(floats[i], None)", "nothing", PairedData),
        ("((floats[i], floats[i, 0]), None)", "nothing", PairedData),
        ("(floats[i], floats[i, 0], floats[i, 0, 0])", "nothing", PairedData),
        ("{'pixels': floats[i], 'ids': labels[:3]}", "nothing", PairedData),
        ("(floats[i, 0, 0], 3)", "classes", PairedData),
        (
            "(Image.fromarray(images[i].permute(1, 2, 0).numpy()), Image.fromarray(masks[i].byte().numpy()))",
            "masks",
            PairedData,
        ),
        ("(images[i].permute(1, 2, 0).numpy(), masks[i].numpy())", "masks", PairedData),
        ("(images[i], images[i])", "images", PairedData),
    ],
)
def test_the_kind_of_targets_is_recognised(opened, item: str, kind: str, form: type):
    data = opened(f"return both(lambda i: {item})")
    assert isinstance(data, form) and isinstance(data, Data) and data.kind == kind and data.indexed
    assert data.counts == {"train": 18, "held_out": 2, "test": 6}
    for split in data.counts:
        for batch in read(data, split):
            assert (batch.targets is None) == (kind == "nothing")
            if kind in ("masks", "classes"):
                assert batch.targets.dtype == torch.int64 and batch.targets.ndim == {"masks": 3, "classes": 1}[kind]
            if kind == "images":
                assert batch.targets.dtype == torch.float32 and batch.targets.ndim == 4


def test_floats_are_given_as_they_are(opened):
    data = opened("return both(lambda i: (floats[i], floats[i] * 2))")
    floats = own("floats")
    assert data.mean == (0, 0, 0) and data.std == (1, 1, 1) and data.shape == (3, 6, 8)
    for split in data.counts:
        for batch in read(data, split):
            assert batch.inputs.equal(floats[batch.indices]) and batch.targets.equal(floats[batch.indices] * 2)
    first, later = (torch.cat([batch.indices for batch in read(data, "train", epoch=epoch)]) for epoch in (0, 1))
    assert not first.equal(later) and first.sort().values.equal(later.sort().values)


def test_several_inputs_stay_several(opened):
    floats = own("floats")
    pair = read(opened("return both(lambda i: ((floats[i], floats[i, 0].half()), None))"), "test")[0].inputs
    assert isinstance(pair, tuple) and pair[0].equal(floats[:4]) and pair[1].dtype == torch.float32
    named = read(opened("return both(lambda i: {'pixels': floats[i], 'ids': labels[:3]})"), "test")[0].inputs
    assert named["pixels"].equal(floats[:4]) and named["ids"].dtype == torch.int64 and named["ids"].shape == (4, 3)


def test_class_numbers_of_floats_are_still_numbers(opened):
    data = opened("return both(lambda i: (floats[i], int(labels[i])))")
    assert data.classes == ["0", "1", "2", "3"]
    indices, targets = data.targets("train")
    assert targets.equal(indices % 4)
    for batch in read(data, "train", by_class=2, batch_size=6):
        assert batch.targets[::2].equal(batch.targets[1::2])
    assert opened(
        "return Set(lambda i: (floats[i], int(labels[i])), classes='abcd'), Set(lambda i: (floats[i], 0))"
    ).classes == [*"abcd"]


def test_images_of_bytes_and_masks_are_prepared_as_those_of_files(opened):
    data = opened("return both(lambda i: (images[i], masks[i]))", mean=(0, 0, 0), std=(1, 1, 1), pad_to=16, color="bgr", crop=4)
    assert isinstance(data.preparation, ForMasks) and data.classes == [*"0123"] and data.shape == (3, 16, 16)
    batch = read(data, "test")[0]
    assert (batch.inputs[:, :, :6, :8] * 255).round().to(torch.uint8).equal(own("images")[:4].flip(1))
    assert batch.targets[:, :6, :8].equal(own("masks")[:4]) and (batch.targets[:, 6:] == IGNORED).all()
    assert read(data, "train")[0].inputs.shape[2:] == (4, 4)


def test_pairs_of_bytes_are_prepared_as_those_of_files(opened):
    data = opened("return both(lambda i: (images[i, :, ::2, ::2], images[i]))", crop=2)
    assert isinstance(data.preparation, ForImages) and data.preparation.ratio == 2 and data.mean == (0, 0, 0)
    assert read(data, "test")[0].targets.equal(own("images")[:4] / 255)
    batch = read(data, "train")[0]
    assert batch.inputs.shape[2:] == (2, 2) and batch.targets.shape[2:] == (4, 4)


def test_bytes_with_floats_are_normalised_alone(opened):
    data = opened("return both(lambda i: (images[i], floats[i, :1]))", max_value=255)
    batch = read(data, "test")[0]
    assert batch.inputs.equal(own("images")[:4].float()) and batch.targets.equal(own("floats")[:4, :1])


def test_masks_may_have_pixels_of_no_class(opened):
    data = opened("return both(lambda i: (floats[i], torch.tensor([[0, 255, -100, 2]])))")
    assert data.classes == ["0", "1", "2"] and read(data, "test")[0].targets[0].tolist() == [[0, IGNORED, IGNORED, 2]]
    named = "classes=['a', 'b']"
    with pytest.raises(DataError, match="mask with the number 2, but there are 2 classes"):
        read(opened(f"function = lambda i: (floats[i], masks[i]); return Set(function, {named}), Set(function)"), "test")


def test_images_alone_are_like_a_folder_of_images(opened):
    data = opened("return both(lambda i: images[i])", size=4)
    assert data.kind == "nothing" and data.shape == (3, 4, 4) and data.notes == ["No labels were found."]
    assert read(data, "test")[0].inputs.shape == (4, 3, 4, 4)


def test_samples_of_several_sizes_are_measured_apart(opened):
    data = opened("return both(lambda i: (floats[i, :, : 4 + i // 2], floats[i]))")
    assert [batch.size for batch in read(data, "test")] == [2, 2, 2]
    with pytest.raises(DataError, match="cannot share a batch: return inputs and targets of one shape"):
        read(data, "train")


# --- random transforms -----------------------------------------------------------------------------------------------

RANDOM = {
    "torch": "floats[i] + torch.rand(())",
    "numpy": "floats[i] + np.random.rand()",
    "python": "floats[i] + random.random()",
}


@pytest.mark.parametrize("source", RANDOM)
@pytest.mark.parametrize("target", ["int(labels[i])", "masks[i]", "None"])
def test_random_transforms_are_used_and_repeated(opened, source: str, target: str):
    body = f"return both(lambda i: ({RANDOM[source]}, {target}))"
    data, again = opened(body), opened(body)
    assert any("random transforms, which are used" in note for note in data.notes)
    assert not any("not repeated exactly" in note for note in data.notes)
    assert inputs_of(data, "train", epoch=1).equal(inputs_of(again, "train", epoch=1))
    one, other = (
        {int(i): x for batch in read(data, "train", epoch=epoch) for i, x in zip(batch.indices, batch.inputs, strict=True)}
        for epoch in (0, 1)
    )
    assert not any(one[i].equal(other[i]) for i in one)
    assert inputs_of(data, "test").equal(inputs_of(data, "test", epoch=4)), "measured on the same images each time"


def test_random_bytes_are_not_augmented_again(opened):
    body = "return both(lambda i: (images[i].flip(2) if torch.rand(()) < 0.5 else images[i], int(labels[i])))"
    data = opened(body, mean=(0, 0, 0), std=(1, 1, 1))
    images, flipped = own("images"), own("images").flip(3)
    for batch in read(data, "train"):
        for image, index in zip((batch.inputs * 255).round().to(torch.uint8), batch.indices, strict=True):
            assert image.equal(images[index]) or image.equal(flipped[index])


def test_what_cannot_be_repeated_is_told(opened):
    data = opened("generator = np.random.default_rng(0); return both(lambda i: (floats[i] + generator.random(), masks[i]))")
    assert "A run that is resumed is not repeated exactly." in data.notes[-1]


def test_the_global_random_numbers_are_left_alone(opened):
    data = opened(f"return both(lambda i: ({RANDOM['numpy']}, None))")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    read(data, "train")
    assert torch.get_rng_state().equal(state)


# --- loaders and streams ---------------------------------------------------------------------------------------------

COLLATE = "lambda rows: (torch.stack([x for x, _ in rows]) + 1, torch.stack([y for _, y in rows]))"


def test_a_loader_with_a_collate_function_is_used_as_it_is(opened):
    data = opened(
        f"function = lambda i: (floats[i], masks[i]); c = {COLLATE}\n"
        "    return {'train': DataLoader(Set(function), 8, shuffle=True, collate_fn=c), 'test': DataLoader(Set(function), 8, "
        "collate_fn=c), 'classes': 'abcd'}"
    )
    assert isinstance(data, LoadedData) and isinstance(data, Data) and not data.indexed and data.kind == "masks"
    assert data.classes == [*"abcd"] and data.counts == {"train": 20, "held_out": 0, "test": 20} and data.shape == (3, 6, 8)
    assert "are used as they are" in data.notes[0] and "no held-out images" in data.notes[1]
    batches = data.batches("test", batch_size=3, device="cpu")
    assert [len(positions) for positions in batches.plan] == [batch.size for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.inputs for batch in batches]).equal(own("floats") + 1)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(20))
    first, again, other = (inputs_of(data, "train", epoch=epoch) for epoch in (0, 0, 1))
    assert first.equal(again) and not first.equal(other), "shuffled for each epoch"
    assert read(data, "held_out") == []


@pytest.mark.parametrize(
    "loader",
    [
        "DataLoader(Set(function), 8)",
        "DataLoader(Set(function), 8, shuffle=True, num_workers=1)",
    ],
)
def test_of_a_plain_loader_the_data_set_is_used(opened, loader: str):
    data = opened(f"function = lambda i: (floats[i], masks[i]); return {loader}, Set(function, 6)")
    assert isinstance(data, PairedData) and data.counts == {"train": 18, "held_out": 2, "test": 6}


@pytest.mark.parametrize(
    "loader",
    [
        "DataLoader(Set(function), 8, sampler=WeightedRandomSampler([1.0] * 20, 12))",
        "DataLoader(Set(function), batch_sampler=[[0, 1, 2], [5, 6, 7], [8], [9, 10, 11, 12, 13]])",
        "DataLoader(Long(function, 12), 5)",
        "Long(function, 12)",
    ],
)
def test_loaders_know_the_sizes_of_their_batches(opened, loader: str):
    data = opened(
        f"function = lambda i: (floats[i], masks[i]); return {{'train': {loader}, 'test': Set(function, 6), 'classes': 'abcd'}}"
    )
    batches = data.batches("train", batch_size=5, device="cpu")
    sizes = [batch.size for batch in batches]
    assert [len(positions) for positions in batches.plan] == sizes and sum(sizes) == 12 and len(batches) == len(sizes)
    part = batches.with_plan([positions[1:2] for positions in batches.plan])
    for one, own_part in zip(batches, part, strict=True):
        assert own_part.indices.equal(one.indices[1:2]) and own_part.inputs.equal(one.inputs[1:2])
    limited = data.batches("train", batch_size=5, device="cpu", limit=7)
    assert sum(batch.size for batch in limited) == sum(len(positions) for positions in limited.plan) == 7
    assert len(limited) == len(list(limited))


def test_a_stream_without_length_can_be_iterated(opened):
    data = opened("function = lambda i: floats[i]; return Stream(function), Stream(function, 6)")
    assert data.kind == "nothing" and data.counts == {"train": 0, "held_out": 0, "test": 0}
    batches = data.batches("test", batch_size=4, device="cpu")
    assert torch.cat([batch.inputs for batch in batches]).equal(own("floats")[:6]) and [batch.size for batch in batches] == [
        4,
        2,
    ]
    with pytest.raises(DataError, match="stream of unknown length"):
        len(batches)
    assert len(list(batches)) == 2
    limited = data.batches("train", batch_size=4, device="cpu", limit=9)
    assert [batch.size for batch in limited] == [len(positions) for positions in limited.plan] == [4, 4, 1]


def test_random_numbers_of_a_loader_are_apart_from_those_of_the_training(opened):
    body = (
        "function = lambda i: floats[i] + torch.rand(())\n"
        "    return DataLoader(Set(function), 8, shuffle=True, collate_fn=torch.stack), Set(function, 6)"
    )
    data, again = opened(body), opened(body)
    undisturbed = [batch.inputs for batch in data.batches("train", batch_size=8, device="cpu", epoch=2)]
    disturbed = []
    for batch in again.batches("train", batch_size=8, device="cpu", epoch=2):
        torch.rand(7)
        disturbed.append(batch.inputs)
    assert all(map(torch.equal, undisturbed, disturbed))


def test_blocks_of_random_numbers_continue():
    torch.manual_seed(1)
    wanted = torch.rand(4)
    apart, found = Apart(1), []
    for _ in range(4):
        torch.manual_seed(9)
        with apart:
            found.append(torch.rand(()))
        assert torch.initial_seed() == 9
    assert torch.stack(found).equal(wanted)


@pytest.mark.parametrize("change", [{"views": 2}, {"by_class": 2}, {"cutout": 0.5}], ids=str)
def test_what_loaders_cannot_do_is_told(opened, change: dict):
    data = opened("return Stream(lambda i: floats[i]), Stream(lambda i: floats[i])")
    with pytest.raises(DataError, match="cannot be used"):
        data.batches("train", batch_size=4, device="cpu", **change)
    with pytest.raises(DataError, match="do not tell them"):
        data.targets("train")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return both(lambda i: (floats[i], 0.5))", "has the label 0.5: supported are class numbers, masks"),
        ("return both(lambda i: (floats[i], torch.tensor(0.5)))", "target of float32 of shape []: supported are class numbers"),
        ("return both(lambda i: (floats[i], torch.zeros(4)))", "target of float32 of shape [4]"),
        ("return both(lambda i: (floats[i], torch.zeros(4, dtype=torch.int64)))", "target of int64 of shape [4]"),
        ("return both(lambda i: (floats[i], {'boxes': floats[i]}))", "supported are class numbers"),
        ("return both(lambda i: {'pixels': floats[i], 'labels': 3})", "with 'labels', which looks like a label"),
        ("return both(lambda i: 'cat.png')", "has an input of type str"),
        ("return both(lambda i: (floats[i], masks[i] if i < 15 else 3))", "another kind of target than image 0"),
        (
            "return both(lambda i: (floats[i], masks[i]) if i < 15 else 1 / 0)",
            "cannot be read: fix the data set.\nZeroDivisionError",
        ),
        (
            "return Set(lambda i: (floats[i], masks[i])), Set(lambda i: (floats[i], 3))",
            "have class numbers, but the training data masks",
        ),
        (
            "return Set(lambda i: (images[i], 1)), Set(lambda i: (floats[i], 1))",
            "are not bytes, but those of the training data are",
        ),
        ("return both(lambda i: (images[i], masks[i, 1:]))", "is 8x6 pixels, but its mask 8x5"),
        (
            "return both(lambda i: (images[i, :1], Image.fromarray(images[i, 0].numpy())))",
            "has a grey target, a mask or an image",
        ),
        ("return both(lambda i: (images[i, :2], 1))", "an input of bytes of shape [2, 6, 8]"),
        ("return Stream(lambda i: (floats[i], 1)), Stream(lambda i: (floats[i], 1))", "do not tell their classes"),
        ("return Stream(lambda i: floats[i], 0), Stream(lambda i: floats[i])", "are empty"),
        (
            "return Stream(lambda i: floats[i]), Stream(lambda i: (floats[i], masks[i]))",
            "have masks, but the training data no labels",
        ),
        (
            "return Stream(lambda i: floats[i] if i < 9 else 1 / 0), Stream(lambda i: floats[i])",
            "cannot be read: fix its data set",
        ),
        (
            "return {'train': Stream(lambda i: (floats[i], 7)), 'test': Stream(lambda i: (floats[i], i if i else masks[0])), "
            "'classes': 'ab'}",
            "have masks, but the training data class numbers",
        ),
        (
            "return DataLoader(Set(lambda i: floats[i]), 4, collate_fn=lambda rows: rows[9]), Set(lambda i: floats[i])",
            "IndexError",
        ),
    ],
)
def test_what_cannot_be_used_is_told(opened, body: str, complaint: str):
    with pytest.raises(DataError) as caught:
        data = opened(body)
        for split in ("train", "held_out", "test"):
            read(data, split)
    message = str(caught.value)
    assert complaint in message and message.count("\n") <= 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mean": (0.5,) * 3}, "which the network is given as they are"),
        ({"color": "bgr"}, "omit the mean"),
        ({"max_value": 255}, "omit the mean"),
        ({"size": 4}, "omit the size"),
        ({"crop": 4}, "omit the size"),
        ({"pad_to": 4}, "omit the size"),
        ({"tile": 4}, "omit the size"),
        ({"fit": "letterbox", "size": (4, 4)}, "omit the size"),
        ({"group": "(.)"}, "group"),
    ],
    ids=str,
)
def test_settings_for_images_are_not_for_floats(opened, settings: dict, complaint: str):
    for body in ("return both(lambda i: floats[i])", "return Stream(lambda i: floats[i]), Stream(lambda i: floats[i])"):
        with pytest.raises(DataError, match=complaint):
            opened(body, **settings)
