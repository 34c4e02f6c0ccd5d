"""Fixtures that several test files share."""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import pytest

QUICK = ["--samples", "32", "--batch", "8", "--eval", "16", "--workers", "0", "--name", "t"]


class FinishedRun(NamedTuple):
    folder: Path
    output: str


def run_quickly(folder: Path, *options: str, figures: bool = True) -> FinishedRun:
    import train_min

    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(folder)
        if not figures:
            patch.setattr("training.report.draw_all", lambda *_: None)
        train_min.main([*QUICK, *options])
    return FinishedRun(folder / "runs" / "t", output.getvalue())


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory):
    """A run of train_min.py with the options QUICK. Tests that change its folder copy it first."""
    return run_quickly(tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="session")
def seed_1_run(tmp_path_factory):
    """The same with another seed and without figures."""
    return run_quickly(tmp_path_factory.mktemp("seed_1"), "--seed", "1", figures=False)


@pytest.fixture
def make_log(tmp_path):
    """A function that returns the log of a run, by default of a new one."""
    from training.log import Log

    def make(done=0, state=None):
        return Log(None, 8, (1.0, 1.0), 1.0, tmp_path, False, done, state or {})

    return make


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out figures and report, which take most of a short run's time."""
    monkeypatch.setattr("training.report.draw_all", lambda *_: None)
