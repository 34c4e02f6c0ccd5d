"""What a run of train_min.py looks like: its curves, where the model looks, one page, two runs.

    plot_losses(path, steps, evaluations, chance)   the curves of one run
    attention_figure(model, heldout)                which letter looks where, a matplotlib Figure
    write_report("runs/NAME")                       report.html, one file that needs no network
    compare(["runs/A", "runs/B"])                   a table to print, and one plot

The last two read nothing but the folder of a run: run.json, log.jsonl, metrics.json, its pictures.
"""

import argparse
import base64
import io
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from html import escape
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.ticker import EngFormatter
from torch import Tensor

import data_stub
import vlpt

Row = Mapping[str, Any]
COLORS = ("#2f7fc1", "#d9701a", "#2a9d5c", "#b052c0", "#c0395b", "#8a6d3b")  # on white and on black
PANELS = {  # the curves of a plot: title, unit, the log's keys with what each is, chance
    "char": ("masked character, L_cls", "nats", {"char": ""}, "ln V = {:.2f}"),
    "contrastive": ("contrastive, L_bc", "nats", {"contrastive": ""}, "2 ln B = {:.2f}"),
    "acc": ("held out: hidden characters read", "share",
            {"acc_right": "shown its own picture", "acc_other": "shown another one"},
            "1/V = {:.3f}"),
    "retrieval": ("held out: retrieval at 1", "share",
                  {"i2t": "words of a picture", "t2i": "picture of words"}, "{:.4f}"),
}  # fmt: skip
MEANING = {
    "samples": "training pictures seen", "acc_right": "hidden characters read, own picture shown",
    "acc_other": "the same, another picture shown: a guess from the other letters",
    "gain": "the difference: what was read from pixels", "i2t": "its words found for a picture",
    "t2i": "its picture found for words", "pictures": "held-out pictures",
    "characters": "characters hidden in them",
    "unreadable": "held-out pictures not readable, or alone in their batch",
    "skipped": "training pictures not readable", "img_s": "training pictures a second",
    "nonfinite": "steps left out, as their loss was no finite number",
    "wait": "share of the training time spent waiting for data", "seconds": "of the whole run",
}  # fmt: skip
PICTURES = {  # of a run, with title and alternative text
    "attention.png": ("Which letter looks where", "held-out pictures under their attention maps"),
    "sheet.png": ("Pictures it was trained on", "rendered pictures with their words outlined"),
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: not a run of train_min.py, no {path.name}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def read_run(folder: str | Path) -> Run:
    """Read the folder of a run; ValueError where it is none, or naming the damaged file, line."""
    folder = Path(folder)
    facts, log = read_json(folder / "run.json"), folder / "log.jsonl"
    if not log.is_file():
        raise ValueError(f"{folder}: not a run of train_min.py, no log.jsonl")
    file, notes = folder / "metrics.json", ["has not ended: there is no metrics.json"]
    metrics: dict[str, Any] = {"result": {}}
    if file.is_file():
        metrics, notes = read_json(file), []
    try:
        result = {**metrics["result"]}
        file = folder / "run.json"
        _, _ = map(float, facts["chance"])
        facts = {**facts, "args": {**facts["args"]}, "config": {**facts["config"]}}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: damaged ({error!r})") from None
    kept: dict[str, dict[float, Row]] = {"step": {}, "evaluation": {}}
    wanted = {"step": ("samples", "char", "contrastive"),
              "evaluation": ("samples", "acc_right", "acc_other", "i2t", "t2i",
                             "pictures")}  # fmt: skip
    others: Counter[str] = Counter()
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                row = json.loads(line)
                kind = row["kind"]
                if kind in kept:  # steps repeated after a restart replace those before it
                    kept[kind][row["samples"]] = row
                    if not all(isinstance(row[key], int | float) for key in wanted[kind]):
                        raise TypeError("not a number")
                else:
                    others[str(kind)] += 1
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) or not isinstance(error, json.JSONDecodeError):
                raise ValueError(f"{log}:{number}: damaged ({error!r})") from None
            notes.append(f"line {number} of log.jsonl, its last, was cut short and is left out")
    steps, evaluations = ([row for _, row in sorted(kept[kind].items())] for kind in kept)
    return Run(folder, facts, steps, evaluations, others, result, notes)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over a window around each value, over what there is of it, leaving out NaN."""
    good, half = np.isfinite(values), window // 2
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(x)]) for x in (np.where(good, values, 0), good)
    )
    at = np.arange(len(values))
    low, high = (at - half).clip(0), (at + half + 1).clip(max=len(values))
    with np.errstate(invalid="ignore"):
        return np.asarray((sums[high] - sums[low]) / (counts[high] - counts[low]))


def draw(axes: Axes, panel: str, runs: Sequence[tuple[str, Run]]) -> None:
    """One panel of curves, a colour for each run; what is noisy is drawn pale and smoothed."""
    title, unit, keys, chance = PANELS[panel]
    noisy = panel in ("char", "contrastive")
    levels: dict[float, str] = {}
    for (name, run), color in zip(runs, COLORS * len(runs), strict=False):
        rows = run.steps if noisy else run.evaluations
        x = np.array([row["samples"] for row in rows])
        for (key, what), style in zip(keys.items(), ("-", "--"), strict=False):
            y, label = np.array([row[key] for row in rows]), ", ".join(filter(None, (name, what)))
            if noisy:
                thin = slice(None, None, max(1, len(x) // 1500))
                axes.plot(x[thin], y[thin], color=color, alpha=0.3, linewidth=0.7)
                axes.plot(x[thin], smooth(y, max(1, len(x) // 40))[thin], color=color, label=label)
            else:
                axes.plot(x, y, "o" + style, color=color, label=label, markersize=4)
        level = run.facts["chance"][panel == "contrastive"]
        if panel == "acc":
            level = math.exp(-level)
        elif panel == "retrieval":
            level = 1 / max(1, run.evaluations[-1]["pictures"]) if run.evaluations else math.nan
        if math.isfinite(level):
            levels[level] = color
    edge = axes.get_yaxis_transform()  # x in shares of the axes, y in its own unit
    for k, (level, color) in enumerate(levels.items()):
        color = color if len(levels) > 1 else "#767676"
        axes.axhline(level, color=color, linestyle=":")
        down = panel == "acc" and level > 0.05  # there the curves run just above it
        axes.annotate("chance, " + chance.format(level), (0.99 - 0.3 * k, level),
                      (0, -2 if down else 2), edge, "offset points", ha="right",
                      va="top" if down else "bottom", fontsize=9, c=color)  # fmt: skip
    top = 1 if panel == "acc" else None
    axes.set(xlabel="training pictures", ylabel=unit, title=title, ylim=(0, top))
    axes.margins(y=0.12)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)


@cache
def glyphs(path: str) -> frozenset[int]:
    """The code points that a font file can show."""
    with suppress(ValueError, OSError, RuntimeError):
        return frozenset(get_font(path).get_charmap())
    return frozenset()


def spelled(text: str) -> tuple[list[str], set[str]]:
    """Fonts of this machine that show a text, and those of its characters that none of them has."""
    plain = {"style": "normal", "variant": "normal", "weight": 400}
    found = {
        font.name: font.fname
        for font in fontManager.ttflist
        if all(getattr(font, key) == value for key, value in plain.items())
        and not re.match("cm|STIX|Last Resort", font.name)  # whose letters are elsewhere
    }
    fonts = ["DejaVu Sans"]  # matplotlib's own
    missing = {ord(c) for c in text if c.isprintable()} - glyphs(found.get(fonts[0], ""))
    while missing:
        best = max(sorted(found), key=lambda name: len(missing & glyphs(found[name])))
        if not missing & glyphs(found[best]):
            break
        fonts.append(best)
        missing -= glyphs(found[best])
    return fonts, {c for c in text if ord(c) in missing or not c.isprintable()}


def show(text: str, missing: set[str]) -> str:
    return "".join(f" U+{ord(c):04X} " if c in missing else c for c in text).strip()


def curves(runs: Sequence[tuple[str, Run]], panels: Sequence[str] = tuple(PANELS)) -> Figure:
    """Panels of curves; names are shortened, and legends leave out what begins with "_"."""
    fonts, missing = spelled("".join(name for name, _ in runs))
    labels = [name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}" for name, _ in runs]
    labels = [show(name, missing).replace("$", r"\$") for name in labels]
    labels = [f" {name}" if name.startswith("_") else name for name in labels]
    with matplotlib.rc_context({"font.family": fonts}):
        shape = (2, 2) if len(panels) > 1 else (1, 1)
        figure = Figure(figsize=(5.5 * shape[1], 3.75 * shape[0]), layout="constrained")
        for axes, panel in zip(figure.subplots(*shape, squeeze=False).flat, panels, strict=True):
            draw(axes, panel, [(label, run) for label, (_, run) in zip(labels, runs, strict=True)])
        return figure


def plot_losses(
    path: str | Path, steps: Sequence[Row], evaluations: Sequence[Row], chance: tuple[float, float]
) -> None:
    """Losses, characters read and retrieval, with the levels of chance."""
    run = Run(Path(), {"chance": chance}, list(steps), list(evaluations), Counter(), {}, [])
    curves([("", run)]).savefig(path, dpi=110)


def caption(word: str, j: int, guess: str, missing: set[str]) -> tuple[str, str]:
    """What is hidden and what is read there, in words and as a colour."""
    around = "…" * (j > 4) + word[max(0, j - 4) : j] + "_" + word[j + 1 : j + 5]
    around += "…" * (len(word) > j + 5)
    if missing & set(word):
        around = f"{j + 1} of {len(word)}, {show(word[j], missing)}"
    mark, color = ("✓", "#1a7f37") if guess == word[j] else ("✗", "#c0241c")
    return f"{around}\nread {show(guess, missing) or 'nothing'} {mark}", color


def attention_figure(model: vlpt.VLPT, heldout: data_stub.Pretraining, pictures: int = 6) -> Figure:
    """Which letter looks where: a row a picture, a column for each hidden character of its word."""
    items = (heldout[k] for k in range(min(4 * pictures, len(heldout.indices))))
    chosen = list(islice((item[:2] for item in items if not isinstance(item, str)), pictures))
    if not chosen:
        raise ValueError("no held-out picture can be read")
    alphabet, device, training = heldout.alphabet, model.log_scale.device, model.training
    fonts, missing = spelled(alphabet.chars)
    known = [(ids[:, 0] > vlpt.UNK).nonzero().flatten()[:8].tolist() for _, ids in chosen]
    most = 2 + max(map(len, known))
    figure = Figure(figsize=(max(1.7 * most, 7), 2.2 * len(chosen) + 0.7), layout="constrained")
    grid = figure.subplots(len(chosen), most, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])  # or the layout measures them all, though they are hidden
        axes.axis("off")
    model.eval()
    for row, (pixels, ids), hide in zip(grid, chosen, known, strict=True):
        word = alphabet.decode(ids)[0]
        hidden = ids.repeat(len(hide), 1, 1).to(device)  # copy n hides the character at hide[n]
        hidden[range(len(hide)), hide, 0] = vlpt.MASK
        images = vlpt.normalize(pixels.expand(len(hide), -1, -1, -1).to(device))
        with torch.no_grad():
            read = model(images, hidden).logits[:, :, 0].argmax(-1)
        heats: list[Tensor | None] = [None] * (2 + len(hide))
        if model.decoder is not None:
            pooled, maps = model.attention_maps(images, hidden)
            heats[1:] = [pooled[0], *maps[range(len(hide)), hide, 0]]
        captions = [(show(word[:12], missing) + "…" * (len(word) > 12), "black")]
        captions.append(("image feature", "black"))
        for n, j in enumerate(hide):
            guess = alphabet.decode(read[n, j].reshape(1, 1))[0]
            captions.append(caption(word, j, guess, missing))
        photograph, (high, wide) = pixels.permute(1, 2, 0).numpy(), pixels.shape[1:]
        for axes, heat, (title, color) in zip(row, heats, captions, strict=False):
            axes.set_title(title, color=color, parse_math=False, fontsize=11, fontfamily=fonts)
            if heat is None:
                axes.imshow(photograph)
                continue
            axes.imshow(photograph.mean(2) * 0.7, "gray", vmin=0, vmax=255)
            level = heat.float().cpu().numpy() / heat.max().item()
            axes.imshow(level, "inferno", alpha=0.6 * level, interpolation="bilinear",
                        extent=(-0.5, wide - 0.5, high - 0.5, -0.5))  # fmt: skip
    model.train(training)
    about = "held-out pictures (no decoder, so no attention)"
    if model.decoder is not None:
        about = "held-out pictures; where the image feature looks; then one character hidden (_),"
        about += "\nwhat is read there, and where it was looked for (bright = more attention)"
    figure.suptitle(about, fontsize=11)
    figure.draw_without_rendering()
    for axes in grid.flat:  # titles that would run into each other become smaller
        share = axes.title.get_window_extent().width / axes.get_window_extent().width
        axes.title.set_fontsize(11 / max(1.0, 1.06 * share))
    return figure


def plot_attention(path: str | Path, model: vlpt.VLPT, heldout: data_stub.Pretraining) -> None:
    attention_figure(model, heldout).savefig(path, dpi=110)


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$name: a run of VLPT</title>
<link rel="icon" href="data:,">
<style>
:root { --back: #fff; --card: #f4f6f8; --ink: #1c2127; --pale: #57606a; --line: #d5dbe1; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --card: #1d2228; --ink: #e6e9ec; --pale: #9aa4ae; --line: #343b43; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { color: var(--pale); margin: .25rem 0; }
.big { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); gap: .5rem; }
.big div, .curves img { background: var(--card); border-radius: .6rem; padding: .75rem; }
.big b { display: block; font-size: 1.7rem; line-height: 1.2; }
.big span { color: var(--pale); font-size: .85rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: .75rem; }
.curves img { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; border-radius: .6rem; }
.photograph { background: #fff; padding: .5rem; }
.photograph img { display: block; min-width: 44rem; width: 100%; max-width: 70rem; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
.big + table { margin-top: .75rem; }
th { font-weight: 600; white-space: nowrap; }
.numbers td, .numbers th { text-align: right; white-space: nowrap; }
pre { background: var(--card); border-radius: .6rem; padding: .75rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .4rem 0; }
</style>
</head>
<body>
<main>
<h1>$name</h1>
<p>A pre-training run of VLPT: $about.</p>
$notes
<h2>Result</h2>
<div class="big">$headline</div>
$result
<h2>Curves</h2>
<div class="curves">$curves</div>
<details><summary>The evaluations in numbers</summary>
<div class="wide numbers" tabindex="0" role="region" aria-label="evaluations">$evaluations</div>
</details>
$pictures
<h2>Again</h2>
<pre>$command</pre>
<h2>Settings</h2>
$settings
</main>
</body>
</html>
""")


def said(value: object) -> str:
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
    return flat | {
        key: run.facts.get(key) for key in ("commit", "device", "processes", "parameters")
    }


def table(rows: Sequence[Sequence[object]], head: Sequence[object] = ()) -> str:
    lines = []
    for scope, row in [("col", head)] * bool(head) + [("row", row) for row in rows]:
        first, *rest = (escape(said(cell)) for cell in row)
        tag = "th" if scope == "col" else "td"
        cells = "".join(f"<{tag}>{cell}</{tag}>" for cell in rest)
        lines.append(f'<tr><th scope="{scope}">{first}</th>{cells}</tr>\n')
    return f"<table>{''.join(lines)}</table>"


def inline(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def panel_picture(run: Run, panel: str) -> str:
    """A panel of curves, in light and in dark, with its first and last numbers as the text."""
    alt, _, keys, _ = PANELS[panel]
    for key, what in keys.items():
        if held := [float(row[key]) for row in (run.steps if panel in keys else run.evaluations)]:
            alt += f"; {what} from {said(held[0])} to {said(held[-1])}"
    drawn = []
    for style in ("dark_background", "default"):
        with matplotlib.style.context(style), io.BytesIO() as file:
            curves([("", run)], [panel]).savefig(file, format="svg", transparent=True)
            drawn.append(inline("svg+xml", file.getvalue()))
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{drawn[0]}">'
    return f'<picture>{dark}<img src="{drawn[1]}" alt="{escape(alt)}"></picture>'


def command(facts: Mapping[str, Any]) -> str:
    """The command line that has a run's options, one a line."""
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
    """Write report.html into the folder of a run, whole or not at all; it needs no other file."""
    run = read_run(folder)
    facts, notes = run.facts, list(run.notes)
    last = {k: v for row in run.evaluations[-1:] for k, v in row.items() if k != "kind"}
    result = run.result or last
    if run.others:
        notes.append("also in the log: " + ", ".join(f"{n} {k}" for k, n in run.others.items()))
    about = [said(facts["device"])] if facts.get("device") else []
    about += [f"{said(facts['parameters'])} parameters"] if facts.get("parameters") else []
    about += [f"{key} {said(value)}" for key, value in facts.get("versions", {}).items()]
    big = [(said(result[key]), MEANING[key]) for key in ("acc_right", "acc_other", "gain")
           if key in result]  # fmt: skip
    pictures = ""
    for file, (title, alt) in PICTURES.items():
        with suppress(FileNotFoundError):
            source = inline("png", (run.folder / file).read_bytes())
            pictures += (
                f'<h2>{title}</h2><div class="wide photograph" tabindex="0" role="region" '
                f'aria-label="{title}"><img src="{source}" alt="{alt}"></div>'
            )
    columns = [key for key in last if key != "samples"]
    numbers = [(row["samples"], *(row.get(key, "") for key in columns)) for row in run.evaluations]
    page = PAGE.substitute(
        name=escape(said(facts["args"].get("name", run.folder.name))),
        about=escape(", ".join(about)),
        notes="".join(f"<p>{escape(said(note))}</p>" for note in notes),
        headline="".join(f"<div><b>{escape(n)}</b><span>{w}</span></div>" for n, w in big),
        result=table([(k, v, MEANING.get(k, "")) for k, v in result.items()]),
        curves="".join(panel_picture(run, panel) for panel in PANELS),
        evaluations=table(numbers, ["samples", *columns]),
        pictures=pictures,
        command=escape(command(facts)),
        settings=table([(k, v) for k, v in settings(run).items() if v is not None]),
    )
    path = run.folder / "report.html"
    part = path.with_name("report.html.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def compare(folders: Sequence[str | Path], out: str | Path = "runs/compare.png") -> str:
    """Draw two or more runs into one plot; the text of a table of what differs."""
    read = [read_run(folder) for folder in folders]
    places = [run.folder.resolve() for run in read]
    if len({*places}) < max(2, len(places)):
        raise ValueError(f"compare: got {', '.join(map(str, folders))}, wanted two or more runs")
    names = [place.name for place in places]
    if len({*names}) < len(names):
        above = os.path.commonpath([place.parent for place in places])
        names = [str(place.relative_to(above)) for place in places]
    curves(list(zip(names, read, strict=True))).savefig(out, dpi=110)
    lines = [["", *names, *(f"{name} - {names[0]}" for name in names[1:])]]
    each = [settings(run) for run in read]
    for key in dict.fromkeys(key for held in each for key in held):
        values = [held.get(key) for held in each]
        if key != "--name" and any(value != values[0] for value in values):
            lines.append([key, *map(said, values)])
    if len(lines) == 1:
        lines.append(["the same options"])
    lines.append([])
    rows = [run.evaluations[-1] if run.evaluations else {} for run in read]
    for key in dict.fromkeys([*MEANING, *(key for row in rows for key in row if key != "kind")]):
        numbers: list[Any] = [row.get(key) for row in rows]
        first, *rest = (n if isinstance(n, int | float) else None for n in numbers)
        gaps = [None if first is None or n is None else n - first for n in rest]
        if numbers != [None] * len(rows):
            lines.append([key, *map(said, numbers), *map(said, gaps)])
    lines = [[cell if len(cell) <= 40 else cell[:39] + "…" for cell in line] for line in lines]
    widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(len(lines[0]))]
    text = []
    for line in lines:
        cells = [f"{cell:>{width}}" for cell, width in zip(line, widths, strict=False)]
        text.append("  ".join(cells).rstrip())
    text += [f"{name}: {note}" for name, run in zip(names, read, strict=True) for note in run.notes]
    return "\n".join([*text, f"wrote {out}"])


def main(argv: Sequence[str]) -> None:
    """`train_min.py compare ...`; raises ValueError or OSError where a run cannot be read."""
    parser = argparse.ArgumentParser(
        prog="train_min.py compare", description="Set runs side by side: a table, and one plot."
    )
    parser.add_argument("runs", nargs="+", metavar="runs/NAME", help="folder of a run; two or more")
    parser.add_argument("--out", default="runs/compare.png", help="the plot (default: %(default)s)")
    args = parser.parse_args(argv)
    if Path(args.out).suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out: got {args.out!r}, wanted a name that ends in .png, .svg or .pdf")
    print(compare(args.runs, args.out))
