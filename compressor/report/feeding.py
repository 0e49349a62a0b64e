"""Python code that runs `model.onnx` on one image file, with the preprocessing of the run filled in."""

from __future__ import annotations

import math

from compressor.report.schema import Preprocessing, Report

MOST_CLASSES = 20  # that are listed in the code


def feeding(report: Report) -> str:
    """The code, which needs Pillow, NumPy and ONNX Runtime; "" for a run without data, whose preprocessing is unknown, or
    without an ONNX file.
    """
    how = report.preprocessing
    return (
        ""
        if how is None or report.compressed.size_bytes is None
        else "\n".join([*_imports(how), "", *_image(how), *_array(how), *_run(how, report)])
    )


def _imports(how: Preprocessing) -> list[str]:
    """Imports, and the class names."""
    modules = ["import numpy as np", "import onnxruntime", "from PIL import Image"]
    if not how.classes:
        return modules
    few = len(how.classes) <= MOST_CLASSES
    classes = repr(how.classes) if few else 'json.load(open("report.json"))["preprocessing"]["classes"]'
    return [*([] if few else ["import json", ""]), *modules, "", f"classes = {classes}"]


def _image(how: Preprocessing) -> list[str]:
    """Load the image, and fit it to a size."""
    height, width = how.size
    lines = [f'image = Image.open("image.jpg").convert("{how.mode}")']
    if how.fit == "stretch":
        return [*lines, f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)"]
    if how.fit == "whole":
        return lines
    if how.fit == "letterbox":
        bars = (how.bars or [0])[0] if how.mode == "L" else tuple(how.bars or ())
        return [
            *lines,
            f"scale = min({width} / image.width, {height} / image.height)",
            "size = max(1, round(image.width * scale)), max(1, round(image.height * scale))",
            f'framed = Image.new("{how.mode}", ({width}, {height}), {bars or 0})',
            f"place = ({width} - size[0]) // 2, ({height} - size[1]) // 2",
            "framed.paste(image.resize(size, Image.Resampling.BILINEAR), place)",
            "image = framed",
        ]
    share = "" if math.isclose(how.crop, 1) else f" / {how.crop:g}"
    return [
        *lines,
        f"if image.size != ({width}, {height}):",
        f"    scale = max({width} / image.width, {height} / image.height){share}",
        "    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)",
        f"    left, top = (image.width - {width}) // 2, (image.height - {height}) // 2",
        f"    image = image.crop((left, top, left + {width}, top + {height}))",
    ]


def _array(how: Preprocessing) -> list[str]:
    """Order, scale, normalise and pad it, as a batch of one image."""
    mean, std = ([round(value, 6) for value in values] for values in (how.mean, how.std))
    grey = how.mode == "L"
    scaled = "np.asarray(image)" + ("[:, :, ::-1]" if how.color == "bgr" else "")
    if how.max_value != 255:
        scaled += " / 255" + ("" if how.max_value == 1 else f" * {how.max_value:g}")
    if any(mean) or any(value != 1 for value in std):
        scaled = f"({scaled} - {mean[0] if grey else mean}) / {std[0] if grey else std}"
    lines = [f"pixels = {scaled}"]
    if how.pad_to > 1:
        sides = f"(0, -image.height % {how.pad_to}), (0, -image.width % {how.pad_to})"
        lines.append(f'pixels = np.pad(pixels, [{sides}{"" if grey else ", (0, 0)"}], "edge")')
    size = "height, width" if how.fit == "whole" else f"{how.size[0]}, {how.size[1]}"
    order = "pixels[None, None]" if grey else "pixels.transpose(2, 0, 1)[None]"
    shape = "" if grey else f"  # [1, 3, {size}]"
    return [*lines, f"batch = {order}.astype(np.float32){shape}"]


def _run(how: Preprocessing, report: Report) -> list[str]:
    """Run the model, and print the predicted class, or save what it makes of the image."""
    name = next(iter(report.inputs), "images")
    output = {"map": "logits", "image": "restored"}.get(report.output, report.output)
    lines = ['session = onnxruntime.InferenceSession("model.onnx")']
    if how.tile is None:
        lines += [f'{output} = session.run(None, {{"{name}": batch}})[0]']
    else:
        lines += TILES.format(height=how.tile[0], width=how.tile[1], name=name, output=output).splitlines()
    if how.pad_to > 1 and report.output in ("map", "image"):
        lines += [
            f"sides = zip({output}.shape[2:], image.size[::-1], batch.shape[2:])",
            "height, width = (-(-side * whole // padded) for side, whole, padded in sides)  # without what was padded",
            f"{output} = {output}[:, :, :height, :width]",
        ]
    if report.output == "map":
        one = " if logits.shape[1] > 1 else logits[0, 0] > 0" if len(how.classes) < 3 else ""  # against the background
        kind = "np.uint8" if len(how.classes) <= 256 else "np.uint16"
        return [*lines, f"mask = logits[0].argmax(0){one}", f'Image.fromarray(mask.astype({kind})).save("mask.png")  # classes']
    if report.output == "image":
        order = ", ::-1" if how.color == "bgr" else ""
        channels = "restored[0, 0]" if how.mode == "L" else f"restored[0{order}].transpose(1, 2, 0)"
        values = channels if how.max_value == 255 else f"{channels} / {how.max_value:g} * 255"
        return [*lines, f'Image.fromarray(({values}).clip(0, 255).round().astype(np.uint8)).save("restored.png")']
    return [*lines, "print(classes[logits[0].argmax()])" if how.classes and output == "logits" else f"print({output}.shape)"]


TILES = """

def spans(length, side):
    \"\"\"Where each tile begins, and the first and last pixel that is taken from it.\"\"\"
    starts = [*range(0, length - side, side - 2 * (side // 8)), length - side]
    ends = [*(start + side - side // 8 for start in starts[:-1]), length]
    return zip(starts, [0, *ends[:-1]], ends)


height, width = batch.shape[2:]
rows, columns = min(height, {height}), min(width, {width})
{output} = None
for top, above, below in spans(height, rows):
    for left, before, after in spans(width, columns):
        part = session.run(None, {{"{name}": batch[:, :, top : top + rows, left : left + columns]}})[0]
        scaled = lambda *pixels: [pixel * part.shape[2] // rows for pixel in pixels]
        if {output} is None:
            {output} = np.empty((*part.shape[:2], *scaled(height, width)), np.float32)
        kept = part[:, :, slice(*scaled(above - top, below - top)), slice(*scaled(before - left, after - left))]
        {output}[:, :, slice(*scaled(above, below)), slice(*scaled(before, after))] = kept
"""
