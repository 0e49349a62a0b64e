"""The plots of the page, as SVG that takes its colours from the page.

Matplotlib draws with placeholder colours, which are replaced by CSS variables, so that one drawing works in light and dark mode
and in print. Text stays text (it is searchable and uses the page's font). Every plot includes its data as CSV.
"""

import csv
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from compressor.report import formatting, summary
from compressor.report.comparison import Comparison
from compressor.report.pareto import Axis, Mark, Tradeoff, tradeoffs
from compressor.report.schema import Layer, Report, Score

HALF = (460, 290)  # width and height of a plot that shares its row, in CSS pixels at full size
WHOLE = (1040, 320)

INK, BEFORE, AFTER = "#010101", "#020202", "#030303"
SERIES = ["#040401", "#040402", "#040403", "#040404", "#040405", "#040406"]
_PAGE_COLOURS = {
    INK: "currentColor",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, 1)},
}
_STYLE: dict[Any, Any] = {  # matplotlib's own type lists every key, which changes between versions
    "svg.fonttype": "none",
    "text.usetex": False,
    "text.parse_math": False,  # a `$` in a layer's name is no formula
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: only its widths are used, the page sets the font
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 2,
}
Table = list[Sequence[object]]  # the first row holds the names of the columns
PALE = 0.35  # opacity of a dominated network
MOST_NAMES = 40  # more layers than this are numbered instead


@dataclass(frozen=True)
class Plot:
    """`svg` is an element for an HTML page; `alt` describes the plot in words; `csv` has its data."""

    name: str
    title: str
    alt: str
    svg: str
    csv: str
    wide: bool = False


def plots(report: Report) -> dict[str, list[Plot]]:
    """The plots by section of the page. What was not measured has no plot."""
    with matplotlib.rc_context(_STYLE):
        sections = {
            "overview": [what_is_left(report), stages(report)],
            "training": [losses(report), score_by_epoch(report)],
            "layers": [widths(report), ranks(report), macs(report)],
        }
    return {section: [plot for plot in found if plot] for section, found in sections.items()}


def what_is_left(report: Report) -> Plot:
    """A bar for every cost metric: after over before."""
    rows = [row for row in (*summary.cost_rows(report), *summary.latency_rows(report)) if row.left is not None]
    names = [f"{row.name}, {row.detail}" if row.name == "Latency" else row.name for row in rows]
    left = [100 * (row.left or 0) for row in rows]

    def draw(axes: Axes) -> None:
        places = range(len(rows))
        axes.barh(places, [100] * len(rows), color=BEFORE, alpha=0.35, height=0.62)
        axes.barh(places, left, color=AFTER, height=0.62)
        for place, value in zip(places, left, strict=True):
            axes.text(max(value, 100) + 2, place, f"{value:.0f} %", va="center")
        axes.set_yticks(list(places), [formatting.shorten(name, 34) for name in names])
        axes.set_xlim(0, max(100, *left) * 1.16)
        axes.set_xticks([0, 50, 100], ["0", "50 %", "100 %"])
        axes.set_ylim(max(len(rows), 6) - 0.5, -0.5)  # from the top down; few bars stay slim
        axes.spines["left"].set_visible(False)

    alt = "; ".join(f"{name} {value:.0f} %" for name, value in zip(names, left, strict=True))
    cells = ([row.label, row.before, row.after, row.left] for row in rows)
    table: Table = [["cost", "before", "after", "left"], *cells]
    return _plot("what-is-left", "Cost relative to the original", alt, HALF, draw, table)


def stages(report: Report) -> Plot | None:
    """The headline score at every stage, with its interval."""
    measured = summary.stage_scores(report)
    if not measured:
        return None
    of = measured[-1][1]
    values = [formatting.scaled(score.value, of) for _, score in measured]
    spreads = [_spread(score.value, score.low, score.high, of) for _, score in measured]

    def draw(axes: Axes) -> None:
        places = range(len(measured))
        axes.errorbar(
            places, values, [*zip(*spreads, strict=True)], color=AFTER, marker="o", markersize=6, capsize=4, elinewidth=1.5
        )
        for place, value in zip(places, values, strict=True):
            beside = values[max(place - 1, 0) : place] + values[place + 1 : place + 2]
            in_valley = value < min(beside, default=value) - 0.1 * (max(values) - min(values))
            above_or_below = (0, -18 if in_valley else 10)  # in points; never on the line
            axes.annotate(f"{value:.{of.places}f}", (place, value), above_or_below, textcoords="offset points", ha="center")
        axes.set_xticks(list(places), [formatting.shorten(stage.name, 13) for stage, _ in measured])
        axes.margins(x=0.1, y=0.2)
        axes.set_ylabel(_axis_label(of))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.grid(axis="y", alpha=0.12, color=INK)

    table: Table = [["stage", of.name, "low", "high", "n", "macs", "params", "size_bytes", "seconds"]]
    for stage, score in measured:
        interval = [score.value, score.low, score.high, score.n]
        table.append([stage.name, *interval, stage.macs, stage.params, stage.size_bytes, stage.seconds])
    alt = "; ".join(f"{stage.name} {formatting.score(score)}" for stage, score in measured)
    return _plot("stages", f"{formatting.title(of.label)} at each stage", alt, HALF, draw, table)


def _spread(value: float, low: float | None, high: float | None, of: Score) -> tuple[float, float]:
    """The lengths of an error bar, as matplotlib takes them: never below 0."""
    below, above = (0.0, 0.0) if low is None or high is None else (value - low, high - value)
    return formatting.scaled(max(below, 0.0), of), formatting.scaled(max(above, 0.0), of)


def _axis_label(of: Score) -> str:
    """`top-1, %`, `PSNR, dB`, `cross-entropy`."""
    return f"{of.label}, {of.unit}" if of.unit else of.label


def losses(report: Report) -> Plot | None:
    """Every named term of the loss over the epochs."""
    names = list(dict.fromkeys(name for epoch in report.epochs for name in epoch.losses))
    lines = {name: [(epoch.epoch, epoch.losses[name]) for epoch in report.epochs if name in epoch.losses] for name in names}
    if not names:
        return None
    rows = ([epoch.epoch, epoch.lr, *(epoch.losses.get(name) for name in names)] for epoch in report.epochs)
    table: Table = [["epoch", "lr", *names], *rows]
    alt = "; ".join(f"{name} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in lines.items())
    return _plot("losses", "Training loss", alt, HALF, lambda axes: _draw_lines(axes, lines, "loss"), table)


def score_by_epoch(report: Report) -> Plot | None:
    """The headline score on held-out images over the epochs."""
    scores = [(epoch.epoch, epoch.held_out) for epoch in report.epochs if epoch.held_out]
    if not scores:
        return None
    of = scores[-1][1]
    measured = [(epoch, score) for epoch, score in scores if (score.name, score.unit) == (of.name, of.unit)]
    lines = {"held-out images": [(epoch, formatting.scaled(score.value, of)) for epoch, score in measured]}
    table: Table = [["epoch", f"held_out_{of.name}"], *([epoch, score.value] for epoch, score in measured)]
    alt = f"held-out images from {formatting.score(measured[0][1])} to {formatting.score(of)}"
    title = f"{formatting.title(of.label)} per epoch"
    return _plot("accuracy", title, alt, HALF, lambda axes: _draw_lines(axes, lines, _axis_label(of)), table)


def _draw_lines(axes: Axes, lines: dict[str, list[tuple[int, float]]], label: str) -> None:
    for index, (name, line) in enumerate(lines.items()):
        colour = SERIES[index % len(SERIES)]
        dash = "-" if index < len(SERIES) else "--"
        marker = "o" if len(line) < 3 else ""
        axes.plot(*zip(*line, strict=True), dash, color=colour, marker=marker, label=formatting.shorten(name, 28))
    axes.margins(x=0.02)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(axis="y", alpha=0.12, color=INK)
    axes.legend(loc="best", handlelength=1.4)


def widths(report: Report) -> Plot | None:
    """Output channels of every layer, before and after; None if no number of channels changed."""
    before = [_width(layer.shape) for layer in report.layers]
    after = [_width(layer.shape_after) for layer in report.layers]
    if before == after:
        return None
    return _layer_plot("widths", "Output channels per layer", "output channels", report.layers, before, after)


def ranks(report: Report) -> Plot | None:
    """The rank of every factored layer, and the full rank of its weights."""
    factored = [layer for layer in report.layers if layer.rank is not None]
    if not factored:
        return None
    before = [min(layer.shape[0], math.prod(layer.shape[1:])) for layer in factored]
    return _layer_plot("ranks", "Rank per factored layer", "rank", factored, before, [layer.rank or 0 for layer in factored])


def macs(report: Report) -> Plot | None:
    """MACs of every layer, before and after."""
    before = [layer.macs for layer in report.layers]
    after = [layer.macs_after for layer in report.layers]
    if not report.layers:
        return None
    return _layer_plot("macs", "MACs per layer", "MACs, one image", report.layers, before, after)


def _width(shape: list[int]) -> int:
    return shape[0] if shape else 0


def _layer_plot(name: str, title: str, label: str, layers: list[Layer], before: Sequence[int], after: Sequence[int]) -> Plot:
    def draw(axes: Axes) -> None:
        places = range(len(layers))
        width = 0.74 if len(layers) <= MOST_NAMES else 1.0
        axes.bar(places, before, color=BEFORE, alpha=0.45, width=width, label="before")
        axes.bar(places, after, color=AFTER, width=width, label="after")
        _name_places(axes, [layer.name for layer in layers], "layers in network order; the table below lists their names")
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.count(round(value))))
        axes.grid(axis="y", alpha=0.12, color=INK)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, handlelength=1, borderaxespad=0)

    rows = ([layer.name, layer.kind, *pair] for layer, *pair in zip(layers, before, after, strict=True))
    table: Table = [["layer", "kind", "before", "after"], *rows]
    alt = f"{len(layers)} layers, in total {formatting.count(sum(before))} before and {formatting.count(sum(after))} after"
    return _plot(name, title, alt, WHOLE, draw, table)


def _name_places(axes: Axes, names: Sequence[str], otherwise: str) -> None:
    """Names as ticks at 0, 1, ..., or the axis label `otherwise` if there are too many."""
    if len(names) <= MOST_NAMES:
        axes.set_xticks(
            range(len(names)), [formatting.shorten(name, 26) for name in names], rotation=60, ha="right", rotation_mode="anchor"
        )
        axes.tick_params(axis="x", labelsize=10.5)
    else:
        axes.set_xlabel(otherwise)
    axes.margins(x=0.01)


def by_group(name: str, title: str, label: str, groups: Sequence[str], lines: Mapping[str, Sequence[float]]) -> Plot:
    """One line per entry of `lines`, with a value for each channel group, in network order."""

    def draw(axes: Axes) -> None:
        places = range(len(groups))
        for (line, values), colour in zip(lines.items(), itertools.cycle(SERIES), strict=False):
            axes.plot(places, values, color=colour, marker="o", markersize=4, label=line)
        _name_places(axes, groups, "channel groups in network order; the table lists their names")
        axes.set_ylabel(label)
        axes.grid(axis="y", alpha=0.12, color=INK)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), handlelength=1, borderaxespad=0)

    table: Table = [["group", *lines], *zip(groups, *lines.values(), strict=True)]
    worst = (f"{line}: minimum {min(values):.2f} ({groups[values.index(min(values))]})" for line, values in lines.items())
    with matplotlib.rc_context(_STYLE):
        return _plot(name, title, "; ".join(worst), WHOLE, draw, table)


def accuracy_and_cost(compared: Comparison) -> list[Plot]:
    """For each score and set of test images, one plot: a panel of the score against each cost, with its Pareto front."""
    with matplotlib.rc_context(_STYLE):
        return [_tradeoff(found) for found in tradeoffs(compared)]


def _tradeoff(found: Tradeoff) -> Plot:
    """Panels of one height, three in a row, with a legend to the right."""
    columns = min(len(found.axes), 3)
    rows = math.ceil(len(found.axes) / columns)
    figure = Figure(figsize=(WHOLE[0] / 72, rows * WHOLE[1] / 72), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    styles = _line_styles([mark.line for axis in found.axes for mark in axis.marks if mark.seeds])
    for axes, axis in itertools.zip_longest(panels.flat, found.axes):
        if axis is None:
            axes.set_visible(False)
        else:
            _draw_front(axes, axis, styles)
    of = found.axes[0].marks[0].score.of
    for left in panels[:, 0]:
        left.set_ylabel(_axis_label(of))
    named = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside right center", handlelength=2, fontsize=11)
    table: Table = [["cost", "value", of.name, "low", "high", "n", "line", "asked", "seeds", "pareto_front"]]
    for axis in found.axes:
        for mark in axis.marks:
            spread = [mark.score.mean, mark.score.low, mark.score.high, mark.score.n]
            table.append([axis.cost, mark.cost, *spread, mark.line, mark.asked, mark.seeds, "yes" if mark.front else "no"])
    alt = "; ".join(map(_front_in_words, found.axes))
    return _finished(figure, found.name, found.title, alt, table, wide=True)


def _line_styles(lines: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each line; markers distinguish lines in black-and-white print."""
    styles = itertools.cycle(zip(2 * SERIES, "os^vDPXpdh<>", strict=True))
    return dict(zip(sorted(set(lines)), styles, strict=False))


def _draw_front(axes: Axes, axis: Axis, styles: Mapping[str, tuple[str, str]]) -> None:
    """The front as a step line; dominated networks are pale, and the rows of a method are joined by a thin line."""
    marks = sorted(axis.marks, key=lambda mark: (mark.cost, mark.score.rank))
    best = [mark for mark in marks if mark.front]
    steps = [mark.cost for mark in best], [_height(mark) for mark in best]
    axes.step(*steps, where="post", color=INK, linewidth=1, alpha=0.5, label="Pareto front", zorder=1)
    name = "originals, by number" if any(mark.number for mark in marks) else "the original"
    axes.plot([], [], color=INK, marker="*", markersize=11, linestyle="", label=name)
    for name, (colour, marker) in styles.items():
        own = [mark for mark in marks if mark.line == name]
        axes.plot([mark.cost for mark in own], [_height(mark) for mark in own], color=colour, linewidth=1, alpha=0.3)
        for mark in own:
            _draw_mark(axes, mark, colour, marker)
        axes.plot([], [], color=colour, marker=marker, linestyle="", label=formatting.shorten(name, 34))
    for mark in marks:
        if not mark.seeds:
            place, shade = (mark.cost, _height(mark)), 1 if mark.front else PALE
            axes.plot(*place, color=INK, marker="*", markersize=11, linestyle="", alpha=shade)
            axes.annotate(mark.number, place, (8, 4), textcoords="offset points", alpha=shade)
    axes.set_xlabel(axis.label)
    axes.margins(0.09)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.written(value)))
    axes.grid(alpha=0.12, color=INK)


def _draw_mark(axes: Axes, mark: Mark, colour: str, marker: str) -> None:
    score, shade = mark.score, 1 if mark.front else PALE
    spread = [[length] for length in _spread(score.mean, score.low, score.high, score.of)]
    axes.errorbar([mark.cost], [_height(mark)], spread, color=colour, fmt=marker, capsize=3, elinewidth=1, alpha=shade)


def _height(mark: Mark) -> float:
    return formatting.scaled(mark.score.mean, mark.score.of)


def _front_in_words(axis: Axis) -> str:
    best = sorted((mark for mark in axis.marks if mark.front), key=lambda mark: mark.cost)
    told = (f"{mark.line} {formatting.in_unit(mark.score.mean, mark.score.of)} at {axis.written(mark.cost)}" for mark in best)
    return f"{axis.label.partition(chr(10))[0]}, Pareto front: {', '.join(told)}"


def as_file(plot: Plot) -> str:
    """The plot as a standalone SVG file, in the light or dark mode of the viewer."""
    css = resources.files("compressor.report").joinpath("page.css").read_text(encoding="utf-8")
    colours = css.partition("* {")[0]  # the colour variables, at the top of the file
    text = "text { fill: currentColor; font-family: ui-sans-serif, system-ui, sans-serif; }"
    style = f"<style>{colours}svg {{ background: var(--panel); color: var(--ink); }} {text}</style>"
    return plot.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1)


def _plot(
    name: str,
    title: str,
    alt: str,
    pixels: tuple[int, int],
    draw: Callable[[Axes], None],
    table: Table,
) -> Plot:
    figure = Figure(figsize=(pixels[0] / 72, pixels[1] / 72), layout="constrained")
    draw(figure.subplots())
    return _finished(figure, name, title, alt, table, wide=pixels == WHOLE)


def _finished(figure: Figure, name: str, title: str, alt: str, table: Table, *, wide: bool) -> Plot:
    return Plot(name, title, alt, _svg(figure, name, f"{title}: {alt}"), _csv(table), wide)


def _svg(figure: Figure, name: str, alt: str) -> str:
    """An `<svg>` element without its own size and fonts, with the colours of the page."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))
    root = ElementTree.fromstring(file.getvalue())
    used = set(re.findall(r"#(\w+)", " ".join(" ".join(element.attrib.values()) for element in root.iter())))
    for element in root.iter():
        _adopt(element, used)
    del root.attrib["width"], root.attrib["height"]
    root.attrib.update({"role": "img", "aria-label": alt})
    return ElementTree.tostring(root, encoding="unicode")


def _adopt(element: ElementTree.Element, used: set[str]) -> None:
    """Prepare an element for an HTML page: no namespace, colours and fonts of the page, and no unused ids."""
    element.tag = _local(element.tag)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    if attributes.get("id") not in used:
        attributes.pop("id", None)
    if "style" in attributes:
        style = re.sub(r"font-family: [^;]*;", "", attributes["style"])
        attributes["style"] = re.sub(r"#\w{6}", lambda colour: _PAGE_COLOURS[colour[0]], style)
    element.attrib.clear()
    element.attrib.update(attributes)
    if element.tag == "style":
        element.text = ""  # it would apply to the whole page


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _csv(table: Table) -> str:
    file = io.StringIO()
    csv.writer(file).writerows(table)
    return file.getvalue()
