"""Tests of data_stub.py: the renderer and its fonts."""

import os
import string
import subprocess
import sys
import zlib
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from fontTools.ttLib import TTCollection, TTFont
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

import data_stub as ds
import vlpt

ROOT = Path(ds.__file__).parent
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
            left, right = quads[:, [0, 3], 0].mean(1), quads[:, [1, 2], 0].mean(1)
            assert (quads[:, 1, 0] > quads[:, 0, 0]).all() and (left < right).all()
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
                word, near, far = (
                    filled(center + (quad - center) * grown, size) for grown in (1, 1.3, 1.7)
                )
                assert word.sum() > 50
                inside.append(np.ptp(np.percentile(light[word], [5, 95])))
                around.append(np.ptp(np.percentile(light[far & ~near], [5, 95])))
        assert len(inside) >= count and min(inside) > 30  # the faintest, of 33 and 41, are legible
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
        for kind, sample in (
            ("list", str.isalpha),
            ("number", str.isdigit),
            ("pseudo", str.isalpha),
        ):
            words = [ds.draw_word(rng, ds.Scene(kinds=(kind,)), "train") for _ in range(30)]
            assert all(map(sample, words)) and len(set(words)) > 10
        words = [ds.draw_word(rng, ds.Scene(kinds=("random",)), "train") for _ in range(200)]
        assert len(set("".join(words))) > 85  # of 94: the text side cannot guess these
        assert {len(w) for w in words} == set(range(2, 11))

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        width=st.integers(5, 200),
        height=st.integers(5, 80),
        jitter=st.lists(st.floats(-0.2, 0.2), min_size=8, max_size=8),
    )
    def test_homography_is_opencv_s_and_maps_corners_to_corners(self, width, height, jitter):
        corners = ds.box_corners(0, 0, width, height)
        quad = corners + np.reshape(jitter, (4, 2)) * [width, height] + 7
        matrix = ds.homography(corners, quad)
        want = cv2.getPerspectiveTransform(np.float32(corners), np.float32(quad))
        np.testing.assert_allclose(matrix, want, rtol=1e-3, atol=1e-4)  # OpenCV reads float32
        np.testing.assert_allclose(ds.apply(matrix, corners), quad, rtol=1e-9, atol=1e-9)
        back = ds.homography(quad, corners)
        np.testing.assert_allclose(ds.apply(back, quad), corners, rtol=1e-9, atol=1e-9)

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

    def test_a_worker_with_another_hash_seed_draws_the_same_bytes(self, monkeypatch):
        monkeypatch.setenv("PYTHONHASHSEED", "7")
        loader = DataLoader(
            ds.Rendered(64, 8, seed=3),
            batch_size=None,
            num_workers=1,
            multiprocessing_context="spawn",
            collate_fn=image_of,
        )
        for k, image in enumerate(loader):
            assert np.array_equal(image, ds.render(3, k, 64).image)
        assert k == 7

    def test_an_alphabet_without_a_word_for_a_split_is_an_error_at_once(self):
        scene = ds.Scene(alphabet="a", kinds=("random",), chars=(1, 2))
        splits = {ds.split_of(word) for word in ("a", "aa")}
        assert splits == {"train"}
        ds.Rendered(64, 4, 0, "train", scene)
        with pytest.raises(
            ValueError, match="expected enough characters for words of the split 'heldout', got 'a'"
        ):
            ds.Rendered(64, 4, 0, "heldout", scene)


@pytest.fixture
def own_fonts(tmp_path, monkeypatch):
    """An empty folder for VLPT_FONTS; the caches are forgotten before and after."""

    def forget():
        for cached in (ds.font_files, ds.find_glyphs, ds.load_font):
            cached.cache_clear()

    forget()
    monkeypatch.setenv("VLPT_FONTS", str(tmp_path))
    yield tmp_path
    monkeypatch.undo()
    forget()


class TestFonts:
    def test_are_the_packaged_ones_whatever_the_machine_has(self):
        names = [path.name for path in ds.font_files()]
        assert names == sorted(names) == [Path(font).name for font in ds.FONTS]

    def test_each_draws_every_printable_character(self):
        glyphs = ds.find_glyphs(vlpt.PRINTABLE, ds.FONTS)
        assert len(glyphs) == 8 and all(len(found) == 94 for found in glyphs.values())

    def test_are_pinned_exactly_by_pyproject(self):
        text = (ROOT / "pyproject.toml").read_text("utf-8")
        for package in {font.partition("/")[0] for font in ds.FONTS}:
            name = package.replace("_", "-")
            assert f'"{name}=={metadata.version(name)}"' in text

    def test_a_glyph_is_found_exactly_where_the_font_maps_the_character(self, monkeypatch):
        chars = "aÉßŁőЖωक中\u2603\U0001f600"
        for path in ds.font_files():
            with TTFont(path) as font:
                mapped = font.getBestCmap()
            monkeypatch.setattr(ds, "font_files", lambda _fonts, path=path: (path,))
            for char in chars:
                ds.find_glyphs.cache_clear()
                if ord(char) in mapped:
                    assert ds.find_glyphs(char, ds.FONTS) == {path: {char}}
                else:
                    with pytest.raises(ValueError, match="that none has"):
                        ds.find_glyphs(char, ds.FONTS)

    def test_a_word_is_drawn_only_in_fonts_that_have_all_of_it(self):
        alphabet = string.ascii_letters + "Жω"
        scene = ds.Scene(alphabet=alphabet)
        assert [path.name for path in ds.fonts_for("aЖ", scene)] == ["Manrope-Bold.ttf"]
        assert len(ds.fonts_for("a", scene)) == 8
        scene = ds.Scene(alphabet=alphabet, kinds=("random",), words=(1, 1))
        samples = [ds.render(0, k, 64, scene=scene) for k in range(20)]
        assert any(set(word) & set("Жω") for sample in samples for word in sample.words)

    def test_characters_that_no_font_has_are_named_at_once(self):
        scene = ds.Scene(alphabet="ab中क")
        message = r"alphabet: expected .*, got 2 that none has: 'क中'; set VLPT_FONTS"
        with pytest.raises(ValueError, match=message):
            ds.Rendered(64, 4, scene=scene)

    def test_a_missing_package_is_named_with_the_command_that_installs_it(self, monkeypatch):
        message = r"fonts: expected the package font-nowhere with A\.ttf.*pip install '\.\[data\]'"
        with pytest.raises(FileNotFoundError, match=message):
            ds.font_files(("font_nowhere/files/A.ttf",))

    def test_the_demo_draws_two_of_them(self):
        fonts = [path.name for path in ds.fonts_for("0123456789", ds.DIGITS)]
        assert fonts == ["Caladea-Regular.ttf", "Lato-Regular.ttf"]
        assert set(ds.DIGITS.fonts) < set(ds.FONTS)

    def test_a_folder_of_fonts_may_be_added_and_broken_files_are_skipped(self, own_fonts, capsys):
        (own_fonts / "sub").mkdir()
        good = own_fonts / "sub" / "good.ttf"
        good.write_bytes(ds.font_files()[0].read_bytes())
        (own_fonts / "._good.ttf").write_bytes(b"\0\5\26\7 of another system")
        (own_fonts / "link.ttf").symlink_to(own_fonts / "gone.ttf")
        (own_fonts / "cut.otf").write_bytes(ds.font_files()[3].read_bytes()[:500])
        (own_fonts / "folder.ttf").mkdir()
        ds.font_files.cache_clear()
        assert ds.font_files()[-1] == good and len(ds.font_files()) == 9
        said = capsys.readouterr().err
        for name in ("._good.ttf", "link.ttf", "cut.otf", "folder.ttf"):
            assert f"warning: {own_fonts / name} is skipped, as it is no readable font" in said
        assert ds.render(0, 0, 64).words

    def test_fonts_of_any_ending_are_added_in_capitals_or_not(self, own_fonts):
        packaged = ds.font_files()
        collection = TTCollection()
        collection.fonts = [TTFont(packaged[0])]
        for name in ("COLLECTION.TTC", "collection.otc"):
            collection.save(own_fonts / name)
        for name in ("ARIAL.TTF", "a.OTF", "b.Ttf"):
            (own_fonts / name).write_bytes(packaged[0].read_bytes())
        (own_fonts / "licence.txt").write_text("no font, and not mentioned")
        ds.font_files.cache_clear()
        added = [path.name for path in ds.font_files()[len(packaged) :]]
        assert added == ["ARIAL.TTF", "COLLECTION.TTC", "a.OTF", "b.Ttf", "collection.otc"]

    def test_a_folder_of_fonts_that_is_missing_is_named(self, own_fonts, monkeypatch):
        monkeypatch.setenv("VLPT_FONTS", str(own_fonts / "nowhere"))
        with pytest.raises(FileNotFoundError, match=r"VLPT_FONTS: expected a folder .*nowhere"):
            ds.font_files()


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
    )
    return done.stdout


class TestProcesses:
    def test_rendering_happens_in_one_thread(self):
        """A large matrix product would wake a thread for every core in every worker.

        That doubles the time of each of the three loops. Threads that BLAS keeps awake for a while
        after it is loaded disturb the first loop only, so the smallest ratio counts.
        """
        code = """
import time, data_stub as ds
ds.render(0, 0, 256)
ratios = []
for _ in range(3):
    whole, own = time.process_time(), time.thread_time()
    for k in range(20):
        ds.render(0, k, 256)
    ratios.append((time.process_time() - whole) / (time.thread_time() - own))
print(min(ratios))
"""
        assert float(run_python(code, OPENBLAS_NUM_THREADS="4", MKL_NUM_THREADS="4")) < 1.1

    def test_a_process_without_a_home_folder_draws_the_same(self):
        code = "import zlib, data_stub as ds; print(zlib.crc32(ds.render(3, 1, 64).image))"
        assert int(run_python(code)) == zlib.crc32(ds.render(3, 1, 64).image)


def image_of(sample: ds.Sample) -> np.ndarray:
    return sample.image


def filled(quad: np.ndarray, size: int) -> np.ndarray:
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).polygon(quad.ravel().tolist(), fill=255)
    return np.asarray(mask) > 0


def depth(quad: np.ndarray, size: int) -> np.ndarray:
    """How far inside a convex quad the middle of each pixel is, (size, size), pixels."""
    y, x = np.mgrid[:size, :size] + 0.5
    edge = np.roll(quad, -1, 0) - quad
    normal = np.stack([-edge[:, 1], edge[:, 0]], 1) / np.hypot(*edge.T)[:, None]
    return np.min(
        [(x - u) * p + (y - v) * q for (u, v), (p, q) in zip(quad, normal, strict=True)], 0
    )
