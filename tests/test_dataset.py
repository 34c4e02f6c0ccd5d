"""Tests of training/dataset.py and training/augment.py: what the model is trained on."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as T
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

import data_stub as ds
import vlpt
from experiments.fake_synthtext import write_synthtext
from readers import JsonLines, SynthText
from tests.test_data_stub import ALPHABET, areas, depth
from training.augment import augment, colour_change, turn_pixels
from training.dataset import Pretraining, collate, trim


class TestPretraining:
    def rendered(self, **changes) -> Pretraining:
        scene = ds.Scene(words=(4, 5), chars=(2, 3), height=(0.08, 0.1))
        return Pretraining(ds.Rendered(96, 6, scene=scene), ALPHABET, 96, **{"seed": 0} | changes)

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
        batches = [
            list(
                DataLoader(
                    self.rendered(),
                    batch_sampler=[[0, 1, 2], [3, 4, 5], [6, 7]],
                    num_workers=workers,
                    collate_fn=collate,
                )
            )
            for workers in (0, 2)
        ]
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
            return Pretraining(source, ALPHABET, 32, seed, subset=size).indices.tolist()

        assert chosen(small, seed) == chosen(small, seed) and len(chosen(small, seed)) == small
        assert set(chosen(small, seed)) <= set(chosen(large, seed)) <= set(range(200))
        assert chosen(100, seed) != chosen(100, seed + 1)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31), count=st.integers(1, 9), share=st.floats(0.01, 1))
    def test_each_picture_keeps_its_share_of_words_through_all_epochs(self, seed, count, share):
        class Words(ds.Rendered):
            def read(self, index, min_side=None):
                words = [f"{index}-{k}" for k in range(count)]
                return ds.Sample(np.zeros((32, 32, 3), np.uint8), words, None)

        def seen(share):
            data, words = Pretraining(Words(32, 3), ALPHABET, 32, seed, annotated=share), {}
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
        [
            ({"subset": 7}, "subset: expected 1 to 6 pictures, got 7"),
            ({"subset": 0}, "subset: expected 1 to 6 pictures, got 0"),
            ({"annotated": 0}, "annotated: expected above 0 and at most 1, got 0"),
            ({"annotated": 1.5}, "annotated: expected .*, got 1.5"),
        ],
    )
    def test_a_subset_or_share_that_cannot_be_is_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.rendered(**options)

    def test_another_seed_is_another_run(self):
        one, two = (
            [tuple(ALPHABET.decode(self.rendered(seed=seed)[k][1])) for k in range(6)]
            for seed in (0, 1)
        )
        assert one != two

    def test_a_batch_of_which_nothing_can_be_read_is_empty(self):
        batch = collate(["a.png: not a readable picture", "b.png: not a readable picture"])
        assert len(batch.images) == len(batch.ids) == 0 and len(batch.skipped) == 2


class TestTrim:
    def test_cuts_to_the_longest_word_and_the_most_words(self):
        ids = torch.stack([ALPHABET.encode(["four", "two"]), ALPHABET.encode(["three"])])
        assert trim(ids).tolist() == ids[:, :5, :2].tolist()
        assert trim(torch.zeros(4, 25, 3, dtype=torch.long)).shape == (4, 1, 1)
        full = torch.ones(2, 25, 3, dtype=torch.long)
        assert trim(full).shape == full.shape

    def test_keeps_a_word_wherever_its_slot_is(self):
        ids = torch.zeros(1, 25, 3, dtype=torch.long)
        ids[0, :2, 2] = 5
        assert trim(ids).tolist() == ids[:, :2, :].tolist()

    @pytest.mark.parametrize("kind", ["character", "sentence"])
    def test_the_model_s_output_stays_the_same(self, kind):
        """The untrimmed ids come with an image whose words fill all 25 x 3 slots."""
        torch.manual_seed(0)
        config = dataclasses.replace(vlpt.TINY, alphabet=vlpt.PRINTABLE, text_encoder=kind)
        model = vlpt.VLPT(config).eval()
        images = torch.randn(3, 3, 64, 64)
        words = [["four", "two"], ["three"], ["x" * 25] * 3]
        ids = torch.stack([ALPHABET.encode(each) for each in words])
        trimmed = trim(ids[:2])
        with torch.no_grad():
            short, full = model(images[:2], trimmed), model(images, ids)
        torch.testing.assert_close(short.image, full.image[:2])
        torch.testing.assert_close(short.text, full.text[:2])
        known = trimmed != vlpt.PAD
        torch.testing.assert_close(short.logits[known], full.logits[:2, :5, :2][known])


class TestTrainingOnFiles:
    """What `training.dataset.Pretraining` makes of real files, varied by `augment` or not."""

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
        data = Pretraining(JsonLines(path), ALPHABET, 32, 0)
        assert data.notes == {
            "words that are empty": 2,
            "words without a character of the alphabet": 1,
            "words with some characters outside the alphabet (kept)": 2,
            "words cut to 25 characters": 1,
            "pictures without a usable word": 2,
        }
        words = {frozenset(w for w in ALPHABET.decode(data[k][1]) if w) for k in range(2)}
        assert words == {frozenset(["fine", "n\ufffde", "two\ufffdwords"]), frozenset(["x" * 25])}
        assert data[0][0].shape == (3, 32, 32)

    def test_large_jpegs_are_decoded_smaller_and_look_the_same(self, tmp_path):
        picture = Image.fromarray(ds.render(0, 1, 512).image).resize((801, 600))
        picture.save(tmp_path / "a.jpg", quality=95)
        quads = [[[8, 16], [80, 16], [80, 64], [8, 64]]]
        line = json.dumps({"image": "a.jpg", "words": ["one"], "quads": quads})
        (tmp_path / "d.jsonl").write_text(f"{line}\n{line.replace('a.jpg', 'b.jpg')}")
        source = JsonLines(tmp_path / "d.jsonl")
        for least, scale in ((None, 1), (301, 1), (300, 2), (128, 4), (75, 8), (8, 8)):
            sample = source.read(0, least)
            assert sample.image.shape == (-(-600 // scale), -(-801 // scale), 3)
            assert (sample.quads * scale).tolist() == quads
        small = Pretraining(source, ALPHABET, 128, 0)[0][0].permute(1, 2, 0).numpy()
        plain = np.asarray(picture.resize((128, 128), Image.Resampling.BILINEAR))
        assert abs(small.astype(int) - plain).mean() < 4

    @settings(max_examples=60, deadline=None, derandomize=True)
    @example(seed=0, shape=(128, 128), at=(0.3, 0.3))  # the picture already has its final size
    @given(
        seed=st.integers(0, 2**31),
        shape=st.tuples(st.integers(60, 200), st.integers(60, 200)),
        at=st.tuples(st.floats(-0.08, 0.8), st.floats(-0.08, 0.8)),
    )
    def test_quads_go_with_the_picture_and_stay_in_view(self, seed, shape, at):
        """A white block on black is, in the varied picture, where its quad says."""
        left, top = np.multiply(at, shape).round()
        quads = ds.box_corners(left, top, left + 20, top + 20)[None].astype(np.float32)
        image = Image.new("L", shape)
        ImageDraw.Draw(image).rectangle((left, top, left + 19, top + 19), 255)
        pixels = torch.from_numpy(np.array(image)).expand(3, -1, -1)
        pixels, moved = augment(pixels, quads, 128, np.random.default_rng(seed))
        assert pixels.shape == (3, 128, 128) and moved.min() >= -1e-6 and moved.max() <= 128 + 1e-6
        assert (areas(moved) > 0).all()  # never mirrored
        light, inside = pixels.float().mean(0).numpy(), depth(moved[0], 128)
        bright = light > (light.min() + light.max()) / 2
        assert bright[inside > 1.5].all() and not bright[inside < -1.5].any()

    def test_pictures_vary_by_seed_and_number_and_words_do_not(self, tmp_path):
        write_synthtext(tmp_path, 12, seed=0, size=96)
        source = SynthText(tmp_path)

        def items(workers=0, seed=0, change=augment):
            data = Pretraining(source, ALPHABET, 64, seed, augment=change)
            return next(
                iter(
                    DataLoader(
                        data, batch_sampler=[range(20)], num_workers=workers, collate_fn=collate
                    )
                )
            )

        one, two, plain, other = items(), items(2), items(change=None), items(seed=1)
        assert torch.equal(one.images, two.images) and torch.equal(one.ids, plain.ids)
        assert not torch.equal(one.images, other.images)
        difference = (one.images.int() - plain.images.int()).abs().float().mean((1, 2, 3))
        assert difference.min() > 2 and difference.mean() < 60

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31))
    def test_colours_change_as_torchvision_changes_them_one_after_the_other(self, seed):
        rng = np.random.default_rng(seed)
        colours = torch.from_numpy(rng.uniform(0.3, 0.6, (3, 8, 8))).float()  # nothing is clipped
        mean = colours.mean((1, 2))
        matrix, level = colour_change(np.random.default_rng(seed), mean)
        changed = matrix @ (colours.flatten(1) - mean[:, None]) + level[:, None]
        factors = np.random.default_rng(seed).uniform(0.7, 1.3, 3).tolist()
        want = colours
        for adjust, factor in zip(
            (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation), factors, strict=True
        ):
            want = adjust(want, factor)
        torch.testing.assert_close(changed.view_as(colours), want, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("size", [33, 64])
    @pytest.mark.parametrize("angle", [-5.0, 0.3, 5.0, 90.0])
    def test_a_picture_turns_as_torchvision_turns_it(self, size, angle):
        square = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) - 0.4
        want = T.rotate(square, angle, T.InterpolationMode.BILINEAR)
        torch.testing.assert_close(turn_pixels(square, angle), want, rtol=0, atol=1e-4)

    def test_a_picture_whose_colours_keep_their_values_stays_the_same(self):
        class Unchanged(np.random.Generator):
            def uniform(self, *_: object) -> np.ndarray:
                return np.ones(3)

        pixels = torch.arange(3 * 16 * 16).mul(7).remainder(256).to(torch.uint8).view(3, 16, 16)
        varied, _ = augment(pixels, None, 16, Unchanged(np.random.PCG64(0)))
        assert torch.equal(varied, pixels)

    def test_without_quads_only_colours_vary(self):
        pixels = torch.tensor([40, 200], dtype=torch.uint8).repeat_interleave(32)
        pixels = pixels[None, :, None].expand(3, 64, 2)
        for seed in range(20):
            varied, quads = augment(pixels, None, 64, np.random.default_rng(seed))
            rows = varied.permute(1, 2, 0).numpy().astype(int)
            assert quads is None and (rows == rows[:, :1]).all()
            assert len(np.unique(np.delete(rows, range(28, 36), 0))) == 2  # the edge where it was

    def test_nothing_usable_at_all_is_an_error(self, tmp_path):
        path = self.folder(tmp_path, [["é"], []])
        with pytest.raises(
            ValueError, match=r"d\.jsonl: expected a word with a character of the alphabet"
        ):
            Pretraining(JsonLines(path), ALPHABET, 32, 0)

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
        data = Pretraining(JsonLines(path), ALPHABET, 32, 0)
        batch = collate([data[k] for k in range(3)])
        assert len(batch.images) == len(batch.ids) == 2 and len(batch.skipped) == 1
        assert "1.png: not a readable picture" in batch.skipped[0]

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
    def test_pictures_of_any_mode_become_rgb(self, tmp_path, mode):
        path = self.folder(tmp_path, [["one"]])
        name = "0.tif" if mode == "CMYK" else "0.png"
        Image.new(mode, (50, 30)).save(tmp_path / name)
        path.write_text(path.read_text().replace("0.png", name))
        assert JsonLines(path)[0].image.shape == (30, 50, 3)
