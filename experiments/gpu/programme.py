"""What the parts of the programme share: sizes, results that are kept, the time that is left."""

import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import data_stub
import vlpt

Result = dict[str, Any]

# The published model, at another image size or with another backbone.
CHECK_CONFIG = vlpt.Config(image_size=256)
PRETRAIN_CONFIG = vlpt.Config(image_size=192, backbone="resnet18")


@dataclass(frozen=True)
class Sizes:
    """How large everything is; a rehearsal takes the same steps with `REHEARSAL`."""

    # check and bench
    preset: str = "oclip_rn50"  # of train_min.py
    check_config: vlpt.Config = CHECK_CONFIG
    batches: tuple[int, ...] = (64, 128, 256)
    small_batch: int = 64  # of the preset "tiny"
    warmup_steps: int = 3
    timed_steps: int = 5
    loader_seconds: float = 12
    loader_size: int = 512

    # pre-training
    config: vlpt.Config = PRETRAIN_CONFIG
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 200  # steps
    digits_steps: int = 1500  # the curriculum's first stage has at most so many,
    short_steps: int = 2000  # and its second one ends here,
    planned_steps: int = 5000  # in a run of so many steps or more
    max_steps: float = math.inf  # a run ends with its time, or after so many steps
    look_every: int = 20  # steps after which the host looks at the numbers
    pool: int = 16_384  # pictures on the device
    uses: int = 5  # how often each is seen
    heldout: int = 2048

    # the detector
    arms: tuple[tuple[int, int, tuple[int, ...]], ...] = (  # photographs, crops, seeds
        (800, 4_000, (0, 1, 2)),
        (800, 16_000, (0,)),
        (100, 4_000, (0, 1, 2)),
        (100, 16_000, (0,)),
        (800, 16_000, (1,)),
        (100, 16_000, (1,)),
    )
    crop: int = 512
    detector_batch: int = 8
    detector_lr: float = 1e-3
    other_lrs: tuple[float, ...] = (3e-4, 3e-3)  # of the first arm without pre-training
    width: int = 64
    long_side: int = 1280
    scored: int = 200  # photographs of each half that is scored, at most


REHEARSAL = Sizes(
    preset="tiny",
    check_config=vlpt.TINY,
    batches=(4, 8),
    small_batch=8,
    warmup_steps=1,
    timed_steps=1,
    loader_seconds=1,
    loader_size=64,
    config=vlpt.Config(
        image_size=64,
        backbone="resnet18",
        embed_dim=64,
        text_layers=1,
        decoder_layers=1,
    ),
    batch=8,
    warmup=2,
    digits_steps=3,
    short_steps=6,
    planned_steps=8,
    max_steps=8,
    look_every=1,
    pool=32,
    heldout=16,
    arms=((8, 8, (0,)), (4, 8, (0,))),
    crop=64,
    detector_batch=4,
    other_lrs=(3e-4,),
    width=8,
    long_side=96,
    scored=2,
)

NUMBERS = data_stub.Scene(
    kinds=("number",), words=(1, 1), chars=(2, 4), height=(0.2, 0.45), tilt=10.0
)
SHORT = data_stub.Scene(
    kinds=("pseudo", "number", "random", "random"), words=(1, 1), chars=(1, 4), height=(0.15, 0.4)
)


@dataclass
class Programme:
    """Runs named steps within a time limit, and keeps their results in OUT/results.jsonl.

    Args:
        out: the folder that everything is written to.
        deadline: when everything has to have ended, in `time.monotonic` seconds.
        device: where to run.
        sizes: see `Sizes`.
        icdar2015: the folder of the photographs, or None.
    """

    out: Path
    deadline: float
    device: torch.device
    sizes: Sizes
    icdar2015: Path | None = None
    results: dict[str, Result] = field(default_factory=dict)  # of steps that are done, by name

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "results.jsonl"
        self.paces: dict[str, float] = {}  # measured over estimated seconds, of each kind of step
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        if text and not text.endswith("\n"):  # a kill cut the last line short
            with self.path.open("a") as file:
                file.write("\n")
        for at, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line)
                is_done = "error" not in row and "skipped" not in row
                if is_done:
                    self.take(row)
            except (ValueError, TypeError, KeyError):
                message = f"{self.path}:{at}: expected a result, got {line[:80]!r}; ignored"
                print(f"warning: {message}", file=sys.stderr)

    def take(self, row: Result) -> None:
        """Keep the result of a step that is done, and learn from the time it took."""
        self.results[row["name"]] = row
        pace = row["seconds"] / row["estimate"]
        self.paces[kind_of(row["name"])] = max(0.5, pace)  # steps of a kind differ a little

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def expected(self, name: str, estimate: float) -> float:
        """The estimate of a step, corrected by the last step of its kind."""
        return estimate * self.paces.get(kind_of(name), 1.0)

    def write(self, row: Result) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def starts(self, name: str, estimate: float) -> bool:
        """Whether a step is to be started: it is not done, and can end in the time that is left."""
        if name in self.results:
            return False
        expected = self.expected(name, estimate)
        if expected > self.seconds_left:
            left = max(0.0, self.seconds_left)
            reason = f"it takes about {expected:.0f} s, and {left:.0f} s are left"
            self.write({"name": name, "skipped": reason})
            return False
        return True

    def run(self, name: str, estimate: float, function: Callable[..., Result], *args: Any) -> None:
        """Run a step and write its result, or why it failed.

        Args:
            name: "KIND/WHAT". Steps of a kind share the correction of their estimates.
            estimate: seconds.
            function: called with `args`; returns what is measured.
        """
        if not self.starts(name, estimate):
            return
        start = time.monotonic()
        try:
            found = function(*args)
        except Exception as error:
            self.write({"name": name, "error": describe(error)})
        else:
            self.finish(name, estimate, time.monotonic() - start, found)
        free_memory()

    def finish(self, name: str, estimate: float, seconds: float, found: Result) -> None:
        """Write the result of a step."""
        row = {"name": name, **found, "seconds": round(seconds, 3), "estimate": estimate}
        self.take(row)
        self.write(row)


def kind_of(name: str) -> str:
    return name.split("/")[0]


def describe(error: BaseException) -> str:
    """An error in one line, with the place it was raised at."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1][:300]} ({Path(place.filename).name}:{place.lineno})"


def free_memory() -> None:
    """Give the GPU's memory back that nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
