"""Tests of data_stub.py: the renderer, the readers, what the model is fed, the contact sheet."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

import data_stub as ds
import vlpt

REAL = Path(os.getenv("VLPT_ICDAR2015", "../shared/data/icdar2015"))
ALPHABET = vlpt.Alphabet(vlpt.PRINTABLE)
SCENES = [(32, ds.Scene()), (64, ds.DIGITS), (64, ds.Scene()), (256, ds.Scene())]


def areas(quads: np.ndarray) -> np.ndarray:
    """Signed areas; positive is clockwise where y points down."""
    x, y = quads[..., 0], quads[..., 1]
    return 0.5 * (x * np.roll(y, -1, -1) - np.roll(x, -1, -1) * y).sum(-1)


class TestRender:
    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31), index=st.integers(0, 10**9))
    def test_same_arguments_same_bytes(self, seed, index):
        one, two, other = (ds.render(seed, k, 64) for k in (index, index, index + 1))
        assert np.array_equal(one.image, two.image) and one.words == two.words
        assert np.array_equal(one.quads, two.quads)
        assert not np.array_equal(one.image, other.image)

    @pytest.mark.parametrize(("size", "scene"), SCENES)
    def test_every_picture_has_words_with_quads_that_fit(self, size, scene):
        for index in range(60 if size < 256 else 25):
            image, words, quads = ds.render(1, index, size, scene=scene)[:3]
            assert image.shape == (size, size, 3) and image.dtype == np.uint8
            assert 1 <= len(words) <= scene.words[1]
            assert quads.shape == (len(words), 4, 2) and quads.dtype == np.float32
            assert quads.min() >= 0 and quads.max() <= size
            assert (areas(quads) > 9).all()  # clockwise, and larger than a speck
            left, right = quads[:, [0, 3]].mean((1, 2)), quads[:, [1, 2]].mean((1, 2))
            assert (quads[:, 1, 0] > quads[:, 0, 0]).all() and left.shape == right.shape
            assert set("".join(words)) <= set(scene.alphabet)

    def test_words_do_not_overlap(self):
        for index in range(40):
            quads = ds.render(2, index, 256).quads
            boxes = [(*quad.min(0), *quad.max(0)) for quad in quads]
            for k, (x0, y0, x1, y1) in enumerate(boxes):
                for u0, v0, u1, v1 in boxes[:k]:
                    assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0

    @pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
    @pytest.mark.parametrize(("size", "scene"), [(64, ds.DIGITS), (96, ds.Scene())])
    def test_words_stand_out_inside_their_quads(self, size, scene, count):
        """Luminance varies strongly in every quad, and more than around it in nearly all."""
        inside, around = [], []
        for sample in (ds.render(5, k, size, scene=scene) for k in range(count)):
            light = np.asarray(Image.fromarray(sample.image).convert("L"))
            for quad in sample.quads:
                center = quad.mean(0)
                word, near, far = (filled(center + (quad - center) * grown, size)
                                   for grown in (1, 1.3, 1.7))  # fmt: skip
                assert word.sum() > 50
                inside.append(np.ptp(np.percentile(light[word], [5, 95])))
                around.append(np.ptp(np.percentile(light[far & ~near], [5, 95])))
        assert len(inside) >= count and min(inside) > 35  # the faintest, of 41, were looked at
        assert np.mean(np.array(inside) > around) > 0.93 and np.median(inside) > 110

    def test_halves_share_no_word(self):
        words = {}
        for split in ds.SPLITS:
            drawn = [w for k in range(150) for w in ds.render(0, k, 64, split).words]
            words[split] = {w.lower() for w in drawn}
        assert not words["train"] & words["heldout"]
        assert all(ds.split_of(w) == split for split in ds.SPLITS for w in words[split])
        assert all(ds.split_of(w) == ds.split_of(w.upper()) for w in words["train"])

    def test_one_word_in_ten_is_held_out(self):
        held = np.mean([ds.split_of(str(k)) == "heldout" for k in range(10_000)])
        assert held == pytest.approx(0.1, abs=0.01)

    def test_every_kind_of_word_is_drawn(self):
        rng = np.random.default_rng(0)
        for kind, sample in (("list", str.isalpha), ("number", str.isdigit),
                             ("pseudo", str.isalpha)):  # fmt: skip
            words = [ds.draw_word(rng, ds.Scene(kinds=(kind,)), "train") for _ in range(30)]
            assert all(map(sample, words)) and len(set(words)) > 10
        words = [ds.draw_word(rng, ds.Scene(kinds=("random",)), "train") for _ in range(200)]
        assert len(set("".join(words))) > 85  # of 94: the text side cannot guess these
        assert {len(w) for w in words} == set(range(2, 11))

    def test_pillow_s_own_font_is_enough(self, monkeypatch):
        monkeypatch.setattr(ds, "FONT_FOLDERS", ())
        ds.font_files.cache_clear()
        try:
            assert ds.font_files() == (None,)
            assert ds.render(0, 0, 64).words
        finally:
            ds.font_files.cache_clear()

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        width=st.integers(5, 200), height=st.integers(5, 80),
        jitter=st.lists(st.floats(-0.2, 0.2), min_size=8, max_size=8),
    )  # fmt: skip
    def test_homography_solves_the_eight_equations(self, width, height, jitter):
        corners = ds.box_corners(0, 0, width, height)
        quad = corners + np.reshape(jitter, (4, 2)) * [width, height] + 7
        rows, wanted = [], []
        for (x, y), (u, v) in zip(corners, quad, strict=True):
            rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
            wanted += [u, v]
        solved = np.append(np.linalg.solve(rows, wanted), 1).reshape(3, 3)
        matrix = ds.homography(width, height, quad)
        np.testing.assert_allclose(matrix / matrix[2, 2], solved, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(ds.apply(matrix, corners), quad, rtol=1e-9, atol=1e-9)

    def test_the_quad_is_where_the_word_is(self, monkeypatch):
        """With a solid block in place of the letters, the changed pixels fill the quad."""

        def block(rng, ink, outline, pad, ground, plated):
            patch = Image.new("RGBA", ink.size)
            patch.paste("white", (pad, pad, ink.width - pad, ink.height - pad))
            return patch

        monkeypatch.setattr(ds, "paint", block)
        for seed in range(40):
            rng, image = np.random.default_rng(seed), Image.new("RGB", (128, 128))
            quad = ds.place_word(rng, image, "H48H", ds.Scene(), [])
            found = np.asarray(image)[..., 0] > 127
            inside = depth(quad, 128)
            assert found[inside > 1].all() and not found[inside < -1].any()  # to a pixel
            y, x = np.nonzero(found)
            for corner in quad:  # and at each corner there is a corner of the block
                assert np.hypot(x + 0.5 - corner[0], y + 0.5 - corner[1]).min() < 1 + 0.5**0.5

    def test_other_processes_draw_the_same_bytes(self):
        """Another run with another hash seed, and workers however they start."""

        def checksum(images):
            return zlib.crc32(b"".join(np.ascontiguousarray(image).tobytes() for image in images))

        want = checksum(ds.render(3, k, 64).image for k in range(8))
        code = ("import zlib, data_stub as ds; print(zlib.crc32(b''.join("
                "ds.render(3, k, 64).image.tobytes() for k in range(8))))")  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(ds.__file__).parent, check=True,
            env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True,
        )  # fmt: skip
        assert int(done.stdout) == want
        for method in ("fork", "spawn"):
            loader = DataLoader(ds.Rendered(64, 8, seed=3), batch_size=None, num_workers=2,
                                multiprocessing_context=method, collate_fn=image_of)  # fmt: skip
            assert checksum(loader) == want


def filled(quad: np.ndarray, size: int) -> np.ndarray:
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).polygon(quad.ravel().tolist(), fill=255)
    return np.asarray(mask) > 0


def depth(quad: np.ndarray, size: int) -> np.ndarray:
    """How far inside a convex quad the middle of each pixel is, (size, size), pixels."""
    y, x = np.mgrid[:size, :size] + 0.5
    edge = np.roll(quad, -1, 0) - quad
    normal = np.stack([-edge[:, 1], edge[:, 0]], 1) / np.hypot(*edge.T)[:, None]
    return np.min([(x - u) * p + (y - v) * q
                   for (u, v), (p, q) in zip(quad, normal, strict=True)], 0)  # fmt: skip


def image_of(sample: ds.Sample) -> np.ndarray:
    return sample.image

    def test_an_alphabet_without_a_word_for_a_half_is_said_at_once(self):
        scene = ds.Scene(alphabet="a", kinds=("random",), chars=(1, 2))
        splits = {ds.split_of(word) for word in ("a", "aa")}
        assert splits == {"train"}
        ds.open_source("synth", "train", 64, 4, 0, scene)
        with pytest.raises(ValueError, match="alphabet: got 'a', no heldout word in it"):
            ds.open_source("synth", "heldout", 64, 4, 0, scene)


class TestFolders:
    def test_synthtext_reads_what_is_written(self, tmp_path):
        ds.write_synthtext(tmp_path, 20, seed=4, size=64)
        train, held = (ds.SynthText(tmp_path, split) for split in ds.SPLITS)
        assert (len(train), len(held)) == (18, 2)
        want = [ds.render(4, k, 64) for k in range(20)]
        order = [k for k in range(20) if k % 10 != 9], [9, 19]
        for source, indices in zip((train, held), order, strict=True):
            for got, k in zip(source, indices, strict=True):
                assert got.words == want[k].words
                np.testing.assert_array_equal(got.quads, want[k].quads)
                difference = got.image.astype(int) - want[k].image
                assert abs(difference).mean() < 12  # JPEG of noise

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_photograph_is_turned_as_viewers_show_it(self, orientation, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 2, (4, 6, 3), np.uint8) * 255
        photo = Image.fromarray(pixels.repeat(32, 0).repeat(32, 1))
        turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
                6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}.get(orientation)  # fmt: skip
        shown = photo.transpose(Image.Transpose[turn]) if turn else photo
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
        for least in (None, 40):  # 40: decoded at half the size
            got, scale = ds.open_image(tmp_path / "a.jpg", least)
            assert got.size == (round(shown.width * scale), round(shown.height * scale))
            assert scale == (0.5 if least else 1)
            wanted = np.asarray(shown.resize(got.size, Image.Resampling.BOX), int)
            assert abs(np.asarray(got, int) - wanted).mean() < 12

    def test_jsonl_round_trip_with_and_without_quads(self, tmp_path):
        Image.new("RGB", (40, 20), (9, 8, 7)).save(tmp_path / "a.png")
        quad = [[[1, 2], [30, 2], [30, 12], [1, 12]]]
        lines = [{"image": "a.png", "words": ["Émile"], "quads": quad},
                 {"image": "a.png", "words": ["two", "words"]},
                 {"image": "a.png", "words": []}]  # fmt: skip
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / "d.jsonl").write_text(text + "\n\n", encoding="utf-8")
        source = ds.JsonLines(tmp_path / "d.jsonl")
        assert len(source) == 2 and len(ds.JsonLines(tmp_path / "d.jsonl", "heldout")) == 1
        assert source[0].words == ["Émile"] and source[0].quads.tolist() == quad
        assert source[1].words == ["two", "words"] and source[1].quads is None
        assert source[0].image.shape == (20, 40, 3) and source[0].image[0, 0].tolist() == [9, 8, 7]

    def make_icdar(self, root: Path, numbers: list[int]) -> None:
        images, labels = (
            root / "ch4_training_images",
            root / ("ch4_training_localization_transcription_gt"),
        )
        images.mkdir(parents=True)
        labels.mkdir()
        for n in numbers:
            Image.new("RGB", (64, 48)).save(images / f"img_{n}.jpg")
            text = (
                f"\ufeff1,2,9,2,9,6,1,6,word{n}\r\n1,2,9,2,9,6,1,6,###\r\n3,4,5,4,5,9,3,9,a,b\r\n"
            )
            (labels / f"gt_img_{n}.txt").write_text(text, encoding="utf-8", newline="")

    def test_icdar_labels_with_mark_commas_and_unreadable_words(self, tmp_path):
        self.make_icdar(tmp_path, [2, 800, 801, 1000, 10])
        train, held = (ds.ICDAR2015(tmp_path, split) for split in ds.SPLITS)
        assert [s.words for s in train] == [["word2", "a,b"], ["word10", "a,b"], ["word800", "a,b"]]
        assert [s.words[0] for s in held] == ["word801", "word1000"]
        assert train[0].quads[0].tolist() == [[1, 2], [9, 2], [9, 6], [1, 6]]
        assert train[0].ignored.tolist() == [[[1, 2], [9, 2], [9, 6], [1, 6]]]
        assert train.read(0, 16).ignored[0, 1].tolist() == [4.5, 1]  # decoded at half its size
        assert (train.notes, held.notes) == (
            {"words marked unreadable": 3}, {"words marked unreadable": 2},
        )  # fmt: skip

    @pytest.mark.skipif(not REAL.is_dir(), reason="no ICDAR 2015 folder")
    def test_icdar_itself(self):
        train, held = (ds.ICDAR2015(REAL, split) for split in ds.SPLITS)
        assert (len(train), len(held)) == (800, 200)
        assert sum(len(item.words) for item in train.items + held.items) == 4468
        assert sum((train.notes + held.notes).values()) == 11_886 - 4468
        assert train[0].image.shape == (720, 1280, 3)

    @pytest.mark.parametrize("reader", [ds.SynthText, ds.ICDAR2015, ds.JsonLines])
    def test_a_missing_path_is_named_with_what_is_wanted(self, reader, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"(?s)nowhere.*not found; wanted\n    "):
            reader(tmp_path / "nowhere")

    def test_a_label_file_that_is_missing_is_named(self, tmp_path):
        self.make_icdar(tmp_path, [1, 2])
        next(tmp_path.glob("*gt/gt_img_2.txt")).unlink()
        with pytest.raises(FileNotFoundError, match=r"gt_img_2\.txt: not found"):
            ds.ICDAR2015(tmp_path)

    @pytest.mark.parametrize("line", ["1,2,3,4,5,6,7,word", "1,2,3,4,5,6,7,x,word", "word", ""])
    def test_a_malformed_label_is_named_by_file_and_line(self, tmp_path, line):
        self.make_icdar(tmp_path, [1, 2])
        path = next(tmp_path.glob("*gt/gt_img_2.txt"))
        path.write_text("1,2,9,2,9,6,1,6,fine\n" + line + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"gt_img_2\.txt:2: got .*, wanted x1,y1"):
            ds.ICDAR2015(tmp_path)

    @pytest.mark.parametrize(
        "line",
        ["{", "[]", '{"words": ["a"]}', '{"image": "a.png"}', '{"image": 3, "words": ["a"]}',
         '{"image": "a.png", "words": [3]}', '{"image": "a.png", "words": "EXIT"}',
         '{"image": "a.png", "words": ["a"], "quads": [[1, 2]]}',
         '{"image": "a.png", "words": ["a", "b"], "quads": [[[1, 2], [3, 4], [5, 6], [7, 8]]]}'],
    )  # fmt: skip
    def test_a_malformed_json_line_is_named_by_file_and_line(self, tmp_path, line):
        good = '{"image": "a.png", "words": ["a"]}\n'
        (tmp_path / "d.jsonl").write_text(good + line + "\n")
        with pytest.raises(ValueError, match=r"d\.jsonl:2: got .*, wanted \{\"image\": path"):
            ds.JsonLines(tmp_path / "d.jsonl")

    @pytest.mark.parametrize("text", ["", '{"image": "a.png", "words": ["a"]}\n'])
    def test_fewer_than_two_pictures_cannot_be_split(self, tmp_path, text):
        (tmp_path / "d.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"d\.jsonl: got [01] annotated pictures, wanted 2"):
            ds.JsonLines(tmp_path / "d.jsonl")

    @pytest.mark.parametrize("content", [b"", b"garbage" * 100])
    def test_a_damaged_gt_mat_is_named(self, tmp_path, content):
        (tmp_path / "gt.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"gt\.mat: not SynthText's gt\.mat"):
            ds.SynthText(tmp_path)

    def test_a_gt_mat_of_something_else_is_named(self, tmp_path):
        from scipy.io import savemat

        savemat(tmp_path / "gt.mat", {"imnames": np.zeros(3)})
        with pytest.raises(ValueError, match=r"gt\.mat: not SynthText's gt\.mat"):
            ds.SynthText(tmp_path)

    @pytest.mark.parametrize("spec", ["imagenet", "synthtext", "jsonl:", "synth:x", ""])
    def test_an_unknown_source_is_named(self, spec):
        with pytest.raises(ValueError, match=f"data: got '{spec}', wanted synth, synthtext:PATH"):
            ds.open_source(spec, "train", 64, 10)


def write_mat(root: Path, names: list[str], texts: list, boxes: list) -> Path:
    from scipy.io import savemat

    table = {key: np.empty((1, len(names)), object) for key in ("imnames", "txt", "wordBB")}
    for k, row in enumerate(zip(names, texts, boxes, strict=True)):
        for key, value in zip(table, row, strict=True):
            table[key][0, k] = np.array(value if key == "wordBB" else np.atleast_1d(value))
    savemat(root / "gt.mat", table)
    return root


BOX = np.float32([[1, 9, 9, 1], [2, 2, 6, 6]])  # (2, 4), x and y of a word's corners
LETTERS = "abé한中\u0301\u1112\u1161"  # the last three join what is before them, or each other


class TestSynthText:
    def make(self, root: Path, words: list[list[str]], boxes: list | None = None) -> Path:
        """One grey picture, 40 x 30, that all entries name; one entry a list of words."""
        (root / "8").mkdir(parents=True)
        Image.new("RGB", (40, 30), (99, 99, 99)).save(root / "8" / "x_0.png")
        boxes = boxes or [np.stack([BOX] * len(each), -1) for each in words]
        return write_mat(root, ["8/x_0.png"] * len(words), words, boxes)

    def test_as_published_lines_in_an_entry_blanks_and_one_box(self, tmp_path):
        texts = [["NO EXIT\n HERE  ", "either        "], ["EXIT\n"], ["two words"], ["a"]]
        boxes = [np.stack([BOX] * 4, -1), BOX, BOX, BOX]  # 2 x 4 where there is one word
        source = ds.SynthText(self.make(tmp_path / "st", texts, boxes))
        assert [s.words for s in source] == [["NO", "EXIT", "HERE", "either"], ["EXIT"]]
        assert source[1].quads.tolist() == [[[1, 2], [9, 2], [9, 6], [1, 6]]]
        assert source.notes == {"pictures with another number of quads than words": 1, ds.CUT: 0}
        assert [s.words for s in ds.SynthText(tmp_path / "st", "heldout")] == [["a"]]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        entries=st.lists(st.lists(st.text(LETTERS, min_size=1, max_size=40), max_size=4),
                         min_size=2, max_size=25),
        known=st.sets(st.sampled_from("abé한中"), min_size=1), split=st.sampled_from(ds.SPLITS),
    )  # fmt: skip
    def test_the_index_says_what_a_list_of_words_would(self, entries, known, split):
        entries = [[*words, "a"] for words in entries]  # an entry without words is not MATLAB's
        with tempfile.TemporaryDirectory() as folder:
            source = ds.SynthText(self.make(Path(folder) / "st", entries), split)
            held = [k for k in range(len(entries)) if k % 10 == 9] or [len(entries) - 1]
            wanted = [k for k in range(len(entries)) if (k in held) == (split == "heldout")]
            plain = [[vlpt.nfc(word) for word in entries[k]] for k in wanted]
            assert [s.words for s in source] == [[w[:25] for w in words] for words in plain]
            alphabet, notes, counts = vlpt.Alphabet("".join(known)), Counter(), Counter()
            got = source.learnable(alphabet, notes)
            found = [ds.count_learnable(words, alphabet, counts) for words in plain]
            assert got.tolist() == [n > 0 for n in found]
            for reason in (ds.UNKNOWN, ds.PARTLY):
                assert notes[reason] == counts[reason]
            assert source.notes[ds.CUT] == sum(len(word) > 25 for words in plain for word in words)
            assert source.characters() == Counter("".join(w[:25] for x in plain for w in x))

    def test_later_starts_do_not_read_gt_mat(self, tmp_path, monkeypatch, capsys):
        root = self.make(tmp_path / "st", [["one"], ["two", "three"], ["four"]])
        first = [s.words for s in ds.SynthText(root)]
        assert capsys.readouterr().out.count("index written, once") == 1
        monkeypatch.setattr("scipy.io.loadmat", None)
        assert [s.words for s in ds.SynthText(root)] == first == [["one"], ["two", "three"]]
        assert capsys.readouterr().out == "" and len(list(root.iterdir())) == 3

    @pytest.mark.parametrize(
        "damage", ["stale", "touched", "cut", "longer", "empty", "text", "ends"]
    )
    def test_an_index_that_does_not_fit_is_built_again(self, tmp_path, damage, capsys):
        root = self.make(tmp_path / "st", [["one"], ["two", "three"], ["four"]])
        path = ds.SynthText(root).table.path
        good = path.read_bytes()
        if damage == "stale":
            shutil.rmtree(root)
            self.make(root, [["other"], ["words", "now"], ["here"], ["too"]])
        elif damage == "touched":
            os.utime(root / "gt.mat", ns=(1, 1))
        else:
            broken = np.frombuffer(good, np.int64, len(good) // 8).copy()
            broken[len(ds.HEAD) + 4 * 4 + 3] = 99  # an end beyond the names
            ends = broken.tobytes() + good[len(broken) * 8 :]
            bad = {"cut": good[:-1], "longer": good + b"\0", "empty": b"", "ends": ends}
            path.write_bytes(bad.get(damage, b"not an index at all" * 99))
        capsys.readouterr()
        words = [s.words for s in ds.SynthText(root)]
        assert "index written" in capsys.readouterr().out
        if damage == "stale":
            assert words == [["other"], ["words", "now"], ["here"]]
        else:
            assert words == [["one"], ["two", "three"]]
            assert damage == "touched" or path.read_bytes() == good

    def test_where_nothing_can_be_written_a_cache_is_used(self, tmp_path, monkeypatch, capsys):
        root = self.make(tmp_path / "st", [["one"], ["two"]])
        (root / "gt.mat.index").mkdir()  # as good as a folder that is read-only
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert ds.SynthText(root)[0].words == ["one"]
        assert capsys.readouterr().out.startswith(str(tmp_path / "cache" / "vlpt"))
        monkeypatch.setattr("scipy.io.loadmat", None)
        assert ds.SynthText(root)[0].words == ["one"] and capsys.readouterr().out == ""
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "gt.mat"))
        with pytest.raises(ValueError, match=r"gt\.mat: its index can be written nowhere: .*index"):
            ds.SynthText(root)

    def test_an_interrupted_write_leaves_nothing(self, tmp_path, monkeypatch):
        root = self.make(tmp_path / "st", [["one"], ["two"]])

        def stop(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(ds.os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            ds.SynthText(root)
        assert sorted(path.name for path in root.iterdir()) == ["8", "gt.mat"]

    def test_pictures_may_lie_in_all_images(self, tmp_path):
        root = self.make(tmp_path / "st", [["one"], ["two"]])
        (root / "all_images").mkdir()
        (root / "8").rename(root / "all_images" / "8")
        assert ds.SynthText(root)[0].image.shape == (30, 40, 3)
        shutil.rmtree(root / "all_images")
        trees = r"(?s)8/x_0\.png: not found.*ROOT/8/ballet.*ROOT/all_images/8/ballet"
        with pytest.raises(FileNotFoundError, match=trees):
            ds.SynthText(root)

    def test_a_half_without_pictures_is_named(self, tmp_path):
        root = self.make(tmp_path / "st", [["one"], ["two", "boxes"]], [BOX, BOX])
        with pytest.raises(ValueError, match=r"gt\.mat: got 1 annotated .* wanted some in both"):
            ds.SynthText(root)

    def test_workers_map_the_index_themselves(self, tmp_path):
        ds.write_synthtext(tmp_path, 12, seed=0, size=64)
        data = ds.Pretraining(ds.SynthText(tmp_path), ALPHABET, 64, 0)
        assert len(pickle.dumps(data.source)) < 1000 < len(pickle.dumps(data)) < 10_000
        batches = [list(DataLoader(data, batch_sampler=[range(4), range(4, 8)], num_workers=count,
                                   collate_fn=ds.collate, multiprocessing_context=method))
                   for count, method in ((0, None), (1, "spawn"))]  # fmt: skip
        for one, two in zip(*batches, strict=True):
            assert torch.equal(one.images, two.images) and torch.equal(one.ids, two.ids)

    def test_words_mostly_outside_are_left_out_and_counted(self, tmp_path):
        shift = np.float32([[36], [0]])  # of a box 8 wide, in a picture 40 wide: 3 of 8 are left
        boxes = [np.stack([BOX + shift * 0.9, BOX + shift], -1), BOX + 99, BOX]
        source = ds.SynthText(self.make(tmp_path / "st", [["in", "out"], ["far"], ["held"]], boxes))
        assert (source[0].words, source[0].outside) == (["in"], 1)
        assert source[0].quads[0, :, 0].tolist() == pytest.approx([33.4, 40, 40, 33.4])
        assert (source[1].words, source[1].outside, source[1].quads.shape) == ([], 1, (0, 4, 2))
        batch = ds.collate([ds.Pretraining(source, ALPHABET, 32, 0)[k] for k in range(2)])
        assert (len(batch.images), batch.outside) == (1, 1)
        assert batch.skipped == [f"{source.root}: picture 1 has no learnable word inside it"]

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.floats(-50, 150, width=32), min_size=8, max_size=8), st.integers(1, 99))
    def test_clipped_quads_lie_in_the_picture_and_do_not_change_again(self, corners, height):
        quads = np.array(corners, np.float32).reshape(1, 4, 2)
        clipped, inside = ds.clip_quads(quads, 100, height)
        assert clipped.dtype == np.float32 and clipped.shape == quads.shape
        assert clipped.min() >= 0 and (clipped <= [100, height]).all()
        assert np.array_equal(ds.clip_quads(clipped, 100, height)[0], clipped)
        assert inside[0] == (abs(areas(clipped)) > abs(areas(quads)) / 2)[0]

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(left=st.integers(-30, 40), width=st.integers(1, 30))
    def test_a_word_stays_if_more_than_half_of_it_is_inside(self, left, width):
        quad = ds.box_corners(left, 5, left + width, 9)[None].astype(np.float32)
        seen = max(0, min(40, left + width) - max(0, left))
        assert ds.clip_quads(quad, 40, 30)[1].tolist() == [2 * seen > width]

    def test_links_stand_for_pictures_in_the_published_layout(self, tmp_path):
        from scipy.io import loadmat

        ds.write_synthtext(tmp_path, 20, seed=0, size=64, distinct=4)
        table = loadmat(tmp_path / "gt.mat")
        assert {table[key].shape for key in ("imnames", "wordBB", "charBB", "txt")} == {(1, 20)}
        sizes = {1: (2, 4)}
        for name, words, chars, text in zip(
            *(table[key][0] for key in ("imnames", "wordBB", "charBB", "txt")), strict=True
        ):
            said = " ".join(text).split()
            assert words.shape == sizes.get(len(said), (2, 4, len(said)))
            assert (words.dtype, chars.shape) == (np.float32, (2, 4, sum(map(len, said))))
            assert (tmp_path / name[0]).stat().st_nlink == 5
        assert ds.SynthText(tmp_path)[13].words == ds.render(0, 14 % 4, 64).words

    def test_letters_of_a_quad_fill_it_in_order(self):
        parts = ds.split_quad(ds.box_corners(0, 0, 12, 4), 3)
        want = [ds.box_corners(x, 0, x + 4, 4) for x in (0, 4, 8)]
        np.testing.assert_allclose(parts, want, atol=1e-5)

    def test_a_full_disk_is_noticed_before_anything_is_written(self, tmp_path, monkeypatch):
        usage = type(shutil.disk_usage(tmp_path))(10**12, 10**12, 10**9)
        monkeypatch.setattr(ds.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ValueError, match=r"st: got 1\.0 GB of free disk, wanted 2\.6"):
            ds.fake_synthtext(tmp_path / "st", 858_750)
        with pytest.raises(ValueError, match="--images: got 1, wanted at least 2"):
            ds.fake_synthtext(tmp_path / "st", 1)


class TestPretraining:
    def rendered(self, **changes) -> ds.Pretraining:
        scene = ds.Scene(words=(4, 5), chars=(2, 3), height=(0.08, 0.1))
        return ds.Pretraining(
            ds.Rendered(96, 6, scene=scene), ALPHABET, 96, **{"seed": 0} | changes
        )

    def test_an_epoch_visits_every_picture_once_in_another_order(self):
        data = self.rendered()
        pictures = [ds.render(0, k, 96, scene=data.source.scene).image for k in range(6)]

        def visited(k):
            image = data[k][0].permute(1, 2, 0).numpy()
            return next(i for i, p in enumerate(pictures) if np.array_equal(p, image))

        epochs = [[visited(epoch * 6 + k) for k in range(6)] for epoch in range(3)]
        assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1

    def test_up_to_three_words_are_drawn_anew_each_epoch(self):
        data, drawn = self.rendered(), {}
        for k in range(36):
            words = ALPHABET.decode(data[k][1])
            words = [w for w in words if w]
            image = data[k][0].numpy().tobytes()
            drawn.setdefault(image, []).append(tuple(words))
        assert len(drawn) == 6
        for index in range(6):
            sample = ds.render(0, index, 96, scene=data.source.scene)
            image = np.ascontiguousarray(sample.image.transpose(2, 0, 1)).tobytes()
            for words in drawn[image]:
                assert len(words) == min(3, len(sample.words))
                assert not Counter(words) - Counter(sample.words)  # without replacement
            if len(sample.words) > 3:
                assert len(set(drawn[image])) > 1

    def test_workers_change_no_byte(self):
        batches = [list(DataLoader(self.rendered(), batch_sampler=[[0, 1, 2], [3, 4, 5], [6, 7]],
                                   num_workers=workers, collate_fn=ds.collate))
                   for workers in (0, 2)]  # fmt: skip
        for one, two in zip(*batches, strict=True):
            assert torch.equal(one.images, two.images) and torch.equal(one.ids, two.ids)
        assert one.images.shape == (2, 3, 96, 96) and one.images.dtype == torch.uint8
        assert one.ids.shape == (2, 25, 3) and one.ids.dtype == torch.int64

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31), sizes=st.tuples(st.integers(1, 200), st.integers(1, 200)))
    def test_a_subset_is_the_same_for_a_seed_and_part_of_a_larger_one(self, seed, sizes):
        small, large = sorted(sizes)

        def chosen(size, seed):
            source = ds.Rendered(32, 200)
            return ds.Pretraining(source, ALPHABET, 32, seed, subset=size).indices.tolist()

        assert chosen(small, seed) == chosen(small, seed) and len(chosen(small, seed)) == small
        assert set(chosen(small, seed)) <= set(chosen(large, seed)) <= set(range(200))
        assert chosen(100, seed) != chosen(100, seed + 1)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31), count=st.integers(1, 9), share=st.floats(0.01, 1))
    def test_each_picture_keeps_its_share_of_words_through_all_epochs(self, seed, count, share):
        class Words(ds.Rendered):
            def read(self, index, least=None):
                words = [f"{index}-{k}" for k in range(count)]
                return ds.Sample(np.zeros((32, 32, 3), np.uint8), words, None)

        def seen(share):
            data, words = ds.Pretraining(Words(32, 3), ALPHABET, 32, seed, annotated=share), {}
            for k in range(3 * 30):
                for word in filter(None, ALPHABET.decode(data[k][1])):
                    words.setdefault(word[0], set()).add(word)
            return words

        kept, more = seen(share), seen(min(1, share + 0.3))
        want = max(1, round(share * count))
        assert sorted(kept) == ["0", "1", "2"] and all(len(x) == want for x in kept.values())
        assert all(kept[picture] <= more[picture] for picture in kept)

    def test_all_words_kept_is_the_run_without_the_option(self):
        one, two = self.rendered(), self.rendered(annotated=1.0, subset=6)
        for k in range(12):
            assert torch.equal(one[k][0], two[k][0]) and torch.equal(one[k][1], two[k][1])

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"subset": 7}, "subset: got 7, wanted 1 to 6"), ({"subset": 0}, "subset: got 0"),
         ({"annotated": 0}, "annotated: got 0, wanted above 0 and at most 1"),
         ({"annotated": 1.5}, "annotated: got 1.5")],
    )  # fmt: skip
    def test_a_subset_or_share_that_cannot_be_is_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.rendered(**options)

    def test_another_seed_is_another_run(self):
        one, two = ([tuple(ALPHABET.decode(self.rendered(seed=seed)[k][1])) for k in range(6)]
                    for seed in (0, 1))  # fmt: skip
        assert one != two

    def folder(self, tmp_path: Path, words: list[list[str]]) -> Path:
        """Each list is a training picture; a held-out one is added at the end."""
        path = tmp_path / "d.jsonl"
        lines = []
        for k, each in enumerate([*words, ["held"]]):
            Image.new("RGB", (50, 30), (k, k, k)).save(tmp_path / f"{k}.png")
            lines.append(json.dumps({"image": f"{k}.png", "words": each}))
        path.write_text("\n".join(lines))
        return path

    def test_words_that_cannot_be_learned_are_counted(self, tmp_path):
        path = self.folder(
            tmp_path, [["fine", "", "  ", "née", "two words"], ["x" * 40], [], ["é"]]
        )
        data = ds.Pretraining(ds.JsonLines(path), ALPHABET, 32, 0)
        assert data.notes == {
            "words that are empty": 2, "words without a character of the alphabet": 1,
            "words with some characters outside the alphabet (kept)": 2,
            "words cut to 25 characters": 1, "pictures without a usable word": 2,
        }  # fmt: skip
        words = {frozenset(w for w in ALPHABET.decode(data[k][1]) if w) for k in range(2)}
        assert words == {frozenset(["fine", "n\ufffde", "two\ufffdwords"]), frozenset(["x" * 25])}
        assert data[0][0].shape == (3, 32, 32)

    def test_large_jpegs_are_decoded_smaller_and_look_the_same(self, tmp_path):
        picture = Image.fromarray(ds.render(0, 1, 512).image).resize((801, 600))
        picture.save(tmp_path / "a.jpg", quality=95)
        quads = [[[8, 16], [80, 16], [80, 64], [8, 64]]]
        line = json.dumps({"image": "a.jpg", "words": ["one"], "quads": quads})
        (tmp_path / "d.jsonl").write_text(f"{line}\n{line}")
        source = ds.JsonLines(tmp_path / "d.jsonl")
        for least, scale in ((None, 1), (301, 1), (300, 2), (128, 4), (75, 8), (8, 8)):
            sample = source.read(0, least)
            assert sample.image.shape == (-(-600 // scale), -(-801 // scale), 3)
            assert (sample.quads * scale).tolist() == quads
        small = ds.Pretraining(source, ALPHABET, 128, 0)[0][0].permute(1, 2, 0).numpy()
        plain = np.asarray(picture.resize((128, 128), Image.Resampling.BILINEAR))
        assert abs(small.astype(int) - plain).mean() < 4

    @settings(max_examples=60, deadline=None, derandomize=True)
    @example(seed=0, shape=(128, 128), at=(0.3, 0.3))  # is it as large as it will be
    @given(seed=st.integers(0, 2**31), shape=st.tuples(st.integers(60, 200), st.integers(60, 200)),
           at=st.tuples(st.floats(-0.08, 0.8), st.floats(-0.08, 0.8)))  # fmt: skip
    def test_quads_go_with_the_picture_and_stay_in_view(self, seed, shape, at):
        """A white block on black is, in the varied picture, where its quad says."""
        left, top = np.multiply(at, shape).round()
        quads = ds.box_corners(left, top, left + 20, top + 20)[None].astype(np.float32)
        image = Image.new("L", shape)
        ImageDraw.Draw(image).rectangle((left, top, left + 19, top + 19), 255)
        pixels = torch.from_numpy(np.array(image)).expand(3, -1, -1)
        pixels, moved = ds.augment(pixels, quads, 128, np.random.default_rng(seed))
        assert pixels.shape == (3, 128, 128) and moved.min() >= -1e-6 and moved.max() <= 128 + 1e-6
        assert (areas(moved) > 0).all()  # never mirrored
        light, inside = pixels.float().mean(0).numpy(), depth(moved[0], 128)
        bright = light > (light.min() + light.max()) / 2
        assert bright[inside > 1.5].all() and not bright[inside < -1.5].any()

    def test_pictures_vary_by_seed_and_number_and_words_do_not(self, tmp_path):
        ds.write_synthtext(tmp_path, 12, seed=0, size=96)
        source = ds.SynthText(tmp_path)

        def items(workers=0, seed=0, augment=True):
            data = ds.Pretraining(source, ALPHABET, 64, seed, augment=augment)
            return next(iter(DataLoader(data, batch_sampler=[range(20)], num_workers=workers,
                                        collate_fn=ds.collate)))  # fmt: skip

        one, two, plain, other = items(), items(2), items(augment=False), items(seed=1)
        assert torch.equal(one.images, two.images) and torch.equal(one.ids, plain.ids)
        assert not torch.equal(one.images, other.images)
        difference = (one.images.int() - plain.images.int()).abs().float().mean((1, 2, 3))
        assert difference.min() > 2 and difference.mean() < 60

    def test_without_quads_only_colours_vary(self):
        pixels = torch.tensor([40, 200], dtype=torch.uint8).repeat_interleave(32)
        pixels = pixels[None, :, None].expand(3, 64, 2)
        for seed in range(20):
            varied, quads = ds.augment(pixels, None, 64, np.random.default_rng(seed))
            rows = varied.permute(1, 2, 0).numpy().astype(int)
            assert quads is None and (rows == rows[:, :1]).all()
            assert len(np.unique(np.delete(rows, range(28, 36), 0))) == 2  # the edge where it was

    def test_nothing_usable_at_all_is_an_error(self, tmp_path):
        path = self.folder(tmp_path, [["é"], []])
        with pytest.raises(ValueError, match=r"d\.jsonl: no picture has a word that the alphabet"):
            ds.Pretraining(ds.JsonLines(path), ALPHABET, 32, 0)

    @pytest.mark.parametrize("damage", ["garbage", "truncated", "missing", "empty", "folder"])
    def test_a_picture_that_cannot_be_read_is_skipped_and_named(self, tmp_path, damage):
        path = self.folder(tmp_path, [["one"], ["two"], ["three"]])
        picture = tmp_path / "1.png"
        content = picture.read_bytes()
        picture.unlink()
        if damage == "folder":
            picture.mkdir()
        elif damage != "missing":
            cut = {"garbage": b"not a picture", "truncated": content[:-30], "empty": b""}
            picture.write_bytes(cut[damage])
        data = ds.Pretraining(ds.JsonLines(path), ALPHABET, 32, 0)
        batch = ds.collate([data[k] for k in range(3)])
        assert len(batch.images) == len(batch.ids) == 2 and len(batch.skipped) == 1
        assert "1.png: not a readable picture" in batch.skipped[0]

    def test_a_batch_of_which_nothing_can_be_read_is_empty(self):
        batch = ds.collate(["a.png: not a readable picture", "b.png: not a readable picture"])
        assert len(batch.images) == len(batch.ids) == 0 and len(batch.skipped) == 2

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
    def test_pictures_of_any_mode_become_rgb(self, tmp_path, mode):
        path = self.folder(tmp_path, [["one"]])
        name = "0.tif" if mode == "CMYK" else "0.png"
        Image.new(mode, (50, 30)).save(tmp_path / name)
        path.write_text(path.read_text().replace("0.png", name))
        assert ds.JsonLines(path)[0].image.shape == (30, 50, 3)


class TestAlphabets:
    def folder(self, tmp_path: Path, words: list[str]) -> ds.JsonLines:
        lines = [json.dumps({"image": "a.png", "words": words})] * 2
        (tmp_path / "d.jsonl").write_text("\n".join(lines))
        return ds.JsonLines(tmp_path / "d.jsonl")

    def test_of_the_words_is_composed_the_most_frequent_first_and_capped(
        self, tmp_path, monkeypatch
    ):
        words = [
            "b\u200b a",
            "출구",
            unicodedata.normalize("NFD", "출구"),
            "出口口口口",
            "née",
            "e",
        ]
        source = self.folder(tmp_path, words)
        assert ds.read_alphabet("data", source) == "口e구출abné出"  # no blank, nothing invisible
        monkeypatch.setattr(ds, "MOST", 3)
        assert ds.read_alphabet("data", source) == "口e구"

    def test_ascii_and_a_file(self, tmp_path):
        assert ds.read_alphabet("ascii") == vlpt.PRINTABLE
        path, text = tmp_path / "chars.txt", "b\na é" + unicodedata.normalize("NFD", "é한") + "a\t"
        path.write_text(text, encoding="utf-8-sig")
        assert ds.read_alphabet(str(path)) == "baé한"

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b" \n", "chars.txt has no printable"), (b"\xff", "not UTF-8")],
    )
    def test_a_file_without_characters_is_named(self, tmp_path, content, message):
        (tmp_path / "chars.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ds.read_alphabet(str(tmp_path / "chars.txt"))
        with pytest.raises(
            FileNotFoundError, match=r"(?s)0123: not found; wanted.*ascii, data, or"
        ):
            ds.read_alphabet("0123")

    def test_rendered_pictures_have_their_scene_s(self):
        assert ds.read_alphabet("data", ds.Rendered(64, 2, scene=ds.DIGITS)) == "0123456789"


class TestCommandLine:
    def run(self, *args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, ds.__file__, *args], capture_output=True, text=True, check=False
        )

    def test_draws_a_sheet(self, tmp_path):
        done = self.run("--sheet", str(tmp_path / "s.png"), "--count", "7", "--size", "64")
        assert done.returncode == 0, done.stderr
        assert "7 pictures of synth, train" in done.stdout
        with Image.open(tmp_path / "s.png") as sheet:
            pixels = np.asarray(sheet)
        assert pixels.shape[1] == 6 * 262 and pixels.std() > 30
        assert ((pixels == (255, 220, 0)).all(-1)).sum() > 7 * 5  # the dots at first corners

    @pytest.mark.parametrize(
        ("args", "message"),
        [(["--data", "imagenet"], "data: got 'imagenet'"), (["--count", "0"], "--count"),
         (["--data", "icdar2015:nowhere"], "nowhere"), (["--size", "8"], "--size"),
         (["--seed", "-1"], "--seed at least 0")],
    )  # fmt: skip
    def test_a_mistake_is_one_error_without_a_traceback(self, tmp_path, args, message):
        done = self.run("--sheet", str(tmp_path / "s.png"), *args)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.startswith("data_stub.py: error: ") and message in done.stderr
        assert not list(tmp_path.iterdir())

    def test_writes_a_stand_in_for_synthtext_in_a_new_folder_only(self, tmp_path):
        done = self.run("fake-synthtext", str(tmp_path / "st"), "--images", "3")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("st: 3 pictures in SynthText's layout\n")
        assert len(ds.SynthText(tmp_path / "st")[0].words) >= 4
        before = (tmp_path / "st" / "gt.mat").read_bytes()
        done = self.run("fake-synthtext", str(tmp_path / "st"), "--images", "4")
        assert done.stderr.startswith("data_stub.py: error: ") and "not empty" in done.stderr
        assert (tmp_path / "st" / "gt.mat").read_bytes() == before

    def test_no_sheet_and_no_command_is_a_wrong_use(self):
        done = self.run("--count", "3")
        assert done.returncode == 2 and "wanted --sheet FILE.png or a command" in done.stderr

    @pytest.mark.parametrize("name", ["none/s.png", "s.nonsense"])
    def test_a_sheet_that_cannot_be_written_is_one_error(self, tmp_path, name):
        done = self.run("--sheet", str(tmp_path / name), "--count", "1", "--size", "64")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "error" in done.stderr and Path(name).suffix in done.stderr


class TestCheck:
    def jsonl(self, root: Path, entries: list[dict], name: str = "d.jsonl") -> str:
        Image.new("RGB", (40, 30)).save(root / "a.png")
        lines = [json.dumps({"image": "a.png", "words": ["fine"]} | entry) for entry in entries]
        (root / name).write_text("\n".join(lines), encoding="utf-8")
        return f"jsonl:{root / name}"

    def test_reports_what_is_there_and_what_is_not(self, tmp_path):
        inside, far = [[[1, 2], [9, 2], [9, 6], [1, 6]], [[90, 2], [99, 2], [99, 6], [90, 6]]]
        entries = [{"words": ["née", "", " "]}, {"words": ["x" * 40]}, {"image": "gone.png"},
                   {"words": ["in", "far"], "quads": [inside, far]}, {"words": []}]  # fmt: skip
        lines = ds.check(self.jsonl(tmp_path, [*entries, *[{}] * 15]))
        assert lines[0] == "pictures  20, 2 of them held out"
        assert lines[1] == "words     21, 7 different ones"  # gone.png's is not among them
        assert lines[2].startswith("alphabet  8 characters: x 40  n 17  e 16  i 16  f 16  é 1")
        assert lines[3].startswith("longest   " + "x" * 40 + "  fine  far  née  in")
        lacks = {line[10:] for line in lines if line.startswith("lacking")}
        assert lacks == {
            "2 words that are empty", "1 words cut to 25 characters", f"1 {ds.OUTSIDE}",
            "1 pictures without a usable word", "1 pictures that cannot be read",
        }  # fmt: skip
        worst = [line[10:] for line in lines if line.startswith("worst")]
        assert worst[0].startswith(f"{tmp_path / 'gone.png'}: not a readable picture")
        assert worst[1:] == [
            f"{tmp_path / 'a.png'}: {what}"
            for what in ("2 words that are empty", "1 pictures without a usable word",
                         "1 words cut to 25 characters", f"1 {ds.OUTSIDE}")
        ]  # fmt: skip

    def test_names_ten_and_caps_the_alphabet(self, tmp_path):
        text = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))
        words = [text[k : k + 10] for k in range(0, 100, 10)]
        lines = ds.check(self.jsonl(tmp_path, [{"words": [*words, ""]}] * 30))
        assert sum(line.startswith("worst") for line in lines) == 10
        assert "alphabet  100 characters: " in lines[2] and lines[2].endswith("  and 20 more")

    def test_every_layout_and_rendered_pictures(self, tmp_path):
        ds.write_synthtext(tmp_path, 25, seed=0, size=64)
        assert ds.check(f"synthtext:{tmp_path}")[0] == "pictures  25, 2 of them held out"
        assert len(ds.check("synth")) == 4  # nothing is lacking
        if REAL.is_dir():
            lines = ds.check(f"icdar2015:{REAL}")
            assert lines[1].startswith("words     4,468,")
            assert "lacking   7,418 words marked unreadable" in lines

    def run(self, *args: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, ds.__file__, "check", *args]
        return subprocess.run(command, capture_output=True, check=False, **options)

    def test_a_terminal_without_the_characters_gets_their_numbers(self, tmp_path):
        spec = self.jsonl(tmp_path, [{"words": ["중\x1b[31m"]}] * 20)
        done = self.run(spec, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0 and rb"longest   \uc911\x1b[31m" in done.stdout

    @pytest.mark.parametrize("split", ds.SPLITS)
    def test_pictures_that_are_all_broken_make_a_source_unusable(self, tmp_path, split):
        entries = [{"image": "gone.png"} if (k % 10 == 9) == (split == "heldout") else {}
                   for k in range(20)]  # fmt: skip
        done = self.run(self.jsonl(tmp_path, entries), text=True)
        assert done.returncode == 1 and not done.stdout
        wanted = {"train": 1, "heldout": 2}[split]
        message = f"d.jsonl: got 0 usable {split} pictures, wanted {wanted}\n"
        assert done.stderr.startswith("data_stub.py: error: ") and done.stderr.endswith(message)


class TestDefects:
    """Whatever a file holds, the message names it."""

    def test_a_folder_is_no_file_of_json_lines(self, tmp_path):
        with pytest.raises(ValueError, match=rf"{tmp_path}: a folder; wanted\n    a file of lines"):
            ds.JsonLines(tmp_path)
        with pytest.raises(ValueError, match=rf"{tmp_path}: a folder; wanted\n    ascii, data"):
            ds.read_alphabet(str(tmp_path))

    def test_labels_that_are_not_utf8_are_named(self, tmp_path):
        TestFolders().make_icdar(tmp_path / "ic", [1, 2])
        label = next((tmp_path / "ic").glob("*gt/gt_img_2.txt"))
        for path, reader in ((label, ds.ICDAR2015), (tmp_path / "d.jsonl", ds.JsonLines)):
            path.write_bytes(b"1,2,9,2,9,6,1,6,caf\xe9\n")
            with pytest.raises(ValueError, match=rf"{path}: not UTF-8 \(.*position 19"):
                reader(tmp_path / "ic" if reader is ds.ICDAR2015 else path)

    def test_a_picture_of_icdar_without_a_number_is_named(self, tmp_path):
        TestFolders().make_icdar(tmp_path, [1, 2])
        Image.new("RGB", (64, 48)).save(tmp_path / "ch4_training_images" / "img_x.jpg")
        with pytest.raises(ValueError, match=r"img_x\.jpg: got this name, wanted img_NUMBER"):
            ds.ICDAR2015(tmp_path)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e39", "1e400", "1" + "0" * 400])
    def test_corners_are_finite(self, tmp_path, number):
        good = '{"image": "a.png", "words": ["a"]}\n'
        bad = '{"image": "a.png", "words": ["a"], "quads": [[[1,2],[3,4],[5,6],[7,%s]]]}'
        (tmp_path / "d.jsonl").write_text(good + bad % number)
        with pytest.raises(ValueError, match=r"d\.jsonl:2: got .*(finite|too large)"):
            ds.JsonLines(tmp_path / "d.jsonl")

    @pytest.mark.parametrize(
        "line", ["[" * 99_999, '{"image": "a.png", "words": ["\\ud800"]}',
                 '{"image": "\\ud800.png", "words": ["a"]}'],
    )  # fmt: skip
    def test_json_that_python_cannot_hold_is_named(self, tmp_path, line):
        (tmp_path / "d.jsonl").write_text('{"image": "a.png", "words": ["a"]}\n' + line)
        with pytest.raises(ValueError, match=r"d\.jsonl:2: got "):
            ds.JsonLines(tmp_path / "d.jsonl")

    def test_a_line_separator_inside_a_word_ends_no_line(self, tmp_path):
        line = json.dumps({"image": "a.png", "words": ["a\u2028b"]}, ensure_ascii=False)
        (tmp_path / "d.jsonl").write_text(f"\ufeff{line}\r\n{line}\r\n", encoding="utf-8")
        assert ds.JsonLines(tmp_path / "d.jsonl").items[0].words == ["a\u2028b"]


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a few places overwritten, cut out or filled in."""
    some = st.sampled_from(
        [b"", b"\0", b"\xff", b"\xff\xff\xff\x7f", b",", b"\n", b'"', b"[", b"9"]
    )
    place = st.tuples(st.integers(0, len(content)), st.integers(0, 6), some | st.binary(max_size=8))

    def change(places):
        found = content
        for start, length, new in places:
            found = found[:start] + new + found[start + length :]
        return found

    return st.lists(place, min_size=1, max_size=4).map(change)


FUZZ = settings(max_examples=int(os.getenv("VLPT_FUZZ", "40")), deadline=None, derandomize=True,
                suppress_health_check=list(HealthCheck))  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of Pillow, SciPy and NumPy about what is fuzzed here
class TestFuzz:
    """No change of a file gives a stack trace: either all works or an error names a file."""

    def use(self, spec: str, names: str) -> None:
        try:
            report = ds.check(spec)
            data = ds.Pretraining(ds.open_source(spec, "train", 32, 9), ALPHABET, 32, 0)
            batch = ds.collate([data[k] for k in range(len(data.indices))])
        except (ValueError, OSError) as error:
            assert re.search(names, str(error)), error
        else:
            assert report and all(re.search(names, line) for line in batch.skipped)

    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        root = tmp_path_factory.mktemp("fuzz")
        (root / "st").mkdir()
        TestSynthText().make(root / "st" / "good", [["one", "two"], ["three"], ["four"], ["five"]])
        TestFolders().make_icdar(root / "ic", [1, 2, 801, 802])
        TestCheck().jsonl(root, [{"quads": [[[1, 2], [9, 2], [9, 6], [1, 6]]]}] * 20)
        return root

    @FUZZ
    @given(data=st.data())
    def test_icdar_labels(self, folders, data):
        label = next((folders / "ic").glob("*gt/gt_img_1.txt"))
        label.write_bytes(data.draw(changed("1,2,9,2,9,6,1,6,né\r\n1,2,9,2,9,6,1,6,###".encode())))
        self.use(f"icdar2015:{folders / 'ic'}", r"gt_img_1\.txt|ic:")

    @FUZZ
    @given(data=st.data())
    def test_json_lines(self, folders, data):
        content = (folders / "d.jsonl").read_bytes()
        path = folders / "fuzzed.jsonl"
        path.write_bytes(data.draw(changed(content)))
        self.use(f"jsonl:{path}", r"fuzzed\.jsonl|not a readable picture")

    @FUZZ
    @given(value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
            st.sampled_from(["image", "words", "quads"]), inner)))  # fmt: skip
    def test_json_values(self, folders, value):
        path = folders / "fuzzed.jsonl"
        entries = [{"image": "a.png", "words": ["a"]}, value]
        if isinstance(value, dict):
            entries += [entries[0] | {key: each} for key, each in value.items()]
        path.write_text("\n".join(map(json.dumps, entries)))
        self.use(f"jsonl:{path}", r"fuzzed\.jsonl")

    @pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tif", "webp"])
    @FUZZ
    @given(data=st.data())
    def test_pictures(self, folders, kind, data):
        path = folders / f"picture.{kind}"
        Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).convert("RGB").save(path)
        path.write_bytes(data.draw(changed(path.read_bytes())))
        lines = [json.dumps({"image": path.name, "words": ["a"]})] * 4
        (folders / "p.jsonl").write_text("\n".join(lines))
        self.use(f"jsonl:{folders / 'p.jsonl'}", rf"picture\.{kind}|p\.jsonl")

    @FUZZ
    @given(data=st.data())
    def test_gt_mat(self, folders, data):
        good, root = folders / "st" / "good", folders / "st" / "fuzzed"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(good / "8", root / "8")
        (root / "gt.mat").write_bytes(data.draw(changed((good / "gt.mat").read_bytes())))
        self.use(f"synthtext:{root}", r"gt\.mat|fuzzed|x_0\.png")
