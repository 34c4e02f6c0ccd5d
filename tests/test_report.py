"""Tests of training/report.py: what is drawn, what is read, what the page holds."""

import copy
import errno
import http.server
import json
import math
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from markupsafe import escape
from matplotlib import font_manager
from PIL import Image

import data_stub
import readers
import vlpt
from training import gallery, report
from training.dataset import Pretraining

STEPS = [
    {
        "samples": 8 * k,
        "char": 2.5 - k / 90,
        "contrastive": 8 - k / 30,
        "scale": 14.3,
        "acc": k / 99,
    }
    for k in range(1, 99)
]
EVALUATIONS = [
    {
        "samples": 98 * k,
        "acc_right": k / 10,
        "acc_other": 0.1,
        "gain": k / 10 - 0.1,
        "i2t": k / 99,
        "t2i": k / 80,
        "pictures": 16,
        "characters": 20,
        "unreadable": 0,
        "img_s": 170.0,
        "wait": 0.01,
    }
    for k in range(1, 9)
]
RESULT = EVALUATIONS[-1] | {"skipped": 0, "seconds": 77}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(autouse=True)
def no_warning_passes():
    """A glyph that is missing, a layout that fails and the like are warnings: here, errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def write_run(folder: Path, *, ended: bool = True, log: str | None = None, **args: object) -> Path:
    folder.mkdir(parents=True)
    args = {"data": "synth", "preset": "tiny", "name": folder.name, "lr": 1e-3, "init": None} | args
    facts = {
        "args": args,
        "config": {"alphabet": "0123456789", "image_size": 64},
        "parameters": 2289431,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "commit": None,
        "processes": 1,
        "device": "cpu",
        "data": {"train": "9 pictures", "heldout": "4"},
        "chance": [math.log(13), 2 * math.log(64)],
    }
    (folder / "run.json").write_text(json.dumps(facts))
    rows = [{"kind": "step"} | row for row in STEPS]
    rows += [{"kind": "evaluation"} | row for row in EVALUATIONS]
    if log is None:
        log = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "log.jsonl").write_text(log)
    if ended:
        metrics = {"result": RESULT, "evaluations": EVALUATIONS}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    Image.new("RGB", (640, 480), "teal").save(folder / "attention.png")
    return folder


@pytest.fixture(scope="module")
def digits() -> tuple[vlpt.VLPT, Pretraining]:
    torch.manual_seed(0)
    source = readers.open_source("synth", "heldout", 64, 16, 0, data_stub.DIGITS)
    return vlpt.VLPT(vlpt.TINY), Pretraining(source, vlpt.Alphabet("0123456789"), 64, 0)


def photographs(folder: Path, words: list[str], **changes: object):
    """A small model and held-out pictures of grey, each with one of the words."""
    lines = []
    for k, word in enumerate([*words, words[-1]]):  # the last picture is the other split's
        Image.new("RGB", (64, 64), (20 * k, 99, 0)).save(folder / f"{k}.png")
        lines.append(json.dumps({"image": f"{k}.png", "words": [word]}))
    (folder / "d.jsonl").write_text("\n".join(lines))
    chars = "".join(sorted(set("".join(words))))
    size = {"image_size": 64, "backbone": "clip_resnet", "embed_dim": 64, "decoder_layers": 1}
    size |= {"backbone_size": {"width": 16, "layers": (1,)}, "text_layers": 1}
    model = vlpt.VLPT(vlpt.Config(alphabet=chars, **size | changes))
    source = readers.JsonLines(folder / "d.jsonl")
    return model, Pretraining(source, vlpt.Alphabet(chars), 64, 0)


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


class TestCurves:
    def test_smoothing_is_the_mean_over_what_there_is_of_the_window(self):
        values = np.array([1.0, 2.0, 6.0, 10.0])
        got = report.smooth(values, 3)
        assert got.tolist() == pytest.approx([1.5, 3.0, 6.0, 8.0])
        assert report.smooth(values, 1).tolist() == [1.0, 2.0, 6.0, 10.0]
        assert len(report.smooth(np.array([]), 1)) == 0

    def test_every_panel_has_its_curves_and_the_line_of_chance(self):
        run = report.Run(Path(), {"chance": (2.0, 8.0)}, STEPS, EVALUATIONS, {}, {}, [])
        losses, contrastive, read, found = report.plot_curves([("", run)]).axes
        assert [len(axes.lines) for axes in (losses, contrastive, read, found)] == [3, 3, 3, 3]
        raw, smooth, chance = losses.lines
        assert raw.get_ydata().tolist() == [row["char"] for row in STEPS]
        assert raw.get_alpha() < 0.5 and smooth.get_alpha() is None
        assert list(chance.get_ydata()) == [2.0, 2.0]
        assert [axes.texts[0].get_text() for axes in (losses, contrastive, read, found)] == [
            "chance, 2.00",
            "chance, 2 ln B = 8.00",
            "chance, 0.135",
            "chance, 0.0625",
        ]
        assert read.lines[0].get_ydata().tolist() == [row["acc_right"] for row in EVALUATIONS]
        assert [text.get_text() for text in read.get_legend().get_texts()] == [
            "with the correct image",
            "with another image",
        ]

    @pytest.mark.parametrize("steps", [STEPS, STEPS[:1], []])
    @pytest.mark.parametrize("evaluations", [EVALUATIONS, []])
    def test_a_picture_however_much_there_is(self, steps, evaluations, tmp_path):
        run = report.Run(Path(), {"chance": (2.6, 8.3)}, steps, evaluations, {}, {}, [])
        report.plot_curves([("", run)]).savefig(tmp_path / "loss.png", dpi=110)
        with Image.open(tmp_path / "loss.png") as image:
            assert image.width > 1000 and np.asarray(image.convert("L")).std() > 10


class TestAttention:
    def test_a_row_a_picture_and_a_column_a_letter(self, digits):
        model, heldout = digits
        model.train()
        state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
        figure = gallery.attention_figure(model, heldout, pictures=3)
        # Drawing leaves the model and the random state unchanged.
        assert model.training and torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
        words = [vlpt.Alphabet("0123456789").decode(heldout[k][1])[0] for k in range(3)]
        want = []
        for word in words:
            want += [
                word,
                "image feature",
                *(word[:j] + "_" + word[j + 1 :] for j in range(len(word))),
            ]
        assert [title.split("\n")[0] for title in titles(figure)] == want

    def test_the_heat_is_the_model_s_attention_from_the_hidden_letter(self, digits):
        model, heldout = digits
        figure = gallery.attention_figure(model, heldout, pictures=1)
        pixels, ids, _ = heldout[0]
        for j, axes in enumerate([a for a in figure.axes if "read" in a.get_title()]):
            hidden = ids.clone()
            hidden[j, 0] = vlpt.MASK
            images = vlpt.normalize(pixels[None])
            model.eval()
            _, maps = model.attention_maps(images, hidden[None])
            drawn = axes.images[-1].get_array()
            want = maps[0, j, 0] / maps[0, j, 0].max()
            np.testing.assert_allclose(drawn, want.numpy(), atol=1e-5)
            guess = model(images, hidden[None]).logits[0, j, 0].argmax().item()
            char = vlpt.Alphabet("0123456789").decode(torch.tensor([[guess]]))[0] or "nothing"
            right = guess == ids[j, 0]
            assert axes.get_title().endswith(f"read {char} {'✓' if right else '✗'}")

    def test_titles_never_run_into_each_other(self, tmp_path):
        words = ["W" * 25, "wwwwwwwwwwwwwwwwwwwwwwwww", "MMMMMMMMMM", "a", "W@W@W@W@W@W"]
        figure = gallery.attention_figure(*photographs(tmp_path, words))
        figure.draw_without_rendering()
        boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
        boxes.append(figure._suptitle.get_window_extent())
        assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
        assert all(a.x0 >= 0 and a.x1 <= figure.bbox.x1 for a in boxes)
        assert min(axes.title.get_fontsize() for axes in figure.axes if axes.get_title()) > 5

    def test_letters_that_no_font_has_are_named_by_number(self, tmp_path, monkeypatch):
        """Where nothing but matplotlib's own fonts is installed."""
        own = [font for font in font_manager.fontManager.ttflist if "matplotlib" in font.fname]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
        figure = gallery.attention_figure(
            *photographs(tmp_path, ["京都", "한국어", "Émile", "a\u200bb"])
        )
        figure.savefig(tmp_path / "a.png")
        lines = "\n".join(titles(figure)).splitlines()
        assert "U+4EAC  U+90FD" in lines and "1 of 2, U+4EAC" in lines and "Émile" in lines
        assert "_mile" in lines and any("U+200B" in line for line in lines)

    def test_a_font_of_this_machine_that_has_the_letters_is_used(self, monkeypatch):
        held = {
            "DejaVu Sans": {65},
            "Small": {0x4EAC},
            "Large": {0x4EAC, 0xD55C},
            "cmr10": {0x90FD},
        }
        fonts = [font_manager.FontEntry(fname=name, name=name, weight=400) for name in held]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
        monkeypatch.setattr(gallery, "glyphs", lambda name: frozenset(held[name]))
        assert gallery.find_fonts("A") == (["DejaVu Sans"], set())
        assert gallery.find_fonts("A京한") == (["DejaVu Sans", "Large"], set())
        assert gallery.find_fonts("A京都\n") == (["DejaVu Sans", "Large"], {"都", "\n"})

    def test_dollars_are_no_formula(self, tmp_path):
        figure = gallery.attention_figure(*photographs(tmp_path, ["$x^$", "$$", r"\frac"]))
        figure.savefig(tmp_path / "a.png")
        assert "$x^$" in titles(figure)

    def test_without_a_decoder_there_is_no_attention_and_no_error(self, tmp_path):
        model, heldout = photographs(tmp_path, ["ab", "c"], decoder="none")
        figure = gallery.attention_figure(model, heldout)
        assert "no decoder" in figure.get_suptitle()
        assert all(len(axes.images) <= 1 for axes in figure.axes)

    def test_an_attention_figure_without_a_readable_picture_is_an_error(self, tmp_path):
        model, heldout = photographs(tmp_path, ["ab"])
        (tmp_path / "0.png").unlink()
        with pytest.raises(
            ValueError, match="held-out images: expected a readable one among the first, got none"
        ):
            gallery.attention_figure(model, heldout)

    def test_tensorboard_takes_the_figure(self, digits, tmp_path):
        tensorboard = pytest.importorskip("torch.utils.tensorboard")
        with tensorboard.SummaryWriter(str(tmp_path)) as board:
            board.add_figure("attention", gallery.attention_figure(*digits, pictures=1), 8)
        assert next(tmp_path.glob("events.*")).stat().st_size > 10_000


class TestUserSettings:
    """A matplotlibrc of the user must not change a figure, nor stop it from being drawn."""

    @pytest.fixture(autouse=True)
    def strange_settings(self):
        strange = {"text.usetex": True, "figure.facecolor": "red", "axes.grid": True}
        strange |= {"savefig.facecolor": "red", "savefig.bbox": "tight"}
        with matplotlib.rc_context(strange):
            yield

    def test_figures_are_as_without_them(self, digits, tmp_path):
        folder = write_run(tmp_path / "a")
        reading = {"kind": "reading", "samples": 8, "pictures": gallery.watch(*digits)}
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(reading) + "\n")
        report.draw_all(folder, *digits)
        for name in ("loss", "attention", "retrieval", "learning"):
            with Image.open(folder / f"{name}.png") as image:
                assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        heldout = digits[1]
        with matplotlib.style.context("default"):
            gallery.save_animation(tmp_path / "plain.gif", heldout, [reading])
        assert (folder / "learning.gif").read_bytes() == (tmp_path / "plain.gif").read_bytes()
        assert matplotlib.rcParams["text.usetex"]  # they are the user's again


class Page(HTMLParser):
    """Everything that a page refers to, its alternative texts and whether its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.alts, self.open, self.seen, self.ids = [], [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        held = dict(attributes)
        self.seen.setdefault(tag, []).append(held)
        names = ("src", "srcset", "href", "action", "data", "poster", "background", "xlink:href")
        self.links += [held[name] for name in names if name in held]
        if tag not in ("meta", "link", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def chromium(address: str, *options: str) -> str:
    """What Chromium prints when it opens a page."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                *options,
                address,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    return done.stdout


class TestReport:
    def test_the_page_shows_the_run(self, tmp_path):
        folder = write_run(tmp_path / "rn50", lr=3e-4, tensorboard=True, init="a b.pt")
        text = report.write_report(folder).read_text()
        page = Page(text)
        assert "rn50: a run of VLPT" in text and page.seen["html"][0]["lang"] == "en"
        for shown in ("2,289,431", "torch 2.14.1", "<b>0.700</b>", "acc_right", "0.0003", "77"):
            assert shown in text
        assert f"--init {escape(chr(39))}a b.pt{escape(chr(39))} \\" in text  # as a shell reads it
        assert "    --tensorboard</pre>" in text and "--commit" not in text
        images = page.seen["img"]
        assert len(images) == 5 and all(len(image["alt"]) > 20 for image in images)
        assert "; with the correct image from 0.100 to 0.800; with another" in images[2]["alt"]
        assert not (folder / "report.html.part").exists()

    def test_a_sheet_of_other_pictures_in_the_folder_is_not_shown(self, tmp_path):
        folder = write_run(tmp_path / "a")
        before = report.write_report(folder).read_text()
        Image.new("RGB", (64, 64), "red").save(folder / "sheet.png")  # of `readers sheet`
        assert report.write_report(folder).read_text().count("<img") == before.count("<img")

    def test_the_command_is_one_that_a_shell_takes(self):
        args = {"data": "jsonl:a b", "lr": 0.1, "init": "-x", "resume": None, "tensorboard": True}
        text = report.command({"args": args, "processes": 2}).replace("\\\n", "")
        assert shlex.split(text) == [
            "torchrun",
            "--nproc-per-node",
            "2",
            "train_min.py",
            "--data",
            "jsonl:a b",
            "--lr",
            "0.1",
            "--init=-x",
            "--tensorboard",
        ]

    def test_it_needs_no_network_and_no_other_file(self, tmp_path):
        text = report.write_report(write_run(tmp_path / "a")).read_text()
        page = Page(text)
        assert page.links and all(link.startswith("data:") for link in page.links)
        assert {*page.seen}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
        style = text[text.index("<style>") : text.index("</style>")]
        assert "url(" not in style and "@import" not in style

    def test_everything_is_escaped(self, tmp_path):
        bad = '<script>alert("&1")</script>'
        folder = write_run(tmp_path / "x", name=bad, data=f"jsonl:{bad}", log="")
        with (folder / "log.jsonl").open("w") as log:
            for row in [*STEPS, {"kind": bad}]:
                log.write(json.dumps({"kind": "step"} | row) + "\n")
            log.write(json.dumps({"kind": "evaluation", bad: bad} | EVALUATIONS[0]) + "\n")
        result = {"result": RESULT | {bad: bad}}
        (folder / "metrics.json").write_text(json.dumps(result))
        text = report.write_report(folder).read_text()
        page = Page(text)
        assert "script" not in page.seen and text.count(str(escape(bad))) > 5
        assert all(
            "on" not in attribute[:2]
            for tag in page.seen.values()
            for held in tag
            for attribute in held
        )

    def test_a_run_that_was_killed(self, tmp_path):
        folder = write_run(tmp_path / "a", ended=False)
        with (folder / "log.jsonl").open("a") as log:
            log.write('{"kind": "skipped", "why": "x"}\n{"kind": "resumed"}\n{"kind": "skipped"}\n')
            log.write('{"kind": "step", "sam')
        text = report.write_report(folder).read_text()
        assert "<p>has not ended: there is no metrics.json</p>" in text
        assert "<p>line 110 of log.jsonl, its last, was cut short and is left out</p>" in text
        assert "<p>also in the log: 2 skipped, 1 resumed</p>" in text
        assert "<b>0.800</b>" in text  # the last evaluation's

    def test_a_run_that_has_only_begun_and_one_without_pictures(self, tmp_path):
        folder = write_run(tmp_path / "a", ended=False, log="")
        (folder / "attention.png").unlink()
        assert len(Page(report.write_report(folder).read_text()).seen["img"]) == 4

    def test_steps_that_were_repeated_after_a_restart_count_once(self, tmp_path):
        rows = [*STEPS[:9], STEPS[7] | {"char": 1.5}, STEPS[8] | {"char": 1.25}]
        log = "".join(json.dumps({"kind": "step"} | row) + "\n" for row in rows)
        steps = report.read_run(write_run(tmp_path / "a", log=log)).steps
        assert [row["samples"] for row in steps] == [8 * k for k in range(1, 10)]
        assert [row["char"] for row in steps[-2:]] == [1.5, 1.25]

    def test_it_is_written_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = report.write_report(write_run(tmp_path / "a"))
        before = path.read_bytes()

        def full(file):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            report.write_report(path.parent)
        assert path.read_bytes() == before and not list(path.parent.glob("*.part"))

    @pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
    def test_chromium_opens_it_on_a_desk_on_a_phone_and_in_the_dark(self, tmp_path):
        page = report.write_report(write_run(tmp_path / "a", data="jsonl:" + "long" * 40))
        shades = []
        for scheme in (1, 0):  # light, dark
            shot = tmp_path / f"{scheme}.png"
            chromium(
                page.as_uri(),
                f"--screenshot={shot}",
                "--window-size=1100,1400",
                f"--blink-settings=preferredColorScheme={scheme}",
            )
            with Image.open(shot) as image:
                pixels = np.asarray(image.convert("L"))
            assert pixels.shape == (1400, 1100) and pixels.std() > 10
            shades.append(int(np.median(pixels)))
        assert shades[0] > 230 and shades[1] < 50
        frame = tmp_path / "phone.html"  # narrower than a window can be
        frame.write_text(f"""<iframe id="f" style="width:360px;height:700px;border:0"
            srcdoc="{escape(page.read_text())}"></iframe><p id="said"></p><script>
            onload = () => {{ const d = f.contentDocument; said.textContent = JSON.stringify({{
              title: d.title, wide: d.documentElement.scrollWidth, room: f.clientWidth,
              loaded: [...d.images].map(i => i.complete && i.naturalWidth > 100),
              mode: d.compatMode, regions: d.querySelectorAll("[role=region]").length,
              small: Math.min(...[...d.querySelectorAll("p,td,th,pre,span")].map(
                e => parseFloat(getComputedStyle(e).fontSize)))}}); }}</script>""")
        dom = chromium(frame.as_uri(), "--dump-dom", "--window-size=800,900")
        told = dom[dom.index('id="said">') + len('id="said">') :].split("</p>")[0]
        assert json.loads(told) == {
            "title": "a: a run of VLPT",
            "wide": 360,
            "room": 360,
            "loaded": [True] * 5,
            "mode": "CSS1Compat",
            "regions": 2,
            "small": pytest.approx(13.6, abs=0.5),
        }

    @pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
    def test_chromium_asks_for_nothing_but_the_page(self, tmp_path):
        page = report.write_report(write_run(tmp_path / "a")).read_bytes()
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)  # Chromium itself asks for the time
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page if self.path == "/page" else b'<img src="//host.test/other">')

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            every = f"--host-resolver-rules=MAP * 127.0.0.1:{server.server_port}"
            chromium("http://host.test/page", "--dump-dom", every)
            assert [path for path in asked if not path.startswith("/time/")] == ["/page"]
            chromium("http://host.test/control", "--dump-dom", every)
            assert "/other" in asked  # it would have been noticed
            server.shutdown()


class TestCompare:
    def test_a_table_of_what_differs_and_one_plot(self, tmp_path):
        first, second = write_run(tmp_path / "A"), write_run(tmp_path / "B", lr=3e-3, init="x")
        text = (second / "log.jsonl").read_text()
        text = text.replace('"acc_right": 0.8', '"acc_right": 0.75').replace(
            '"pictures"', '"more": 5, "pictures"'
        )
        (second / "log.jsonl").write_text(text)
        lines = report.compare([first, second], tmp_path / "c.png").splitlines()
        rows = {cells[0]: cells[1:] for line in lines if (cells := line.split())}
        assert lines[0].split() == ["A", "B", "B", "-", "A"]
        assert rows["--lr"] == ["0.001", "0.003"] and rows["--init"] == ["-", "x"]
        assert not {"--name", "--preset", "parameters"} & rows.keys()
        assert rows["acc_right"] == ["0.800", "0.750", "-0.050"]
        assert rows["more"] == ["-", "5", "-"] and rows["samples"] == ["784", "784", "0"]
        assert lines[-1] == f"wrote {tmp_path / 'c.png'}"
        assert len({len(line) for line in lines if line.split()[:1] in (["i2t"], ["t2i"])}) == 1
        with Image.open(tmp_path / "c.png") as image:
            assert image.width > 1000

    def test_the_command_prints_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        folders = [str(write_run(Path("runs") / name)) for name in "AB"]
        report.main(folders)
        assert capsys.readouterr().out.endswith("wrote runs/compare.png\n")
        with pytest.raises(SystemExit):
            report.main([*folders, "--out", "runs"])
        assert (
            "--out: expected a name that ends in .png, .svg or .pdf, got 'runs'"
            in capsys.readouterr().err
        )
        report.main([*folders, "--out", "here.svg"])
        assert {path.name for path in tmp_path.iterdir()} == {"runs", "here.svg"}
        with pytest.raises(OSError, match="nowhere"):
            report.main([*folders, "--out", "nowhere/x.png"])

    def test_each_run_has_its_colour_and_its_name(self, tmp_path):
        names = ["_hidden", "$a$", "京\u200b"]
        runs = {name: report.read_run(write_run(tmp_path / str(k))) for k, name in enumerate(names)}
        figure = report.plot_curves(list(runs.items()))
        figure.savefig(tmp_path / "c.png")
        told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert told[:2] == [" _hidden", r"\$a\$"] and len(told) == 3
        assert len({line.get_color() for line in figure.axes[0].lines[1:6:2]}) == 3

    def test_runs_of_the_same_name_get_different_names(self, tmp_path):
        folders = [write_run(tmp_path / part / "demo") for part in "ab"]
        head = report.compare(folders, tmp_path / "c.png").splitlines()[0]
        assert head.split() == ["a/demo", "b/demo", "b/demo", "-", "a/demo"]

    def test_an_unfinished_run_is_compared_with_a_note(self, tmp_path):
        folders = [write_run(tmp_path / "A"), write_run(tmp_path / "B", ended=False, log="{")]
        text = report.compare(folders, tmp_path / "c.png")
        assert "the same options" in text
        assert "B: has not ended" in text and "B: line 1 of log.jsonl, its last, was cut" in text

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("run.json", None, "B: expected the folder of a run, got no run.json"),
            ("log.jsonl", None, "B: expected the folder of a run, got no log.jsonl"),
            ("run.json", "{", "run.json: expected what train_min.py writes, got a damaged file"),
            ("run.json", "[]", "run.json: expected .* damaged"),
            ("run.json", '{"args": 5, "config": {}, "chance": [1, 2]}', "run.json: .* damaged"),
            ("metrics.json", "nothing", "B/metrics.json: .* damaged"),
            ("metrics.json", "{}", r"B/metrics.json: .*damaged file \(KeyError\('result'"),
            ("log.jsonl", '{"kind": "resumed"}\nx\n', "B/log.jsonl:2: .*damaged"),
            ("log.jsonl", '{"kind": "step", "samples": 8}\n', r"jsonl:1: .*\(KeyError\('char'"),
            ("log.jsonl", "[1]\n", "log.jsonl:1: .*damaged"),
            ("log.jsonl", '{"samples": 8}', "log.jsonl:1: .*damaged"),
            (
                "log.jsonl",
                '\n\n{"kind": "step", "samples": 8, "char": "a"}',
                "log.jsonl:3: .*damaged",
            ),
        ],
    )
    def test_what_cannot_be_read_is_named(self, file, content, message, tmp_path):
        folders = [write_run(tmp_path / "A"), write_run(tmp_path / "B")]
        (folders[1] / file).unlink()
        if content is not None:
            (folders[1] / file).write_text(content)
        with pytest.raises(ValueError, match=message):
            report.compare(folders, tmp_path / "c.png")
        assert not (tmp_path / "c.png").exists()

    def test_one_run_or_the_same_twice_is_an_error(self, tmp_path):
        folder = write_run(tmp_path / "A")
        for folders in ([folder], [folder, f"{folder}/"]):
            with pytest.raises(
                ValueError, match=r"compare: expected two or more different runs, got .*A"
            ):
                report.compare(folders, tmp_path / "c.png")
