"""Collect what the GPU programme needs on a machine without a package index, in the folder carry/.

    python -m experiments.gpu_carry PATH          # PATH is the folder of ICDAR 2015

The photographs are encoded anew as WebP, with the best of four qualities at which they fit into
--megabytes. They keep their names, since Pillow looks at the content of a file; their annotations
are copied. The wheels are those of shapely, pyclipper and the fonts of the renderer. On the other
machine:

    python -m pip install --no-index --find-links carry/wheels carry/wheels/*.whl
    python -m experiments.gpu all --icdar2015 carry/icdar2015
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from readers.pictures import open_image
from training.options import Parser, number
from training.runs import one_line_errors

ROOT = Path(__file__).resolve().parent.parent
IMAGES, LABELS = "ch4_training_images", "ch4_training_localization_transcription_gt"
QUALITIES = (70, 60, 50, 40)  # of WebP, from the best; the first one that fits is taken
PACKAGES = ("shapely>=2.1", "pyclipper>=1.3.0.post4")  # beside the fonts
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIB = 2**20


def encode(path: Path, quality: int) -> bytes:
    """A picture as WebP."""
    image, _ = open_image(path)
    content = io.BytesIO()
    image.save(content, "webp", quality=quality)
    return content.getvalue()


def copy_photographs(source: Path, target: Path, limit: float) -> tuple[int, int]:
    """Encode the photographs of ICDAR 2015 anew, and copy their annotations.

    Args: limit: of the photographs together, bytes.
    Returns: the quality, and the bytes.
    Raises: ValueError if there are none, or they do not fit.
    """
    paths = sorted((source / IMAGES).glob("img_*.jpg"))
    if not paths:
        raise ValueError(f"{source / IMAGES}: expected photographs img_1.jpg and so on, got none")
    (target / IMAGES).mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / LABELS, target / LABELS, dirs_exist_ok=True)
    for quality in QUALITIES:
        size = 0
        for path in tqdm(paths, f"quality {quality}", unit="picture", disable=None, leave=False):
            content = encode(path, quality)
            size += len(content)
            if size > limit:
                break
            (target / IMAGES / path.name).write_bytes(content)
        if size <= limit:
            return quality, size
    raise ValueError(f"--megabytes: expected room for {len(paths)} photographs, got {limit / MIB}")


def list_packages() -> list[str]:
    """The packages to carry; the fonts in the versions that pyproject.toml pins."""
    fonts = re.findall(r'"(font-[\w-]+==[\w.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    return [*PACKAGES, *fonts]


def download_wheels(target: Path, python: str) -> int:
    """Download the wheels for Linux on x86-64.

    Args: python: the version of the other machine's Python, such as "3.12".
    Returns: their bytes.
    Raises: ValueError with pip's last line if that fails.
    """
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(target), "--only-binary=:all:", "--python-version", python]
    command += [*platforms, *list_packages()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"pip download: {done.stderr.strip().splitlines()[-1]}")
    return sum(path.stat().st_size for path in target.glob("*.whl"))


def main(argv: list[str] | None = None) -> None:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        prog="python -m experiments.gpu_carry",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("icdar2015", type=Path, metavar="PATH", help="the folder of ICDAR 2015")
    add("--out", type=Path, default=Path("carry"), help="folder to write to (default: carry)")
    size = "largest size of all photographs together, in MiB (default: 45)"
    add("--megabytes", type=number(float, 0, exclusive=True), default=45.0, help=size)
    add("--python", default="3.12", help="version of the other machine's Python (default: 3.12)")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        quality, photographs = copy_photographs(
            args.icdar2015, args.out / "icdar2015", args.megabytes * MIB
        )
        wheels = download_wheels(args.out / "wheels", args.python)
    print(f"{args.out}: photographs of quality {quality}, {photographs / MIB:.1f} MiB; ", end="")
    print(f"wheels, {wheels / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
