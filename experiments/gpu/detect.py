"""`detect`: a small PSENet on photographs, from random weights and from the pre-trained backbone.

The arms of a pair differ in nothing but the first weights of the backbone. Several processes share
the GPU. Each arm is scored on img_801 .. img_1000, with the score threshold that is
best for it on img_701 .. img_800. Where all 800 photographs are trained on, the latter are among
them, for both arms alike; arms with fewer photographs take them from img_1 .. img_700.
"""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import data_stub
import vlpt
from experiments.gpu.programme import Programme, Result, Sizes, describe
from experiments.reproduce import Subset
from readers.detection import DetectionDataset, DetectionSample
from transfer.cache import CachedSource
from transfer.dataset import TrainingCrops, open_dataset
from transfer.detect import place, train_detector
from transfer.heads import build_detector, detect_text
from transfer.pyramid import PADDING_COLOR, DetectorConfig, PyramidDetector
from transfer.score import f_score, match_detections

LAST_TRAINED = 700  # of the photographs 1 .. 800; the others choose the threshold
MIN_SCORES = np.arange(0.5, 0.96, 0.05).round(2).tolist()  # to choose from
CACHE_GB = 3.0  # of each process, for all 800 photographs at 1280 x 720


@dataclass(frozen=True)
class Arm:
    """One training of a detector."""

    photographs: int
    crops: int
    seed: int
    lr: float
    is_pretrained: bool

    @property
    def group(self) -> str:
        """Arms of a group differ in seed and first weights only."""
        return f"{self.photographs} photographs, {self.crops} crops, lr {self.lr:g}"

    @property
    def name(self) -> str:
        start = "pretrained" if self.is_pretrained else "scratch"
        lr = f"{self.lr:g}"
        return f"detect/{start}-{self.photographs}-{self.crops}-lr{lr}-seed{self.seed}"

    @property
    def estimate(self) -> float:
        """Seconds, when three share a GPU and 16 cores: start, training, scoring."""
        return 20 + 0.01 * self.crops + 25


def list_pairs(sizes: Sizes) -> list[list[Arm]]:
    """What is trained, in this order. Each entry is a pair, or an arm that has none."""
    pairs = [
        [Arm(photographs, crops, seed, sizes.detector_lr, start) for start in (False, True)]
        for photographs, crops, seeds in sizes.arms
        for seed in seeds
    ]
    photographs, crops, seeds = sizes.arms[0]
    return pairs + [[Arm(photographs, crops, seeds[0], lr, False)] for lr in sizes.other_lrs]


# ---- The processes -----------------------------------------------------------------------------


class Running(NamedTuple):
    process: Any  # multiprocessing's
    start: float  # time.monotonic seconds


def run(programme: Programme) -> None:
    backbone = programme.out / "backbone.pt"
    if programme.icdar2015 is None:
        return programme.write({"name": "detect", "skipped": "no --icdar2015 PATH was given"})
    if not backbone.is_file():
        error = f"expected {backbone}, which `pretrain` writes, got no such file"
        return programme.write({"name": "detect", "error": error})
    (programme.out / "detect").mkdir(exist_ok=True)
    cores = os.cpu_count() or 1
    slots = 3 if cores >= 12 else min(2, cores)
    waiting = list_pairs(programme.sizes)
    started_pairs: list[Arm] = []  # whose first arm has started
    running: dict[Arm, Running] = {}
    try:
        while waiting or started_pairs or running:
            collect(programme, running)
            if len(running) < slots and (arm := choose(programme, waiting, started_pairs)):
                running[arm] = start_arm(programme, arm, max(1, cores // slots - 1))
            else:
                time.sleep(0.1)
    finally:
        for arm in list(running):
            stop(programme, running, arm, "the programme ended")
    write_summary(programme)


def choose(programme: Programme, waiting: list[list[Arm]], started: list[Arm]) -> Arm | None:
    """The next arm to start: the second one of a pair, or the first of a pair that can end.

    Arms that are done or cannot end in time are dropped.
    """
    while started:
        arm = started.pop(0)
        if programme.starts(arm.name, arm.estimate):
            return arm
    while waiting:
        pair = [arm for arm in waiting.pop(0) if arm.name not in programme.results]
        needed = sum(arm.estimate for arm in pair)  # one after the other, if no slot is free
        if pair and programme.starts(pair[0].name, needed):
            started += pair[1:]
            return pair[0]
    return None


def start_arm(programme: Programme, arm: Arm, workers: int) -> Running:
    path = result_path(programme, arm)
    path.unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(
        target=run_arm,
        args=(arm, programme.sizes, programme.icdar2015, programme.out, path, workers),
        kwargs={"device": programme.device.type},
    )
    process.start()
    return Running(process, time.monotonic())


def result_path(programme: Programme, arm: Arm) -> Path:
    return programme.out / f"{arm.name}.json"


def collect(programme: Programme, running: dict[Arm, Running]) -> None:
    """Write the results of the processes that have ended, and end those that are late."""
    for arm, (process, start) in list(running.items()):
        if process.is_alive() and programme.seconds_left < 0:
            stop(programme, running, arm, "it did not end in time")
        elif not process.is_alive():
            del running[arm]
            path = result_path(programme, arm)
            if not path.exists():
                error = f"its process ended with status {process.exitcode}"
                programme.write({"name": arm.name, "error": error})
                continue
            found = json.loads(path.read_text("utf-8"))
            if "error" in found:
                programme.write({"name": arm.name, **found})
            else:
                seconds = time.monotonic() - start
                programme.finish(arm.name, arm.estimate, seconds, found)


def stop(programme: Programme, running: dict[Arm, Running], arm: Arm, reason: str) -> None:
    process = running.pop(arm).process
    process.terminate()
    process.join()
    programme.write({"name": arm.name, "error": f"stopped, because {reason}"})


def write_summary(programme: Programme) -> None:
    """Write the F-scores of each group of arms, and the mean difference of its complete pairs."""
    groups: dict[str, list[Arm]] = {}
    for pair in list_pairs(programme.sizes):
        if len(pair) == 2 and all(arm.name in programme.results for arm in pair):
            groups.setdefault(pair[0].group, []).extend(pair)
    for group, arms in groups.items():
        scores: dict[bool, list[float]] = {False: [], True: []}
        for arm in arms:
            scores[arm.is_pretrained].append(programme.results[arm.name]["f"])
        difference = mean(scores[True]) - mean(scores[False])
        row = {"scratch": scores[False], "pretrained": scores[True], "difference": difference}
        programme.write({"name": f"detect/summary of {group}", **row})


# ---- An arm ------------------------------------------------------------------------------------


def run_arm(
    arm: Arm, sizes: Sizes, photographs: Path, out: Path, path: Path, workers: int, device: str
) -> None:
    """Train and score a detector in a process of its own, and leave its result or its error."""
    torch.set_num_threads(workers)
    try:
        with redirect_stdout(sys.stderr):  # lines of JSON alone go to standard output
            found = train_and_score(arm, sizes, photographs, out, workers, device)
    except Exception as error:
        found = {"error": describe(error)}
    vlpt.write_atomically(path, json.dumps(found).encode())


def train_and_score(
    arm: Arm, sizes: Sizes, photographs: Path, out: Path, workers: int, device: str
) -> Result:
    config = DetectorConfig(
        backbone="resnet18",
        width=sizes.width,
        long_side=sizes.long_side,
        min_score=MIN_SCORES[0],
    )
    torch.manual_seed(arm.seed)
    weights = str(out / "backbone.pt") if arm.is_pretrained else None
    model = place(build_detector(config, weights), device)

    whole = open_dataset(f"icdar2015:{photographs}", "train")
    numbers = [number_of(whole.name(k)) for k in range(len(whole))]
    early = [k for k, number in enumerate(numbers) if number <= LAST_TRAINED]
    late = [k for k, number in enumerate(numbers) if number > LAST_TRAINED]
    is_all = arm.photographs > len(early)
    chosen: DetectionDataset = whole if is_all else Subset(whole, early)
    subset = min(arm.photographs, len(chosen))
    order = np.random.default_rng([arm.seed, 1]).permutation(len(chosen))
    few = CachedSource(Subset(chosen, order[:subset].tolist()), CACHE_GB, workers)
    crops = VariedCrops(few, config, sizes.crop, arm.seed)
    losses = train_detector(
        model,
        crops,
        samples=arm.crops,
        batch=sizes.detector_batch,
        lr=arm.lr,
        workers=workers,
    )

    heldout = open_dataset(f"icdar2015:{photographs}", "heldout")
    choosing = find_all(model, Subset(whole, late[: sizes.scored]), config, workers)
    scored = range(min(sizes.scored, len(heldout)))
    scoring = find_all(model, Subset(heldout, scored), config, workers)
    min_score = max(MIN_SCORES, key=lambda threshold: score(choosing, threshold)["f"])
    found = score(scoring, min_score) | {"min_score": min_score, "photographs": subset}
    name = arm.name.removeprefix("detect/")
    content = json.dumps(describe_detections(scoring, min_score))
    vlpt.write_atomically(out / "detect" / f"{name}.detections.json", content.encode())
    return {**found, "loss": losses[-1]}


def number_of(name: str) -> int:
    """The number in a photograph's name, such as img_1 or IMG_1."""
    return int(name.rpartition("_")[2])


class VariedCrops(TrainingCrops):
    """Training crops of photographs that are flipped, turned and stretched first."""

    def read(self, k: int) -> DetectionSample:
        return vary(super().read(k), np.random.default_rng([self.seed, k, 4]))


def vary(sample: DetectionSample, rng: np.random.Generator) -> DetectionSample:
    """Flip a picture half of the time, turn it by up to 10 degrees, and change its aspect ratio by
    up to a tenth, around its centre. The picture keeps its size.
    """
    angle = rng.uniform(-10, 10) * np.pi / 180
    flip = -1 if rng.random() < 0.5 else 1
    stretch = np.diag([flip * rng.uniform(0.9, 1.1) ** 0.5, 1.0])
    stretch[1, 1] = 1 / abs(stretch[0, 0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array(sample.image.size) / 2
    matrix = np.eye(3)
    matrix[:2, :2] = turn @ stretch
    matrix[:2, 2] = centre - matrix[:2, :2] @ centre
    image = sample.image.transform(
        sample.image.size,
        Image.Transform.AFFINE,
        np.linalg.inv(matrix).ravel()[:6].tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=PADDING_COLOR,
    )
    polygons = [data_stub.apply(matrix, p).astype(np.float32) for p in sample.polygons]
    return sample._replace(image=image, polygons=polygons)


# ---- Scoring -----------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was found in a photograph, and what is there."""

    name: str
    polygons: list[np.ndarray]  # (P, 2) pixels each
    scores: list[float]
    truth: list[np.ndarray]
    ignored: np.ndarray


def find_all(
    model: PyramidDetector, source: DetectionDataset, config: DetectorConfig, threads: int
) -> list[Found]:
    """Detect the text in all pictures of a source."""
    model.eval()

    def find(k: int) -> Found:
        sample = source[k]
        polygons, scores = detect_text(model, sample.image, config)
        return Found(source.name(k), polygons, scores, sample.polygons, sample.ignored)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(find, range(len(source))))
    model.train()
    return found


def describe_detections(found: list[Found], min_score: float) -> Result:
    """All detections for a file, those below `min_score` included; coordinates are rounded."""
    detections = [
        {
            "picture": each.name,
            "polygons": [np.round(p.astype(float), 1).tolist() for p in each.polygons],
            "scores": each.scores,
        }
        for each in found
    ]
    return {"min_score": min_score, "detections": detections}


def score(found: list[Found], min_score: float) -> dict[str, float]:
    """Precision, recall and F-score of the detections with at least a score."""
    counts = np.zeros(3, np.int64)
    for each in found:
        kept = [p for p, s in zip(each.polygons, each.scores, strict=True) if s >= min_score]
        counts += match_detections(each.truth, each.ignored, kept)
    matched, words, detections = counts.tolist()
    numbers = {"matched": matched, "words": words, "detections": detections}
    return f_score(counts) | numbers
