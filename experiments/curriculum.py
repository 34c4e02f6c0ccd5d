"""Pre-train on rendered words that become harder.

    python -m experiments.curriculum                 # hours on a CPU; the same command goes on
    python -m experiments.curriculum --control swapped    # see experiments/ladder.py

Every stage is a run of train_min.py on pictures of its own kind, which starts from the whole model
of the stage before it. All stages have the 94 printable characters of ASCII. A stage that was
interrupted goes on from its last checkpoint, and a stage that is done is not repeated. The stages
are in runs/NAME-STAGE/, and the model is the checkpoint of the last one. weights/tiny.pt is that of
the first stage.

A control leaves something out, to see what it is in the pre-training that helps a detector. It has
the first two stages, in runs/NAME-CONTROL-STAGE/.

    characters     no contrastive loss, loss = L_cls
    contrastive    no decoder: a linear layer predicts the masked characters
    swapped        each picture has the words of another one of its batch

Run this from the clone of the repository.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import data_stub
import train_min
import vlpt
from training import data
from training.dataset import Batch
from training.options import Parser, folder_name
from training.runs import has_checkpoint, one_line_errors, read_facts


class Stage(NamedTuple):
    name: str
    scene: data_stub.Scene
    image_size: int  # pixels
    samples: int  # pictures


# Layers and learning rate are those of version 0.3.0, with which weights/tiny.pt was trained.
COMMON = ("--lr", "1e-3")  # options of every stage
CONFIG = dataclasses.replace(vlpt.TINY, alphabet=vlpt.PRINTABLE, text_layers=2, decoder_layers=6)
CONTROLS: dict[str, dict[str, Any]] = {  # what changes in CONFIG
    "characters": {"contrastive": False},
    "contrastive": {"decoder": "none"},
    "swapped": {},  # see prepare_swapped
}
ONE_WORD = data_stub.Scene(
    kinds=("random", "random", "list", "number"),
    words=(1, 1),
    chars=(1, 4),
    height=(0.22, 0.45),
    tilt=10.0,
)
TWO_WORDS = data_stub.Scene(
    kinds=("random", "list", "pseudo", "number"),
    words=(1, 2),
    chars=(1, 6),
    height=(0.14, 0.4),
    tilt=15.0,
)
STAGES = (
    Stage("one-word", ONE_WORD, 64, 300_000),
    Stage("two-words", TWO_WORDS, 64, 300_000),
    Stage("scenes", data_stub.Scene(), 96, 900_000),
)


prepare = data.prepare  # before it is replaced


def prepare_swapped(batch: Batch, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Give each picture the words of the one before it.

    In evaluations, "another image" is then the correct one, so that `gain` has the opposite sign.
    """
    return prepare(batch._replace(ids=batch.ids.roll(1, 0)), seed, device)


def run(
    name: str, stages: tuple[Stage, ...] = STAGES, seed: int = 0, control: str | None = None
) -> Path:
    """Run or continue all stages.

    Returns:
        The checkpoint of the last one.
    """
    checkpoint: Path | None = None
    base = dataclasses.replace(CONFIG, **CONTROLS[control]) if control else CONFIG
    for stage in stages:
        folder = "-".join(filter(None, (name, control, stage.name)))
        config = dataclasses.replace(base, image_size=stage.image_size)
        tiny = train_min.PRESETS["tiny"]
        train_min.PRESETS["curriculum"] = tiny._replace(config=config, scene=stage.scene)
        options = ["--preset", "curriculum", "--samples", str(stage.samples), "--seed", str(seed)]
        options += COMMON
        options += ["--init", str(checkpoint.resolve())] if checkpoint else []
        checkpoint = Path("runs", folder, "checkpoint.pt")
        check_earlier_part(checkpoint.parent, config, seed)
        if checkpoint.with_name("metrics.json").exists():
            continue
        resumes = has_checkpoint(checkpoint.parent)
        used = prepare_swapped if control == "swapped" else prepare
        with mock.patch.object(data, "prepare", used):
            train_min.main(
                ["--name", folder, *(["--resume"] if resumes else [*options, "--overwrite"])]
            )
    assert checkpoint is not None
    return checkpoint


def check_earlier_part(folder: Path, config: vlpt.Config, seed: int) -> None:
    """Raise a ValueError if the folder has a run of another model or seed, or a damaged one."""
    if not (folder / "run.json").exists():
        return
    facts = read_facts(folder)
    expected = json.loads(json.dumps(dataclasses.asdict(config)))
    if facts["config"] != expected or facts["args"].get("seed") != seed:
        raise ValueError(
            f"{folder}: expected a run of the same model and seed, got another; use another --name"
        )


def main(argv: list[str] | None = None) -> None:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        "python -m experiments.curriculum",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    name = "the stages are runs/NAME-STAGE (default: curriculum)"
    parser.add_argument("--name", type=folder_name, default="curriculum", help=name)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of weights, pictures, words and masks (default: 0)",
    )
    control = "what to leave out, see below (default: nothing)"
    parser.add_argument("--control", choices=CONTROLS, help=control)
    args = parser.parse_args(argv)
    stages = STAGES[:2] if args.control else STAGES
    with one_line_errors("python -m experiments.curriculum"):
        print(f"the model is {run(args.name, stages, args.seed, args.control)}")


if __name__ == "__main__":
    main()
