"""report.html: one self-contained page, whatever the names of the layers."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import example
import matplotlib
import pytest

from compressor.report import Report, to_html
from compressor.report.plots import plots

EVERY = [example.example, example.restoration, example.without_data, example.bare, example.nasty, example.deep]
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The elements, ids and text of a page; fails on unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module", params=EVERY, ids=lambda make: make.__name__)
def page(request: pytest.FixtureRequest) -> str:
    return to_html(request.param())


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    loading = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
    for _, attributes in Page(page).elements:
        for name in loading:
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert set(re.findall(r"url\(.", page)) <= {"url(#"}


def test_no_two_elements_share_an_identity(page: str) -> None:
    identities = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_only_our_own_script_is_in_the_page(page: str) -> None:
    assert [tag for tag, _ in Page(page).elements].count("script") == 1
    assert "<script>alert" not in page


def test_the_users_text_is_shown_as_it_is() -> None:
    report = example.nasty()
    text = Page(to_html(report)).text
    assert all(f"{index}{example.NASTY}" in text for index in range(len(report.layers)))
    assert text.count(example.NASTY) >= 2 * len(report.stages) + 3 * len(report.layers) + 16
    assert "{{ 7*7 }}" in text
    assert "49 }}" not in text


def test_the_first_screen_tells_the_result() -> None:
    text = " ".join(Page(to_html(example.example())).text.split())
    first = text[: text.index("Before and after")]
    for words in ["checks passed", "40.6 M → 20.2 M −50.3 %", "268 k → 126 k", "87.96 % → 87.10 % −0.86 points", "1.5× faster"]:
        assert words in first
    assert "95 % interval [86.4, 87.7]" in first


def test_scores_of_any_task_are_shown_and_plotted_in_their_unit() -> None:
    report = example.restoration()
    text = " ".join(Page(to_html(report)).text.split())
    for words in ["28.72 dB → 28.41 dB −0.31 dB", "95 % interval [28.2, 28.6]", "[−0.36, −0.26]", "SSIM"]:
        assert words in text
    drawn = {plot.name: plot for found in plots(report).values() for plot in found}
    assert (drawn["stages"].title, drawn["accuracy"].title) == ("PSNR at each stage", "PSNR per epoch")
    assert drawn["stages"].alt == "original 28.72 dB; cut 9.20 dB; ONNX 28.41 dB"
    assert "PSNR, dB" in [element.text for element in ElementTree.fromstring(drawn["stages"].svg).iter("text")]
    assert drawn["stages"].csv.splitlines()[1] == f"original,28.72,{28.72 - 0.2},{28.72 + 0.2},100,40551040,268346,,0.0"
    assert drawn["accuracy"].csv.splitlines()[:2] == ["epoch,held_out_psnr", "1,20.25"]


def test_steps_with_files_of_their_own_have_sizes_and_times() -> None:
    text = Page(to_html(replace(example.pipeline(), layers=[], epochs=[]))).text
    stages = text[text.index("Stages") : text.index("Not compressed")]
    assert all(words in stages for words in ("ONNX file", "160 kB", "0.740 ms (2.6x)", "measured interleaved"))


def test_a_failed_check_shows_red() -> None:
    report = example.example()
    failed = replace(report, verification=replace(report.verification, masked=1.0))
    assert '<span class="pill bad">CHECKS FAILED</span>' in to_html(failed)


def test_without_data_the_page_says_so() -> None:
    text = Page(to_html(example.without_data())).text
    assert "scores not measured (no data)" in text
    assert "without data" in text
    assert "Training" not in text


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (example.example, ["what-is-left", "stages", "losses", "accuracy", "widths", "macs"]),
        (example.without_data, ["what-is-left", "widths", "macs"]),
        (example.bare, ["what-is-left"]),
    ],
)
def test_what_was_not_measured_has_no_plot(make: Callable[[], Report], names: list[str]) -> None:
    assert [plot.name for found in plots(make()).values() for plot in found] == names


def test_a_single_epoch_without_accuracy_is_a_plot() -> None:
    report = example.example()
    epoch = replace(report.epochs[0], held_out=None)
    assert [plot.name for plot in plots(replace(report, epochs=[epoch]))["training"]] == ["losses"]


def test_unchanged_widths_have_no_plot() -> None:
    report = example.example()
    layers = [replace(layer, shape_after=layer.shape) for layer in report.layers]
    assert [plot.name for plot in plots(replace(report, layers=layers))["layers"]] == ["macs"]


def test_a_layer_that_is_gone_or_new_is_no_error() -> None:
    report = example.example()
    gone = replace(report.layers[0], shape_after=[], macs_after=0, params_after=0)
    new = replace(report.layers[1], shape=[], macs=0, params=0)
    to_html(replace(report, layers=[gone, new]))


def test_plots_take_their_colours_from_the_page() -> None:
    for found in plots(example.example()).values():
        for plot in found:
            root = ElementTree.fromstring(plot.svg)
            styles = " ".join(element.get("style", "") for element in root.iter())
            assert not re.search(r"(fill|stroke): #", styles)
            assert "currentColor" in styles
            assert root.get("aria-label") == f"{plot.title}: {plot.alt}"
            assert root.get("width") is None


def test_text_in_plots_is_text_and_no_formula() -> None:
    report = example.example()
    layers = [replace(layer, name=f"$x_{i}$ 层") for i, layer in enumerate(report.layers)]
    svg = plots(replace(report, layers=layers))["layers"][0].svg
    assert "$x_0$ 层" in [element.text for element in ElementTree.fromstring(svg).iter("text")]


def test_csv_holds_the_figures_of_the_plot() -> None:
    page = Page(to_html(example.example()))
    links = {a["download"]: a["href"] for tag, a in page.elements if tag == "a"}
    assert links.keys() == {f"{name}.csv" for name in ["what-is-left", "stages", "losses", "accuracy", "widths", "macs"]}
    text = unquote(links["widths.csv"].removeprefix("data:text/csv;charset=utf-8,"))
    table = list(csv.reader(io.StringIO(text)))
    assert table[:2] == [["layer", "kind", "before", "after"], ["conv1", "Conv2d", "16", "13"]]
    assert len(table) == 1 + len(example.example().layers)


def test_the_same_report_makes_the_same_page_and_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    assert to_html(example.example()) == to_html(example.example())
    assert dict(matplotlib.rcParams) == before
