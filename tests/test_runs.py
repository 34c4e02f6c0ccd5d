"""Runs that are stopped, killed, resumed, broken: in processes of their own, for real."""

import functools
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data_stub
import readers
import train_min
import vlpt
from experiments.fake_synthtext import write_synthtext
from training import data, report, runs
from training.dataset import Pretraining

ROOT = Path(__file__).parent.parent
RUN = ["--batch", "8", "--eval", "8", "--workers", "0", "--name", "t"]
FORKS = multiprocessing.get_context("forkserver")  # a process for each run, without its imports
FORKS.set_forkserver_preload([__name__])
os.environ["PYTHONPATH"] = str(ROOT)


def child(argv, folder, fault):
    """What the process of a run does: its output goes to a file, its children are its group's."""
    os.setsid()
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # for its workers, as without a server
    file = os.open("output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    report.draw_all = lambda *_: None  # most of a short run's time
    if fault:
        fault()
    train_min.main(argv)


class Run:
    """A run in a process of its own."""

    def __init__(self, folder, *argv, fault=None):
        self.folder, self.log = folder, folder / "runs" / "t" / "log.jsonl"
        self.output = folder / "output.txt"
        self.output.unlink(missing_ok=True)
        self.process = FORKS.Process(target=child, args=([*RUN, *argv], folder, fault))
        self.process.start()

    def steps(self):
        text = self.log.read_text() if self.log.exists() else ""
        return text.count('"step", "samples"')

    def until(self, steps):
        """Wait until the run has begun, and the log has so many steps."""
        while self.steps() < steps or not self.output.exists():
            assert self.process.is_alive(), self.output.read_text()
            time.sleep(0.005)
        return self

    def send(self, number):
        os.killpg(self.process.pid, number)
        return self

    def end(self, code, quiet=True):
        self.process.join(120)
        output = self.output.read_text()
        assert self.process.exitcode == code, output
        assert not quiet or "Traceback" not in output, output
        return output


@pytest.fixture(autouse=True)
def in_a_folder(no_figures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(folder, name="t", file="checkpoint.pt"):
    return torch.load(folder / "runs" / name / file, weights_only=True)


def same(a, b):
    """Whether two checkpoints hold the same bits: weights, statistics, the optimiser's moments."""
    states = [[*x["state_dict"].values()] for x in (a, b)]
    for state, x in zip(states, (a, b), strict=True):
        state += [v for s in x["optimizer"]["state"].values() for v in s.values()]
    return all(torch.equal(x, y) for x, y in zip(*states, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 20 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    Run(folder, "--samples", "160").end(0)
    return folder


@pytest.fixture(scope="module")
def stopped_at_7(tmp_path_factory):
    """The folder of a run that a signal stopped after its seventh step or a little later."""
    folder = tmp_path_factory.mktemp("stopped")
    Run(folder, *LONG).until(7).send(signal.SIGTERM).end(143)
    return folder


LONG = ("--samples", "160")


class TestResume:
    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
        self, workers, whole, tmp_path
    ):
        options, draw = [*LONG, "--workers", workers], random.Random(int(workers))
        at = sorted(draw.sample(range(1, 16), 3))  # between checkpoints, at one, before the first
        run = Run(tmp_path, *options)
        for steps in at:
            run.until(steps).send(signal.SIGKILL).process.join()
            run = Run(tmp_path, *options, "--resume")
        assert "resumed after" in run.end(0)
        assert same(weights(whole), weights(tmp_path))
        names = ("metrics.json", "log.jsonl")
        ours, theirs = ([(f / "runs/t" / n).read_text() for n in names] for f in (tmp_path, whole))
        results = [json.loads(x[0])["result"] for x in (ours, theirs)]
        for result in results:
            del result["seconds"], result["wait"]
        assert results[0] == results[1]
        rows = [
            [r for r in map(json.loads, x[1].splitlines()) if r["kind"] == "step"]
            for x in (ours, theirs)
        ]
        assert rows[0] == rows[1]

    @pytest.mark.parametrize("place", ["half of the file", "between the two renames"])
    def test_killed_while_a_checkpoint_is_written(self, place, whole, tmp_path):
        fault = die_in_half_a_file if place.startswith("half") else die_between_renames
        Run(tmp_path, *LONG, fault=fault).end(-signal.SIGKILL)
        train_min.main([*RUN, *LONG, "--resume"])
        assert same(weights(whole), weights(tmp_path))

    def test_the_options_of_the_start_need_not_be_repeated(self, whole, stopped_at_7, tmp_path):
        shutil.copytree(stopped_at_7 / "runs", tmp_path / "runs")
        train_min.main(["--name", "t", "--resume"])
        assert same(weights(whole), weights(tmp_path))

    def test_a_finished_run_that_is_resumed_keeps_its_result(self, whole, tmp_path):
        shutil.copytree(whole / "runs", tmp_path / "runs")
        path = Path("runs/t/metrics.json")
        before = json.loads(path.read_text())["result"]
        train_min.main(["--name", "t", "--resume"])
        after = json.loads(path.read_text())["result"]
        assert 0 < before["wait"] < 1 and 0 <= after.pop("seconds") - before.pop("seconds") < 60
        assert after == before

    def test_options_that_may_change_are_those_of_the_start_until_given(self, whole, monkeypatch):
        monkeypatch.chdir(whole)
        args = train_min.parse_args(["--name", "t", "--resume"])
        assert (args.workers, args.batch, args.name) == (0, 8, "t")
        args = train_min.parse_args(["--name", "t", "--resume", "--workers", "3"])
        assert (args.workers, args.batch) == (3, 8)

    def test_a_run_that_dies_before_its_first_checkpoint_keeps_its_first_weights(
        self, whole, tmp_path
    ):
        first = whole / "runs" / "t" / "backbone.safetensors"
        still = ["--samples", "800", "--init", str(first), "--lr", "1e-12", "--weight-decay", "0"]
        Run(tmp_path, *still).until(1).send(signal.SIGKILL).process.join()
        assert not Path("runs/t/checkpoint.pt").exists()
        Path("runs/t", runs.UNFINISHED).write_bytes(b"written, but not yet renamed")
        Run(tmp_path, "--resume").until(80 // 8 + 1).send(signal.SIGTERM).end(143)
        ours, theirs = weights(tmp_path)["state_dict"], weights(whole)["state_dict"]
        for key in ("backbone.conv1.weight", "backbone.layer1.0.conv1.weight"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-9)

    def test_previous_is_kept_until_there_is_another_whole_one(self, stopped_at_7, tmp_path):
        shutil.copytree(stopped_at_7 / "runs", tmp_path / "runs")
        good = weights(tmp_path, file="checkpoint.previous.pt")
        Path("runs/t/checkpoint.pt").write_bytes(b"damaged")
        Run(tmp_path, "--resume", "previous", fault=die_between_renames).end(-signal.SIGKILL)
        assert same(good, weights(tmp_path, file="checkpoint.previous.pt"))

    def test_a_run_of_other_letters_is_not_taken_up(self, stopped_at_7, tmp_path):
        shutil.copytree(stopped_at_7 / "runs", tmp_path / "runs")
        held = weights(tmp_path)
        held["config"] |= {"alphabet": "9876543210"}
        torch.save(held, "runs/t/checkpoint.pt")
        with pytest.raises(SystemExit, match="expected this run's model, got another one"):
            train_min.main(["--name", "t", "--resume"])

    def test_a_run_of_more_processes_is_not_taken_up_by_one(self, whole, tmp_path):
        facts = json.loads((whole / "runs/t/run.json").read_text()) | {"processes": 3}
        Path("runs/t").mkdir(parents=True)
        Path("runs/t/run.json").write_text(json.dumps(facts))
        with pytest.raises(SystemExit, match="processes: expected 3 as before, got 1"):
            train_min.main(["--name", "t", "--resume"])

    @pytest.mark.parametrize("half", ["train", "heldout"])
    def test_a_run_of_other_data_is_not_taken_up(self, half, stopped_at_7, tmp_path):
        shutil.copytree(stopped_at_7 / "runs", tmp_path / "runs")
        facts = json.loads(Path("runs/t/run.json").read_text())
        found = facts["data"][half]
        facts["data"][half] = "9 pictures of mine"
        Path("runs/t/run.json").write_text(json.dumps(facts))
        message = f"--resume: expected the data of the run: {half} 9 pictures of mine, got {found}"
        with pytest.raises(SystemExit, match=f"error: {message}; go on with its data and"):
            train_min.main(["--name", "t", "--resume"])

    def test_a_run_of_another_program_is_not_taken_up(self, whole, tmp_path):
        facts = json.loads((whole / "runs/t/run.json").read_text())
        facts["args"]["preset"] = "curriculum"
        Path("runs/t").mkdir(parents=True)
        Path("runs/t/run.json").write_text(json.dumps(facts))
        with pytest.raises(SystemExit, match="got 'curriculum'; repeat the command that started"):
            train_min.main(["--name", "t", "--resume"])

    @pytest.mark.slow
    def test_the_command_of_a_report_repeats_the_run(self, whole, tmp_path):
        facts = json.loads((whole / "runs/t/run.json").read_text())
        words = shlex.split(report.command(facts).replace("\\\n", ""))
        assert words[:2] == ["python", "train_min.py"]
        train_min.main(words[2:])
        assert same(weights(whole), weights(tmp_path))

    def test_options_that_contradict_are_named_one_by_one(self, whole, monkeypatch):
        monkeypatch.chdir(whole)
        with pytest.raises(SystemExit) as stop:
            train_min.main([*RUN, "--resume", "--lr", "0.5", "--batch", "4", "--workers", "1"])
        assert str(stop.value).endswith(
            "--resume: expected the options of the run; --batch: expected 8, got 4; "
            "--lr: expected 0.002, got 0.5"
        )
        with pytest.raises(SystemExit, match="--image-size: expected it to be left out, got 96"):
            train_min.main([*RUN, "--resume", "--image-size", "96"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("cut", "expected a checkpoint of tensors"),
            ("foreign", "expected a checkpoint of train_min.py"),
            ("other sizes", "expected this run's model"),
            ("evil", "expected a checkpoint of tensors"),
        ],
    )
    def test_a_damaged_or_foreign_checkpoint_is_refused_and_the_one_before_offered(
        self, content, message, stopped_at_7, tmp_path
    ):
        out = tmp_path / "runs" / "t"
        shutil.copytree(stopped_at_7 / "runs", tmp_path / "runs")
        path, held = out / "checkpoint.pt", weights(tmp_path)
        if content == "cut":
            path.write_bytes(path.read_bytes()[:100_000])
        elif content == "foreign":
            torch.save({"state_dict": held["state_dict"]}, path)
        elif content == "other sizes":
            held["state_dict"]["head.bias"] = torch.zeros(3)
            torch.save(held, path)
        else:
            torch.save(held | {"step": Evil()}, path)
        with pytest.raises(SystemExit) as stop:
            train_min.main(["--name", "t", "--resume"])
        assert f"checkpoint.pt: {message}" in str(stop.value)
        assert str(stop.value).endswith("; --resume previous starts from the checkpoint before it")
        assert not Path("owned").exists()

    def test_the_checkpoint_before_leads_to_the_same_bits(self, whole, stopped_at_7, tmp_path):
        shutil.copytree(stopped_at_7 / "runs", tmp_path / "runs")
        (tmp_path / "runs" / "t" / "checkpoint.pt").write_bytes(b"damaged")
        train_min.main(["--name", "t", "--resume", "previous"])
        assert same(weights(whole), weights(tmp_path))
        before = weights(tmp_path, file="checkpoint.previous.pt")  # kept anew after the first save
        assert before["step"] == weights(tmp_path)["step"] - 2  # of 20, ten evaluations

    @pytest.mark.parametrize("content", ["none", "shorter", "damaged"])
    def test_a_finished_run_whose_log_is_lost_is_one_line(self, content, tmp_path):
        train_min.main([*RUN, "--samples", "16"])
        log = Path("runs/t/log.jsonl")
        message = "expected an evaluation after the last step, got none; --resume previous takes"
        if content == "none":
            log.unlink()
        elif content == "shorter":  # as when `--resume previous` is killed at once
            lines = log.read_text().splitlines(keepends=True)
            log.write_text("".join(x for x in lines if json.loads(x)["samples"] == 8))
        else:
            log.write_bytes(b"\xff\n")
            message = "1: expected a line of this log, got '\ufffd'"
        with pytest.raises(SystemExit, match=f"train_min.py: error: runs/t/log.jsonl:? ?{message}"):
            train_min.main(["--name", "t", "--resume"])

    def test_a_damaged_log_is_named_with_its_line(self, stopped_at_7, tmp_path):
        shutil.copytree(stopped_at_7 / "runs", tmp_path / "runs")
        log = Path("runs/t/log.jsonl")
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join([*lines[:2], "what?\n", *lines[3:]]))
        with pytest.raises(
            SystemExit, match=r"log.jsonl:3: expected a line of this log, got 'what\?'"
        ):
            train_min.main(["--name", "t", "--resume"])
        assert "what?" in log.read_text()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--resume"], "runs/t: expected the folder of a run, got no run.json"),
            (["--resume", "first"], "--resume: invalid choice: 'first'"),
            (["--resume", "--overwrite"], "--resume: expected it without --overwrite, got both"),
        ],
    )
    def test_nothing_to_go_on_from(self, options, message, tmp_path):
        process = Run(tmp_path, *options).process
        process.join()
        assert process.exitcode in (1, 2)
        line = (tmp_path / "output.txt").read_text()
        assert message in line and line.count("\n") == 1
        assert not (tmp_path / "runs" / "t").exists()


def die_in_half_a_file():
    """The process kills itself when half of its second checkpoint is in the file."""
    save, seen = vlpt.write_atomically, []

    def write(path, content):
        seen.append(path.name)
        if seen.count("checkpoint.new.pt") == 2:
            os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
            content = content[: len(content) // 2]
        save(path, content)

    vlpt.write_atomically = write


def die_between_renames():
    """The process kills itself when the old checkpoint has its new name and the new one has not."""
    replace = Path.replace

    def second(self, target):
        previous = self.with_name("checkpoint.previous.pt")
        if self.name == "checkpoint.new.pt" and previous.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = second


class Evil:
    def __reduce__(self):
        return (open, ("owned", "w"))


def break_stderr(error):
    """From now on printing to stderr raises an error."""

    class Broken(io.StringIO):
        def write(self, text):
            raise error

    sys.stderr = Broken()


class TestFaults:
    @pytest.mark.parametrize("workers", ["0", "2"])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_to_all_its_processes_saves_and_ends(self, number, workers, whole, tmp_path):
        run = Run(tmp_path, *LONG, "--workers", workers)
        output = run.until(4).send(number).end(128 + number)
        assert (
            "stopping after this step" in output
            and "saved in runs/t/; --resume continues" in output
        )
        done = weights(tmp_path)["step"]
        assert 4 <= done < 20
        if number == signal.SIGINT:
            train_min.main([*RUN, *LONG, "--resume"])
            assert same(weights(whole), weights(tmp_path))

    @pytest.mark.parametrize(
        "error", [BrokenPipeError(), RuntimeError("reentrant call inside <_io.BufferedWriter>")]
    )
    def test_a_signal_saves_the_run_if_its_terminal_is_gone_or_busy(self, error, tmp_path):
        fault = functools.partial(break_stderr, error)
        run = Run(tmp_path, *LONG, fault=fault).until(4).send(signal.SIGTERM)
        run.process.join(120)
        assert run.process.exitcode == 143
        assert weights(tmp_path)["step"] >= 4

    def test_a_second_signal_ends_at_once(self, tmp_path):
        run = Run(tmp_path, *LONG, fault=slow_steps).until(1).send(signal.SIGINT)
        while "again to stop" not in run.output.read_text():
            time.sleep(0.01)
        began = time.monotonic()
        run.send(signal.SIGINT).end(130)
        assert time.monotonic() - began < 2
        assert not Path("runs/t/checkpoint.pt").exists()

    def test_the_death_of_a_worker_is_reported_and_the_run_can_be_resumed(self, whole, tmp_path):
        run = Run(tmp_path, *LONG, "--workers", "1").until(5)
        children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
        if not children.exists():
            pytest.skip("needs Linux's /proc to find the worker")
        for number in children.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        output = run.end(1, quiet=False)  # other workers may complain
        assert "error: DataLoader worker" in output
        assert "--resume continues the run" in output
        train_min.main([*RUN, *LONG, "--resume"])
        assert same(weights(whole), weights(tmp_path))

    @pytest.mark.parametrize("how", ["a small disk", "a limit on files"])
    def test_a_full_disk_while_saving_leaves_the_checkpoint_before(self, how, whole, tmp_path):
        size = (whole / "runs/t/checkpoint.pt").stat().st_size
        Path("runs").mkdir()
        if how == "a small disk":
            limit = f"size={int(2.5 * size) // 4096 * 4096}"
            mount = ["mount", "-t", "tmpfs", "-o", limit, "none", str(tmp_path / "runs")]
            if subprocess.run(mount, capture_output=True).returncode:
                pytest.skip("needs the right to mount a small disk")
        try:
            fault = None if how == "a small disk" else small_files
            output = Run(tmp_path, *LONG, fault=fault).end(1)
            reason = "No space left on device" if fault is None else "File too large"
            message = (
                f"checkpoint.new.pt: cannot be written ({reason}); the file is as it was before"
            )
            assert f"train_min.py: error: runs/t/{message}" in output
            assert {"checkpoint.pt", "run.json"} <= {p.name for p in Path("runs/t").iterdir()}
            assert not list(Path("runs/t").glob("*.part"))
            step = weights(tmp_path)["step"]
            assert step in (2, 4)  # the last one whole
            if fault is not None:
                train_min.main([*RUN, *LONG, "--resume"])
                assert same(weights(whole), weights(tmp_path))
        finally:
            if how == "a small disk":
                subprocess.run(["umount", str(tmp_path / "runs")], check=True)

    def test_a_folder_that_cannot_be_written_is_one_line(self, tmp_path):
        Path("runs").mkdir(mode=0o555)
        tmp_path.chmod(0o777)
        output = Run(tmp_path, *LONG, fault=nobody if os.geteuid() == 0 else None).end(1)
        assert "runs/t: Permission denied" in output and "error:" in output

    def test_a_folder_that_exists_is_never_replaced_unasked(self, whole, tmp_path, capsys):
        Path("runs/t").mkdir(parents=True)
        Path("runs/t/thesis.txt").write_text("mine")
        message = (
            "runs/t: expected a new or empty folder, got files there; use --resume, --overwrite or"
        )
        with pytest.raises(SystemExit, match=message):
            train_min.main([*RUN, *LONG])
        with pytest.raises(SystemExit, match=message):  # before the data are looked for
            train_min.main([*RUN, "--data", "jsonl:nowhere"])
        train_min.main([*RUN, "--samples", "8", "--overwrite"])
        assert Path("runs/t/thesis.txt").read_text() == "mine"
        train_min.main([*RUN, *LONG, "--overwrite"])
        assert same(weights(whole), weights(tmp_path))
        assert "resumed" not in capsys.readouterr().out

    def test_overwrite_does_not_remove_what_the_new_run_starts_from(self, tmp_path):
        Path("runs/t").mkdir(parents=True)
        Path("runs/t/checkpoint.pt").write_text("hours of work")
        message = "--init: expected a file that --overwrite does not remove, got runs/t/checkpoint"
        with pytest.raises(SystemExit, match=message):
            train_min.main([*RUN, "--overwrite", "--init", "runs/t/checkpoint.pt"])
        assert Path("runs/t/checkpoint.pt").read_text() == "hours of work"

    def test_a_picture_broken_in_the_middle_is_replaced_by_the_next(self, tmp_path, capsys):
        write_synthtext("st", 100, seed=0, size=64)
        source = readers.SynthText("st")
        half = Pretraining(source, vlpt.Alphabet(), 64, 0)
        Path("st", source.name(half.index(20))).write_bytes(b"broken")
        item = data.SkipUnreadable(half, attempts=2)[20]
        assert len(item) == 2 and "not a readable picture" in item[0]
        assert item[1][0].equal(half[21][0])
        train_min.main([*RUN, "--data", "synthtext:st", "--samples", "80"])
        out = capsys.readouterr().out
        assert "skipped 1 times: " in out and " skipped=1 " in out
        rows = [json.loads(line) for line in Path("runs/t/log.jsonl").read_text().splitlines()]
        assert [row["samples"] for row in rows if row["kind"] == "skipped"] == [24]


def slow_steps():
    step = train_min.train_step

    def slow(*args):
        if Path("runs/t/log.jsonl").stat().st_size:
            time.sleep(3)
        return step(*args)

    train_min.train_step = slow


def small_files():
    """From the second checkpoint on, files may be no larger than half of it."""
    save = runs.save_checkpoint

    def limited(out, *rest):
        if (out / "checkpoint.pt").exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        save(out, *rest)

    runs.save_checkpoint = limited


def nobody():
    os.setgid(65534)
    os.setuid(65534)


class TestNumerics:
    @pytest.mark.parametrize("bad_step", [3, 4, 8])  # checkpoints are after every step; 8 is last
    @pytest.mark.parametrize("what", ["loss", "gradient"])
    def test_what_is_not_finite_stops_and_no_checkpoint_holds_it(self, bad_step, what, monkeypatch):
        count, backward = [0], torch.Tensor.backward

        def spoilt(loss, *args):
            count[0] += 1
            if count[0] == bad_step and what == "loss":
                loss.data.fill_(float("nan"))
            backward(loss, *args)
            if count[0] == bad_step and what == "gradient":
                for p in optimized[0].param_groups[0]["params"]:
                    p.grad.fill_(float("inf"))

        optimized, make = [], train_min.make_optimizer
        monkeypatch.setattr(
            train_min, "make_optimizer", lambda *a: optimized.append(make(*a)) or optimized[0]
        )
        monkeypatch.setattr(torch.Tensor, "backward", spoilt)
        with pytest.raises(SystemExit) as stop:
            train_min.main([*RUN, "--samples", "64"])
        message = str(stop.value)
        done = 8 * bad_step
        assert "error: training: expected finite losses and gradients, got L_cls " in message
        assert f" after {done} pictures" in message
        term = "L_bc nan" if what == "loss" else "norm "
        assert term in message and f"step {bad_step} with the pictures picture " in message
        assert message.count(" of seed 0") == 8 and "a smaller --lr may help" in message
        checkpoint = weights(Path())
        assert checkpoint["step"] == bad_step - 1
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
        assert not Path("runs/t/backbone.safetensors").exists()

    def test_numbers_are_logged_one_step_late_and_all_before_a_checkpoint(self, make_log):
        log = make_log()
        log.step(8, torch.arange(5.0))
        assert log.rows == []
        log.step(16, torch.arange(5.0))
        assert [row["samples"] for row in log.rows] == [8]
        log.flush()
        assert [row["samples"] for row in log.rows] == [8, 16]
        log.flush()  # nothing is left
        assert len(log.rows) == 2

    def test_means_after_a_resumption_are_since_the_last_evaluation(self, make_log, tmp_path):
        result = dict.fromkeys(("acc_right", "acc_other", "i2t", "t2i"), 0.5)
        rows = [
            dict(kind="step", samples=8 * k, char=k, contrastive=1, scale=1, acc=0) for k in (1, 2)
        ]
        rows.insert(1, {"kind": "evaluation", "samples": 8, **result})
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        log = make_log(done=2)
        log.step(24, torch.tensor([4.0, 1, 1, 0, 1]))
        log.flush()
        assert log.evaluation(24, result).split()[:2] == ["24", "3.000"]  # of the steps 2 and 3

    def test_long_lists_of_pictures_are_cut(self, make_log):
        log, source = make_log(), data_stub.Rendered(64, 20, scene=data_stub.DIGITS)
        log.data = Pretraining(source, vlpt.Alphabet("0123456789"), 64, 0)
        log.batch = 10
        log.step(20, torch.full((5,), math.nan))
        with pytest.raises(FloatingPointError, match=r"step 2 with .*, and 2 more; the last"):
            log.flush()


def ascii_terminal():
    """The process's output has an encoding that cannot show every character."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


class TestPrinting:
    def test_a_terminal_of_another_encoding_does_not_end_a_run(self, tmp_path):
        """A skipped picture whose name it cannot show; at the end, and in each evaluation."""
        for k in range(60):
            Image.new("RGB", (64, 64), (4 * k, 99, 0)).save(f"é京{k}.png")
        Path("é京7.png").write_bytes(b"broken")
        lines = [{"image": f"é京{k}.png", "words": ["12"]} for k in range(60)]
        Path("d.jsonl").write_text("\n".join(map(json.dumps, lines)))
        options = ["--data", "jsonl:d.jsonl", "--samples", "56"]
        output = Run(tmp_path, *options, fault=ascii_terminal).end(0)
        assert "skipped 1 times: \\xe9\\u4eac7.png" in output
        assert output.splitlines()[-1].startswith("RESULT ")

    def test_an_output_that_is_closed_does_not_end_a_run(self, monkeypatch):
        def broken(*_, **__):
            raise BrokenPipeError

        monkeypatch.setattr("builtins.print", broken)
        train_min.main([*RUN, "--samples", "16"])
        assert Path("runs/t/backbone.safetensors").exists()


class TestManyProcesses:
    @pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
    def test_loss_gradient_and_evaluation_are_those_of_one_process(self, count, tmp_path):
        out = torchrun(count, str(ROOT / "tests" / "of_many.py"))
        assert out.returncode == 0, out.stderr
        found = json.loads(Path("of_many.json").read_text())
        assert found["evaluation"] and len(found["cases"]) == 6
        for case, figures in found["cases"].items():
            assert figures["loss"] < 1e-12 and figures["gradient"] < 1e-12, (case, figures)
            assert figures["largest"] > 1e-3  # the gradient that they agree on is one

    def test_any_launcher_that_sets_torch_s_variables_is_joined(self, tmp_path):
        """As a wrapper around srun or mpirun sets them, without torchrun."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        members = []
        for k in range(2):
            folder = tmp_path / str(k)  # its own, because its output goes to a file there
            folder.mkdir()
            launched = functools.partial(set_variables, common | {"RANK": str(k)})
            members.append(Run(folder, "--samples", "16", fault=launched))
        first, second = (member.end(0) for member in members)
        assert "RESULT" in first and "in each of 2 processes" in first
        assert "RESULT" not in second and not Path("1/runs").exists()

    @pytest.mark.parametrize(
        ("variables", "missing"),
        [
            ({"WORLD_SIZE": "2"}, "got no RANK and no MASTER_ADDR and no MASTER_PORT"),
            ({"RANK": "1"}, "got no WORLD_SIZE and no"),
            ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, "got no MASTER_PORT"),
        ],
    )
    def test_variables_of_a_launcher_that_are_not_whole_are_named(
        self, variables, missing, monkeypatch
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit, match=f"environment: expected RANK, WORLD.*{missing}"):
            train_min.main([*RUN])
        assert not Path("runs").exists()

    @pytest.mark.slow
    def test_two_processes_train_and_one_of_them_writes(self):
        out = torchrun(2, str(ROOT / "train_min.py"), *RUN, "--samples", "80")
        assert out.returncode == 0, out.stderr
        assert out.stdout.count("RESULT") == 1 and "in each of 2 processes" in out.stdout
        assert json.loads(Path("runs/t/run.json").read_text())["processes"] == 2
        rows = [json.loads(line) for line in Path("runs/t/log.jsonl").read_text().splitlines()]
        assert [r["samples"] for r in rows if r["kind"] == "step"] == list(range(8, 81, 8))
        assert [r["pictures"] for r in rows if r["kind"] == "evaluation"] == [8] * 10
        first = weights(Path())
        out = torchrun(2, str(ROOT / "train_min.py"), "--name", "t", "--resume", "previous")
        assert out.returncode == 0 and same(first, weights(Path())), out.stderr

    @pytest.mark.slow
    def test_a_process_that_fails_ends_all_with_its_error(self):
        write_synthtext("st", 40, seed=0, size=64)
        for k in range(0, 36, 3):
            Path(f"st/1/picture_{k}.jpg").unlink()
        began = time.monotonic()
        out = torchrun(
            2, str(ROOT / "train_min.py"), *RUN, "--samples", "800", "--data", "synthtext:st"
        )
        assert out.returncode != 0 and "of the pictures to be unreadable" in out.stderr
        assert "process 0: error" in out.stderr or "process 1: error" in out.stderr
        assert time.monotonic() - began < 90

    @pytest.mark.slow
    def test_a_signal_to_each_of_them_waits_until_the_first_has_saved(self, tmp_path):
        """Or torchrun would end it, as the others are gone."""
        script = tmp_path / "slow.py"
        script.write_text(
            "import os, sys, time\n"
            "import train_min, vlpt\n"
            "open('pid' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
            "write = vlpt.write_atomically\n"
            "def slow(path, content):\n"
            "    time.sleep(4 * (path.name == 'checkpoint.new.pt'))\n"
            "    write(path, content)\n"
            "vlpt.write_atomically = slow\n"
            "train_min.main()\n"
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", str(script), *RUN, "--samples", "4000"]
        with open("output.txt", "w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        log = Path("runs/t/log.jsonl")
        while not log.exists() or log.read_text().count('"step"') < 2:
            assert process.poll() is None, Path("output.txt").read_text()
            time.sleep(0.1)
        for number in (0, 1):
            os.kill(int(Path(f"pid{number}").read_text()), signal.SIGTERM)
        assert process.wait(120) != 0
        assert weights(tmp_path)["step"] >= 2

    def test_a_batch_that_cannot_be_shared_is_one_line(self, monkeypatch):
        monkeypatch.setattr(runs, "world_size", lambda: 3)
        with pytest.raises(
            SystemExit, match="--batch: expected a multiple of the 3 processes, got 8"
        ):
            train_min.main([*RUN])


def set_variables(variables):
    """What a launcher does, here inside of the process."""
    os.environ.update(variables)


def torchrun(count, *argv):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


OPTIONS = [
    action.option_strings[-1]
    for action in train_min.make_parser()._actions
    if action.option_strings[-1] != "--help"
]
WORDS = st.one_of(
    st.sampled_from(
        [
            *OPTIONS,
            "tiny",
            "synth",
            "jsonl:x",
            "synthtext:",
            "icdar2015:.",
            "nan",
            "0",
            "-1",
            "1e400",
            "8",
            "99999999999999999999",
            "ascii",
            "..",
            "",
            "é\0",
        ]
    ),
    st.text(max_size=5),
    st.integers().map(str),
    st.floats().map(str),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(WORDS, st.tuples(st.sampled_from(OPTIONS), WORDS)), max_size=5))
def test_no_command_line_gives_a_stack_trace(words):
    flat = [w for word in words for w in ([word] if isinstance(word, str) else word)]

    def never(*_):
        raise ValueError("would train")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "open_folder", never)
        with pytest.raises(SystemExit) as stop:
            train_min.main(flat)
    assert stop.value.code == 0 or stop.value.code == 2 or "error: " in str(stop.value.code)
