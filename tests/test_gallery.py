"""Tests of training/gallery.py: what a run keeps of its reading, its strip, GIF and retrieval."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data_stub
import vlpt
from training import gallery, report
from training.dataset import Pretraining

DIGITS = vlpt.Alphabet("0123456789")


@pytest.fixture(scope="module")
def model() -> vlpt.VLPT:
    torch.manual_seed(0)
    return vlpt.VLPT(vlpt.TINY)


@pytest.fixture(scope="module")
def heldout() -> Pretraining:
    source = data_stub.Rendered(64, 24, 0, "heldout", data_stub.DIGITS)
    return Pretraining(source, DIGITS, 64, 0)


@pytest.fixture(scope="module")
def readings(model, heldout) -> list[dict]:
    pictures = gallery.watch(model, heldout)
    return [{"samples": 1500 * k, "pictures": pictures} for k in range(1, 13)]


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


class TestWatching:
    def test_the_model_is_left_as_it_was(self, model, heldout):
        model.train()
        state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
        gallery.watch(model, heldout)
        assert model.training and torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(weights[key], v) for key, v in model.state_dict().items())

    def test_it_keeps_what_the_model_reads_and_where_it_looks(self, model, heldout):
        model.eval()
        found = gallery.watch(model, heldout)
        assert json.loads(json.dumps(found)) == found and len(found) == gallery.WATCHED
        for k, picture in enumerate(found):
            pixels, ids, _ = heldout[k]
            assert picture["word"] == DIGITS.decode(ids)[0]
            assert [each["position"] for each in picture["characters"]] == list(
                range(len(picture["word"]))
            )
            for j, character in enumerate(picture["characters"]):
                hidden = ids[None].clone()
                hidden[0, j, 0] = vlpt.MASK
                images = vlpt.normalize(pixels[None])
                probs = model(images, hidden).logits[0, j, 0].softmax(-1)
                expected = pytest.approx(probs[ids[j, 0]].item(), abs=1e-3)
                assert character["probability"] == expected
                assert character["guess"] == gallery.read_char(DIGITS, probs)
                heat = model.attention_maps(images, hidden)[1][0, j, 0]
                got = torch.tensor(character["attention"])
                torch.testing.assert_close(got, heat / heat.max(), atol=1e-3, rtol=0)

    def test_a_run_keeps_a_reading_for_each_evaluation(self, quick_run):
        run = report.read_run(quick_run.folder)
        samples = [row["samples"] for row in run.evaluations]
        assert [row["samples"] for row in run.readings] == samples == [8, 16, 24, 32]
        assert not any("reading" in note for note in run.notes) and not run.others

    def test_the_page_of_a_run_has_the_strip_and_the_neighbours(self, quick_run):
        page = (quick_run.folder / "report.html").read_text()
        assert "How it learned to read" in page and "What is nearest" in page


class TestStrip:
    def test_a_row_a_picture_and_a_column_an_evaluation(self, heldout, readings):
        figure = gallery.learning_figure(heldout, readings)
        assert len(figure.axes) == gallery.WATCHED * (1 + gallery.MAX_COLUMNS)
        labels = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert len(labels) == gallery.MAX_COLUMNS
        assert labels[0] == "1,500" and labels[-1] == "18,000"
        assert titles(figure)[0] == readings[0]["pictures"][0]["word"]

    def test_every_word_is_drawn_in_fonts_that_have_its_letters(
        self, heldout, readings, monkeypatch
    ):
        fonts = ["DejaVu Sans", "DejaVu Serif"]
        monkeypatch.setattr(gallery, "find_fonts", lambda _: (fonts, set()))
        for figure in (
            gallery.learning_figure(heldout, readings),
            gallery.watched_figure(heldout, readings[0]),
        ):
            shown = [axes.title for axes in figure.axes if axes.get_title()]
            assert {*map(tuple, (title.get_fontfamily() for title in shown))} == {tuple(fonts)}

    def test_a_character_of_each_row_is_the_same_in_all_columns(self, heldout, readings):
        figure = gallery.learning_figure(heldout, readings[:3])
        for row, picture in enumerate(readings[0]["pictures"]):
            shown = titles(figure)[4 * row + 1 : 4 * row + 4]
            word = picture["word"]
            j = row % len(word)
            expected = word[:j] + "_" + word[j + 1 :]
            assert [title.split("\n")[0] for title in shown] == [expected] * 3

    def test_the_animation_has_a_frame_for_each_evaluation_and_is_small(
        self, heldout, readings, tmp_path
    ):
        path = tmp_path / "learning.gif"
        varied = copy.deepcopy(readings[:3])  # Pillow joins frames that are the same
        for k, reading in enumerate(varied):
            reading["pictures"][0]["characters"][0]["guess"] = str(k)
        gallery.save_animation(path, heldout, varied)
        assert path.stat().st_size < 2e6 * 3 / 11  # a run has up to eleven evaluations
        with Image.open(path) as image:
            assert image.n_frames == 3 and image.info["loop"] == 0
            durations = []
            for frame in range(3):
                image.seek(frame)
                durations.append(image.info["duration"])
        assert durations == [700, 700, 3000]

    def test_a_model_without_decoder_is_watched_without_attention(self, heldout, tmp_path):
        config = vlpt.Config(**{**vars(vlpt.TINY), "decoder": "none"})
        pictures = gallery.watch(vlpt.VLPT(config), heldout)
        assert {c["attention"] for picture in pictures for c in picture["characters"]} == {None}
        reading = {"samples": 8, "pictures": pictures}
        gallery.learning_figure(heldout, [reading]).savefig(tmp_path / "a.png")
        gallery.save_animation(tmp_path / "a.gif", heldout, [reading])


class TestRetrieval:
    def test_features_are_those_of_the_model_for_whole_words(self, model, heldout):
        pictures = gallery.first_pictures(heldout, 20)
        model.eval()
        with torch.no_grad():
            image, text = gallery.retrieval_features(model, pictures)
            pixels = torch.stack([pixels for pixels, _ in pictures])
            ids = torch.stack([ids for _, ids in pictures])
            output = model(vlpt.normalize(pixels), ids)
        torch.testing.assert_close(image, F.normalize(output.image, dim=1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(text, F.normalize(output.text, dim=1), atol=1e-5, rtol=1e-4)

    def test_a_model_that_knows_the_pairs_has_every_right_one_first(
        self, model, heldout, monkeypatch
    ):
        def know(_model, pictures):
            words = [DIGITS.decode(ids)[0] for _, ids in pictures]
            places = [words.index(word) for word in words]
            features = torch.eye(len(pictures))[places]
            return features, features

        monkeypatch.setattr(gallery, "retrieval_features", know)
        figure = gallery.retrieval_figure(model, heldout)
        columns = 1 + gallery.NEAREST
        pictures = gallery.first_pictures(heldout, columns)
        for (_, ids), axes in zip(pictures, figure.axes[columns : 2 * columns], strict=True):
            first, *others = [text.get_text() for text in axes.texts]
            assert first == f"{DIGITS.decode(ids)[0]}   1.00 ✓"
            assert not any("✓" in other for other in others)
        rows = figure.axes[2 * columns :]
        for row in range(gallery.QUERIES):
            first, *others = rows[columns * row + 1 : columns * (row + 1)]
            assert first.get_title() == "1.00 ✓"
            assert all("✓" not in axes.get_title() or "1.00" in axes.get_title() for axes in others)

    def test_few_pictures_are_enough(self, model):
        source = data_stub.Rendered(64, 2, 0, "heldout", data_stub.DIGITS)
        figure = gallery.retrieval_figure(model, Pretraining(source, DIGITS, 64, 0))
        assert "2 held-out images" in figure.get_suptitle()
