"""What real data sets hold that no example in a manual shows, and what becomes of it.

docs/quirks.md lists these quirks; each of its rows names a test of this file.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngImageFile

import data_stub as ds
import vlpt
from readers import ICDAR2015, JsonLines, SynthText, TotalText
from readers.check import CROSSED, ELSEWHERE, OUTSIDE, REVERSED, check
from readers.detection import open_detection
from readers.files import is_unreadable
from readers.folder import (
    BAD_LINES,
    FEW_POINTS,
    MARKED,
    NO_LABEL,
    NO_PICTURE,
    NO_TEXT,
    OTHER_NAMES,
    SAME_NAME,
)
from readers.jsonl import REPEATED, SOME_QUADS
from readers.pictures import (
    FIT_SHOWN,
    FIT_STORED,
    UNDECIDED_SHOWN,
    UNDECIDED_STORED,
    open_image,
    read_orientation,
)
from readers.polygons import clip_polygon, signed_area, turn_points, visible_share
from readers.synthtext import TWICE
from readers.totaltext import SEVERAL
from tests import test_readers
from tests.test_readers import (
    BOX,
    REAL,
    fails,
    make_icdar,
    make_totaltext,
    write_mat,
)
from training.dataset import Pretraining, collate

ROOT = Path(ds.__file__).parent
CASES = ROOT / "../shared/cases"
ALPHABET = vlpt.Alphabet(vlpt.PRINTABLE)
NOT_PYTHON = "x: [[1 9 9]], y: [[1 1 9]], ornt: [u'h'], transcriptions: [u'%s']"
RAMP = np.linspace(0, 65535, 64 * 4).reshape(4, 64).round()


def gray(path: Path) -> np.ndarray:
    """The picture as read, which must be grey, as (H, W) integers."""
    pixels = np.asarray(open_image(path)[0], int)
    assert pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def write_lines(root: Path, entries: list[dict], name: str = "d.jsonl") -> Path:
    path = root / name
    path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return path


class TestPictures:
    @pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
    def test_16_bits_are_scaled_and_not_cut_off(self, tmp_path, kind):
        Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / f"a.{kind}")
        shown = gray(tmp_path / f"a.{kind}")
        assert np.array_equal(shown, np.rint(RAMP / 257))
        assert (shown[0, 0], shown[-1, -1]) == (0, 255)

    def test_a_dark_picture_of_16_bits_stays_dark(self, tmp_path):
        Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "a.png")
        assert (gray(tmp_path / "a.png") == 1).all()

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (RAMP, np.int32),
            (np.rint(RAMP / 257), np.int32),
            (RAMP / 65535 * (2**32 - 1), np.uint32),
            (RAMP, np.float32),
            (RAMP / 257, np.float32),
            (RAMP / 65535, np.float32),
            (RAMP * 1000, np.float32),
        ],
    )
    def test_32_bits_are_scaled_to_the_least_white_that_fits(self, tmp_path, values, dtype):
        values = values.astype(dtype)
        image = Image.fromarray(values.view(np.int32) if dtype == np.uint32 else values)
        image.save(tmp_path / "a.tif")
        assert abs(gray(tmp_path / "a.tif") - RAMP / 257).max() <= 1

    def test_nan_pixels_are_black(self, tmp_path):
        Image.fromarray(np.float32([[np.nan, 0.5, 1], [-1, 0, 1]])).save(tmp_path / "a.tif")
        assert gray(tmp_path / "a.tif").tolist() == [[0, 128, 255], [0, 0, 255]]

    def test_1_bit_is_black_and_white(self, tmp_path):
        Image.fromarray(np.eye(8) > 0).save(tmp_path / "a.png")
        assert np.array_equal(gray(tmp_path / "a.png"), np.eye(8) * 255)

    def test_cmyk_as_adobe_writes_it_is_not_inverted(self, tmp_path):
        ink = Image.new("CMYK", (64, 64), (0, 0, 0, 0))
        ink.paste((0, 0, 0, 255), (16, 16, 48, 48))
        for name in ("a.jpg", "a.tif"):  # Pillow inverts a JPEG of CMYK, as Adobe does
            ink.save(tmp_path / name)
            shown = gray(tmp_path / name)
            assert shown[2, 2] > 250 and shown[32, 32] < 5

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "1", "I;16"])
    def test_black_on_a_transparent_ground_is_black_on_white(self, tmp_path, mode):
        letters = np.zeros((32, 32), np.uint8)
        letters[8:16, 8:16] = 255  # opaque
        if mode in ("RGBA", "LA"):
            image = Image.new(mode, (32, 32))
            image.putalpha(Image.fromarray(letters))
            options = {}
        elif mode == "P":
            image = Image.fromarray(letters // 255, "L").convert("P")
            image.putpalette([0, 0, 0, 0, 0, 0])  # both are black
            options = {"transparency": 0}
        elif mode == "I;16":
            image = Image.fromarray(np.where(letters > 0, 0, 5000).astype(np.uint16))
            options = {"transparency": 5000}
        else:  # the ground has a colour that is transparent wherever it occurs
            ground = 255 if mode == "1" else 77
            image = Image.fromarray(np.where(letters > 0, 0, ground).astype(np.uint8)).convert(mode)
            options = {"transparency": (77, 77, 77) if mode == "RGB" else ground}
        image.save(tmp_path / "a.png", **options)
        assert np.array_equal(gray(tmp_path / "a.png"), 255 - letters.astype(int))

    def test_16_bits_with_transparency(self, tmp_path):
        cv2 = pytest.importorskip("cv2")
        pixels = np.zeros((4, 64, 4), np.uint16)
        pixels[..., :3] = RAMP[..., None]
        pixels[..., 3] = 65535
        pixels[0, :, 3] = 0
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        shown = gray(tmp_path / "a.png")
        assert (shown[0] == 255).all() and abs(shown[1:] - RAMP[1:] / 257).max() <= 1

    @pytest.mark.skipif(not CASES.is_dir(), reason="no cases")
    def test_the_shared_example_pictures(self):
        assert len(np.unique(gray(CASES / "pictures/gray16.png"))) > 100
        shown = gray(CASES / "pictures/black_on_transparent.png")
        assert (shown > 250).mean() > 0.5 and (shown < 5).any()


TURNS = range(2, 9)
ENDINGS = ("jpg", "tif", "png", "webp")  # Pillow turns a TIFF itself


class TestOrientation:
    """A white block on black; EXIF data turn the photograph, and its quad is on the block."""

    def photo(
        self, path: Path, orientation: int, at: tuple[int, int], mode: str = "RGB"
    ) -> np.ndarray:
        """Write a photograph of 128 x 64 raw pixels; return the quad on these."""
        x, y = at
        image = Image.new("RGB", (128, 64))
        ImageDraw.Draw(image).rectangle((x, y, x + 23, y + 11), "white")
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.convert(mode).save(path, quality=95, exif=exif)
        return ds.box_corners(x, y, x + 24, y + 12)

    def source(
        self, root: Path, orientation: int, places, shown: bool = False, ending: str = "jpg"
    ) -> JsonLines:
        entries = []
        for k, at in enumerate(places):
            quad = self.photo(root / f"{k}.{ending}", orientation, at)
            quad = turn_points(quad, orientation, 128, 64) if shown else quad
            entries.append({"image": f"{k}.{ending}", "words": ["a"], "quads": [quad.tolist()]})
        return JsonLines(write_lines(root, entries))

    def assert_on_the_block(self, sample: ds.Sample) -> None:
        light = sample.image.mean(-1) > 127
        low, high = sample.quads[0].min(0).astype(int), sample.quads[0].max(0).astype(int)
        inside = np.zeros_like(light)
        inside[low[1] : high[1], low[0] : high[0]] = True
        assert (light == inside).mean() > 0.98 and light[inside].mean() > 0.9

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("orientation", TURNS)
    def test_quads_that_fit_only_the_raw_pixels_are_turned_with_them(
        self, tmp_path, orientation, ending
    ):
        source = self.source(tmp_path, orientation, [(100, 20), (100, 30)], ending=ending)
        for min_side in (None, 16):  # 16: decoded at a quarter of its size
            self.assert_on_the_block(source.read(0, min_side))
        # Shown as 128 x 64 as well, nothing tells the two apart.
        assert source[0].notes == (FIT_STORED if orientation > 4 else UNDECIDED_STORED,)

    @pytest.mark.parametrize("mode", ["L", "RGBA"])
    def test_the_mapped_pixels_of_a_turned_tiff_are_in_order(self, tmp_path, mode):
        entries = []
        for name in ("0.tif", "1.tif"):
            quad = self.photo(tmp_path / name, 6, (100, 20), mode)
            entries.append({"image": name, "words": ["a"], "quads": [quad.tolist()]})
        self.assert_on_the_block(JsonLines(write_lines(tmp_path, entries))[0])

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("orientation", [5, 6, 7, 8])
    def test_quads_that_fit_only_the_picture_as_shown_are_there(
        self, tmp_path, orientation, ending
    ):
        places = [(88, 20), (4, 20)] if orientation in (5, 6) else [(4, 20), (88, 20)]
        source = self.source(tmp_path, orientation, [places[0]] * 2, shown=True, ending=ending)
        for min_side in (None, 16):
            self.assert_on_the_block(source.read(0, min_side))
        assert source[0].notes == (FIT_SHOWN,)

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("shown", [False, True])
    def test_quads_that_fit_both_are_as_in_other_pictures(self, tmp_path, shown, ending):
        source = self.source(tmp_path, 6, [(20, 20), (100, 20), (20, 20)], shown, ending)
        assert source[0].notes == (UNDECIDED_SHOWN if shown else UNDECIDED_STORED,)
        self.assert_on_the_block(source[0])
        held = JsonLines(source.root, "heldout")  # all pictures of a data set are read alike
        self.assert_on_the_block(held[0])

    def test_without_any_other_picture_they_are_on_the_raw_pixels(self, tmp_path):
        source = self.source(tmp_path, 6, [(20, 20), (20, 30)])
        self.assert_on_the_block(source[0])
        assert source[0].notes == (UNDECIDED_STORED,)

    def test_check_counts_them(self, tmp_path):
        source = self.source(tmp_path, 6, [(20, 20), *[(100, 20)] * 19])
        lines = check(f"jsonl:{source.root}").lines
        assert f"note      {FIT_STORED}: 19" in lines
        assert f"note      {UNDECIDED_STORED}: 1" in lines

    def test_polygons_and_ignored_regions_are_turned_too(self, tmp_path):
        root = make_totaltext(
            tmp_path,
            "x: [[100 112 124 124 100]], y: [[20 20 20 32 32]], ornt: [u'h'], "
            "transcriptions: [u'a']\n"
            "x: [[100 124 124 100]], y: [[20 20 32 32]], ornt: [u'#'], transcriptions: [u'#']\n",
        )
        self.photo(root / "Images/Train/img1.jpg", 6, (100, 20))
        sample = open_detection(f"totaltext:{root}", "train")[0]
        assert sample.image.size == (64, 128)
        for polygon in sample.polygons:
            assert polygon.min(0).tolist() == [32, 100] and polygon.max(0).tolist() == [44, 124]

    def test_a_synthtext_picture(self, tmp_path):
        root = test_readers.TestSynthText().make(
            tmp_path / "st", [["one"], ["two"]], [BOX * [[12], [4]]] * 2
        )
        self.photo(root / "8/x_0.jpg", 6, (100, 20))
        (root / "8/x_0.jpg").replace(root / "8/x_0.png")
        assert SynthText(root)[0].notes == (FIT_STORED,)

    @pytest.mark.parametrize("odd", [b"\2\0\4\0\0\0abc\0", b"\11\0\1\0\0\0\xfb\xff\xff\xff"])
    def test_odd_exif_data_do_not_make_a_photograph_unreadable(self, tmp_path, odd):
        """Its width is a text, or negative: Pillow reads this and cannot write it."""
        exif = b"Exif\0\0II*\0\10\0\0\0\2\0\0\1" + odd
        exif += b"\x12\1\3\0\1\0\0\0\6\0\0\0" + bytes(4)  # orientation 6
        Image.new("RGB", (128, 64)).save(tmp_path / "a.jpg", exif=exif)
        assert open_image(tmp_path / "a.jpg")[0].size == (64, 128)

    def test_the_orientation_of_a_png_is_known_without_decoding_it(self, tmp_path, monkeypatch):
        self.photo(tmp_path / "6.png", 6, (100, 20))
        Image.new("RGB", (128, 64)).save(tmp_path / "1.png")
        monkeypatch.setattr(PngImageFile, "load", None)
        assert read_orientation(tmp_path / "6.png") == ((128, 64), 6)
        assert read_orientation(tmp_path / "1.png") == ((128, 64), 1)

    def test_a_png_may_have_its_exif_data_after_its_pixels(self, tmp_path):
        self.photo(tmp_path / "a.png", 6, (100, 20))
        content = (tmp_path / "a.png").read_bytes()
        start, pixels, end = (content.index(kind) - 4 for kind in (b"eXIf", b"IDAT", b"IEND"))
        moved = content[:start] + content[pixels:end] + content[start:pixels] + content[end:]
        (tmp_path / "a.png").write_bytes(moved)
        assert open_image(tmp_path / "a.png")[0].size == (64, 128)

    def test_a_picture_without_quads_is_only_turned(self, tmp_path):
        self.photo(tmp_path / "a.jpg", 6, (100, 20))
        entries = [{"image": f"{name}.jpg", "words": ["a"]} for name in "ab"]
        sample = JsonLines(write_lines(tmp_path, entries))[0]
        assert sample.image.shape == (128, 64, 3) and sample.notes == ()


class TestFilesOfAFolder:
    def test_icdar_pictures_of_any_ending(self, tmp_path):
        root = make_icdar(tmp_path, range(1, 7))
        images = root / "ch4_training_images"
        for number, ending in enumerate(("JPG", "jpeg", "png", "tif"), 2):
            image = Image.open(images / f"img_{number}.jpg")
            image.save(images / f"img_{number}.{ending}")
            (images / f"img_{number}.jpg").unlink()
        (images / "img_6.jpg").rename(images / "IMG_6.JPG")
        sources = [ICDAR2015(root, split) for split in ds.SPLITS]
        assert [len(source) for source in sources] == [5, 1]
        assert not any(source.left_out for source in sources)

    def test_icdar_labels_without_pictures_and_the_reverse(self, tmp_path):
        root = make_icdar(tmp_path, [1, 2, 3, 4, 801, 802, 803, 804])
        images, labels = sorted(root.iterdir())
        (images / "img_1.jpg").unlink()
        (images / "img_803.jpg").unlink()
        (labels / "gt_img_2.txt").unlink()
        (images / "cover.jpg").write_bytes(b"")
        (images / "img_x.jpg").write_bytes(b"")
        (images / "Thumbs.db").write_bytes(b"")
        (images / ".DS_Store").write_bytes(b"")  # hidden files are nobody's
        Image.new("RGB", (9, 9)).save(images / "img_4.png")
        train, held = (ICDAR2015(root, split) for split in ds.SPLITS)
        assert [Path(train.name(k)).name for k in range(len(train))] == ["img_3.jpg", "img_4.jpg"]
        assert train.notes == {
            NO_PICTURE: 1,
            NO_LABEL: 1,
            OTHER_NAMES: 3,
            SAME_NAME: 1,
            MARKED: 2,
        }
        assert held.notes == {NO_PICTURE: 1, MARKED: 3}
        assert held.left_out == [f"{labels / 'gt_img_803.txt'}: {NO_PICTURE}"]
        report = check(f"icdar2015:{root}").lines
        assert f"left out  {NO_PICTURE}: 2" in report
        for line in [*train.left_out, *held.left_out]:
            assert f"worst     {line}" in report

    def test_all_labels_missing_is_an_error_that_says_so(self, tmp_path):
        root = make_icdar(tmp_path)
        for path in root.glob("*gt/*"):
            path.unlink()
        with pytest.raises(ValueError, match=rf"got 0; {NO_LABEL}: 4$"):
            ICDAR2015(root)

    def test_totaltext_labels_without_pictures_and_the_reverse(self, tmp_path):
        root = make_totaltext(tmp_path, TestTotalText.GOOD)
        images, labels = root / "Images/Train", root / "txt_format/Train"
        for number, ending in ((3, "JPEG"), (4, "jpeg"), (5, "PNG")):
            Image.new("RGB", (96, 64)).save(images / f"img{number}.{ending}")
        for number in (3, 4, 6):
            (labels / f"poly_gt_img{number}.txt").write_text(TestTotalText.GOOD)
        (images / "img1.png").write_bytes(b"")
        (images / "notes.txt").write_bytes(b"")
        source = TotalText(root)
        names = [Path(source.name(k)).name for k in range(len(source))]
        assert names == ["img1.jpg", "img2.jpg", "img3.JPEG", "img4.jpeg"]
        assert source.notes == {NO_PICTURE: 1, NO_LABEL: 1, OTHER_NAMES: 1, SAME_NAME: 1}
        assert TotalText(root, "heldout").notes == {}

    def test_blank_lines_of_a_label_are_nothing(self, tmp_path):
        root = make_icdar(tmp_path)
        label = next(root.glob("*gt/gt_img_1.txt"))
        label.write_text("\n1,2,9,2,9,6,1,6,fine\n\n \n", encoding="utf-8")
        assert ICDAR2015(root).items[0].words == ["fine"]

    @pytest.mark.parametrize("kind", ["icdar2015", "totaltext", "synthtext", "jsonl"])
    @pytest.mark.parametrize("what", ["nowhere", "empty folder", "file", "empty file"])
    def test_a_wrong_path_is_one_clear_line(self, tmp_path, capsys, kind, what):
        path = tmp_path / "x"
        if what == "empty folder":
            path.mkdir()
        elif what != "nowhere":
            path.write_bytes(b"garbage \xff" if what == "file" else b"")
        for command in (["check", f"{kind}:{path}"], ["sheet", f"{kind}:{path}", "s.png"]):
            message = fails(capsys, *command)
            assert message.startswith(f"python -m readers: error: {path}") and "\n" not in message
            assert "expected" in message

    @pytest.mark.parametrize("case", ["icdar2015", "totaltext", "synthtext", "jsonl"])
    def test_a_file_that_is_cut_off_is_one_clear_line(self, tmp_path, capsys, case):
        if case == "icdar2015":
            path = next(make_icdar(tmp_path).glob("*gt/gt_img_1.txt"))
            content, root = path.read_bytes()[:-40], tmp_path
        elif case == "totaltext":
            path = make_totaltext(tmp_path, "") / "txt_format/Train/poly_gt_img1.txt"
            content, root = TestTotalText.GOOD.encode()[:30], tmp_path
        elif case == "synthtext":
            root = test_readers.TestSynthText().make(tmp_path / "st", [["one"], ["two"]])
            path = root / "gt.mat"
            content = path.read_bytes()[:-100]
        else:
            path = root = write_lines(tmp_path, [{"image": "a.png", "words": ["a"]}] * 2)
            content = path.read_bytes()[:-5]
        path.write_bytes(content)
        message = fails(capsys, "check", f"{case}:{root}")
        assert str(path) in message and "expected" in message and "\n" not in message

    def test_a_gt_mat_with_bytes_missing_does_not_end_the_process(self, tmp_path):
        root = test_readers.TestSynthText().make(
            tmp_path / "st", [["one", "two"], ["three"], ["four"]]
        )
        content = (root / "gt.mat").read_bytes()
        for place in (194, 228, 300):
            (root / "gt.mat").write_bytes(content[:place] + content[place + 6 :])
            with pytest.raises(ValueError, match=r"gt\.mat: not SynthText's gt\.mat .*cut off"):
                SynthText(root)


class TestUnreadable:
    def test_one_function_decides(self):
        assert all(map(is_unreadable, ("###", " ### ", "###\r", "\t###")))
        assert not any(map(is_unreadable, ("#", "##", "####", "*", "", "###a", "# # #")))
        assert is_unreadable(" # ", TotalText.MARKERS)

    def words(self, tmp_path: Path, word: str, synthtext: bool = True) -> list[ds.Source]:
        """The same two pictures in every layout: "EXIT" and another word."""
        quads = [ds.box_corners(2, 2, 20, 9), ds.box_corners(2, 12, 20, 19)]
        texts = [",".join(str(int(x)) for x in quad.ravel()) for quad in quads]
        root = make_icdar(tmp_path / "ic", (1, 801))
        for label in root.glob("*gt/*.txt"):
            label.write_text(f"{texts[0]},EXIT\r\n{texts[1]},{word}\r\n", newline="")
        lists = [quad.tolist() for quad in quads]
        entries = [
            {"image": f"ic/ch4_training_images/img_{n}.jpg", "words": ["EXIT", word]}
            for n in (1, 801)
        ]
        bare = write_lines(tmp_path, entries, "bare.jsonl")
        path = write_lines(tmp_path, [entry | {"quads": lists} for entry in entries])
        tt = make_totaltext(
            tmp_path / "tt",
            "x: [[2 20 20 2]], y: [[2 2 9 9]], ornt: [u'h'], transcriptions: [u'EXIT']\n"
            "x: [[2 20 20 2]], y: [[12 12 19 19]], ornt: [u'h'], transcriptions: [u'"
            + word
            + "']\n",
        )
        sources = [ICDAR2015(root), JsonLines(path), TotalText(tt), JsonLines(bare)]
        if synthtext:
            boxes = [np.float32(quads).transpose(2, 1, 0)] * 2
            words = [["EXIT", word]] * 2
            sources.append(
                SynthText(test_readers.TestSynthText().make(tmp_path / "st", words, boxes))
            )
        return sources

    @pytest.mark.parametrize("word", ["###", " ### "])
    def test_every_reader_has_the_same_notion_of_it(self, tmp_path, word):
        for source in self.words(tmp_path, word):
            sample = source[0]
            assert sample.words == ["EXIT"], source
            assert source.notes[MARKED] == len(source)
            assert source.characters() == dict.fromkeys("EXIT", len(source))
            data = Pretraining(source, ALPHABET, 32, 0)
            assert data.notes[MARKED] == len(source)
            assert set(ALPHABET.decode(data[0][1])) == {"EXIT", ""}
            if sample.quads is not None:
                assert sample.ignored[:, 0].tolist() == [[2, 12]]

    @pytest.mark.parametrize("word", ["", "  "])
    def test_an_empty_transcription_is_an_ignored_region(self, tmp_path, word):
        for source in self.words(tmp_path, word, synthtext=False)[:3]:
            assert source[0].words == ["EXIT"], source
            assert source[0].ignored[:, 0].tolist() == [[2, 12]]
            assert source.notes == {NO_TEXT: len(source)}

    @pytest.mark.parametrize("word", ["###", ""])
    def test_a_detector_ignores_the_region(self, tmp_path, word):
        self.words(tmp_path, word, synthtext=bool(word))
        specs = ["icdar2015:ic", "jsonl:d.jsonl", "totaltext:tt"]
        for spec in [*specs, "synthtext:st"] if word else specs:  # SynthText has no empty words
            kind, name = spec.split(":")
            sample = open_detection(f"{kind}:{tmp_path / name}", "train")[0]
            assert sample.ignored.tolist() == [False, True]

    def test_no_learnable_picture_is_found_by_its_marks(self, tmp_path):
        source = SynthText(
            test_readers.TestSynthText().make(tmp_path / "st", [["###"], ["a", "###"], ["b"]])
        )
        found, notes = source.learnable(vlpt.Alphabet("ab#"))
        assert found.tolist() == [False, True]
        assert not any(notes.values())

    def test_check_of_a_set_without_a_readable_word_says_so(self, tmp_path, capsys):
        root = make_icdar(tmp_path)
        for label in root.glob("*gt/*.txt"):
            label.write_text("10,10,50,10,50,30,10,30,###\n")
        message = fails(capsys, "check", f"icdar2015:{root}")
        assert message.endswith(f"{root}: expected words that can be read, got none; {MARKED}: 4")


TILTED = np.float32([[0, 0], [80, 60], [68, 76], [-12, 16]])  # 100 x 20, by about 37 degrees


class TestOutside:
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(
        corners=st.lists(st.floats(-50, 150, width=32), min_size=6, max_size=6),
        height=st.integers(1, 99),
    )
    def test_a_clipped_polygon_is_what_shapely_finds(self, corners, height):
        shapely = pytest.importorskip("shapely")
        polygon = np.array(corners, np.float32).reshape(3, 2)
        clipped = clip_polygon(polygon, 100, height)
        expected = shapely.Polygon(polygon).intersection(shapely.box(0, 0, 100, height)).area
        assert abs(signed_area(clipped)) == pytest.approx(expected, abs=1e-2)
        if len(clipped):
            assert clipped.min() >= 0 and (clipped <= [100, height]).all()

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(left=st.integers(-30, 40), width=st.integers(1, 30), order=st.permutations(range(4)))
    def test_the_visible_share_of_a_box_in_any_order(self, left, width, order):
        quad = ds.box_corners(left, 5, left + width, 9)[list(order)]
        seen = max(0, min(40, left + width) - max(0, left))
        assert visible_share(quad, 40, 30) == pytest.approx(seen / width)

    def test_a_polygon_without_area_counts_by_its_centre(self):
        line = np.float32([[10, 10], [20, 10], [20, 10], [10, 10]])
        shares = [visible_share(line + shift, 40, 20) for shift in (0, 30, -30)]
        assert shares == [1, 0, 0]

    def write(self, tmp_path: Path, quads: list) -> list[ds.Source]:
        """The same words in every layout that has quads, in pictures of 96 x 64 pixels."""
        quads = [np.asarray(quad, np.float32) for quad in quads]
        words = [f"w{k}" for k in range(len(quads))]
        root = make_icdar(tmp_path / "ic", (1, 801))
        texts = [
            ",".join(f"{x:g}" for x in quad.ravel().tolist()) + f",{word}\n"
            for word, quad in zip(words, quads, strict=True)
        ]
        for label in root.glob("*gt/*.txt"):
            label.write_text("".join(texts))
        entries = [
            {
                "image": f"ic/ch4_training_images/img_{n}.jpg",
                "words": words,
                "quads": [quad.tolist() for quad in quads],
            }
            for n in (1, 801)
        ]
        tt = "".join(
            f"x: [[{' '.join(map(str, quad[:, 0]))}]], y: [[{' '.join(map(str, quad[:, 1]))}]], "
            f"ornt: [u'h'], transcriptions: [u'{word}']\n"
            for word, quad in zip(words, quads, strict=True)
        )
        names = [f"ic/ch4_training_images/img_{n}.jpg" for n in (1, 801)]
        boxes = [np.stack(quads).transpose(2, 1, 0)] * 2
        return [
            ICDAR2015(root),
            JsonLines(write_lines(tmp_path, entries)),
            SynthText(write_mat(tmp_path, names, [" ".join(words)] * 2, boxes)),
            TotalText(make_totaltext(tmp_path / "tt", tt)),
        ]

    def test_every_reader_leaves_out_and_counts_them(self, tmp_path):
        inside, far = ds.box_corners(2, 2, 20, 9), ds.box_corners(200, 2, 220, 9)
        partly = ds.box_corners(90, 2, 110, 9)
        for source in self.write(tmp_path, [inside, partly, far]):
            sample = source[0]
            assert (sample.words, sample.outside) == (["w0"], 2), source
            assert np.array_equal(sample.quads, [inside])
            assert np.array_equal(sample.ignored, [partly])  # there is text, though no word
            data = Pretraining(source, ALPHABET, 32, 0)
            batch = collate([data[0]])
            assert batch.outside == 2
            assert sorted(ALPHABET.decode(batch.ids[0])) == ["", "", "w0"]

    def test_check_counts_them_once(self, tmp_path):
        inside, far = ds.box_corners(2, 2, 20, 9), ds.box_corners(200, 2, 220, 9)
        self.write(tmp_path, [inside, far])
        lines = check(f"jsonl:{tmp_path / 'd.jsonl'}").lines
        assert f"left out  {OUTSIDE}: 2" in lines

    def test_a_tilted_word_keeps_its_quad_and_a_detector_sees_its_visible_part(self, tmp_path):
        """Moving its corners into the picture would bend it, and lose the second one."""
        shapely = pytest.importorskip("shapely")
        from transfer.dataset import CheckedDataset

        mostly, tilted = TILTED, TILTED + np.float32([2, -8])
        frame = shapely.box(0, 0, 96, 64)
        for source in self.write(tmp_path, [mostly, tilted]):
            sample = source[0]
            assert (sample.words, sample.outside) == (["w0", "w1"], 0)
            assert np.array_equal(sample.quads, [mostly, tilted])
        for spec in ("icdar2015:ic", "jsonl:d.jsonl", "synthtext:", "totaltext:tt"):
            kind, name = spec.split(":")
            checked = CheckedDataset(open_detection(f"{kind}:{tmp_path / name}", "train"))[0]
            assert not checked.ignored.any()
            for quad, seen in zip((mostly, tilted), checked.polygons, strict=True):
                expected = shapely.Polygon(quad).intersection(frame)
                got = shapely.Polygon(seen)
                assert got.intersection(expected).area / got.union(expected).area > 0.999

    def test_crossed_corners_at_the_edge_are_put_in_order_before_they_are_cut(self, tmp_path):
        pytest.importorskip("shapely")
        from transfer.dataset import CheckedDataset

        z_order = ds.box_corners(-5, 2, 20, 9)[[0, 1, 3, 2]]
        source = self.write(tmp_path, [z_order])[0]
        assert source[0].words == ["w0"]
        checked = CheckedDataset(open_detection(f"icdar2015:{source.root}", "train"))[0]
        assert not checked.ignored.any()
        polygon = checked.polygons[0]
        assert polygon.min(0).tolist() == [0, 2] and polygon.max(0).tolist() == [20, 9]
        assert abs(signed_area(polygon)) == 140

    def test_of_a_polygon_that_the_edge_cuts_in_two_the_larger_part_is_seen(self):
        pytest.importorskip("shapely")
        from transfer.dataset import visible_part

        bridge = np.float32(
            [[0, 5], [0, -9], [20, -9], [20, 9], [16, 9], [16, -5], [4, -5], [4, 5]]
        )
        part = visible_part(bridge, 40, 40)
        assert part.min(0).tolist() == [16, 0] and part.max(0).tolist() == [20, 9]
        assert visible_part(bridge - 40, 40, 40) is None
        assert visible_part(bridge + 10, 40, 40) is not None


class TestSamePicture:
    def lines(self, tmp_path: Path, count: int) -> Path:
        """Pictures of five words each, annotated one word a line."""
        entries = []
        (tmp_path / "x").mkdir()
        for k in range(count):
            Image.new("RGB", (96, 64)).save(tmp_path / f"{k}.png")
            for j in range(5):
                quad = ds.box_corners(2, 10 * j, 20, 10 * j + 8).tolist()
                name = f"{k}.png" if j % 2 else f"./x/../{k}.png"
                entries.append({"image": name, "words": [f"w{k}{j}"], "quads": [quad]})
        return write_lines(tmp_path, entries)

    def test_lines_of_a_picture_are_one_sample_in_one_half(self, tmp_path):
        path = self.lines(tmp_path, 12)
        train, held = (JsonLines(path, split) for split in ds.SPLITS)
        assert (len(train), len(held)) == (11, 1)
        assert held.name(0) == str(tmp_path / "x/../9.png")  # as its first line names it
        assert held[0].words == [f"w9{j}" for j in range(5)]
        assert held[0].quads[:, 0, 1].tolist() == [0, 10, 20, 30, 40]
        assert not {train.name(k) for k in range(11)} & {held.name(0)}

    def test_an_absolute_path_names_the_same_picture(self, tmp_path, monkeypatch):
        path = self.lines(tmp_path, 12)
        last = {"image": str(tmp_path / "9.png"), "words": ["last"]}
        path.write_text(path.read_text() + "\n" + json.dumps(last))
        monkeypatch.chdir(tmp_path)
        train, held = (JsonLines("d.jsonl", split) for split in ds.SPLITS)
        assert (len(train), held.items[0].words[-1]) == (11, "last")

    def test_links_are_followed_to_the_picture(self, tmp_path):
        """A link's folder has another parent than the folder it leads to."""
        (tmp_path / "disk/photos").mkdir(parents=True)
        (tmp_path / "photos").symlink_to("disk/photos")
        for folder, side in (("disk", 8), (".", 9)):
            Image.new("RGB", (side, side)).save(tmp_path / folder / "a.png")
        images = ["photos/../a.png", "disk/a.png", "a.png", "./a.png"]
        entries = [{"image": image, "words": [image]} for image in images]
        path = write_lines(tmp_path, entries)
        train, held = (JsonLines(path, split) for split in ds.SPLITS)
        assert (train[0].image.shape, train[0].words) == ((8, 8, 3), images[:2])
        assert (held[0].image.shape, held[0].words) == ((9, 9, 3), images[2:])

    def test_a_picture_without_words_needs_no_quads(self, tmp_path):
        path = self.lines(tmp_path, 2)
        Image.new("RGB", (9, 9)).save(tmp_path / "empty.png")
        line = json.dumps({"image": "empty.png", "words": []})
        path.write_text(line + "\n" + path.read_text())
        assert open_detection(f"jsonl:{path}", "train")[0].polygons == []
        assert JsonLines(path)[0].quads.shape == (0, 4, 2)

    def test_lines_of_other_pictures_in_between_change_nothing(self, tmp_path):
        path = self.lines(tmp_path, 12)
        first = [item.words for item in JsonLines(path).items]
        lines = path.read_text().split("\n")
        order = sorted(range(60), key=lambda k: (k % 5, k // 5))
        path.write_text("\n".join(lines[k] for k in order))
        assert [item.words for item in JsonLines(path).items] == first

    def test_a_word_that_is_annotated_twice_in_the_same_place_is_one(self, tmp_path):
        quad = ds.box_corners(2, 2, 20, 9).tolist()
        entry = {"image": "a.png", "words": ["EXIT"], "quads": [quad]}
        other = entry | {"quads": [ds.box_corners(2, 12, 20, 19).tolist()]}
        path = write_lines(tmp_path, [entry, entry, other, entry | {"image": "b.png"}])
        source = JsonLines(path)
        assert source.items[0].words == ["EXIT", "EXIT"] and len(source.items[0].polygons) == 2
        assert source.notes == {REPEATED: 1}

    def test_quads_of_some_of_the_words_only_are_not_used(self, tmp_path):
        quad = ds.box_corners(2, 2, 20, 9).tolist()
        entries = [
            {"image": "a.png", "words": ["one"], "quads": [quad]},
            {"image": "a.png", "words": ["two"]},
            {"image": "b.png", "words": ["three"]},
        ]
        source = JsonLines(write_lines(tmp_path, entries))
        assert source.items[0].words == ["one", "two"] and source.items[0].polygons is None
        assert source.notes == {SOME_QUADS: 1}

    def test_a_picture_that_gt_mat_lists_twice_is_used_once(self, tmp_path):
        root = test_readers.TestSynthText().make(tmp_path / "st", [["a"], ["b"]])
        names = ["8/x_0.png"] * 9 + ["8/x_1.png", "8/x_0.png"]
        write_mat(root, names, ["a"] * 11, [BOX] * 11)
        train, held = (SynthText(root, split) for split in ds.SPLITS)
        assert [len(train), len(held)] == [1, 1]
        assert (train.notes[TWICE], held.notes[TWICE]) == (9, 0)


class TestTotalText:
    GOOD = "x: [[1 9 9]], y: [[1 1 9]], ornt: [u'c'], transcriptions: [u'good']\n"
    TRIANGLE = np.float32([[1, 1], [9, 1], [9, 9]])

    def read(self, tmp_path: Path, line: str) -> TotalText:
        root = make_totaltext(tmp_path, self.GOOD)
        (root / "txt_format/Train/poly_gt_img1.txt").write_text(self.GOOD + line + self.GOOD)
        source = TotalText(root)
        item = source.items[0]
        assert (item.words[0], item.words[-1]) == ("good", "good")  # whatever is between them
        assert np.array_equal(item.polygons[0], self.TRIANGLE)
        return source

    @pytest.mark.parametrize(
        ("line", "polygon"),
        [
            ("x: [[-5 9 9]], y: [[1 1 9]]", [[-5, 1], [9, 1], [9, 9]]),
            ("x: [[1, 9, 9]], y: [[1, 1, 9]]", [[1, 1], [9, 1], [9, 9]]),
            ("x: [[ 1\n 9   9 ]], y: [[1 \n1 9]]", [[1, 1], [9, 1], [9, 9]]),
            ("x: [[1.5 9. 9e0]], y: [[1 1 +9]]", [[1.5, 1], [9, 1], [9, 9]]),
        ],
    )
    def test_numbers_as_people_write_them(self, tmp_path, line, polygon):
        source = self.read(tmp_path, line + ", ornt: [u'h'], transcriptions: [u'odd']\n")
        assert source.items[0].words == ["good", "odd", "good"] and source.notes == {}
        assert source.items[0].polygons[1].tolist() == polygon

    @pytest.mark.parametrize(
        ("fields", "words", "notes"),
        [
            ("ornt: [], transcriptions: [u'odd']", ["odd"], {}),
            ("ornt: [u'#'], transcriptions: []", [], {MARKED: 1}),
            ("ornt: [u'h'], transcriptions: []", [], {NO_TEXT: 1}),
            ("ornt: [u'h'], transcriptions: [u'']", [], {NO_TEXT: 1}),
            ("ornt: [u'h'], transcriptions: [u'#']", [], {MARKED: 1}),
            ("ornt: [u'h'], transcriptions: [u' ### ']", [], {MARKED: 1}),
            ("ornt: [u'#'], transcriptions: [u'x']", [], {MARKED: 1}),
            ("ornt: [u'h'], transcriptions: [u'a' u'b']", ["a b"], {SEVERAL: 1}),
            ("ornt: [u'h'], transcriptions: [u'a', u\"b's\"]", ["a b's"], {SEVERAL: 1}),
            ("ornt: [u'h'], transcriptions: [u'a\\xe9']", ["aé"], {}),
            ("ornt: [u'h'], transcriptions: [u'It's']", ["It's"], {}),
            ("ornt: [u'h'], transcriptions: [u'a]b']", ["a]b"], {}),
            ("ornt: [u'h'], transcriptions: ['\"a\"']", ['"a"'], {}),
        ],
    )
    def test_lists_that_are_empty_or_hold_several_strings(self, tmp_path, fields, words, notes):
        source = self.read(tmp_path, f"x: [[1 9 9]], y: [[1 1 9]], {fields}\n")
        assert source.items[0].words == ["good", *words, "good"] and source.notes == notes
        assert len(source.items[0].ignored) == (not words)
        assert source.left_out == []

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("x: [[1 2]], y: [[1 2]], ornt: [u'c'], transcriptions: [u'a']", FEW_POINTS),
            ("x: [[]], y: [[]], ornt: [u'c'], transcriptions: [u'a']", FEW_POINTS),
            ("x: [[1 2 3]], y: [[1 2]], ornt: [u'c'], transcriptions: [u'a']", BAD_LINES),
            ("x: [[1 b 3]], y: [[1 2 3]], ornt: [u'c'], transcriptions: [u'a']", BAD_LINES),
            ("x: [[1 nan 3]], y: [[1 2 3]], ornt: [u'c'], transcriptions: [u'a']", BAD_LINES),
            ("x: [[1 2 3]], y: [[1 2 3]], ornt: [u'c'], transcriptions: [u'a'", BAD_LINES),
            ("x: [[1 2 3]], y: [[1 2 3]], ornt: [u'c'], transcriptions: [a]", BAD_LINES),
            ("10,10,50,10,word", BAD_LINES),
            (NOT_PYTHON % r"C:\Users", BAD_LINES),
            (NOT_PYTHON % r"\N{X}", BAD_LINES),
            (NOT_PYTHON % "a\nb", BAD_LINES),
            (NOT_PYTHON % "a\0b", BAD_LINES),
        ],
    )
    def test_a_bad_line_costs_itself_only_and_is_named(self, tmp_path, line, why):
        source = self.read(tmp_path, line + "\n")
        assert source.items[0].words == ["good", "good"] and source.notes == {why: 1}
        label = tmp_path / "txt_format/Train/poly_gt_img1.txt"
        assert source.left_out == [f"{label}:2: {why}"]
        lines = check(f"totaltext:{tmp_path}").lines
        assert f"left out  {why}: 1" in lines and f"worst     {label}:2: {why}" in lines

    @pytest.mark.skipif(not CASES.is_dir(), reason="no cases")
    def test_the_shared_example_labels(self):
        source = TotalText(CASES / "totaltext")
        assert [item.words for item in source.items] == [
            *[["EXIT"]] * 3,
            [],
            *[["EXIT"]] * 2,
            ["DON'T"],
        ]
        assert source.notes == {FEW_POINTS: 1, MARKED: 1}
        assert source.items[1].polygons[0][:, 0].tolist() == [-5, 150, 150, -5]
        assert len(source.items[3].ignored) == 1 and len(source.items[6].polygons[0]) == 6

    def test_its_words_can_be_learned(self, tmp_path):
        source = TotalText(make_totaltext(tmp_path, self.GOOD))
        assert source[0].quads.tolist() == [[[1, 1], [9, 1], [9, 9], [1, 9]]]  # a box around it
        data = Pretraining(source, ALPHABET, 32, 0)
        assert ALPHABET.decode(data[0][1])[0] == "good"


class TestCorners:
    def test_check_counts_orders_and_names_pictures(self, tmp_path):
        box = ds.box_corners(2, 2, 30, 12)
        quads = {
            "fine": box,
            "reversed": box[[0, 3, 2, 1]],
            "crossed": box[[0, 1, 3, 2]],
            "elsewhere": box[[2, 3, 0, 1]],
            "tilted": np.float32([[5, 10], [30, 2], [32, 8], [7, 16]]),
        }
        entries = []
        for k, quad in enumerate([*quads.values(), *[box] * 15]):
            Image.new("RGB", (40, 30)).save(tmp_path / f"{k}.png")
            entries.append({"image": f"{k}.png", "words": ["a"], "quads": [quad.tolist()]})
        lines = check(f"jsonl:{write_lines(tmp_path, entries)}").lines
        assert f"note      {REVERSED}: 1" in lines
        assert f"note      {CROSSED}: 1" in lines
        assert f"note      {ELSEWHERE}: 1" in lines
        assert f"worst     {tmp_path / '1.png'}: {REVERSED}: 1" in lines
        assert f"worst     {tmp_path / '2.png'}: {CROSSED}: 1" in lines

    def test_a_detector_learns_the_same_from_every_order(self, tmp_path):
        pytest.importorskip("cv2")
        from transfer.dataset import CheckedDataset
        from transfer.psenet import draw_kernels

        box = ds.box_corners(2, 2, 36, 22)
        orders = [[0, 1, 2, 3], [0, 3, 2, 1], [2, 3, 0, 1], [0, 1, 3, 2]]
        entries = []
        for k, order in enumerate([*orders, orders[0]]):
            Image.new("RGB", (40, 30)).save(tmp_path / f"{k}.png")
            quad = box[order].tolist()
            entries.append({"image": f"{k}.png", "words": ["a"], "quads": [quad]})
        path = write_lines(tmp_path, entries)
        data = CheckedDataset(open_detection(f"jsonl:{path}", "train"))
        drawn = [
            draw_kernels(data[k].polygons, data[k].ignored, (30, 40), 0.4)[0] for k in range(4)
        ]
        assert drawn[0].any()
        for kernels in drawn[1:]:
            assert np.array_equal(kernels, drawn[0])


class TestIcdar2015Itself:
    @pytest.mark.skipif(not REAL.is_dir(), reason="no ICDAR 2015 folder")
    def test_its_words_and_quads_are_what_its_labels_say(self):
        """Read with nothing but str.split, so that no mend of a quirk changes this data set."""
        for split, numbers in (("train", range(1, 801)), ("heldout", range(801, 1001))):
            source = ICDAR2015(REAL, split)
            assert source.left_out == [] and len(source) == len(numbers)
            for item, number in zip(source.items, numbers, strict=True):
                label = REAL / f"ch4_training_localization_transcription_gt/gt_img_{number}.txt"
                fields = [line.split(",", 8) for line in label.read_text("utf-8-sig").splitlines()]
                assert item.path.name == f"img_{number}.jpg"
                assert item.words == [field[8] for field in fields if field[8] != "###"]
                quads = [list(map(int, field[:8])) for field in fields if field[8] != "###"]
                assert [polygon.ravel().tolist() for polygon in item.polygons] == quads
                ignored = [list(map(int, field[:8])) for field in fields if field[8] == "###"]
                assert [region.ravel().tolist() for region in item.ignored] == ignored


class TestDocs:
    def test_every_quirk_names_its_test(self):
        text = (ROOT / "docs/quirks.md").read_text()
        named = set(re.findall(r"`(test_\w+)`", text))
        here = set(re.findall(r"def (test_\w+)\(", Path(__file__).read_text()))
        assert named and named <= here, named - here
        rows = [line for line in text.splitlines() if line.startswith("|")]
        without = [row for row in rows if not re.search(r"`test_\w+` \|$", row)]
        assert set(without) == {"| quirk | what happens | test |", "|---|---|---|"}
