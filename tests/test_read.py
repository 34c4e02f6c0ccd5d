"""Tests of experiments/read.py and training/weights.py: asking a trained model what it reads."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import data_stub
import vlpt
from experiments import curriculum, read
from training import weights

DIGITS = vlpt.Alphabet("0123456789")
LETTERS = vlpt.Alphabet("AELS")


@pytest.fixture(scope="module")
def model() -> vlpt.VLPT:
    torch.manual_seed(0)
    return vlpt.VLPT(vlpt.TINY).eval()


@pytest.fixture(scope="module")
def sample() -> data_stub.Sample:
    return data_stub.render(0, 7, 64, "heldout", data_stub.DIGITS)


def run(capsys, *arguments: str) -> tuple[object, str, str]:
    """The exit status, the output and the error of the command."""
    status: object = 0
    try:
        read.main(arguments)
    except SystemExit as stop:
        status = stop.code
    output = capsys.readouterr()
    return status, output.out, output.err or (status if isinstance(status, str) else "")


class TestModelFiles:
    def test_a_saved_model_comes_back_in_float32_and_half_the_size(self, model, tmp_path):
        path = tmp_path / "model.pt"
        weights.save_model(model, path)
        saved = vlpt.read_checkpoint(path)
        assert saved.keys() == {"state_dict", "config"}
        floats = [v for v in saved["state_dict"].values() if v.is_floating_point()]
        assert {tensor.dtype for tensor in floats} == {torch.float16}
        loaded = weights.load_model(path)
        assert loaded.config == model.config and not loaded.training
        for key, tensor in loaded.state_dict().items():
            expected = model.state_dict()[key]
            assert tensor.dtype == expected.dtype
            torch.testing.assert_close(tensor, expected, atol=1e-3, rtol=1e-3)

    def test_the_last_checkpoint_of_a_run_is_the_model(self, quick_run):
        loaded = weights.load_model(quick_run.folder)
        state = vlpt.read_checkpoint(quick_run.folder / "checkpoint.pt")["state_dict"]
        assert all(torch.equal(state[key], v) for key, v in loaded.state_dict().items())

    def test_without_a_name_the_packaged_weights_are_loaded(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr(weights, "PACKAGED", tmp_path / "tiny.pt")
        monkeypatch.setattr(weights, "ROOT", tmp_path)
        message = r"^tiny\.pt: expected the weights that come with the repository, got no such file"
        with pytest.raises(FileNotFoundError, match=message):
            weights.load_model()
        weights.save_model(model, tmp_path / "tiny.pt")
        assert weights.load_model().config == vlpt.TINY

    def test_a_file_of_something_else_is_refused(self, model, tmp_path):
        config = dataclasses.asdict(model.config)
        files = {
            "backbone.pt": model.backbone.state_dict(),
            "field.pt": {"state_dict": {}, "config": config | {"new": 1}},
            "size.pt": {"state_dict": model.state_dict(), "config": config | {"text_width": 32}},
            "list.pt": {"state_dict": {}, "config": [1]},
        }
        for name, content in files.items():
            torch.save(content, tmp_path / name)
            with pytest.raises(ValueError, match=rf"^\S+{name}: expected [^\n]*$"):
                weights.load_model(tmp_path / name)
        (tmp_path / "text.pt").write_text("no model")
        with pytest.raises(ValueError, match="expected a checkpoint of tensors"):
            weights.load_model(tmp_path / "text.pt")
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(ValueError, match=f"{path}: expected a run's folder .* got neither"):
                weights.load_model(path)


class TestWords:
    def test_a_blank_is_the_hidden_character(self):
        assert read.parse_word("S_LE", LETTERS) == [read.Cloze("S_LE", 1, is_known=False)]

    def test_without_a_blank_each_character_is_hidden_in_turn(self):
        clozes = read.parse_word("SALE", LETTERS)
        assert [cloze.shown for cloze in clozes] == ["_ALE", "S_LE", "SA_E", "SAL_"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("S__E", "at most one _, because the model was trained with one hidden character"),
            ("S_le", "got 'el' in 'S_le'"),
            ("S" * 26, "expected 1 to 25 characters, got 26"),
            ("", "expected 1 to 25 characters, got 0"),
            ("SALE AS", "got 'SALE AS'; write each word on its own"),
        ],
    )
    def test_a_word_that_cannot_be_asked_is_explained(self, text, message):
        with pytest.raises(ValueError, match=r"^words: expected") as error:
            read.parse_word(text, LETTERS)
        assert message in str(error.value) and "\n" not in str(error.value)

    def test_white_space_around_a_word_is_ignored(self):
        assert read.parse_word(" S_LE\n", LETTERS) == [read.Cloze("S_LE", 1, is_known=False)]

    def test_a_word_longer_than_most_training_words_has_a_note(self):
        assert read.length_note(data_stub.DIGITS, ["1", "1234"]) == ""
        note = read.length_note(data_stub.DIGITS, ["1", "12345"])
        assert note.startswith("12345 is a long word: rendered training words have 2 to 4 char")
        packaged = read.training_lengths(curriculum.STAGES[0].scene)
        assert "rendered training words mostly have 1 to 4" in packaged

    def test_of_annotated_words_the_known_characters_are_hidden(self):
        clozes = read.hide_each("A-" + "L" * 40, LETTERS)
        assert [cloze.position for cloze in clozes] == [0, *range(2, vlpt.MAX_CHARS)]


class TestReading:
    def test_the_probabilities_are_those_of_the_model(self, model, sample):
        clozes = [read.Cloze("2_", 1), read.Cloze("1234", 2)]
        readings = read.read(model, sample.image, clozes)
        images = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
        blank = torch.zeros(1, 3, 64, 64)
        for reading, word, j in zip(readings, ("2_", "1234"), (1, 2), strict=True):
            ids = DIGITS.encode([word])[None]
            ids[0, j, 0] = vlpt.MASK
            for picture, got in (
                (vlpt.normalize(images), reading.with_picture),
                (blank, reading.without_picture),
            ):
                logits = model(picture, ids).logits[0, j, 0, vlpt.UNK + 1 :]
                torch.testing.assert_close(got, logits.softmax(-1), atol=1e-5, rtol=1e-4)
            maps = model.attention_maps(vlpt.normalize(images), ids)[1]
            torch.testing.assert_close(reading.attention, maps[0, j, 0], atol=1e-6, rtol=1e-4)

    def test_an_answer_is_never_seen(self, model, sample):
        """What stands at the blank changes nothing."""
        one, other = read.read(model, sample.image, [read.Cloze("27", 1), read.Cloze("2_", 1)])
        assert torch.equal(one.with_picture, other.with_picture)

    def test_a_picture_of_any_size_is_stretched(self, model):
        image = np.zeros((31, 200, 3), np.uint8)
        (reading,) = read.read(model, image, [read.Cloze("_", 0)])
        assert reading.with_picture.sum().item() == pytest.approx(1)
        assert len(read.best(reading, reading.with_picture)) == 5
        assert read.reading_figure(image, [reading]).axes

    def test_the_figure_says_what_is_read_without_the_picture(self, model, sample):
        (reading,) = read.read(model, sample.image, [read.Cloze("_", 0)])
        axes = read.reading_figure(sample.image, [reading]).axes[1]
        ((guess, share),) = read.best(reading, reading.without_picture, 1)
        assert axes.get_title().startswith("hidden: _\nread ")
        assert axes.texts[0].get_text() == f"without the picture: {guess}, {100 * share:.0f} %"

    def test_a_known_underscore_is_an_answer_and_a_blank_is_none(self, model, sample):
        clozes = [read.hide_each("1_", vlpt.Alphabet("1_"))[1], *read.parse_word("1_", DIGITS)]
        axes = read.reading_figure(sample.image, read.read(model, sample.image, clozes)).axes
        known, unknown = (each.get_title() for each in axes[1:3])
        assert known.endswith("✗") and unknown.endswith("%")

    def test_a_character_without_a_font_is_spelt_out_in_every_word(self, model, sample):
        clozes = [read.Cloze("1_", 1), read.Cloze("\ue000_", 1)]  # for private use: no font has it
        axes = read.reading_figure(sample.image, read.read(model, sample.image, clozes)).axes
        assert axes[2].get_title().startswith("hidden: U+E000 _")

    @pytest.mark.parametrize(
        ("size", "expected"), [((200, 100), (50, 25)), ((40, 8), (40, 8)), ((400, 1), (50, 1))]
    )
    def test_a_large_picture_is_shrunk_before_it_is_drawn(self, size, expected):
        pixels = torch.full((3, *size), 7, dtype=torch.uint8)
        small = read.shrink(pixels, 50)
        assert small.shape == (3, *expected) and small.unique().tolist() == [7]

    def test_a_model_without_decoder_has_no_attention(self, sample):
        model = vlpt.VLPT(dataclasses.replace(vlpt.TINY, decoder="none")).eval()
        readings = read.read(model, sample.image, [read.Cloze("2_", 1)])
        assert readings[0].attention is None
        assert "no decoder" in read.reading_figure(sample.image, readings).get_suptitle()


class TestCommand:
    def test_it_prints_both_readings_and_writes_the_figure(self, quick_run, capsys, tmp_path):
        out = tmp_path / "figure.png"
        status, text, _ = run(capsys, str(quick_run.folder), "synth:7", "--out", str(out))
        word = data_stub.render(0, 7, 64, "heldout", data_stub.DIGITS).words[0]
        assert status == 0 and f"annotated words: {word}" in text
        assert text.count("with the picture") == text.count("with a blank one") == len(word)
        assert len(re.findall(r"\d +\d+\.\d %", text)) == 10 * len(word)
        with Image.open(out) as image:
            assert image.width > 400

    def test_a_picture_of_one_s_own_is_asked_with_one_s_own_words(
        self, model, sample, capsys, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        weights.save_model(model, tmp_path / "model.pt")
        Image.fromarray(sample.image).save("a.png")
        status, text, _ = run(capsys, "model.pt", "a.png", "--words", "1_3", "_")
        assert status == 0 and text.startswith("1_3\n") and "\n_\n" in text
        assert (tmp_path / "reading.png").is_file()
        _, text, _ = run(capsys, "model.pt", "a.png")
        assert text.startswith("_\n")

    def test_a_picture_of_a_data_set_comes_with_its_words(
        self, model, sample, capsys, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        weights.save_model(model, tmp_path / "model.pt")
        lines = []
        for name in ("a.png", "b.png"):
            Image.fromarray(sample.image).save(name)
            lines.append(json.dumps({"image": name, "words": ["A3"]}))
        (tmp_path / "d.jsonl").write_text("\n".join(lines))
        _, text, error = run(capsys, "model.pt", "jsonl:d.jsonl:0")
        assert error == ""
        assert "annotated words: A3" in text and "A_\n" in text and "_3" not in text
        assert "a number below 1" in run(capsys, "model.pt", "jsonl:d.jsonl:9")[2]
        assert "expected jsonl:d.jsonl:K" in run(capsys, "model.pt", "jsonl:d.jsonl:x")[2]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["synth:7", "--words", "1__"], "expected at most one _"),
            (["none.jpg"], "none.jpg: not a readable picture"),
            (["synth:x"], "picture: expected synth:K"),
            (["synth:7", "--out", "a.gif"], "--out: expected a name that ends in .png"),
        ],
    )
    def test_a_mistake_is_one_line(self, quick_run, arguments, message, capsys):
        status, _, error = run(capsys, str(quick_run.folder), *arguments)
        assert status != 0 and message in error and error.strip().count("\n") == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--words", "E_IT", "a.png"], "--words: expected it after PICTURE"),
            ([], "PICTURE: expected a picture's file"),
            (["a.JPG", "EXIT"], "MODEL: expected a run's folder or a model's file before PICTURE"),
        ],
    )
    def test_arguments_in_another_order_are_one_line(self, arguments, message, capsys):
        status, _, error = run(capsys, *arguments)
        assert status == 2 and f"error: {message}" in error and error.count("\n") == 1

    def test_the_figure_may_be_named_first(self, quick_run, capsys, tmp_path):
        out = tmp_path / "figure.png"
        status, text, _ = run(capsys, "--out", str(out), str(quick_run.folder), "synth:7")
        assert status == 0 and out.is_file() and "note:" not in text

    def test_a_long_word_has_a_note(self, quick_run, capsys, tmp_path):
        out = str(tmp_path / "figure.png")
        words = ["--words", "1_", "123456", "1234567"]
        _, text, _ = run(capsys, str(quick_run.folder), "synth:7", "--out", out, *words)
        assert text.count("note: ") == 1 and "note: 1234567 is a long word" in text

    def test_a_run_that_lost_its_last_checkpoint_has_the_one_before(self, quick_run, tmp_path):
        folder = shutil.copytree(quick_run.folder, tmp_path / "run")
        (folder / "checkpoint.pt").unlink()
        assert weights.load_model(folder).config == vlpt.TINY


def test_a_model_is_shown_what_its_alphabet_and_image_size_were_trained_on():
    config = dataclasses.replace(curriculum.CONFIG, decoder_layers=1)  # whatever its layers
    assert read.scene_of(config) == curriculum.ONE_WORD
    assert read.scene_of(dataclasses.replace(config, image_size=96)) == data_stub.Scene()
    assert read.scene_of(vlpt.TINY) == data_stub.DIGITS
    assert read.scene_of(dataclasses.replace(vlpt.TINY, alphabet="ab")).alphabet == "ab"


def test_the_weights_of_the_repository_read_short_words():
    """As weights/README.md says, and not by guessing: another picture does not help.

    There the accuracies are 0.721 and 0.021. With 32 pictures the limits of 0.5 and 0.15 are 2.8
    standard deviations below the first and 5 above the second.
    """
    model = weights.load_model()
    scene = read.scene_of(model.config)
    right, other, count = 0, 0, 32
    samples = [data_stub.render(0, k, 64, "heldout", scene) for k in range(count)]
    for k, sample in enumerate(samples):
        (word,) = sample.words
        cloze = read.Cloze(word, k % len(word))
        for image in (sample.image, samples[k - 1].image):
            (reading,) = read.read(model, image, [cloze])
            is_read = reading.chars[int(reading.with_picture.argmax())] == word[cloze.position]
            right += is_read and image is sample.image
            other += is_read and image is not sample.image
    assert right >= 0.5 * count and other <= 0.15 * count
