"""What README.md and the docstring of vlpt.py say must be so."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import test_vlpt
import vlpt

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SOURCE = (ROOT / "vlpt.py").read_text()
ROWS = re.findall(r"^\| (\d) [^|]*\|[^|]*\| `([\w.]+)` \| `(\w+)` \|$", README, re.MULTILINE)


def test_the_table_has_all_nine_steps_in_order():
    assert [row[0] for row in ROWS] == list("123456789")


@pytest.mark.parametrize(("number", "function", "test_class"), ROWS)
def test_each_step_s_function_and_test_class_exist(number, function, test_class):
    found = vlpt
    for name in function.split("."):
        found = getattr(found, name)
    assert callable(found)
    assert test_class.startswith(f"TestStep{number}")
    tests = [name for name in dir(getattr(test_vlpt, test_class)) if name.startswith("test_")]
    assert len(tests) >= 2


def test_the_docstring_of_vlpt_has_the_same_table():
    rows = re.findall(r"^    (\d) .*?(\S+) +(TestStep\w+)$", vlpt.__doc__, re.MULTILINE)
    assert rows == ROWS


def test_every_step_s_class_is_in_the_table():
    classes = {name for name in dir(test_vlpt) if name.startswith("TestStep")}
    assert classes == {row[2] for row in ROWS}


def test_every_deviation_is_marked_where_it_happens():
    numbers = re.findall(r"^    (D\d) ", vlpt.__doc__, re.MULTILINE)
    assert numbers == [f"D{k}" for k in range(1, len(numbers) + 1)] and numbers
    body = SOURCE.replace(vlpt.__doc__, "")
    assert [number for number in numbers if not re.search(rf"\b{number}\b", body)] == []
    assert set(re.findall(r"\bD\d\b", body)) == set(numbers)


def test_quoted_files_exist():
    quoted = set(re.findall(r"\]\(((?!http|#)[^)]+)\)", README))
    quoted |= set(re.findall(r"`((?:tests/)?\w+\.(?:py|md|toml))`", README))
    assert {"vlpt.py", "assets/method.svg", "assets/attention.jpg"} <= quoted
    assert [path for path in quoted if not (ROOT / path).is_file()] == []


def test_quoted_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make (\w+)[` ]", README))
    assert {"demo", "test", "proof", "mutants"} <= targets
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


SCRIPTS = ["train_min.py", "data_stub.py", "data_stub.py fake-synthtext",
           "experiments/bench_min.py data", "experiments/detect_min.py train"]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_quoted_options_exist(script):
    lines = re.findall(rf"python {script}(?! [a-z])([^`\n]*)", README)
    options = {option for line in lines for option in re.findall(r"--[\w-]+", line)}
    help_text = subprocess.run(
        [sys.executable, *script.split(), "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert options and [option for option in options if option not in help_text] == []


def test_the_first_example_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(blocks[0], {})
    said = re.search(r"print\(.*\)  # (.*)", blocks[0])[1]
    assert capsys.readouterr().out.strip() == said
    assert (tmp_path / "backbone.pt").is_file()


RUNS = {  # the commands of README, and the tests that run them; `make readme` runs the rest
    "make test": ".ci/run",
    "make proof": "Makefile",
    "make mutants": "tests/test_mutants.py",
    "python data_stub.py check jsonl:words.jsonl": "tests/test_data_stub.py",
    "python train_min.py --data jsonl": "tests/test_train_min.py",
    "python data_stub.py --sheet sheet.png": "tests/test_data_stub.py",
    "python train_min.py --help": "tests/test_train_min.py",
    "python train_min.py compare": "tests/test_report_min.py",
    "python vlpt.py export": "test_vlpt.py",
    "python experiments/bench_min.py step": "tests/test_bench_min.py",
    "python experiments/detect_min.py": "tests/test_detect_min.py",
    "python experiments/reproduce_min.py": "tests/test_reproduce_min.py",
}


def test_every_command_is_run_by_a_test_or_by_make_readme():
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^readme:(.*\n(?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    recipe = recipe.replace("$(RUN)", "python").replace(" demo\n", "\n\tmake demo\n")
    commands = re.findall(r"^    (?:\$ )?((?:python|make) .*?)(?:  +#.*)?$", README, re.MULTILINE)
    commands += [c.replace("\n", " ") for c in re.findall(r"`((?:python|make) [^`]*)`", README)]
    assert len(commands) > 12 and all((ROOT / path).is_file() for path in RUNS.values())
    for command in commands:
        fixed = re.split(r" (?:\S*PATH|\S*NAME|\S*DIR|[a-z]*:[A-Z]+)", command)[0]
        known = any(command.startswith(start) for start in RUNS) or fixed in recipe
        assert known, f"nothing runs `{command}`"


def test_the_first_screen_holds_what_it_should():
    screen = "\n".join(README.splitlines()[:40])
    for shown in ("make demo", "make test", "RESULT data=synth", "| what | paper |", "not run"):
        assert shown in screen
    assert all(f"`{test_class}`" in screen for _, _, test_class in ROWS)


def test_tools_are_pinned_alike_everywhere():
    pins = dict(re.findall(r'"(ruff|mypy)==([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    hooks = re.findall(
        r"(ruff|mypy)\S*\n +rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    assert pins == dict(hooks) and len(hooks) == len(pins) == 2


def test_the_citation_is_readme_s_and_the_version_vlpt_s():
    text = " ".join((ROOT / "CITATION.cff").read_text().split())
    title = re.search(r"title=\{(.*)\}", README)[1]
    names = re.search(r"author=\{(.*)\}", README)[1].split(" and ")
    assert title in text and f"version: {vlpt.__version__}" in text and "cff-version: 1.2.0" in text
    people = re.findall(r"family-names: (\w+), given-names: (\w+)", text)
    assert names == [f"{family}, {given}" for family, given in people]


def test_the_figure_is_drawn_without_anything_from_elsewhere():
    text = (ROOT / "assets" / "method.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.find("{*}title").text and root.find("{*}desc").text
    used = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', text)
    assert all((a or b).startswith("#") for a, b in used) and "@import" not in text
    assert "<image" not in text and "<script" not in text
    numbers = re.findall(r'class="n"[^>]*>(\d)<', text)
    assert sorted(numbers) == [row[0] for row in ROWS]


def test_sizes_that_readers_are_promised():
    assert len(README.splitlines()) <= 290
    assert len(SOURCE.splitlines()) <= 600
    assert len(vlpt.__doc__.splitlines()) <= 45
    assert "@" not in re.sub(r"@inproceedings", "", README)  # no number left to fill in
