"""Make docs/report.png: the upper part of a run's report.html, as a browser shows it.

    python docs/screenshot.py runs/NAME

Needs Chromium, which draws the page without a window; the picture is made small enough for a README.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1120, 1106  # of the window, in pixels of the page
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
)
COLOURS = 128  # a page of text and plots needs no more, and the file shrinks to a third


def photograph(page: Path, picture: Path) -> None:
    """Draw the first `HEIGHT` pixels of an HTML file at twice the usual sharpness, and write them as a PNG."""
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("Chromium was not found: install it, or take the picture by hand.")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "page.png"
        window = [f"--window-size={WIDTH},{HEIGHT}", "--force-device-scale-factor=1.5", f"--user-data-dir={folder}/profile"]
        subprocess.run(
            [browser, *FLAGS, *window, f"--screenshot={raw}", page.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(raw).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make docs/report.png out of a run's report.html.")
    parser.add_argument("run", type=Path, help="directory of a finished run")
    picture = Path(__file__).with_name("report.png")
    photograph(parser.parse_args().run / "report.html", picture)
    print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
