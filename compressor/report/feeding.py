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
    few = len(how.classes) <= MOST_CLASSES
    classes = repr(how.classes) if few else 'json.load(open("report.json"))["preprocessing"]["classes"]'
    modules = ["import numpy as np", "import onnxruntime", "from PIL import Image"]
    return [*([] if few else ["import json", ""]), *modules, "", f"classes = {classes}"]


def _image(how: Preprocessing) -> list[str]:
    """Load, resize and crop the image."""
    height, width = how.size
    share = "" if math.isclose(how.crop, 1) else f" / {how.crop:g}"
    return [
        f'image = Image.open("image.jpg").convert("{how.mode}")',
        f"if image.size != ({width}, {height}):",
        f"    scale = max({width} / image.width, {height} / image.height){share}",
        "    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)",
        f"    left, top = (image.width - {width}) // 2, (image.height - {height}) // 2",
        f"    image = image.crop((left, top, left + {width}, top + {height}))",
    ]


def _array(how: Preprocessing) -> list[str]:
    """Normalise it into a batch of one image."""
    mean, std = ([round(value, 6) for value in values] for values in (how.mean, how.std))
    order = "pixels.transpose(2, 0, 1)[None]" if how.mode == "RGB" else "pixels[None, None]"
    if how.mode == "L":
        return [f"pixels = (np.asarray(image) / 255 - {mean[0]}) / {std[0]}", f"batch = {order}.astype(np.float32)"]
    return [
        f"pixels = (np.asarray(image) / 255 - {mean}) / {std}",
        f"batch = {order}.astype(np.float32)  # [1, 3, {how.size[0]}, {how.size[1]}]",
    ]


def _run(how: Preprocessing, report: Report) -> list[str]:
    """Run the model, and print the predicted class."""
    name = next(iter(report.inputs), "images")
    return [
        'session = onnxruntime.InferenceSession("model.onnx")',
        f'logits = session.run(None, {{"{name}": batch}})[0]',
        "print(classes[logits[0].argmax()])",
    ]
