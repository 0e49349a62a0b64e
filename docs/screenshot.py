"""Make the pictures of the documentation out of finished runs, as a browser shows their pages.

    python docs/screenshot.py RUN RUN...

docs/report.png is the upper part of the first run's report, docs/compare.png that of a comparison of all the others. A run is a
directory or a report.json. Those in the documentation are examples/cifar/results/resnet20-jpeg.json, and what these leave:

    compress demo
    compress compare demo/digits.pt --arch compressor.demo:DigitsNet --data digits --epochs 2 \\
        --methods magnitude,fpgm,sfp --rates 0.7,0.85,0.92 --seeds 0,1,2 --out digits
    for seed in 0 1 2; do for rate in 0.7 0.85; do
        compress lowrank demo/digits.pt --arch compressor.demo:DigitsNet --data digits --epochs 2 \\
            --rate $rate --seed $seed --out digits/svd-$rate-seed$seed
    done; done

Needs Chromium, which draws the pages without a window; the pictures are made small enough for a README.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from compressor.report.write import compare_runs, write_pages

DOCS = Path(__file__).parent
WIDTH = 1120  # of the window, in pixels of the page
HEIGHTS = {"report": 1106, "compare": 980}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
)
COLOURS = 256  # a page of text and plots needs no more, and the file shrinks to a third


def photograph(page: Path, picture: Path, height: int) -> None:
    """Draw the first `height` pixels of an HTML file at one and a half times the usual sharpness, and write them as a PNG."""
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("Chromium was not found: install it, or take the picture by hand.")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "page.png"
        window = [f"--window-size={WIDTH},{height}", "--force-device-scale-factor=1.5", f"--user-data-dir={folder}/profile"]
        subprocess.run(
            [browser, *FLAGS, *window, f"--screenshot={raw}", page.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(raw).convert("RGB").quantize(COLOURS, kmeans=1).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make docs/report.png of the first run, docs/compare.png of all the others.")
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("compared", type=Path, nargs="+", help="finished runs to put side by side")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pages(given.run, Path(folder))
        compare_runs(given.compared, Path(folder))
        for name, page in {"report": "report.html", "compare": "comparison.html"}.items():
            picture = DOCS / f"{name}.png"
            photograph(Path(folder) / page, picture, HEIGHTS[name])
            print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
