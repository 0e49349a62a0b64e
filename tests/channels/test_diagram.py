"""The graph shows every group, every layer between them, and frozen channels."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.channels import analyse
from compressor.channels.diagram import FORMATS, Drawing, brief, copies, draw, readers, shares
from compressor.channels.groups import Residual

SHAPE = (3, 8, 8)


def drawn(model: nn.Module, residual: Residual = "coupled") -> tuple[Drawing, set[tuple[str, str, str]]]:
    """The graph, and its edges as (names or reason of the source, layers, names or reason of the target)."""
    drawing = draw(analyse(model, SHAPE, residual))
    names = [brief(node.names) or node.lines[-1] for node in drawing.nodes]
    return drawing, {(names[edge.source], brief(edge.layers), names[edge.target]) for edge in drawing.edges}


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


class Stage(nn.Module):
    """[n, 3, 8, 8] -> [n, 5]: a stem and `depth` identical blocks on one residual stream."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.up = nn.ModuleList(conv(8, 16) for _ in range(depth))
        self.down = nn.ModuleList(conv(16, 8) for _ in range(depth))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.relu(up(x)))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Every layer consumes the outputs of all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 4), conv(4, 6), conv(10, 8), conv(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.c(torch.cat([a, b], 1))
        return self.d(torch.cat([a, b, c], 1))


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("", ""),
        ("fc", "fc"),
        ("fc fc", "fc"),
        ("conv1 conv2", "conv{1,2}"),
        ("layer1.0.conv1 layer1.1.conv1 layer1.2.conv1", "layer1.{0-2}.conv1"),
        ("layer1.0.conv layer1.2.conv", "layer1.{0,2}.conv"),
        ("a.0.x a.1.x a.2.x a.4.x", "a.{0,1,2,4}.x"),
        ("a.01.x a.02.x a.03.x", "a.{01,02,03}.x"),
        ("l1.0.c l1.1.c l2.0.c l2.1.c", "l{1,2}.{0,1}.c"),
        ("l1.0.c l1.1.c l2.0.c l2.1.c l2.2.c", "l1.{0,1}.c, l2.{0-2}.c"),
        ("stem up.0 up.1 down.0", "stem, up.{0,1}, down.0"),
    ],
)
def test_names_are_shortened_to_patterns_that_stand_for_just_them(names: str, text: str) -> None:
    assert brief(names.split()) == text


def test_the_rest_of_many_names_is_counted() -> None:
    assert brief(["a.0", "a.1", "b", "c", "d"], 2) == "a.{0,1}, b and 2 more"


# Nodes and edges ------------------------------------------------------------------------------------------------------


def test_layers_lead_from_what_they_read_to_what_they_make() -> None:
    drawing, edges = drawn(nn.Sequential(conv(3, 8), conv(8, 4), conv(4, 2)))
    assert edges == {("input", "0", "0"), ("0", "1", "1"), ("1", "2", "it is an output of the model")}
    assert [(node.kind, node.label) for node in drawing.nodes] == [
        ("group", ["0", "8 channels", "87.5% of the MACs"]),
        ("group", ["1", "4 channels", "62.5% of the MACs"]),
        ("stays", ["2 frozen channels", "it is an output of the model"]),
        ("outside", ["input"]),
    ]


def test_equal_blocks_of_a_stage_are_drawn_as_one() -> None:
    drawing, edges = drawn(Stage(3))
    assert edges == {
        ("input", "stem", "stem"),
        ("stem", "up.{0-2}", "up.{0-2}"),
        ("up.{0-2}", "down.{0-2}", "stem"),
        ("stem", "head", "it is an output of the model"),
    }
    blocks = next(node for node in drawing.nodes if len(node.names) > 1)
    assert blocks.label[:2] == ["up.{0-2}", "3 groups, each 16 channels"]


def test_what_differs_in_width_or_in_what_it_is_coupled_with_is_drawn_apart() -> None:
    uneven = Stage(3)
    uneven.up[1], uneven.down[1] = conv(8, 12), conv(12, 8)
    assert {("stem", "up.{0,2}", "up.{0,2}"), ("stem", "up.1", "up.1")} <= drawn(uneven)[1]
    chain = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8), conv(8, 2))
    assert len(drawn(chain)[0].nodes) == 6


def test_depthwise_layers_are_noted_with_their_channels() -> None:
    drawing, edges = drawn(nn.Sequential(conv(3, 8), conv(8, 8, groups=8), conv(8, 4), conv(4, 2)))
    assert drawing.nodes[0].label[-1] == "depthwise: 1"
    assert {("input", "0", "0"), ("0", "2", "2")} < edges


def test_concatenated_groups_are_joined_step_by_step() -> None:
    drawing, edges = drawn(Dense())
    joined = [index for index, node in enumerate(drawing.nodes) if node.kind == "joined"]
    assert len(joined) == 2
    into = [edge for edge in drawing.edges if edge.target in joined]
    assert len(into) == 4 and not any(edge.layers for edge in into)  # a and b; their concatenation, and c
    assert ("concatenated", "c", "c") in edges


def test_a_stream_that_stays_wide_is_shown_where_it_is_read() -> None:
    _, edges = drawn(Stage(2), "scatter")
    wide = "a full-width residual stream, zero where channels are pruned"
    assert {("stem", "", wide), ("down.{0,1}", "", wide), (wide, "up.{0,1}", "up.{0,1}")} <= edges


def test_a_frozen_width_lies_between_the_layers_that_make_and_read_it() -> None:
    class Features(nn.Module):
        """Returns the output of its first layer, too."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = conv(3, 8), conv(8, 6), conv(6, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.first(x)
            return self.third(self.second(x)), x

    output = "it is an output of the model"
    assert drawn(Features())[1] == {("input", "first", output), (output, "second", "second"), ("second", "third", output)}


def test_a_model_of_which_nothing_can_be_cut_is_drawn_too() -> None:
    assert drawn(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))[1] == {("input", "1", "it is an output of the model")}


# Properties of groups -------------------------------------------------------------------------------------------------


def test_shares_are_what_goes_with_a_group() -> None:
    share = shares(analyse(nn.Sequential(conv(3, 8), conv(8, 4), conv(4, 2)), SHAPE))
    macs = 3 * 8, 8 * 4, 4 * 2
    params = 9 * 24 + 8, 9 * 32 + 4, 9 * 8 + 2
    assert share["0"].macs == pytest.approx((macs[0] + macs[1]) / sum(macs))
    assert share["1"].params == pytest.approx((params[1] + 9 * 8) / sum(params))


def test_readers_and_copies_of_a_group() -> None:
    first, second = analyse(nn.Sequential(conv(3, 8), conv(8, 8, groups=2), conv(8, 2)), SHAPE).groups
    assert (readers(first), copies(first)) == (["1"], 2)  # the two groups of the convolution are pruned alike
    assert (readers(second), copies(second)) == (["2"], 2)


# Text -----------------------------------------------------------------------------------------------------------------

MERMAID = """\
flowchart TD
    classDef stays stroke-dasharray: 4 4
    n0["a#quot;b<br/>8 channels<br/>100.0% of the MACs"]
    n1["2 frozen channels<br/>it is an output of the model"]:::stays
    n2(["input"])
    n2 -->|"a#quot;b"| n0
    n0 -->|"c"| n1
"""
DOT = r"""digraph coupling {
    node [fontname="sans-serif"]; edge [fontname="sans-serif", fontsize=10];
    n0 [label="a\"b\n8 channels\n100.0% of the MACs", shape=box];
    n1 [label="2 frozen channels\nit is an output of the model", shape=box, style=dashed];
    n2 [label="input", shape=oval];
    n2 -> n0 [label="a\"b"];
    n0 -> n1 [label="c"];
}
"""


@pytest.mark.parametrize(
    ("ending", "text"), [(".mmd", MERMAID), (".md", f"```mermaid\n{MERMAID}```\n"), (".dot", DOT), (".gv", DOT)]
)
def test_a_drawing_is_written_for_mermaid_and_for_graphviz(ending: str, text: str) -> None:
    model = nn.Sequential(OrderedDict({'a"b': conv(3, 8), "c": conv(8, 2)}))
    assert FORMATS[ending](draw(analyse(model, SHAPE))) == text
