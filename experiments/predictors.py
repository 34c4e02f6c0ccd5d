"""What predicts a good backbone? Rank correlations of pre-trainings with their detectors' F-scores.

    python -m experiments.predictors

Each pre-training of experiments/results.json gives one point: how well its model reads at the end,
on held-out rendered pictures, and the mean F-score of the detectors that start from its backbone,
on 100 photographs. The protocol is in experiments/LOG.md.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from training.options import Parser

PROGRAM = "python -m experiments.predictors"
RESULTS = Path(__file__).with_name("results.json")
PREDICTORS = ("acc_right", "gain", "i2t", "t2i")
SAMPLES = 10_000  # of the bootstrap


def read_points(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By pre-training, its `PREDICTORS` at the end, 0..1, and `f`, in percent."""
    tables = results["tables"]
    scores = {"pre-all": tables["a"][0]["values"]["pre-trained"]}
    for row in tables["b"]:
        scores["short-" + row["label"].replace(" ", "")] = row["values"]["pre-trained"]
    for row in tables["c"]:
        scores["share-" + row["label"].rstrip("%")] = row["values"]["pre-trained"]
    points = {}
    for name, values in scores.items():
        *_, last_stage = results["pretraining"][name].values()
        points[name] = {key: last_stage["synth"][key] for key in PREDICTORS}
        points[name]["f"] = mean(values.values())
    return points


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis, -1..1."""
    x, y = rankdata(x, axis=-1), rankdata(y, axis=-1)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of their rank correlation, from percentiles."""
    drawn = np.random.default_rng(0).integers(len(x), size=(SAMPLES, len(x)))
    low, high = np.percentile(rank_correlation(x[drawn], y[drawn]), [2.5, 97.5])
    return float(low), float(high)


def to_markdown(points: dict[str, dict[str, float]]) -> list[str]:
    lines = ["| on held-out rendered pictures | rank correlation with F | 95 % interval |"]
    lines.append("| --- | --- | --- |")
    scores = np.array([point["f"] for point in points.values()])
    for key in PREDICTORS:
        values = np.array([point[key] for point in points.values()])
        low, high = interval(values, scores)
        lines.append(
            f"| `{key}` | {rank_correlation(values, scores):.2f} | {low:.2f} to {high:.2f} |"
        )
    return lines


def make_parser() -> argparse.ArgumentParser:
    description, epilog = __doc__.split("\n\n", 1)
    return Parser(
        PROGRAM,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(argv: list[str] | None = None) -> None:
    make_parser().parse_args(argv)
    print("\n".join(to_markdown(read_points(json.loads(RESULTS.read_text("utf-8"))))))


if __name__ == "__main__":
    main()
