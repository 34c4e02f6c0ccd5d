"""The tables that docs/gpu.md shows of a programme's results.

    python -m experiments.gpu.tables                             # of the run on an H200, as in docs
    python -m experiments.gpu.tables runs/gpu/results.jsonl      # of your own

Run this from the clone of the repository.
"""

import json
from pathlib import Path
from statistics import mean, stdev

from experiments.gpu.programme import Result
from training.options import Parser
from training.runs import one_line_errors

MEASURED = Path(__file__).resolve().parent / "h200.jsonl"
FREE = 0.9  # of a GPU's memory may be used
KINDS = ("bare", "plain", "recomputed")  # steps of a batch


def read_results(path: Path) -> dict[str, Result]:
    """The results of a programme by name; of a step that was tried twice, the last one."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    return {row["name"]: row for row in rows if "error" not in row and "skipped" not in row}


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def speed_table(results: dict[str, Result]) -> list[str]:
    """Pictures a second and memory of the published model at 512 pixels, for each batch."""
    rows = []
    if not batches(results):
        raise ValueError("expected the three steps of a batch on a GPU, got none")
    for batch in batches(results):
        bare, plain, again = (results[f"bench/{batch}/{kind}"] for kind in KINDS)
        share = plain["share_of_bf16_peak"]
        row = [str(batch)]
        row += [f"{each['pictures_s']:.0f}" for each in (bare, plain)]
        row += [f"{plain['step_s'] / bare['step_s']:.2f}"]
        row += ["unknown" if share is None else f"{100 * share:.0f} %"]
        row += [f"{plain['peak_gb']:.1f} GB"]
        row += [f"{again['pictures_s']:.0f}", f"{again['peak_gb']:.1f} GB"]
        rows.append(row)
    heads = ["batch", "backbone alone, images/s", "training step, images/s", "ratio of the times"]
    heads += ["share of the bf16 peak", "memory", "`--recompute`, images/s", "memory"]
    return table(heads, rows)


def batches(results: dict[str, Result]) -> list[int]:
    """The batches of which all three steps were measured on a GPU."""
    found = {name.split("/")[1] for name in results if name.startswith("bench/")}
    return sorted(
        int(batch)
        for batch in found
        if batch.isdigit()
        and all("peak_gb" in results.get(f"bench/{batch}/{kind}", {}) for kind in KINDS)
    )


def memory_table(results: dict[str, Result]) -> list[str]:
    """The batches that fit, from a line through the memory of the two largest batches."""
    if len(batches(results)) < 2:
        raise ValueError(f"expected two batches, measured on a GPU, got {len(batches(results))}")
    small, large = batches(results)[-2:]
    rows = []
    for size in (16, 24, 80):
        row = [f"{size} GB"]
        for kind in ("plain", "recomputed"):
            low, high = (results[f"bench/{batch}/{kind}"]["peak_gb"] for batch in (small, large))
            each = (high - low) / (large - small)
            row.append(str(int((FREE * size - (low - small * each)) / each)))
        rows.append(row)
    return table(["memory of the GPU", "batch", "batch with `--recompute`"], rows)


def detector_table(results: dict[str, Result]) -> list[str]:
    """F-scores of the detectors in percent, from scratch and pre-trained."""

    def cell(scores: list[float]) -> str:
        percent = [100 * score for score in scores]
        if len(percent) < 3:
            return " and ".join(f"{each:.1f}" for each in percent)
        return f"{mean(percent):.1f} ± {stdev(percent):.1f}"

    rows = []
    for name, found in results.items():
        if not name.startswith("detect/summary of "):
            continue
        photographs, crops, _ = name.removeprefix("detect/summary of ").split(", ")
        row = [photographs.split()[0], f"{int(crops.split()[0]):,}", str(len(found["scratch"]))]
        row += [cell(found["scratch"]), cell(found["pretrained"])]
        rows.append([*row, f"{100 * found['difference']:+.1f}"])
    if not rows:
        raise ValueError("expected a pair of detectors, got none")
    heads = ["photographs", "crops", "seeds", "from scratch", "pre-trained", "difference"]
    return table(heads, rows)


TABLES = {
    "gpu-speed": speed_table,
    "gpu-memory": memory_table,
    "gpu-detectors": detector_table,
}


def main(argv: list[str] | None = None) -> None:
    description = "Print the tables of docs/gpu.md and docs/speed.md from a programme's results."
    parser = Parser("python -m experiments.gpu.tables", description=description)
    results_file = "results.jsonl of a GPU programme (default: experiments/gpu/h200.jsonl)"
    parser.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", default=MEASURED, help=results_file
    )
    path = parser.parse_args(argv).file
    with one_line_errors("python -m experiments.gpu.tables"):
        results = read_results(path)
        for name, make in TABLES.items():
            try:
                lines = make(results)
            except ValueError as error:
                lines = [f"There is no table {name} of {path}: {error}."]
            print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
