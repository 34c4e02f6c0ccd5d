"""The tables of the paper: does this pre-training help a detector, and which part of it?

    python -m experiments.reproduce a            # from scratch against pre-trained
    python -m experiments.reproduce b            # ablation: CAE, +BCL, +VTD, all, sentence encoder
    python -m experiments.reproduce c            # 25, 50, 75 and 100 % of the words annotated
    python -m experiments.reproduce d            # attention on text, with pictures

    python -m experiments.reproduce totaltext --scale gpu    # table a on a data set of the paper
    python -m experiments.reproduce ctw1500 --scale gpu
    python -m experiments.reproduce icdar2015 --scale gpu
    python -m experiments.reproduce lsvt --scale gpu         # pre-trained on LSVT's weak labels

    python -m experiments.reproduce summary      # collect all tables in experiments/results.json

Run these from the clone of the repository. Begin with `--dry-run`, which lists the runs of a table
with their estimated hours. It also says which data sets are missing, where to download them, and
which environment variable tells where they are: VLPT_SYNTHTEXT, VLPT_ICDAR2015, VLPT_TOTALTEXT,
VLPT_CTW1500 or VLPT_LSVT. The scale "cpu" needs only ICDAR 2015 and was run. The scale "gpu" has
the published model on one GPU of 80 GB, with far fewer pictures than published, and was not run.

Each run leaves one JSON file in runs/reproduce/SCALE/. A run that has left one is not repeated, so
that a table continues where it was stopped. Runs of another version of this project, or of other
sizes, are refused. The results, a.md, a.json, a.png and so on, lie beside the runs.

The protocol, here for the scale "cpu", was written before the comparison was run; LOG.md says what
was changed later, and why.
- The two arms, "scratch" and "pre-trained", differ in nothing but the first weights of the backbone
  and the learning rate. Sizes, the score threshold and the budget were chosen on the scratch arm.
  The budget is 2400 crops, as with 1200 crops its F-score was 0 on img_701 .. img_800.
- The learning rate of each arm is the best one of the same grid. Photographs: trained on 100 of
  img_1 .. img_700, scored on img_701 .. img_800. Rendered pictures: scored on 200 others of the
  training half. Tables b and c use the rate of "pre-all".
- Detectors are trained on 100, 200 and all 800 of img_1 .. img_800, which are the same for the same
  seed, and scored once, after the last step, on img_801 .. img_1000. Every seed counts.
- Pre-training sees rendered pictures with their words, and the training photographs with their
  transcriptions, without the boxes (`augment_without_boxes`). Each pre-training is run once, so the
  spread of a row is that of the detector's seeds.
- A detector's rendered pictures are drawn with the default `Scene()`, from seeds that pre-training
  did not use.
- Table c continues from the "all" pre-training of table b, with pictures of up to four words that
  are each shown eight times.
- The test is a paired, two-sided one over the seeds (scipy.stats.ttest_rel).
"""

import argparse
import dataclasses
import io
import json
import os
import signal
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import ttest_rel
from tqdm import tqdm

import data_stub
import train_min
import vlpt
from readers import open_source, read_alphabet
from readers.detection import DetectionDataset, DetectionSample
from training.augment import augment
from training.data import evaluation_batches, prepare, seed_of, training_batches
from training.dataset import Pretraining
from training.init import load_init
from training.options import Parser
from training.runs import Stopped, one_line_errors
from training.weights import load_model
from transfer.dataset import TrainingCrops, open_dataset
from transfer.detect import evaluate_detector, place, train_detector
from transfer.heads import build_detector
from transfer.pyramid import DetectorConfig

PROGRAM = "python -m experiments.reproduce"
ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/reproduce")
RESULTS = ROOT / "experiments/results.json"


class Download(NamedTuple):
    """Where a data set comes from, and where it is expected."""

    variable: str  # the environment variable that says where it is
    folder: str  # where it is without that
    url: str
    files: str  # what to unpack there


DOWNLOADS = {
    "synthtext": Download(
        "VLPT_SYNTHTEXT",
        "SynthText",
        "https://www.robots.ox.ac.uk/~vgg/data/scenetext/",
        "gt.mat and the folders of pictures (41 GB)",
    ),
    "icdar2015": Download(
        "VLPT_ICDAR2015",
        "icdar2015",
        "https://rrc.cvc.uab.es/?ch=4&com=downloads (task 4.1, needs an account)",
        "ch4_training_images and ch4_training_localization_transcription_gt",
    ),
    "totaltext": Download(
        "VLPT_TOTALTEXT",
        "Total-Text",
        "https://github.com/cs-chan/Total-Text-Dataset",
        "Images/Train, Images/Test, txt_format/Train and txt_format/Test",
    ),
    "ctw1500": Download(
        "VLPT_CTW1500",
        "ctw1500",
        "https://github.com/Yuliang-Liu/Curve-Text-Detector",
        "train_images, ctw1500_train_labels, test_images and gt_ctw1500",
    ),
    "lsvt": Download(
        "VLPT_LSVT",
        "LSVT",
        "https://rrc.cvc.uab.es/?ch=16&com=downloads (needs an account)",
        "train_full_labels.json, train_weak_labels.json and the folders of their pictures",
    ),
}
PATHS = {name: os.getenv(each.variable, each.folder) for name, each in DOWNLOADS.items()}
LSVT_PARTS = {"lsvt-full": "train_full_labels.json", "lsvt-weak": "train_weak_labels.json"}
ALNUM = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ARMS = {"scratch": "", "pre-trained": "pre-all"}  # and the pre-training that each starts from
# Table b: fields of Config, and the F-score in the paper.
VARIANTS: dict[str, tuple[dict[str, Any], float | None]] = {
    "CAE": ({"decoder": "none", "contrastive": False}, 82.6),
    "CAE + BCL": ({"decoder": "none"}, 82.9),
    "CAE + VTD": ({"contrastive": False}, 83.9),
    "all": ({}, 85.5),
    "sentence encoder": ({"text_encoder": "sentence"}, None),
}
SHARES = {0.25: 84.8, 0.5: 85.2, 0.75: 85.4, 1.0: 85.5}  # table c, and the F-score in the paper
PAPER = "paper: PSENet, ResNet-50, Total-Text, pre-trained on SynthText: other data, other scale"
TABLES = {
    "a": "F-score in %, from scratch and pre-trained, mean ± sd of the seeds",
    "b": "F-score in % by the pre-training, one each, mean ± sd of the seeds",
    "c": "F-score in % by the share of the words annotated, mean ± sd of the seeds",
    "d": "Share in % of the pooled attention within the words of held-out rendered pictures",
}
BENCHMARKS = {  # table a on other data sets of the paper, and what is published for PSENet
    "totaltext": "85.5 in the paper; 82.6 with the character encoder alone",
    "ctw1500": "82.8 in the paper; MMOCR: 77.93 from ImageNet weights, 80.37 from oCLIP's",
    "icdar2015": "MMOCR: 79.98 from ImageNet weights, 84.78 from oCLIP's",
    "lsvt": "77.1 in the paper, 2.5 more than without, on test pictures without public labels",
}
TITLES = TABLES | dict.fromkeys(BENCHMARKS, TABLES["a"])


# ------------------------------------------------------------------------------------- the scales


class DataConfig(NamedTuple):
    """Where a stage of pre-training takes pictures from."""

    data: str  # "synth", or a key of PATHS
    size: int  # height = width, pixels
    batch: int
    scene: data_stub.Scene = data_stub.Scene()  # of "synth"
    pictures: int | None = None  # of "synth", shown again and again; None: each is a new one


class Stage(NamedTuple):
    """A part of pre-training, with its own warm-up and cosine to zero."""

    sources: tuple[DataConfig, ...]  # one step on each in turn
    rounds: int
    lr: float
    heldout: int = 512  # held-out pictures of each source to evaluate on, at most
    workers: int = 1  # processes that prepare pictures


@dataclasses.dataclass(frozen=True)
class Task:
    """What a detector is trained and scored on."""

    data: str
    long_side: int  # of a picture, pixels
    crop: int  # side of a training crop, pixels
    samples: int  # crops to train on
    batch: int
    count: int  # pictures to score on, at most
    smallest_kernel: float = 0.4
    curved: bool = False


class Speed(NamedTuple):
    """What to estimate hours from."""

    pretraining: float  # pixels a second
    detector: float  # pixels of crops a second
    scoring: float  # seconds for a picture
    machine: str


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of everything.

    Its `repr` is recorded with each run. It leaves out what changes no run that is done.
    """

    config: vlpt.Config
    backbone: str  # its name in transfer/pyramid.py
    width: int  # channels of the detector's pyramid
    start: tuple[str, ...] | None  # options of train_min.py; the weights of that run begin `stages`
    stages: tuple[Stage, ...]  # of table a
    short: tuple[Stage, ...]  # of tables b and d, from random weights
    shares: tuple[Stage, ...]  # of table c, from the weights of "all" in table b
    task: Task  # real photographs
    rendered: Task | None
    subsets: tuple[int | None, ...]  # photographs to train on, None for all
    rate_subset: int | None  # of these, for learning rates and tables b and c
    rates: tuple[float, ...]  # the grid of learning rates
    seeds: tuple[int, ...] = dataclasses.field(repr=False)
    speed: Speed = dataclasses.field(repr=False)
    benchmarks: dict[str, Task] = dataclasses.field(default_factory=dict)  # those of BENCHMARKS
    weak: tuple[Stage, ...] = ()  # of table "lsvt", from random weights, with LSVT's characters
    device: str = "cpu"
    workers: int = dataclasses.field(default=0, repr=False)  # they prepare a detector's crops
    shown: int = 200  # pictures of table d
    status: str = dataclasses.field(default="", repr=False)


one_word = data_stub.Scene(
    alphabet=ALNUM,
    kinds=("random", "random", "list", "number"),
    words=(1, 1),
    chars=(1, 4),
    height=(0.22, 0.45),
    tilt=10.0,
)
two_words = data_stub.Scene(
    alphabet=ALNUM,
    kinds=("random", "list", "pseudo", "number"),
    words=(1, 2),
    chars=(1, 5),
    height=(0.14, 0.4),
    tilt=15.0,
)
four_words = data_stub.Scene(
    alphabet=ALNUM,
    kinds=("random", "pseudo", "number"),
    words=(4, 4),
    chars=(1, 3),
    height=(0.12, 0.16),
    tilt=10.0,
)

# The tables of the scale "cpu" took 5.3 hours at about this speed.
SHARED_CPU = Speed(100 * 64**2, 8 * 160**2, 0.3, "two shared CPU cores")
# Measured on an H200 at 512 pixels: the model takes 619 pictures a second with batches of 256; with
# 14 loader processes beside it, at a batch of 64, it trained on 470 photographs a second, and
# waited for them 3 % of the time. A PSENet on a ResNet-18 takes 394 crops a second. A ResNet-50
# needs 2.3 times the operations of a ResNet-18. The seconds for scoring are a guess.
H200 = Speed(470 * 512**2, 394 / 2.3 * 512**2, 0.5, "one H200 and 16 CPU cores")
curved = Task(
    "totaltext",
    long_side=1280,
    crop=640,
    samples=48_000,
    batch=16,
    count=300,
    smallest_kernel=0.7,
    curved=True,
)

SCALES = {
    "cpu": Scale(
        config=dataclasses.replace(vlpt.TINY, alphabet=ALNUM),
        backbone="tiny",
        width=32,
        start=("--preset", "tiny"),  # the demo
        stages=(
            Stage((DataConfig("synth", 64, 64, one_word),), 700, 1e-3),
            Stage((DataConfig("synth", 64, 64, two_words),), 200, 1e-3),
            Stage(
                (DataConfig("synth", 64, 64, two_words), DataConfig("icdar2015", 448, 6)), 60, 5e-4
            ),
        ),
        short=(
            Stage((DataConfig("synth", 64, 64, data_stub.DIGITS),), 500, 1e-3),
            Stage((DataConfig("synth", 64, 64, two_words),), 300, 1e-3),
        ),
        shares=(Stage((DataConfig("synth", 96, 64, four_words, 1600),), 200, 1e-3),),
        task=Task("icdar2015", long_side=640, crop=160, samples=2400, batch=4, count=200),
        rendered=Task("synth", long_side=192, crop=160, samples=600, batch=4, count=200),
        subsets=(100, 200, None),
        rate_subset=100,
        rates=(1e-3, 3e-3, 1e-2),
        seeds=(0, 1, 2),
        speed=SHARED_CPU,
    ),
    "gpu": Scale(
        config=vlpt.OCLIP_RN50,
        backbone="clip_resnet50",
        width=256,
        start=None,
        # 2.4 million pictures, and 0.8 million, of the 77 million in the paper's 100 epochs
        stages=(Stage((DataConfig("synthtext", 512, 256),), 9_375, 1e-4, workers=14),),
        short=(Stage((DataConfig("synthtext", 512, 256),), 3_125, 1e-4, workers=14),),
        shares=(Stage((DataConfig("synthtext", 512, 256),), 3_125, 1e-4, workers=14),),
        weak=(Stage((DataConfig("lsvt-weak", 512, 256),), 9_375, 1e-4, workers=14),),
        task=curved,
        benchmarks={
            "ctw1500": dataclasses.replace(curved, data="ctw1500", count=500),
            "icdar2015": dataclasses.replace(
                curved, data="icdar2015", count=200, smallest_kernel=0.4, curved=False
            ),
            "lsvt": dataclasses.replace(curved, data="lsvt-full", samples=96_000, count=1000),
        },
        rendered=None,
        subsets=(None,),
        rate_subset=None,
        rates=(1e-4, 3e-4, 1e-3),
        seeds=(0, 1, 2),
        speed=H200,
        device="cuda",
        workers=14,
        status="not run",
    ),
    "smoke": Scale(  # for the tests: seconds, means nothing
        config=dataclasses.replace(vlpt.TINY, alphabet=ALNUM),
        backbone="tiny",
        width=8,
        start=("--samples", "4", "--batch", "2", "--eval", "4"),
        stages=(
            Stage(
                (DataConfig("synth", 64, 4, one_word), DataConfig("icdar2015", 64, 2)), 2, 1e-3, 8
            ),
        ),
        short=(Stage((DataConfig("synth", 64, 4, two_words),), 1, 1e-3, 8),),
        shown=4,
        shares=(Stage((DataConfig("synth", 96, 4, four_words, 4),), 2, 1e-3, 8),),
        task=Task("icdar2015", long_side=64, crop=64, samples=6, batch=2, count=2),
        rendered=Task("synth", long_side=64, crop=64, samples=6, batch=2, count=2),
        subsets=(2, None),
        rate_subset=2,
        rates=(1e-3, 3e-3),
        seeds=(0, 1),
        speed=SHARED_CPU,
        benchmarks={
            "ctw1500": Task("ctw1500", 64, 64, samples=4, batch=2, count=2, curved=True),
            "lsvt": Task("lsvt-full", 64, 64, samples=4, batch=2, count=2, curved=True),
        },
        weak=(Stage((DataConfig("lsvt-weak", 64, 4),), 2, 1e-3, 8),),
    ),
}

# ---------------------------------------------------------------------------------------- the jobs


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, which leaves one file."""

    name: str
    kind: str  # "pretrain", "rate" (to choose a learning rate), "finetune", "attention"
    label: str  # of its row in the table
    arm: str = ""
    seed: int = 0
    init: str = ""  # the name of the pre-training to start from
    stages: str = ""  # pretrain: which field of the scale
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # pretrain: of Config
    annotated: float = 1.0  # pretrain: share of the words
    benchmark: str = ""  # finetune: a data set of BENCHMARKS instead of the scale's own
    rendered: bool = False  # finetune: on rendered pictures instead of photographs
    subset: int | None = None  # finetune: training photographs
    lr: float | None = None  # finetune; None for the best one of the arm
    samples: int | None = None  # finetune: crops, None for as many as the task says


def list_jobs(table: str, scale: Scale) -> list[Job]:
    """The runs of a table, in order. Each one starts from an earlier one, or from nothing."""
    pretraining = Job("pre-all", "pretrain", "all", stages="stages")
    if table in scale.benchmarks:
        weak = Job("pre-lsvt", "pretrain", "LSVT", stages="weak")
        return list_benchmark_jobs(table, scale, weak if table == "lsvt" else pretraining)
    if table in BENCHMARKS and table != scale.task.data:
        names = [name for name in BENCHMARKS if name in {scale.task.data, *scale.benchmarks}]
        raise ValueError(
            f"table: expected one of {', '.join([*TABLES, *names])} at this --scale, got {table!r}"
        )
    if table == "a" or table == scale.task.data:
        return [pretraining, *list_jobs_of_table_a(scale)]
    if table == "d":
        return [pretraining, *list_attention_jobs(scale)]
    rates = [make_rate_job(scale, "pre-trained", lr) for lr in scale.rates]
    variants = ["all"] if table == "c" else [*VARIANTS]
    jobs = [make_short_job(label) for label in variants]
    starts = {job.label: job.name for job in jobs}
    if table == "c":
        starts = {}
        for share in SHARES:
            label, name = f"{share:.0%}", f"share-{100 * share:.0f}"
            starts[label] = name
            jobs.append(
                Job(name, "pretrain", label, init="short-all", stages="shares", annotated=share)
            )
    for seed, (label, init) in product(scale.seeds, starts.items()):
        name = f"detect-{init}-{seed}"
        arm, subset = "pre-trained", scale.rate_subset
        jobs.append(Job(name, "finetune", label, arm, seed, init, subset=subset))
    return [pretraining, *rates, *jobs]


def list_jobs_of_table_a(scale: Scale) -> list[Job]:
    """The learning rates, then the rows of the table; both arms of a seed follow each other."""
    jobs = [make_rate_job(scale, arm, lr) for lr, arm in product(scale.rates, ARMS)]
    rows = [
        Job(f"{n or 'all'}", "finetune", f"{n or 'all'} photographs", subset=n)
        for n in scale.subsets
    ]
    if scale.rendered:
        crops = scale.rendered.samples // 3
        label = "rendered pictures"
        on_rendered = [
            Job("rendered", "finetune", label, rendered=True),
            Job(
                "rendered-few", "finetune", f"{label}, {crops} crops", rendered=True, samples=crops
            ),
        ]
        rows += on_rendered
        for row, lr, arm in product(on_rendered, scale.rates, ARMS):
            jobs.append(make_rate_job(scale, arm, lr, row))
    for row, seed, (arm, init) in product(rows, scale.seeds, ARMS.items()):
        name = f"a-{row.name}-{arm}-{seed}"
        jobs.append(dataclasses.replace(row, name=name, arm=arm, seed=seed, init=init))
    return jobs


def list_benchmark_jobs(table: str, scale: Scale, pretraining: Job) -> list[Job]:
    """A pre-training, the learning rates of both arms, and the detectors of both arms."""
    row = Job(table, "finetune", table, benchmark=table)
    starts = dict(zip(ARMS, ("", pretraining.name), strict=True))
    jobs = [pretraining]
    for lr, (arm, init) in product(scale.rates, starts.items()):
        name = f"rate-{table}-{arm}-{lr}"
        jobs.append(Job(name, "rate", f"lr {lr}", arm, 100, init, benchmark=table, lr=lr))
    for seed, (arm, init) in product(scale.seeds, starts.items()):
        name = f"{table}-{arm}-{seed}"
        jobs.append(dataclasses.replace(row, name=name, arm=arm, seed=seed, init=init))
    return jobs


def task_of(job: Job, scale: Scale) -> Task:
    """What the detector of a job is trained and scored on."""
    if job.benchmark:
        return scale.benchmarks[job.benchmark]
    task = scale.rendered if job.rendered else scale.task
    assert task is not None  # list_jobs has rendered jobs only where the scale has the task
    return task


def data_of(job: Job, scale: Scale) -> set[str]:
    """The data that a job reads."""
    if job.kind in ("rate", "finetune"):
        return {task_of(job, scale).data}
    stages: tuple[Stage, ...] = getattr(scale, job.stages or "short")
    return {source.data for stage in stages for source in stage.sources}


def estimate_hours(job: Job, scale: Scale) -> float:
    """How long a job may take on the machine of `Scale.speed`, evaluation of a model excluded."""
    if job.kind == "attention":
        return scale.shown * scale.speed.scoring / 3600
    if job.kind == "pretrain":
        pixels = sum(
            stage.rounds * source.batch * source.size**2
            for stage in getattr(scale, job.stages)
            for source in stage.sources
        )
        return pixels / scale.speed.pretraining / 3600
    task = task_of(job, scale)
    training = (job.samples or task.samples) * task.crop**2 / scale.speed.detector
    return (training + task.count * scale.speed.scoring) / 3600


def make_rate_job(scale: Scale, arm: str, lr: float, rendered: Job | None = None) -> Job:
    """One learning rate of an arm's grid: on photographs, or for a row of rendered pictures."""
    if rendered is None:
        job = Job(f"rate-{arm}-{lr}", "rate", f"lr {lr}", subset=scale.rate_subset)
    else:
        name = f"rate-{rendered.name}-{arm}-{lr}"
        job = dataclasses.replace(rendered, name=name, kind="rate", label=f"lr {lr}")
    return dataclasses.replace(job, arm=arm, seed=100, init=ARMS[arm], lr=lr)


def make_short_job(label: str, seed: int = 0) -> Job:
    """The short pre-training of a variant of table b."""
    fields, _ = VARIANTS[label]
    name = "short-" + label.replace(" ", "") + (f"-seed{seed}" if seed else "")
    return Job(name, "pretrain", label, seed=seed, stages="short", fields=fields)


def list_attention_jobs(scale: Scale) -> list[Job]:
    """Short pre-trainings, then the attention of these, of table a's and of random weights."""
    labels = ("all", "sentence encoder")
    jobs = [make_short_job(label, seed) for seed, label in product(scale.seeds, labels)]
    starts = [(job.label, job.seed, job.name) for job in jobs]
    starts += [("table a's pre-training", 0, "pre-all"), ("untrained", 0, "")]
    for label, seed, init in starts:
        jobs.append(Job(f"d-{init or 'untrained'}", "attention", label, label, seed, init))
    return jobs


def run_jobs(jobs: Sequence[Job], scale: Scale, folder: Path) -> None:
    """Run what has not been run yet."""
    folder.mkdir(parents=True, exist_ok=True)
    actions: dict[str, Callable[[Job, Scale, Path], dict[str, Any]]] = {
        "pretrain": pretrain,
        "rate": finetune,
        "finetune": finetune,
        "attention": measure_attention,
    }
    for number, job in enumerate(jobs, 1):
        path = folder / f"{job.name}.json"
        if path.exists():
            print(f"{number}/{len(jobs)} {job.name}: done before")
            continue
        print(f"{number}/{len(jobs)} {job.name}", flush=True)
        start = time.time()
        try:
            result = actions[job.kind](job, scale, folder)
        except KeyboardInterrupt:
            done = f"{number - 1} of {len(jobs)} runs; the same command continues from here"
            raise Stopped([signal.SIGINT], done) from None
        record = {
            "job": dataclasses.asdict(job),
            "version": vlpt.__version__,
            "scale": repr(scale),
            "result": result,
            "seconds": round(time.time() - start),
            "date": time.strftime("%Y-%m-%d"),
            "machine": describe_machine(scale.device),
        }
        vlpt.write_atomically(path, json.dumps(record, indent=1).encode())
        shown = {k: v for k, v in result.items() if k in ("f", "precision", "recall", "share")}
        print(f"  {shown} in {record['seconds']} s", flush=True)


def describe_missing(jobs: Sequence[Job], scale: Scale) -> list[str]:
    """For each data set of some jobs that is not there, where to get it and where to put it."""
    needed = {data.partition("-")[0] for job in jobs for data in data_of(job, scale)} - {"synth"}
    lines = []
    for name in sorted(needed):
        if not Path(PATHS[name]).exists():
            found = DOWNLOADS[name]
            lines.append(
                f"{name}: {PATHS[name]} not found; download {found.files} from {found.url}, and "
                f"set {found.variable} to the folder that holds them"
            )
    return lines


def check_data(jobs: Sequence[Job], scale: Scale) -> None:
    """Open every data set once, so that a missing one is noticed now and not hours later.

    Raises: ValueError or OSError, which name what is missing.
    """
    if jobs and scale.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--scale: expected cpu, got one that needs a GPU, but torch finds none")
    if missing := describe_missing(jobs, scale):
        raise ValueError("; ".join(missing))
    detectors = [job for job in jobs if job.kind in ("rate", "finetune")]
    for data in {data for job in detectors for data in data_of(job, scale)}:
        open_dataset(source_spec(data), "train", 64, 1)
    others = [job for job in jobs if job not in detectors]
    for data in {data for job in others for data in data_of(job, scale)}:
        open_source(source_spec(data), "train", 64, 1, 0)


def describe_machine(device: str) -> str:
    cuda = device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def read_run(path: Path, scale: Scale) -> dict[str, Any]:
    """The record that `run_jobs` left.

    Raises: ValueError for any other file, and for a run of another version or of other sizes.
    """
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        if missing := {"job", "result", "seconds", "machine", "date"} - run.keys():
            raise ValueError(f"without {', '.join(sorted(missing))}")
    except (ValueError, AttributeError) as error:
        message = f"expected the record of a run, got something else ({error})"
        raise ValueError(f"{path}: {message}; remove it to run it again") from None
    version = run.get("version", "that recorded none")
    if version != vlpt.__version__:
        message = f"expected a run of version {vlpt.__version__}, got one of a version {version}"
    elif run.get("scale") != repr(scale):
        message = "expected a run with the sizes that SCALES has now, got one with others"
    else:
        return run
    raise ValueError(f"{path}: {message}; move the folder away")


def source_spec(data: str) -> str:
    """What `open_source` calls a data set."""
    if data in LSVT_PARTS:
        return f"lsvt:{Path(PATHS['lsvt']) / LSVT_PARTS[data]}"
    return data if data == "synth" else f"{data}:{PATHS[data]}"


# ------------------------------------------------------------------------------------- pre-training


def augment_without_boxes(
    pixels: torch.Tensor, _quads: np.ndarray | None, size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, None]:
    """Vary a photograph as one whose boxes nobody knows, so that nothing can learn from them."""
    varied, _ = augment(pixels, None, size, rng)
    return varied, None


def open_pretraining(
    config: DataConfig, split: str, alphabet: str, count: int, seed: int, annotated: float = 1.0
) -> Pretraining:
    """Open one half of a source; `count` is the number of rendered pictures."""
    spec = source_spec(config.data)
    source = open_source(spec, split, config.size, count, seed, config.scene)
    training = split == "train"
    return Pretraining(
        source,
        vlpt.Alphabet(alphabet),
        config.size,
        seed,
        annotated=annotated if training else 1.0,
        augment=augment_without_boxes if training and config.data != "synth" else None,
    )


def pretrain(job: Job, scale: Scale, folder: Path) -> dict[str, Any]:
    """Pre-train and leave a checkpoint that `vlpt.load_backbone` reads.

    A finished stage leaves a checkpoint, too, so that a run that is stopped continues there.
    """
    fields = dict(job.fields)
    if job.stages == "weak":
        spec = source_spec(scale.weak[0].sources[0].data)
        fields["alphabet"] = read_alphabet("data", open_source(spec, "train"))
    torch.manual_seed(job.seed)
    model = vlpt.VLPT(dataclasses.replace(scale.config, **fields))
    found: dict[str, Any] = {}
    if job.init:
        load_checkpoint(folder / f"{job.init}.pt", model, scale)
    if job.stages == "stages" and scale.start is not None:
        start_from_trainer(model, scale.start, scale.device, folder / "start")
    model.to(scale.device).to(memory_format=torch.channels_last)
    for number, stage in enumerate(getattr(scale, job.stages)):
        path = folder / f"{job.name}-{number}.pt"
        if path.exists():  # stopped after this stage
            found = load_checkpoint(path, model, scale)
            continue
        result = run_stage(model, stage, job.seed + number, job.annotated)
        found[f"stage {number}"] = result
        print(f"  stage {number}: {json.dumps(result)}", flush=True)
        save_checkpoint(path, model, found, scale)
    save_checkpoint(folder / f"{job.name}.pt", model, found, scale)
    return found


def origin(model: vlpt.VLPT, scale: Scale) -> dict[str, Any]:
    """What has to be the same for a checkpoint to be used again."""
    config = dataclasses.asdict(model.config)
    return {"config": config, "scale": repr(scale), "version": vlpt.__version__}


def save_checkpoint(path: Path, model: vlpt.VLPT, found: dict[str, Any], scale: Scale) -> None:
    content = {"state_dict": model.state_dict(), "found": found, **origin(model, scale)}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    vlpt.write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, model: vlpt.VLPT, scale: Scale) -> dict[str, Any]:
    """Fill a model with the weights of `save_checkpoint`, and return what was found.

    Raises: ValueError if they are of another version or of other sizes.
    """
    checkpoint = vlpt.read_checkpoint(path)
    if not origin(model, scale).items() <= checkpoint.items():
        message = "expected a model of this version and these sizes, got another"
        raise ValueError(f"{path}: {message}; move the folder away")
    model.load_state_dict(checkpoint["state_dict"])
    found: dict[str, Any] = checkpoint["found"]
    return found


def run_stage(model: vlpt.VLPT, stage: Stage, seed: int, annotated: float) -> dict[str, Any]:
    """Train on each source in turn, then evaluate on held-out pictures of each one."""
    alphabet = model.config.alphabet
    train = []
    heldout = []
    for config in stage.sources:
        count = config.pictures or config.batch * stage.rounds
        train.append(open_pretraining(config, "train", alphabet, count, seed, annotated))
        heldout.append(open_pretraining(config, "heldout", alphabet, stage.heldout, seed))
    skipped, results = run_trainer(model, stage, train, heldout, seed)
    found: dict[str, Any] = {"skipped": skipped}
    for config, result in zip(stage.sources, results, strict=True):
        found[config.data] = {key: round(value, 4) for key, value in result.items()}
    return found


# ------------------------------------------------------------------------ the calls of train_min.py


def start_from_trainer(model: vlpt.VLPT, options: Sequence[str], device: str, folder: Path) -> None:
    """Fill backbone and pool from a run of train_min.py, which is run or continued if necessary."""
    if not (folder / "metrics.json").exists():
        begun = (folder / "run.json").exists()
        arguments = ["--resume"] if begun else [*options, "--device", device]
        train_min.main([*arguments, "--name", str(folder.relative_to("runs"))])
    load_init(model, str(folder / "checkpoint.pt"))


def run_trainer(
    model: vlpt.VLPT,
    stage: Stage,
    train: Sequence[Pretraining],
    heldout: Sequence[Pretraining],
    seed: int,
) -> tuple[int, list[dict[str, float]]]:
    """Train by the steps of train_min.py, one on each source in turn, and evaluate as it does.

    Returns: how many unreadable pictures were replaced by another; the result of each source.
    """
    device = next(model.parameters()).device
    optimizer = train_min.make_optimizer(model, stage.lr, 0.1)
    masked_only = vlpt.MaskedOnly(model)
    warmup = min(100, stage.rounds // 5)
    loaders = [
        training_batches(data, config.batch, 1, stage.rounds, stage.workers)
        for config, data in zip(stage.sources, train, strict=True)
    ]
    skipped = 0
    for step in tqdm(range(stage.rounds), disable=None, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * train_min.lr_at(step, stage.rounds, warmup)
        for loader in loaders:
            batch = next(loader)
            skipped += len(batch.skipped)
            prepared = prepare(batch, seed_of(seed, step), device)
            numbers = train_min.train_step(masked_only, optimizer, *prepared)
            if not numbers.isfinite().all():
                raise FloatingPointError(f"a loss or gradient of step {step} is not finite")
    results = []
    for config, data in zip(stage.sources, heldout, strict=True):
        batches = evaluation_batches(data, stage.heldout, config.batch, stage.workers)
        results.append(train_min.evaluate(model, batches, 0))
    return skipped, results


# ------------------------------------------------------------------------------------- detection


class Subset:
    """Some of the pictures of a data set."""

    def __init__(self, dataset: DetectionDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> DetectionSample:
        return self.dataset[self.indices[k]]

    def name(self, k: int) -> str:
        return self.dataset.name(self.indices[k])


def finetune(job: Job, scale: Scale, folder: Path) -> dict[str, Any]:
    """Train a detector and score it on pictures that it has not seen."""
    task = task_of(job, scale)
    train, test = open_task(job, task)
    lr = job.lr or choose_rate(job, scale, folder)
    config = DetectorConfig(
        backbone=scale.backbone,
        width=scale.width,
        long_side=task.long_side,
        smallest_kernel=task.smallest_kernel,
        curved=task.curved,
    )
    torch.manual_seed(job.seed)
    weights = str(folder / f"{job.init}.pt") if job.init else None
    model = place(build_detector(config, weights), scale.device)
    losses = train_detector(
        model,
        TrainingCrops(train, config, task.crop, job.seed, job.subset),
        samples=job.samples or task.samples,
        batch=task.batch,
        lr=lr,
        workers=scale.workers,
    )
    return evaluate_detector(model, test, config) | {"lr": lr, "losses": losses}


def open_task(job: Job, task: Task) -> tuple[DetectionDataset, DetectionDataset]:
    """The pictures that a detector is trained on, and those that it is scored on.

    To choose a learning rate, the last eighth of the training photographs, or more rendered
    pictures of the training half, take the place of the held-out pictures.
    """
    spec = source_spec(task.data)
    samples = job.samples or task.samples
    count = samples + task.count if job.kind == "rate" else samples  # of rendered pictures
    train: DetectionDataset = open_dataset(spec, "train", task.long_side, count, 1000 + job.seed)
    if job.kind == "rate":
        cut = samples if job.rendered else len(train) * 7 // 8
        test: DetectionDataset = Subset(train, range(cut, len(train)))
        train = Subset(train, range(cut))
    else:
        test = open_dataset(spec, "heldout", task.long_side, task.count)
    return train, Subset(test, range(min(task.count, len(test))))


def choose_rate(job: Job, scale: Scale, folder: Path) -> float:
    """The learning rate of the grid with the best score, for the arm of a job.

    Each row of rendered pictures has rates of its own.
    Raises: ValueError unless all of the grid was tried.
    """
    scores = {}
    for path in sorted(folder.glob("rate-*.json")):
        run = read_run(path, scale)
        tried = {"rendered": False, "samples": None, "benchmark": ""} | run["job"]
        wanted = {"arm": job.arm, "rendered": job.rendered, "samples": job.samples}
        wanted["benchmark"] = job.benchmark
        if wanted.items() <= tried.items():
            scores[run["result"]["lr"]] = run["result"]["f"]
    if set(scores) != set(scale.rates):
        rates = f"expected the rates {sorted(scale.rates)}, got {sorted(scores)}"
        raise ValueError(f"{folder}: rate-*.json for {job.name}: {rates}")
    return max(sorted(scores), key=scores.__getitem__)


# ------------------------------------------------------------------------------------- attention


@torch.no_grad()
def measure_attention(job: Job, scale: Scale, folder: Path) -> dict[str, Any]:
    """The share of the pooled attention that falls inside the words of held-out pictures."""
    config = scale.short[-1].sources[0]
    torch.manual_seed(job.seed)
    model = load_model(folder / f"{job.init}.pt") if job.init else vlpt.VLPT(scale.config).eval()
    ids = vlpt.Alphabet(model.config.alphabet).encode(["a"])[None]  # the pool does not see it
    spec = source_spec(config.data)
    source = open_source(spec, "heldout", config.size, scale.shown, 0, config.scene)
    shares = []
    areas = []
    shown = []
    for k in range(min(scale.shown, len(source))):
        sample = source[k]
        image = Image.fromarray(sample.image).resize((config.size, config.size))
        assert sample.quads is not None  # each source of a scale's `short` has them
        quads = sample.quads * config.size / np.array(sample.image.shape[1::-1])
        inside = np.zeros((config.size, config.size), np.uint8)
        cv2.fillPoly(inside, list(np.rint(quads).astype(np.int32)), 1)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        pooled, _ = model.attention_maps(vlpt.normalize(pixels), ids)
        heat = np.kron(pooled[0], np.ones((config.size // pooled.shape[1],) * 2))
        shares.append(float((heat * inside).sum() / heat.sum()))
        areas.append(float(inside.mean()))
        shown.append((sample.image, heat))
    plot_attention(folder / f"{job.name}.png", job.arm, shown)
    return {"share": float(np.mean(shares)), "area": float(np.mean(areas)), "pictures": len(shares)}


def plot_attention(path: Path, name: str, shown: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw the first six pictures above their attention."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    pairs = figure.subplots(2, 6).T.reshape(-1, 2)
    for (upper, lower), (picture, heat) in zip(pairs, shown, strict=False):
        upper.imshow(picture)
        lower.imshow(heat, "inferno")
        upper.axis("off")
        lower.axis("off")
    figure.suptitle(f"pooled attention, {name}")
    figure.savefig(path, dpi=100)


# ---------------------------------------------------------------------------------------- reports


def collect(table: str, scale: Scale, folder: Path) -> list[dict[str, Any]]:
    """The rows of a table: for each arm the values of its seeds, in their order, in %."""
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
        run = read_run(path, scale)
        value = run["result"]["f" if job.kind == "finetune" else "share"]
        row["values"].setdefault(job.arm, {})[str(job.seed)] = round(100 * value, 2)
        row["lr"] = row.get("lr", {}) | {job.arm: run["result"].get("lr")}
        if job.kind == "attention":
            row["area"] = round(100 * run["result"]["area"], 2)
    return list(rows.values())


def mean_and_spread(values: Mapping[Any, float]) -> str:
    """Mean and standard deviation of the seeds, in words where there is none."""
    numbers = list(values.values())
    if not numbers:
        return "not run"
    more = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else " (1 seed)"
    return f"{np.mean(numbers):.1f}{more}"


def compare_arms(row: dict[str, Any]) -> str:
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
    """The lines of a table."""
    if table == "a" or table in BENCHMARKS:
        lines = [
            "| detector trained on | from scratch | pre-trained | difference |",
            "|---|---|---|---|",
        ]
        for row in rows:
            cells = (mean_and_spread(row["values"].get(arm, {})) for arm in ARMS)
            lines.append(f"| {' | '.join((row['label'], *cells, compare_arms(row)))} |")
        return lines
    if table == "d":
        lines = [
            "| text encoder | attention on words | words' share of the area |",
            "|---|---|---|",
        ]
        for row in rows:
            value: dict[str, float] = next(iter(row["values"].values()), {})
            area = f"{row['area']:.1f}" if "area" in row else "not run"
            lines.append(
                f"| {row['label']} | {mean_and_spread(value).removesuffix(' (1 seed)')} | {area} |"
            )
        return lines
    varied = "share of the words annotated" if table == "c" else "pre-trained with"
    lines = [f"| {varied} | here | paper, Total-Text |", "|---|---|---|"]
    for row in rows:
        value = next(iter(row["values"].values()), {})
        lines.append(f"| {row['label']} | {mean_and_spread(value)} | {row['paper'] or '-'} |")
    return lines


def plot(path: Path, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the value of each seed as a dot and the means as bars."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(arm for row in rows for arm in row["values"]))
    grouped = table == "a" or table in BENCHMARKS
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
    axes.set_ylim(bottom=0)
    axes.set_title(TITLES[table], fontsize=10)
    if grouped and arms:
        axes.legend()
    figure.savefig(path, dpi=110)


def write_report(table: str, name: str, folder: Path) -> list[str]:
    """Write the files of a table beside its runs, and return its Markdown."""
    rows, scale = collect(table, SCALES[name], folder), SCALES[name]
    lines = [f"{TITLES[table]} (--scale {name})", "", *to_markdown(table, rows)]
    lines += ["", PAPER] if table in ("b", "c") else []
    lines += ["", f"Published for PSENet: {BENCHMARKS[table]}"] if table in BENCHMARKS else []
    lines += ["", f"Status: {scale.status}"] if scale.status else []
    vlpt.write_atomically(folder / f"{table}.md", ("\n".join(lines) + "\n").encode())
    vlpt.write_atomically(folder / f"{table}.json", json.dumps(rows, indent=1).encode())
    plot(folder / f"{table}.png", table, rows)
    return lines


def write_summary(name: str, folder: Path) -> None:
    """Put all tables of a scale into one small file, which docs/detectors.md shows.

    Raises: ValueError if there are no runs, or if the file would lose values.
    """
    scale = SCALES[name]
    paths = [path for path in sorted(folder.glob("*.json")) if path.stem not in TITLES]
    runs = [read_run(path, scale) for path in paths]
    if not runs:
        raise ValueError(f"{folder}: expected runs, got none; run `{PROGRAM} a` first")
    found = {
        "scale": name,
        "machines": sorted({run["machine"] for run in runs}),
        "dates": sorted({run["date"] for run in runs}),
        "hours": round(sum(run["seconds"] for run in runs) / 3600, 2),
        "pretraining": {
            run["job"]["name"]: run["result"] for run in runs if run["job"]["kind"] == "pretrain"
        },
        "tables": {table: collect(table, scale, folder) for table in (*TABLES, *scale.benchmarks)},
    }
    earlier = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    if earlier.get("scale", name) != name:
        message = f"expected results of the scale {name}, got those of {earlier['scale']}"
        raise ValueError(f"{RESULTS}: {message}; move the file away to write these")
    for table, rows in earlier.get("tables", {}).items():
        if lost := list_values(rows) - list_values(found["tables"].get(table, [])):
            message = f"expected runs for all values of table {table} in {RESULTS}"
            label, arm, seed = min(lost)
            raise ValueError(
                f"{folder}: {message}, got none for {label}, {arm}, seed {seed}; run the table, or "
                "move the file away to write the others"
            )
    if "localisation" in earlier:  # of experiments/localise.py
        found["localisation"] = earlier["localisation"]
    vlpt.write_atomically(RESULTS, json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    print(f"wrote {RESULTS}")


def list_values(rows: Sequence[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """The row, arm and seed of each value of a table."""
    return {
        (row["label"], arm, seed)
        for row in rows
        for arm, values in row["values"].items()
        for seed in values
    }


def docs_lines(results: dict[str, Any]) -> list[str]:
    """What docs/detectors.md shows of results.json."""
    rows = {row["label"]: row for row in results["tables"]["d"]}
    pretrained, untrained = rows["table a's pre-training"], rows["untrained"]
    shares = [
        next(iter(next(iter(row["values"].values())).values())) for row in (pretrained, untrained)
    ]
    line = (
        f"The pool puts {shares[0]:.1f} % of its attention on the words of held-out rendered "
        f"pictures, an untrained one {shares[1]:.1f} %. "
        f"Words cover {untrained['area']:.1f} % of the area."
    )
    tables = [to_markdown(table, results["tables"][table]) for table in "abc"]
    return [*chain.from_iterable([*lines, ""] for lines in tables), line]


def print_jobs(jobs: Sequence[Job], scale: Scale, folder: Path) -> None:
    """Print each run, whether it is done, its estimated hours and what it sets."""
    left = 0.0
    for job in jobs:
        done = (folder / f"{job.name}.json").exists()
        hours = estimate_hours(job, scale)
        left += 0 if done else hours
        usual = dataclasses.asdict(Job(job.name, "", ""))
        values = {k: v for k, v in dataclasses.asdict(job).items() if v != usual[k]}
        shown = " ".join(f"{k}={v}" for k, v in values.items())
        print(f"{job.name:<34} {'done' if done else 'to run':<7} {hours:6.2f} h  {shown}")
    print(f"about {left:.1f} hours to run, estimated for {scale.speed.machine}")
    for line in describe_missing(jobs, scale):
        print(f"missing: {line}")


def run_table(args: argparse.Namespace) -> None:
    """Run what a table still needs, and print it; or only list the runs."""
    scale = SCALES[args.scale]
    folder = RUNS / args.scale
    jobs = [job for job in list_jobs(args.table, scale) if args.only in job.name]
    if not jobs:
        raise ValueError(
            f"--only: expected a part of a run's name (see --dry-run), got {args.only!r}"
        )
    for job in list_jobs(args.table, scale):  # the report needs the others, too
        if (path := folder / f"{job.name}.json").exists():
            read_run(path, scale)
    if args.dry_run:
        print_jobs(jobs, scale, folder)
        return
    check_data([job for job in jobs if not (folder / f"{job.name}.json").exists()], scale)
    run_jobs(jobs, scale, folder)
    print("\n".join(write_report(args.table, args.scale, folder)))


def main(argv: list[str] | None = None) -> None:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "table",
        choices=(*TITLES, "summary"),
        metavar="TABLE",
        help=f"run and report a table: {', '.join(TITLES)}; or summary, see below",
    )
    add(
        "--scale",
        choices=tuple(SCALES),
        default="cpu",
        help="cpu (the default) takes hours on 2 cores, gpu was not run yet, smoke is for tests",
    )
    dry_help = "list the runs of a table, their estimated hours and missing data, and stop"
    add("--dry-run", action="store_true", help=dry_help)
    add("--only", default="", metavar="TEXT", help="only the runs whose name contains TEXT")
    args = parser.parse_args(argv)
    if args.table == "summary" and (args.dry_run or args.only):
        parser.error("--dry-run, --only: expected them with a table, got summary")
    with one_line_errors(PROGRAM):
        if args.table == "summary":
            write_summary(args.scale, RUNS / args.scale)
        else:
            run_table(args)


if __name__ == "__main__":
    main()
