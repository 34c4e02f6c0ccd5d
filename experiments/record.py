"""How soon do runs of train_min.py read? Seconds of training until they reach a gain.

    python -m experiments.record runs/seed0 runs/seed1 runs/seed2
    python -m experiments.record runs/curriculum-one-word --gain 0.3

The time is that of the training steps, without evaluations. A run is evaluated ten times, and the
gain between two evaluations is interpolated. Versions before 0.4.0 logged `img_s` as a mean since
the start, so the times of their runs are rough. Run this from the clone of the repository.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

from training.options import Parser, number
from training.report import read_log
from training.runs import damaged, one_line_errors

PROGRAM = "python -m experiments.record"


def read_curve(run: Path) -> list[tuple[float, int, float]]:
    """Seconds of training, pictures and gain at each evaluation of a run."""
    (_, evaluations, _), _, notes = read_log(run)
    for note in notes:
        print(f"{run}: {note}")
    curve = [(0.0, 0, 0.0)]
    for row in evaluations:
        seconds, samples, _ = curve[-1]
        try:
            seconds += (row["samples"] - samples) / row["img_s"]
            curve.append((seconds, row["samples"], row["gain"]))
        except (KeyError, TypeError) as error:
            raise damaged(run / "log.jsonl", error) from None
    return curve


def reach(curve: list[tuple[float, int, float]], gain: float) -> tuple[float, float] | None:
    """Seconds and pictures when a gain is first reached, or None if it never is."""
    for before, after in pairwise(curve):
        if after[2] >= gain:
            share = (gain - before[2]) / (after[2] - before[2])
            seconds = before[0] + share * (after[0] - before[0])
            return seconds, before[1] + share * (after[1] - before[1])
    return None


def spread(values: list[float], digits: int) -> str:
    if len(values) < 2:
        return f"{values[0]:,.{digits}f}"
    return f"{mean(values):,.{digits}f} ± {stdev(values):.{digits}f}"


def describe(runs: list[Path], gain: float) -> str:
    """One line about all runs together.

    Raises: ValueError if there is a run that does not reach the gain.
    """
    curves = [read_curve(run) for run in runs]
    reached = []
    for run, curve in zip(runs, curves, strict=True):
        found = reach(curve, gain)
        if found is None:
            best = max(entry[2] for entry in curve)
            raise ValueError(
                f"{run}: expected a gain of {gain} at some time, got at most {best:.3f}"
            )
        reached.append(found)
    seconds = spread([entry[0] for entry in reached], 0)
    pictures = spread([entry[1] for entry in reached], 0)
    last = spread([curve[-1][2] for curve in curves], 3)
    total = spread([curve[-1][0] for curve in curves], 0)
    return (
        f"{len(runs)} runs: gain {gain} after {seconds} s and {pictures} pictures; "
        f"in the end a gain of {last} after {total} s"
    )


def make_parser() -> argparse.ArgumentParser:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        PROGRAM,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    gain = "accuracy with the correct image minus that with another one, above 0 and below 1 "
    gain += "(default: 0.5)"
    parser.add_argument("--gain", type=number(float, 0, 1, exclusive=True), default=0.5, help=gain)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with one_line_errors(PROGRAM):
        print(describe(args.runs, args.gain))


if __name__ == "__main__":
    main()
