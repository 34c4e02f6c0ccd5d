"""The log of a run: a printed line for each evaluation, log.jsonl for every number, TensorBoard."""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vlpt
from training.dataset import Pretraining
from training.distributed import all_gather_lists, all_reduce, print_rank0, rank
from training.runs import warn_only

TERMS = ("char", "contrastive", "scale", "acc", "norm")  # what train_step returns, in this order
NAMES = ("L_cls", "L_bc", "scale", "accuracy", "gradient norm")  # of the terms in an error
MAX_NAMED = 8  # pictures that an error names
HEADER = (
    "  pictures   L_cls    L_bc   scale   read | held-out right  other    i2t    t2i  img/s   wait"
)


class PendingMetrics:
    """Numbers that are being copied from the device, so that nobody waits for them meanwhile."""

    def __init__(self, samples: int, numbers: Tensor) -> None:
        self.samples = samples
        self.numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory
        self.copied: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> dict[str, float]:
        if self.copied is not None:
            self.copied.synchronize()
        return dict(zip(TERMS, self.numbers.tolist(), strict=True))


class Log:
    """Prints a line for each evaluation and keeps every number.

    Args:
        data: what the model is trained on, for the names of pictures.
        batch: the pictures of a step, in all processes together.
        chance: L_cls and L_bc of a model that guesses, in nats.
        entropy: about the L_cls of guesses by the frequency of characters, in nats.
        out: the folder for log.jsonl.
        tensorboard: log to out/tensorboard as well.
        done: the steps that a resumed run has taken so far.
        state: what `state` returned when that run was saved; {} for a new run.
    """

    def __init__(
        self,
        data: Pretraining,
        batch: int,
        chance: tuple[float, float],
        entropy: float,
        out: Path,
        tensorboard: bool,
        done: int,
        state: Mapping[str, Any],
    ) -> None:
        samples = done * batch
        self.data = data
        self.batch = batch
        self.rows: list[dict[str, float]] = []  # one for each step
        self.evaluations: list[dict[str, float]] = []
        self.skipped: Counter[str] = Counter(state.get("skipped"))  # by reason
        self.outside = int(state.get("outside", 0))
        self.own_skipped: list[tuple[int, str]] = []  # by this process since `gather_skipped`
        self.own_outside = 0
        self.pending: PendingMetrics | None = None
        # Seconds of waiting for data and in all: of all steps, and of those that no evaluation's
        # line covers yet.
        self.timed = np.array(state.get("timed", (0.0, 0.0)))
        self.timed_lately = np.zeros(2)
        self.num_timed_samples = samples  # images at the last evaluation or the resumption
        self.num_averaged = 0  # entries of `rows` that earlier evaluation lines already cover
        self.earlier_seconds = float(state.get("seconds", 0.0))
        self.path: Path | None = None
        self.board: Any = None
        if rank() == 0:
            self.path = out / "log.jsonl"
            self.truncate(self.path, samples)
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(out / "tensorboard"), purge_step=samples + 1)
        print_rank0(HEADER)
        print_rank0(f"{'chance':>10} {chance[0]:7.3f} {chance[1]:7.3f}   nats, for blind guesses")
        print_rank0(
            f"{'entropy':>10} {entropy:7.3f}   nats, roughly, for guesses by character frequency"
        )
        self.start = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log, beside log.jsonl."""
        return {
            "skipped": dict(self.skipped),
            "outside": self.outside,
            "seconds": self.elapsed(),
            "timed": self.timed.tolist(),
        }

    def truncate(self, path: Path, samples: int) -> None:
        """Take up log.jsonl as far as a checkpoint, and delete the lines after it.

        Raises:
            ValueError: a line is damaged.
        """
        kept = []
        rows_of_kind = {"step": self.rows, "evaluation": self.evaluations}
        text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        lines = text.split("\n")[:-1]  # a last line that was cut short is of a later step
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if entry["samples"] <= samples:
                    kept.append(line + "\n")
                    rows = rows_of_kind.get(entry.pop("kind"), [])
                    rows.append({k: v for k, v in entry.items() if k not in ("img_s", "wait")})
            except (ValueError, KeyError, TypeError, AttributeError):
                where = f"{path}:{number}"
                raise ValueError(
                    f"{where}: expected a line of this log, got {line[:80]!r}"
                ) from None
        covered = self.evaluations[-1]["samples"] if self.evaluations else 0
        self.num_averaged = sum(row["samples"] <= covered for row in self.rows)
        vlpt.write_atomically(path, "".join(kept).encode())

    def require_evaluation(self, samples: int) -> None:
        """Raise a ValueError if the log of a run that is done lacks its last evaluation."""
        last = self.evaluations[-1]["samples"] if self.evaluations else None
        if self.path is not None and last != samples:
            raise ValueError(
                f"{self.path}: expected an evaluation after the last step, got none; "
                "--resume previous takes the last steps once more, if that checkpoint is there"
            )

    def write(self, kind: str, entry: Mapping[str, Any]) -> None:
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"kind": kind, **entry}) + "\n")
            except OSError as error:
                raise OSError(f"{self.path}: cannot be written ({error.strerror})") from None

    def step(self, samples: int, numbers: Tensor) -> None:
        """Take the numbers of a step, and log those of the step before, which have arrived.

        Raises:
            FloatingPointError: as `flush`, one step late. No checkpoint was written meanwhile.
        """
        self.flush(PendingMetrics(samples, numbers))

    def flush(self, following: PendingMetrics | None = None) -> None:
        """Log the numbers of the last step. Call it before a checkpoint is written.

        Raises:
            FloatingPointError: one of them is infinite or not a number.
        """
        last, self.pending = self.pending, following
        if last is None:
            return
        terms = last.read()
        if not all(map(math.isfinite, terms.values())):
            self.pending = None
            raise self.not_finite(last.samples, terms)
        self.rows.append({"samples": last.samples, **terms})
        self.write("step", self.rows[-1])
        if self.board is not None:
            for key, value in terms.items():
                self.board.add_scalar(f"train/{key}", value, last.samples)

    def not_finite(self, samples: int, terms: Mapping[str, float]) -> FloatingPointError:
        """The error of a step, with its numbers and the pictures of its batch."""
        values = ", ".join(
            f"{name} {terms[term]:.4g}" for term, name in zip(TERMS, NAMES, strict=True)
        )
        keys = range(samples - self.batch, samples)[:MAX_NAMED]
        pictures = [self.data.source.name(self.data.index(k)) for k in keys]
        if self.batch > MAX_NAMED:
            pictures.append(f"and {self.batch - MAX_NAMED} more")
        return FloatingPointError(
            f"training: expected finite losses and gradients, got {values} after {samples:,} "
            f"pictures; step {samples // self.batch} with the pictures {', '.join(pictures)}; "
            "the last checkpoint is intact, and a smaller --lr may help"
        )

    def skip(self, samples: int, skipped: list[str], outside: int) -> None:
        """Record a batch's unreadable pictures and its number of words outside their picture."""
        self.own_skipped += [(samples, reason) for reason in skipped]
        self.own_outside += outside

    def gather_skipped(self) -> None:
        """Count and log what the batches of all processes lack. Every process has to call it."""
        for samples, reason in all_gather_lists(self.own_skipped):
            self.skipped[reason] += 1
            self.write("skipped", {"samples": samples, "reason": reason})
        self.outside += int(all_reduce(torch.tensor(self.own_outside)))
        self.own_skipped, self.own_outside = [], 0

    def record_time(self, waited: float, seconds: float) -> None:
        """Record how long a step waited for its batch, and how long it took with that."""
        self.timed += (waited, seconds)
        self.timed_lately += (waited, seconds)

    def wait_share(self) -> float:
        """The share of the time, 0..1, that all steps of the run waited for data."""
        waited, seconds = self.timed.tolist()
        return waited / max(1e-9, seconds)

    def elapsed(self) -> float:
        """Seconds of training, including those before the run was resumed."""
        return self.earlier_seconds + time.perf_counter() - self.start

    def evaluation(self, samples: int, result: dict[str, float]) -> str:
        """Log an evaluation and return the line to print, with means since the one before it."""
        waited, seconds = self.timed_lately.tolist()
        speed = (samples - self.num_timed_samples) / max(1e-9, seconds)
        wait = waited / max(1e-9, seconds)
        self.timed_lately, self.num_timed_samples = np.zeros(2), samples
        self.evaluations.append({"samples": samples, **result})
        self.write("evaluation", {**self.evaluations[-1], "img_s": speed, "wait": wait})
        if self.board is not None:
            for key, value in result.items():
                self.board.add_scalar(f"heldout/{key}", value, samples)
        recent = self.rows[self.num_averaged :]
        self.num_averaged = len(self.rows)
        means = [
            float(np.mean([row[key] for row in recent])) if recent else math.nan
            for key in ("char", "contrastive", "scale", "acc")
        ]
        line = "{:>10,} {:7.3f} {:7.3f} {:7.2f} {:6.3f} |".format(samples, *means)
        shares = " ".join(f"{result[key]:6.3f}" for key in ("acc_right", "acc_other", "i2t", "t2i"))
        return f"{line}{' ' * 9}{shares} {speed:6.0f} {wait:6.2f}"

    def log_reading(self, samples: int, model: vlpt.VLPT, heldout: Pretraining) -> None:
        """Log what the model reads in a few held-out images; for TensorBoard, where it looks."""
        if self.path is None:
            return
        pictures = None
        with warn_only("look at held-out pictures"):
            from training import gallery

            pictures = gallery.watch(model, heldout)
            if self.board is not None:
                figure = gallery.attention_figure(model, heldout)
                self.board.add_figure("attention", figure, samples)
                self.board.flush()  # else it may stay in memory for two minutes
        if pictures is not None:  # not above: a line that is cut short has to end the run
            self.write("reading", {"samples": samples, "pictures": pictures})

    def print_skipped(self) -> None:
        """Tell what the training pictures lacked."""
        for reason, count in self.skipped.most_common(5):
            print_rank0(f"skipped {count} times: {reason}")
        if len(self.skipped) > 5:
            print_rank0(f"skipped as well: {len(self.skipped) - 5:,} other pictures")
        if self.outside:
            print_rank0(f"left out {self.outside:,} times: a word mostly outside of its picture")


def check_tensorboard() -> None:
    """Raise a ValueError if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ValueError(
            "--tensorboard: expected the package tensorboard, got none; "
            "run: pip install tensorboard"
        ) from None
