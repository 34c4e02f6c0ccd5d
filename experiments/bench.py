"""Speed and memory of VLPT's parts, each compared with something measured in the same run.

    python -m experiments.bench step
    python -m experiments.bench data --data synthtext:PATH

`step` compares a pre-training step with a step of its backbone alone (forward, mean of features,
backward, AdamW; the same images, batch, precision and memory layout), and gives the share of each
stage. `scale` tells what a step costs as the batch, the images, the words and the alphabet grow.
Things that are compared take turns in one process, and figures are medians over the rounds. Seconds
are those of one core, or of the GPU, and hold for the machine that is named; ratios hold for other
machines too. `memory` measures the peak of a step with and without `--recompute`: on a GPU what
torch has allocated, on a CPU what the step adds to a process that has the model, on Linux alone.

`data` tells how long a source takes to open, what it costs in memory, and how fast it feeds a
model. Each part has a process of its own. Memory is Linux's PSS: what a process has for itself and
its share of what it has in common with others, so that it may be summed. It is measured with small
batches, because large ones would hide what the source takes. `added_mb` is what opening and reading
add to the parent and all workers together, and `added_by_few_mb` the same for 500 images of the
same source. `rendered_256_s` is how many images of 256 x 256 the renderer draws in a second of one
core.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import platform
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import data_stub
import readers
import vlpt
from readers.pictures import open_image
from training.augment import augment
from training.dataset import Pretraining, collate, trim
from training.options import Parser, number
from training.recompute import recompute
from training.runs import one_line_errors

STAGES = ("backbone", "pool", "text", "decoder", "losses", "optimizer")
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # bf16


def in_subprocess(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def memory(pid: int | str | None = "self", file: str = "smaps_rollup") -> dict[str, float]:
    """What /proc says of a process, MB; elsewhere than in Linux NaN."""
    path = Path(f"/proc/{pid}/{file}")
    text = path.read_text() if path.exists() else ""
    sizes = {key: int(kb) * 1024 / 1e6 for key, kb in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return {"Pss": float("nan"), "VmHWM": float("nan")} | sizes


def build(spec: str) -> dict[str, float]:
    """Build the index of a source anew: seconds, and the most memory that took.

    Returns: nothing for a source without an index.
    """
    halves = [readers.open_source(spec, split) for split in data_stub.SPLITS]
    tables = [table for half in halves if (table := getattr(half, "table", None)) is not None]
    if not tables:
        return {}
    for table in tables:
        table.path.unlink(missing_ok=True)
    del halves
    start = time.perf_counter()
    for split in data_stub.SPLITS:
        readers.open_source(spec, split)
    return {"index_s": time.perf_counter() - start, "index_mb": memory(file="status")["VmHWM"]}


def feed(args: argparse.Namespace) -> dict[str, float]:
    """Open both halves as train_min.py does, then read batches."""
    before = memory()["Pss"]
    start = time.perf_counter()
    halves = []
    for split in data_stub.SPLITS:
        source = readers.open_source(args.data, split, args.size, args.pictures)
        vary = augment if split == "train" and args.data != "synth" else None
        if split == "train":
            alphabet = vlpt.Alphabet(readers.read_alphabet(args.alphabet, source))
        halves.append(Pretraining(source, alphabet, args.size, 0, augment=vary))
    found = {
        "pictures": len(halves[0].indices),
        "start_s": time.perf_counter() - start,
        "before_mb": before,
        "opened_mb": memory()["Pss"],
    }
    batches = [[*range(k, k + args.batch)] for k in range(0, args.pictures, args.batch)]
    # This process was spawned, so workers would be as well. In training they start as usual.
    usual = multiprocessing.get_all_start_methods()[0]
    loader = DataLoader(
        halves[0],
        batch_sampler=batches,
        num_workers=args.workers,
        collate_fn=collate,
        multiprocessing_context=usual if args.workers else None,
    )
    iterator = iter(loader)
    next(iterator)  # then the workers are at work
    start, seen = time.perf_counter(), 0
    for _ in tqdm(batches[1:], unit="batch", disable=None, leave=False):
        seen += len(next(iterator).images)
    seconds = time.perf_counter() - start
    workers = [memory(child.pid)["Pss"] for child in multiprocessing.active_children()]
    parent = memory()["Pss"]
    return found | {
        "parent_mb": parent,
        "workers_mb": workers,
        "added_mb": parent + sum(workers) - before,
        "pickle_mb": len(pickle.dumps(halves[0])) / 1e6,
        "images_s": seen / seconds,
        "images_s_worker": seen / seconds / max(1, args.workers),
    }


def decode(paths: list[Path]) -> float:
    """How many pictures Pillow alone decodes a second, at their own size."""
    start = time.perf_counter()
    for path in paths:
        open_image(path)
    return len(paths) / (time.perf_counter() - start)


def draw(count: int, size: int = 256) -> float:
    """How many pictures the renderer draws a second of one core, with everything on."""
    data_stub.render(0, count, size)  # finds the fonts
    start = time.process_time()
    for k in range(count):
        data_stub.render(0, k, size)
    return count / (time.process_time() - start)


def bench_data(args: argparse.Namespace) -> dict[str, float]:
    """All figures of a source; where it has an index, beside those of a few of its pictures."""
    indexed = in_subprocess(build, args.data) if args.data != "synth" else {}
    found = dict(indexed)
    fast = in_subprocess(feed, args)
    args = argparse.Namespace(**vars(args) | {"size": 64, "batch": 8, "pictures": 512})
    found |= in_subprocess(feed, args) | {
        key: fast[key] for key in ("start_s", "images_s", "images_s_worker")
    }
    if args.data == "synth":
        return found | {"rendered_256_s": in_subprocess(draw, 300)}
    source = readers.open_source(args.data, "train", args.size, args.pictures)
    folder = getattr(source, "folder", Path())  # where names are not paths
    paths = [(folder / source.name(k)).resolve() for k in range(min(500, len(source)))]
    found["pillow_images_s"] = in_subprocess(decode, paths)
    if not indexed:
        return found
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.jsonl"
        few.write_text("\n".join(json.dumps({"image": str(p), "words": ["a"]}) for p in paths))
        args.data, args.alphabet = f"jsonl:{few}", "ascii"
        found["added_by_few_mb"] = in_subprocess(feed, args)["added_mb"]
    return found


# ---- Speed of the model ------------------------------------------------------------------------


class Job:
    """A model, its optimiser and one batch of random pixels and words: a step, again and again."""

    def __init__(
        self,
        args: argparse.Namespace,
        config: vlpt.Config | None = None,
        batch: int | None = None,
        words: int | None = None,
        bare: bool = False,
        recomputed: bool = False,
    ) -> None:
        import train_min  # here, or the workers of `data` would carry it

        preset = train_min.PRESETS[args.preset]
        config = config or preset.config
        self.bare = bare
        self.device = torch.device(args.device)
        self.batch = batch or args.batch
        self.bf16 = args.bf16
        torch.manual_seed(0)
        vlpt_model = vlpt.VLPT(config)
        if recomputed:
            recompute(vlpt_model.backbone)
        self.model: Any = vlpt_model.backbone if bare else vlpt_model
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.masked_only = vlpt.MaskedOnly(vlpt_model)
        self.optimizer = train_min.make_optimizer(self.model, preset.lr, 0.1)
        shape = (self.batch, 3, config.image_size, config.image_size)
        self.images = torch.randint(256, shape, dtype=torch.uint8).to(self.device)
        word_range = (words, words) if words else preset.scene.words
        ids = random_words(config, self.batch, word_range, preset.scene.chars)
        ids, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        if self.device.type == "cpu":  # as in training
            ids = trim(ids)
            targets = targets[:, : ids.shape[1], : ids.shape[2]]
        self.ids = ids.to(self.device)
        self.targets = targets.to(self.device)

    def pictures(self) -> Tensor:
        return vlpt.normalize(self.images).contiguous(memory_format=torch.channels_last)

    def loss(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.bare:
                return self.model(images)[-1].float().mean()
            output, targets = self.masked_only(images, self.ids, self.targets)
        return vlpt.total_loss(output, targets)

    def update(self) -> None:
        if not self.bare:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.loss(self.pictures()).backward()
        self.update()


def random_words(
    config: vlpt.Config, batch: int, word_range: tuple[int, int], char_range: tuple[int, int]
) -> Tensor:
    """Ids (B, L, N) of random words, of which an image has so many, each of so many characters."""
    rng = np.random.default_rng(0)
    vocabulary = len(vlpt.Alphabet(config.alphabet))
    ids = torch.full((batch, vlpt.MAX_CHARS, vlpt.MAX_WORDS), vlpt.PAD)
    for sample in ids:
        num_words = int(rng.integers(word_range[0], word_range[1] + 1))
        for i in range(min(vlpt.MAX_WORDS, num_words)):
            length = rng.integers(char_range[0], char_range[1] + 1)
            word = rng.integers(vlpt.UNK + 1, vocabulary, length)
            sample[:length, i] = torch.from_numpy(word)
    return ids


class Stages:
    """Times each stage of a job's step, forward and backward together.

    The model is cut where stages meet: what leaves a stage is detached, and when its gradient is
    there it is handed back, from the last stage to the first. The head and the mean over words
    count as losses.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.last = job, 0.0
        self.cuts: list[Any] = []
        self.seconds: Counter[str] = Counter()

    def lap(self, name: str) -> None:
        now = clock(self.job.device)
        self.seconds[name] += now - self.last  # type: ignore[assignment]  # of float as well
        self.last = now

    def cut(self, name: str, _stage: nn.Module, _inputs: Any, outputs: Any) -> Any:
        flat = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        leaves = [x.detach().requires_grad_() for x in flat]
        self.cuts.append((name, flat, leaves))
        self.lap(name)
        return leaves[0] if isinstance(outputs, Tensor) else leaves

    def step(self) -> dict[str, float]:
        """One step; the seconds of each stage."""
        self.seconds, self.cuts, handles = Counter(), [], []
        for name in STAGES[:4]:
            stage = getattr(self.job.model, name)
            handles.append(stage.register_forward_pre_hook(lambda *_: self.lap("losses")))
            handles.append(stage.register_forward_hook(partial(self.cut, name)))
        self.last = clock(self.job.device)
        images = self.job.pictures()
        self.lap("backbone")
        self.job.loss(images).backward()
        self.lap("losses")
        for name, outputs, leaves in reversed(self.cuts):
            pairs = zip(outputs, leaves, strict=True)
            used = [(x, leaf.grad) for x, leaf in pairs if leaf.grad is not None]
            torch.autograd.backward([x for x, _ in used], [gradient for _, gradient in used])
            self.lap(name)
        self.cuts.clear()
        self.job.update()
        self.lap("optimizer")
        for handle in handles:
            handle.remove()
        return {name: self.seconds[name] for name in STAGES}


def clock(device: torch.device) -> float:
    """On a CPU the seconds that this process has computed, so that other processes hardly count.

    On a GPU the time, after waiting for it to finish.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def take_turns(
    calls: dict[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, list[Any]]:
    """Call each in turn, `repeats` rounds after one to warm up: seconds, or what a call returns."""
    found: dict[str, list[Any]] = {name: [] for name in calls}
    where = torch.device(device)
    for turn in tqdm(range(repeats + 1), unit="round", disable=None, leave=False):
        for name, call in calls.items():
            start = clock(where)
            result = call()
            seconds = clock(where) - start
            if turn:
                found[name].append(seconds if result is None else result)
    return found


def flops(job: Job) -> float:
    with FlopCounterMode(display=False) as counter:
        job.step()
    return counter.get_total_flops()


def bench_step(args: argparse.Namespace) -> dict[str, Any]:
    """A step over the bare backbone's, and the shares of its stages."""
    full = Job(args)
    bare = Job(args, bare=True)
    calls = {"full": full.step, "bare": bare.step, "stages": Stages(full).step}
    took = take_turns(calls, args.repeats, args.device)
    ratios = sorted(f / b for f, b in zip(took["full"], took["bare"], strict=True))
    parts = {name: median(row[name] for row in took["stages"]) for name in STAGES}
    shares = {name: part / sum(parts.values()) for name, part in parts.items()}
    work = flops(full)
    found = {
        "ratio": median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "arithmetic_ratio": work / flops(bare),
        "step_s": median(took["full"]),
        "bare_s": median(took["bare"]),
        "shares": shares,
        "text_side": shares["text"] + shares["decoder"] + shares["losses"],
        "images_s": full.batch / median(took["full"]),
        "gflop_image": work / full.batch / 1e9,
    }
    if args.device == "cuda":
        del bare, calls  # whose memory is not the step's
        peak = next((v for k, v in PEAK.items() if k in torch.cuda.get_device_name()), None)
        found["share_of_bf16_peak"] = peak and work / found["step_s"] / peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        full.step()
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def bench_scale(args: argparse.Namespace) -> dict[str, Any]:
    """A step over the preset's, one thing changed at a time."""
    base = Job(args)
    config = base.model.config
    many = "".join(chr(0x4E00 + k) for k in range(5000))
    jobs = {
        "as it is": base,
        "batch x 2": Job(args, batch=2 * args.batch),
        "side / 2": Job(args, replace(config, image_size=config.image_size // 2)),
        "side x 1.5": Job(args, replace(config, image_size=config.image_size * 3 // 2)),
        "1 word an image": Job(args, words=1),
        "3 words an image": Job(args, words=3),
        "alphabet of 500": Job(args, replace(config, alphabet=many[:500])),
        "alphabet of 5000": Job(args, replace(config, alphabet=many)),
    }
    took = take_turns({name: job.step for name, job in jobs.items()}, args.repeats, args.device)
    rounds = {
        name: [t / u for t, u in zip(v, took["as it is"], strict=True)] for name, v in took.items()
    }
    return {
        "cost": {name: median(ratios) for name, ratios in rounds.items()},
        "step_s": median(took["as it is"]),
    }


def measure(args: argparse.Namespace, recomputed: bool) -> float:
    """What two steps add to the most memory of a process that has built the model, GB.

    On a GPU it is the most memory that torch has allocated, the model's included.
    """
    job = Job(args, recomputed=recomputed)
    before = memory(file="status")["VmHWM"]
    job.step()
    job.step()
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return (memory(file="status")["VmHWM"] - before) / 1e3


def bench_memory(args: argparse.Namespace) -> dict[str, float]:
    """The peaks of a step, each in a fresh process."""
    return {
        "plain_gb": in_subprocess(measure, args, False),
        "recomputed_gb": in_subprocess(measure, args, True),
    }


def machine(device: str) -> str:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    name = torch.cuda.get_device_name() if device == "cuda" else name
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores, load {load:.1f}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def show(found: dict[str, Any], indent: str = "") -> None:
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            show(value, indent + "  ")
            continue
        values = value if isinstance(value, list) else [value]
        shown = " ".join(f"{v:,.3f}" if isinstance(v, float) else str(v) for v in values)
        print(f"{indent + key:<32} {shown}")


BENCHES = {
    "step": (
        bench_step,
        "time of a training step compared with one of the backbone alone, and of its stages",
    ),
    "scale": (bench_scale, "how the time of a step grows with batch, images, words and alphabet"),
    "memory": (
        bench_memory,
        "peak memory of a training step with and without --recompute; on a CPU, on Linux alone, "
        "what the step adds to a process that has the model",
    ),
    "data": (
        bench_data,
        "how long a source takes to open, its memory, and the images it delivers a second",
    ),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    positive = number(int, 1)
    parser = Parser("python -m experiments.bench", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in BENCHES.items():
        add = commands.add_parser(name, help=text, description=text).add_argument
        if name == "data":
            add(
                "--data",
                default="synth",
                metavar="SOURCE",
                help=f"{readers.SPECS} (default: synth)",
            )
            alphabet = "characters to learn, as for train_min.py (default: ascii)"
            add("--alphabet", default="ascii", metavar="ascii|data|FILE", help=alphabet)
            add(
                "--size",
                type=number(int, 32),
                default=512,
                help="height and width of images, pixels (default: 512)",
            )
            add("--batch", type=positive, default=32, help="images in a batch (default: 32)")
            add("--pictures", type=positive, default=2048, help="images to read (default: 2048)")
            add("--workers", type=number(int, 0), default=2, help="loader processes (default: 2)")
        else:
            presets = ("tiny", "oclip_rn50")
            add(
                "--preset",
                choices=presets,
                default="oclip_rn50",
                help="the model's sizes (default: oclip_rn50)",
            )
            add("--batch", type=positive, help="images in a step (default: 64 for tiny, else 4)")
            add(
                "--repeats",
                type=positive,
                default=5,
                help="rounds to take the median of (default: 5)",
            )
            add(
                "--device",
                choices=("cpu", "cuda"),
                default="cpu",
                help="where to run; cuda computes in bfloat16 (default: cpu)",
            )
        add(
            "--json",
            type=Path,
            metavar="FILE",
            help="write the figures to this file as well (default: print only)",
        )
    args = parser.parse_args(argv)
    if args.command == "data":
        if args.pictures <= args.batch:
            parser.error(
                f"--pictures: expected more than a batch of {args.batch}, got {args.pictures}"
            )
        args.device = "cpu"
        return args
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu, as torch finds no GPU, got cuda")
    args.batch = args.batch or (64 if args.preset == "tiny" else 4)
    args.bf16 = args.device == "cuda"
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors("python -m experiments.bench", "lower --batch"):
        bench, _ = BENCHES[args.command]
        found = {"machine": machine(args.device), **bench(args)}
        show({"batch": args.batch, **found})
        if args.json:
            report = {"args": vars(args), **found}
            args.json.write_text(json.dumps(report, default=str, indent=1))


if __name__ == "__main__":
    main()
