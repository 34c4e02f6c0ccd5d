"""Figures of a run: its curves, a page with everything, and two runs side by side.

    draw_all("runs/NAME", model, heldout)   every figure of a run, and then the page
    write_report("runs/NAME")               report.html, one file that needs no network
    compare(["runs/A", "runs/B"])           a table to print, and one plot

The last two read nothing but the folder of a run: run.json, log.jsonl, metrics.json, its pictures.
The user's own matplotlib settings (matplotlibrc) are not used, so figures look the same everywhere.
"""

import base64
import io
import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

import vlpt
from training import gallery
from training.dataset import Pretraining
from training.gallery import find_fonts, spell_out
from training.options import Parser
from training.runs import damaged, no_run, read_facts, read_json

Row = Mapping[str, Any]
COLORS = ("#2f7fc1", "#d9701a", "#2a9d5c", "#b052c0", "#c0395b", "#8a6d3b")  # on white and on black


class Panel(NamedTuple):
    """One of the four plots of a run."""

    title: str
    unit: str
    curves: dict[str, str]  # keys of log.jsonl, and what each is
    chance: str  # how to write the level of chance


PANELS = {
    "char": Panel("masked character, L_cls", "nats", {"char": ""}, "{:.2f}"),
    "contrastive": Panel("contrastive, L_bc", "nats", {"contrastive": ""}, "2 ln B = {:.2f}"),
    "acc": Panel(
        "held out: masked-character accuracy",
        "share",
        {"acc_right": "with the correct image", "acc_other": "with another image"},
        "{:.3f}",
    ),
    "retrieval": Panel(
        "held out: retrieval at 1",
        "share",
        {"i2t": "the words of an image", "t2i": "the image of words"},
        "{:.4f}",
    ),
}
MEANING = {
    "samples": "training images seen, repetitions included",
    "acc_right": "masked-character accuracy with the correct image",
    "acc_other": "the same with another image, mostly a guess from the other letters",
    "gain": "the difference: what was read from the image",
    "i2t": "share of the images whose words are found",
    "t2i": "share of the words whose image is found",
    "ceiling": "the best to expect of both shares, as some images have the same words",
    "same_words": "share of the held-out images with the same words as another one of their batch",
    "pictures": "held-out images",
    "characters": "characters masked in them",
    "unreadable": "held-out images that cannot be read or are alone in their batch",
    "skipped": "training images that cannot be read",
    "img_s": "training images a second",
    "wait": "share of the training time spent waiting for data",
    "seconds": "duration of the run in seconds, parts before a --resume included",
}
PICTURES = {  # files of a run, each with a title and an alternative text
    "attention.png": ("Which letter looks where", "held-out images under their attention maps"),
    "learning.png": ("How it learned to read", "the same held-out images at each evaluation"),
    "retrieval.png": ("What is nearest", "the nearest words of images, and images of words"),
}


class Run(NamedTuple):
    """The folder of a run, as read."""

    folder: Path
    facts: dict[str, Any]  # run.json
    steps: list[Row]
    evaluations: list[Row]
    others: Counter[str]  # how many log lines of each other kind
    result: dict[str, Any]  # of metrics.json, or {} for a run that has not ended
    notes: list[str]  # what is unusual, in words
    readings: Sequence[Row] = ()  # what the model read at each evaluation, see training/gallery.py


def read_run(folder: str | Path) -> Run:
    """Read the folder of a run.

    Raises:
        ValueError: it is not one, or a file is damaged; the message names the file and the line.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    notes = []
    result = {}
    if (folder / "metrics.json").is_file():
        try:
            result = {**read_json(folder / "metrics.json")["result"]}
        except (KeyError, TypeError) as error:
            raise damaged(folder / "metrics.json", error) from None
    else:
        notes.append("has not ended: there is no metrics.json")
    rows, others, log_notes = read_log(folder)
    steps, evaluations, readings = rows
    return Run(folder, facts, steps, evaluations, others, result, notes + log_notes, readings)


def read_log(folder: Path) -> tuple[list[list[Row]], Counter[str], list[str]]:
    """The steps, evaluations and readings, the number of other lines by kind, what is unusual."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise no_run(folder, path.name)
    required = {
        "step": ("samples", "char", "contrastive"),
        "evaluation": ("samples", "acc_right", "acc_other", "i2t", "t2i", "pictures"),
        "reading": ("samples",),
    }
    kept: dict[str, dict[float, Row]] = {kind: {} for kind in required}
    others = Counter[str]()
    notes = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            kind = row["kind"]
            if kind not in kept:
                others[str(kind)] += 1
                continue
            if not all(isinstance(row[key], int | float) for key in required[kind]):
                raise TypeError("not a number")
            kept[kind][row["samples"]] = row  # steps repeated after a restart replace earlier ones
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) or not isinstance(error, json.JSONDecodeError):
                raise damaged(f"{path}:{number}", error) from None
            notes.append(f"line {number} of log.jsonl, its last, was cut short and is left out")
    rows = [[row for _, row in sorted(kept[kind].items())] for kind in kept]
    return rows, others, notes


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over a window around each value, as far as there are values."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    low = (positions - window // 2).clip(0)
    high = (positions + window // 2 + 1).clip(max=len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def chance_level(run: Run, panel: str) -> float:
    """What blind guessing reaches in a panel; NaN if that is not known yet."""
    level = float(run.facts["chance"][panel == "contrastive"])
    if panel == "acc":
        return math.exp(-level)
    if panel == "retrieval":
        return 1 / max(1, run.evaluations[-1]["pictures"]) if run.evaluations else math.nan
    return level


def draw_panel(axes: Axes, name: str, runs: Sequence[tuple[str, Run]]) -> None:
    """Draw a panel, in a colour for each run. Noisy curves are drawn pale, and smoothed on top."""
    panel = PANELS[name]
    is_noisy = name in ("char", "contrastive")
    levels: dict[float, str] = {}
    for (label, run), color in zip(runs, COLORS * len(runs), strict=False):
        rows = run.steps if is_noisy else run.evaluations
        x = np.array([row["samples"] for row in rows])
        for (key, what), style in zip(panel.curves.items(), ("-", "--"), strict=False):
            y = np.array([row[key] for row in rows])
            legend = ", ".join(filter(None, (label, what)))
            if is_noisy:
                thin = slice(None, None, max(1, len(x) // 1500))
                smoothed = smooth(y, max(1, len(x) // 40))
                axes.plot(x[thin], y[thin], color=color, alpha=0.3, linewidth=0.7)
                axes.plot(x[thin], smoothed[thin], color=color, label=legend)
            else:
                axes.plot(x, y, "o" + style, color=color, label=legend, markersize=4)
        level = chance_level(run, name)
        if math.isfinite(level):
            levels[level] = color
    for k, (level, color) in enumerate(levels.items()):
        color = color if len(levels) > 1 else "#767676"
        is_below = name == "acc" and level > 0.05  # there the curves run just above the line
        axes.axhline(level, color=color, linestyle=":")
        axes.annotate(
            "chance, " + panel.chance.format(level),
            xy=(0.99 - 0.3 * k, level),
            xycoords=axes.get_yaxis_transform(),  # x in shares of the axes, y in its own unit
            xytext=(0, -2 if is_below else 2),
            textcoords="offset points",
            ha="right",
            va="top" if is_below else "bottom",
            fontsize=9,
            c=color,
        )
    top = 1 if name == "acc" else None
    axes.set(xlabel="training images", ylabel=panel.unit, title=panel.title, ylim=(0, top))
    axes.margins(y=0.12)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)


def plot_curves(runs: Sequence[tuple[str, Run]], panels: Sequence[str] = tuple(PANELS)) -> Figure:
    """Draw panels of curves. Long names are shortened in the legend."""
    fonts, missing = find_fonts("".join(name for name, _ in runs))
    labels = [name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}" for name, _ in runs]
    labels = [spell_out(name, missing).replace("$", r"\$") for name in labels]
    # matplotlib leaves labels that begin with "_" out of legends.
    labels = [f" {name}" if name.startswith("_") else name for name in labels]
    named = [(label, run) for label, (_, run) in zip(labels, runs, strict=True)]
    rows, columns = (2, 2) if len(panels) > 1 else (1, 1)
    with matplotlib.rc_context({"font.family": fonts}):
        figure = Figure(figsize=(5.5 * columns, 3.75 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=True):
            draw_panel(axes, panel, named)
    return figure


@matplotlib.style.context("default")
def draw_all(out: Path, model: vlpt.VLPT, heldout: Pretraining) -> None:
    """Leave the figures, the animation and report.html in the folder of a run that has ended."""
    run = read_run(out)
    plot_curves([("", run)]).savefig(out / "loss.png", dpi=110)
    gallery.attention_figure(model, heldout).savefig(out / "attention.png", dpi=110)
    gallery.retrieval_figure(model, heldout).savefig(out / "retrieval.png", dpi=110)
    if run.readings:
        gallery.learning_figure(heldout, run.readings).savefig(out / "learning.png", dpi=110)
        gallery.save_animation(out / "learning.gif", heldout, run.readings)
    write_report(out)


# ---- The page ----------------------------------------------------------------------------------


def format_value(value: object) -> str:
    """A number or a setting in few characters, all of them printable."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    text = "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in text)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text):,} characters)"


def settings(run: Run) -> dict[str, Any]:
    """The options of a run, then what else may make two runs differ."""
    flat = {f"--{key.replace('_', '-')}": value for key, value in run.facts["args"].items()}
    for part in ("config", "data", "versions"):
        flat |= {f"{part}: {key}": value for key, value in run.facts.get(part, {}).items()}
    for key in ("commit", "device", "processes", "parameters"):
        flat[key] = run.facts.get(key)
    return flat


def inline(kind: str, content: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def panel_pictures(run: Run, name: str) -> dict[str, str]:
    """A panel of curves in light and in dark, with its first and last numbers as the text."""
    panel = PANELS[name]
    alt = panel.title
    rows = run.steps if name in panel.curves else run.evaluations
    for key, what in panel.curves.items():
        if rows:
            first, last = (format_value(float(row[key])) for row in (rows[0], rows[-1]))
            alt += f"; {what} from {first} to {last}"
    pictures = {"alt": alt}
    for shade, style in (("light", ["default"]), ("dark", ["default", "dark_background"])):
        with matplotlib.style.context(style), io.BytesIO() as file:
            plot_curves([("", run)], [name]).savefig(file, format="svg", transparent=True)
            pictures[shade] = inline("svg+xml", file.getvalue())
    return pictures


def command(facts: Mapping[str, Any]) -> str:
    """The command line that repeats a run, an option a line."""
    processes = facts.get("processes", 1)
    words = ["python" if processes == 1 else f"torchrun --nproc-per-node {processes}"]
    words[0] += " train_min.py"
    for key, value in facts["args"].items():
        option = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            space = "=" if str(value).startswith("-") else " "
            words.append(f"{option}{space}{shlex.quote(str(value))}")
    return " \\\n    ".join(words)


def write_report(folder: str | Path) -> Path:
    """Write report.html into the folder of a run, whole or not at all. It needs no other file."""
    run = read_run(folder)
    facts = run.facts
    last = {k: v for row in run.evaluations[-1:] for k, v in row.items() if k != "kind"}
    result = run.result or last
    notes = list(run.notes)
    if run.others:
        notes.append("also in the log: " + ", ".join(f"{n} {k}" for k, n in run.others.items()))
    about = [format_value(facts["device"])] if facts.get("device") else []
    about += [f"{facts['parameters']:,} parameters"] if facts.get("parameters") else []
    about += [f"{key} {value}" for key, value in facts.get("versions", {}).items()]
    pictures = []
    for file, (title, alt) in PICTURES.items():
        with suppress(FileNotFoundError):
            source = inline("png", (run.folder / file).read_bytes())
            pictures.append({"title": title, "alt": alt, "source": source})
    columns = ["samples", *(key for key in last if key != "samples")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["show"] = format_value
    page = environment.get_template("report.html.jinja").render(
        name=facts["args"].get("name", run.folder.name),
        about=", ".join(about),
        notes=notes,
        headline=[
            (result[k], MEANING[k]) for k in ("acc_right", "acc_other", "gain") if k in result
        ],
        result=[(key, value, MEANING.get(key, "")) for key, value in result.items()],
        curves=[panel_pictures(run, name) for name in PANELS],
        columns=columns,
        evaluations=[[row.get(key, "") for key in columns] for row in run.evaluations],
        pictures=pictures,
        command=command(facts),
        settings=[(key, value) for key, value in settings(run).items() if value is not None],
    )
    path = run.folder / "report.html"
    vlpt.write_atomically(path, page.encode())
    return path


# ---- Comparing runs ----------------------------------------------------------------------------


@matplotlib.style.context("default")
def compare(folders: Sequence[str | Path], out: str | Path = "runs/compare.png") -> str:
    """Draw two or more runs into one plot, and return a table of what differs.

    Raises:
        ValueError: there are fewer than two runs, or one is twice or cannot be read.
        OSError: the plot cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    places = [run.folder.resolve() for run in runs]
    if len({*places}) < max(2, len(places)):
        raise ValueError(
            f"compare: expected two or more different runs, got {', '.join(map(str, folders))}"
        )
    names = [place.name for place in places]
    if len({*names}) < len(names):
        above = os.path.commonpath([place.parent for place in places])
        names = [str(place.relative_to(above)) for place in places]
    plot_curves(list(zip(names, runs, strict=True))).savefig(out, dpi=110)
    table = [["", *names, *(f"{name} - {names[0]}" for name in names[1:])]]
    table += different_settings(runs) or [["the same options"]]
    table += [[], *last_results(runs)]
    notes = [f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes]
    return "\n".join([*align(table), *notes, f"wrote {out}"])


def different_settings(runs: Sequence[Run]) -> list[list[str]]:
    """A row for each setting that is not the same in all runs."""
    rows = []
    each = [settings(run) for run in runs]
    for key in dict.fromkeys(key for one in each for key in one):
        values = [one.get(key) for one in each]
        if key != "--name" and any(value != values[0] for value in values):
            rows.append([key, *map(format_value, values)])
    return rows


def last_results(runs: Sequence[Run]) -> list[list[str]]:
    """A row for each number of the last evaluations, with the differences from the first run."""
    table = []
    rows = [run.evaluations[-1] if run.evaluations else {} for run in runs]
    others = [key for row in rows for key in row if key != "kind"]
    for key in dict.fromkeys([*MEANING, *others]):
        values: list[Any] = [row.get(key) for row in rows]
        if values == [None] * len(rows):
            continue
        differences = []
        for value in values[1:]:
            are_numbers = isinstance(values[0], int | float) and isinstance(value, int | float)
            differences.append(value - values[0] if are_numbers else None)
        table.append([key, *map(format_value, values), *map(format_value, differences)])
    return table


def align(table: Sequence[Sequence[str]], width: int = 40) -> list[str]:
    """Lines of a table in right-aligned columns. Longer cells are cut."""
    cut = [
        [cell if len(cell) <= width else cell[: width - 1] + "…" for cell in row] for row in table
    ]
    columns = range(max(map(len, cut)))
    widths = [max(len(row[k]) for row in cut if k < len(row)) for k in columns]
    lines = []
    for row in cut:
        cells = [f"{cell:>{size}}" for cell, size in zip(row, widths, strict=False)]
        lines.append("  ".join(cells).rstrip())
    return lines


def main(argv: Sequence[str]) -> None:
    """The command `train_min.py compare`.

    Raises:
        ValueError, OSError: as `compare` does.
    """
    parser = Parser("train_min.py compare", description="Compare runs in a table and in one plot.")
    parser.add_argument("runs", nargs="+", metavar="runs/NAME", help="folders of two or more runs")
    parser.add_argument("--out", default="runs/compare.png", help="the plot (default: %(default)s)")
    args = parser.parse_args(argv)
    if Path(args.out).suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out: expected a name that ends in .png, .svg or .pdf, got {args.out!r}")
    print(compare(args.runs, args.out))
