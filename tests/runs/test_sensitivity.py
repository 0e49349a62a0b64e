"""Each group is pruned alone and evaluated, never on test images; the table steers the budget; interrupted runs are resumed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from small import compress, make_net, prune
from torch import Tensor, nn

from compressor import measure_sensitivity
from compressor.channels import Channels, analyse, remove
from compressor.data import open_data
from compressor.errors import UsageError
from compressor.methods.prune.filters import norms
from compressor.methods.widths import by_sensitivity, choose
from compressor.network.outputs import torch_predict
from compressor.report import read_report
from compressor.runs import sensitivity
from compressor.runs.sensitivity_table import Row, Sensitivity, read_curves, read_sensitivity, to_csv
from compressor.tasks.classify import Classify
from compressor.training.goal import Curve, parse_rate

SHAPE = (3, 8, 8)
NET = ("net.pt", "--arch", "net.py:Net")
DIGITS = (*NET, "--data", "digits")


def rows(group: str, *qualities: float, channels: int = 8) -> list[Row]:
    """Accuracies of a group of eight when none, 2, 4, ... of its channels are removed."""
    kept = (channels - 2 * place for place in range(len(qualities)))
    return [
        Row(group, channels, 1 - k / channels, k, "top-1", quality, quality, 0.0, 0.0, 0.0)
        for k, quality in zip(kept, qualities, strict=True)
    ]


# From a table to scores -----------------------------------------------------------------------------------------------


def test_a_curve_is_straight_between_what_was_measured_and_beyond() -> None:
    curve = Curve(8, (0.0, 0.25, 0.5), (0.0, 0.1, 0.3))
    assert curve.at(np.array([0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0])) == pytest.approx([0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7])


def test_a_curve_never_falls_and_loses_no_more_than_everything() -> None:
    curve = Curve(8, (0.0, 0.25, 0.5, 0.75), (0.0, -0.1, 0.6, 0.4))
    assert curve.at(np.array([0.25, 0.5, 0.75, 1.0])) == pytest.approx([0, 0.6, 0.6, 0.6])
    assert Curve(8, (0.0, 0.5), (0.0, 0.9)).at(np.array([1.0])) == pytest.approx([1.0])


def three_groups() -> Channels:
    """Eight channels each, in layers 0, 1 and 2."""
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
    return analyse(nn.Sequential(*layers), SHAPE)


def test_the_least_sensitive_group_is_pruned_first_and_unmeasured_groups_last() -> None:
    channels = three_groups()
    scores = np.random.default_rng(0).random(24)
    curves = {"0": Curve(8, (0.0, 0.5), (0.0, 0.4)), "2": Curve(8, (0.0, 0.5), (0.0, 0.0))}
    steered = by_sensitivity(channels, scores, curves)
    order = np.argsort(steered, kind="stable")
    assert (order // 8).tolist() == [2] * 8 + [0] * 8 + [1] * 8
    assert order[:8].tolist() == (16 + np.argsort(scores[16:])).tolist()
    assert steered[order[8:16]] == pytest.approx(0.1 * np.arange(1, 9), abs=1e-5)


def test_groups_with_equal_losses_are_pruned_in_turn() -> None:
    flat = Curve(8, (0.0, 0.5), (0.0, 0.0))
    order = np.argsort(by_sensitivity(three_groups(), np.arange(24.0), dict.fromkeys("012", flat)), kind="stable")
    assert (order // 8)[:6].tolist() == [0, 1, 2, 0, 1, 2]


def test_the_budget_spares_sensitive_groups() -> None:
    channels = three_groups()
    curves = {
        "0": Curve(8, (0.0, 1.0), (0.0, 1.0)),
        "1": Curve(8, (0.0, 1.0), (0.0, 0.1)),
        "2": Curve(8, (0.0, 1.0), (0.0, 1.0)),
    }
    mask = choose(channels, by_sensitivity(channels, np.ones(24), curves), parse_rate(0.5), round_to=1)
    kept = {name: int(own.sum()) for name, own in channels.split(mask).items()}
    assert kept["1"] <= 3 and min(kept["0"], kept["2"]) >= 7  # whole channels only: one of them may lose one


# The table ------------------------------------------------------------------------------------------------------------


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    other = [Row('b "x", y', 4, rate, kept, "top-1", 1.0, 1.0, 0.0, 0.0, 0.0) for rate, kept in ((0.0, 4), (0.25, 3), (0.3, 3))]
    (tmp_path / "a.csv").write_text(to_csv([*rows("a", 0.9, 0.8, 0.5), *other]))
    found = read_sensitivity(tmp_path / "a.csv")
    assert found.rows == [*rows("a", 0.9, 0.8, 0.5), *other]
    assert found.curves['b "x", y'].rates == (0.0, 0.25)  # of two rates that are one


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",8,", ",0,"),
        lambda text: text.replace("0.9", "nan"),
        lambda text: text.replace("a,8,0.25", "b,8,0.25"),
        lambda text: f"{text}\n{'x' * 200_000},",
        lambda text: f"{text}{'9' * 5000},8",
    ],
)
def test_a_table_that_measures_nothing_is_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    (tmp_path / "a.csv").write_text(change(to_csv(rows("a", 0.9, 0.8, 0.5))))
    with pytest.raises(UsageError, match=r"is not a table of `compress sensitivity`"):
        read_sensitivity(tmp_path / "a.csv")


def test_curves_are_losses_of_the_groups_that_the_model_has(tmp_path: Path) -> None:
    table = [*rows("0", 0.9, 0.8), *rows("1", 0.9, 0.9, channels=4), *rows("another", 0.9, 0.1)]
    (tmp_path / "a.csv").write_text(to_csv(table))
    (curve,) = read_curves(tmp_path / "a.csv", three_groups()).values()  # the model's group 1 is twice as wide
    assert (curve.size, curve.rates, curve.losses) == (8, (0.0, 0.25), pytest.approx((0.0, 0.1)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("a,b\n1,2\n", "is not a table of `compress sensitivity`"),
        (to_csv(rows("a", 0.9))[:-12] + "x\n", "is not a table of `compress sensitivity`"),
        (to_csv(rows("a", 0.9, 0.8)), "has no group of this model: its groups are a, ...\nMeasure this model with"),
        (to_csv([]), "is not a table of `compress sensitivity` (it has no rows)"),
        (
            to_csv([*rows("a", 0.9), replace(rows("b", 0.9)[0], measured="mIoU")]),
            "is not a table of `compress sensitivity` (its qualities are not comparable: mIoU and top-1)",
        ),
    ],
)
def test_a_table_of_another_model_is_an_error(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_curves(tmp_path / "a.csv", three_groups())
    assert words in str(caught.value)


def test_the_most_sensitive_group_comes_first() -> None:
    found = Sensitivity([*rows("a", 0.9, 0.9, 0.8), *rows("b", 0.9, 0.7, 0.1), *rows("c", 0.9, 0.9, 0.9)])
    assert found.ranked == ["b", "a", "c"]


# Measuring ------------------------------------------------------------------------------------------------------------


def test_groups_are_measured_on_held_out_images_as_if_really_cut(project: Path) -> None:
    found = measure_sensitivity("net.pt", arch="net.py:Net", data="digits", rates=(0.5, 0.25), out="out")
    assert [(row.group, row.rate, row.kept) for row in found.rows] == [
        ("stem.0", 0.0, 8), ("stem.0", 0.25, 6), ("stem.0", 0.5, 4), ("conv1", 0.0, 16), ("conv1", 0.25, 12), ("conv1", 0.5, 8),
    ]  # fmt: skip
    data, model = open_data("digits"), make_net()
    model.load_state_dict(torch.load("net.pt"))
    channels = analyse(model, (1, 8, 8))
    scores = channels.split(norms(model, channels, roles=("out", "in")))["conv1"]
    kept = np.ones(16, bool)
    kept[np.argsort(scores)[:8]] = False
    cut = remove(model, channels, lambda channels: channels.join({"conv1": kept}), (1, 8, 8))
    held_out = data.batches("held_out", batch_size=64, device="cpu")
    first, last = found.groups["conv1"][0], found.groups["conv1"][-1]
    for row, network in ((first, model), (last, cut.model)):
        top1 = Classify().measure(torch_predict(network, "cpu"), held_out).headline()
        assert row.measured == "top-1" and row.quality == pytest.approx(top1, abs=1e-6)
    assert (first.agreement, first.distance, first.macs_removed) == (1, 0, 0) and last.distance > 0
    assert last.macs_removed == pytest.approx(
        1 - channels.macs.total(cut.mask) / channels.macs.total(channels.all_kept()), abs=1e-6
    )
    assert read_sensitivity("out/sensitivity.csv") == found


def draw_images() -> None:
    """A folder of images of noise, without labels."""
    Path("images").mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(f"images/{number}.png")


class Idle(nn.Module):
    """[n, 3, 8, 8] -> [n, 4]. Its second layer has no effect on the output, and its norms average over channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.busy, self.idle = nn.Linear(3, 16), nn.Linear(3, 16)
        self.norm, self.head, self.deaf = nn.LayerNorm(16), nn.Linear(16, 4), nn.Linear(16, 4)
        nn.init.zeros_(self.deaf.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).mT  # [n, 64, 3]
        return (self.head(self.norm(self.busy(x))) + self.deaf(self.idle(x))).mean(1)


def test_a_network_that_is_no_classifier_is_compared_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Idle(), "idle.pt")
    draw_images()
    asked = ("sensitivity", "idle.pt", "--trust-pickle", "--data", "images:images", "--images", "3", "--out", "out")
    result = compress(*asked)
    assert result.exit_code == 0, result.output
    assert "measured on 3 held-out images\n" in result.stdout
    assert "Change of agreement with the original in points" in result.stdout
    found = read_sensitivity("out/sensitivity.csv")
    assert found.measured == "agreement with the original" and found.ranked == ["busy", "idle"]
    assert [(row.agreement, row.distance) for row in found.groups["idle"]] == [(1, 0)] * 4
    assert found.groups["busy"][-1].distance > 0


def test_random_inputs_choose_nothing(project: Path) -> None:
    result = compress("sensitivity", *NET, "--input", "1x8x8", "--out", "out")
    assert result.exit_code == 2 and "give --data. A folder of images without labels is enough" in result.stderr


def test_a_table_of_an_older_release_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text(
        "group,channels,rate,kept,accuracy,agreement,kl,macs_removed,params_removed\n"
        "a,8,0.0,8,0.9,1.0,0.0,0.0,0.0\na,8,0.5,4,0.7,0.75,0.3,0.2,0.1\n"
    )
    found = read_sensitivity(tmp_path / "old.csv")
    assert found.measured == "top-1" and found.rows[1] == Row("a", 8, 0.5, 4, "top-1", 0.7, 0.75, 0.3, 0.2, 0.1)
    assert found.curves["a"].losses == pytest.approx((0.0, 0.2))


class Stubborn(nn.Module):
    """[n, 3, 8, 8] -> [n, 4], with a width that its code requires."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.shape[1] != 8:
            raise ValueError("eight channels, please")
        return self.head(self.second(x).mean((2, 3)))


def test_a_group_whose_width_the_code_requires_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Stubborn(), "stubborn.pt")
    draw_images()
    result = compress(
        "sensitivity", "stubborn.pt", "--trust-pickle", "--data", "images:images", "--rates", "0.5", "--out", "out"
    )
    assert result.exit_code == 0, result.output
    assert "first: not pruned, the network's code depends on its width" in result.stdout
    assert [*read_sensitivity("out/sensitivity.csv").groups] == ["second"]


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_leaves_a_table_and_a_plot(project: Path) -> None:
    result = compress("sensitivity", *DIGITS, "--rates", "0.25,0.5", "--images", "50")
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    assert "measured on 50 held-out images" in told and "the most sensitive group first" in told
    assert "group channels 25% pruned 50% pruned MACs removed at 50%" in told
    out = project / "runs" / "net-sensitivity"
    assert sorted(path.name for path in out.iterdir()) == ["config.toml", "sensitivity.csv", "sensitivity.svg"]
    picture = ElementTree.fromstring((out / "sensitivity.svg").read_text())
    assert picture.tag == "{http://www.w3.org/2000/svg}svg" and "prefers-color-scheme: dark" in "".join(picture.itertext())
    as_json = compress("sensitivity", *DIGITS, "--rates", "0.25,0.5", "--images", "50", "--resume", "--json")
    assert [row["group"] for row in json.loads(as_json.stdout)] == ["stem.0"] * 3 + ["conv1"] * 3


def test_an_interrupted_measurement_is_resumed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("sensitivity", *DIGITS, "--rates", "0.5", "--images", "50")
    assert compress(*arguments, "--out", "whole", "-q").exit_code == 0
    real = sensitivity.Bench.rows
    with monkeypatch.context() as patched:

        def interrupted(self: sensitivity.Bench, group: object, *rest: object) -> list[Row]:
            if group.name == "conv1":
                raise KeyboardInterrupt
            return real(self, group, *rest)

        patched.setattr(sensitivity.Bench, "rows", interrupted)
        result = compress(*arguments, "--out", "half")
    assert result.exit_code == 130 and result.stderr == "interrupted: --resume continues after the last finished group\n"
    result = compress(*arguments, "--out", "half")
    assert result.exit_code == 2 and "exists: --resume adds the missing groups" in result.stderr
    result = compress(*arguments, "--seed", "1", "--out", "half", "--resume")
    assert result.exit_code == 2 and "was started with other settings: seed was 0 and is 1" in result.stderr
    result = compress(*arguments, "--out", "half", "--resume")
    assert result.exit_code == 0 and "  conv1, 16 channels: " in result.stdout and "  stem.0, 8 channels: " not in result.stdout
    assert Path("half/sensitivity.csv").read_bytes() == Path("whole/sensitivity.csv").read_bytes()
    assert compress(*arguments, "--seed", "1", "--out", "half", "--force", "-q").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*DIGITS, "--rates", "0,0.5"), "--rates are fractions of a group's channels, between 0 and 1"),
        ((*DIGITS, "--rates", "half"), "--rates 'half' is not a list of numbers"),
        ((*DIGITS, "--method", "sf"), "--method 'sf' is unknown; did you mean 'sfp'?"),
        ((*NET, "--input", "1x8"), "is not a shape"),
    ],
)
def test_wrong_usage_is_an_error(project: Path, arguments: tuple[str, ...], words: str) -> None:
    result = compress("sensitivity", *arguments)
    assert (result.exit_code, result.stdout) == (2, "") and words in result.stderr
    assert not (project / "runs").exists()


# prune --sensitivity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensitive", ["stem.0", "conv1"])
def test_prune_cuts_insensitive_groups_first(project: Path, sensitive: str) -> None:
    table = [
        row
        for name, size in (("stem.0", 8), ("conv1", 16))
        for row in rows(name, 1.0, 0.1 if name == sensitive else 1.0, channels=size)
    ]
    Path("a.csv").write_text(to_csv(table))
    result = prune("--rate", "0.4", "--input", "1x8x8", "--sensitivity", "a.csv", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "sensitivity of 2 of 2 groups from a.csv\n" in result.stdout
    report = read_report(Path("out"))
    left = {layer.name: layer.shape_after[0] / layer.shape[0] for layer in report.layers}
    (other,) = {"stem.0", "conv1"} - {sensitive}
    assert left[sensitive] >= 0.875 and left[other] < 0.7, left
    assert report.settings["sensitivity"] == "a.csv"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "0.4", "--residual", "scatter"), "--sensitivity is measured with --residual coupled"),
        (("--target", "filters=40%"), "prunes every layer alike, without --sensitivity"),
        (("--rate", "0.4"), "no.csv cannot be read"),
    ],
)
def test_options_that_exclude_sensitivity_are_errors(project: Path, arguments: tuple[str, ...], words: str) -> None:
    result = prune(*arguments, "--input", "1x8x8", "--sensitivity", "no.csv", "--out", "out")
    assert result.exit_code == 2 and words in result.stderr
    assert not (project / "out").exists()
