"""Pre-train on rendered words that become harder.

    python -m experiments.curriculum                 # hours on a CPU; the same command goes on

Every stage is a run of train_min.py on pictures of its own kind, which starts from the whole model
of the stage before it. All stages have the 94 printable characters of ASCII. A stage that was
interrupted goes on from its last checkpoint, and a stage that is done is not repeated. The stages
are in runs/NAME-STAGE/, and the model is the checkpoint of the last one. weights/tiny.pt is that of
the first stage, of version 0.3.0.

Run this from the clone of the repository.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import data_stub
import train_min
import vlpt
from training.options import Parser, folder_name
from training.runs import one_line_errors


class Stage(NamedTuple):
    name: str
    scene: data_stub.Scene
    image_size: int  # pixels
    samples: int  # pictures


COMMON: tuple[str, ...] = ()  # options of every stage
CONFIG = dataclasses.replace(vlpt.TINY, alphabet=vlpt.PRINTABLE)
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


def run(name: str, stages: tuple[Stage, ...] = STAGES, seed: int = 0) -> Path:
    """Run or continue all stages.

    Returns:
        The checkpoint of the last one.
    """
    checkpoint: Path | None = None
    for stage in stages:
        folder = f"{name}-{stage.name}"
        config = dataclasses.replace(CONFIG, image_size=stage.image_size)
        tiny = train_min.PRESETS["tiny"]
        train_min.PRESETS["curriculum"] = tiny._replace(config=config, scene=stage.scene)
        options = ["--preset", "curriculum", "--samples", str(stage.samples), "--seed", str(seed)]
        options += COMMON
        options += ["--init", str(checkpoint.resolve())] if checkpoint else []
        checkpoint = Path("runs", folder, "checkpoint.pt")
        if checkpoint.with_name("metrics.json").exists():
            continue
        resumes = checkpoint.exists()
        train_min.main(
            ["--name", folder, *(["--resume"] if resumes else [*options, "--overwrite"])]
        )
    assert checkpoint is not None
    return checkpoint


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
    args = parser.parse_args(argv)
    with one_line_errors("python -m experiments.curriculum"):
        print(f"the model is {run(args.name, seed=args.seed)}")


if __name__ == "__main__":
    main()
