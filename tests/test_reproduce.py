"""Tests of experiments/reproduce.py: the runs of a table, what they share, what is reported."""

import dataclasses
import json
import re
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel

import data_stub
import train_min
import vlpt
from experiments import reproduce
from experiments.fake_lsvt import fake_lsvt
from readers import LSVT
from training.dataset import Pretraining

SMOKE = reproduce.SCALES["smoke"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with a few photographs in which table a was run at the scale that means nothing."""
    root = tmp_path_factory.mktemp("reproduce")
    images = root / "ic/ch4_training_images"
    labels = root / "ic/ch4_training_localization_transcription_gt"
    images.mkdir(parents=True)
    labels.mkdir()
    for n in (*range(1, 18), 801, 802, 803):
        Image.new("RGB", (96, 64), (5 * n % 256, 80, 90)).save(images / f"img_{n}.jpg")
        (labels / f"gt_img_{n}.txt").write_text("10,10,50,10,50,30,10,30,word\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("training.report.draw_all", lambda *_: None)
        patch.setitem(reproduce.PATHS, "icdar2015", "ic")
        reproduce.main(["a", "--scale", "smoke"])
    return root


@pytest.fixture
def inside(ran, monkeypatch):
    monkeypatch.chdir(ran)
    monkeypatch.setitem(reproduce.PATHS, "icdar2015", "ic")
    return ran / "runs/reproduce/smoke"


class TestJobs:
    @pytest.mark.parametrize(
        ("table", "scale"),
        [*product(reproduce.TABLES, reproduce.SCALES), *product(reproduce.BENCHMARKS, ["gpu"])],
    )
    def test_each_has_a_name_of_its_own_and_starts_from_an_earlier_one(self, table, scale):
        jobs = reproduce.list_jobs(table, reproduce.SCALES[scale])
        names = [job.name for job in jobs]
        assert len(set(names)) == len(names) and not any(set(name) & set(" /%") for name in names)
        for k, job in enumerate(jobs):
            assert job.init == "" or job.init in names[:k]
            json.dumps(dataclasses.asdict(job))

    def test_the_two_arms_differ_in_their_start_alone(self):
        jobs = [
            job
            for job in reproduce.list_jobs("a", reproduce.SCALES["cpu"])
            if job.kind == "finetune"
        ]
        arms = [
            [dataclasses.replace(j, name="", arm="", init="") for j in jobs if j.arm == arm]
            for arm in reproduce.ARMS
        ]
        assert arms[0] == arms[1] and len(arms[0]) == 3 * 5
        assert {job.init for job in jobs if job.arm == "scratch"} == {""}
        assert {job.subset for job in jobs if not job.rendered} == {100, 200, None}
        assert len({job.seed for job in jobs}) >= 3

    def test_each_ablation_changes_what_its_name_says(self):
        jobs = {j.label: j for j in reproduce.list_jobs("b", SMOKE) if j.stages == "short"}
        configs = {label: vlpt.Config(**job.fields) for label, job in jobs.items()}
        assert configs["all"] == vlpt.Config()
        assert (configs["CAE"].decoder, configs["CAE"].contrastive) == ("none", False)
        assert (configs["CAE + BCL"].decoder, configs["CAE + BCL"].contrastive) == ("none", True)
        assert not configs["CAE + VTD"].contrastive
        assert configs["sentence encoder"].text_encoder == "sentence"

    def test_the_shares_of_table_c_are_different_words(self, monkeypatch):
        monkeypatch.setattr(data_stub, "render", cache(data_stub.render))  # 20 pictures, 640 times
        jobs = [
            j for j in reproduce.list_jobs("c", reproduce.SCALES["cpu"]) if j.stages == "shares"
        ]
        assert [j.annotated for j in jobs] == [0.25, 0.5, 0.75, 1] and {j.init for j in jobs} == {
            "short-all"
        }
        config, words = reproduce.SCALES["cpu"].shares[-1].sources[0], []
        for job in jobs:
            data = reproduce.open_pretraining(
                config, "train", reproduce.ALNUM, 20, 0, job.annotated
            )
            seen = [set() for _ in range(20)]
            for k in range(160):  # eight times each
                seen[data.index(k)] |= {*map(tuple, data[k][1].T.tolist())} - {(0,) * 25}
            words.append(np.mean([len(one) for one in seen]))
        assert words[0] == 1 and np.diff(words).min() > 0.3 and words[-1] > 3.2

    @pytest.mark.parametrize("name", reproduce.SCALES)
    @pytest.mark.parametrize("table", reproduce.TITLES)
    def test_a_dry_run_prints_them_and_leaves_nothing(
        self, table, name, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        scale = reproduce.SCALES[name]
        if table in reproduce.BENCHMARKS and table not in {scale.task.data, *scale.benchmarks}:
            with pytest.raises(
                SystemExit, match=r"error: table: expected one of a, b, c, d, .*got"
            ):
                reproduce.main([table, "--scale", name, "--dry-run"])
        else:
            jobs = reproduce.list_jobs(table, scale)
            reproduce.main([table, "--scale", name, "--dry-run"])
            lines = capsys.readouterr().out.splitlines()
            assert [line.split()[0] for line in lines[: len(jobs)]] == [job.name for job in jobs]
            assert re.fullmatch(r"about [\d.]+ hours to run, estimated for .*", lines[len(jobs)])
        assert not list(tmp_path.iterdir())

    def test_the_hours_are_those_of_the_measured_speeds(self):
        scale = reproduce.SCALES["gpu"]
        hours = {
            job.name: reproduce.estimate_hours(job, scale)
            for job in reproduce.list_jobs("icdar2015", scale)
        }
        assert hours["pre-all"] == pytest.approx(9375 * 256 / 470 / 3600)
        crops = 48_000 * (640 / 512) ** 2 * 2.3 / 394
        assert hours["icdar2015-scratch-0"] == pytest.approx((crops + 200 * 0.5) / 3600)

    def test_each_data_set_of_the_paper_has_its_table_on_one_gpu(self):
        scale = reproduce.SCALES["gpu"]
        for table in reproduce.BENCHMARKS:
            jobs = reproduce.list_jobs(table, scale)
            scored = [job for job in jobs if job.kind == "finetune"]
            data = {reproduce.task_of(job, scale).data for job in scored}
            assert {name.partition("-")[0] for name in data} == {table}
            assert {job.arm for job in scored} == set(reproduce.ARMS) and len(scored) == 6

    def test_the_big_scale_is_marked_as_not_run(self):
        assert (
            reproduce.SCALES["gpu"].status == "not run" and reproduce.SCALES["gpu"].device == "cuda"
        )


class TestPretraining:
    def test_photographs_come_without_boxes(self, inside, monkeypatch):
        seen = []

        def watch(image, quads, size, rng):
            seen.append(quads)
            return torch.zeros(3, size, size, dtype=torch.uint8), None

        monkeypatch.setattr(reproduce, "augment", watch)
        data = reproduce.open_pretraining(
            reproduce.DataConfig("icdar2015", 64, 2), "train", reproduce.ALNUM, 4, 0
        )
        assert data[0][0].shape == (3, 64, 64) and seen == [None]

    def test_every_source_has_its_own_batch(self, inside, monkeypatch):
        sizes = []

        def watch(model, optimizer, images, ids, targets):
            sizes.append((len(images), images.shape[2]))
            return torch.zeros(5)

        monkeypatch.setattr(train_min, "train_step", watch)
        sources = (
            reproduce.DataConfig("synth", 64, 5, reproduce.one_word),
            reproduce.DataConfig("icdar2015", 32, 2),
        )
        found = reproduce.run_stage(
            vlpt.VLPT(SMOKE.config), reproduce.Stage(sources, 4, 1e-3, 10), 0, 1.0
        )
        assert sizes == [(5, 64), (2, 32)] * 4
        assert found["synth"]["pictures"] == 10 and found["icdar2015"]["pictures"] == 3

    def test_goes_on_from_a_start_that_was_stopped(self, inside, monkeypatch):
        begun = []
        monkeypatch.setattr(train_min, "main", lambda options: begun.append(options))
        job, scale = reproduce.Job("x", "pretrain", "x", stages="stages"), SMOKE
        weights = inside / "start/metrics.json"
        content = weights.read_bytes()
        weights.unlink()
        try:
            reproduce.pretrain(job, scale, reproduce.RUNS / "smoke")
        finally:
            weights.write_bytes(content)
        assert begun == [["--resume", "--name", "reproduce/smoke/start"]]

    def test_an_unreadable_picture_is_replaced_and_counted(self, inside, monkeypatch):
        read = Pretraining.__getitem__
        broken = [0, 3]
        monkeypatch.setattr(
            Pretraining,
            "__getitem__",
            lambda data, k: "cut short" if k in broken and data.augment else read(data, k),
        )
        sizes = []

        def watch(model, optimizer, images, ids, targets):
            sizes.append(len(images))
            return torch.zeros(5)

        monkeypatch.setattr(train_min, "train_step", watch)
        stage = reproduce.Stage((reproduce.DataConfig("icdar2015", 64, 2),), 3, 1e-3, 4)
        found = reproduce.run_stage(vlpt.VLPT(SMOKE.config), stage, 0, 1.0)
        assert found["skipped"] == 2 and sizes == [2, 2, 2]

    def test_a_share_starts_from_the_weights_of_table_b(self, inside, monkeypatch):
        reproduce.main(["c", "--scale", "smoke", "--only", "short-all"])
        started = []
        monkeypatch.setattr(
            reproduce,
            "run_stage",
            lambda model, *_: (
                started.append({k: v.clone() for k, v in model.state_dict().items()}) or {}
            ),
        )
        monkeypatch.setattr(reproduce, "save_checkpoint", lambda *_: None)
        job = next(j for j in reproduce.list_jobs("c", SMOKE) if j.stages == "shares")
        reproduce.pretrain(job, SMOKE, inside)
        weights = vlpt.read_checkpoint(inside / "short-all.pt")["state_dict"]
        assert all(torch.equal(started[0][key], weights[key]) for key in weights)

    def test_goes_on_after_the_last_finished_stage(self, inside, monkeypatch, tmp_path):
        job = reproduce.Job("two", "pretrain", "two", stages="short")
        scale = dataclasses.replace(SMOKE, short=SMOKE.short * 2)
        whole = reproduce.pretrain(job, scale, inside)
        weights = vlpt.read_checkpoint(inside / "two.pt")["state_dict"]
        for path in ("two.pt", "two-1.pt"):
            (inside / path).unlink()
        count = []
        step = reproduce.run_stage
        monkeypatch.setattr(reproduce, "run_stage", lambda *args: count.append(1) or step(*args))
        assert reproduce.pretrain(job, scale, inside) == whole and len(count) == 1
        again = vlpt.read_checkpoint(inside / "two.pt")["state_dict"]
        assert all(torch.equal(weights[key], again[key]) for key in weights)
        config = dataclasses.replace(SMOKE.config, embed_dim=2 * SMOKE.config.embed_dim)
        other_sizes = dataclasses.replace(scale, config=config)
        longer = dataclasses.replace(scale, short=scale.short * 2)  # with the same model
        for changed in (other_sizes, longer):
            message = r"two-0\.pt: expected a model of this version and these sizes, got another"
            with pytest.raises(ValueError, match=message):
                reproduce.pretrain(job, changed, inside)


class TestTableA:
    def test_every_run_has_a_file_and_is_not_run_again(self, inside, monkeypatch, capsys):
        jobs = reproduce.list_jobs("a", SMOKE)
        assert {f"{job.name}.json" for job in jobs} <= {path.name for path in inside.iterdir()}
        for name in ("pretrain", "finetune"):
            monkeypatch.setattr(reproduce, name, None)
        reproduce.main(["a", "--scale", "smoke"])
        out = capsys.readouterr().out
        assert out.count("done before") == len(jobs)
        assert {"a.md", "a.json", "a.png"} <= {path.name for path in inside.iterdir()}
        assert (inside / "a.md").read_text().splitlines()[4:] == out.splitlines()[len(jobs) + 4 :]

    def test_a_run_says_how_it_was_made(self, inside):
        run = json.loads((inside / "a-2-pre-trained-1.json").read_text())
        assert run["job"]["subset"] == 2 and run["job"]["init"] == "pre-all"
        assert run["result"]["pictures"] == 2 and 0 <= run["result"]["f"] <= 1
        assert run["result"]["lr"] in SMOKE.rates and "torch" in run["machine"]

    def test_the_pre_trained_arm_starts_from_the_pre_training(self, inside, monkeypatch):
        started = []

        def stop(model, *_, **options):
            started.append(model.backbone.state_dict())
            raise ValueError("enough")

        monkeypatch.setattr(reproduce, "train_detector", stop)
        weights = vlpt.read_checkpoint(inside / "pre-all.pt")["state_dict"]
        for arm in reproduce.ARMS:
            job = next(
                j for j in reproduce.list_jobs("a", SMOKE) if j.kind == "finetune" and j.arm == arm
            )
            with pytest.raises(ValueError, match="enough"):
                reproduce.finetune(job, SMOKE, inside)
        same = [
            torch.equal(state["conv1.weight"], weights["backbone.conv1.weight"])
            for state in started
        ]
        assert same == [False, True]

    def test_the_learning_rate_of_an_arm_is_its_best(self, inside, tmp_path):
        def tried(job, lr, f):
            run = {"job": dataclasses.asdict(job), "result": {"lr": lr, "f": f}}
            run |= dict.fromkeys(("seconds", "machine", "date"), "")
            run |= {"version": vlpt.__version__, "scale": repr(SMOKE)}
            (tmp_path / f"rate-{job.name}-{lr}.json").write_text(json.dumps(run))

        job = reproduce.Job("scratch", "finetune", "x", "scratch")
        trained = reproduce.Job("pre-trained", "finetune", "x", "pre-trained")
        rendered = reproduce.Job("rendered", "finetune", "x", "scratch", rendered=True, samples=2)
        for one, scores in ((job, (0.2, 0.3)), (trained, (0.9, 0.1)), (rendered, (0.9, 0.8))):
            for lr, f in zip(SMOKE.rates, scores, strict=True):
                tried(one, lr, f)
        assert reproduce.choose_rate(job, SMOKE, tmp_path) == 3e-3
        assert reproduce.choose_rate(trained, SMOKE, tmp_path) == 1e-3
        assert reproduce.choose_rate(rendered, SMOKE, tmp_path) == 1e-3  # not the photographs' rate
        other = dataclasses.replace(rendered, samples=3)
        with pytest.raises(ValueError, match=r"expected the rates \[0\.001, 0\.003\], got \[\]"):
            reproduce.choose_rate(other, SMOKE, tmp_path)
        (tmp_path / "rate-scratch-0.003.json").unlink()  # half of a grid chooses nothing
        with pytest.raises(
            ValueError, match=r"expected the rates \[0\.001, 0\.003\], got \[0\.001\]"
        ):
            reproduce.choose_rate(job, SMOKE, tmp_path)

    def test_rendered_pictures_are_other_ones_than_in_pre_training(self, inside, monkeypatch):
        opened = []

        def open_dataset(spec, *rest):
            opened.append(rest)
            return [None] * rest[2]

        def evaluate(model, source, config):
            opened.append(len(source))
            return {}

        monkeypatch.setattr(reproduce, "open_dataset", open_dataset)
        monkeypatch.setattr(
            reproduce, "TrainingCrops", lambda source, *_: opened.append(len(source))
        )
        monkeypatch.setattr(reproduce, "evaluate_detector", evaluate)
        monkeypatch.setattr(reproduce, "train_detector", lambda *_, **options: [])
        jobs = [j for j in reproduce.list_jobs("a", SMOKE) if j.rendered and j.arm == "scratch"]
        reproduce.finetune(jobs[-1], SMOKE, inside)
        task = SMOKE.rendered
        assert opened[0] == ("train", 64, jobs[-1].samples, 1001)  # pre-training has seeds 0, 1, ..
        assert opened[2:] == [jobs[-1].samples, task.count]
        opened.clear()
        reproduce.finetune(jobs[0], SMOKE, inside)  # to choose a learning rate
        assert opened[0][2] == task.samples + task.count
        assert opened[1:] == [task.samples, task.count]

    def test_rates_are_judged_on_other_photographs(self, inside, monkeypatch):
        seen = {}
        crops = reproduce.TrainingCrops

        def names(source):
            return {source.name(k) for k in range(len(source))}

        def watch_crops(source, *rest):
            seen["train"] = names(source)
            return crops(source, *rest)

        def watch_evaluation(model, source, config):
            seen["test"] = names(source)
            return {}

        monkeypatch.setattr(reproduce, "TrainingCrops", watch_crops)
        monkeypatch.setattr(reproduce, "evaluate_detector", watch_evaluation)
        monkeypatch.setattr(reproduce, "train_detector", lambda *_, **options: [])
        jobs = reproduce.list_jobs("a", SMOKE)
        reproduce.finetune(next(j for j in jobs if j.kind == "rate"), SMOKE, inside)
        assert seen["train"] == {f"img_{n}" for n in range(1, 15)}
        assert seen["test"] <= {f"img_{n}" for n in range(15, 18)}
        on_all = [j for j in jobs if j.kind == "finetune" and j.subset is None and not j.rendered]
        reproduce.finetune(on_all[0], SMOKE, inside)
        assert seen["train"] == {f"img_{n}" for n in range(1, 18)}
        assert seen["test"] <= {f"img_{n}" for n in (801, 802, 803)}

    @pytest.mark.parametrize("content", ["{", "{}", "[]", '{"job": {}}'])
    def test_a_damaged_run_is_named(self, content, inside, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "runs/reproduce/smoke"
        folder.mkdir(parents=True)
        for path in inside.glob("*.json"):
            (folder / path.name).write_text(path.read_text())
        (folder / "a-2-scratch-0.json").write_text(content)
        with pytest.raises(
            SystemExit, match=r"error: .*a-2-scratch-0\.json: expected the record of a run"
        ):
            reproduce.main(["a", "--scale", "smoke"])

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"version": "0.1.0"}, r"expected a run of version .*, got one of a version 0\.1\.0;"),
            (
                {"version": None},
                r"expected a run of version .*, got one of a version that recorded",
            ),
            ({"scale": "Scale()"}, "expected a run with the sizes that SCALES has now, got one"),
        ],
    )
    def test_a_run_of_another_version_or_size_is_refused(
        self, changed, message, inside, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "runs/reproduce/smoke"
        folder.mkdir(parents=True)
        run = json.loads((inside / "a-2-scratch-0.json").read_text()) | changed
        run = {key: value for key, value in run.items() if value is not None}
        (folder / "a-2-scratch-0.json").write_text(json.dumps(run))
        with pytest.raises(SystemExit, match=rf"error: .*a-2-scratch-0\.json: {message}"):
            reproduce.main(["a", "--scale", "smoke", "--dry-run"])

    def test_more_seeds_refuse_no_run(self, inside):
        path = inside / "a-2-scratch-0.json"
        reproduce.read_run(path, dataclasses.replace(SMOKE, seeds=(0, 1, 2)))
        with pytest.raises(ValueError, match="expected a run with the sizes"):
            reproduce.read_run(path, dataclasses.replace(SMOKE, width=16))

    def test_an_interrupted_table_says_how_to_go_on(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(reproduce, "check_data", lambda *_: None)
        monkeypatch.setattr(reproduce, "pretrain", interrupt)
        with pytest.raises(SystemExit) as stop:
            reproduce.main(["a", "--scale", "smoke"])
        count = len(reproduce.list_jobs("a", SMOKE))
        message = f"stopped after 0 of {count} runs; the same command continues from here"
        assert stop.value.code == 130 and message in capsys.readouterr().err


class TestData:
    @pytest.mark.parametrize("name", ["icdar2015", "synthtext", "totaltext"])
    def test_missing_data_is_reported_before_the_training(self, name, monkeypatch, tmp_path):
        sources = () if name == "totaltext" else (reproduce.DataConfig(name, 64, 2),)
        scale = dataclasses.replace(
            SMOKE,
            task=dataclasses.replace(SMOKE.task, data="synth"),
            stages=(reproduce.Stage(sources, 1, 1e-3),),
        )
        if name == "totaltext":
            scale = dataclasses.replace(scale, task=dataclasses.replace(SMOKE.task, data=name))
        monkeypatch.setitem(reproduce.PATHS, name, str(tmp_path / "gone"))
        monkeypatch.setitem(reproduce.SCALES, "smoke", scale)
        monkeypatch.setattr(reproduce, "run_jobs", None)
        with pytest.raises(SystemExit, match=r"error: .*gone"):
            reproduce.main(["a", "--scale", "smoke"])

    def test_all_that_is_missing_is_named_with_what_to_download_and_where_to_put_it(
        self, monkeypatch, tmp_path, capsys
    ):
        monkeypatch.chdir(tmp_path)
        for name in reproduce.PATHS:
            monkeypatch.setitem(reproduce.PATHS, name, f"{name}-gone")
        monkeypatch.setattr(reproduce, "run_jobs", None)
        message = (
            r"error: ctw1500: ctw1500-gone not found; download train_images, .* from https://\S+, "
            r"and set VLPT_CTW1500 to .*; icdar2015: .*rrc\.cvc\.uab\.es.* VLPT_ICDAR2015"
        )
        with pytest.raises(SystemExit, match=message):
            reproduce.main(["ctw1500", "--scale", "smoke"])
        reproduce.main(["lsvt", "--scale", "gpu", "--dry-run"])
        missing = [line for line in capsys.readouterr().out.splitlines() if "missing" in line]
        assert len(missing) == 1 and missing[0].startswith("missing: lsvt: lsvt-gone not found")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
    def test_the_big_scale_wants_a_gpu(self):
        with pytest.raises(SystemExit, match="--scale: expected cpu, got one that needs a GPU"):
            reproduce.main(["a", "--scale", "gpu"])


class TestOtherTables:
    @pytest.mark.parametrize("table", ["b", "c", "d"])
    def test_run_and_leave_their_files(self, table, inside, monkeypatch):
        one_seed = dataclasses.replace(SMOKE, seeds=(0,))
        monkeypatch.setitem(reproduce.SCALES, "smoke", one_seed)
        reproduce.main([table, "--scale", "smoke"])
        rows = json.loads((inside / f"{table}.json").read_text())
        labels = {
            "b": ["CAE", "CAE + BCL", "CAE + VTD", "all", "sentence encoder"],
            "c": ["25%", "50%", "75%", "100%"],
            "d": ["all", "sentence encoder", "table a's pre-training", "untrained"],
        }
        assert [row["label"] for row in rows] == labels[table]
        assert all(row["values"] for row in rows)
        if table == "d":
            assert all(0 < row["area"] < 100 for row in rows)
            names = {
                f"d-{name}.png" for name in ("short-all", "short-sentenceencoder", "untrained")
            }
            assert names <= {path.name for path in inside.iterdir()}

    @pytest.mark.usefixtures("no_figures")
    def test_lsvt_is_pre_trained_on_its_weak_half_with_its_characters(
        self, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        fake_lsvt(tmp_path / "LSVT", 40, 60)
        monkeypatch.setitem(reproduce.PATHS, "lsvt", "LSVT")
        reproduce.main(["lsvt", "--scale", "smoke"])
        folder = tmp_path / "runs/reproduce/smoke"
        (row,) = json.loads((folder / "lsvt.json").read_text())
        assert {arm: len(values) for arm, values in row["values"].items()} == {
            "scratch": 2,
            "pre-trained": 2,
        }
        config = vlpt.read_checkpoint(folder / "pre-lsvt.pt")["config"]
        weak = LSVT("LSVT/train_weak_labels.json")
        assert set(config["alphabet"]) == set(weak.characters())
        assert "Published for PSENet: 77.1" in (folder / "lsvt.md").read_text()
        assert (folder / "lsvt.png").is_file()

    def test_attention_that_is_spread_evenly_is_the_area(self, inside, monkeypatch):
        even = torch.full((1, 4, 4), 1 / 16)
        monkeypatch.setattr(vlpt.VLPT, "attention_maps", lambda *_: (even, None))
        job = reproduce.Job("even", "attention", "even", "even")
        result = reproduce.measure_attention(job, SMOKE, inside)
        assert result["share"] == pytest.approx(result["area"]) and 0 < result["area"] < 1


class TestReports:
    ROWS = [  # noqa: RUF012
        {
            "label": "100 photographs",
            "paper": None,
            "values": {
                "scratch": {"0": 10.0, "1": 12.0, "2": 14.0},
                "pre-trained": {"0": 20.0, "1": 23.0, "2": 23.0},
            },
        },
        {"label": "all photographs", "paper": None, "values": {"scratch": {"0": 10.0}}},
    ]

    def test_mean_deviation_and_paired_test(self):
        p = ttest_rel([20, 23, 23], [10, 12, 14]).pvalue
        assert reproduce.to_markdown("a", self.ROWS)[2:] == [
            f"| 100 photographs | 12.0 ± 2.0 | 22.0 ± 1.7 | +10.0 ± 1.0 (n = 3, p = {p:.2g}) |",
            "| all photographs | 10.0 (1 seed) | not run | not run |",
        ]

    def test_seeds_are_paired_by_their_number(self):
        row = {"values": {"scratch": {"0": 1.0, "1": 5.0}, "pre-trained": {"1": 7.0, "2": 9.0}}}
        assert reproduce.compare_arms(row) == "+2.0 (1 seed)"

    def test_the_numbers_of_the_paper_stand_beside(self):
        rows = [{"label": "all", "paper": 85.5, "values": {"pre-trained": {"0": 30.0, "1": 32.0}}}]
        assert reproduce.to_markdown("b", rows)[-1] == "| all | 31.0 ± 1.4 | 85.5 |"

    def test_summary_holds_what_the_runs_left(self, inside, monkeypatch, tmp_path):
        monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.json")
        (inside / "lsvt.json").write_text("[]")  # the report of a table, and no run
        try:
            reproduce.main(["summary", "--scale", "smoke"])
        finally:
            (inside / "lsvt.json").unlink()
        found = json.loads((tmp_path / "results.json").read_text())
        f = json.loads((inside / "a-2-scratch-0.json").read_text())["result"]["f"]
        assert found["tables"]["a"][0]["values"]["scratch"]["0"] == round(100 * f, 2)
        assert "pre-all" in found["pretraining"] and found["scale"] == "smoke"

    def test_a_summary_that_would_lose_values_is_refused(self, inside, monkeypatch, tmp_path):
        monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.json")
        rows = [{"label": "2 photographs", "values": {"scratch": {"0": 1.0, "7": 2.0}}}]
        results = {"scale": "smoke", "tables": {"a": rows}}
        content = json.dumps(results)
        (tmp_path / "results.json").write_text(content)
        message = "all values of table a in .*, got none for 2 photographs, scratch, seed 7;"
        with pytest.raises(SystemExit, match=message):
            reproduce.main(["summary", "--scale", "smoke"])
        assert (tmp_path / "results.json").read_text() == content
        del rows[0]["values"]["scratch"]["7"]
        (tmp_path / "results.json").write_text(json.dumps(results))
        reproduce.main(["summary", "--scale", "smoke"])
        content = json.dumps(results | {"scale": "cpu"})
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(SystemExit, match="expected results of the scale smoke, got those of c"):
            reproduce.main(["summary", "--scale", "smoke"])
        assert (tmp_path / "results.json").read_text() == content

    @pytest.mark.parametrize("option", [["--dry-run"], ["--only", "a"]])
    def test_a_summary_has_no_options(self, option, capsys):
        with pytest.raises(SystemExit):
            reproduce.main(["summary", *option])
        message = "error: --dry-run, --only: expected them with a table, got summary"
        assert message in capsys.readouterr().err

    def test_without_runs_there_is_no_summary(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match="expected runs, got none"):
            reproduce.main(["summary", "--scale", "smoke"])

    def test_a_loss_that_is_not_finite_ends_the_run(self, inside, monkeypatch):
        monkeypatch.setattr(train_min, "train_step", lambda *_: torch.tensor([1.0, float("nan")]))
        with pytest.raises(FloatingPointError, match="step 0 is not finite"):
            reproduce.run_stage(vlpt.VLPT(SMOKE.config), SMOKE.short[0], 0, 1.0)


class TestDocs:
    def test_the_hours_of_the_big_scale_are_those_of_a_dry_run(self, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        page = (reproduce.ROOT / "docs/detectors.md").read_text("utf-8")
        rows = re.findall(r"reproduce (\w+) --scale gpu` \|.* ([\d.]+) \|$", page, re.MULTILINE)
        assert {table for table, _ in rows} == {*reproduce.BENCHMARKS, "b", "c"}
        for table, hours in rows:
            reproduce.main([table, "--scale", "gpu", "--dry-run"])
            assert f"about {hours} hours to run" in capsys.readouterr().out

    def test_the_published_results_are_those_of_the_cpu_scale(self):
        results = json.loads(reproduce.RESULTS.read_text())
        assert results["scale"] == "cpu" and set(results["tables"]) == set(reproduce.TABLES)
        numbers = [
            value
            for row in results["tables"]["a"]
            for values in row["values"].values()
            for value in values.values()
        ]
        assert np.isfinite(numbers).all() and min(numbers) >= 0 and max(numbers) <= 100


class TestCommand:
    def test_help_says_where_to_run_it(self, capsys):
        with pytest.raises(SystemExit):
            reproduce.main(["--help"])
        out = capsys.readouterr().out
        assert "python -m experiments.reproduce a" in out
        assert "from the clone of the repository" in out

    def test_a_wrong_choice_is_one_line(self, capsys):
        with pytest.raises(SystemExit) as stop:
            reproduce.main(["a", "--scale", "huge"])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        assert error.startswith("python -m experiments.reproduce: error: --scale: ")

    def test_a_run_that_no_table_has_is_one_line(self):
        message = "error: --only: expected a part of a run's name .*, got 'nothing'"
        with pytest.raises(SystemExit, match=message):
            reproduce.main(["a", "--only", "nothing", "--dry-run"])
