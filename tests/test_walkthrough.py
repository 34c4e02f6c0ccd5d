"""docs/walkthrough.py runs from top to bottom, also with a model that has learned nothing yet."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.test_docs import README, STEP_ROWS

ROOT = Path(__file__).resolve().parent.parent
WALKTHROUGH = ROOT / "docs/walkthrough.py"
SOURCE = WALKTHROUGH.read_text("utf-8")
CELLS = re.split(r"^# %%", SOURCE, flags=re.MULTILINE)[1:]
MARKDOWN = [
    re.sub(r"^# ?", "", cell.split("\n", 1)[1], flags=re.MULTILINE)
    for cell in CELLS
    if cell.startswith(" [markdown]")
]
CODE = "\n".join(cell for cell in CELLS if not cell.startswith(" [markdown]"))


@pytest.fixture
def a_folder_with_the_run(quick_run, tmp_path, monkeypatch):
    """A folder in which runs/demo is a copy of a run of a few steps."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(quick_run.folder, tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def figures():
    """The figures that are drawn, which are not shown."""
    backend = matplotlib.get_backend()
    plt.switch_backend("agg")
    with matplotlib.rc_context():
        yield lambda: [plt.figure(number) for number in plt.get_fignums()]
    plt.close("all")
    plt.switch_backend(backend)


def test_the_page_runs_with_a_model_that_cannot_read_and_draws_each_figure(
    a_folder_with_the_run, figures, capsys
):
    names = runpy.run_path(str(WALKTHROUGH))
    printed = capsys.readouterr().out
    assert not names["is_trained"] and "so the model is hardly trained" in printed
    drawn = figures()
    calls = set(re.findall(r"^draw_\w+", CODE, flags=re.MULTILINE))
    assert len(drawn) == len(calls) == len(re.findall(r"^def draw_", CODE, flags=re.MULTILINE))
    for figure in drawn:
        figure.draw_without_rendering()
        assert all(axes.get_title() for axes in figure.axes)


def test_claims_about_a_trained_model_are_checked_if_the_run_s_gain_is_high(
    a_folder_with_the_run, figures
):
    path = Path("runs/demo/metrics.json")
    metrics = json.loads(path.read_text("utf-8"))
    metrics["result"]["gain"] = 0.7  # which is not so
    path.write_text(json.dumps(metrics), "utf-8")
    with pytest.raises(AssertionError):
        runpy.run_path(str(WALKTHROUGH))


def test_without_a_run_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="run `make demo` first"):
        runpy.run_path(str(WALKTHROUGH))


def test_every_step_has_a_heading_and_step_4_comes_before_step_2():
    headings = re.findall(r"^## Step (\d): ", "\n".join(MARKDOWN), flags=re.MULTILINE)
    assert headings == list("142356789")


def test_every_step_calls_the_code_of_vlpt():
    called = {
        "TextEncoder.embed": "model.text.embed(",
        "TextEncoder.forward": "model.text(",
        "VisualTextualDecoder": "model.decode(",
        "VLPT.encode_image": "model.encode_image(",
    }
    for _, name, _ in STEP_ROWS:
        assert called.get(name, f"vlpt.{name}(") in CODE, name


def test_the_equations_of_readme_are_on_the_page():
    page = "\n".join(MARKDOWN)
    equations = (
        r"v, f = \mathrm{pool}(\mathrm{backbone}(I))",
        r"ce_j = W_c \, c_j + PE_j",
        r"te = \mathrm{Enc}(ce)",
        r"y = \mathrm{Dec}(te, f)",
        r"L_{bc} = H(\text{i2t}) + H(\text{t2i})",
        r"\mathrm{loss} = L_{cls} + L_{bc}",
    )
    for equation in equations:
        assert equation in page
        plain = re.sub(r"\\(mathrm|text)|\\,|[\\{}]", "", equation)
        assert re.sub(r"\W", "", plain) in re.sub(r"[^\w`]", "", README), equation


def test_a_file_named_on_the_page_exists():
    names = set(re.findall(r"`([\w/]+\.(?:py|md))`", "\n".join(MARKDOWN)))
    assert {"vlpt.py", "test_vlpt.py"} <= names
    assert [name for name in sorted(names) if not (ROOT / name).is_file()] == []


def test_make_walkthrough_without_a_run_says_what_to_do(tmp_path):
    """Everything is taken to be installed, so that the missing run is all that make finds."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "venv").mkdir()
    for marker in ("installed", "installed-docs"):
        (tmp_path / "venv" / marker).touch()
    done = subprocess.run(
        ["make", "walkthrough", "VENV=venv"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "run make demo first" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_page_is_made_as_make_does(a_folder_with_the_run, monkeypatch):
    """The Makefile's own commands, with this Python, on a run of a few steps."""
    pytest.importorskip("jupytext")
    pytest.importorskip("nbconvert")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(ROOT / "docs", "docs")
    recipe = (ROOT / "Makefile").read_text("utf-8").split("\nwalkthrough:")[1].split("\n\n")[0]
    recipe = recipe.replace("\\\n", " ").replace("$(RUN)", sys.executable)
    for line in recipe.splitlines()[1:]:
        subprocess.run(line.strip().lstrip("@"), shell=True, check=True)
    page = Path("runs/walkthrough/walkthrough.html").read_text("utf-8")
    notebook = json.loads(Path("runs/walkthrough/walkthrough.ipynb").read_text("utf-8"))
    assert "Step 9: only the backbone leaves" in page
    assert "def draw_ids" not in page  # drawing is not shown
    kinds = {output["output_type"] for c in notebook["cells"] for output in c.get("outputs", [])}
    assert kinds == {"stream", "display_data"}
