"""The GPU programme: is the GPU right, how fast is it, and does pre-training help on it?

    python -m experiments.gpu all --minutes 30 --icdar2015 PATH
    python -m experiments.gpu check bench --minutes 4
    python -m experiments.gpu all --rehearse          # the same steps on a CPU, with tiny sizes

    check      compares the GPU with the CPU, and stops and resumes a run
    bench      measures speed and memory of training steps, and whether the loader keeps up
    pretrain   pre-trains the published text encoder and decoder with a ResNet-18 on rendered words
    detect     trains text detectors on ICDAR 2015 photographs, from scratch and pre-trained

Run this from the clone of the repository. Each result is printed as a line of JSON and added to
OUT/results.jsonl. A rehearsal has a folder of its own, so that no run takes its steps for done. A
part that fails leaves its error there, and the next one goes on. Steps that are done are not
repeated, and a step is not started if it cannot end in the time that is left.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data_stub
from experiments.gpu import bench, check, detect, pretrain
from experiments.gpu.programme import REHEARSAL, Programme, Sizes
from training.options import Parser, number

PARTS = ("check", "bench", "pretrain", "detect")
PRETRAIN_SHARE = 0.4  # of the time that is left, if detectors follow


def make_parser() -> argparse.ArgumentParser:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        prog="python -m experiments.gpu",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "parts",
        nargs="+",
        choices=(*PARTS, "all"),
        metavar="PART",
        help="parts to run: check, bench, pretrain, detect, or all of them",
    )
    minutes = "time limit of all parts together, in minutes (default: 30)"
    add("--minutes", type=number(float, 0, exclusive=True), default=30.0, help=minutes)
    out = "folder of the results (default: runs/gpu, or runs/gpu-rehearsal with --rehearse)"
    add("--out", type=Path, help=out)
    icdar2015 = "the folder of ICDAR 2015 (default: none, and no detectors are trained)"
    add("--icdar2015", type=Path, metavar="PATH", help=icdar2015)
    add("--rehearse", action="store_true", help="run on the CPU with tiny sizes (default: off)")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("GPU: expected one, got none; --rehearse takes the same steps on the CPU")
    if args.icdar2015 and not args.icdar2015.is_dir():
        parser.error(f"--icdar2015: expected a folder, got {args.icdar2015}")
    args.out = args.out or Path("runs/gpu-rehearsal" if args.rehearse else "runs/gpu")
    return args


def draw_photographs(root: Path) -> Path:
    """Write a few rendered pictures in the layout of ICDAR 2015, for a rehearsal."""
    images = root / "ch4_training_images"
    labels = root / "ch4_training_localization_transcription_gt"
    images.mkdir()
    labels.mkdir()
    for index in (*range(1, 7), 701, 702, 801, 802):
        sample = data_stub.render(0, index, 96)
        Image.fromarray(sample.image).save(images / f"img_{index}.jpg")
        assert sample.quads is not None
        lines = [
            ",".join(map(str, np.rint(quad).astype(int).ravel())) + f",{word}\n"
            for quad, word in zip(sample.quads, sample.words, strict=True)
        ]
        (labels / f"gt_img_{index}.txt").write_text("".join(lines), encoding="utf-8")
    return root


def run(args: argparse.Namespace, icdar2015: Path | None) -> None:
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device("cpu" if args.rehearse else "cuda")
    sizes = REHEARSAL if args.rehearse else Sizes()
    programme = Programme(args.out.resolve(), deadline, device, sizes, icdar2015)
    parts = PARTS if "all" in args.parts else args.parts
    if "check" in parts:
        check.run(programme)
    if "bench" in parts:
        bench.run(programme)
    if "pretrain" in parts:
        has_followers = "detect" in parts and icdar2015
        pretrain.run(programme, PRETRAIN_SHARE if has_followers else 0.95)
    if "detect" in parts:
        detect.run(programme)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    # Every process has a core or two; more threads than that would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if args.rehearse and args.icdar2015 is None:
        with tempfile.TemporaryDirectory() as folder:
            run(args, draw_photographs(Path(folder)))
    else:
        run(args, args.icdar2015 and args.icdar2015.resolve())


if __name__ == "__main__":
    main()
