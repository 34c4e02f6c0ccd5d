"""What keeps a run alive: its folder, run.json, checkpoints, resuming, signals, error messages.

`resume_options` takes up the options of a run, and `restore` its model, optimizer, step and log.
Everything random in a step follows from the seed and the step.

Files with weights are read by `vlpt.read_checkpoint`, here and everywhere else; to use the model of
a run, see `training.weights.load_model`.
"""

import argparse
import dataclasses
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchvision

import vlpt
from training.distributed import print_rank0, rank, world_size

FILES = (
    "run.json",
    "log.jsonl",
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "metrics.json",
    "backbone.safetensors",
    "loss.png",
    "attention.png",
    "learning.gif",
    "learning.png",
    "retrieval.png",
    "report.html",
)
UNFINISHED = "checkpoint.new.pt"  # is there only while a checkpoint is written
OF_THIS_CALL = ("resume", "overwrite")  # options that do not belong to the run
MAY_CHANGE = ("name", "workers", "device", "tensorboard", *OF_THIS_CALL)  # with --resume

# ---- The folder and run.json -------------------------------------------------------------------


def check_folder(args: argparse.Namespace) -> None:
    """Raise a ValueError if something is in runs/NAME, and no option says what to do with it.

    Or if --overwrite would remove what --init starts from.
    """
    out = Path("runs") / args.name
    if rank() > 0 or args.resume:
        return
    if args.overwrite:
        if args.init and Path(args.init).resolve().parent == out.resolve():
            raise ValueError(
                f"--init: expected a file that --overwrite does not remove, got {args.init}; "
                "use another --name"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out}: expected a new or empty folder, got files there; "
            "use --resume, --overwrite or another --name"
        )


def open_folder(args: argparse.Namespace) -> Path:
    """Return runs/NAME, ready for a new run or for going on. A new run replaces an earlier one."""
    out = Path("runs") / args.name
    if rank() == 0 and not args.resume:
        out.mkdir(parents=True, exist_ok=True)
        for name in (*FILES, UNFINISHED):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    return out


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that belong to the run, and not to this call alone."""
    return {key: value for key, value in vars(args).items() if key not in OF_THIS_CALL}


def write_run(
    out: Path, args: argparse.Namespace, config: vlpt.Config, facts: dict[str, Any]
) -> None:
    """Write run.json: everything that a run depends on.

    Args:
        facts: more of it, such as the device and what the data hold.
    """
    if rank() > 0:
        return
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "vlpt": vlpt.__version__,
    }
    content = {
        "args": options_of(args),
        "config": dataclasses.asdict(config),
        "versions": versions,
        "commit": git_commit(),
        "processes": world_size(),
        **facts,
    }
    vlpt.write_atomically(out / "run.json", json.dumps(content, indent=1).encode())


def git_commit() -> str | None:
    folder = str(Path(vlpt.__file__).parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def no_run(folder: Path, file: str) -> ValueError:
    return ValueError(f"{folder}: expected the folder of a run, got no {file}")


def damaged(place: Path | str, error: Exception) -> ValueError:
    return ValueError(f"{place}: expected what train_min.py writes, got a damaged file ({error!r})")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file from the folder of a run.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise no_run(path.parent, path.name) from None
    except (ValueError, TypeError) as error:
        raise damaged(path, error) from None


def read_facts(folder: Path) -> dict[str, Any]:
    """Read run.json of a run.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    facts = read_json(folder / "run.json")
    try:
        _, _ = map(float, facts["chance"])
        known = {"args": {**facts["args"]}, "config": {**facts["config"]}}
        return facts | known | {"processes": int(facts["processes"])}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / "run.json", error) from None


# ---- Resuming ----------------------------------------------------------------------------------


def resume_options(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    args: argparse.Namespace,
    presets: Container[str],
) -> argparse.Namespace:
    """Fill in the options that a run was started with, so that --resume need not repeat them.

    Args:
        args: what the parser made of argv.
        presets: those that exist. Other programs make runs with presets of their own.
    Raises:
        ValueError: there is no such run, it has another preset, or an option contradicts it; the
            message names each.
    """
    unset = object()  # argparse sets a default only where there is no value yet
    given = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset))))
    given = {key: value for key, value in given.items() if value is not unset}
    earlier = read_facts(Path("runs") / args.name)["args"]
    if earlier.get("preset") not in presets:
        raise ValueError(
            "--resume: expected a run with a preset of train_min.py, got "
            f"{earlier.get('preset')!r}; repeat the command that started the run"
        )
    contradictions = []
    for key in sorted(given.keys() & earlier.keys() - set(MAY_CHANGE)):
        if given[key] != earlier[key]:
            is_unused = earlier[key] is None or earlier[key] is False
            expected = "it to be left out" if is_unused else repr(earlier[key])
            option = f"--{key.replace('_', '-')}"
            contradictions.append(f"{option}: expected {expected}, got {given[key]!r}")
    if contradictions:
        raise ValueError("--resume: expected the options of the run; " + "; ".join(contradictions))
    return argparse.Namespace(**(vars(args) | earlier | given | {"name": args.name}))


def check_processes(args: argparse.Namespace) -> None:
    """Raise a ValueError if these processes cannot run with the options, or go on with the run."""
    if args.resume:
        expected = read_facts(Path("runs") / args.name)["processes"]
        if expected != world_size():  # each process draws masks of its own
            raise ValueError(f"processes: expected {expected} as before, got {world_size()}")
    if args.batch % world_size():
        raise ValueError(
            f"--batch: expected a multiple of the {world_size()} processes, got {args.batch}"
        )


def check_data(args: argparse.Namespace, data: dict[str, str]) -> None:
    """Raise a ValueError if a run would go on with other data.

    Args:
        data: descriptions of its halves, as in run.json.
    """
    if args.resume:
        earlier = read_facts(Path("runs") / args.name).get("data", {})
        for half, found in data.items():
            if earlier.get(half, found) != found:
                raise ValueError(
                    f"--resume: expected the data of the run: {half} {earlier[half]}, got {found}; "
                    "go on with its data and its version of the program, or start a new run"
                )


# ---- Checkpoints -------------------------------------------------------------------------------


def save_checkpoint(
    out: Path,
    model: vlpt.VLPT,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    step: int,
    log_state: dict[str, Any],
) -> None:
    """Write weights, optimiser and settings to checkpoint.pt, and keep the checkpoint before it.

    At every moment there is at least one whole checkpoint, whatever happens while it is written.
    """
    if rank() == 0:
        checkpoint = {
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "config": dataclasses.asdict(model.config),
            "args": options_of(args),
            "step": step,
            "log": log_state,
        }
        buffer = io.BytesIO()  # torch writes to memory only, since it does not survive a full disk
        torch.save(checkpoint, buffer)
        path, new = out / "checkpoint.pt", out / UNFINISHED
        vlpt.write_atomically(new, buffer.getvalue())
        if args.resume != "previous" and path.exists():  # else path is damaged, and previous good
            path.replace(out / "checkpoint.previous.pt")
        new.replace(path)
        args.resume = args.resume and "last"  # from now on checkpoint.pt is good
    if dist.is_initialized():
        dist.barrier()  # until it is written: torchrun ends all processes when one has ended


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can be resumed.

    If it was killed between two renames, only checkpoint.previous.pt exists.
    """
    return any((folder / name).exists() for name in ("checkpoint.pt", "checkpoint.previous.pt"))


def restore(
    out: Path, which: str, model: vlpt.VLPT, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Fill the model and the optimiser from a checkpoint.

    Args:
        which: "last" or "previous".
    Returns:
        The checkpoint's step and state of the log; 0 and {} if the run was stopped before its
        first checkpoint.
    Raises:
        ValueError: it is damaged or of another model. The message offers the one before it.
    """
    path, other = out / "checkpoint.pt", out / "checkpoint.previous.pt"
    if which == "previous" or (other.exists() and not path.exists()):  # killed between two renames
        path, other = other, path
    elif not path.exists():
        return 0, {}
    try:
        checkpoint = vlpt.read_checkpoint(path)
        if not isinstance(checkpoint.get("step"), int) or "log" not in checkpoint:
            raise ValueError(f"{path}: expected a checkpoint of train_min.py, got another file")
        try:
            model.load_state_dict(checkpoint["state_dict"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            same_config = checkpoint["config"] == dataclasses.asdict(model.config)
        except (KeyError, TypeError, ValueError, RuntimeError):
            same_config = False
        if not same_config:
            raise ValueError(f"{path}: expected this run's model, got another one")
    except ValueError as error:
        offer = "; --resume previous starts from the checkpoint before it"
        has_other = which == "last" and other.exists()
        raise ValueError(f"{error}{offer if has_other else ''}") from None
    return checkpoint["step"], dict(checkpoint["log"])


# ---- Signals and errors ------------------------------------------------------------------------


class Stopped(Exception):
    """A signal asked the run to end, and it has saved itself.

    Args:
        caught: the signals of `catch_signals`; empty if another process caught one.
        done: how far the run has come.
    """

    def __init__(self, caught: list[int], done: str) -> None:
        super().__init__(f"stopped after {done}")
        self.number = caught[0] if caught else signal.SIGTERM


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list. The first one is only noted; a second one kills.

    With several processes further signals are only noted: a launcher may repeat a signal, and kills
    its processes itself if they do not end.
    """
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        is_alone = world_size() == 1
        if caught and is_alone:
            os._exit(128 + number)
        caught.append(number)
        if len(caught) == 1:
            hint = "; press Ctrl-C again to stop at once" if is_alone else ""
            print_error(f"stopping after this step{hint}")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_error(text: str) -> None:
    """Print to stderr. A terminal or a pipe that is gone does not keep a run from being saved."""
    with suppress(OSError, RuntimeError):  # the latter if a signal interrupts such a print
        print(text, file=sys.stderr)


@contextmanager
def warn_only(action: str) -> Iterator[None]:
    """Turn any error of the block into a warning. For what a run can do without, like figures."""
    try:
        yield
    except Exception as error:
        print_rank0(f"warning: could not {action}: {type(error).__name__}: {error}")


def describe_error(error: Exception) -> str:
    """An error's message. The system's own, of an OSError, is shown as FILE: REASON; that of an
    error in a worker is shown without the stack trace that torch adds.
    """
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = str(error)
    if message.startswith("Caught "):
        last = message.strip().split("\n")[-1]
        message = last.partition(": ")[2] or last
    return message


@contextmanager
def one_line_errors(
    program: str, advice: str = "use a machine with more", restart: str = "start it again"
) -> Iterator[None]:
    """End the program with one line and the right status for every error that a user can mend.

    Args:
        advice: what to do if the memory is full.
        restart: what to do if a process that loads pictures is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of pictures may be in any script
            stream.reconfigure(errors="backslashreplace")
    place = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""
    try:
        yield
    except torch.OutOfMemoryError:
        sys.exit(f"{program}: {place}error: the memory of the GPU is full; {advice}")
    except (FloatingPointError, ValueError, OSError, ImportError) as error:
        sys.exit(f"{program}: {place}error: {describe_error(error)}")
    except (MemoryError, RuntimeError) as error:
        lines = str(error).strip().split("\n")
        # Of an error in a worker torch passes on the whole stack trace, with the error at its end.
        message = lines[-1 if lines[0].startswith("Caught") else 0].strip().rstrip(".")
        if message.startswith("DataLoader worker"):
            advice = restart
        elif isinstance(error, MemoryError) or "MemoryError" in message:  # of Python or NumPy
            message = f"the memory is full: {message}".rstrip(": ")
        elif "can't allocate memory" not in message:  # what torch says on a CPU
            raise
        sys.exit(f"{program}: {place}error: {message}; {advice}")
    except Stopped as stop:
        print_error(f"{program}: {place}{stop}")
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        print_error(f"{program}: {place}stopped")
        sys.exit(130)
