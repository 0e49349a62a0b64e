"""Test images beside what the original and the compressed network make of them, as one picture for the page of a report.

    input | original | compressed | target

People judge masks and restored images by eye. Restored images are shown once more, enlarged, where the networks differ most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import avg_pool2d

from compressor.data import Batch, Data
from compressor.data.pixels import to_bytes
from compressor.files import write_whole
from compressor.network.outputs import tensors_in
from compressor.tasks import Task

ROWS, HEIGHT, GAP, HEADING = 4, 200, 6, 18  # images; pixels
WINDOW = 48  # side of what is enlarged, in pixels
NAMES = ("input", "original", "compressed", "target")


class Strips:
    """Collects the first test images of a run. `add` batches, then `write`."""

    def __init__(self, task: Task, data: Data) -> None:
        self.task, self.bgr = task, data.color == "bgr"
        self.rows: list[list[Image.Image]] = []

    def add(self, batch: Batch, before: Tensor, after: Tensor) -> None:
        """The main outputs of the original and of the compressed network for a batch. Tasks without pictures add nothing."""
        images = next((tensor for tensor in tensors_in(batch.inputs) if tensor.dim() == 4), None)
        if images is None:
            return
        answers = [self.task.decode(outputs, batch) for outputs in (before.to(after.device), after)]
        for place in range(batch.size):
            if len(self.rows) >= ROWS * (1 + self.task.enlarges):
                return
            shown = [self.task.picture(each, place) for each in (*answers, batch.targets)]
            cells = [each.cpu() for each in shown if each is not None]
            if len(cells) < len(shown):
                return
            self.rows.append(list(map(_cell, [self._input(images[place].cpu()), *cells])))
            if self.task.enlarges:
                self.rows.append(self._enlarged(self.rows[-1], *cells))

    def write(self, path: Path) -> bool:
        """As a PNG file. Returns False, and writes nothing, if there are no pictures."""
        if not self.rows:
            return False
        widths = [max(row[column].width for row in self.rows) for column in range(len(NAMES))]
        whole = Image.new("RGB", (sum(widths) + GAP * (len(NAMES) - 1), HEADING + len(self.rows) * (HEIGHT + GAP)), "white")
        draw = ImageDraw.Draw(whole)
        for column, name in enumerate(NAMES):
            left = sum(widths[:column]) + GAP * column
            draw.text((left, 2), name, fill="black")
            for number, row in enumerate(self.rows):
                whole.paste(row[column], (left, HEADING + number * (HEIGHT + GAP)))
        write_whole(path, lambda unfinished: whole.save(unfinished, "PNG"))
        return True

    def _input(self, image: Tensor) -> Tensor:
        """A normalised image [c, h, w] as bytes: its own range becomes that of the picture."""
        low, high = image.min(), image.max()
        image = (image.flip(0) if self.bgr else image) - low
        return to_bytes(image / (high - low).clamp(min=1e-12))

    def _enlarged(self, row: list[Image.Image], before: Tensor, after: Tensor, target: Tensor) -> list[Image.Image]:
        """The window of all pictures where `before` and `after` differ most; the input, of another size, is not enlarged."""
        side = min(WINDOW, *before.shape[-2:])
        gap = (before.float() - after.float()).abs().mean(0)[None, None]
        place = int(avg_pool2d(gap, side, 1).argmax())
        columns = before.shape[-1] - side + 1
        top, left = divmod(place, columns)
        cells = [picture[:, top : top + side, left : left + side] for picture in (before, after, target)]
        blank = Image.new("RGB", (row[0].width, HEIGHT), "white")
        return [blank, *map(_cell, cells)]


def _cell(pixels: Tensor) -> Image.Image:
    """uint8 [3, h, w], as high as a row."""
    image: Any = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    width = max(1, round(HEIGHT * image.width / image.height))
    found: Image.Image = image.resize(
        (width, HEIGHT), Image.Resampling.NEAREST if image.height < HEIGHT else Image.Resampling.BOX
    )
    return found
