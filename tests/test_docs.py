"""What README.md and the pages of docs/ say about files, commands, names and numbers is so."""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from xml.etree import ElementTree

import pytest
import timm
import torch
import torchvision
from torch._subclasses.fake_tensor import FakeTensorMode

import test_vlpt
import vlpt
from experiments import ladder, predictors
from experiments.reproduce import mean_and_spread

ROOT = Path(__file__).resolve().parent.parent
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in PATHS}
README = PAGES["README.md"]
SOURCE = (ROOT / "vlpt.py").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
METHOD = (ROOT / "assets/method.svg").read_text("utf-8")
MAX_README_LINES = 160
TROUBLE = ("lest", "of theirs", "as there", "but for", "told", "wanted")  # see the style guide

# A step, a name in vlpt.py and a test class.
STEP_ROWS = re.findall(
    r"^\| (\d) [^|]*\|[^|]*\| `([\w.]+)` \| `(\w+)` \|$", README, flags=re.MULTILINE
)


def prose(text: str) -> str:
    """The page without its fenced blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def between(text: str, mark: str) -> str:
    """What stands between <!-- mark --> and <!-- /mark -->, without blank lines around it."""
    return text.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0].strip()


def resolve(name: str, start: object = vlpt) -> object:
    """The object of a dotted name in vlpt.py."""
    found = start
    for part in name.split("."):
        found = getattr(found, part)
    return found


class TestPages:
    def test_the_pages_are_there(self):
        names = (
            "backbone",
            "data",
            "detectors",
            "differences",
            "gpu",
            "quirks",
            "reading",
            "runs",
            "speed",
        )
        assert {f"docs/{name}.md" for name in names} <= PAGES.keys()

    def test_readme_is_short(self):
        assert len(README.splitlines()) <= MAX_README_LINES

    @pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
    def test_a_page_opens_with_its_question(self, page):
        assert re.match(r"# [^\n]+: [^\n]+\?\n", PAGES[page])

    @pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
    def test_readme_links_to_every_page(self, page):
        assert f"]({page}" in README

    @pytest.mark.parametrize("page", PAGES)
    def test_no_page_uses_words_that_readers_stumbled_over(self, page):
        text = " ".join(PAGES[page].split()).lower()
        assert [words for words in TROUBLE if re.search(rf"\b{words}\b", text)] == []

    def test_readme_has_what_a_visitor_looks_for(self):
        links = (
            "https://arxiv.org/abs/2203.03911",
            "https://github.com/bytedance/oclip",
            "https://github.com/openai/CLIP",
            "https://github.com/open-mmlab/mmocr",
        )
        assert [link for link in links if link not in README] == []
        assert "VLPT-STD" in README
        first_screen = "\n".join(README.splitlines()[:40])
        assert "make demo" in first_screen and "make test" in first_screen


# ---- Links -------------------------------------------------------------------------------------


def list_links() -> Iterator[tuple[str, str]]:
    """Every page and relative link in it."""
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
            if not link.startswith("http"):
                yield page, link


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), sorted(set(list_links())))
def test_a_relative_link_leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target.read_text("utf-8"))


def test_a_file_named_in_backticks_exists():
    pattern = r"`((?:(?:tests|docs|assets|experiments)/)?\w+\.(?:py|md|toml|cff|svg))`"
    names = {name for text in PAGES.values() for name in re.findall(pattern, text)}
    assert {"vlpt.py", "test_vlpt.py", "train_min.py"} <= names
    assert [name for name in sorted(names) if not (ROOT / name).is_file()] == []


def test_a_line_count_is_the_real_one():
    """A count is written as `[vlpt.py](vlpt.py) (about 1,100 lines)`, rounded to hundreds."""
    counts = [
        (name, int(number.replace(",", "")))
        for text in PAGES.values()
        for name, number in re.findall(r"\]\(([\w./]+)\) \(about ([\d,]+)\s+lines\)", text)
    ]
    mentioned = sum(len(re.findall(r"\d\s+lines\b", text)) for text in PAGES.values())
    assert counts and len(counts) == mentioned
    for name, number in counts:
        assert number == round(len((ROOT / name).read_text("utf-8").splitlines()), -2), name


# ---- Commands ----------------------------------------------------------------------------------


def list_commands() -> list[str]:
    """Every command in a block of shell code or in backticks, without its comment."""
    found = set()
    for text in PAGES.values():
        lines = []
        for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            lines += block.splitlines()
        spans = re.findall(r"`([^`]+)`", prose(text))
        lines += [" ".join(span.split()) for span in spans]
        for line in lines:
            line = line.split("  #")[0].strip()
            if re.match(r"(python|make|torchrun) \S", line):
                found.add(line)
    return sorted(found)


COMMANDS = list_commands()
PYTHON_COMMANDS = [command for command in COMMANDS if not command.startswith("make ")]


def run_help(program: list[str], arguments: list[str]) -> tuple[object, str]:
    """Run a program of this repository with --help after its arguments.

    argparse prints the help when it reaches --help. Before that it refuses a wrong subcommand and a
    wrong choice. It would refuse an unknown option only later.

    Returns: the exit status and what was printed.
    """
    printed = io.StringIO()
    status: object = "no exit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *arguments, "--help"])
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                if program[0] == "-m":
                    patch.delitem(sys.modules, program[1], raising=False)  # it is run afresh
                    runpy.run_module(program[1], run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(str(ROOT / program[0]), run_name="__main__")
            except SystemExit as stop:
                status = stop.code
    return status, printed.getvalue()


def test_the_commands_are_found():
    assert len(PYTHON_COMMANDS) > 25
    for start in ("python train_min.py --data", "python -m readers check", "torchrun "):
        assert any(command.startswith(start) for command in COMMANDS), start


@pytest.mark.parametrize("command", PYTHON_COMMANDS)
def test_a_command_and_its_options_exist(command, monkeypatch):
    launcher, *words = shlex.split(command)
    if launcher == "torchrun":
        if words == ["--nproc-per-node", "4"]:  # in place of `python`
            return
        words = words[words.index("train_min.py") :]
    program = words[:2] if words[0] == "-m" else words[:1]
    arguments = words[len(program) :]
    if program == ["vlpt.py"]:
        printed = io.StringIO()
        monkeypatch.setattr(sys, "argv", words)
        with FakeTensorMode(), contextlib.redirect_stdout(printed):  # shapes without numbers
            runpy.run_path(str(ROOT / "vlpt.py"), run_name="__main__")
        assert "VisualTextualDecoder" in printed.getvalue()
        return
    if program[0] == "-m":
        assert importlib.util.find_spec(program[1]), f"no module {program[1]}"
    # Of values that stand for several, `a|b|c`, the first one is enough here.
    arguments = [word.split("|")[0] for word in arguments if word != "..."]
    arguments = [re.sub(r"^[NW]$", "64", word) for word in arguments]
    status, help_text = run_help(program, [word for word in arguments if word != "--help"])
    assert status in (0, None), help_text
    options = {word for word in arguments if word.startswith("--")}
    assert [option for option in options if not re.search(rf"{option}\b", help_text)] == []


def test_every_choice_of_a_command_exists():
    """The values in `--layout native|mmocr|timm`."""
    layouts = {
        found
        for command in COMMANDS
        for found in re.findall(r"--layout ([\w|]+)", command)
        if "|" in found
    }
    assert layouts == {"|".join(["native", "mmocr", "timm"])}
    assert set(vlpt.LAYOUTS) == set("|".join(layouts).split("|"))


@cache
def known_options() -> set[str]:
    """The options that a page may name outside of a command."""
    texts = [
        run_help(["train_min.py"], [])[1],
        run_help(["-m", "transfer.detect"], ["train"])[1],
        run_help(["-m", "experiments.reproduce"], [])[1],
        run_help(["-m", "transfer.export"], [])[1],
        run_help(["-m", "experiments.gpu"], [])[1],
        run_help(["-m", "experiments.read"], [])[1],
        run_help(["-m", "experiments.localise"], [])[1],
    ]
    return {*re.findall(r"--[\w-]+", " ".join(texts)), "--nproc-per-node"}  # torchrun's


@pytest.mark.parametrize("page", PAGES)
def test_an_option_in_backticks_exists(page):
    options = set(re.findall(r"`(--[\w-]+)(?: [^`]*)?`", prose(PAGES[page])))
    assert options <= known_options()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_a_make_target_exists(command):
    target = command.split()[1]
    assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)


# ---- Names and examples ------------------------------------------------------------------------


def test_a_name_of_vlpt_exists():
    names = {n for text in PAGES.values() for n in re.findall(r"\bvlpt\.([A-Za-z_][\w.]*)", text)}
    names -= {"py"}
    assert {"VLPT", "load_backbone", "export_backbone", "normalize", "read_tensors"} <= names
    for name in sorted(names):
        assert resolve(name.rstrip(".")) is not None


def test_every_name_in_backticks_occurs_in_the_code():
    """Catches a name that the code no longer has. Placeholders are written in capitals."""
    # Of other programs and of torch.
    of_others = {"load_from", "foreach", "jpegtran", "silu", "TextNet", "deformable_resnet50"}
    of_others |= {"image_mean", "image_std", "init_weights", "OUTPUT_DIR", "last_checkpoint"}
    paths = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), ROOT / "pyproject.toml"]
    code = {
        word
        for path in paths
        if path.name != "test_docs.py" and path.parent.name != ".venv"
        for word in re.findall(r"\w+", path.read_text("utf-8"))
    }
    missing = []
    for page, text in PAGES.items():
        names = set(re.findall(r"`([A-Za-z_]\w*)(?:\([^`]*\))?`", prose(text)))
        for name in sorted(names - of_others):
            is_placeholder = name.isupper() and "_" not in name
            if not is_placeholder and name not in code:
                missing.append(f"{page}: {name}")
    assert missing == []


def test_readme_s_example_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    assert len(example.splitlines()) <= 12
    exec(example, {})
    comment = re.search(r"print\(.*\)  # (.*)", example)
    assert comment and capsys.readouterr().out.strip() == comment[1]
    assert (tmp_path / "backbone.pt").is_file()


def test_readme_s_lines_for_other_libraries_run():
    section = README.split("## Use the backbone\n")[1].split("\n## ")[0]
    rows = re.findall(
        r"^\| (\w+) \| `--preset oclip_rn50(?: --backbone (\w+))?` \| `(\w+)` \| `(.+)` \|$",
        section,
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == ["torchvision", "timm", "MMOCR"]
    for _, backbone, layout, line in rows:
        network = vlpt.build_backbone(backbone or vlpt.OCLIP_RN50.backbone)
        keys = vlpt.layout_keys(network, layout)
        state = {keys[key]: tensor for key, tensor in network.state_dict().items()}
        eval(line, {"torchvision": torchvision, "timm": timm, "state": state, "FILE": ""})


# ---- Steps, differences and the figure ---------------------------------------------------------


def test_the_table_has_all_nine_steps_in_order():
    assert [number for number, _, _ in STEP_ROWS] == list("123456789")


@pytest.mark.parametrize(("number", "name", "test_class"), STEP_ROWS)
def test_the_code_and_the_tests_of_a_step_exist(number, name, test_class):
    assert callable(resolve(name))
    assert test_class.startswith(f"TestStep{number}")
    tests = [test for test in dir(getattr(test_vlpt, test_class)) if test.startswith("test_")]
    assert len(tests) >= 2


def test_the_docstring_of_vlpt_has_the_same_table():
    rows = re.findall(r"^    (\d)  .*?([\w.]+) +(TestStep\d)$", vlpt.__doc__, flags=re.MULTILINE)
    assert rows == [(number, name, f"TestStep{number}") for number, name, _ in STEP_ROWS]


def test_every_test_class_of_a_step_is_in_the_table():
    classes = {name for name in dir(test_vlpt) if name.startswith("TestStep")}
    assert classes == {test_class for _, _, test_class in STEP_ROWS}


def test_the_differences_are_the_same_everywhere():
    expected = [f"D{k}" for k in range(1, 13)]
    assert re.findall(r"^    (D\d+) ", vlpt.__doc__, flags=re.MULTILINE) == expected
    page = PAGES["docs/differences.md"]
    assert re.findall(r"^\| (D\d+) \|", page, flags=re.MULTILINE) == expected
    assert set(re.findall(r"\bD\d+\b", page)) == set(expected)


def test_differences_of_the_model_are_marked_in_the_code():
    body = SOURCE.replace(vlpt.__doc__, "")
    marked = set(re.findall(r"\bD\d+\b", body))
    assert marked == {"D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D12"}


def test_the_figure_needs_nothing_from_elsewhere():
    root = ElementTree.fromstring(METHOD)
    assert root.find("{*}title").text and root.find("{*}desc").text
    used = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', METHOD)
    assert all((href or url).startswith("#") for href, url in used)
    assert not any(text in METHOD for text in ("@import", "<image", "<script"))


def test_the_figure_has_the_nine_steps_and_the_names_of_the_code():
    numbers = re.findall(r'class="n"[^>]*>(\d)<', METHOD)
    assert sorted(numbers) == [number for number, _, _ in STEP_ROWS]
    for name in ("image tokens", "character features", "logit_scale", "MASK"):
        assert f"{name}" in METHOD


# ---- Numbers -----------------------------------------------------------------------------------


def load_results() -> dict:
    return json.loads((ROOT / "experiments/results.json").read_text("utf-8"))


def test_the_tables_of_detectors_are_those_of_the_results():
    reproduce: ModuleType = importlib.import_module("experiments.reproduce")
    expected = "\n".join(reproduce.docs_lines(load_results()))
    assert between(PAGES["docs/detectors.md"], "results") == expected


@pytest.mark.parametrize(
    ("page", "mark"),
    [
        ("docs/gpu.md", "gpu-speed"),
        ("docs/speed.md", "gpu-memory"),
        ("docs/gpu.md", "gpu-detectors"),
    ],
)
def test_the_tables_of_the_gpu_are_those_of_its_results(page, mark):
    tables: ModuleType = importlib.import_module("experiments.gpu.tables")
    expected = tables.TABLES[mark](tables.read_results(tables.MEASURED))
    assert between(PAGES[page], mark).splitlines() == expected


def test_the_numbers_of_the_gpu_s_run_are_those_of_its_results():
    tables: ModuleType = importlib.import_module("experiments.gpu.tables")
    results = tables.read_results(tables.MEASURED)
    page, found = " ".join(PAGES["docs/gpu.md"].split()), results["pretrain/model"]
    right, other, i2t = (100 * found[key] for key in ("acc_right", "acc_other", "i2t"))
    assert f"predicts {right:.1f} % of the masked characters" in page
    assert f"and {other:.1f} % with a mismatched one, a gain of {right - other:.1f} points" in page
    assert f"in {i2t:.1f} % of cases" in page
    trained = 256 * found["steps"]
    seconds = trained / found["pictures_s"]
    rendered = seconds * found["rendered_s"]
    assert f"in {found['steps']:,} steps of 256" in page
    assert f"In {seconds:.0f} seconds" in page and f"on {round(trained, -3):,} pictures" in page
    assert f"About {round(rendered, -4):,.0f} of them were new ones" in page
    for stage, pictures in (("short", "short words"), ("full", "full scenes")):
        assert f"{pictures} from step {found['stages'][stage]}" in page
    for source in ("icdar2015", "synth"):
        loader = results[f"loader/{source}"]
        assert f"{100 * loader['wait']:.0f} % of the time" in page or (
            f"{100 * loader['wait']:.0f} % ({loader['pictures_s']:.0f} per second)" in page
        )
    for lr in ("0.0003", "0.003"):
        f = results[f"detect/scratch-800-4000-lr{lr}-seed0"]["f"]
        assert f"gave {100 * f:.1f}" in page
    scores = tables.detector_table(results)[2]
    expected, got = re.findall(r"[\d.]+ ± [\d.]+", scores)
    assert f"of {got} % instead of {expected} %" in README


def test_readme_s_digits_are_those_of_the_five_seeds():
    demo = json.loads((ROOT / "experiments/demo.json").read_text("utf-8"))
    for key, words in (
        ("acc_right", "of the masked digits"),
        ("acc_other", "with a mismatched one"),
    ):
        values = [100 * row[key] for row in demo["seeds"]]
        assert len(values) == 5
        assert f"{mean(values):.1f} ± {stdev(values):.1f} % {words}" in README
    worst = min(row["acc_right"] for row in demo["seeds"])
    assert f"the worst has {100 * worst:.1f} %" in README


NONE = "\N{EN DASH}"


def test_the_ladder_is_that_of_its_runs():
    nothing_else = Path("no such folder")
    scores = ladder.collect(ladder.scored_rows(nothing_else))
    lines = ladder.to_markdown(scores)
    assert between(PAGES["docs/detectors.md"], "ladder").splitlines() == lines
    for budget in (1, 8):
        scratch, pretrained = (mean_and_spread(scores[arm][budget]) for arm in ladder.ARMS)
        assert f"from {scratch} % to {pretrained} %" in README
    log = (ROOT / "experiments/LOG.md").read_text("utf-8")
    for arm, by_budget in scores.items():
        label = {"scratch": "from scratch", "pre-trained": arm}.get(arm, f"`{arm}`")
        for budget, found in by_budget.items():
            cells = [f"{found[seed]:.1f}" if seed in found else NONE for seed in range(5)]
            assert f"\n| {budget} x | {label} | {' | '.join(cells)} |\n" in log
            tried = ladder.rates_to_try(arm, budget, nothing_else)
            cells = [NONE] * len(ladder.RATES)
            for lr in tried:
                row = ladder.read(ladder.Job(arm, budget, lr, ladder.CHOOSING_SEED), nothing_else)
                cells[ladder.RATES.index(lr)] = f"{100 * max(f for _, f in row['choosing']):.1f}"
            lr, min_score = ladder.choose(arm, budget, nothing_else)
            best = ladder.RATES.index(lr)
            cells[best] = f"**{cells[best]}** ({min_score:g})"
            assert f"\n| {budget} x | {label} | {' | '.join(cells)} |\n" in log


def test_the_rank_correlations_are_those_of_the_results():
    lines = predictors.to_markdown(predictors.read_points(load_results()))
    assert between(PAGES["docs/detectors.md"], "predictors").splitlines() == lines


def test_the_comparison_of_the_heads_is_that_of_their_runs():
    runs = json.loads((ROOT / "experiments/heads.json").read_text("utf-8"))["runs"]
    lines = ["| crops | PSENet | DB |", "|---|---|---|"]
    for crops in (1200, 2400, 4800):
        cells = []
        for head in ("psenet", "db"):
            found = [r["f"] for r in runs if (r["head"], r["crops"]) == (head, crops)]
            assert len(found) == 3
            cells.append(f"{100 * mean(found):.1f} ± {100 * stdev(found):.1f}")
        lines.append(f"| {crops:,} | {' | '.join(cells)} |")
    assert between(PAGES["docs/detectors.md"], "heads") == "\n".join(lines)


def test_the_distances_of_attention_are_those_of_their_measurement():
    found = json.loads((ROOT / "experiments/results.json").read_text("utf-8"))["localisation"]
    keys = ("own", "siblings", "other map", "uniform", "nearest", "chance")
    lines = [f"| text encoder | {' | '.join(keys)} |", "|" + "---|" * 7]
    for encoder, (only,) in found.items():
        lines.append(f"| {encoder} | {' | '.join(f'{only[key]:.3f}' for key in keys)} |")
    assert between(PAGES["docs/reading.md"], "localisation") == "\n".join(lines)


def test_the_demo_s_result_is_a_whole_line():
    line = between(README, "demo")
    assert line.startswith("RESULT data=synth preset=tiny ") and "\n" not in line
    numbers = dict(pair.split("=") for pair in line.split()[1:])
    right, other, gain = (float(numbers[key]) for key in ("acc_right", "acc_other", "gain"))
    assert abs(right - other - gain) < 0.0011  # each is rounded


def test_pixel_statistics_are_those_of_the_code():
    """In 0..255, as MMOCR takes them."""
    text = PAGES["docs/backbone.md"]
    for name, values in (("mean", vlpt.PIXEL_MEAN), ("std", vlpt.PIXEL_STD)):
        quoted = [float(x) for x in re.search(rf"{name}=\[([\d., ]+)\]", text)[1].split(",")]
        assert torch.allclose(torch.tensor(quoted), 255 * torch.tensor(values), atol=0.005)


# ---- The project's own papers ------------------------------------------------------------------


def test_tools_are_pinned_alike_everywhere():
    pins = dict(re.findall(r'"(ruff|mypy)==([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = re.findall(r"(ruff|mypy)\S*\n +rev: v([\d.]+)", config)
    assert pins == dict(hooks) and len(hooks) == len(pins) == 2


def test_the_citation_file_agrees_with_readme_and_vlpt():
    text = " ".join((ROOT / "CITATION.cff").read_text("utf-8").split())
    title = re.search(r"\btitle=\{([^}]*)\}", README)[1]
    assert title in text
    assert "cff-version: 1.2.0" in text
    names = re.search(r"author=\{([^}]*)\}", README)[1].split(" and ")
    people = re.findall(r"family-names: (\w+), given-names: (\w+)", text)
    assert names == [f"{family}, {given}" for family, given in people]
    assert f"version: {vlpt.__version__}" in text
