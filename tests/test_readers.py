"""Tests of readers/: the data sets, alphabets, and `python -m readers`."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from torch.utils.data import DataLoader

import data_stub as ds
import vlpt
from experiments import fake_synthtext as fake
from experiments.fake_synthtext import fake_synthtext, split_quad, write_synthtext
from readers import ICDAR2015, JsonLines, SynthText, open_source, read_alphabet, synthtext
from readers import alphabet as alphabets
from readers.__main__ import main
from readers.alphabet import count_learnable
from readers.check import OUTSIDE, check
from readers.detection import DetectionSample, open_detection
from readers.folder import MARKED
from readers.pictures import open_image
from readers.sheet import caption_font
from readers.totaltext import TotalText
from training.dataset import Pretraining, collate
from transfer.dataset import CheckedDataset

ROOT = Path(ds.__file__).parent
REAL = Path(os.getenv("VLPT_ICDAR2015", ROOT / "../shared/data/icdar2015"))
ALPHABET = vlpt.Alphabet(vlpt.PRINTABLE)


class TestFolders:
    def test_synthtext_reads_what_is_written(self, tmp_path):
        write_synthtext(tmp_path, 20, seed=4, size=64)
        train, held = (SynthText(tmp_path, split) for split in ds.SPLITS)
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
        turn = {
            2: "FLIP_LEFT_RIGHT",
            3: "ROTATE_180",
            4: "FLIP_TOP_BOTTOM",
            5: "TRANSPOSE",
            6: "ROTATE_270",
            7: "TRANSVERSE",
            8: "ROTATE_90",
        }.get(orientation)
        shown = photo.transpose(Image.Transpose[turn]) if turn else photo
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
        for least in (None, 40):  # 40: decoded at half the size
            got, scale = open_image(tmp_path / "a.jpg", least)
            assert got.size == (round(shown.width * scale), round(shown.height * scale))
            assert scale == (0.5 if least else 1)
            wanted = np.asarray(shown.resize(got.size, Image.Resampling.BOX), int)
            assert abs(np.asarray(got, int) - wanted).mean() < 12

    def test_a_lack_of_memory_is_no_damaged_picture(self, tmp_path, monkeypatch):
        def too_little(*_args, **_options):
            raise MemoryError

        for name in "ab":
            Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.png")
        monkeypatch.setattr("readers.pictures.to_rgb", too_little)
        with pytest.raises(MemoryError):
            open_image(tmp_path / "a.png")
        lines = (json.dumps({"image": f"{name}.png", "words": ["a"]}) for name in "ab")
        (tmp_path / "w.jsonl").write_text("\n".join(lines))
        with pytest.raises(SystemExit, match=r"^python -m readers: error: the memory is full"):
            main(["check", f"jsonl:{tmp_path}/w.jsonl"])

    def test_jsonl_round_trip_with_and_without_quads(self, tmp_path):
        for name in "abc":
            Image.new("RGB", (40, 20), (9, 8, 7)).save(tmp_path / f"{name}.png")
        quad = [[[1, 2], [30, 2], [30, 12], [1, 12]]]
        lines = [
            {"image": "a.png", "words": ["Émile"], "quads": quad},
            {"image": "b.png", "words": ["two", "words"]},
            {"image": "c.png", "words": []},
        ]
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / "d.jsonl").write_text(text + "\n\n", encoding="utf-8")
        source = JsonLines(tmp_path / "d.jsonl")
        assert len(source) == 2 and len(JsonLines(tmp_path / "d.jsonl", "heldout")) == 1
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
        train, held = (ICDAR2015(tmp_path, split) for split in ds.SPLITS)
        assert [s.words for s in train] == [["word2", "a,b"], ["word10", "a,b"], ["word800", "a,b"]]
        assert [s.words[0] for s in held] == ["word801", "word1000"]
        assert train[0].quads[0].tolist() == [[1, 2], [9, 2], [9, 6], [1, 6]]
        assert train[0].ignored.tolist() == [[[1, 2], [9, 2], [9, 6], [1, 6]]]
        assert train.read(0, 16).ignored[0, 1].tolist() == [4.5, 1]  # decoded at half its size
        assert (train.notes, held.notes) == (
            {"words marked unreadable": 3},
            {"words marked unreadable": 2},
        )

    def test_icdar_without_training_pictures_is_named(self, tmp_path, capsys):
        self.make_icdar(tmp_path, [801, 802])
        said = fails(capsys, "check", f"icdar2015:{tmp_path}")
        assert said.endswith(f"{tmp_path}: expected 1 or more usable train pictures, got 0")
        said = fails(capsys, "sheet", f"icdar2015:{tmp_path}", str(tmp_path / "s.png"))
        assert said.endswith(f"{tmp_path}: expected readable pictures in this split, got none")

    @pytest.mark.skipif(not REAL.is_dir(), reason="no ICDAR 2015 folder")
    def test_icdar_itself(self):
        train, held = (ICDAR2015(REAL, split) for split in ds.SPLITS)
        assert (len(train), len(held)) == (800, 200)
        assert sum(len(item.words) for item in train.items + held.items) == 4468
        assert sum((train.notes + held.notes).values()) == 11_886 - 4468
        assert train[0].image.shape == (720, 1280, 3)

    @pytest.mark.parametrize("reader", [SynthText, ICDAR2015, JsonLines])
    def test_a_missing_path_is_named_with_what_is_wanted(self, reader, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"nowhere.*expected .*(PATH|a file).*, got no such"
        ):
            reader(tmp_path / "nowhere")

    @pytest.mark.parametrize("line", ["1,2,3,4,5,6,7,word", "1,2,3,4,5,6,7,x,word", "word"])
    def test_a_malformed_label_is_named_by_file_and_line(self, tmp_path, line):
        self.make_icdar(tmp_path, [1, 2])
        path = next(tmp_path.glob("*gt/gt_img_2.txt"))
        path.write_text("1,2,9,2,9,6,1,6,fine\n" + line + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"gt_img_2\.txt:2: expected x1,y1.*, got "):
            ICDAR2015(tmp_path)

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "[]",
            '{"words": ["a"]}',
            '{"image": "a.png"}',
            '{"image": 3, "words": ["a"]}',
            '{"image": "a.png", "words": [3]}',
            '{"image": "a.png", "words": "EXIT"}',
            '{"image": "a.png", "words": ["a"], "quads": [[1, 2]]}',
            '{"image": "a.png", "words": ["a", "b"], "quads": [[[1, 2], [3, 4], [5, 6], [7, 8]]]}',
        ],
    )
    def test_a_malformed_json_line_is_named_by_file_and_line(self, tmp_path, line):
        good = '{"image": "a.png", "words": ["a"]}\n'
        (tmp_path / "d.jsonl").write_text(good + line + "\n")
        with pytest.raises(ValueError, match=r"d\.jsonl:2: expected \{\"image\": path"):
            JsonLines(tmp_path / "d.jsonl")

    @pytest.mark.parametrize(
        "quads",
        [
            np.arange(8).reshape(1, 2, 4),
            np.arange(8).reshape(2, 2, 2),
            np.arange(8).reshape(1, 8),
            np.arange(8),
            [],
        ],
    )
    def test_quads_of_another_shape_are_named(self, tmp_path, quads):
        quads = np.asarray(quads)
        lines = [{"image": "a.png", "words": ["a"], "quads": quads.tolist()}]
        (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
        message = f"quads: expected 1 of four [x, y], got shape {quads.shape}"
        with pytest.raises(ValueError, match=rf"d\.jsonl:1: .*{re.escape(message)}"):
            JsonLines(tmp_path / "d.jsonl")

    @pytest.mark.parametrize("text", ["", '{"image": "a.png", "words": ["a"]}\n'])
    def test_fewer_than_two_pictures_cannot_be_split(self, tmp_path, text):
        (tmp_path / "d.jsonl").write_text(text)
        with pytest.raises(
            ValueError, match=r"d\.jsonl: expected at least 2 annotated pictures, got [01]"
        ):
            JsonLines(tmp_path / "d.jsonl")

    @pytest.mark.parametrize("content", [b"", b"garbage" * 100])
    def test_a_damaged_gt_mat_is_named(self, tmp_path, content):
        (tmp_path / "gt.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"gt\.mat: not SynthText's gt\.mat"):
            SynthText(tmp_path)

    def test_a_gt_mat_of_something_else_is_named(self, tmp_path):
        from scipy.io import savemat

        savemat(tmp_path / "gt.mat", {"imnames": np.zeros(3)})
        with pytest.raises(ValueError, match=r"gt\.mat: not SynthText's gt\.mat"):
            SynthText(tmp_path)

    @pytest.mark.parametrize("spec", ["imagenet", "synthtext", "jsonl:", "synth:x", ""])
    def test_an_unknown_source_is_named(self, spec):
        with pytest.raises(
            ValueError,
            match=f"data: expected synth, or one or more of synthtext:PATH.*, got '{spec}'",
        ):
            open_source(spec, "train", 64, 10)

    @pytest.mark.parametrize("spec", ["synth", "jsonl:nowhere"])
    def test_an_unknown_split_is_named(self, spec):
        message = "split: expected one of train, heldout, got 'val'"
        with pytest.raises(ValueError, match=message):
            open_source(spec, "val")


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
        """Grey pictures, 40 x 30, one for each list of words."""
        (root / "8").mkdir(parents=True)
        names = [f"8/x_{k}.png" for k in range(len(words))]
        Image.new("RGB", (40, 30), (99, 99, 99)).save(root / names[0])
        for name in names[1:]:
            os.link(root / names[0], root / name)
        boxes = boxes or [np.stack([BOX] * len(each), -1) for each in words]
        return write_mat(root, names, words, boxes)

    def test_as_published_lines_in_an_entry_blanks_and_one_box(self, tmp_path):
        texts = [["NO EXIT\n HERE  ", "either        "], ["EXIT\n"], ["two words"], ["a"]]
        boxes = [np.stack([BOX] * 4, -1), BOX, BOX, BOX]  # 2 x 4 where there is one word
        source = SynthText(self.make(tmp_path / "st", texts, boxes))
        assert [s.words for s in source] == [["NO", "EXIT", "HERE", "either"], ["EXIT"]]
        assert source[1].quads.tolist() == [[[1, 2], [9, 2], [9, 6], [1, 6]]]
        assert source.notes == {
            synthtext.MISMATCHES: 1,
            synthtext.TWICE: 0,
            MARKED: 0,
            alphabets.CUT: 0,
        }
        assert [s.words for s in SynthText(tmp_path / "st", "heldout")] == [["a"]]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        entries=st.lists(
            st.lists(st.text(LETTERS, min_size=1, max_size=40), max_size=4), min_size=2, max_size=25
        ),
        known=st.sets(st.sampled_from("abé한中"), min_size=1),
        split=st.sampled_from(ds.SPLITS),
    )
    def test_the_index_says_what_a_list_of_words_would(self, entries, known, split):
        entries = [[*words, "a"] for words in entries]  # an entry without words is not MATLAB's
        with tempfile.TemporaryDirectory() as folder:
            source = SynthText(self.make(Path(folder) / "st", entries), split)
            held = [k for k in range(len(entries)) if k % 10 == 9] or [len(entries) - 1]
            wanted = [k for k in range(len(entries)) if (k in held) == (split == "heldout")]
            plain = [[vlpt.normalize_text(word) for word in entries[k]] for k in wanted]
            assert [s.words for s in source] == [[w[:25] for w in words] for words in plain]
            alphabet, counts = vlpt.Alphabet("".join(known)), Counter()
            got, notes = source.learnable(alphabet)
            found = [count_learnable(words, alphabet, counts) for words in plain]
            assert got.tolist() == [n > 0 for n in found]
            for reason in (alphabets.UNKNOWN, alphabets.PARTLY):
                assert notes[reason] == counts[reason]
            assert source.notes[alphabets.CUT] == sum(
                len(word) > 25 for words in plain for word in words
            )
            assert source.characters() == Counter("".join(w[:25] for x in plain for w in x))

    def test_later_starts_do_not_read_gt_mat(self, tmp_path, monkeypatch, capsys):
        root = self.make(tmp_path / "st", [["one"], ["two", "three"], ["four"]])
        first = [s.words for s in SynthText(root)]
        assert capsys.readouterr().out.count("wrote the index") == 1
        monkeypatch.setattr("scipy.io.loadmat", None)
        assert [s.words for s in SynthText(root)] == first == [["one"], ["two", "three"]]
        assert capsys.readouterr().out == "" and len(list(root.iterdir())) == 3

    def test_an_index_that_is_replaced_while_a_run_reads_it_stays_as_it_was(self, tmp_path):
        root = self.make(tmp_path / "st", [["one"], ["two"]])
        source = SynthText(root)
        shutil.rmtree(root)
        self.make(root, [["other"], ["words"]], [BOX + 5] * 2)
        assert SynthText(root)[0].quads.tolist() == [(BOX.T + 5).tolist()]
        assert source[0].words == ["one"] and source[0].quads.tolist() == [BOX.T.tolist()]

    @pytest.mark.parametrize(
        "damage", ["stale", "touched", "cut", "longer", "empty", "text", "header", "ends"]
    )
    def test_an_index_that_does_not_fit_is_built_again(self, tmp_path, damage, capsys):
        root = self.make(tmp_path / "st", [["one"], ["two", "three"], ["four"]])
        path = SynthText(root).table.path
        good = path.read_bytes()
        if damage == "stale":
            shutil.rmtree(root)
            self.make(root, [["other"], ["words", "now"], ["here"], ["too"]])
        elif damage == "touched":
            os.utime(root / "gt.mat", ns=(1, 1))
        else:
            broken = np.frombuffer(good, np.int64, len(good) // 8).copy()
            broken[2 + broken[1] // 8 + 3] = 99  # of `ends`, after the header; beyond the next end
            ends = broken.tobytes() + good[len(broken) * 8 :]
            header = good[:8] + np.int64(2).tobytes() + b"{}"  # of another version
            bad = {"cut": good[:-1], "longer": good + b"\0", "empty": b"", "ends": ends}
            bad["header"] = header
            path.write_bytes(bad.get(damage, b"not an index at all" * 99))
        capsys.readouterr()
        words = [s.words for s in SynthText(root)]
        assert "wrote the index" in capsys.readouterr().out
        if damage == "stale":
            assert words == [["other"], ["words", "now"], ["here"]]
        else:
            assert words == [["one"], ["two", "three"]]
            assert damage == "touched" or path.read_bytes() == good

    def test_where_nothing_can_be_written_a_cache_is_used(self, tmp_path, monkeypatch, capsys):
        root = self.make(tmp_path / "st", [["one"], ["two"]])
        (root / "gt.mat.index").mkdir()  # as good as a folder that is read-only
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert SynthText(root)[0].words == ["one"]
        assert capsys.readouterr().out.startswith(f"wrote the index {tmp_path}/cache/vlpt/")
        monkeypatch.setattr("scipy.io.loadmat", None)
        assert SynthText(root)[0].words == ["one"] and capsys.readouterr().out == ""
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "gt.mat"))
        with pytest.raises(
            ValueError, match=r"gt\.mat: expected a place to write its index, got none: .*index"
        ):
            SynthText(root)

    def test_a_process_without_a_home_folder_keeps_it_beside_gt_mat(self, tmp_path, monkeypatch):
        root = self.make(tmp_path / "st", [["one"], ["two"]])

        def no_home(_):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "expanduser", no_home)
        assert SynthText(root).table.path == root / "gt.mat.index"
        (root / "gt.mat.index").unlink()
        (root / "gt.mat.index").mkdir()
        with pytest.raises(ValueError, match=r"gt\.mat: expected a place to write its index"):
            SynthText(root)

    def test_an_interrupted_write_leaves_nothing(self, tmp_path, monkeypatch):
        root = self.make(tmp_path / "st", [["one"], ["two"]])

        def stop(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            SynthText(root)
        assert sorted(path.name for path in root.iterdir()) == ["8", "gt.mat"]

    def test_pictures_may_lie_in_all_images(self, tmp_path):
        root = self.make(tmp_path / "st", [["one"], ["two"]])
        (root / "all_images").mkdir()
        (root / "8").rename(root / "all_images" / "8")
        assert SynthText(root)[0].image.shape == (30, 40, 3)
        shutil.rmtree(root / "all_images")
        trees = r"PATH/8/ballet.*PATH/all_images/8/ballet.*, got none .* such as 8/x_0\.png"
        with pytest.raises(FileNotFoundError, match=trees):
            SynthText(root)

    def test_a_half_without_pictures_is_named(self, tmp_path):
        root = self.make(tmp_path / "st", [["one"], ["two", "boxes"]], [BOX, BOX])
        with pytest.raises(
            ValueError, match=r"gt\.mat: expected annotated pictures in both splits, got 1"
        ):
            SynthText(root)

    def test_only_mismatches_are_an_error_that_says_so(self, tmp_path):
        root = self.make(tmp_path / "st", [["two", "boxes"]] * 3, [BOX] * 3)
        reasons = f"got 0 altogether; {synthtext.MISMATCHES}: 3; {synthtext.TWICE}: 0"
        with pytest.raises(ValueError, match=f"{reasons}$"):
            SynthText(root)

    def test_too_little_memory_is_a_clear_error(self, tmp_path, monkeypatch):
        def too_little(*_args, **_options):
            raise MemoryError

        root = self.make(tmp_path / "st", [["one"], ["two"]])
        monkeypatch.setattr("scipy.io.loadmat", too_little)
        with pytest.raises(ValueError, match=r"gt\.mat: not enough memory .* needs 3\.3 GB$"):
            SynthText(root)

    def test_workers_map_the_index_themselves(self, tmp_path):
        write_synthtext(tmp_path, 12, seed=0, size=64)
        data = Pretraining(SynthText(tmp_path), ALPHABET, 64, 0)
        assert len(pickle.dumps(data.source)) < 1000 < len(pickle.dumps(data)) < 10_000
        batches = [
            list(
                DataLoader(
                    data,
                    batch_sampler=[range(4), range(4, 8)],
                    num_workers=count,
                    collate_fn=collate,
                    multiprocessing_context=method,
                )
            )
            for count, method in ((0, None), (1, "spawn"))
        ]
        for one, two in zip(*batches, strict=True):
            assert torch.equal(one.images, two.images) and torch.equal(one.ids, two.ids)

    def test_words_mostly_outside_are_left_out_and_counted(self, tmp_path):
        shift = np.float32([[36], [0]])  # of a box 8 wide, in a picture 40 wide: 3 of 8 are left
        boxes = [np.stack([BOX + shift * 0.9, BOX + shift], -1), BOX + 99, BOX]
        source = SynthText(self.make(tmp_path / "st", [["in", "out"], ["far"], ["held"]], boxes))
        assert (source[0].words, source[0].outside) == (["in"], 1)
        assert source[0].quads[0, :, 0].tolist() == pytest.approx([33.4, 41.4, 41.4, 33.4])
        assert source[0].ignored[:, :, 0].tolist() == [[37, 45, 45, 37]]  # its part that is seen
        assert (source[1].words, source[1].outside, source[1].quads.shape) == ([], 1, (0, 4, 2))
        assert source[1].ignored.shape == (0, 4, 2)
        batch = collate([Pretraining(source, ALPHABET, 32, 0)[k] for k in range(2)])
        assert (len(batch.images), batch.outside) == (1, 1)
        assert batch.skipped == [
            f"{source.name(1)}: expected a usable word inside the picture, got none"
        ]

    def test_links_stand_for_pictures_in_the_published_layout(self, tmp_path):
        from scipy.io import loadmat

        write_synthtext(tmp_path, 20, seed=0, size=64, distinct=4)
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
        assert SynthText(tmp_path)[13].words == ds.render(0, 14 % 4, 64).words

    def test_letters_of_a_quad_fill_it_in_order(self):
        parts = split_quad(ds.box_corners(0, 0, 12, 4), 3)
        want = [ds.box_corners(x, 0, x + 4, 4) for x in (0, 4, 8)]
        np.testing.assert_allclose(parts, want, atol=1e-5)

    def test_a_full_disk_is_noticed_before_anything_is_written(self, tmp_path, monkeypatch):
        usage = type(shutil.disk_usage(tmp_path))(10**12, 10**12, 10**9)
        monkeypatch.setattr(fake.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ValueError, match=r"st: expected 2\.6 GB of free disk, got 1\.0"):
            fake_synthtext(tmp_path / "st", 858_750)
        with pytest.raises(ValueError, match="--images: expected at least 2, got 1"):
            fake_synthtext(tmp_path / "st", 1)


def make_icdar(root: Path, numbers=(1, 2, 801, 802)) -> Path:
    images = root / "ch4_training_images"
    labels = root / "ch4_training_localization_transcription_gt"
    images.mkdir(parents=True)
    labels.mkdir()
    for n in numbers:
        Image.new("RGB", (96, 64), (n % 256, 80, 90)).save(images / f"img_{n}.jpg")
        text = "\ufeff10,10,50,10,50,30,10,30,word\r\n60,10,90,10,90,30,60,30,###\r\n"
        (labels / f"gt_img_{n}.txt").write_text(text, encoding="utf-8", newline="")
    return root


def make_totaltext(root: Path, line: str) -> Path:
    for folder in ("Train", "Test"):
        (root / "Images" / folder).mkdir(parents=True)
        (root / "txt_format" / folder).mkdir(parents=True)
        for n in (1, 2):
            Image.new("RGB", (96, 64)).save(root / "Images" / folder / f"img{n}.jpg")
            (root / "txt_format" / folder / f"poly_gt_img{n}.txt").write_text(line)
    return root


class TestDetection:
    """Pictures with polygons."""

    def test_unreadable_regions_are_ignored(self, tmp_path):
        data = open_detection(f"icdar2015:{make_icdar(tmp_path)}", "heldout")
        assert (len(data), data.name(0)) == (2, "img_801")
        sample = data[0]
        assert sample.ignored.tolist() == [False, True]
        assert [p[0].tolist() for p in sample.polygons] == [[10, 10], [60, 10]]

    def test_polygons_of_total_text(self, tmp_path):
        lines = (
            "x: [[10 30 50 50 30\n 10]], y: [[10 5 10 30 25 30]], ornt: [u'c'], "
            "transcriptions: [u'It's']\n"
            "x: [[60 90 90]], y: [[10 10 30]], ornt: [u'#'], transcriptions: [u'#']\n"
        )
        root = make_totaltext(tmp_path, lines)
        assert [len(open_detection(f"totaltext:{root}", half)) for half in ds.SPLITS] == [2, 2]
        data = open_detection(f"totaltext:{root}", "heldout")
        assert data.name(1) == "img2"
        sample = data[0]
        assert isinstance(sample, DetectionSample) and sample.image.size == (96, 64)
        curve = [[10, 10], [30, 5], [50, 10], [50, 30], [30, 25], [10, 30]]
        assert [p.tolist() for p in sample.polygons] == [curve, [[60, 10], [90, 10], [90, 30]]]
        assert sample.ignored.tolist() == [False, True]

    def test_labels_that_are_not_of_total_text_at_all_are_named(self, tmp_path):
        root = make_totaltext(tmp_path, "10,10,50,10,word")
        with pytest.raises(ValueError, match=r"poly_gt_img1\.txt:1: expected lines of x: .*, got"):
            TotalText(root, "train")

    def test_a_folder_of_total_text_without_pictures_is_named(self, tmp_path):
        root = make_totaltext(tmp_path, "")
        assert TotalText(root, "train")[0].words == []  # a picture may have no word
        for path in (root / "Images" / "Test").iterdir():
            path.unlink()
        with pytest.raises(
            ValueError, match=r"Images/Test: expected pictures .*PATH/Im.*, got none"
        ):
            TotalText(root, "heldout")
        with pytest.raises(FileNotFoundError, match=r"Images/Train: expected PATH.*, got no such"):
            TotalText(root / "txt_format", "train")

    def test_synthtext_and_the_renderer(self, tmp_path):
        write_synthtext(tmp_path, 12, seed=0, size=64)
        names = {f"synthtext:{tmp_path}": "picture_0", "synth": "picture_0_of_seed_0"}
        for spec, name in names.items():
            data = open_detection(spec, "train", 64, 3)
            assert data.name(0) == name
            assert len(data[0].polygons) == len(data[0].ignored) > 0
            assert len(CheckedDataset(data)[0].polygons) > 0

    def test_a_picture_without_quads_is_named_when_the_source_is_opened(self, tmp_path):
        quads = {"quads": [BOX.T.tolist()]}
        entries = [{"words": ["a"]} | (quads if k != 150 else {}) for k in range(200)]
        lines = [json.dumps({"image": f"{k}.png"} | entry) for k, entry in enumerate(entries)]
        (tmp_path / "d.jsonl").write_text("\n".join(lines))
        assert len(open_detection(f"jsonl:{tmp_path / 'd.jsonl'}", "heldout")) == 20
        with pytest.raises(ValueError, match=r"/150\.png: expected a quad for each word, got none"):
            open_detection(f"jsonl:{tmp_path / 'd.jsonl'}", "train")

    @pytest.mark.parametrize("spec", ["imagenet", "totaltext:", "synth:x"])
    def test_an_unknown_source_is_named(self, spec):
        with pytest.raises(ValueError, match=f"data: expected synth, .*, got '{spec}'"):
            open_detection(spec, "train")


class TestAlphabets:
    def folder(self, tmp_path: Path, words: list[str]) -> JsonLines:
        lines = [json.dumps({"image": f"{name}.png", "words": words}) for name in "ab"]
        (tmp_path / "d.jsonl").write_text("\n".join(lines))
        return JsonLines(tmp_path / "d.jsonl")

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
        assert read_alphabet("data", source) == "口e구출abné出"  # no blank, nothing invisible
        monkeypatch.setattr(alphabets, "MAX_ALPHABET", 3)
        assert read_alphabet("data", source) == "口e구"

    def test_no_character_is_lost_where_an_accent_follows_a_letter(self, tmp_path):
        source = self.folder(tmp_path, ["eee", "x\u0301", "q\u0301", "é", "\u1112", "\u1161"])
        alphabet = vlpt.Alphabet(read_alphabet("data", source))
        assert alphabet.index.keys() == set("exqé\u0301\u1112\u1161")
        (tmp_path / "chars.txt").write_text("e\n\u0301\né", encoding="utf-8")
        alphabet = vlpt.Alphabet(read_alphabet(str(tmp_path / "chars.txt")))
        assert alphabet.chars == "e\u0301é"

    def test_ascii_and_a_file(self, tmp_path):
        assert read_alphabet("ascii") == vlpt.PRINTABLE
        path, text = tmp_path / "chars.txt", "b\na é" + unicodedata.normalize("NFD", "é한") + "a\t"
        path.write_text(text, encoding="utf-8-sig")
        assert read_alphabet(str(path)) == "baé한"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b" \n", "expected printable characters in .*chars.txt, got none"),
            (b"\xff", "expected UTF-8 text, got"),
        ],
    )
    def test_a_file_without_characters_is_named(self, tmp_path, content, message):
        (tmp_path / "chars.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_alphabet(str(tmp_path / "chars.txt"))
        with pytest.raises(
            FileNotFoundError, match=r"0123: expected ascii, data, or.*, got no such"
        ):
            read_alphabet("0123")

    def test_rendered_pictures_have_their_scene_s(self):
        assert read_alphabet("data", ds.Rendered(64, 2, scene=ds.DIGITS)) == "0123456789"


def fails(capsys, *argv: str, command=main) -> str:
    """Run a command that ends with an error, and return its message."""
    with pytest.raises(SystemExit) as error:
        command(list(argv))
    assert error.value.code not in (None, 0)
    return capsys.readouterr().err if error.value.code == 2 else str(error.value.code)


class TestSheet:
    def test_shows_pictures_and_the_first_corners_of_their_words(self, tmp_path, capsys):
        out = tmp_path / "s.png"
        main(["sheet", "synth", str(out), "--count", "7", "--size", "64"])
        assert capsys.readouterr().out == f"wrote {out}: 7 of 7 training pictures of synth\n"
        with Image.open(out) as sheet:
            pixels = np.asarray(sheet)
        assert pixels.shape[1] == 6 * 262 and pixels.std() > 30
        assert ((pixels == (255, 220, 0)).all(-1)).sum() > 7 * 5  # the dots at first corners

    def test_skips_pictures_that_cannot_be_read_and_has_room_for_thin_ones(self, tmp_path, capsys):
        spec, out = TestCheck().jsonl(tmp_path, [{"words": ["a\nb"]}] * 5), tmp_path / "s.png"
        (tmp_path / "0.png").write_bytes(b"not a picture")
        Image.new("RGB", (1000, 1)).save(tmp_path / "1.png")
        Image.new("RGB", (1, 1000)).save(tmp_path / "2.png")
        main(["sheet", spec, str(out)])
        with Image.open(out) as sheet:
            assert sheet.height < 2.1 * sheet.width / 3  # at most twice its width, and a caption
        said = capsys.readouterr()
        assert said.out == f"wrote {out}: 3 of 4 training pictures of {spec}\n"
        assert said.err.startswith(f"warning: {tmp_path / '0.png'}: not a readable picture")
        assert said.err.count("\n") == 1

    def test_captions_are_drawn_in_a_font_that_has_their_letters(self):
        plain = ImageFont.load_default(15)
        assert caption_font("EXIT").getname() == plain.getname()
        assert caption_font("中").getname() == plain.getname()  # no font has it
        assert Path(caption_font("née Ж").path).name == "Manrope-Bold.ttf"

    def test_of_digits_shows_what_the_demo_trains_on(self, tmp_path, monkeypatch):
        opened = []
        monkeypatch.setattr(
            "readers.__main__.open_source", lambda *a: opened.append(a) or open_source(*a)
        )
        main(["sheet", "synth", str(tmp_path / "s.jpg"), "--count", "2", "--digits"])
        main(["sheet", "synth", str(tmp_path / "s.jpg"), "--count", "2", "--digits", "--size=96"])
        assert opened == [("synth", "train", size, 2, 0, ds.DIGITS) for size in (64, 96)]

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["imagenet"], "data: expected synth, or one or more of synthtext:PATH"),
            (["icdar2015:nowhere"], "nowhere"),
            (["synth", "--count", "0"], "--count: expected at least 1, got 0"),
            (["synth", "--size", "8"], "--size: expected at least 32, got 8"),
            (["synth", "--seed", "-1"], "--seed: expected at least 0, got -1"),
        ],
    )
    def test_a_mistake_is_one_error(self, tmp_path, capsys, args, message):
        said = fails(capsys, "sheet", args[0], str(tmp_path / "s.png"), *args[1:])
        assert said.startswith("python -m readers: error: ") and message in said
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["none/s.png", "s.nonsense"])
    def test_that_cannot_be_written_is_one_error(self, tmp_path, capsys, name):
        said = fails(capsys, "sheet", "synth", str(tmp_path / name), "--count=1", "--size=64")
        assert said.startswith("python -m readers: error: ") and name in said

    def test_a_failure_leaves_the_file_that_was_there(self, tmp_path, capsys, monkeypatch):
        out = tmp_path / "s.jpg"
        out.write_bytes(b"before")
        tall = Image.new("RGB", (1, 70_000))  # more than a JPEG can have
        monkeypatch.setattr("readers.__main__.contact_sheet", lambda *_: (tall, 1))
        said = fails(capsys, "sheet", "synth", str(out), "--count=1", "--size=64")
        assert said.startswith("python -m readers: error: ")
        assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]

    def test_no_command_or_an_unknown_one_is_a_wrong_use(self, capsys):
        assert "the following arguments are required: COMMAND" in fails(capsys)
        assert "invalid choice: 'draw'" in fails(capsys, "draw", "synth")


class TestFakeSynthText:
    def test_is_written_in_a_new_folder_only(self, tmp_path, capsys):
        folder = tmp_path / "st"
        fake.main([str(folder), "--images", "3"])
        assert capsys.readouterr().out == f"{folder}: 3 pictures in SynthText's layout\n"
        assert len(SynthText(folder)[0].words) >= 4
        before = (folder / "gt.mat").read_bytes()
        said = fails(capsys, str(folder), "--images", "4", command=fake.main)
        assert (
            said.startswith("python -m experiments.fake_synthtext: error: ")
            and "new or empty folder" in said
        )
        assert (folder / "gt.mat").read_bytes() == before


class TestCheck:
    def jsonl(self, root: Path, entries: list[dict], name: str = "d.jsonl") -> str:
        """One picture for each entry, 0.png and so on."""
        lines = []
        for k, entry in enumerate(entries):
            Image.new("RGB", (40, 30)).save(root / f"{k}.png")
            lines.append(json.dumps({"image": f"{k}.png", "words": ["fine"]} | entry))
        (root / name).write_text("\n".join(lines), encoding="utf-8")
        return f"jsonl:{root / name}"

    def test_reports_what_is_there_and_what_is_not(self, tmp_path):
        inside, far = [[[1, 2], [9, 2], [9, 6], [1, 6]], [[90, 2], [99, 2], [99, 6], [90, 6]]]
        entries = [
            {"words": ["née"]},
            {"words": ["x" * 40]},
            {"image": "gone.png"},
            {"words": ["in", "far"], "quads": [inside, far]},
            {"words": []},
        ]
        lines = check(self.jsonl(tmp_path, [*entries, *[{}] * 15])).lines
        assert lines[0] == "pictures  20, 2 of them held out"
        # The word of gone.png is not among them, nor is the one outside its picture.
        assert lines[1] == "words     18, 4 different ones"
        assert lines[2].startswith("alphabet  6 characters: x 40  n 17  e 16  i 16  f 15  é 1")
        assert lines[3].startswith("longest   " + "x" * 40 + "  fine  née  in")
        left_out = {line[10:] for line in lines if line.startswith("left out")}
        assert left_out == {
            f"{OUTSIDE}: 1",
            "pictures without a usable word: 1",
            "pictures that cannot be read: 1",
        }
        assert [line for line in lines if line.startswith("note")] == [
            "note      words cut to 25 characters: 1"
        ]
        worst = [line[10:] for line in lines if line.startswith("worst")]
        assert worst[0].startswith(f"{tmp_path / 'gone.png'}: not a readable picture")
        assert worst[1:] == [
            f"{tmp_path / name}.png: {what}"
            for name, what in (
                ("1", "words cut to 25 characters: 1"),
                ("3", f"{OUTSIDE}: 1"),
                ("4", "pictures without a usable word: 1"),
            )
        ]

    def test_names_ten_and_caps_the_alphabet(self, tmp_path):
        text = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))
        words = [text[k : k + 10] for k in range(0, 100, 10)]
        lines = check(self.jsonl(tmp_path, [{"words": [*words, "\u200b"]}] * 30)).lines
        assert sum(line.startswith("worst") for line in lines) == 11
        assert lines[-1] == "worst     and 20 more"
        assert "alphabet  100 characters: " in lines[2] and lines[2].endswith("  and 20 more")

    def test_every_layout_and_rendered_pictures(self, tmp_path):
        write_synthtext(tmp_path, 25, seed=0, size=64)
        assert check(f"synthtext:{tmp_path}").lines[0] == "pictures  25, 2 of them held out"
        lines = check("synth").lines
        assert not any(line.startswith(("left out", "worst")) for line in lines)

    @pytest.mark.slow
    @pytest.mark.skipif(not REAL.is_dir(), reason="no ICDAR 2015 folder")
    def test_icdar_itself(self):
        lines = check(f"icdar2015:{REAL}").lines
        assert lines[1].startswith("words     4,468,")
        assert "left out  words marked unreadable: 7,418" in lines

    def run(self, *args: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "readers", "check", *args]
        return subprocess.run(command, capture_output=True, check=False, cwd=ROOT, **options)

    def test_a_terminal_without_the_characters_gets_their_numbers(self, tmp_path):
        spec = self.jsonl(tmp_path, [{"words": ["중\x1b[31m"]}] * 20)
        done = self.run(spec, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0 and rb"longest   \uc911\x1b[31m" in done.stdout

    def test_a_sheet_and_an_index_are_named_in_any_terminal(self, tmp_path):
        write_synthtext(tmp_path / "출구", 12, seed=0, size=64)
        command = [sys.executable, "-m", "readers", "sheet", f"synthtext:{tmp_path / '출구'}"]
        done = subprocess.run(
            [*command, str(tmp_path / "é.png")],
            capture_output=True,
            check=False,
            cwd=ROOT,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert (
            rb"\ucd9c\uad6c/gt.mat.index" in done.stdout and rb"/\xe9.png: 11 of 11" in done.stdout
        )

    def test_an_interrupt_is_one_line(self, capsys, monkeypatch):
        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr("readers.__main__.check", interrupt)
        with pytest.raises(SystemExit) as stop:
            main(["check", "synth"])
        assert stop.value.code == 130
        assert capsys.readouterr().err == "python -m readers: stopped\n"

    def test_an_error_has_no_traceback(self, tmp_path):
        done = self.run("jsonl:nowhere", text=True)
        assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
        assert done.stderr.startswith("python -m readers: error: nowhere: expected a file")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("split", ds.SPLITS)
    def test_pictures_that_are_all_broken_make_a_source_unusable(self, tmp_path, capsys, split):
        entries = [
            {"image": f"gone{k}.png"} if (k % 10 == 9) == (split == "heldout") else {}
            for k in range(20)
        ]
        said = fails(capsys, "check", self.jsonl(tmp_path, entries))
        needed = {"train": 1, "heldout": 2}[split]
        assert said.startswith("python -m readers: error: ")
        assert f"d.jsonl: expected {needed} or more usable {split} pictures, got 0" in said
        assert said.endswith("so it needs 20 or more") == (split == "heldout")


class TestDefects:
    """Whatever a file holds, the message names it."""

    def test_a_folder_is_no_file_of_json_lines(self, tmp_path):
        with pytest.raises(
            ValueError, match=rf"{tmp_path}: expected a file of lines.*, got a folder"
        ):
            JsonLines(tmp_path)
        with pytest.raises(ValueError, match=rf"{tmp_path}: expected ascii, data.*, got a folder"):
            read_alphabet(str(tmp_path))

    def test_labels_that_are_not_utf8_are_named(self, tmp_path):
        TestFolders().make_icdar(tmp_path / "ic", [1, 2])
        label = next((tmp_path / "ic").glob("*gt/gt_img_2.txt"))
        for path, reader in ((label, ICDAR2015), (tmp_path / "d.jsonl", JsonLines)):
            path.write_bytes(b"1,2,9,2,9,6,1,6,caf\xe9\n")
            with pytest.raises(
                ValueError, match=rf"{path}: expected UTF-8 text, got other bytes \(.*position 19"
            ):
                reader(tmp_path / "ic" if reader is ICDAR2015 else path)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e39", "1e400", "1" + "0" * 400])
    def test_corners_are_finite(self, tmp_path, number):
        good = '{"image": "a.png", "words": ["a"]}\n'
        bad = '{"image": "a.png", "words": ["a"], "quads": [[[1,2],[3,4],[5,6],[7,%s]]]}'
        (tmp_path / "d.jsonl").write_text(good + bad % number)
        with pytest.raises(ValueError, match=r"d\.jsonl:2: expected .*(finite|too large)"):
            JsonLines(tmp_path / "d.jsonl")

    @pytest.mark.parametrize(
        "line",
        [
            "[" * 99_999,
            '{"image": "a.png", "words": ["\\ud800"]}',
            '{"image": "\\ud800.png", "words": ["a"]}',
        ],
    )
    def test_json_that_python_cannot_hold_is_named(self, tmp_path, line):
        (tmp_path / "d.jsonl").write_text('{"image": "a.png", "words": ["a"]}\n' + line)
        with pytest.raises(ValueError, match=r"d\.jsonl:2: expected "):
            JsonLines(tmp_path / "d.jsonl")

    def test_a_line_separator_inside_a_word_ends_no_line(self, tmp_path):
        line = json.dumps({"image": "a.png", "words": ["a\u2028b"]}, ensure_ascii=False)
        other = line.replace("a.png", "b.png")
        (tmp_path / "d.jsonl").write_text(f"\ufeff{line}\r\n{other}\r\n", encoding="utf-8")
        assert JsonLines(tmp_path / "d.jsonl").items[0].words == ["a\u2028b"]


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


FUZZ = settings(
    max_examples=int(os.getenv("VLPT_FUZZ", "40")),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore")  # of Pillow, SciPy and NumPy about what is fuzzed here
class TestFuzz:
    """No change of a file gives a stack trace: either all works or an error names a file."""

    def use(self, spec: str, names: str) -> None:
        try:
            report = check(spec)
            data = Pretraining(open_source(spec, "train", 32, 9), ALPHABET, 32, 0)
            batch = collate([data[k] for k in range(len(data.indices))])
        except (ValueError, OSError) as error:
            assert re.search(names, str(error)), error
        else:
            names += r"|\.jpg: expected a usable word"  # all of them may be outside the picture
            assert report.lines and all(re.search(names, line) for line in batch.skipped)

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
    def test_totaltext_labels(self, folders, data):
        if not (folders / "tt").exists():
            make_totaltext(folders / "tt", "")
        good = "x: [[1 9 9]], y: [[1 1 9]], ornt: [u'c'], transcriptions: [u'a']\n"
        for split in ("Train", "Test"):
            for n in (1, 2):
                label = folders / "tt" / "txt_format" / split / f"poly_gt_img{n}.txt"
                label.write_text(good)
        label.write_bytes(data.draw(changed((good + "x: [[0, -5 9]]" + good[12:]).encode())))
        self.use(f"totaltext:{folders / 'tt'}", r"poly_gt_img2\.txt|tt:")

    @FUZZ
    @given(data=st.data())
    def test_json_lines(self, folders, data):
        content = (folders / "d.jsonl").read_bytes()
        path = folders / "fuzzed.jsonl"
        path.write_bytes(data.draw(changed(content)))
        self.use(f"jsonl:{path}", r"fuzzed\.jsonl|not a readable picture")

    @FUZZ
    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["image", "words", "quads"]), inner)
            ),
        )
    )
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
        names = [path.name, *(f"{k}.png" for k in range(3))]
        lines = [json.dumps({"image": name, "words": ["a"]}) for name in names]
        (folders / "p.jsonl").write_text("\n".join(lines))
        self.use(f"jsonl:{folders / 'p.jsonl'}", rf"picture\.{kind}|p\.jsonl")

    @FUZZ
    @given(data=st.data())
    def test_gt_mat(self, folders, data):
        good, root = folders / "st" / "good", folders / "st" / "fuzzed"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(good / "8", root / "8")
        (root / "gt.mat").write_bytes(data.draw(changed((good / "gt.mat").read_bytes())))
        self.use(f"synthtext:{root}", r"gt\.mat|fuzzed|x_\d\.png")


class TestMixed:
    @pytest.fixture
    def specs(self, tmp_path) -> list[str]:
        """10 photographs with quads, and 20 without in a file; its folder has a + in its name."""
        folder = tmp_path / "a+b"
        folder.mkdir()
        lines = []
        for k in range(20):
            Image.new("RGB", (40, 30), (k, 0, 0)).save(folder / f"{k}.png")
            lines.append(json.dumps({"image": f"{k}.png", "words": [f"é{k}", "###"]}))
        (folder / "w.jsonl").write_text("\n".join(lines), "utf-8")
        numbers = [*range(1, 9), 801, 802]
        return [f"icdar2015:{make_icdar(tmp_path / 'ic', numbers)}", f"jsonl:{folder / 'w.jsonl'}"]

    @pytest.mark.parametrize("split", ds.SPLITS)
    def test_has_all_pictures_of_its_parts_once(self, specs, split):
        mixed = open_source("+".join(specs), split)
        parts = [open_source(spec, split) for spec in specs]
        want = {part.name(k): part[k] for part in parts for k in range(len(part))}
        assert len(mixed) == len(want) and {mixed.name(k) for k in range(len(mixed))} == want.keys()
        for k in range(len(mixed)):
            assert mixed[k].words == want[mixed.name(k)].words
            assert np.array_equal(mixed[k].image, want[mixed.name(k)].image)
        assert mixed.notes == parts[0].notes + parts[1].notes
        assert mixed.characters() == parts[0].characters() + parts[1].characters()
        found, notes = mixed.learnable(vlpt.Alphabet("wé"))
        assert found.all() and notes[alphabets.PARTLY] == len(mixed)

    def test_the_first_pictures_are_of_all_parts(self, specs):
        mixed = open_source("+".join(specs), "train")
        kinds = [Path(mixed.name(k)).suffix for k in range(len(mixed))]
        assert (kinds.count(".jpg"), kinds.count(".png")) == (8, 18)
        assert {kinds[:13].count(".jpg"), kinds[13:].count(".jpg")} == {4}

    def test_a_picture_can_be_learned_where_its_words_can(self, specs):
        mixed = open_source("+".join(specs), "train")
        got, _ = mixed.learnable(vlpt.Alphabet("é"))
        assert [Path(mixed.name(k)).suffix == ".png" for k in range(len(mixed))] == got.tolist()

    def test_a_detector_gets_the_polygons_of_each_part(self, specs):
        data = open_detection(f"{specs[0]}+{specs[0]}", "heldout")
        assert (len(data), data.name(0)) == (4, "img_801") and len(data[0].polygons) == 2
        with pytest.raises(ValueError, match=r"\.png: expected a quad for each word, got none"):
            open_detection("+".join(specs), "train")

    def test_a_part_that_is_missing_is_named(self, specs):
        with pytest.raises(FileNotFoundError, match="nowhere: expected"):
            open_source(f"{specs[0]}+jsonl:nowhere", "train")
        with pytest.raises(ValueError, match=r"data: expected synth, .*joined by \+, got 'synth\+"):
            open_source("synth+jsonl:nowhere", "train")
