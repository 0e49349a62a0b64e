"""report.md: the verdict first, short enough for a CI summary, and valid whatever the names of the layers."""

import html
import re
from collections.abc import Callable

import example
import pytest
from markdown_it import MarkdownIt

from compressor.report import Report, to_markdown
from compressor.report.summary import changed_layers

EVERY = [
    example.example,
    example.restoration,
    example.pipeline,
    example.without_data,
    example.bare,
    example.nasty,
    example.deep,
]


def rendered(report: Report) -> str:
    """As HTML."""
    return MarkdownIt("commonmark").enable("table").render(to_markdown(report))


def test_the_verdict_comes_first() -> None:
    report = example.example()
    assert to_markdown(report).startswith(f"## resnet20-half\n\n**{report.verdict}**\n\n")


def test_everything_a_reviewer_asks_for_is_there() -> None:
    text = to_markdown(example.example())
    for line in [
        "Target: 50.0 % of the MACs removed (--rate 0.5), reached 50.3 %.",
        "| MACs, one image | 40.6 M | 20.2 M | -50.3 % |",
        "| Top-1, n = 10,000 | 87.96 % [87.3, 88.6] | 87.10 % [86.4, 87.7] | -0.86 points |",
        "| Latency, batch 1, CPU, 1 thread | 1.93 ms (p90 2.05 ms) | 1.31 ms (p90 1.39 ms) | 1.5x faster |",
        "Agreement with the original: same top-1 prediction 92.31 %, mean KL divergence 0.087 nats (n = 10,000 test images).",
        "In brackets: 95 % confidence interval.",
        "| cut | 20.2 M | 126 k | 31.27 % [30.4, 32.2] | 10,000 | 3 min 32 s | soft filters removed for good |",
        "Training: 30 epochs in 20 min 39 s, 1,090 images per second.",
        "| compact network against its dense equivalent | 2.4e-07 | 1.0e-04 | yes |",
        "- no faster on CUDA at batch 1: 0.98x; the network is too small to fill the GPU",
        "| `conv1` | Conv2d | 16x3x3x3 -> 13x3x3x3 | 442 k -> 359 k | 432 -> 351 |",
    ]:
        assert line in text.splitlines()
    assert example.example().command in text
    assert "torch 2.11.0" in text


def test_two_hundred_layers_stay_under_a_hundred_rows() -> None:
    text = to_markdown(example.deep(200))
    assert sum(line.startswith("|") for line in text.splitlines()) < 100
    assert "The 60 layers with the largest reduction in MACs; `report.html` lists all." in text
    assert "- and 18 more in `report.html`" in text  # warnings
    assert len(text) < 64_000  # the longest comment a pull request takes


def test_the_layers_that_saved_most_are_kept_in_order() -> None:
    report = example.deep(200)
    most = sorted(layer.macs - layer.macs_after for layer in changed_layers(report))[-60:]
    expected = [layer.name for layer in report.layers if layer.macs - layer.macs_after >= most[0]]
    shown = re.findall(r"^\| `(backbone\S+)`", to_markdown(report), re.M)
    assert len(shown) == 60
    assert [name for name in expected if name in shown] == shown


@pytest.mark.parametrize("make", EVERY)
def test_every_row_has_as_many_cells_as_its_header(make: Callable[[], Report]) -> None:
    for table in re.findall(r"<table>.*?</table>", rendered(make()), re.S):
        cells = {len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.S)}
        assert len(cells) == 1


def test_the_users_text_is_shown_as_it_is() -> None:
    page = rendered(example.nasty())
    assert "<script>" not in page
    assert "<em>" not in page
    shown = html.unescape(re.sub(r"<[^>]*>", "", page))
    report = example.nasty()
    assert shown.startswith(example.NASTY)
    # name, model, arch, method, data, target twice, fidelity, warning, frozen twice, command, device, created, versions twice
    once = 16
    assert shown.count(example.NASTY) == once + 2 * len(report.stages) + 2 * len(report.layers)


def test_nothing_measured_is_no_error() -> None:
    text = to_markdown(example.bare())
    assert "scores not measured (no data)" in text
    assert "No checks were run." in text
    assert "### Stages" not in text
