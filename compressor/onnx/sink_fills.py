"""ONNX graph optimisation: move operators that fill a feature map with copies behind pointwise operators.

A perforated convolution is computed at some spatial positions; a nearest-neighbour `Resize` or a `Gather` of rows fills the
others with copies. Pointwise operators give the same result before this fill as after it:

    Conv -> Gather -> BatchNormalization -> Relu        Conv -> BatchNormalization -> Relu -> Gather

On the right there is less to compute, and the batch norm can be folded into the convolution. Where one gather then consumes
another, directly or through padding, the two are merged, and the full feature map is never computed.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

ELEMENTWISE = frozenset("Relu LeakyRelu PRelu Elu Gelu Sigmoid HardSigmoid HardSwish Tanh Clip Add Sub Mul Div".split())
Index = npt.NDArray[np.int64]


class Gather(NamedTuple):
    """A node that selects the constant indices `places` along an axis (2 or 3) of a tensor [n, c, height, width]."""

    node: ir.Node
    axis: int
    places: Index


class Fill(NamedTuple):
    """A node that fills a feature map from some positions; fills that copy alike have equal `copies`."""

    node: ir.Node
    copies: Hashable


def sink_fills(model: ir.Model) -> bool:
    """Move fills in `model` as far towards its outputs as possible, in place and exactly, without duplicating any.

    Returns whether any was moved; then the graph should be optimised again. Shapes must be known and constants folded.
    """
    moved = False
    while sum(_sunk(node) or _joined(node) for node in list(model.graph)):
        RemoveUnusedNodesPass()(model)  # unused nodes would count as consumers
        model.graph.sort()
        moved = True
    return moved


def _sunk(node: ir.Node) -> bool:
    """Connect `node` to the inputs of the fills before it, and move one of these fills behind `node`.

    Where several meet, as in an addition, all must copy alike. The fill that is moved has no other consumer.
    """
    read = {i: value for i, value in enumerate(node.inputs) if value is not None and value.const_value is None}
    fills = {i: fill for i, value in read.items() if (fill := _fill(value.producer())) is not None}
    last = next((fill.node for fill in fills.values() if _is_read_once(fill.node.outputs[0])), None)
    if last is None or len(fills) < len(read) or len({fill.copies for fill in fills.values()}) > 1:
        return False
    result, filled = node.outputs[0], last.outputs[0]
    height, width = _plane(last.inputs[0])
    if not _acts_on_each_place(node) or _plane(result) != _plane(filled):
        return False
    for i, fill in fills.items():
        node.replace_input_with(i, fill.node.inputs[0])
    result.replace_all_uses_with(filled, replace_graph_outputs=True)
    last.replace_input_with(0, result)
    filled.shape, result.shape = result.shape, ir.Shape([*_sizes(result)[:2], height, width])
    if len(last.inputs) == 4 and "axes" not in last.attributes:  # torch takes part of the size from the old input
        last.attributes["axes"] = ir.AttrInt64s("axes", (2, 3))
        last.replace_input_with(3, _constant(last, np.array(_plane(filled))))
    return True


def _joined(node: ir.Node) -> bool:
    """Merge a gather with the gather that it consumes, directly or through padding."""
    take = _gather(node)
    if take is None:
        return False
    before = _producer(node)
    pad = before if before is not None and _puts_constants_around(before) else None
    fill = _gather(before if pad is None else _producer(pad))
    if fill is None or fill.axis != take.axis:
        return False
    places, source = fill.places, fill.node.inputs[0]
    if pad is None:
        node.replace_input_with(0, source)
    else:
        above, below = (int(_array(pad.inputs[1])[side + take.axis]) for side in (0, 4))  # padding before and after
        end = above + _plane(source)[take.axis - 2]
        places = np.concatenate([np.arange(above), above + places, np.arange(end, end + below)])
        pad.replace_input_with(0, source)
        sizes = list(_sizes(pad.outputs[0]))
        pad.outputs[0].shape = ir.Shape([*sizes[: take.axis], end + below, *sizes[take.axis + 1 :]])
    node.replace_input_with(1, _constant(node, places[take.places]))
    return True


def _fill(node: ir.Node | None) -> Fill | None:
    if node is None or node.op_type not in ("Gather", "Resize"):
        return None
    small, large = _plane(node.inputs[0]), _plane(node.outputs[0])
    if not small or not large or small[0] > large[0] or small[1] > large[1]:  # it reduces the size: cheaper after it
        return None
    if node.op_type == "Gather":
        gather = _gather(node)
        return gather and Fill(node, (gather.axis, *gather.places.tolist(), *small))
    how = {name: attribute.value for name, attribute in node.attributes.items() if name != "axes"}
    copies = how.get("mode") == "nearest" and how.get("coordinate_transformation_mode") != "tf_crop_and_resize"
    scaled = any(value is not None and value.const_value is None for value in node.inputs[1:3])  # with computed scales
    if not copies or scaled or _sizes(node.inputs[0])[:2] != _sizes(node.outputs[0])[:2]:
        return None
    return Fill(node, (*sorted(how.items()), *small, *large))


def _gather(node: ir.Node | None) -> Gather | None:
    if node is None or node.op_type != "Gather":
        return None
    (_, places), plane, axis = node.inputs, _plane(node.inputs[0]), node.attributes.get_int("axis", 0)
    if not plane or axis not in (2, 3) or places is None or places.const_value is None or len(_sizes(places)) != 1:
        return None
    return Gather(node, axis, _array(places))


def _puts_constants_around(node: ir.Node) -> bool:
    """Whether it is constant padding by a fixed number of rows and columns, with a single consumer."""
    if node.op_type != "Pad" or any(node.inputs[3:]) or not _is_read_once(node.outputs[0]):
        return False
    widths = node.inputs[1]
    if widths is None or widths.const_value is None or node.attributes.get_string("mode", "constant") != "constant":
        return False
    return bool((_array(widths) >= 0).all())


def _acts_on_each_place(node: ir.Node) -> bool:
    """Whether it is pointwise: its output at a position depends only on its inputs there, and on spatially equal constants."""
    if len(node.outputs) > 1:
        return False
    if node.op_type == "Conv":
        (weight, *_), how = node.inputs[1:], node.attributes
        plain = {*_sizes(weight)[2:], *how.get_ints("strides", ())} <= {1} and not any(how.get_ints("pads", ()))
        return plain and how.get_string("auto_pad", "NOTSET") == "NOTSET"
    constants = (value for value in node.inputs if value is not None and value.const_value is not None)
    return node.op_type == "BatchNormalization" or (
        node.op_type in ELEMENTWISE and all({*_sizes(value)[-2:]} <= {1} for value in constants)
    )


def _is_read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _producer(node: ir.Node) -> ir.Node | None:
    """The node that produces the first input."""
    return node.inputs[0].producer() if node.inputs[0] is not None else None


def _sizes(value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...]:
    """The shape of a value; empty if unknown."""
    return value.shape.dims if value is not None and value.shape is not None else ()


def _plane(value: ir.Value | None) -> tuple[int, ...]:
    """Height and width of a value [n, c, height, width]; empty if they are unknown, or it has other dimensions."""
    sizes = _sizes(value)
    plane = tuple(size for size in sizes[2:] if isinstance(size, int))
    return plane if len(sizes) == 4 and len(plane) == 2 else ()


def _array(value: ir.Value | None) -> Index:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _constant(node: ir.Node, numbers: Index) -> ir.Value:
    """A new constant in the graph of `node`, named after its output: a node has one such constant at a time."""
    value = ir.val(f"{node.outputs[0].name}_places", const_value=ir.tensor(numbers))
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(value)
    return value
