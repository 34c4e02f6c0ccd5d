"""Tests of the readers of LSVT, ArT and CTW1500 on small folders in their layouts."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import data_stub as ds
import train_min
import vlpt
from experiments import fake_lsvt as fake
from experiments.fake_lsvt import fake_lsvt
from readers import CTW1500, LSVT, lsvt
from readers.check import check
from readers.detection import open_detection
from readers.folder import BAD_LINES, FEW_POINTS, MARKED, NO_LABEL, NO_PICTURE, NO_TEXT
from tests import test_readers
from tests.test_readers import FUZZ, changed
from training.dataset import Pretraining

ALPHABET = vlpt.Alphabet(vlpt.PRINTABLE + "中文")
TRIANGLE = [[1, 1], [30, 1], [30, 20]]
CURVE = [[4 * k, 5 + abs(k - 3)] for k in range(7)] + [[4 * k, 20] for k in range(6, -1, -1)]
NUMBERS = ",".join(str(x) for point in CURVE for x in point)


def region(text: str, points=TRIANGLE, **more) -> dict:
    return {"transcription": text, "points": points, "illegibility": False} | more


def make_lsvt(root: Path, entries: dict, part: str = "train_full", folders: int = 2) -> Path:
    """Pictures gt_0, gt_1, ... in turn in the folders of a part."""
    for k in range(folders):
        (root / f"{part}_images_{k}").mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(entries):
        Image.new("RGB", (40, 30)).save(root / f"{part}_images_{k % folders}" / f"{name}.jpg")
    (root / f"{part}_labels.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


def make_ctw(root: Path, texts=("curved", "###")) -> Path:
    for folder in ("train_images", "ctw1500_train_labels", "test_images", "gt_ctw1500"):
        (root / folder).mkdir(parents=True)
    boxes = "".join(
        f'<box height="9" left="1" top="1" width="9"><label>{text}</label>'
        f"<segs>{NUMBERS}</segs><pts>1,1</pts></box>"
        for text in texts
    )
    lines = "".join(f"{NUMBERS},####{text}\r\n" for text in texts)
    for k in (1, 2):
        Image.new("RGB", (40, 30)).save(root / f"train_images/000{k}.jpg")
        xml = f'<Annotations><image file="000{k}.jpg">{boxes}</image></Annotations>'
        (root / f"ctw1500_train_labels/000{k}.xml").write_text(xml, encoding="utf-8")
        Image.new("RGB", (40, 30)).save(root / f"test_images/100{k}.jpg")
        (root / f"gt_ctw1500/000100{k}.txt").write_text(lines, encoding="utf-8", newline="")
    return root


class TestLSVT:
    def entries(self, count: int = 20) -> dict:
        return {f"gt_{k}": [region("中文"), region(f"w{k}", CURVE)] for k in range(count)}

    def test_all_folders_of_a_part_are_read_and_every_tenth_picture_is_held_out(self, tmp_path):
        root = make_lsvt(tmp_path, self.entries())
        train, held = (LSVT(root, split) for split in ds.SPLITS)
        assert (len(train), len(held), train.notes, held.notes) == (18, 2, {}, {})
        assert held.name(0) == str(root / "train_full_images_1/gt_9.jpg")
        sample = held[0]
        assert sample.words == ["中文", "w9"]
        assert sample.quads[0].tolist() == [[1, 1], [30, 1], [30, 20], [1, 20]]
        polygons = open_detection(f"lsvt:{root}", "heldout")[0].polygons
        assert [polygon.tolist() for polygon in polygons] == [TRIANGLE, CURVE]
        assert check(f"lsvt:{root}").problems == []

    def test_the_weak_part_has_words_and_no_quads(self, tmp_path):
        make_lsvt(tmp_path, self.entries(10))
        weak = {f"gt_{k}": [{"transcription": f"weak{k}"}] for k in range(10)}
        root = make_lsvt(tmp_path, weak, "train_weak", 10)
        both = LSVT(root)
        assert len(both) == 18  # the folder holds both parts
        alone = LSVT(root / "train_weak_labels.json")
        sample = alone[3]
        assert (len(alone), sample.words, sample.quads) == (9, ["weak3"], None)
        data = Pretraining(alone, ALPHABET, 32, 0)
        assert ALPHABET.decode(data[0][1])[0].startswith("weak")
        with pytest.raises(ValueError, match="expected a quad for each word, got none"):
            open_detection(f"lsvt:{root / 'train_weak_labels.json'}", "train")[0]

    def test_art_has_one_folder(self, tmp_path):
        root = make_lsvt(tmp_path, self.entries(4), "train", 1)
        (root / "train_images_0").rename(root / "train_images")
        assert len(LSVT(root)) == 3

    def test_texts_that_are_no_words_are_counted(self, tmp_path):
        texts = [
            region("good"),
            region("a", illegibility=True),
            region("###"),
            region(""),
            region("two", TRIANGLE[:2]),
            region("odd", [[1, 2], [3, "x"], [5, 6]]),
            {"points": TRIANGLE},
            {"transcription": "nowhere"},
            "text",
            region(3),
        ]
        entries = self.entries(3) | {"gt_0": texts, "gt_7": [region("gone")]}
        root = make_lsvt(tmp_path, entries)
        Image.new("RGB", (9, 9)).save(root / "train_full_images_0/gt_8.jpg")
        next(root.rglob("gt_7.jpg")).rename(tmp_path / "elsewhere.jpg")
        source = LSVT(root)
        assert source.items[0].words == ["good"] and len(source.items[0].ignored) == 3
        assert source.notes == {
            MARKED: 2,
            NO_TEXT: 1,
            FEW_POINTS: 1,
            BAD_LINES: 5,
            NO_PICTURE: 1,
            NO_LABEL: 1,
        }
        assert f"{root / 'train_full_labels.json'}: gt_7: {NO_PICTURE}" in source.left_out

    @pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"gt_0": 3}', "[" * 99_999])
    def test_a_label_file_of_something_else_is_named(self, tmp_path, content):
        root = make_lsvt(tmp_path, self.entries(2))
        (root / "train_full_labels.json").write_text(content)
        with pytest.raises(ValueError, match=r"train_full_labels\.json: expected \{\"gt_0\""):
            LSVT(root)

    def test_names_may_hold_characters_of_a_pattern(self, tmp_path):
        root = make_lsvt(tmp_path, self.entries(), "train [1]*")
        assert len(LSVT(root / "train [1]*_labels.json")) == 18

    def test_a_missing_folder_of_pictures_is_named(self, tmp_path):
        root = make_lsvt(tmp_path, self.entries(2))
        for folder in root.glob("train_full_images_*"):
            folder.rename(root / f"moved_{folder.name}")
        message = r"expected PATH/train_full.*, got no folder of pictures named train_full_images\*"
        for path in (root, root / "train_full_labels.json"):
            with pytest.raises(FileNotFoundError, match=message):
                LSVT(path)

    def test_a_folder_without_labels_is_named(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"expected PATH/train_full_labels.*, got no label file"
        ):
            LSVT(tmp_path)
        with pytest.raises(
            FileNotFoundError, match=r"nowhere: expected PATH/train_full.*, got no such"
        ):
            LSVT(tmp_path / "nowhere")


class TestIndexOfLSVT:
    """Large label files get an index, which changes nothing but the time and the memory."""

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        """Both parts, with all that is left out or odd; "é" and a line break are spelled oddly."""
        texts = [region("good"), region("a", illegibility=True), region(""), region("x\ny", CURVE)]
        entries = TestLSVT().entries(12) | {"gt_1": texts, "gt_2": [], "gt_40": [region("gone")]}
        root = make_lsvt(tmp_path / "lsvt", entries)
        next(root.rglob("gt_40.jpg")).rename(tmp_path / "elsewhere.jpg")
        Image.new("RGB", (9, 9)).save(root / "train_full_images_0/gt_41.jpg")
        weak = {f"gt_{k}": [{"transcription": f"e\u0301 weak {'long' * k}中文"}] for k in range(13)}
        return make_lsvt(root, weak, "train_weak", 3)

    @pytest.mark.parametrize("split", ds.SPLITS)
    @pytest.mark.parametrize("part", ["", "train_weak_labels.json", "train_full_labels.json"])
    def test_says_what_the_labels_say(self, root, split, part, monkeypatch, capsys):
        plain = LSVT(root / part, split)
        monkeypatch.setattr(lsvt, "MIN_INDEXED", 0)
        for printed in (1, 0):  # the first start writes the index, and later ones do not
            indexed = LSVT(root / part, split)
            assert capsys.readouterr().out.count("wrote the index") == printed
            assert (len(indexed), indexed.notes) == (len(plain), plain.notes)
            assert (indexed.left_out, indexed.as_shown) == (plain.left_out, plain.as_shown)
            assert [indexed.name(k) for k in range(len(plain))] == [
                str(i.path) for i in plain.items
            ]
            for got, want in zip(indexed.items, plain.items, strict=True):
                words = [vlpt.normalize_text(w).replace("\n", " ") for w in want.words]
                assert got.words == words and (got.polygons is None) == (want.polygons is None)
                for ours, theirs in ((got.polygons, want.polygons), (got.ignored, want.ignored)):
                    if theirs is not None:
                        assert [p.tolist() for p in ours] == [p.tolist() for p in theirs]
            for chars in ("中", "abcdegklnow", "é"):
                alphabet = vlpt.Alphabet(chars)
                (found, notes), (want, counts) = (
                    source.learnable(alphabet) for source in (indexed, plain)
                )
                assert found.tolist() == want.tolist() and notes == counts
            printable = [
                +Counter({c: n for c, n in s.characters().items() if c not in " \n"})
                for s in (indexed, plain)
            ]
            assert printable[0] == printable[1]

    @pytest.mark.parametrize("part", ["", "train_full_labels.json"])
    def test_names_what_is_left_out_from_within_the_folder(self, root, part, monkeypatch):
        monkeypatch.chdir(root)
        plain = LSVT(part)
        monkeypatch.setattr(lsvt, "MIN_INDEXED", 0)
        assert plain.left_out == LSVT(part).left_out
        assert plain.left_out[-1].startswith("train_full_labels.json: gt_40: ")
        here = [f"{root}/{where}" for where in plain.left_out]
        assert LSVT(root / part).left_out == here  # from the same index

    def test_is_built_again_when_labels_or_pictures_change(self, root, monkeypatch, capsys):
        monkeypatch.setattr(lsvt, "MIN_INDEXED", 0)
        assert len(LSVT(root)) == 23
        Image.new("RGB", (9, 9)).save(root / "train_full_images_0/gt_40.jpg")
        assert len(LSVT(root)) == 24
        labels = json.loads((root / "train_weak_labels.json").read_text())
        (root / "train_weak_labels.json").write_text(json.dumps(labels | {"gt_0": [region("new")]}))
        assert capsys.readouterr().out.count("wrote the index") == 2
        assert ["new"] in [item.words for item in LSVT(root).items]
        assert capsys.readouterr().out.count("wrote the index") == 1

    def test_an_index_that_is_damaged_is_built_again(self, root, monkeypatch, capsys):
        monkeypatch.setattr(lsvt, "MIN_INDEXED", 0)
        path = LSVT(root).table.path
        assert path == root / "lsvt.train.index"
        good = path.read_bytes()
        for bad in (good[:-1], good + b"\0", b"", b"text" * 99, good[:30] + b"{" + good[31:]):
            path.write_bytes(bad)
            assert len(LSVT(root)) == 23 and path.read_bytes() == good

    def test_stays_as_it_was_if_its_file_is_replaced(self, root, monkeypatch):
        monkeypatch.setattr(lsvt, "MIN_INDEXED", 0)
        source = LSVT(root)
        before = [polygon.tolist() for polygon in source.items[1].polygons]
        longer = json.loads((root / "train_full_labels.json").read_text())
        longer["gt_0"] *= 9
        (root / "train_full_labels.json").write_text(json.dumps(longer))
        assert len(LSVT(root).items[0].words) == 18
        assert [polygon.tolist() for polygon in source.items[1].polygons] == before

    def test_workers_map_it_themselves(self, root, monkeypatch):
        monkeypatch.setattr(lsvt, "MIN_INDEXED", 0)
        source = LSVT(root)
        assert len(pickle.dumps(source)) < 1000
        again = pickle.loads(pickle.dumps(source))
        assert (again[0].words, again.name(3)) == (source[0].words, source.name(3))

    def test_a_run_learns_the_characters_of_its_words(
        self, tmp_path, monkeypatch, capsys, no_figures
    ):
        """From the labels to a backbone, with `--alphabet data`."""
        monkeypatch.setattr(lsvt, "MIN_INDEXED", 0)
        monkeypatch.chdir(tmp_path)
        fake_lsvt(tmp_path / "lsvt", 10, 30)
        options = "--alphabet data --image-size 64 --samples 8 --batch 4 --eval 4 --workers 0"
        train_min.main(["--data", "lsvt:lsvt", *options.split(), "--name", "chinese"])
        checkpoint = vlpt.read_checkpoint(tmp_path / "runs/chinese/checkpoint.pt")
        alphabet = checkpoint["config"]["alphabet"]
        assert set(alphabet) == set(LSVT("lsvt").characters())
        assert len(alphabet) > 50 and all("\u4e00" <= char <= "\u9fff" for char in alphabet)
        size = checkpoint["config"]["backbone_size"]
        path = tmp_path / "runs/chinese/backbone.safetensors"
        vlpt.load_backbone(path, checkpoint["config"]["backbone"], **size)

    def test_a_stand_in_has_the_layout_and_the_numbers(self, tmp_path, capsys):
        fake.main([str(tmp_path / "lsvt"), "--full", "20", "--weak", "30"])
        assert capsys.readouterr().out.endswith("50 pictures in LSVT's layout\n")
        assert len(LSVT(tmp_path / "lsvt")) == 45
        placed = [item.polygons is not None for item in LSVT(tmp_path / "lsvt").items]
        assert placed == [True] * 18 + [False] * 27
        with pytest.raises(SystemExit, match="expected a new or empty folder, got one with files"):
            fake.main([str(tmp_path / "lsvt")])
        with pytest.raises(
            SystemExit, match="--full, --weak: expected at least 2 pictures each, got 1 and"
        ):
            fake.main([str(tmp_path / "other"), "--full", "1"])


class TestCTW1500:
    def test_training_and_test_labels(self, tmp_path):
        root = make_ctw(tmp_path)
        for split, number in (("train", "0001"), ("heldout", "1001")):
            source = CTW1500(root, split)
            assert (len(source), Path(source.name(0)).stem) == (2, number)
            assert source[0].words == ["curved"] and source.notes == {MARKED: 2}
            sample = open_detection(f"ctw1500:{root}", split)[0]
            assert [polygon.tolist() for polygon in sample.polygons] == [CURVE, CURVE]
            assert sample.ignored.tolist() == [False, True]
        assert check(f"ctw1500:{root}").problems == []

    def test_regions_that_cannot_be_read_cost_themselves_only(self, tmp_path):
        root = make_ctw(tmp_path, ("good", ""))
        xml = root / "ctw1500_train_labels/0001.xml"
        xml.write_text(xml.read_text().replace("<image", "<box/><image", 1))
        text = root / "gt_ctw1500/0001001.txt"
        text.write_text(f"1,2,3\n\n{text.read_text()}1,2,3,####few\n{NUMBERS},####x####y\n")
        train, held = (CTW1500(root, split) for split in ds.SPLITS)
        assert train.items[0].words == ["good"] and train.notes == {BAD_LINES: 1, NO_TEXT: 2}
        assert held.items[0].words == ["good", "x####y"]
        assert held.notes == {BAD_LINES: 2, NO_TEXT: 2}
        assert held.left_out[0] == f"{text}: region 1: {BAD_LINES}"

    def test_labels_without_pictures_and_the_reverse(self, tmp_path):
        root = make_ctw(tmp_path)
        (root / "train_images/0001.jpg").rename(root / "train_images/0003.JPG")
        (root / "gt_ctw1500/0001001.txt").unlink()
        assert CTW1500(root).notes == {NO_PICTURE: 1, NO_LABEL: 1, MARKED: 1}
        assert CTW1500(root, "heldout").notes == {NO_LABEL: 1, MARKED: 1}

    def test_a_label_that_is_no_xml_is_named(self, tmp_path):
        root = make_ctw(tmp_path)
        (root / "ctw1500_train_labels/0002.xml").write_text("<Annotations><image>")
        with pytest.raises(ValueError, match=r"0002\.xml: expected XML of image, box, label"):
            CTW1500(root)

    def test_folders_that_are_missing_or_empty_are_named(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"train_images: expected .*PATH/train.*, got no such"
        ):
            CTW1500(tmp_path)
        root = make_ctw(tmp_path / "ctw")
        for path in (root / "test_images").iterdir():
            path.unlink()
        with pytest.raises(
            ValueError, match=r"test_images: expected pictures with labels as in .*, got none"
        ):
            CTW1500(root)


@pytest.mark.filterwarnings("ignore")
class TestFuzzed:
    """No change of a file gives a stack trace: either all works or an error names a file."""

    @FUZZ
    @given(data=st.data())
    def test_lsvt_labels(self, tmp_path, data):
        root = tmp_path / "lsvt"
        make_lsvt(root, TestLSVT().entries(12))
        path = root / "train_full_labels.json"
        path.write_bytes(data.draw(changed(path.read_bytes())))
        test_readers.TestFuzz().use(f"lsvt:{root}", r"train_full_labels\.json|lsvt:")

    @FUZZ
    @given(
        texts=st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["transcription", "points", "illegibility"]), inner
                )
            ),
        )
    )
    def test_lsvt_values(self, tmp_path, texts):
        root = tmp_path / "lsvt"
        entries = TestLSVT().entries(3)
        make_lsvt(root, entries | {"gt_1": texts, "gt_2": [texts, *entries["gt_2"]]})
        test_readers.TestFuzz().use(f"lsvt:{root}", r"train_full_labels\.json|lsvt:")

    @pytest.mark.parametrize("label", ["ctw1500_train_labels/0001.xml", "gt_ctw1500/0001001.txt"])
    @FUZZ
    @given(data=st.data())
    def test_ctw1500_labels(self, tmp_path, label, data):
        root = tmp_path / "ctw"
        if not root.exists():
            make_ctw(root)
            (root / "good").write_bytes((root / label).read_bytes())
        (root / label).write_bytes(data.draw(changed((root / "good").read_bytes())))
        test_readers.TestFuzz().use(f"ctw1500:{root}", re.escape(Path(label).name) + "|ctw:")
