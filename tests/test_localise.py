"""Tests of experiments/localise.py: is attention to a character measured where the character is?"""

import json

import numpy as np
import pytest
import torch

import data_stub
import vlpt
from experiments import localise, reproduce
from training import weights

ALPHABET = vlpt.Alphabet("0123456789")


@pytest.fixture(scope="module")
def model() -> vlpt.VLPT:
    torch.manual_seed(0)
    return vlpt.VLPT(vlpt.TINY).eval()


def blobs(points: np.ndarray, side: int = 16) -> torch.Tensor:
    """A map with all of its weight in the cell of each point."""
    cells = (points * side).astype(int).clip(0, side - 1)
    maps = torch.zeros(len(points), side, side)
    maps[range(len(points)), cells[:, 1], cells[:, 0]] = 1
    return maps


def looking(model, monkeypatch, choose) -> None:
    """Let the hidden character n of picture k attend to `choose(places, n)` alone."""
    samples = (data_stub.render(0, k, 64, "heldout", data_stub.DIGITS) for k in range(10_000))

    def maps(images, ids):
        sample = next(samples)
        place = localise.places(sample.quads[0] / 64, len(sample.words[0]))
        points = np.stack([choose(place, n) for n in range(len(place))])
        found = torch.zeros(*ids.shape, 16, 16)
        found[range(len(place)), range(len(place)), 0] = blobs(points)
        return None, found

    monkeypatch.setattr(model, "attention_maps", maps)


class TestPlaces:
    def test_characters_lie_on_the_middle_line_of_a_tilted_quad(self):
        quad = np.array([[0, 0], [8, 4], [8, 6], [0, 2]], float)
        expected = [[1, 1.5], [3, 2.5], [5, 3.5], [7, 4.5]]
        assert localise.places(quad, 4).tolist() == expected

    def test_the_centre_of_a_map_is_that_of_its_mass(self):
        maps = np.zeros((2, 2, 4))
        maps[0, 1, 3] = 5
        maps[1] = 1
        assert localise.centres(maps).tolist() == [[0.875, 0.75], [0.5, 0.5]]


class TestMeasure:
    def test_attention_on_the_character_itself_is_found(self, model, monkeypatch):
        looking(model, monkeypatch, lambda place, n: place[n])
        found = localise.measure(model, 12)
        assert found["own"] < 0.05 < found["siblings"] and found["nearest"] == 1.0
        assert found["own"] < found["other map"]
        words = [data_stub.render(0, k, 64, "heldout", data_stub.DIGITS).words for k in range(12)]
        assert found["characters"] == sum(len(word) for (word,) in words)

    def test_attention_on_the_whole_word_is_not_taken_for_the_character(self, model, monkeypatch):
        looking(model, monkeypatch, lambda place, n: place.mean(0))
        found = localise.measure(model, 40)
        assert found["own"] == pytest.approx(found["siblings"], abs=0.01)
        assert found["nearest"] == pytest.approx(found["chance"], abs=0.15)
        assert found["own"] < found["other map"]

    def test_attention_on_another_character_is_worse_than_chance(self, model, monkeypatch):
        looking(model, monkeypatch, lambda place, n: place[n - 1])
        found = localise.measure(model, 12)
        assert found["siblings"] < found["own"] and found["nearest"] == 0.0

    def test_a_uniform_map_is_no_better_than_the_middle(self, model, monkeypatch):
        looking(model, monkeypatch, lambda place, n: np.array([0.5, 0.5]))
        found = localise.measure(model, 12)
        assert found["own"] == pytest.approx(found["uniform"], abs=0.05)
        assert found["own"] == found["other map"]

    def test_of_several_words_each_character_has_the_map_of_its_own_hiding(self, model):
        """The sentence encoder sees all words of a picture, the hidden character in one of them."""
        scene = data_stub.Scene(alphabet="0123456789", kinds=("number",), words=(2, 3))
        sample = next(
            sample
            for sample in (data_stub.render(0, k, 64, "heldout", scene) for k in range(50))
            if len(sample.words) > 1
        )
        found = localise.look_for_each(model, sample)
        assert len(found) == len(sample.words[: vlpt.MAX_WORDS])
        ids = ALPHABET.encode(sample.words[: vlpt.MAX_WORDS])[None]
        ids[0, 1, 1] = vlpt.MASK
        images = vlpt.normalize(torch.from_numpy(sample.image).permute(2, 0, 1)[None])
        expected = model.attention_maps(images, ids)[1][0, 1, 1].numpy()
        np.testing.assert_allclose(found[1][1][1], localise.centres(expected), atol=1e-5)


class TestCommand:
    def test_the_numbers_are_printed_and_kept_beside_the_tables(
        self, model, tmp_path, monkeypatch, capsys
    ):
        path = tmp_path / "results.json"
        path.write_text(
            json.dumps({"tables": {"a": []}, "localisation": {"sentence": [{"own": 1}]}})
        )
        monkeypatch.setattr(localise, "RESULTS", path)
        (tmp_path / "b.v2").mkdir()
        for name in ("a.pt", "b.v2/checkpoint.pt"):
            weights.save_model(model, tmp_path / name)
        models = [str(tmp_path / "a.pt"), str(tmp_path / "b.v2")]
        localise.main([*models, "--pictures", "2", "--save"])
        assert "(character encoder): own 0." in capsys.readouterr().out
        results = json.loads(path.read_text())
        assert results["tables"] == {"a": []}
        assert results["localisation"]["sentence"] == [{"own": 1}]
        found = results["localisation"]["character"]
        assert [entry["model"] for entry in found] == ["a", "b.v2"]
        assert all(entry["pictures"] == 2 for entry in found)
        assert all(entry["grid"].count(" x ") == 1 for entry in found)

    def test_the_pictures_follow_from_alphabet_and_image_size(self, model, monkeypatch):
        scenes = []

        def rendered(*args):
            scenes.append(args[-1])
            raise StopIteration

        monkeypatch.setattr(data_stub, "Rendered", rendered)
        short = vlpt.VLPT(reproduce.SCALES["cpu"].config)
        for each in (model, short):
            with pytest.raises(StopIteration):
                localise.measure(each)
        assert scenes == [data_stub.DIGITS, reproduce.two_words]

    def test_a_model_without_decoder_is_refused(self, tmp_path):
        config = vlpt.Config(**{**vars(vlpt.TINY), "decoder": "none"})
        weights.save_model(vlpt.VLPT(config), tmp_path / "a.pt")
        with pytest.raises(SystemExit, match="attention maps need 'visual_textual'"):
            localise.main([str(tmp_path / "a.pt")])

    def test_a_new_summary_of_the_tables_keeps_them(self, tmp_path, monkeypatch):
        path = tmp_path / "results.json"
        path.write_text(json.dumps({"localisation": {"character": {"own": 0.2}}}))
        monkeypatch.setattr(reproduce, "RESULTS", path)
        monkeypatch.setattr(reproduce, "collect", lambda *_: [])
        run = {"job": {"kind": "finetune", "name": "a1"}, "result": {}, "seconds": 1}
        (tmp_path / "runs").mkdir()
        run |= {"machine": "cpu", "date": "2026-01-01", "version": vlpt.__version__}
        run["scale"] = repr(reproduce.SCALES["smoke"])
        (tmp_path / "runs/a1.json").write_text(json.dumps(run))
        reproduce.write_summary("smoke", tmp_path / "runs")
        results = json.loads(path.read_text())
        assert results["localisation"] == {"character": {"own": 0.2}}
        assert results["scale"] == "smoke"
