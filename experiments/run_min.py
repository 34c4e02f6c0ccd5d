"""What keeps a run of train_min.py alive: many processes, signals, its folder, checkpoints, log."""

import argparse
import dataclasses
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor

import vlpt

FILES = ("run.json", "log.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "metrics.json",
         "nonfinite.json", "backbone.safetensors", "loss.png", "attention.png",
         "report.html")  # fmt: skip

# ------------------------------------------------------------------------------------- options


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line, from the first process alone."""
        line = f"{self.prog}: error: {message}; see --help\n"
        self.exit(2, line if os.environ.get("RANK", "0") == "0" else None)


def number(kind: type, least: float, below: float = math.inf, above: bool = False) -> Any:
    """A reader of an option's value: an int or float from `least` (or above it) to `below`."""
    what = "a whole number" if kind is int else "a number"
    wanted = f"{what} {'above' if above else 'of at least'} {least}"
    wanted += f" and below {below}" if below < math.inf else ""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < below or (above and value == least):
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
        return value

    return read


def some_path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("got '', wanted a path")
    return text


def folder_name(text: str) -> str:
    parts = Path(text).parts
    if not text.isprintable() or not parts or ".." in parts or Path(text).is_absolute():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted the name of a folder in runs/")
    return text


# ------------------------------------------------------------------------------- many processes


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def say(text: str) -> None:
    """Print, in one of the processes."""
    if rank() == 0:
        print(text, flush=True)


def over_all(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in each of them; without gradient."""
    if dist.is_initialized():
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


class Gather(torch.autograd.Function):
    """The rows of all processes, (B, D) each, as (W*B, D); gradients return to their owners."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        rows = [torch.empty_like(own) for _ in range(world())]
        dist.all_gather(rows, own.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # each process has its own share of it
        return over_all(gradient).chunk(world())[rank()]


def gather(own: Tensor) -> Tensor:
    """See `Gather`; without other processes, the rows themselves."""
    return Gather.apply(own) if dist.is_initialized() else own


# ------------------------------------------------------------------------------------- signals


class Stopped(Exception):
    """A signal asked the run to end; it has saved itself."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def signals() -> Iterator[list[int]]:
    """The signals that came, SIGINT or SIGTERM; the first one is noted, a second one kills.

    Not so under torchrun, which may repeat one and kills in the end.
    """
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        alone = not dist.is_initialized()
        if caught and alone:
            os._exit(128 + number)
        if not caught:
            told = "; once more to stop at once" if alone else ""
            print(f"stopping after this step{told}", file=sys.stderr)
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------- the folder


def write(path: Path, content: bytes, keep: Path | None = None) -> None:
    """A file, on the disk, whole or not at all; `keep` becomes the name of what was there."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror}; what was there is intact") from None
    if keep and path.exists():
        path.replace(keep)
    part.replace(path)


def kept_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, without those of this call."""
    return {k: v for k, v in vars(args).items() if k not in ("resume", "replay", "overwrite")}


def write_facts(
    out: Path, args: argparse.Namespace, config: vlpt.Config, data: list[str], device: str,
    parameters: int,
) -> None:  # fmt: skip
    """Write run.json: all that a run depends on."""
    command = ["git", "-C", str(Path(vlpt.__file__).parent), "describe", "--always", "--dirty",
               "--abbrev=40"]  # fmt: skip
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    versions = {"python": platform.python_version(), "vlpt": vlpt.__version__}
    versions |= {module.__name__: str(module.__version__) for module in (torch, torchvision, np)}
    chance = math.log(len(vlpt.Alphabet(config.alphabet))), 2 * math.log(args.batch)
    facts = {"args": kept_options(args), "config": dataclasses.asdict(config), "versions": versions,
             "commit": commit, "device": device, "processes": world(), "chance": chance,
             "data": dict(zip(("train", "heldout"), data, strict=True)),
             "parameters": parameters}  # fmt: skip
    write(out / "run.json", json.dumps(facts, indent=1).encode())


def read_run(folder: Path) -> dict[str, Any]:
    """A run's run.json, with its options and its number of processes."""
    path = folder / "run.json"
    try:
        facts = json.loads(path.read_text("utf-8"))
        return {"args": dict(facts["args"]), "processes": int(facts["processes"])}
    except FileNotFoundError:
        raise ValueError(f"{folder}: got no run.json there, wanted the folder of a run") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not what train_min.py writes; the file is damaged") from None


def open_folder(args: argparse.Namespace) -> Path:
    """runs/NAME, ready for a new run or to go on; what was there is replaced only if asked for."""
    out = Path("runs") / args.name
    if rank() == 0 and not args.resume:
        if not args.overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out}: exists; wanted --resume, --overwrite or another --name")
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    return out


# --------------------------------------------------------------------------------- checkpoints


def save_checkpoint(
    out: Path, model: vlpt.VLPT, optimizer: torch.optim.Optimizer, args: argparse.Namespace,
    step: int, log: "Log",
) -> None:  # fmt: skip
    """Write weights, optimiser and settings to checkpoint.pt; the one before is kept, if good."""
    log.share()
    if rank() == 0:
        held = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
                "config": dataclasses.asdict(model.config), "args": kept_options(args),
                "step": step, "log": log.state()}  # fmt: skip
        buffer = io.BytesIO()  # torch writes to memory only, as it does not survive a full disk
        torch.save(held, buffer)
        damaged = args.resume == "previous"  # else it would take the good one's place
        previous = None if damaged else out / "checkpoint.previous.pt"
        write(out / "checkpoint.pt", buffer.getvalue(), keep=previous)
        args.resume = args.resume and "last"  # from now on checkpoint.pt is good
    if dist.is_initialized():
        dist.barrier()  # until it is written: one that ends early makes torchrun end the others


def restore(
    out: Path, which: str, model: vlpt.VLPT, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Fill model and optimiser from a checkpoint of `save_checkpoint`; its step, and `Log.state`.

    Where a run was stopped before its first checkpoint, nothing, and step 0.
    Raises: ValueError, which offers the checkpoint before, if there is one.
    """
    path, before = out / "checkpoint.pt", out / "checkpoint.previous.pt"
    if which == "previous" or (before.exists() and not path.exists()):  # stopped between renames
        path, before = before, path
    elif not path.exists():
        return 0, {}
    try:
        held = vlpt.read_checkpoint(path)
        if not isinstance(held.get("step"), int) or not isinstance(held.get("log"), dict):
            raise ValueError(f"{path}: not a checkpoint of train_min.py")
        try:
            model.load_state_dict(held["state_dict"])
            optimizer.load_state_dict(held["optimizer"])
            if held["config"] != dataclasses.asdict(model.config):  # as with other letters
                raise ValueError
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise ValueError(f"{path}: not a checkpoint of this run's model") from None
    except ValueError as error:
        offer = "; the one before it: --resume previous" if before.exists() else ""
        raise ValueError(f"{error}{offer if which == 'last' else ''}") from None
    return held["step"], held["log"]


# ------------------------------------------------------------------------------------- the log


def need_tensorboard() -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ValueError("--tensorboard: needs `pip install tensorboard`") from None


class Log:
    """Prints one line an evaluation, keeps every number in log.jsonl, and TensorBoard if asked."""

    def __init__(
        self, chance: tuple[float, float], out: Path | None = None, board: bool = False,
        samples: int = 0, held: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Begin, or go on after so many samples with the `state` that a checkpoint kept."""
        held = held or {}
        self.rows: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.skipped: Counter[str] = Counter(held.get("skipped"))
        self.unshared: list[tuple[int, str]] = []  # skipped by this process, see `share`
        self.unshared_outside = 0
        self.outside, self.nonfinite = held.get("outside", 0), held.get("nonfinite", 0)
        self.seconds: list[tuple[float, float]] = []  # of each step: waiting for data, in all
        self.timed = self.averaged = 0  # steps in lines that are printed: of `seconds`, of `rows`
        self.began, self.earlier = samples, held.get("seconds", 0.0)
        self.chance, self.path, self.board = chance, None, None
        if out is not None and rank() == 0:
            self.path = out / "log.jsonl"
            self.read(self.path, samples)
            if board:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(out / "tensorboard"), purge_step=samples + 1)
        say("  pictures   L_cls    L_bc   scale   read | held-out right  other    i2t    t2i  img/s"
            "   wait")  # fmt: skip
        say(f"{'chance':>10} {chance[0]:7.3f} {chance[1]:7.3f}   (ln V, 2 ln B; nats)")
        self.start = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside log.jsonl."""
        return {"skipped": dict(self.skipped), "outside": self.outside,
                "nonfinite": self.nonfinite, "seconds": self.elapsed()}  # fmt: skip

    def read(self, path: Path, samples: int) -> None:
        """Take up what log.jsonl noted up to a checkpoint; what came after it will come again."""
        kept, known = [], {"step": self.rows, "evaluation": self.evaluations}
        text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        lines = text.split("\n")[:-1]  # without one that was cut short, of a later step
        for place, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if entry["samples"] <= samples:
                    kept.append(line + "\n")
                    rows = known.get(entry.pop("kind"), [])
                    rows.append({k: v for k, v in entry.items() if k not in ("img_s", "wait")})
            except (ValueError, KeyError, TypeError, AttributeError):
                told = f"{path}:{place}: got {line[:80]!r}, wanted a line of this log"
                raise ValueError(told) from None
        self.averaged = len(self.rows)
        write(path, "".join(kept).encode())

    def note(self, kind: str, entry: dict[str, Any]) -> None:
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"kind": kind} | entry) + "\n")
            except OSError as error:
                raise OSError(f"cannot write {self.path}: {error.strerror}") from None

    def wait(self, first: int = 0) -> float:
        """The share of time, 0..1, that this session's steps from `first` on waited for data."""
        seconds = np.array(self.seconds[first:]).reshape(-1, 2).sum(0)
        return float(seconds[0] / seconds[1]) if seconds[1] else 0.0

    def elapsed(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self.earlier + time.perf_counter() - self.start

    def step(self, samples: int, row: dict[str, float]) -> None:
        self.rows.append({"samples": samples} | row)
        self.note("step", self.rows[-1])
        if self.board is not None:
            for key, value in row.items():
                self.board.add_scalar(f"train/{key}", value, samples)

    def skip(self, samples: int, skipped: list[str], outside: int) -> None:
        """Pictures of a step that could not be read, words that were outside theirs."""
        self.unshared += [(samples, reason) for reason in skipped]
        self.unshared_outside += outside

    def blame(self, samples: int, terms: dict[str, float], pictures: list[str]) -> None:
        """Keep what led to a step that could not be taken."""
        self.nonfinite += 1
        told = {key: str(value) for key, value in terms.items()}  # JSON knows no infinity
        entry: dict[str, Any] = {"samples": samples, "step": samples // len(pictures)} | told
        entry["pictures"] = pictures
        self.note("nonfinite", entry)
        if self.path is not None:
            write(self.path.with_name("nonfinite.json"), json.dumps(entry, indent=1).encode())

    def share(self) -> None:
        """Count and note the pictures that any of the processes had to skip."""
        everywhere: list[Any] = [self.unshared]
        if dist.is_initialized():
            everywhere = [None] * world()
            dist.all_gather_object(everywhere, self.unshared)
        for samples, reason in chain(*everywhere):
            self.skipped[reason] += 1
            self.note("skipped", {"samples": samples, "reason": reason})
        self.outside += int(over_all(torch.tensor(self.unshared_outside)))
        self.unshared, self.unshared_outside = [], 0

    def evaluation(self, samples: int, result: dict[str, float]) -> str:
        """Note an evaluation; the line to print, means since the last one, img/s of the session."""
        took = sum(took for _, took in self.seconds)  # of the steps, without evaluations
        speed = (samples - self.began) / max(1e-9, took)
        wait, self.timed = self.wait(self.timed), len(self.seconds)
        self.evaluations.append({"samples": samples} | result)
        self.note("evaluation", self.evaluations[-1] | {"img_s": speed, "wait": wait})
        if self.board is not None:
            for key, value in result.items():
                self.board.add_scalar(f"heldout/{key}", value, samples)
        recent, self.averaged = self.rows[self.averaged :], len(self.rows)
        keys = ("char", "contrastive", "scale", "acc")
        mean = [float(np.mean([row[k] for row in recent])) if recent else math.nan for k in keys]
        line = "{:>10,} {:7.3f} {:7.3f} {:7.2f} {:6.3f} |".format(samples, *mean)
        shares = " ".join(f"{result[k]:6.3f}" for k in ("acc_right", "acc_other", "i2t", "t2i"))
        return f"{line}{' ' * 9}{shares} {speed:6.0f} {wait:6.2f}"
