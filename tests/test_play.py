"""Tests of experiments/play.py: what is behind the page, and the page in a browser."""

import dataclasses
import importlib.util
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data_stub
import vlpt
from experiments import curriculum, play, read
from training import weights

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HAS_PAGE = (
    CHROMIUM and importlib.util.find_spec("gradio") and importlib.util.find_spec("playwright")
)
DRAWN = {"height": 0.35, "tilt": 10, "clutter": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def model() -> vlpt.VLPT:
    torch.manual_seed(0)
    return vlpt.VLPT(vlpt.TINY).eval()


def shown(model, word="1314", position=0, photograph=None, others="27 98", **changes):
    drawn = DRAWN | changes
    return play.respond(model, word, position, *drawn.values(), photograph, others)


class TestDrawing:
    def test_the_same_choices_draw_the_same_picture(self):
        image = play.draw(vlpt.TINY, "1314", **DRAWN)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert np.array_equal(image, play.draw(vlpt.TINY, "1314", **DRAWN))
        for changed in ({"seed": 1}, {"height": 0.25}, {"clutter": 0.0}):
            assert not np.array_equal(image, play.draw(vlpt.TINY, "1314", **DRAWN | changed))

    def test_a_word_without_room_is_said(self):
        with pytest.raises(ValueError, match="expected one that fits into the picture"):
            play.draw(vlpt.TINY, "8" * 25, 0.6, 45, 1.0, 0)

    def test_example_words_are_held_out_and_differ(self):
        words = play.example_words(vlpt.TINY, 6)
        assert len(set(words)) == 6
        assert {data_stub.split_of(word) for word in words} == {"heldout"}

    def test_example_words_are_no_longer_than_most_training_words(self):
        words = play.example_words(curriculum.CONFIG, 6)
        assert len(words) == 6 and max(map(len, words)) == 4
        assert words[0].lower() in data_stub.WORDS


class TestMarkdown:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [("a_b", "`a_b`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("``a", "``` ``a ```")],
    )
    def test_a_span_of_code_may_have_backticks(self, text, expected):
        assert play.code(text) == expected

    def test_what_markdown_would_take_as_its_own_is_escaped(self):
        assert play.escape(r"1_2_ \ <b> `a`") == r"1\_2\_ \\ \<b\> \`a\`"


class TestAnswers:
    def test_it_shows_what_the_model_reads(self, model):
        found = shown(model, position=2)
        image = play.draw(vlpt.TINY, "1314", **DRAWN)
        (reading,) = read.read(model, image, [read.Cloze("1314", 2)])
        assert found.with_picture == dict(read.best(reading, reading.with_picture))
        assert found.without_picture == dict(read.best(reading, reading.without_picture))
        assert found.message.startswith("In `13_4` the model reads `")
        assert found.picture.size == found.attention.size == (384, 384)
        assert np.asarray(found.picture).std() > 5

    def test_words_are_compared_by_the_contrastive_features(self, model):
        found = shown(model, others="27, 98 27")
        image = play.draw(vlpt.TINY, "1314", **DRAWN)
        images = vlpt.normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
        alphabet = vlpt.Alphabet("0123456789")
        ids = torch.stack([alphabet.encode([word]) for word in ("1314", "27", "98")])
        with torch.no_grad():
            output = model(images.expand(3, -1, -1, -1), ids)
        cosines = (F.normalize(output.image, dim=1) * F.normalize(output.text, dim=1)).sum(1)
        expected = (output.logit_scale.exp() * cosines).softmax(0)
        assert list(found.words) == ["1314", "27", "98"]
        assert list(found.words.values()) == pytest.approx(expected.tolist(), abs=1e-4)

    def test_a_letter_that_is_no_longer_there_becomes_the_first(self, model):
        assert "`_2`" in shown(model, "12", position=7).message
        assert "`_2`" in shown(model, "12", position=None).message

    def test_letters_of_a_word_can_be_clicked(self):
        assert play.letters("113") == [("1", 0), ("1", 1), ("3", 2)]
        assert play.letters("1_3") == [("_", 1)]
        assert play.letters("") == []

    def test_an_underscore_that_is_read_is_said(self):
        assert play.named([("_", 0.5), ("1", 0.25)]) == {"_ (underscore)": 0.5, "1": 0.25}
        shares = torch.tensor([0.75, 0.25])
        reading = read.Reading(read.Cloze("1_", 1), "_1", shares, shares, None)
        assert play.message(reading) == "In `1_` the model reads `_` (underscore) (75 %)."

    def test_white_space_around_a_word_is_ignored(self, model):
        assert shown(model, " 12 ", position=1) == shown(model, "12", position=1)
        assert play.letters(" 12 ") == play.letters("12")

    def test_a_long_word_has_a_note(self, model):
        changes = {"height": 0.15, "clutter": 0.0}
        assert "long word" not in shown(model, "1234", **changes).message
        assert "12345 is a long word" in shown(model, "12345", **changes).message

    def test_one_word_alone_is_not_compared(self, model):
        assert shown(model, "12", others="12").words is None

    def test_a_large_photograph_is_shown_small(self, model, tmp_path):
        Image.new("RGB", (1600, 800), "teal").save(tmp_path / "a.png")
        found = shown(model, photograph=str(tmp_path / "a.png"))
        assert found.picture.size == found.attention.size == (384, 192)

    def test_a_photograph_is_read_with_a_blank_of_one_s_own(self, model, tmp_path):
        Image.new("RGB", (90, 40), "teal").save(tmp_path / "a.png")
        found = shown(model, "1_3", photograph=str(tmp_path / "a.png"), others="")
        assert "`1_3`" in found.message and "which is" not in found.message
        assert found.picture.size == (384, 170) and found.words is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"word": "SALE"}, "expected letters of the model's alphabet"),
            ({"word": ""}, "expected 1 to 25 characters"),
            ({"word": "1_3"}, "expected a whole word, got '1_3'; a `_` needs a photograph"),
            ({"word": "1 3"}, "got '1 3'; write each word on its own"),
            ({"others": "1_2"}, "other words: expected whole words, got '1_2'"),
            ({"word": "8" * 25}, "expected one that fits into the picture"),
        ],
    )
    def test_a_mistake_is_a_message(self, model, changes, message):
        found = shown(model, **changes)
        assert play.escape(message) in found.message and found[1:] == (None,) * 5

    def test_a_file_that_is_no_picture_is_a_message_with_its_name(self, model, tmp_path):
        (tmp_path / "notes.png").write_text("no picture")
        found = shown(model, photograph=str(tmp_path / "notes.png"))
        assert play.escape("notes.png: not a readable picture") in found.message
        assert str(tmp_path) not in found.message and found.picture is None

    def test_without_gradio_it_says_what_to_install(self, model, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gradio", None)
        weights.save_model(model, tmp_path / "m.pt")
        with pytest.raises(SystemExit, match=r"gradio: expected `pip install '\.\[play\]'`"):
            play.main([str(tmp_path / "m.pt")])

    def test_a_model_without_decoder_has_a_plain_picture(self):
        model = vlpt.VLPT(dataclasses.replace(vlpt.TINY, decoder="none")).eval()
        found = shown(model)
        assert np.array_equal(np.asarray(found.picture), np.asarray(found.attention))


# ---- In a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    """Where a page with an untrained model is served."""
    path = tmp_path_factory.mktemp("page") / "m.pt"
    weights.save_model(model, path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.play", str(path), "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert line.startswith(f"the page is at http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PAGE, reason="needs gradio, playwright and Chromium")
def test_the_page_answers_clicks_and_asks_nothing_of_the_network(address, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        requested = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        message = page.locator("#message")
        expect(message).to_contain_text("the model reads")

        word = page.locator("#word").get_by_role("textbox")
        word.fill("2026")
        expect(message).to_contain_text("_026")
        page.locator("#letters label").nth(2).click()
        expect(message).to_contain_text("20_6")
        for name in ("#with", "#without"):
            assert page.locator(name).inner_text().count("%") == 5
        expect(page.locator("#matches")).to_contain_text("2026")
        assert page.locator("#attention img").evaluate("image => image.naturalWidth") == 384

        before = page.locator("#picture img").get_attribute("src")
        page.locator("#anew").click()
        expect(page.locator("#picture img")).not_to_have_attribute("src", before)
        before = page.locator("#picture img").get_attribute("src")
        slider = page.locator("#height input[type=range]")
        slider.press("ArrowLeft")
        expect(page.locator("#picture img")).not_to_have_attribute("src", before)
        word.fill("1`_\\")
        expect(message).to_contain_text(r"got '\\`' in '1`_\\'")
        expect(page.locator("#about")).to_contain_text("training words have 2 to 4 characters")
        word.fill("SALE")
        expect(message).to_contain_text("expected letters of the model's alphabet")

        word.fill("42")
        upload = page.locator("#photograph input[type=file]")
        (tmp_path / "bad.png").write_text("no picture")
        upload.set_input_files(tmp_path / "bad.png")
        expect(message).to_contain_text("bad.png: not a readable picture")
        page.locator("#photograph").get_by_role("button", name="Clear").click()
        expect(message).to_contain_text("the model reads")
        Image.new("RGB", (96, 48), "teal").save(tmp_path / "good.png")
        page.locator("#photograph input[type=file]").set_input_files(tmp_path / "good.png")
        for name in ("#picture", "#attention"):
            page.wait_for_function(
                "name => { const i = document.querySelector(name + ' img'); "
                "return i && i.naturalHeight && i.naturalWidth === 2 * i.naturalHeight; }",
                arg=name,
            )
        expect(slider).to_be_disabled()
        expect(page.locator("#anew")).to_be_disabled()
        page.locator("#others").get_by_role("textbox").fill("")
        expect(page.locator("#matches")).to_be_hidden()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    local = (address, "data:", "blob:")
    assert [url for url in requested if not url.startswith(local)] == []


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PAGE, reason="needs gradio, playwright and Chromium")
def test_the_page_is_served_to_this_machine_alone(address):
    assert urllib.request.urlopen(address).status == 200
    port = int(address.rpartition(":")[2])
    others = {
        found[4][0] for found in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)
    }
    for host in others - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError):
            socket.create_connection((host, port), timeout=2)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PAGE, reason="needs gradio, playwright and Chromium")
def test_a_narrow_window_shows_the_result_first(address):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 420, "height": 800})
        page.goto(address)
        expect(page.locator("#message")).to_contain_text("the model reads", timeout=30_000)
        names = ("#word", "#message", "#attention", "#with", "#height", "#photograph", "#others")
        boxes = [page.locator(name).bounding_box() for name in names]
        browser.close()
    tops = [box["y"] for box in boxes]
    assert tops == sorted(tops)
    attention = boxes[2]
    assert attention["y"] + attention["height"] < 800
    assert all(box["x"] + box["width"] <= 420 for box in boxes)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PAGE, reason="needs gradio, playwright and Chromium")
def test_a_busy_port_is_one_line(model, tmp_path):
    weights.save_model(model, tmp_path / "m.pt")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        message = f"--port: expected a free port, got {port}, which is in use$"
        with pytest.raises(SystemExit, match=message):
            play.main([str(tmp_path / "m.pt"), "--port", str(port)])
