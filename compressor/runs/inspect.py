"""Which channels of a model can be pruned, which are coupled, and which are frozen, for `compress inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compressor.channels import Channels, Heads, Residual, analyse
from compressor.channels.diagram import FORMATS, Drawing, copies, draw, readers, shares
from compressor.errors import UsageError
from compressor.files import write_text
from compressor.methods.widths import Shelf
from compressor.network.inputs import Inputs
from compressor.runs.sources import Images, Source, open_both
from compressor.training.method import Job


def look(
    source: Source, asked: Inputs | None, residual: Residual, heads: Heads = "width", graph: Path | None = None
) -> dict[str, Any]:
    """What `compress inspect` shows, as plain values; the diagram is written to `graph`. Raises a CompressError."""
    if graph is not None and graph.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise UsageError(f"--graph {graph}: the file name must end in one of {known} (Mermaid, Graphviz).")
    opened = open_both(source, Images(), asked)
    channels = analyse(opened.loaded.model, opened.inputs, residual, heads)
    whole = channels.all_kept()
    macs, params = channels.macs.total(whole), channels.params.total(whole)
    least = Shelf(channels, np.zeros(channels.atoms), 1, Job.most).without_weakest(channels.atoms)
    drawing = draw(channels)
    if graph is not None:
        write_text(graph, FORMATS[graph.suffix](drawing))
    return {
        "model": source.model,
        "arch": opened.loaded.arch,
        "notes": opened.notes,
        "inputs": opened.inputs.shapes,
        "macs": round(macs),
        "params": round(params),
        "groups": _groups(channels, drawing),
        "frozen": [asdict(row) for row in channels.frozen()],
        "unknown_operators": channels.unknown_operators(),
        "smallest": {"macs": channels.macs.total(least) / macs, "params": channels.params.total(least) / params},
    }


def _groups(channels: Channels, drawing: Drawing) -> list[dict[str, Any]]:
    """Each group, with the shares of MACs and parameters that are removed with all of it, and the first group like it."""
    first_alike = {name: node.names[0] for node in drawing.nodes for name in node.names}
    share = shares(channels)
    return [
        {
            "name": group.name,
            "channels": group.size,
            "copies": copies(group),
            "layers": group.layers,
            "read_by": readers(group),
            "scatter": group.scatter,
            **asdict(share[group.name]),
            "alike": first_alike[group.name],
        }
        for group in channels.groups
    ]
