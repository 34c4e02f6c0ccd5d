"""Train a small text detector from a pre-trained backbone, score it, and find text with it.

    python -m transfer.detect train --data icdar2015:PATH --init runs/demo --name detect
    python -m transfer.detect eval runs/detect --data icdar2015:PATH
    python -m transfer.detect predict runs/detect photo.jpg

Run these from the clone of the repository. `train` leaves checkpoint.pt and metrics.json in
runs/NAME/. `eval` adds score.json and results/res_*.txt, which have the form of the ICDAR 2015
competition. `predict` writes an overlay and a JSON file for each picture to predictions/.
"""

import argparse
import io
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

import vlpt
from readers import SPECS
from readers.detection import DetectionDataset
from readers.folder import visible_files
from readers.pictures import is_picture, open_image
from training.options import Parser, folder_name, number, some_path
from training.runs import one_line_errors
from training.weights import find_checkpoint
from transfer.cache import CachedSource
from transfer.dataset import TrainingCrops, describe_survey, open_dataset, survey
from transfer.heads import HEADS, build_detector, detect_text
from transfer.pyramid import BACKBONES, DetectorConfig, PyramidDetector
from transfer.score import f_score, match_detections

PROGRAM = "python -m transfer.detect"
WARMUP = 20  # steps
CHECK_EVERY = 50  # steps after which the loss is looked at
WEIGHT_DECAY = 1e-4
OVERLAY_COLOR = (255, 0, 80)
# What `eval` and `predict` leave, which is removed when another detector takes the place.
FOUND_BY_A_DETECTOR = (
    "score.json",
    "results/res_*.txt",
    "predictions/*.png",
    "predictions/*.json",
)


# ----------------------------------------------------------------------------------------- training


def make_optimizer(model: PyramidDetector, lr: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, but not on gains and biases."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def load_batches(
    data: TrainingCrops, steps: int, batch: int, workers: int, pinned: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels, truth and valid pixels of each step's crops.

    Args: pinned: whether they are in memory that a GPU copies from without waiting.
    """
    # Forked workers share the memory of a `CachedSource`; spawned ones would copy it.
    forked = workers > 0 and sys.platform == "linux"
    loader = torch.utils.data.DataLoader(
        data,
        sampler=range(steps * batch),
        batch_size=batch,
        num_workers=workers,
        pin_memory=pinned,
        multiprocessing_context="fork" if forked else None,
    )
    return iter(loader)


def train_step(
    model: PyramidDetector,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    truth: Tensor,
    valid: Tensor,
) -> Tensor:
    """One update, in bfloat16 on a GPU. The host never waits for the GPU.

    Args:
        pixels: (B, 3, S, S) uint8, on the model's device as the rest.
        truth, valid: as for the model's `loss_terms`.
    Returns: (len(model.loss_weights),), the terms of the loss before the update.
    """
    images = vlpt.normalize(pixels).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        logits = model(images)  # float32
    terms = model.loss_terms(logits, truth, valid)
    weights = model.loss_weights.values()
    loss = torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return torch.stack(terms).detach()


def train_detector(
    model: PyramidDetector,
    data: TrainingCrops,
    *,
    samples: int,
    batch: int,
    lr: float,
    workers: int = 0,
) -> list[dict[str, float]]:
    """Train a detector in place: AdamW with a linear warm-up, then a cosine to zero.

    Args:
        samples: crops to train on, as whole batches.
        batch: crops a step.
        lr: the largest learning rate.
        workers: processes that prepare crops; 0 for none.
    Returns: for each tenth of the steps the crops so far and the mean losses.
    Raises: ValueError if the loss is no longer finite, or if a picture cannot be used.
    """
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, lr)
    steps = samples // batch
    rows = []
    recent = []
    start = time.perf_counter()
    model.train()
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.benchmark |= on_gpu  # crops all have the same size
    batches = load_batches(data, steps, batch, workers, pinned=on_gpu)
    bar = tqdm(batches, total=steps, disable=None, leave=False)
    for step, loaded in enumerate(bar):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / WARMUP) * cosine
        pixels, truth, valid = (x.to(device, non_blocking=True) for x in loaded)
        recent.append(train_step(model, optimizer, pixels, truth, valid))

        is_reported = (step + 1) % math.ceil(steps / 10) == 0 or step + 1 == steps
        if is_reported or (step + 1) % CHECK_EVERY == 0:  # the host waits for the device only here
            terms = torch.stack(recent).mean(0).tolist()
            weights = model.loss_weights.values()
            loss = sum(w * term for w, term in zip(weights, terms, strict=True))
            if not math.isfinite(loss):
                raise ValueError(f"--lr: expected a smaller one, got {lr}: the loss is {loss}")
        if is_reported:
            seen = (step + 1) * batch
            losses = dict(zip(model.loss_weights, terms, strict=True))
            rows.append({"samples": seen} | losses)
            seconds = time.perf_counter() - start
            columns = [f"{loss:>{max(7, len(name))}.3f}" for name, loss in losses.items()]
            bar.write(f"{seen:>9,} {' '.join(columns)} {seconds:8.0f}")
            recent = []
    return rows


# --------------------------------------------------------------------------------------- evaluation


def evaluate_detector(
    model: PyramidDetector,
    source: DetectionDataset,
    config: DetectorConfig,
    results: Path | None = None,
) -> dict[str, float]:
    """Score a detector on all pictures of a source.

    Args:
        results: a folder for res_NAME.txt, the detections in the competition's form. Such files of
            an earlier evaluation are replaced.
    Returns: precision, recall and f, 0..1; matched, words and detections, which they are made of;
        unusable, the words that are ignored as their corners are unusable; pictures; seconds.
    Raises: ValueError if a picture cannot be read, or if two of them have the same name.
    """
    start = time.perf_counter()
    names = list[str]()
    if results is not None:
        names = [f"res_{source.name(k)}.txt" for k in range(len(source))]
        for name, count in Counter(names).items():
            if count > 1:
                message = f"expected one picture of this name, got {count}"
                advice = "evaluate their folders one by one"
                raise ValueError(f"{results / name}: {message}; {advice}")
    counts = np.zeros(3, np.int64)
    unusable = 0
    files: dict[str, str] = {}
    model.eval()
    for k in tqdm(range(len(source)), "evaluation", unit="picture", disable=None, leave=False):
        sample = source[k]
        polygons, _ = detect_text(model, sample.image, config)
        counts += match_detections(sample.polygons, sample.ignored, polygons)
        unusable += sample.unusable
        if results is not None:
            lines = [",".join(map(str, np.rint(p).astype(int).ravel())) for p in polygons]
            files[names[k]] = "".join(line + "\r\n" for line in lines)
    model.train()
    if results is not None:
        write_results(results, files)
    matched, words, detections = counts.tolist()
    return f_score(counts) | {
        "matched": matched,
        "words": words,
        "detections": detections,
        "unusable": unusable,
        "pictures": len(source),
        "seconds": round(time.perf_counter() - start, 1),
    }


def write_results(folder: Path, files: dict[str, str]) -> None:
    """Write files by name, and remove those of another evaluation."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("res_*.txt"):
        path.unlink()
    for name, text in files.items():
        vlpt.write_atomically(folder / name, text.encode())


# ----------------------------------------------------------------------------------------- commands


def load_detector(
    run: Path, device: str, min_score: float | None = None
) -> tuple[PyramidDetector, DetectorConfig]:
    """Load a detector that `train` left, ready to find text.

    Args:
        min_score: replaces that of the detector, see `DetectorConfig`.
    Raises: ValueError or OSError if there is none.
    """
    path = find_checkpoint(run)
    checkpoint = vlpt.read_checkpoint(path)
    try:
        config = DetectorConfig(**checkpoint["config"])
        model = build_detector(config)
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, RuntimeError):
        message = f"expected a detector, which `{PROGRAM} train` leaves, got another checkpoint"
        raise ValueError(f"{path}: {message}") from None
    if min_score is not None:
        config = replace(config, min_score=min_score)
    return place(model, device).eval(), config


def place(model: PyramidDetector, device: str) -> PyramidDetector:
    """Move a detector to its device, in the memory format that convolutions are fastest in."""
    return model.to(device).to(memory_format=torch.channels_last)


def check_folder(name: str) -> Path:
    """The folder runs/NAME. Raises: ValueError if a detector cannot be left there."""
    out = Path("runs") / name
    existing = next(path for path in (out, *out.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--name: expected another name than {name}, got the file {existing}")
    if (out / "run.json").exists():
        raise ValueError(f"--name: expected another name than {name}, got a pre-training in {out}")
    return out


def make_folder(out: Path) -> None:
    """Make a folder unless it is there. Raises: ValueError if no file can be written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        message = f"expected a folder that can be written to, got {out}: {error.strerror}"
        raise ValueError(f"--name: {message}") from None


def train(args: argparse.Namespace) -> None:
    """Train on the training half of --data and write runs/NAME/."""
    out = check_folder(args.name)
    config = DetectorConfig(
        backbone=args.backbone,
        width=args.width,
        long_side=args.long,
        smallest_kernel=args.smallest,
        curved=args.curved,
        min_score=HEADS[args.head].usual_min_score,
        head=args.head,
    )
    torch.manual_seed(args.seed)
    weights = None if args.init is None else str(find_checkpoint(Path(args.init)))
    model = place(build_detector(config, weights), args.device)
    source = open_dataset(args.data, "train", args.long, args.samples, args.seed)
    data = TrainingCrops(source, config, args.crop, args.seed, args.subset)
    if args.cache:
        data.source = cached = CachedSource(source, args.cache, indices=data.indices)
        print(f"keeps {len(cached.cached):,} decoded pictures in memory")
    size = sum(p.numel() for p in model.parameters())
    start = args.init or "random weights"
    print(f"{len(data.indices):,} pictures of {args.data}; {size:,} parameters from {start}")
    for line in describe_survey(survey(data, args.samples), config):
        print(line)
    make_folder(out)  # before the training, which may take hours

    columns = [f"{name:>7}" for name in model.loss_weights]
    print(f"  samples {' '.join(columns)}  seconds   (terms of the loss; 0 is perfect)")
    rows = train_detector(
        model,
        data,
        samples=args.samples,
        batch=args.batch,
        lr=args.lr,
        workers=args.workers,
    )
    checkpoint = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "config": asdict(config)}, checkpoint)
    metrics = json.dumps({"args": vars(args), "rows": rows}, indent=1)
    vlpt.write_atomically(out / "checkpoint.pt", checkpoint.getvalue())
    for pattern in FOUND_BY_A_DETECTOR:
        for path in out.glob(pattern):
            path.unlink()
    vlpt.write_atomically(out / "metrics.json", metrics.encode())
    print(f"wrote {out}/: checkpoint.pt metrics.json")


def evaluate(args: argparse.Namespace) -> None:
    """Score a detector on the held-out half of --data and write score.json and results/."""
    run = find_checkpoint(args.run).parent
    model, config = load_detector(args.run, args.device, args.score)
    source = open_dataset(args.data, "heldout", config.long_side, args.count)
    found = evaluate_detector(model, source, config, run / "results")
    score = json.dumps(found | {"data": args.data, "min_score": config.min_score}, indent=1)
    vlpt.write_atomically(run / "score.json", score.encode())
    print(f"wrote {run}/: score.json results/res_*.txt")
    if found["unusable"]:
        print(f"warning: {found['unusable']} words have unusable corners and are ignored")
    shown = [f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in found.items()]
    print(f"RESULT data={args.data}", *shown)


def find_pictures(paths: list[Path]) -> list[Path]:
    """The pictures that are named, and those in the folders that are named, without hidden files.

    Raises: ValueError if there is none in one of the folders, or if two have the same name.
    """
    found = list[Path]()
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = [file for file in visible_files(path) if is_picture(file)]
        if not inside:
            raise ValueError(f"{path}: expected pictures such as .jpg or .png, got none in it")
        found += inside
    name, count = Counter(path.stem for path in found).most_common(1)[0]
    if count > 1:
        raise ValueError(f"IMAGE: expected each name once, got {count} pictures named {name}")
    return found


def predict(args: argparse.Namespace) -> None:
    """Write NAME.json and the overlay NAME.png for each picture, in predictions/.

    Raises: ValueError at the end, which names the pictures that could not be read.
    """
    out = find_checkpoint(args.run).parent / "predictions"
    model, config = load_detector(args.run, args.device, args.score)
    pictures = find_pictures(args.images)
    out.mkdir(exist_ok=True)
    failures = []
    for path in pictures:
        try:
            image, _ = open_image(path)
        except ValueError as error:
            failures.append(str(error))
            continue
        polygons, scores = detect_text(model, image, config)
        words = [
            {"polygon": np.round(polygon, 1).tolist(), "score": round(score, 4)}
            for polygon, score in zip(polygons, scores, strict=True)
        ]
        entry = {"image": str(path), "width": image.width, "height": image.height, "text": words}
        vlpt.write_atomically(out / f"{path.stem}.png", draw_overlay(image, polygons))
        vlpt.write_atomically(out / f"{path.stem}.json", json.dumps(entry, indent=1).encode())
        print(f"{path}: {len(words)} texts; wrote {out / path.stem}.png, .json")
    if failures:
        counted = f"{len(failures)} of {len(pictures)} pictures could not be read"
        raise ValueError(f"{counted}: {'; '.join(failures)}")


def draw_overlay(image: Image.Image, polygons: list[np.ndarray]) -> bytes:
    """A PNG file of the picture with the polygons drawn into it."""
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        points = [(x, y) for x, y in polygon.tolist()]
        draw.line([*points, points[0]], fill=OVERLAY_COLOR, width=2 + max(image.size) // 500)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def make_parser() -> Parser:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        prog=PROGRAM,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add_command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    where = "where to run; auto: a GPU if there is one (default: auto)"
    positive = number(float, 0, exclusive=True)
    fraction = number(float, 0, 1, exclusive=True)

    usual = ", ".join(f"{head.usual_min_score} for {name}" for name, head in HEADS.items())
    score = (
        "drop detections with a smaller mean score, between 0 and 1 (default: the detector's own, "
        f"usually {usual})"
    )

    command = add_command(
        "train",
        "train a detector and write it to runs/NAME/ at the end; an interrupted training leaves "
        "no detector",
    )
    add = command.add_argument
    add("--data", default="synth", metavar="SOURCE", help=f"{SPECS} (default: synth)")
    head = "psenet, or db for differentiable binarization (default: psenet)"
    add("--head", choices=tuple(HEADS), default="psenet", help=head)
    backbone = "image backbone; tiny is that of the trainer's preset tiny (default: tiny)"
    add("--backbone", choices=tuple(BACKBONES), default="tiny", help=backbone)
    init = "weights of the backbone: runs/NAME of a pre-training, or an export (default: random)"
    add("--init", type=some_path, metavar="PATH", help=init)
    name = "the detector goes to runs/NAME and replaces a detector there (default: detect)"
    add("--name", type=folder_name, default="detect", help=name)
    samples = "training crops, rounded down to whole batches (default: 8000)"
    add("--samples", type=number(int, 1), default=8000, metavar="N", help=samples)
    batch = "crops in a step (default: 8)"
    add("--batch", type=number(int, 1), default=8, metavar="N", help=batch)
    add("--lr", type=positive, default=1e-3, help="largest learning rate (default: 1e-3)")
    long = "length to which the longer side of a picture is scaled (default: 960)"
    add("--long", type=number(int, 32), default=960, metavar="PIXELS", help=long)
    crop = "height and width of training crops, a multiple of 32 (default: 256)"
    add("--crop", type=number(int, 32), default=256, metavar="PIXELS", help=crop)
    width = "channels of the feature pyramid; published: 256 (default: 64)"
    add("--width", type=number(int, 1), default=64, metavar="N", help=width)
    smallest = (
        "shrinking rate of PSENet's smallest kernel, between 0 and 1; published for curved text: "
        "0.7 (default: 0.4)"
    )
    add("--smallest", type=fraction, default=0.4, metavar="RATE", help=smallest)
    curved = "detect polygons instead of quadrilaterals (default: off)"
    add("--curved", action="store_true", help=curved)
    subset = "train on N pictures, the same ones for the same --seed (default: all)"
    add("--subset", type=number(int, 1), metavar="N", help=subset)
    seed = "seed of weights, pictures and crops (default: 0)"
    add("--seed", type=number(int, 0, 2**63), default=0, metavar="N", help=seed)
    workers = "processes that prepare crops; 0: the training process does (default: 1)"
    add("--workers", type=number(int, 0), default=1, metavar="N", help=workers)
    cache = "memory for decoded pictures; the others are decoded for every crop (default: 0)"
    add("--cache", type=number(float, 0), default=0, metavar="GB", help=cache)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=where)

    command = add_command("eval", "score a detector on held-out pictures")
    add = command.add_argument
    add("run", type=Path, metavar="RUN", help="the folder that train left, such as runs/detect")
    add("--data", required=True, metavar="SOURCE", help=SPECS)
    count = "held-out pictures to render, for --data synth alone (default: 200)"
    add("--count", type=number(int, 1), default=200, metavar="N", help=count)
    add("--score", type=fraction, help=score)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=where)

    command = add_command("predict", "find text in pictures")
    add = command.add_argument
    add("run", type=Path, metavar="RUN", help="the folder that train left, such as runs/detect")
    add("images", type=Path, nargs="+", metavar="IMAGE", help="a picture, or a folder of pictures")
    add("--score", type=fraction, help=score)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=where)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command == "train":
        if args.samples < args.batch:
            parser.error(
                f"--samples: expected at least one batch of {args.batch}, got {args.samples}"
            )
        if args.crop % 32:
            parser.error(f"--crop: expected a multiple of 32, got {args.crop}")
        if args.head == "db" and args.smallest != DetectorConfig.smallest_kernel:
            parser.error(f"--smallest: expected 0.4 with --head db, got {args.smallest}")
    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        parser.error("--device: expected cpu or auto, as torch finds no GPU, got cuda")
    if args.device == "auto":
        args.device = "cuda" if has_gpu else "cpu"
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    advice = (
        "lower --batch, --crop or --width"
        if args.command == "train"
        else "use --device cpu if it is the GPU's, else a machine with more"
    )
    with one_line_errors(PROGRAM, advice):
        {"train": train, "eval": evaluate, "predict": predict}[args.command](args)


if __name__ == "__main__":
    main()
