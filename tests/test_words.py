"""The alphabet and the configuration of vlpt.py: words to ids and back, and impossible values."""

import unicodedata
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import vlpt
from vlpt import IGNORE_INDEX, MASK, PAD, TINY, UNK, Alphabet

HANGUL_AND_ACCENTS = "한국어éèçñåôüŽ中文"  # each one character; decomposed, Hangul has two or three


class TestAlphabet:
    @given(words=st.lists(st.text("abcd", min_size=1, max_size=40), max_size=3))
    @example(words=["abcd" * 10, "a" * 25, "b" * 26])
    def test_decode_inverts_encode_up_to_25_characters(self, words):
        ids = Alphabet("abcd").encode(words)
        assert ids.shape == (25, 3) and ids.dtype == torch.int64
        assert Alphabet("abcd").decode(ids) == [w[:25] for w in words] + [""] * (3 - len(words))

    def test_the_vocabulary_is_pad_mask_unknown_and_the_characters(self):
        assert len(vlpt.PRINTABLE) == 94 and len(Alphabet(vlpt.PRINTABLE)) == 97
        assert Alphabet("ab").encode(["ba"])[:3, 0].tolist() == [4, 3, PAD]
        assert (PAD, Alphabet.mask_id, UNK) == (0, MASK, 2)

    def test_masked_and_unknown_characters_are_shown(self):
        ids = torch.tensor([[3, PAD], [MASK, PAD], [UNK, PAD]])
        assert Alphabet("ab").decode(ids) == ["a_\ufffd", ""]

    def test_of_targets_the_masked_characters_are_shown(self):
        targets = torch.tensor([[IGNORE_INDEX, 3], [4, IGNORE_INDEX]])
        assert Alphabet("ab").decode(targets) == ["b", "a"]

    @given(words=st.lists(st.text("ab?é", min_size=1), max_size=3))
    def test_a_character_outside_the_alphabet_is_unknown(self, words):
        ids = Alphabet("ab").encode(words)
        for i, word in enumerate(words):
            expected = [{"a": 3, "b": 4}.get(char, UNK) for char in word[:25]]
            assert ids[:, i].tolist() == expected + [PAD] * (25 - len(expected))

    @given(text=st.text(HANGUL_AND_ACCENTS, min_size=1, max_size=60))
    def test_composed_and_decomposed_spellings_have_the_same_ids(self, text):
        alphabet = Alphabet(HANGUL_AND_ACCENTS)
        ids = alphabet.encode([text, unicodedata.normalize("NFD", text)])
        assert torch.equal(ids[:, 0], ids[:, 1]) and (ids != UNK).all()
        assert alphabet.decode(ids)[0] == text[:25]  # composed first, then cut

    def test_an_alphabet_knows_its_characters_in_every_spelling(self):
        angstrom, ring = "\u212b", "\u00c5"  # both are Å; in NFC only the second occurs
        assert Alphabet(angstrom).encode([ring + "A\u030a"])[:3, 0].tolist() == [3, 3, PAD]
        with pytest.raises(ValueError, match="expected one or more distinct characters"):
            Alphabet(angstrom + ring)
        assert len(Alphabet("\u0958x").chars) == 3  # in NFC its first one is spelled as two

    def test_an_accent_after_a_letter_stays_a_character_of_its_own(self):
        alphabet = Alphabet("e\u0301\u00e9")
        assert alphabet.chars == "e\u0301\u00e9"
        ids = alphabet.encode(["q\u0301e\u0301e"])[:5, 0]
        assert ids.tolist() == [UNK, 4, 5, 3, PAD]  # as words are composed, é is one character

    @pytest.mark.parametrize("words", [["ab", ""], ["a"] * 4])
    def test_empty_and_too_many_words_are_errors(self, words):
        with pytest.raises(ValueError) as error:
            Alphabet("ab").encode(words)
        assert str(error.value) == f"words: expected at most 3 words, none empty, got {words}"

    @pytest.mark.parametrize("chars", ["", "aba"])
    def test_an_impossible_alphabet_is_an_error(self, chars):
        with pytest.raises(ValueError, match=rf"^alphabet: expected .*, got '{chars}'$"):
            Alphabet(chars)


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("image_size", 48, "image_size: expected a multiple of 32, got 48"),
            ("image_size", 0, "image_size: expected a multiple of 32, got 0"),
            ("image_size", -32, "image_size: expected a multiple of 32, got -32"),
            ("text_encoder", "bert", "text_encoder: expected 'character' or 'sentence', got 'bert"),
            ("decoder", "lstm", "decoder: expected 'visual_textual' or 'none', got 'lstm'"),
            ("text_layers", -1, "text_layers: expected at least 1, got -1"),
            ("decoder_layers", 0, "decoder_layers: expected at least 1, got 0"),
            ("text_heads", 0, "text_heads: expected a divisor of text_width, 64, got 0"),
            ("text_heads", 128, "text_heads: expected a divisor of text_width, 64, got 128"),
            ("embed_dim", 0, "decoder_heads: expected a divisor of embed_dim, 0, got 8"),
            ("text_width", -8, "text_heads: expected a divisor of text_width, -8, got 8"),
            ("decoder_heads", 7, "decoder_heads: expected a divisor of embed_dim, 128, got 7"),
        ],
    )
    def test_an_impossible_value_is_an_error(self, field, value, message):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **{field: value})

    def test_the_defaults_are_the_published_sizes(self):
        c = vlpt.OCLIP_RN50
        assert (c.image_size, c.backbone, c.embed_dim) == (512, "clip_resnet50", 384)
        assert (c.text_width, c.text_layers, c.text_heads) == (64, 6, 8)
        assert (c.decoder_layers, c.decoder_heads) == (6, 8)
