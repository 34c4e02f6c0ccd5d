"""Does pre-training give better features, or a head start? Detectors with 1 to 8 times the crops.

    python -m experiments.ladder run PATH                 # the arm from scratch; PATH: ICDAR 2015
    python -m experiments.ladder run PATH --init runs/curriculum-two-words    # the pre-trained arm
    python -m experiments.ladder run PATH --arm swapped --init runs/curriculum-swapped-two-words
    python -m experiments.ladder run PATH --arm second --init runs/second-two-words
    python -m experiments.ladder run PATH --arm third-stage --init runs/curriculum-scenes
    python -m experiments.ladder run PATH --dry-run       # say how much is left
    python -m experiments.ladder rescore PATH             # score the detectors kept here again
    python -m experiments.ladder report                   # print the tables
    python -m experiments.ladder report --save            # write ladder.json, assets/ladder.png

Each run leaves a file in runs/ladder/. A run whose result is there or in ladder.json, which has
those of other machines, is not repeated; without ladder.json, all are run. Several arms can run at
the same time. The controls swapped, characters and contrastive start from the pre-trainings of that
name of experiments/curriculum.py, second from another seed of it, and third-stage from its last
stage; those named frozen-... train the weights of the detector's head alone. The protocol, which
was written before the runs, and its later changes are in experiments/LOG.md.

    img_1 .. img_700       a seed draws 100 of these photographs to train on
    img_701 .. img_800     choose the learning rate and the score threshold
    img_801 .. img_1000    are scored

Run this from the clone of the repository.
"""

import argparse
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import ttest_rel
from torch.nn.modules.batchnorm import _BatchNorm

import vlpt
from experiments.gpu.detect import (
    MIN_SCORES,
    VariedCrops,
    describe_detections,
    find_all,
    number_of,
    score,
)
from experiments.reproduce import Subset, mean_and_spread
from training.options import Parser, some_path
from training.runs import git_commit, one_line_errors
from transfer.cache import CachedSource
from transfer.dataset import TrainingCrops, open_dataset
from transfer.detect import load_batches, load_detector, place, train_detector
from transfer.heads import build_detector
from transfer.pyramid import DetectorConfig, PyramidDetector

PROGRAM = "python -m experiments.ladder"
FOLDER = Path("runs/ladder")
RESULTS = Path(__file__).with_name("ladder.json")  # of every detector; docs show their scores
PLOT = Path(__file__).parents[1] / "assets/ladder.png"
ARMS = ("scratch", "pre-trained")
CONTROLS = (
    "second",
    "third-stage",
    "swapped",
    "characters",
    "contrastive",
    "frozen-scratch",
    "frozen-swapped",
    "frozen-pre-trained",
)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
BASE = 2400  # crops, 1 x
BUDGETS = {1: 5, 2: 3, 4: 5, 8: 5}  # multiples of BASE, and how many seeds each has
CONTROL_BUDGETS = {1: 3, 8: 3}
ORDER = (1, 8, 4, 2)  # the ends first
CHOOSING_SEED = 100  # of the runs that choose the rate, which are not scored
PHOTOGRAPHS = 100
CROP, BATCH = 160, 4
NUM_CHOOSING = 100  # photographs
CALIBRATION_BATCHES = 50
CACHE_GB = 1.0
CONFIG = DetectorConfig(backbone="tiny", width=32, long_side=640, min_score=MIN_SCORES[0])


class Job(NamedTuple):
    """One detector."""

    arm: str
    budget: int  # crops / BASE
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.budget}x-lr{self.lr:g}-seed{self.seed}"


# ---- What there is to run ------------------------------------------------------------------------


def budgets_of(arm: str) -> dict[int, int]:
    """The budgets of an arm, and how many seeds each has, in the order in which they are run."""
    budgets = BUDGETS if arm in ARMS else CONTROL_BUDGETS
    return {budget: budgets[budget] for budget in ORDER if budget in budgets}


def rates_to_try(arm: str, budget: int, folder: Path) -> list[float]:
    """All rates at the first budget; then the best one of that budget, its neighbours, and further
    ones while the best of those that were tried lies at an end.
    """
    if budget == ORDER[0]:
        return list(RATES)
    best = choose(arm, ORDER[0], folder)
    if best is None:
        return []
    position = RATES.index(best[0])
    low, high = max(0, position - 1), min(len(RATES), position + 2)
    while best := best_of(arm, budget, RATES[low:high], folder):
        if best[0] == RATES[low] and low > 0:
            low -= 1
        elif best[0] == RATES[high - 1] and high < len(RATES):
            high += 1
        else:
            break
    return list(RATES[low:high])


def choose(arm: str, budget: int, folder: Path) -> tuple[float, float] | None:
    """The rate and the score threshold that are best on the choosing photographs, when all ran."""
    return best_of(arm, budget, rates_to_try(arm, budget, folder), folder)


def best_of(
    arm: str, budget: int, rates: Sequence[float], folder: Path
) -> tuple[float, float] | None:
    """The best of some rates and its score threshold; None if a rate has not been tried."""
    found: list[tuple[float, float, float]] = []
    for lr in rates:
        result = read(Job(arm, budget, lr, CHOOSING_SEED), folder)
        if result is None:
            return None
        found += [(f, lr, min_score) for min_score, f in result["choosing"]]
    if not found:
        return None
    _, lr, min_score = max(found, key=lambda entry: entry[0])
    return lr, min_score


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in ladder.json and in a folder, by the job's name. Those in the folder count."""
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    rows = {job_of(row).name: row for row in kept}
    for path in folder.glob("*-seed*[0-9].json"):
        rows[path.stem] = json.loads(path.read_text("utf-8"))
    return rows


def job_of(row: dict[str, Any]) -> Job:
    return Job(**{key: row[key] for key in Job._fields})


def read(job: Job, folder: Path) -> dict[str, Any] | None:
    return read_all(folder).get(job.name)


def is_done(job: Job, folder: Path) -> bool:
    row = read(job, folder)
    return row is not None and (job.seed == CHOOSING_SEED or "f" in row)


def next_job(arm: str, folder: Path) -> Job | None:
    """The first job of an arm that is not done: rates before seeds."""
    for budget, seeds in budgets_of(arm).items():
        for seed in (CHOOSING_SEED, *range(seeds)):
            for job in jobs_of(arm, budget, seed, folder):
                if not is_done(job, folder):
                    return job
    return None


def jobs_of(arm: str, budget: int, seed: int, folder: Path) -> list[Job]:
    if seed == CHOOSING_SEED:
        return [Job(arm, budget, lr, seed) for lr in rates_to_try(arm, budget, folder)]
    best = choose(arm, budget, folder)
    return [] if best is None else [Job(arm, budget, best[0], seed)]


def units_left(arm: str, folder: Path) -> int:
    """What is left of an arm, in runs of BASE crops. Rates not known yet count as three."""
    units = 0
    for budget, seeds in budgets_of(arm).items():
        tried = rates_to_try(arm, budget, folder) or RATES[:3]
        names = [Job(arm, budget, lr, CHOOSING_SEED) for lr in tried]
        units += budget * sum(read(job, folder) is None for job in names)
        best = choose(arm, budget, folder)
        scored = [Job(arm, budget, best[0], seed) for seed in range(seeds)] if best else []
        units += budget * (seeds - sum(is_done(job, folder) for job in scored))
    return units


# ---- A run ---------------------------------------------------------------------------------------


def train_and_score(
    job: Job, photographs: Path, weights: Path | None, folder: Path
) -> dict[str, Any]:
    """Train a detector, keep it, and score it on the choosing and the scored photographs."""
    start = time.perf_counter()
    torch.manual_seed(job.seed)
    model = place(build_detector(CONFIG, str(weights) if weights else None), "cpu")
    model.backbone.requires_grad_(not job.arm.startswith("frozen-"))
    whole = open_dataset(f"icdar2015:{photographs}", "train")
    early = [k for k in range(len(whole)) if number_of(whole.name(k)) <= 700]
    order = np.random.default_rng([job.seed, 1]).permutation(early)
    few = CachedSource(Subset(whole, order[:PHOTOGRAPHS].tolist()), CACHE_GB, 1)
    crops = VariedCrops(few, CONFIG, CROP, job.seed)
    losses = train_detector(model, crops, samples=BASE * job.budget, batch=BATCH, lr=job.lr)
    recalibrate(model, crops)
    buffer = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "config": asdict(CONFIG)}, buffer)
    vlpt.write_atomically(folder / f"{job.name}.pt", buffer.getvalue())
    found = score_detector(job, model, photographs, folder)
    return {"loss": losses[-1], **found, "seconds": round(time.perf_counter() - start)}


def score_detector(
    job: Job, model: PyramidDetector, photographs: Path, folder: Path
) -> dict[str, Any]:
    """Score a detector, on the choosing photographs if its seed is the one that chooses.

    Returns: F-scores and the commit that computed them.
    """
    commit = {"commit": git_commit()}
    if job.seed == CHOOSING_SEED:
        whole = open_dataset(f"icdar2015:{photographs}", "train")
        late = [k for k in range(len(whole)) if number_of(whole.name(k)) > 700]
        seen = find_all(model, Subset(whole, late[:NUM_CHOOSING]), CONFIG, 1)
        return {"choosing": [(each, score(seen, each)["f"]) for each in MIN_SCORES], **commit}
    best = choose(job.arm, job.budget, folder)
    if best is None or best[0] != job.lr:
        found = f"the best rate is {best[0]}" if best else "a run that chooses the rate is missing"
        raise ValueError(f"{job.name}: {found} now; run the arm, then rescore")
    seen = find_all(model, open_dataset(f"icdar2015:{photographs}", "heldout"), CONFIG, 1)
    content = json.dumps(describe_detections(seen, best[1])).encode()
    vlpt.write_atomically(folder / f"{job.name}.detections.json", content)
    return score(seen, best[1]) | {"min_score": best[1], **commit}


@torch.no_grad()
def recalibrate(model: PyramidDetector, crops: TrainingCrops) -> None:
    """Replace running statistics of batch norms by averages over training crops.

    The moving averages of a short training still hold statistics of weights from long ago.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
    model.train()
    for pixels, _, _ in load_batches(crops, CALIBRATION_BATCHES, BATCH, 0, pinned=False):
        images = vlpt.normalize(pixels).contiguous(memory_format=torch.channels_last)
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def run(args: argparse.Namespace) -> None:
    arm = args.arm or ("pre-trained" if args.init else "scratch")
    if bool(args.init) == arm.endswith("scratch"):
        expected = "no --init" if args.init else "--init with its backbone"
        raise ValueError(f"--arm {arm}: expected {expected}, got {args.init or 'none'}")
    weights = args.init and Path(args.init)
    if weights and weights.is_dir():
        weights = weights / "backbone.safetensors"
    if weights and not weights.is_file():
        raise ValueError(
            f"--init: expected a backbone or the folder of a finished run, got no {weights}"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.dry_run:
        print(f"left to run: as much as {units_left(arm, FOLDER)} runs with {BASE:,} crops each")
        return
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None
    for name, row in read_all(FOLDER).items():
        is_same_arm = row["arm"].removeprefix("frozen-") == arm.removeprefix("frozen-")
        if is_same_arm and row["backbone"] != digest:
            raise ValueError(
                f"--init: expected the backbone of {name}, got another one; to run all anew, "
                f"remove {RESULTS} and {FOLDER}"
            )
        if not is_same_arm and digest and row["backbone"] == digest:
            raise ValueError(f"--init: expected the backbone of {arm}, got that of {name}")
    while job := next_job(arm, FOLDER):
        print(job.name, flush=True)
        found = train_and_score(job, args.photographs, weights, FOLDER)
        row = {**job._asdict(), "backbone": digest, **found}
        vlpt.write_atomically(FOLDER / f"{job.name}.json", json.dumps(row).encode())
    print(f"{arm}: all detectors are done; see {PROGRAM} report")


def rescore(photographs: Path, folder: Path) -> None:
    """Score the detectors in a folder again: first those that choose, then the others.

    Raises: ValueError at the end, which names the detectors whose rate or score threshold is no
        longer the best one. They do not count any more.
    """
    rows = sorted(read_all(folder).values(), key=lambda row: row["seed"] != CHOOSING_SEED)
    here = [row for row in rows if (folder / f"{job_of(row).name}.pt").exists()]
    if len(here) < len(rows):
        missing = f"{len(rows) - len(here)} of {len(rows)} detectors"
        print(f"{folder}: {missing} are not here and are not scored again")
    failures = []
    for row in here:
        job = job_of(row)
        print(job.name, flush=True)
        model, _ = load_detector(folder / f"{job.name}.pt", "cpu")
        try:
            row |= score_detector(job, model, photographs, folder)
        except ValueError as error:
            failures.append(str(error))
            row.pop("f", None)
        vlpt.write_atomically(folder / f"{job.name}.json", json.dumps(row).encode())
    counted = [job_of(row).name for row in scored_rows(folder)]
    for row in rows:
        name = job_of(row).name
        if row not in here and "f" in row and name not in counted:
            failures.append(f"{name}: its rate or threshold is not the best one now")
    if failures:
        raise ValueError("; ".join(failures))


# ---- The report ----------------------------------------------------------------------------------


Scores = dict[str, dict[int, dict[int, float]]]  # F in percent by arm, budget and seed


class Difference(NamedTuple):
    """Pre-trained minus scratch, in percentage points."""

    mean: float
    low: float  # the ends of its 95 % interval
    high: float
    p: float  # corrected


def scored_rows(folder: Path) -> list[dict[str, Any]]:
    """The results of all detectors that were scored, by arm, budget and seed.

    Only those with the rate and the score threshold that are chosen now.
    """
    scored = []
    for row in sorted_rows(folder):
        chosen = choose(row["arm"], row["budget"], folder)
        if "f" in row and chosen == (row["lr"], row["min_score"]):
            scored.append(row)
    return scored


def sorted_rows(folder: Path) -> list[dict[str, Any]]:
    """All results by arm, budget, seed and rate."""
    order = (*ARMS, *CONTROLS).index
    keys = ("budget", "seed", "lr")
    rows = read_all(folder).values()
    return sorted(rows, key=lambda row: (order(row["arm"]), *(row[key] for key in keys)))


def collect(rows: list[dict[str, Any]]) -> Scores:
    scores: Scores = {arm: {} for arm in (*ARMS, *CONTROLS)}
    for row in rows:
        scores[row["arm"]].setdefault(row["budget"], {})[row["seed"]] = 100 * row["f"]
    return scores


def differences(scores: Scores) -> dict[int, Difference]:
    """By budget, the difference of the arms over the seeds that both have.

    Intervals and p values are those of paired, two-sided t-tests. The p values, but not the
    intervals, are corrected after Holm over all budgets, also while some of them are missing.
    """
    found = {}
    for budget in sorted(BUDGETS):
        scratch, other = (scores[arm].get(budget, {}) for arm in ARMS)
        seeds = sorted(scratch.keys() & other.keys())
        if len(seeds) > 1:
            pairs = [other[seed] for seed in seeds], [scratch[seed] for seed in seeds]
            test = ttest_rel(*pairs)
            low, high = map(float, test.confidence_interval())
            gain = mean(pairs[0]) - mean(pairs[1])
            found[budget] = Difference(gain, low, high, float(test.pvalue))
    corrected, largest = {}, 0.0
    for rank, (budget, each) in enumerate(sorted(found.items(), key=lambda item: item[1].p)):
        largest = max(largest, min(1.0, (len(BUDGETS) - rank) * each.p))
        corrected[budget] = each._replace(p=largest)
    return corrected


def to_markdown(scores: Scores) -> list[str]:
    """A table of the two arms, and one of the other arms that were run."""
    lines = ["| crops | from scratch | pre-trained | difference | 95 % interval | p, corrected |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    corrected = differences(scores)
    for budget in sorted(BUDGETS):
        cells = [mean_and_spread(scores[arm].get(budget, {})) for arm in ARMS]
        if budget in corrected:
            gain, low, high, p = corrected[budget]
            shown = f"{p:.3f}" if p >= 0.001 else "below 0.001"
            cells.append(f"{gain:+.1f} | {low:.1f} to {high:.1f} | {shown}")
        else:
            cells.append(" | | ")
        lines.append(f"| {BASE * budget:,} | {' | '.join(cells)} |")
    if any(scores[arm] for arm in CONTROLS):
        crops = [f"{BASE * budget:,} crops" for budget in CONTROL_BUDGETS]
        lines += ["", f"| other arm | {' | '.join(crops)} |", "| --- | --- | --- |"]
        for arm in filter(scores.get, CONTROLS):
            cells = [mean_and_spread(scores[arm].get(budget, {})) for budget in CONTROL_BUDGETS]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def plot(scores: Scores, path: Path) -> None:
    """F against crops, a line through the means of each arm and a dot for each seed.

    The line is dotted if a budget between was not run.
    """
    figure = Figure(figsize=(6, 3.2), dpi=150)
    axes = figure.subplots()
    for arm, color in zip(ARMS, ("0.45", "tab:blue"), strict=True):
        budgets = sorted(scores[arm])
        means = [mean(scores[arm][budget].values()) for budget in budgets]
        label = "from scratch" if arm == "scratch" else arm
        style = "-" if len(budgets) == len(BUDGETS) else ":"
        axes.plot([BASE * budget for budget in budgets], means, style, color=color, label=label)
        for budget in budgets:
            found = [*scores[arm][budget].values()]
            axes.plot([BASE * budget] * len(found), found, "o", color=color, ms=4, alpha=0.7)
    axes.set_xscale("log", base=2)
    ticks = [BASE * budget for budget in sorted(BUDGETS)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("training crops of the detector")
    axes.set_ylabel("F-score, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, bbox_inches="tight")


def report(folder: Path, save: bool) -> None:
    rows = scored_rows(folder)
    if not rows:
        raise ValueError(f"{folder}: expected scored detectors, got none; see {PROGRAM} run")
    scores = collect(rows)
    print("\n".join(to_markdown(scores)))
    if save:
        lines = ",\n".join(json.dumps(row) for row in sorted_rows(folder))
        vlpt.write_atomically(RESULTS, f"[\n{lines}\n]\n".encode())
        plot(scores, PLOT)
        print(f"wrote {RESULTS} and {PLOT}")


def make_parser() -> argparse.ArgumentParser:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        PROGRAM,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "train and score what is not done yet of an arm"
    command = commands.add_parser("run", help=text, description=text)
    command.add_argument("photographs", metavar="PATH", type=Path, help="the folder of ICDAR 2015")
    init = "backbone of the pre-trained arm: a file, or the folder of a run (default: from scratch)"
    command.add_argument("--init", type=some_path, metavar="PATH", help=init)
    arm = "a control, or one of the two arms (default: pre-trained with --init, else scratch)"
    command.add_argument("--arm", choices=[*ARMS, *CONTROLS], help=arm)
    command.add_argument(
        "--dry-run", action="store_true", help="print how much is left, and stop (default: off)"
    )
    text = "score the detectors that are kept here again"
    command = commands.add_parser("rescore", help=text, description=text)
    command.add_argument("photographs", metavar="PATH", type=Path, help="the folder of ICDAR 2015")
    text = "print the tables"
    command = commands.add_parser("report", help=text, description=text)
    save = "also write experiments/ladder.json and assets/ladder.png (default: off)"
    command.add_argument("--save", action="store_true", help=save)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with one_line_errors(PROGRAM):
        if args.command == "run":
            run(args)
        elif args.command == "rescore":
            rescore(args.photographs, FOLDER)
        else:
            report(FOLDER, args.save)


if __name__ == "__main__":
    main()
