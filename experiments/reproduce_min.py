"""The paper's tables in small: does this pre-training help a detector, and which part of it?

    python experiments/reproduce_min.py a --scale cpu       # from scratch against pre-trained
    python experiments/reproduce_min.py b --scale cpu       # CAE, +BCL, +VTD, all, sentence encoder
    python experiments/reproduce_min.py c --scale cpu       # 25, 50, 75, 100 % of words annotated
    python experiments/reproduce_min.py d --scale cpu       # attention that falls on text, pictures
    python experiments/reproduce_min.py summary --scale cpu # experiments/results.json
    python experiments/reproduce_min.py check-readme        # README's table is that file's

Each run leaves one JSON file in runs/reproduce/SCALE/; runs that have one are not repeated, so a
table continues where it was stopped. `--dry-run` prints a table's runs. Beside the runs lie
a.md, a.json, a.png and so on.

The protocol, written before the comparison was run:
- Both arms, "scratch" and "pre-trained", differ in the backbone's first weights and their learning
  rate, nothing else. Sizes and the least score of a detection were set on the scratch arm, and so
  was the budget: of 1200 and 2400 crops; with 1200 scratch had F = 0 on img_701 .. img_800.
- Each arm's learning rate is the best one of the same grid, on photographs img_701 .. img_800,
  after training on 100 of img_1 .. img_700; for rendered pictures, on 200 others of the training
  half. All of tables b and c takes the one of "pre-all", the longer row of table a that of 2400.
- Detectors are trained on 100, 200 and all 800 of img_1 .. img_800, the same for the same seed, and
  scored once, after the last step, on img_801 .. img_1000. Every seed that was run is counted.
- Pre-training sees rendered pictures with their words, and the training photographs with their
  transcriptions; their boxes are taken away before (`WithoutQuads`). Each pre-training is run once:
  the spread of a row is that of the detector's seeds.
- Rendered pictures for a detector are of the full variety, of other seeds than pre-training's.
- Table c goes on from table b's "all" with pictures of up to four words, shown eight times.
- Changed after a look at results of an earlier run, before the present one: rendered pictures have
  learning rates of their own; two rows were added, rendered pictures with a third of the crops, for
  with all of them both arms are near the top, and photographs with twice the crops, to see whether
  patience makes up for pre-training.
- Changed after a look at some of the present run: the grid got a third rate, as scratch had taken
  the larger of two; the rates of rendered pictures were judged on 29 to 86 pictures, and table c's
  pictures had too few words for its shares to differ. Runs that this changes were made again.
- The test is a paired one over the seeds, two-sided (scipy.stats.ttest_rel).

A run's file does not know its scale: after a change to `SCALES` remove the files that it concerns.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import ttest_rel
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the clone
import data_stub
import train_min
import vlpt
from experiments import detect_min
from experiments.run_min import Parser, write

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/reproduce")
RESULTS = ROOT / "experiments/results.json"
PATHS = {  # where data lie, from the environment
    "icdar2015": os.getenv("VLPT_ICDAR2015", str(ROOT.parent / "shared/data/icdar2015")),
    "synthtext": os.getenv("VLPT_SYNTHTEXT", "SynthText"),
    "totaltext": os.getenv("VLPT_TOTALTEXT", "Total-Text"),
}
ALNUM = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ARMS = {"scratch": "", "pre-trained": "pre-all"}  # and the pre-training that each starts from
# table b: fields of Config, and the paper's F-score
VARIANTS: dict[str, tuple[dict[str, Any], float | None]] = {
    "CAE": ({"decoder": "none", "contrastive": False}, 82.6),
    "CAE + BCL": ({"decoder": "none"}, 82.9),
    "CAE + VTD": ({"contrastive": False}, 83.9),
    "all": ({}, 85.5),
    "sentence encoder": ({"text_encoder": "sentence"}, None),
}
SHARES = {0.25: 84.8, 0.5: 85.2, 0.75: 85.4, 1.0: 85.5}  # table c, and the paper's F-score
PAPER = "paper: PSENet, ResNet-50, Total-Text, pre-trained on SynthText: other data, other scale"
TABLES = {
    "a": "F-score in %, from scratch and pre-trained, mean ± sd of the seeds",
    "b": "F-score in % by the pre-training, one each, mean ± sd of the seeds",
    "c": "F-score in % by the share of the words annotated, mean ± sd of the seeds",
    "d": "Share in % of the pooled attention within the words of held-out rendered pictures",
}


# ------------------------------------------------------------------------------------- the scales


class Feed(NamedTuple):
    """Where a stage of pre-training takes pictures from."""

    data: str  # "synth", or a key of PATHS
    size: int  # height = width, pixels
    batch: int
    scene: data_stub.Scene = data_stub.Scene()  # of "synth"
    pictures: int | None = None  # of "synth", shown again and again; None: each is a new one


class Stage(NamedTuple):
    """A part of pre-training, with a warm-up and a cosine to zero of its own."""

    feeds: tuple[Feed, ...]  # one step on each in turn
    rounds: int
    lr: float
    held: int = 512  # held-out pictures of each feed to evaluate on, at most


@dataclasses.dataclass(frozen=True)
class Task:
    """What a detector is trained and scored on."""

    data: str
    long: int  # longer side of a picture, pixels
    crop: int  # side of a training crop, pixels
    samples: int  # crops to train on
    batch: int
    count: int  # pictures to score on, at most
    smallest: float = 0.4  # rate of the smallest kernel
    curved: bool = False


@dataclasses.dataclass(frozen=True)
class Scale:
    config: vlpt.Config
    backbone: str  # detect_min.py's name of it
    width: int  # channels of the detector's pyramid
    start: tuple[str, ...] | None  # train_min.py's options; that run's weights begin `stages`
    stages: tuple[Stage, ...]  # of table a
    short: tuple[Stage, ...]  # of tables b and d, from random weights
    shares: tuple[Stage, ...]  # of table c, from those of table b's "all"
    task: Task  # real photographs
    rendered: Task | None
    subsets: tuple[int | None, ...]  # photographs to train on, None for all
    part: int | None  # the one of them for learning rates, tables b, c and a's longer row
    rates: tuple[float, ...]  # the grid of learning rates
    seeds: tuple[int, ...]
    device: str = "cpu"
    workers: int = 0  # that prepare a detector's crops
    shown: int = 200  # pictures of table d
    status: str = ""


one_word = data_stub.Scene(alphabet=ALNUM, kinds=("random", "random", "list", "number"),
                           words=(1, 1), chars=(1, 4), height=(0.22, 0.45), tilt=10.0)  # fmt: skip
two_words = data_stub.Scene(alphabet=ALNUM, kinds=("random", "list", "pseudo", "number"),
                            words=(1, 2), chars=(1, 5), height=(0.14, 0.4), tilt=15.0)  # fmt: skip
four_words = data_stub.Scene(alphabet=ALNUM, kinds=("random", "pseudo", "number"), words=(4, 4),
                             chars=(1, 3), height=(0.12, 0.16), tilt=10.0)  # fmt: skip

SCALES = {
    "cpu": Scale(
        config=dataclasses.replace(vlpt.TINY, alphabet=ALNUM), backbone="tiny", width=32,
        start=("--preset", "tiny"),  # the demo
        stages=(
            Stage((Feed("synth", 64, 64, one_word),), 700, 1e-3),
            Stage((Feed("synth", 64, 64, two_words),), 200, 1e-3),
            Stage((Feed("synth", 64, 64, two_words), Feed("icdar2015", 448, 6)), 60, 5e-4),
        ),
        short=(
            Stage((Feed("synth", 64, 64, data_stub.DIGITS),), 500, 1e-3),
            Stage((Feed("synth", 64, 64, two_words),), 300, 1e-3),
        ),
        shares=(Stage((Feed("synth", 96, 64, four_words, 1600),), 200, 1e-3),),
        task=Task("icdar2015", long=640, crop=160, samples=2400, batch=4, count=200),
        rendered=Task("synth", long=192, crop=160, samples=600, batch=4, count=200),
        subsets=(100, 200, None), part=100, rates=(1e-3, 3e-3, 1e-2), seeds=(0, 1, 2),
    ),
    "gpu": Scale(
        config=vlpt.OCLIP_RN50, backbone="clip_resnet50", width=256,
        start=None, stages=(Stage((Feed("synthtext", 512, 80),), 30_000, 1e-4),),
        short=(Stage((Feed("synthtext", 512, 80),), 10_000, 1e-4),),
        shares=(Stage((Feed("synthtext", 512, 80),), 10_000, 1e-4),),
        task=Task("totaltext", long=1280, crop=640, samples=48_000, batch=16, count=300,
                  smallest=0.7, curved=True),
        rendered=None, subsets=(None,), part=None, rates=(1e-4, 3e-4, 1e-3), seeds=(0, 1, 2),
        device="cuda", workers=8, status="not run",
    ),
    "smoke": Scale(  # for the tests: seconds, means nothing
        config=dataclasses.replace(vlpt.TINY, alphabet=ALNUM), backbone="tiny", width=8,
        start=("--samples", "4", "--batch", "2", "--eval", "4"),
        stages=(Stage((Feed("synth", 64, 4, one_word), Feed("icdar2015", 64, 2)), 2, 1e-3, 8),),
        short=(Stage((Feed("synth", 64, 4, two_words),), 1, 1e-3, 8),), shown=4,
        shares=(Stage((Feed("synth", 96, 4, four_words, 4),), 2, 1e-3, 8),),
        task=Task("icdar2015", long=64, crop=64, samples=6, batch=2, count=2),
        rendered=Task("synth", long=64, crop=64, samples=6, batch=2, count=2),
        subsets=(2, None), part=2, rates=(1e-3, 3e-3), seeds=(0, 1),
    ),
}  # fmt: skip

# ---------------------------------------------------------------------------------------- the jobs


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, with a file of its own."""

    name: str
    kind: str  # "pretrain", "rate" (of learning, to choose one), "finetune", "attention"
    label: str  # of its row
    arm: str = ""
    seed: int = 0
    init: str = ""  # the pre-training to start from, a job's name
    stages: str = ""  # pretrain: which field of the scale
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # pretrain: of Config
    annotated: float = 1.0  # pretrain: share of the words
    rendered: bool = False  # finetune: on rendered pictures, not on photographs
    subset: int | None = None  # finetune: training photographs
    lr: float | None = None  # finetune; None for the arm's best one
    samples: int | None = None  # finetune: crops, None for the task's


class Place(NamedTuple):
    """A row of table a."""

    label: str
    key: str  # in the names of its jobs
    subset: int | None = None
    samples: int | None = None


def list_jobs(table: str, scale: Scale) -> list[Job]:
    """What a table needs, in order: both arms of a seed follow each other."""
    jobs = [Job("pre-all", "pretrain", "all", stages="stages")]
    arms = ARMS if table == "a" else ("pre-trained",)
    for lr in scale.rates:
        for arm in arms:
            name, label = f"rate-{arm}-{lr}", f"lr {lr}"
            jobs.append(Job(name, "rate", label, arm, 100, ARMS[arm], subset=scale.part, lr=lr))
    if table == "a":
        places = [Place(f"{n or 'all'} photographs", str(n or "all"), n) for n in scale.subsets]
        if scale.part:
            n, long = scale.part, 2 * scale.task.samples
            places.append(Place(f"{n} photographs, {long} crops", f"{n}-long", n, long))
        if scale.rendered:
            few = scale.rendered.samples // 3
            places.append(Place("rendered pictures", "rendered"))
            places.append(Place(f"rendered pictures, {few} crops", "rendered-few", None, few))
            for (_, key, _, samples), lr, arm in product(places[-2:], scale.rates, ARMS):
                name = f"rate-{key}-{arm}-{lr}"
                jobs.append(Job(name, "rate", f"lr {lr}", arm, 100, ARMS[arm], lr=lr,
                                rendered=True, samples=samples))  # fmt: skip
        return jobs + [
            Job(f"a-{key}-{arm}-{seed}", "finetune", label, arm, seed, init,
                rendered=key.startswith("rendered"), subset=n, samples=samples)
            for label, key, n, samples in places
            for seed in scale.seeds for arm, init in ARMS.items()
        ]  # fmt: skip
    variants = {"all": VARIANTS["all"]} if table == "c" else VARIANTS
    if table == "d":
        jobs, variants = jobs[:1], {name: VARIANTS[name] for name in ("all", "sentence encoder")}
    starts = {label: "short-" + label.replace(" ", "") for label in variants}
    for label, (fields, _) in variants.items():
        jobs.append(Job(starts[label], "pretrain", label, stages="short", fields=fields))
    if table == "c":
        starts = {f"{share:.0%}": f"share-{100 * share:.0f}" for share in SHARES}
        for share, (label, name) in zip(SHARES, starts.items(), strict=True):
            jobs.append(Job(name, "pretrain", label, init="short-all", stages="shares",
                            annotated=share))  # fmt: skip
    if table == "d":
        starts |= {"table a's pre-training": "pre-all", "untrained": ""}
        return jobs + [Job(f"d-{init or 'untrained'}", "attention", label, label, 0, init)
                       for label, init in starts.items()]  # fmt: skip
    return jobs + [
        Job(f"detect-{init}-{seed}", "finetune", label, "pre-trained", seed, init,
            subset=scale.part)
        for seed in scale.seeds for label, init in starts.items()
    ]  # fmt: skip


def run_jobs(jobs: Sequence[Job], scale: Scale, folder: Path) -> None:
    """Run what has not been run."""
    folder.mkdir(parents=True, exist_ok=True)
    actions = {"pretrain": pretrain, "rate": finetune, "finetune": finetune, "attention": attention}
    for number, job in enumerate(jobs, 1):
        path = folder / f"{job.name}.json"
        if path.exists():
            print(f"{number}/{len(jobs)} {job.name}: done before")
            continue
        print(f"{number}/{len(jobs)} {job.name}", flush=True)
        start = time.time()
        result = actions[job.kind](job, scale, folder)
        record = {
            "job": dataclasses.asdict(job), "result": result, "seconds": round(time.time() - start),
            "date": time.strftime("%Y-%m-%d"), "machine": machine(scale.device),
        }  # fmt: skip
        write(path, json.dumps(record, indent=1).encode())
        shown = {k: v for k, v in result.items() if k in ("f", "precision", "recall", "share")}
        print(f"  {shown} in {record['seconds']} s", flush=True)


def need_all(scale: Scale) -> None:
    """Open each source once. Raises: ValueError, OSError for what would be missing hours later."""
    if scale.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--scale: got one for a GPU, but torch finds none; use cpu")
    stages = scale.stages + scale.short + scale.shares
    for data in sorted({feed.data for stage in stages for feed in stage.feeds}):
        data_stub.open_source(locate(data), "train", 64, 1, 0)
    detect_min.open_pages(locate(scale.task.data), "train")


def machine(device: str) -> str:
    cuda = device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def read_run(path: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        if missing := {"job", "result", "seconds", "machine", "date"} - run.keys():
            raise ValueError(f"without {', '.join(sorted(missing))}")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a run's JSON ({error}); remove it to run it again") from None
    return run


def locate(data: str) -> str:
    return data if data == "synth" else f"{data}:{PATHS[data]}"


# ------------------------------------------------------------------------------------- pre-training


class WithoutQuads(data_stub.Source):
    """A source whose samples have lost their boxes, so that nothing can learn from them."""

    def __init__(self, source: data_stub.Source) -> None:
        self.source, self.root, self.notes = source, source.root, source.notes

    def __len__(self) -> int:
        return len(self.source)

    def learnable(self, alphabet: vlpt.Alphabet, notes: Counter[str]) -> np.ndarray:
        return self.source.learnable(alphabet, notes)

    def characters(self) -> Counter[str]:
        return self.source.characters()

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, least: int | None = None) -> data_stub.Sample:
        return self.source.read(index, least)._replace(quads=None, ignored=None)


def open_feed(
    feed: Feed, split: str, alphabet: str, count: int, seed: int, annotated: float = 1.0
) -> data_stub.Pretraining:
    """One half of a feed; `count` is of rendered pictures."""
    source = data_stub.open_source(locate(feed.data), split, feed.size, count, seed, feed.scene)
    if feed.data != "synth":
        source = WithoutQuads(source)
    characters, trains = vlpt.Alphabet(alphabet), split == "train"
    return data_stub.Pretraining(
        source, characters, feed.size, seed, annotated=annotated if trains else 1.0,
        augment=trains and feed.data != "synth",
    )  # fmt: skip


def pretrain(job: Job, scale: Scale, folder: Path) -> dict[str, Any]:
    """Pre-train as a job says and leave a checkpoint that `detect_min.py --init` reads."""
    config = dataclasses.replace(scale.config, **job.fields)
    torch.manual_seed(job.seed)
    model, found = vlpt.VLPT(config), {}
    if job.init:
        model.load_state_dict(vlpt.read_checkpoint(folder / f"{job.init}.pt")["state_dict"])
    if job.stages == "stages" and scale.start is not None:
        start = folder / "start"
        if not (start / "metrics.json").exists():  # not even begun, or stopped
            begun = (start / "run.json").exists()
            options = ["--resume"] if begun else [*scale.start, "--device", scale.device]
            train_min.main([*options, "--name", str(start.relative_to("runs"))])
        model.backbone = train_min.load_init(str(start), config)
        train_min.load_pool(str(start), model.pool)
    model.to(scale.device).to(memory_format=torch.channels_last)
    for number, stage in enumerate(getattr(scale, job.stages)):
        part = folder / f"{job.name}-{number}.pt"
        if part.exists():  # stopped after this stage
            held = vlpt.read_checkpoint(part)
            model.load_state_dict(held["state_dict"])
            found = held["found"]
            continue
        found[f"stage {number}"] = run_stage(model, stage, job.seed + number, job.annotated)
        print(f"  stage {number}: {json.dumps(found[f'stage {number}'])}", flush=True)
        save(part, model, found)
    save(folder / f"{job.name}.pt", model, found)
    return found


def save(path: Path, model: vlpt.VLPT, found: dict[str, Any]) -> None:
    config, buffer = dataclasses.asdict(model.config), io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "config": config, "found": found}, buffer)
    write(path, buffer.getvalue())


def run_stage(model: vlpt.VLPT, stage: Stage, seed: int, annotated: float) -> dict[str, Any]:
    """Train on each feed in turn; what is read in held-out pictures of each feed afterwards."""
    device, alphabet = model.log_scale.device, model.config.alphabet
    optimizer = train_min.make_optimizer(model, stage.lr, 0.1)
    generator, skipped = torch.Generator().manual_seed(seed + 1), 0
    loaders = []
    for feed in stage.feeds:
        count = feed.pictures or feed.batch * stage.rounds
        data = open_feed(feed, "train", alphabet, count, seed, annotated)
        keys = [range(k * feed.batch, (k + 1) * feed.batch) for k in range(stage.rounds)]
        loaders.append(train_min.make_loader(data, keys, 1, train=True))
    for step in tqdm(range(stage.rounds), disable=None, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * train_min.lr_at(
                step, stage.rounds, min(100, stage.rounds // 5)
            )
        for loader in loaders:
            batch = next(loader)
            skipped += len(batch.skipped)  # unreadable, another one took its place
            ids, targets = vlpt.mask_one_char(batch.ids, generator)
            images, ids, targets = (x.to(device) for x in (batch.images, ids, targets))
            train_min.train_step(model, optimizer, images, ids, targets)
    found: dict[str, Any] = {"skipped": skipped}
    for feed in stage.feeds:
        held = open_feed(feed, "heldout", alphabet, stage.held, seed)
        count = min(stage.held, len(held.indices))
        parts = np.array_split(np.arange(count), max(1, count // feed.batch))
        result = train_min.evaluate(model, train_min.make_loader(held, parts, 1), 0)
        found[feed.data] = {key: round(value, 4) for key, value in result.items()}
    return found


# ------------------------------------------------------------------------------------- detection


class Part:
    """Some of the pages of a source."""

    def __init__(self, pages: detect_min.PageSource, indices: Sequence[int]) -> None:
        self.pages, self.indices = pages, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> detect_min.Page:
        return self.pages[self.indices[k]]

    def name(self, k: int) -> str:
        return self.pages.name(self.indices[k])


def finetune(job: Job, scale: Scale, folder: Path) -> dict[str, Any]:
    """Train a detector as a job says; its score on pictures that it has not seen."""
    task = scale.rendered if job.rendered else scale.task
    assert task is not None  # list_jobs has rendered jobs only where the scale has the task
    spec, samples = locate(task.data), job.samples or task.samples
    count = samples + task.count * (job.kind == "rate")  # of rendered pictures
    train = detect_min.open_pages(spec, "train", task.long, count, 1000 + job.seed)
    test = detect_min.open_pages(spec, "heldout", task.long, task.count)
    if job.kind == "rate":  # an eighth of the training photographs judges the learning rate
        cut = samples if job.rendered else len(train) * 7 // 8
        train, test = Part(train, range(cut)), Part(train, range(cut, len(train)))
    options = ["train", "--lr", job.lr or choose_rate(job, scale, folder), "--samples", samples,
               "--batch", task.batch, "--workers", scale.workers, "--long", task.long,
               "--crop", task.crop, "--width", scale.width, "--smallest", task.smallest,
               "--seed", job.seed,
               "--backbone", scale.backbone, "--device", scale.device]  # fmt: skip
    args = detect_min.parse_args([*map(str, options), *["--curved"] * task.curved])
    settings = {key: getattr(args, key) for key in detect_min.SETTINGS}
    torch.manual_seed(job.seed)
    init = str(folder / f"{job.init}.pt") if job.init else None
    model = detect_min.build(settings, init)
    crops = detect_min.Crops(train, job.subset, task.long, task.crop, task.smallest, job.seed)
    rows = detect_min.fit(model, crops, args)
    some = Part(test, range(min(task.count, len(test))))
    return detect_min.evaluate(model, some, settings) | {"lr": args.lr, "losses": rows}


def choose_rate(job: Job, scale: Scale, folder: Path) -> float:
    """The learning rate of an arm's grid with the best score; rendered pictures have their own.

    Raises: ValueError unless all of the grid was tried.
    """
    held, tried = [read_run(path) for path in sorted(folder.glob("rate-*.json"))], {}
    for run in held:
        other = {"rendered": False, "samples": None} | run["job"]
        crops = job.samples if job.rendered else None
        if (other["arm"], other["rendered"], other["samples"]) == (job.arm, job.rendered, crops):
            tried[run["result"]["lr"]] = run["result"]["f"]
    if set(tried) != set(scale.rates):
        got, wanted = sorted(tried), sorted(scale.rates)
        raise ValueError(f"{folder}: got rate-*.json of {job.name} for {got}, wanted {wanted}")
    return max(sorted(tried), key=tried.__getitem__)


# ------------------------------------------------------------------------------------- attention


@torch.no_grad()
def attention(job: Job, scale: Scale, folder: Path) -> dict[str, Any]:
    """The share of the pooled attention that falls inside the words' quads of held-out pictures."""
    feed = scale.short[-1].feeds[0]
    torch.manual_seed(job.seed)
    held = vlpt.read_checkpoint(folder / f"{job.init}.pt") if job.init else None
    model = vlpt.VLPT(vlpt.Config(**held["config"]) if held else scale.config).eval()
    if held:
        model.load_state_dict(held["state_dict"])
    spec = locate(feed.data)
    source = data_stub.open_source(spec, "heldout", feed.size, scale.shown, 0, feed.scene)
    alphabet, shares, areas, shown = vlpt.Alphabet(model.config.alphabet), [], [], []
    for k in range(min(scale.shown, len(source))):
        sample = source[k]
        image = Image.fromarray(sample.image).resize((feed.size, feed.size))
        assert sample.quads is not None  # each source of a scale's `short` has them
        quads = sample.quads * feed.size / np.array(sample.image.shape[1::-1])
        inside = np.zeros((feed.size, feed.size), np.uint8)
        cv2.fillPoly(inside, list(np.rint(quads).astype(np.int32)), 1)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        pooled, _ = model.attention_maps(vlpt.normalize(pixels), alphabet.encode(["a"])[None])
        heat = np.kron(pooled[0], np.ones((feed.size // pooled.shape[1],) * 2))
        shares.append(float((heat * inside).sum() / heat.sum()))
        areas.append(float(inside.mean()))
        shown.append((sample.image, heat))
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (picture, heat) in zip(figure.subplots(2, 6).T.reshape(-1, 2), shown, strict=False):
        axes[0].imshow(picture)
        axes[1].imshow(heat, "inferno")
        for one in axes:
            one.axis("off")
    figure.suptitle(f"pooled attention, {job.arm}")
    figure.savefig(folder / f"{job.name}.png", dpi=100)
    return {"share": float(np.mean(shares)), "area": float(np.mean(areas)), "pictures": len(shares)}


# ---------------------------------------------------------------------------------------- reports


def collect(table: str, scale: Scale, folder: Path) -> list[dict[str, Any]]:
    """The rows of a table: for each arm the values of its seeds, in order, in %."""
    papers: dict[str, dict[str, float | None]] = {
        "b": {label: paper for label, (_, paper) in VARIANTS.items()},
        "c": {f"{share:.0%}": paper for share, paper in SHARES.items()},
    }
    rows: dict[str, dict[str, Any]] = {}
    for job in list_jobs(table, scale):
        if job.kind not in ("finetune", "attention"):
            continue
        paper = papers.get(table, {}).get(job.label)
        row = rows.setdefault(job.label, {"label": job.label, "values": {}, "paper": paper})
        path = folder / f"{job.name}.json"
        if not path.exists():
            continue
        run = read_run(path)
        value = run["result"]["f" if job.kind == "finetune" else "share"]
        row["values"].setdefault(job.arm, {})[str(job.seed)] = round(100 * value, 2)
        row["lr"] = row.get("lr", {}) | {job.arm: run["result"].get("lr")}
        if job.kind == "attention":
            row["area"] = round(100 * run["result"]["area"], 2)
    return list(rows.values())


def spread(values: dict[str, float]) -> str:
    numbers = list(values.values())
    if not numbers:
        return "not run"
    more = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else " (1 seed)"
    return f"{np.mean(numbers):.1f}{more}"


def compare(row: dict[str, Any]) -> str:
    """Pre-trained minus scratch over the seeds that both have, and the paired test's p."""
    one, other = (row["values"].get(arm, {}) for arm in ARMS)
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return "not run"
    gaps = [other[seed] - one[seed] for seed in seeds]
    if len(seeds) < 2:
        return f"{gaps[0]:+.1f} (1 seed)"
    p = ttest_rel([other[seed] for seed in seeds], [one[seed] for seed in seeds]).pvalue
    return f"{np.mean(gaps):+.1f} ± {np.std(gaps, ddof=1):.1f} (n = {len(seeds)}, p = {p:.2g})"


def to_markdown(table: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table's lines."""
    if table == "a":
        lines = [
            "| detector trained on | from scratch | pre-trained | difference |",
            "|---|---|---|---|",
        ]
        for row in rows:
            cells = (spread(row["values"].get(arm, {})) for arm in ARMS)
            lines.append(f"| {' | '.join((row['label'], *cells, compare(row)))} |")
        return lines
    if table == "d":
        lines = [
            "| text encoder | attention on words | words' share of the area |",
            "|---|---|---|",
        ]
        for row in rows:
            value: dict[str, float] = next(iter(row["values"].values()), {})
            area = f"{row['area']:.1f}" if "area" in row else "not run"
            lines.append(f"| {row['label']} | {spread(value).removesuffix(' (1 seed)')} | {area} |")
        return lines
    lines = ["| pre-trained with | this | paper |", "|---|---|---|"]
    for row in rows:
        value = next(iter(row["values"].values()), {})
        lines.append(f"| {row['label']} | {spread(value)} | {row['paper'] or '-'} |")
    return lines


def plot(path: Path, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """Each seed's value as a dot, the means as bars."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(arm for row in rows for arm in row["values"]))
    grouped = table == "a"
    for k, arm in enumerate(arms if grouped else [None]):
        for x, row in enumerate(rows):
            value = (
                row["values"].get(arm, {}) if grouped else next(iter(row["values"].values()), {})
            )
            numbers = list(value.values())
            if numbers:
                at, color = x + 0.35 * k, f"C{k}"
                name = arm if grouped and not x else None
                axes.bar(at, np.mean(numbers), 0.3, color=color, alpha=0.5, label=name)
                axes.plot([at] * len(numbers), numbers, "o", color=color)
    labels = [textwrap.fill(row["label"], 16) for row in rows]
    axes.set_xticks(np.arange(len(rows)) + (0.175 if grouped else 0), labels, fontsize=8)
    axes.set_title(TABLES[table], fontsize=10)
    if grouped and arms:
        axes.legend()
    figure.savefig(path, dpi=110)


def report(table: str, name: str, folder: Path) -> list[str]:
    """Write a table's files beside its runs; its Markdown."""
    rows, scale = collect(table, SCALES[name], folder), SCALES[name]
    lines = [f"{TABLES[table]} (--scale {name})", "", *to_markdown(table, rows)]
    lines += ["", PAPER] if table in "bc" else []
    lines += ["", f"Status: {scale.status}"] if scale.status else []
    write(folder / f"{table}.md", ("\n".join(lines) + "\n").encode())
    write(folder / f"{table}.json", json.dumps(rows, indent=1).encode())
    plot(folder / f"{table}.png", table, rows)
    return lines


def summary(name: str, folder: Path) -> None:
    """Put all tables of a scale into one small file, the one README's table is made of."""
    runs = [read_run(path) for path in sorted(folder.glob("*.json")) if len(path.stem) > 1]
    if not runs:
        raise ValueError(f"{folder}: got no runs, wanted some; see reproduce_min.py a")
    found = {
        "scale": name, "machines": sorted({run["machine"] for run in runs}),
        "dates": sorted({run["date"] for run in runs}),
        "hours": round(sum(run["seconds"] for run in runs) / 3600, 2),
        "pretraining": {run["job"]["name"]: run["result"] for run in runs
                        if run["job"]["kind"] == "pretrain"},
        "tables": {table: collect(table, SCALES[name], folder) for table in TABLES},
    }  # fmt: skip
    write(RESULTS, json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    print(f"wrote {RESULTS}")


def readme_lines(results: dict[str, Any]) -> list[str]:
    """What README shows of results.json."""
    rows = {row["label"]: row for row in results["tables"]["d"]}
    pretrained, untrained = rows["table a's pre-training"], rows["untrained"]
    shares = [next(iter(next(iter(row["values"].values())).values()))
              for row in (pretrained, untrained)]  # fmt: skip
    line = (
        f"Of the pooled attention {shares[0]:.1f} % falls on words of held-out rendered pictures, "
        f"untrained {shares[1]:.1f} %; words cover {untrained['area']:.1f} % of the area."
    )
    short = results["tables"]["b"] + results["tables"]["c"]
    names = [row["label"].replace("%", " % of the words") for row in short]
    cells = [spread(next(iter(row["values"].values()), {})) for row in short]
    across = [["pre-trained with", *names], ["---"] * (len(short) + 1), ["F-score, short", *cells],
              ["paper, Total-Text", *(str(row["paper"] or "-") for row in short)]]  # fmt: skip
    lines = [*to_markdown("a", results["tables"]["a"]), ""]
    lines += [f"| {' | '.join(cells)} |" for cells in across]
    return [*lines, "", line]


def headline(results: dict[str, Any]) -> str:
    """README's first table: pre-trained (from scratch) for each number of photographs."""
    rows = [row["values"] for row in results["tables"]["a"] if row["label"].endswith("photographs")]
    means = [[spread(row.get(arm, {})).split(" ±")[0] for arm in ARMS] for row in rows]
    return " / ".join(f"{trained} ({scratch})" for scratch, trained in means)


def check_readme() -> None:
    """Stop unless README's tables, also that between its two marks, are those of results.json."""
    results = json.loads(RESULTS.read_text())
    wanted, text = readme_lines(results), (ROOT / "README.md").read_text()
    if f"| {headline(results)}, " not in text:
        raise ValueError(f"README.md: its first table lacks {RESULTS.name}'s {headline(results)}")
    _, found, rest = text.partition("<!-- results -->\n")
    got = rest.partition("<!-- /results -->")[0].strip().splitlines()
    if not found or got != wanted:
        table = "\n".join(["<!-- results -->", *wanted, "<!-- /results -->"])
        raise ValueError(f"README.md: its table is not that of {RESULTS.name}; wanted\n{table}")
    print(f"README.md agrees with {RESULTS.name}")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="reproduce_min.py", allow_abbrev=False, description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "table",
        choices=(*TABLES, "summary", "check-readme"),
        help="a to d: run and report; else: write, compare",
    )
    add("--scale", choices=SCALES, default="cpu", help="cpu: hours on 2 cores; gpu: not run yet")
    add("--dry-run", action="store_true", help="print the runs of a table and stop")
    add("--only", default="", metavar="TEXT", help="only the runs whose name holds this")
    args = parser.parse_args(argv)
    scale, folder = SCALES[args.scale], RUNS / args.scale
    try:
        if args.table == "check-readme":
            return check_readme()
        if args.table == "summary":
            return summary(args.scale, folder)
        jobs = [job for job in list_jobs(args.table, scale) if args.only in job.name]
        if not jobs:
            raise ValueError(f"--only: got {args.only!r}, wanted a part of a run's name; --dry-run")
        if args.dry_run:
            for job in jobs:
                done = "done" if (folder / f"{job.name}.json").exists() else "to run"
                changed = {
                    k: v for k, v in dataclasses.asdict(job).items() if v not in ("", None, {})
                }
                print(f"{done:<7}", *(f"{k}={v}" for k, v in changed.items()))
            return None
        if not all((folder / f"{job.name}.json").exists() for job in jobs):
            need_all(scale)
        run_jobs(jobs, scale, folder)
        print("\n".join(report(args.table, args.scale, folder)))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"reproduce_min.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("reproduce_min.py: stopped; the same command goes on from here")
    return None


if __name__ == "__main__":
    main()
