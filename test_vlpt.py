"""The proof of vlpt.py: one class a step of its table, in its order.

Oracles are loops over Python floats that share no code with vlpt.py. Everything runs in float64
with one tolerance, so a wrong axis, a lost pad or a missing position cannot hide in rounding.
`HYPOTHESIS_PROFILE=deep` (`make proof`) tries 1000 cases where `make test` tries 25.
"""

import copy
import json
import math
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import torchvision
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import vlpt
from vlpt import IGNORE, MASK, PAD, TINY, UNK, VLPT, Alphabet, Config

settings.register_profile("quick", deadline=None, derandomize=True, max_examples=25)
settings.register_profile(
    "deep", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(  # a broken vlpt.py shall fail, not be explained by the smallest case
    "mutants", settings.get_profile("quick"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.getenv("HYPOTHESIS_PROFILE", "quick"))

slowly = settings(max_examples=settings.default.max_examples * 2 // 5)  # oracles of whole stacks
few, seeds = st.integers(1, 4), st.integers(0, 2**32 - 1)
HANGUL_AND_ACCENTS = "한국어éèçñåôüŽ中文"  # composed; Korean decomposes into two or three
text_encoders = st.sampled_from(["character", "sentence"])
CHAIN = ["resnet18", "resnet34", "resnet50", "resnet101", "clip_resnet50", "clip_resnet101"]
SMALL = Config(
    alphabet="abcd", image_size=64, backbone="clip_resnet",
    backbone_size={"width": 4, "layers": (1, 1, 1, 1)}, joint_width=8, text_width=6,
    text_layers=2, text_heads=2, decoder_layers=2, decoder_heads=2,
)  # fmt: skip


def close(got: Tensor | float | list, want: Tensor | float | list) -> None:
    """Equal but for rounding in float64; the one tolerance of this file."""
    got, want = (torch.as_tensor(x, dtype=torch.float64) for x in (got, want))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_ids(seed: int, B: int, L: int = 4, N: int = 3, V: int = 7, least: int = 0) -> Tensor:
    """Words of random length least..L; with least = 0 some slots are empty."""
    rng = np.random.default_rng(seed)
    ids = np.full((B, L, N), PAD)
    for b in range(B):
        for i in range(N):
            length = rng.integers(least, L + 1)
            ids[b, :length, i] = rng.integers(vlpt.UNK + 1, V, length)
    return torch.from_numpy(ids)


def lively(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """In float64 and evaluation mode, every parameter and statistic away from 0 and 1."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "log_scale":
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for name, b in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.add_(0.3 * torch.rand(b.shape, generator=generator, dtype=b.dtype))
    return model


@lru_cache(maxsize=8)
def small(text_encoder: str = "character", decoder: str = "visual_textual") -> VLPT:
    torch.manual_seed(0)
    return lively(VLPT(replace(SMALL, text_encoder=text_encoder, decoder=decoder)), 1)


def check_gradient(module: torch.nn.Module, call: Callable, *inputs: Tensor) -> None:
    """Autograd's derivative of call(module, *inputs) by all parameters and inputs, along a random
    direction, is the central difference: no path is cut and none is added.
    """
    leaves = [p for p in module.parameters() if p.requires_grad]
    leaves += [x.requires_grad_() for x in inputs]
    way = [randn(k, *leaf.shape) for k, leaf in enumerate(leaves)]
    length = math.sqrt(sum(w.square().sum().item() for w in way))
    out = call(module, *inputs)
    weights = randn(len(way), *out.shape)
    gradients = torch.autograd.grad((out * weights).sum(), leaves, materialize_grads=True)
    slope = sum((g * w).sum() for g, w in zip(gradients, way, strict=True))

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            kept = [leaf.clone() for leaf in leaves]
            for leaf, w in zip(leaves, way, strict=True):
                leaf.add_(w, alpha=step)
            value = (call(module, *inputs) * weights).sum()
            for leaf, old in zip(leaves, kept, strict=True):
                leaf.copy_(old)
        return value

    step = 1e-6 / length
    numeric = (moved(step) - moved(-step)) / (2 * step)
    torch.testing.assert_close(slope, numeric, rtol=1e-4, atol=1e-4)  # rounding over the step


# Oracles: lists of floats in, lists of floats out


def linear_by_hand(x: list, layer: torch.nn.Linear) -> list:
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    rows = layer.weight.tolist()
    return [[sum(w * v for w, v in zip(row, token, strict=True)) + b
             for row, b in zip(rows, bias, strict=True)] for token in x]  # fmt: skip


def softmax_by_hand(scores: list[float]) -> list[float]:
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def weights_by_hand(attention: vlpt.Attention, query: list, key: list) -> list:
    """[head][query][key], rows that sum to 1."""
    q, k = linear_by_hand(query, attention.q_proj), linear_by_hand(key, attention.k_proj)
    width = len(q[0]) // attention.heads
    out = []
    for head in range(attention.heads):
        part = range(head * width, (head + 1) * width)
        out.append([softmax_by_hand([sum(a[c] * b[c] for c in part) / math.sqrt(width) for b in k])
                    for a in q])  # fmt: skip
    return out


def attention_by_hand(attention: vlpt.Attention, query: list, key: list, value: list) -> list:
    weights, v = weights_by_hand(attention, query, key), linear_by_hand(value, attention.v_proj)
    width = len(v[0]) // attention.heads
    mixed = [[sum(weights[c // width][i][j] * v[j][c] for j in range(len(v)))
              for c in range(len(v[0]))] for i in range(len(query))]  # fmt: skip
    return linear_by_hand(mixed, attention.c_proj)


def norm_by_hand(x: list, norm: torch.nn.LayerNorm) -> list:
    out = []
    for token in x:
        mean = sum(token) / len(token)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in token) / len(token) + norm.eps)
        out.append([(v - mean) / deviation * g + b for v, g, b in
                    zip(token, norm.weight.tolist(), norm.bias.tolist(), strict=True)])  # fmt: skip
    return out


def plus(x: list, y: list) -> list:
    return [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(x, y, strict=True)]


def mlp_by_hand(layer: vlpt.Layer, x: list) -> list:
    hidden = linear_by_hand(norm_by_hand(x, layer.ln_2), layer.c_fc)
    hidden = [[v / (1 + math.exp(-1.702 * v)) for v in token] for token in hidden]
    return linear_by_hand(hidden, layer.c_proj)


def encode_by_hand(text: vlpt.TextEncoder, characters: list[tuple[int, int, int]]) -> list:
    """Encode characters (id, place in word, row of PE) that may see each other; no pads at all."""
    x = [[w + p for w, p in zip(text.character[c].tolist(), text.position[j, i].tolist(),
                                strict=True)] for c, j, i in characters]  # fmt: skip
    for layer in text.layers:
        y = norm_by_hand(x, layer.ln_1)
        x = plus(x, attention_by_hand(layer.attn, y, y, y))
        x = plus(x, mlp_by_hand(layer, x))
    return linear_by_hand(norm_by_hand(x, text.ln_final), text.projection)


def decode_by_hand(decoder: vlpt.VisualTextualDecoder, query: list, local: list) -> list:
    key = plus(local, decoder.position.tolist())
    for layer in decoder.layers:
        seen = attention_by_hand(layer.attn, query, key, local)
        query = plus(query, norm_by_hand(seen, layer.ln_1))
        query = plus(query, mlp_by_hand(layer, query))
    return norm_by_hand(query, decoder.ln_final)


def cross_entropy_by_hand(row: list[float], target: int) -> float:
    largest = max(row)
    return largest + math.log(sum(math.exp(v - largest) for v in row)) - row[target]


def contrastive_by_hand(image: list, text: list, log_scale: float) -> float:
    pairs = [(i, t) for i, t in zip(image, text, strict=True) if any(t)]
    scale, total = min(math.exp(log_scale), 100.0), 0.0

    def cosine(x: list, y: list) -> float:
        return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)

    for k, (image_k, text_k) in enumerate(pairs):
        total += cross_entropy_by_hand([scale * cosine(image_k, t) for _, t in pairs], k)
        total += cross_entropy_by_hand([scale * cosine(i, text_k) for i, _ in pairs], k)
    return total / max(1, len(pairs))


class TestAlphabetAndConfig:
    @given(words=st.lists(st.text("abcd", min_size=1, max_size=40), max_size=3))
    @example(words=["abcd" * 10, "a" * 25, "b" * 26])
    def test_decode_inverts_encode_up_to_25_characters(self, words):
        ids = Alphabet("abcd").encode(words)
        assert ids.shape == (25, 3) and ids.dtype == torch.int64
        assert Alphabet("abcd").decode(ids) == [w[:25] for w in words] + [""] * (3 - len(words))

    def test_vocabulary_is_pad_mask_unknown_and_characters(self):
        assert len(Alphabet(vlpt.PRINTABLE)) == 97 and len(vlpt.PRINTABLE) == 94
        assert Alphabet("ab").encode(["ba"])[:3, 0].tolist() == [4, 3, PAD]
        assert (PAD, Alphabet.mask_id, UNK) == (0, MASK, 2)

    def test_masked_and_unknown_characters_are_shown(self):
        ids = torch.tensor([[3, PAD], [MASK, PAD], [UNK, PAD]])
        assert Alphabet("ab").decode(ids) == ["a_\ufffd", ""]

    @given(words=st.lists(st.text("ab?é", min_size=1), max_size=3))
    def test_a_character_that_is_not_in_the_alphabet_is_unknown(self, words):
        ids = Alphabet("ab").encode(words)
        for i, word in enumerate(words):
            known = [{"a": 3, "b": 4}.get(char, UNK) for char in word[:25]]
            assert ids[:, i].tolist() == known + [PAD] * (25 - len(known))

    @given(text=st.text(HANGUL_AND_ACCENTS, min_size=1, max_size=60))
    def test_composed_and_decomposed_words_are_spelled_alike(self, text):
        alphabet = Alphabet(HANGUL_AND_ACCENTS)
        ids = alphabet.encode([text, unicodedata.normalize("NFD", text)])
        assert torch.equal(ids[:, 0], ids[:, 1]) and (ids != UNK).all()
        assert alphabet.decode(ids)[0] == text[:25]  # cut when it is composed

    def test_an_alphabet_knows_its_characters_in_any_form(self):
        angstrom, ring = "\u212b", "\u00c5"  # both are Å; only the second is in composed words
        assert Alphabet(angstrom).encode([ring + "A\u030a"])[:3, 0].tolist() == [3, 3, PAD]
        with pytest.raises(ValueError, match="wanted one or more distinct characters"):
            Alphabet(angstrom + ring)
        with pytest.raises(ValueError, match="wanted one or more distinct characters"):
            Alphabet("\u0958x")  # composed words spell it as two characters

    @pytest.mark.parametrize(
        ("words", "message"),
        [(["ab", ""], r"words: got \['ab', ''\], wanted at most 3, none empty"),
         (["a"] * 4, r"words: got \['a', 'a', 'a', 'a'\], wanted at most 3")],
    )  # fmt: skip
    def test_bad_words_are_named(self, words, message):
        with pytest.raises(ValueError, match=message):
            Alphabet("ab").encode(words)

    @pytest.mark.parametrize("chars", ["", "aba"])
    def test_bad_alphabets_are_named(self, chars):
        with pytest.raises(ValueError, match=f"alphabet: got '{chars}'"):
            Alphabet(chars)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [("image_size", 100, "image_size: got 100, wanted a multiple of 32"),
         ("image_size", 0, "image_size: got 0"),
         ("text_encoder", "bert", "text_encoder: got 'bert'"),
         ("decoder", "lstm", "decoder: got 'lstm'"),
         ("decoder_layers", 0, "decoder_layers: got 0, wanted at least 1")],
    )  # fmt: skip
    def test_bad_settings_are_named(self, field, value, message):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **{field: value})

    def test_published_sizes(self):
        c = vlpt.OCLIP_RN50
        assert (c.image_size, c.joint_width, c.text_width) == (512, 384, 64)
        assert (c.text_layers, c.text_heads, c.decoder_layers, c.decoder_heads) == (6, 8, 6, 8)


class TestStep1ImageEncoder:
    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_torchvision_names_are_torchvision(self, name):
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(name, weights=None)
        ours = vlpt.build_backbone(name)
        state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
        ours.load_state_dict(state)  # strict: native keys are torchvision's without fc
        ours, theirs = ours.double().eval(), theirs.double().eval()
        x = randn(0, 2, 3, 64, 64)
        theirs.avgpool = theirs.fc = torch.nn.Identity()
        close(ours(x)[-1].flatten(1), theirs(x))

    def test_bottleneck_pools_where_it_strides(self):
        block = lively(vlpt.Bottleneck(3, 2, stride=2), 3)
        x = randn(0, 2, 3, 6, 4)

        def norm(bn, y):
            shape = (1, -1, 1, 1)
            y = (y - bn.running_mean.view(shape)) / (bn.running_var + bn.eps).sqrt().view(shape)
            return y * bn.weight.view(shape) + bn.bias.view(shape)

        def pool(y):
            return (
                y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]
            ) / 4

        y = norm(block.bn1, torch.einsum("oi,bihw->bohw", block.conv1.weight[..., 0, 0], x)).relu()
        patches = torch.nn.functional.unfold(y, 3, padding=1).view(2, 2, 9, 6, 4)
        y = torch.einsum("oip,biphw->bohw", block.conv2.weight.flatten(2), patches)
        y = pool(norm(block.bn2, y).relu())
        y = norm(block.bn3, torch.einsum("oi,bihw->bohw", block.conv3.weight[..., 0, 0], y))
        conv, bn = block.downsample[1], block.downsample[2]
        short = norm(bn, torch.einsum("oi,bihw->bohw", conv.weight[..., 0, 0], pool(x)))
        close(block(x), (y + short).relu())

    def test_a_new_block_is_the_identity_on_its_shortcut(self):
        block, x = vlpt.Bottleneck(8, 2, stride=1).double(), randn(0, 1, 8, 4, 4).relu()
        close(block(x), x)

    def test_clip_resnet50_has_the_330_tensors_and_names_of_clip(self):
        keys = vlpt.build_backbone("clip_resnet50").state_dict()
        assert len(keys) == 330
        assert {
            "bn3.running_var",
            "layer1.0.downsample.0.weight",
            "layer4.0.downsample.1.bias",
        } <= (keys.keys())
        assert keys["conv1.weight"].shape == (32, 3, 3, 3)
        assert keys["conv3.weight"].shape == (64, 32, 3, 3)
        assert keys["layer3.5.conv3.weight"].shape == (1024, 256, 1, 1)

    @given(seed=seeds)
    def test_clip_s_stem_strides_in_its_first_convolution_then_pools(self, seed):
        backbone = lively(vlpt.build_backbone("clip_resnet", layers=(1,), width=4), seed)
        x = images = randn(seed, 1, 3, 8, 8)
        for k, stride in ((1, 2), (2, 1), (3, 1)):
            conv, bn = backbone[f"conv{k}"], backbone[f"bn{k}"]
            x = torch.nn.functional.conv2d(x, conv.weight, stride=stride, padding=1)
            x = (x - bn.running_mean[:, None, None]) / (bn.running_var + bn.eps).sqrt()[
                :, None, None
            ]
            x = (x * bn.weight[:, None, None] + bn.bias[:, None, None]).clamp(min=0)
        x = x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
        close(backbone(images)[0], backbone["layer1"](x))

    @pytest.mark.parametrize("name", CHAIN)
    def test_four_maps_at_strides_4_to_32(self, name):
        backbone = vlpt.build_backbone(name).eval()
        with torch.no_grad():
            maps = backbone(torch.zeros(1, 3, 64, 96))
        assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert (maps[-1].shape[1], backbone.stride) == (backbone.channels, 32)

    def test_pool_is_clip_s_by_name_and_shape(self):
        pool = vlpt.AttentionPool(2048, 16, 384)
        shapes = {k: tuple(v.shape) for k, v in pool.state_dict().items()}
        wanted = {"positional_embedding": (257, 2048)}
        for x, outputs in (("q", 2048), ("k", 2048), ("v", 2048), ("c", 384)):
            wanted |= {f"{x}_proj.weight": (outputs, 2048), f"{x}_proj.bias": (outputs,)}
        assert shapes == wanted
        assert pool.heads == 32

    @given(B=st.integers(1, 2), h=st.integers(1, 3), D=few, seed=seeds)
    def test_pool_equals_attention_over_mean_token_and_map(self, B, h, D, seed):
        torch.manual_seed(seed)
        pool = lively(vlpt.AttentionPool(6, h, D), seed)
        pool.heads = 2
        x = randn(seed, B, 6, h, h)
        image, local = pool(x)
        for b in range(B):
            tokens = x[b].flatten(1).T.tolist()
            mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
            tokens = plus([mean, *tokens], pool.positional_embedding.tolist())
            want = attention_by_hand(pool, tokens, tokens, tokens)
            close(image[b], want[0])
            close(local[b], want[1:])

    @given(seed=seeds)
    def test_positions_tell_places_apart(self, seed):
        pool, x = lively(vlpt.AttentionPool(4, 2, 3), seed), randn(seed, 1, 4, 2, 2)
        moved = pool(x.flip(2))[0]
        assert not torch.allclose(pool(x)[0], moved, rtol=1e-6)
        with torch.no_grad():
            pool.positional_embedding.zero_()
        close(pool(x)[0], pool(x.flip(2))[0])

    @given(seed=seeds)
    def test_gradient_of_the_pool_is_the_derivative(self, seed):
        pool = lively(vlpt.AttentionPool(4, 2, 3), seed)
        check_gradient(pool, lambda pool, x: torch.cat(
            [pool(x)[0].unsqueeze(1), pool(x)[1]], 1), randn(seed, 2, 4, 2, 3))  # fmt: skip

    def test_other_image_sizes_interpolate_positions(self):
        table = torch.arange(16.0).reshape(4, 4)
        rows = table.reshape(16, 1) // 4  # a table that grows down and is constant across
        assert vlpt.resize_table(rows, 4, (4, 4)) is rows
        wide = vlpt.resize_table(rows, 4, (4, 8)).reshape(4, 8)
        torch.testing.assert_close(wide, torch.arange(4.0)[:, None].expand(4, 8))
        tall = vlpt.resize_table(rows, 4, (8, 4)).reshape(8, 4)
        assert (tall.diff(dim=0) > 0).all() and (tall.diff(dim=1).abs() < 1e-6).all()

    @pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 32)])
    def test_any_multiple_of_32_works(self, size):
        out = small()(randn(0, 1, 3, *size), make_ids(0, 1))
        assert out.logits.shape == (1, 4, 3, 7) and torch.isfinite(out.logits).all()

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [("vgg", {}, "backbone: got 'vgg', wanted one of resnet18"),
         ("resnet18", {"width": 8}, "backbone_size: got {'width': 8}"),
         ("clip_resnet", {}, "backbone_size: got {}"),
         ("clip_resnet", {"layers": (1,), "depth": 2}, "backbone_size: got .*depth")],
    )  # fmt: skip
    def test_bad_backbones_are_named(self, name, size, message):
        with pytest.raises(ValueError, match=message):
            vlpt.build_backbone(name, **size)

    def test_heads_must_divide_the_width(self):
        with pytest.raises(ValueError, match="heads: got 3, wanted a divisor of the width 8"):
            vlpt.Attention(8, 3)

    def test_normalize_uses_clip_s_pixel_statistics(self):
        got = vlpt.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        want = [(1 - m) / s for m, s in zip(mean, std, strict=True)]
        torch.testing.assert_close(got, torch.tensor(want))


class TestStep2Embedding:
    @given(B=few, N=st.integers(1, 3), kind=text_encoders, seed=seeds)
    def test_is_one_hot_times_matrix_plus_position(self, B, N, kind, seed):
        text, ids = small(kind).text, make_ids(seed, B, N=N)
        got = text.embed(ids)
        assert got.shape == (*ids.shape, 6)
        for b, j, i in np.ndindex(*ids.shape):
            one_hot = [float(k == ids[b, j, i]) for k in range(7)]
            row = text.position[j, i if kind == "sentence" else 0].tolist()
            want = [sum(one_hot[k] * text.character[k, c].item() for k in range(7)) + row[c]
                    for c in range(6)]  # fmt: skip
            assert got[b, j, i].tolist() == want  # exactly

    @given(kind=text_encoders, seed=seeds)
    def test_gradient_is_the_derivative(self, kind, seed):
        """By W_c and PE; by any other parameter of the encoder it is zero."""
        ids = make_ids(seed, 2)
        check_gradient(small(kind).text, lambda text: text.embed(ids).sin())

    def test_positions_are_learned(self):
        assert small().text.position.requires_grad
        assert small().text.position.shape == (25, 1, 6)
        assert small("sentence").text.position.shape == (25, 3, 6)


class TestStep3TextEncoder:
    @slowly
    @given(N=st.integers(1, 3), seed=seeds)
    def test_a_word_is_encoded_by_itself_without_pads(self, N, seed):
        text, ids = small().text, make_ids(seed, 2, L=3, N=N)
        got = text(ids)
        assert got.shape == (2, 3, N, 8)
        for b, i in np.ndindex(2, N):
            word = [c for c in ids[b, :, i].tolist() if c != PAD]
            if word:
                want = encode_by_hand(text, [(c, j, 0) for j, c in enumerate(word)])
                close(got[b, : len(word), i], want)
            assert (got[b, len(word) :, i] == 0).all()

    @slowly
    @given(seed=seeds)
    @example(seed=2409)  # no words at all
    def test_a_sentence_is_all_words_at_once(self, seed):
        text, ids = small("sentence").text, make_ids(seed, 1, L=3)
        places = [(i, j) for i in range(3) for j in range(3) if ids[0, j, i] != PAD]
        characters = [(ids[0, j, i].item(), j, i) for i, j in places]
        want = encode_by_hand(text, characters) if characters else []
        got = text(ids)
        for (i, j), row in zip(places, want, strict=True):
            close(got[0, j, i], row)

    @given(seed=seeds)
    def test_other_words_do_not_matter_and_in_sentence_do(self, seed):
        ids = make_ids(seed, 1, least=1)
        other = ids.clone()
        other[0, :, 1:] = make_ids(seed + 1, 1, least=1)[0, :, 1:]
        other[0, 0, 2] = 3 + (ids[0, 0, 2] - 2) % 4  # surely another word
        close(small().text(ids)[:, :, 0], small().text(other)[:, :, 0])
        close(small().text(ids)[:, :, :1], small().text(ids[:, :, :1]))  # nor their number
        difference = small("sentence").text(ids)[:, :, 0] - small("sentence").text(other)[:, :, 0]
        assert difference.abs().max() > 1e-6

    @given(order=st.permutations(range(3)), seed=seeds)
    def test_permuting_words_permutes_outputs(self, order, seed):
        ids, text = make_ids(seed, 2), small().text
        close(text(ids[:, :, order]), text(ids)[:, :, order])

    @given(kind=text_encoders, seed=seeds)
    def test_pads_are_never_attended_to(self, kind, seed):
        text, ids = small(kind).text, make_ids(seed, 2)
        want = text(ids)
        kept = text.character[PAD].clone()
        with torch.no_grad():
            text.character[PAD] += 5
            got = text(ids)
            text.character[PAD] = kept
        close(got, want)
        (gradient,) = torch.autograd.grad(text(ids).square().sum(), text.character)
        assert (gradient[PAD] == 0).all()

    def test_a_character_sees_those_after_it(self):
        one, two = torch.tensor([[[3], [4]]]), torch.tensor([[[3], [5]]])
        assert not torch.allclose(small().text(one)[0, 0], small().text(two)[0, 0])

    @slowly
    @given(kind=text_encoders, seed=seeds)
    def test_gradient_is_the_derivative(self, kind, seed):
        ids = make_ids(seed, 2)
        check_gradient(small(kind).text, lambda text: text(ids))

    @given(kind=text_encoders)
    def test_no_words_at_all_give_zero_and_finite_gradients(self, kind):
        text = small(kind).text
        out = text(torch.full((2, 4, 3), PAD))
        assert (out == 0).all()
        gradients = torch.autograd.grad(out.sum(), list(text.parameters()), allow_unused=True)
        assert all(torch.isfinite(g).all() and (g == 0).all() for g in gradients if g is not None)


class TestStep4Masking:
    @given(B=few, L=st.integers(1, 25), N=st.integers(1, 3), unknown=st.floats(0, 1), seed=seeds)
    def test_exactly_one_known_character_of_every_word_that_has_one(self, B, L, N, unknown, seed):
        ids = make_ids(seed, B, L, N)
        unknown = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed + 1)) < unknown
        ids[unknown & (ids != PAD)] = UNK
        masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
        assert masked.shape == targets.shape == ids.shape
        changed = masked != ids
        assert (changed.sum(1) == (ids > UNK).any(1)).all()  # none in an empty or unknown word
        assert (ids[changed] > UNK).all()
        assert (masked[changed] == MASK).all() and (targets[changed] == ids[changed]).all()
        assert (targets[~changed] == IGNORE).all() and (masked[~changed] == ids[~changed]).all()

    def test_pad_and_unknown_are_never_drawn(self):
        ids = torch.tensor([3, UNK, PAD, PAD]).reshape(1, 4, 1).expand(500, 4, 1)
        masked, _ = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        assert (masked[:, 0] == MASK).all() and (masked[:, 1:] == ids[:, 1:]).all()

    @pytest.mark.parametrize("length", [2, 5, 25])
    def test_every_character_is_equally_likely(self, length):
        """Chi-square against uniform; with this fixed seed it passes or fails for good.

        Over seeds a true sampler would fail one time in a million a length.
        """
        from scipy.stats import chi2

        draws = 20_000
        ids = torch.zeros(draws, 25, 1, dtype=torch.long)
        ids[:, :length] = 3
        masked, _ = vlpt.mask_one_char(ids, torch.Generator().manual_seed(7))
        counts = (masked[:, :length, 0] == MASK).sum(0).double()
        statistic = ((counts - draws / length) ** 2 / (draws / length)).sum().item()
        assert statistic < chi2.ppf(1 - 1e-6, length - 1)

    @given(seed=seeds)
    def test_is_reproducible_from_the_generator(self, seed):
        ids = make_ids(seed, 4, least=1)
        pairs = [vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed)) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))

    def test_different_seeds_and_words_differ(self):
        ids = torch.full((64, 25, 3), 3)
        one = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))[0]
        two = vlpt.mask_one_char(ids, torch.Generator().manual_seed(1))[0]
        assert not torch.equal(one, two)
        assert not torch.equal(one[:, :, 0], one[:, :, 1])  # drawn for each word anew

    def test_without_a_generator_follows_the_global_seed(self):
        ids = torch.full((8, 25, 3), 3)
        torch.manual_seed(3)
        one = vlpt.mask_one_char(ids)[0]
        torch.manual_seed(3)
        assert torch.equal(one, vlpt.mask_one_char(ids)[0])


class TestStep5Decoder:
    @slowly
    @given(B=st.integers(1, 2), Q=st.integers(1, 3), seed=seeds)
    def test_equals_the_hand_computed_stack(self, B, Q, seed):
        decoder, query, local = small().decoder, randn(seed, B, Q, 8), randn(seed + 1, B, 4, 8)
        got = decoder(query, local, (2, 2))
        weights = decoder(query, local, (2, 2), maps=True)
        for b in range(B):
            close(got[b], decode_by_hand(decoder, query[b].tolist(), local[b].tolist()))
        close(weights.sum(-1), torch.ones(B, Q))

    @given(Q=st.integers(2, 6), seed=seeds)
    def test_queries_never_see_each_other(self, Q, seed):
        decoder, query, local = small().decoder, randn(seed, 2, Q, 8), randn(seed + 1, 2, 4, 8)
        close(decoder(query[:, 1:], local, (2, 2)), decoder(query, local, (2, 2))[:, 1:])

    @given(seed=seeds)
    def test_decoding_the_masked_positions_gathers_from_the_full_result(self, seed):
        model, images, ids = small(), randn(seed, 2, 3, 64, 64), make_ids(seed, 2, L=25, least=1)
        masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
        full = model(images, masked).logits
        _, local = model.pool(model.backbone(images)[-1])
        te = model.text(masked)
        for b in range(2):
            where = targets[b] != IGNORE
            query = te[b][where].unsqueeze(0)
            close(model.head(model.decoder(query, local[b : b + 1], (2, 2)))[0], full[b][where])

    @given(seed=seeds)
    def test_keys_carry_positions_and_values_do_not(self, seed):
        decoder, query, local = small().decoder, randn(seed, 1, 2, 8), randn(seed + 1, 1, 4, 8)
        moved = local[:, [1, 0, 3, 2]]
        assert not torch.allclose(decoder(query, local, (2, 2)), decoder(query, moved, (2, 2)))
        kept = decoder.position.clone()
        with torch.no_grad():
            decoder.position.zero_()
            still = decoder(query, local, (2, 2)), decoder(query, moved, (2, 2))
            decoder.position.copy_(kept)
        close(*still)

    @given(kind=text_encoders, seed=seeds)
    def test_without_decoder_the_head_reads_character_plus_image(self, kind, seed):
        model, images, ids = small(kind, "none"), randn(seed, 2, 3, 64, 64), make_ids(seed, 2)
        out, te = model(images, ids), model.text(ids)
        for b, j, i in np.ndindex(*ids.shape):
            if ids[b, j, i] != PAD:
                query = [(te[b, j, i] + out.image[b]).tolist()]
                close(out.logits[b, j, i], linear_by_hand(query, model.head)[0])

    @slowly
    @given(seed=seeds)
    def test_attention_maps_equal_hand_computed_softmax(self, seed):
        model, images, ids = small(), randn(seed, 1, 3, 64, 64), make_ids(seed, 1)
        pooled, maps = model.attention_maps(images, ids)
        assert pooled.shape == (1, 2, 2) and maps.shape == (*ids.shape, 2, 2)
        feature_map = model.backbone(images)[-1]
        tokens = model.pool.tokens(feature_map)[0].tolist()
        pool = np.mean(weights_by_hand(model.pool, tokens, tokens[1:]), 0)
        close(pooled.flatten(), pool[0].tolist())
        local = model.pool(feature_map)[1][0].tolist()
        query = model.text(ids)[0].flatten(0, 1).tolist()
        key = plus(local, model.decoder.position.tolist())
        first, last = model.decoder.layers
        seen = norm_by_hand(attention_by_hand(first.attn, query, key, local), first.ln_1)
        query = plus(query, seen)
        query = plus(query, mlp_by_hand(first, query))
        decoder = np.mean(weights_by_hand(last.attn, query, key), 0)
        close(maps.flatten(), (decoder @ pool[1:]).ravel().tolist())

    @given(kind=text_encoders, seed=seeds)
    def test_attention_rows_sum_to_one_over_image_tokens(self, kind, seed):
        images = randn(seed, 2, 3, 64, 96)
        pooled, maps = small(kind).attention_maps(images, make_ids(seed, 2, L=25))
        close(pooled.sum((1, 2)), torch.ones(2))
        close(maps.sum((3, 4)), torch.ones(2, 25, 3))

    @slowly
    @given(seed=seeds)
    def test_gradient_is_the_derivative(self, seed):
        """By the queries, the local tokens, which are keys and values, and each parameter."""
        query, local = randn(seed, 2, 3, 8), randn(seed + 1, 2, 6, 8)
        check_gradient(small().decoder, lambda decoder, q, f: decoder(q, f, (2, 3)), query, local)

    def test_attention_maps_need_a_decoder(self):
        with pytest.raises(ValueError, match="decoder: got 'none'"):
            small(decoder="none").attention_maps(randn(0, 1, 3, 64, 64), make_ids(0, 1))


class TestStep6CharLoss:
    @given(B=few, L=few, N=few, V=st.integers(4, 7), seed=seeds)
    def test_is_the_mean_over_masked_positions(self, B, L, N, V, seed):
        logits, ids = 3 * randn(seed, B, L, N, V), make_ids(seed, B, L, N, V)
        _, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
        terms = [cross_entropy_by_hand(logits[k].tolist(), targets[k].item())
                 for k in np.ndindex(B, L, N) if targets[k] != IGNORE]  # fmt: skip
        close(vlpt.char_loss(logits, targets), sum(terms) / max(1, len(terms)))

    @given(B=few, seed=seeds)
    def test_unmasked_positions_have_no_say_and_no_gradient(self, B, seed):
        logits, ids = randn(seed, B, 4, 3, 7).requires_grad_(), make_ids(seed, B, least=1)
        _, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
        loss = vlpt.char_loss(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        ignored = targets == IGNORE
        assert (gradient[ignored] == 0).all() and (gradient[~ignored].abs().sum(-1) > 0).all()
        other = torch.where(ignored[..., None], 1e3 * randn(seed + 1, *logits.shape), logits)
        assert vlpt.char_loss(other, targets) == loss

    @given(B=few, V=st.integers(4, 97))
    def test_is_ln_V_for_constant_logits(self, B, V):
        targets = torch.full((B, 25, 3), IGNORE)
        targets[:, 0] = 3
        close(vlpt.char_loss(torch.full((B, 25, 3, V), 0.5).double(), targets), math.log(V))

    def test_targets_may_be_on_another_device(self):
        loss = vlpt.char_loss(torch.zeros(2, 4, 3, 7, device="meta"), torch.zeros(2, 4, 3).long())
        assert loss.device.type == "meta" and loss.shape == ()

    def test_is_zero_with_zero_gradient_where_nothing_is_masked(self):
        logits = randn(0, 2, 4, 3, 7).requires_grad_()
        loss = vlpt.char_loss(logits, torch.full((2, 4, 3), IGNORE))
        assert loss == 0 and (torch.autograd.grad(loss, logits)[0] == 0).all()

    def test_gradient_is_the_derivative(self):
        targets = torch.tensor([[[3, IGNORE], [IGNORE, 1]]])
        logits = randn(0, 1, 2, 2, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: vlpt.char_loss(x, targets), logits)

    def test_other_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"targets: got \(2, 4\), wanted \(2, 4, 3\)"):
            vlpt.char_loss(randn(0, 2, 4, 3, 7), torch.zeros(2, 4).long())


class TestStep7Contrastive:
    scale = torch.tensor(1.3, dtype=torch.float64)

    @given(B=few, D=few, log_scale=st.floats(-1, 6), seed=seeds, empty=st.integers(0, 4))
    @example(B=4, D=3, log_scale=5.0, seed=0, empty=2)  # beyond the cap
    def test_is_the_sum_of_both_cross_entropies(self, B, D, log_scale, seed, empty):
        image, text = randn(seed, B, D), randn(seed + 1, B, D)
        text[B - min(B, empty) :] = 0  # images without words
        want = contrastive_by_hand(image.tolist(), text.tolist(), log_scale)
        close(
            vlpt.contrastive_loss(image, text, torch.tensor(log_scale, dtype=torch.float64)), want
        )

    @given(B=few, D=few, seed=seeds)
    def test_does_not_change_when_the_towers_are_swapped(self, B, D, seed):
        x, y = randn(seed, B, D), randn(seed + 1, B, D)
        close(vlpt.contrastive_loss(x, y, self.scale), vlpt.contrastive_loss(y, x, self.scale))

    @given(B=few, D=few, seed=seeds)
    def test_does_not_change_when_rows_are_rescaled(self, B, D, seed):
        x, y, by = randn(seed, B, D), randn(seed + 1, B, D), randn(seed + 2, 2, B, 1).abs() + 0.1
        close(vlpt.contrastive_loss(by[0] * x, by[1] * y, self.scale),
              vlpt.contrastive_loss(x, y, self.scale))  # fmt: skip

    @given(order=st.permutations(range(4)), seed=seeds)
    def test_does_not_change_when_pairs_are_permuted(self, order, seed):
        x, y = randn(seed, 4, 3), randn(seed + 1, 4, 3)
        close(vlpt.contrastive_loss(x[order], y[order], self.scale),
              vlpt.contrastive_loss(x, y, self.scale))  # fmt: skip

    @given(B=few, D=few)
    def test_is_2_ln_B_for_equal_features(self, B, D):
        same = torch.ones(B, D).double()
        close(vlpt.contrastive_loss(same, same, self.scale), 2 * math.log(B))

    @pytest.mark.parametrize("worded", [0, 1])
    def test_is_zero_without_a_negative(self, worded):
        image, text = randn(0, 3, 2).requires_grad_(), torch.zeros(3, 2).double()
        text[:worded] = 1
        loss = vlpt.contrastive_loss(image, text.requires_grad_(), self.scale)
        assert loss == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, [image, text]))

    @given(seed=seeds)
    def test_scale_is_capped_at_100(self, seed):
        x, y = randn(seed, 4, 3), randn(seed + 1, 4, 3)
        at_cap = vlpt.contrastive_loss(x, y, torch.tensor(100.0).double().log())
        close(vlpt.contrastive_loss(x, y, torch.tensor(9.0).double()), at_cap)

    @given(seed=seeds)
    def test_images_without_words_change_neither_loss_nor_gradient(self, seed):
        x, y = (randn(seed + k, 3, 4).requires_grad_() for k in range(2))
        want = vlpt.contrastive_loss(x, y, self.scale)
        more = torch.cat([x, randn(seed + 2, 2, 4)]), torch.cat([y, torch.zeros(2, 4)])
        got = vlpt.contrastive_loss(*more, self.scale)
        close(got, want)
        for a, b in zip(torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, (x, y)),
                        strict=True):  # fmt: skip
            close(a, b)

    @given(cut=st.integers(0, 5), seed=seeds)
    def test_parts_of_the_rows_add_up_to_the_whole(self, cut, seed):
        x, y = (randn(seed + k, 5, 3).requires_grad_() for k in range(2))
        worded = torch.arange(5)[:, None] != seed % 5
        whole = vlpt.contrastive_loss(x, y * worded, self.scale)
        own = slice(0, cut), slice(cut, 5)
        parts = [vlpt.contrastive_loss(x, y * worded, self.scale, rows) for rows in own]
        close(parts[0] + parts[1], whole)
        for a, b in zip(torch.autograd.grad(sum(parts), (x, y)), torch.autograd.grad(whole, (x, y)),
                        strict=True):  # fmt: skip
            close(a, b)

    def test_gradient_is_the_derivative(self):
        inputs = [randn(k, 3, 2).requires_grad_() for k in range(2)]
        scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(vlpt.contrastive_loss, (*inputs, scale))

    def test_other_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"text: got \(3, 2\), wanted \(2, 2\)"):
            vlpt.contrastive_loss(randn(0, 2, 2), randn(0, 3, 2), self.scale)


class TestStep8Total:
    @given(kind=text_encoders, seed=seeds)
    def test_is_exactly_the_sum(self, kind, seed):
        ids = make_ids(seed, 3)
        masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
        out = small(kind)(randn(seed, 3, 3, 64, 64), masked)
        char = vlpt.char_loss(out.logits, targets)
        both = char + vlpt.contrastive_loss(out.image, out.text, out.log_scale)
        assert vlpt.total_loss(out, targets) == both
        assert vlpt.total_loss(out, targets, contrastive=False) == char

    @pytest.mark.parametrize("decoder", ["visual_textual", "none"])
    @given(kind=text_encoders, seed=seeds)
    def test_gradient_of_the_whole_model_is_the_derivative(self, decoder, kind, seed):
        """By every parameter: nothing on the way from a weight to L is detached."""

        class Smooth(torch.nn.Conv2d):  # finite differences need a backbone without ReLU's corners
            def forward(self, images: Tensor) -> list[Tensor]:
                return [super().forward(images)]

        model = copy.deepcopy(small(kind, decoder))
        model.backbone = Smooth(3, model.backbone.channels, 32, stride=32).double()
        ids, images = make_ids(seed, 3, least=1), randn(seed, 3, 3, 64, 64)
        masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
        check_gradient(model, lambda model: vlpt.total_loss(model(images, masked), targets))

    def test_text_feature_is_the_mean_over_characters_then_words(self):
        ids = make_ids(5, 3)
        out, te = small()(randn(5, 3, 3, 64, 64), ids), small().text(ids)
        for b in range(3):
            words = [i for i in range(3) if ids[b, 0, i] != PAD]
            means = []
            for i in words:
                rows = [te[b, j, i].tolist() for j in range(4) if ids[b, j, i] != PAD]
                means.append([sum(column) / len(rows) for column in zip(*rows, strict=True)])
            want = [sum(column) / len(means) for column in zip(*means, strict=True)]
            close(out.text[b], want or [0.0] * 8)

    @given(kind=text_encoders, seed=seeds)
    def test_an_image_without_words_changes_no_gradient(self, kind, seed):
        model, ids = small(kind), make_ids(seed, 2, least=1)
        images = randn(seed, 3, 3, 64, 64)
        masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
        none = torch.full((1, 4, 3), PAD)
        losses = [
            vlpt.total_loss(model(images[:2], masked), targets),
            vlpt.total_loss(model(images, torch.cat([masked, none])),
                            torch.cat([targets, none.fill_(IGNORE)])),
        ]  # fmt: skip
        none.fill_(PAD)
        close(*losses)
        gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
        for a, b in zip(*gradients, strict=True):
            close(a, b)


class Bomb:
    """What a malicious checkpoint may hold: unpickling it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def read_metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


class TestStep9Export:
    layouts = pytest.mark.parametrize("layout", ["native", "mmocr", "timm"])
    endings = pytest.mark.parametrize("ending", [".pt", ".safetensors"])

    @endings
    @pytest.mark.parametrize(
        ("name", "layout"),
        [("clip_resnet", "native"), ("clip_resnet", "mmocr"), ("clip_resnet", "timm"),
         ("resnet18", "native"), ("resnet18", "timm")],
    )  # fmt: skip
    def test_what_is_exported_loads_back_bit_by_bit(self, tmp_path, layout, ending, name):
        size = SMALL.backbone_size if name == "clip_resnet" else {}
        torch.manual_seed(0)
        model = lively(VLPT(replace(SMALL, backbone=name, backbone_size=size)), 0).float()
        path = tmp_path / f"backbone{ending}"
        vlpt.export_backbone(model, path, layout)
        again = vlpt.load_backbone(path, name, **size)
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key
        assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no leftover beside it

    @layouts
    def test_pool_text_and_decoder_stay_behind(self, tmp_path, layout):
        vlpt.export_backbone(small(), tmp_path / "b.pt", layout)
        state = torch.load(tmp_path / "b.pt", weights_only=True)
        assert len(state) == len(small().backbone.state_dict())
        values = small().backbone.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(state.values(), values, strict=True))
        assert not any("pos" in key or "proj" in key or "text" in key for key in state)

    def test_torchvision_itself_reads_the_export(self, tmp_path):
        vlpt.export_backbone(vlpt.build_backbone("resnet50"), tmp_path / "b.pt", "timm")
        theirs = torchvision.models.resnet50(weights=None)
        missing = theirs.load_state_dict(torch.load(tmp_path / "b.pt"), strict=False)
        assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys

    @pytest.mark.parametrize(
        ("layout", "ours", "theirs"),
        [("mmocr", f"{a}.weight", f"stem.{b}.weight") for a, b in
         [("conv1", 0), ("bn1", 1), ("conv2", 3), ("bn2", 4), ("conv3", 6), ("bn3", 7)]]
        + [("timm", f"{a}.weight", f"{b}.weight") for a, b in
           [("conv1", "conv1.0"), ("bn1", "conv1.1"), ("conv2", "conv1.3"), ("bn2", "conv1.4"),
            ("conv3", "conv1.6"), ("bn3", "bn1")]]
        + [(x, f"layer2.0.downsample.{k}.weight", f"layer2.0.downsample.{k + 1}.weight")
           for x in ("mmocr", "timm") for k in (0, 1)]
        + [(x, f"layer1.0.{y}.weight", f"layer1.0.{y}.weight")
           for x in ("mmocr", "timm") for y in ("conv1", "bn3")],
    )  # fmt: skip
    def test_keys_are_named_as_the_library_names_them(self, layout, ours, theirs):
        assert vlpt.layout_keys(small().backbone, layout)[ours] == theirs

    @pytest.mark.parametrize("prefix", ["module.visual.", "visual.", ""])
    def test_released_checkpoint_form_loads_backbone_and_pool(self, prefix, tmp_path):
        model = small().float()
        state = model.backbone.state_dict()
        released = {prefix + k: v for k, v in state.items()}
        if prefix:
            pool = model.pool.state_dict()
            released |= {f"{prefix}attnpool.{k}": v for k, v in pool.items()}
            released |= {prefix.replace("visual.", "transformer.x"): torch.zeros(1)}
        optimizer = torch.optim.AdamW(model.parameters()).state_dict()
        torch.save({"state_dict": released, "optimizer": optimizer, "epoch": 3}, tmp_path / "r.pt")
        for source in (tmp_path / "r.pt", str(tmp_path / "r.pt"), released):
            got = vlpt.load_backbone(source, "clip_resnet", **SMALL.backbone_size)
            assert all(torch.equal(got.state_dict()[k], v) for k, v in state.items())
            if prefix:
                fresh = VLPT(SMALL).pool
                fresh.load_state_dict(vlpt.read_tensors(source, "visual.attnpool.", "pool."))
                assert all(torch.equal(fresh.state_dict()[k], v) for k, v in pool.items())
            else:
                assert vlpt.read_tensors(source, "visual.attnpool.", "pool.") == {}
        model.double()

    def test_nothing_in_a_checkpoint_is_executed(self, tmp_path):
        torch.save({"state_dict": Bomb(str(tmp_path / "exploded"))}, tmp_path / "bomb.pt")
        with pytest.raises(ValueError, match=r"bomb\.pt: not a readable checkpoint"):
            vlpt.load_backbone(tmp_path / "bomb.pt", "resnet18")
        assert [path.name for path in tmp_path.iterdir()] == ["bomb.pt"]
        torch.load(tmp_path / "bomb.pt", weights_only=False)  # it is a live one
        assert (tmp_path / "exploded").is_dir()

    @layouts
    def test_metadata_says_what_the_file_holds(self, tmp_path, layout):
        path = tmp_path / "b.safetensors"
        vlpt.export_backbone(small(), path, layout, training_data="synth", steps=7)
        said = read_metadata(path)
        assert said.pop("format") == "pt"  # what other libraries look for
        for key, want in (("pixel_mean", vlpt.PIXEL_MEAN), ("pixel_std", vlpt.PIXEL_STD)):
            assert tuple(json.loads(said.pop(key))) == want
        assert said == {
            "backbone": "clip_resnet", "layout": layout, "vlpt_version": vlpt.__version__,
            "alphabet_size": "4", "width": "4", "layers": "(1, 1, 1, 1)",
            "training_data": "synth", "steps": "7",
        }  # fmt: skip
        vlpt.export_backbone(vlpt.build_backbone("resnet18"), path)
        assert read_metadata(path)["backbone"] == "resnet18"

    @endings
    def test_is_on_the_disk_before_it_has_its_name(self, tmp_path, ending, monkeypatch):
        path, flushed = tmp_path / f"b{ending}", []

        def fsync(descriptor):
            flushed.append((os.fstat(descriptor).st_size, path.exists()))

        monkeypatch.setattr(os, "fsync", fsync)
        vlpt.export_backbone(small(), path)
        assert flushed == [(path.stat().st_size, False)]
        usual = tmp_path / "usual"
        usual.touch()
        assert path.stat().st_mode == usual.stat().st_mode

    @endings
    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, tmp_path, ending, monkeypatch):
        def full(_descriptor):
            raise OSError(28, "No space left on device")

        path = tmp_path / f"b{ending}"
        path.write_bytes(b"old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            vlpt.export_backbone(small(), path)
        assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"old"

    def test_a_whole_model_s_weights_give_its_backbone(self):
        model = small().float()
        got = vlpt.load_backbone(model.state_dict(), "clip_resnet", **SMALL.backbone_size)
        model.double()
        close(got.state_dict()["conv1.weight"], model.backbone["conv1"].weight)

    def test_the_model_is_not_changed(self, tmp_path):
        before = {k: v.clone() for k, v in small().state_dict().items()}
        vlpt.export_backbone(small(), tmp_path / "b.pt", "timm")
        assert all(torch.equal(before[k], v) for k, v in small().state_dict().items())

    @pytest.mark.parametrize(
        ("path", "layout", "message"),
        [("b.pt", "keras", "layout: got 'keras', wanted native, timm, or mmocr"),
         ("b.bin", "native", r"path: got .*b\.bin, wanted other \.pt, \.safetensors"),
         ("checkpoint.pt", "native", r"path: got .*checkpoint\.pt, wanted other \.pt"),
         ("none/b.pt", "native", r"path: got .*none/b\.pt, wanted .* in an existing folder")],
    )  # fmt: skip
    def test_bad_arguments_are_named_and_write_nothing(self, tmp_path, path, layout, message):
        with pytest.raises(ValueError, match=message):
            vlpt.export_backbone(small(), tmp_path / path, layout)
        assert not list(tmp_path.iterdir())

    @endings
    def test_mmocr_s_network_is_not_torchvision_s(self, tmp_path, ending):
        with pytest.raises(ValueError, match=r"layout: got 'mmocr', wanted .* for a clip_resnet"):
            vlpt.export_backbone(vlpt.build_backbone("resnet18"), tmp_path / f"b{ending}", "mmocr")
        assert not list(tmp_path.iterdir())

    @endings
    def test_a_truncated_file_is_named(self, tmp_path, ending):
        path = tmp_path / f"b{ending}"
        vlpt.export_backbone(small(), path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match=rf"b{ending}: not a readable checkpoint"):
            vlpt.load_backbone(path, "clip_resnet", **SMALL.backbone_size)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.pt"):
            vlpt.load_backbone(tmp_path / "none.pt", "resnet18")

    def test_a_file_of_something_else_is_named(self, tmp_path):
        for held in ([torch.zeros(2)], torch.zeros(2), "text", {0: torch.zeros(2)},
                     {"model": {"conv1.weight": torch.zeros(2)}}, {}):  # fmt: skip
            torch.save(held, tmp_path / "b.pt")
            with pytest.raises(
                ValueError, match=r"b\.pt: not (a readable|the weights of resnet18)"
            ):
                vlpt.load_backbone(tmp_path / "b.pt", "resnet18")

    @layouts
    def test_what_does_not_fit_is_named(self, tmp_path, layout):
        keys = vlpt.layout_keys(small().backbone, layout)
        whole = {keys[k]: v for k, v in small().backbone.state_dict().items()}
        first, last = keys["conv2.weight"], keys["layer4.0.downsample.1.bias"]
        seven, missing = torch.zeros(7), r'Missing key\(s\) in state_dict: "conv2.weight"'
        shapes = r"size mismatch for layer4.0.downsample.1.bias: .*\[7\].*\[128\]"
        for change, message in (
            ({"fc.bias": seven}, r'Unexpected key\(s\) in state_dict: "fc.bias"'),
            ({first: None}, missing),
            ({last: seven}, shapes),
            ({last: 7}, ".*layer4.0.downsample.1.bias.*received <class 'int'>"),
            ({"x": seven, first: None, last: seven}, f'{missing}.*; .*"x".*; {shapes}'),
        ):
            state = {k: v for k, v in (whole | change).items() if v is not None}
            torch.save(state, tmp_path / "b.pt")
            for source, where in ((state, "source"), (tmp_path / "b.pt", r".*b\.pt")):
                with pytest.raises(ValueError, match=f"^{where}: not the wei.*: {message}"):
                    vlpt.load_backbone(source, "clip_resnet", **SMALL.backbone_size)

    def test_the_names_of_another_backbone_are_few_and_of_both(self):
        with pytest.raises(ValueError, match="not the weights of resnet18: ") as error:
            vlpt.load_backbone(small().backbone.state_dict(), "resnet18")
        text = str(error.value)
        assert "Missing key(s)" in text and "Unexpected key(s)" in text and "size mismatch" in text
        assert len(text) < 900 and "\n" not in text


class TestModel:
    @pytest.mark.parametrize("name", [*CHAIN, "clip_resnet"])
    def test_everything_is_B_25_3(self, name):
        """Each backbone with both text encoders, on random word lists of the whole alphabet."""
        size = SMALL.backbone_size if name == "clip_resnet" else {}
        base = replace(SMALL, alphabet=vlpt.PRINTABLE, backbone=name, backbone_size=size)
        models = {kind: VLPT(replace(base, text_encoder=kind, image_size=32)).eval()
                  for kind in ("character", "sentence")}  # fmt: skip
        alphabet = Alphabet(vlpt.PRINTABLE)
        words = st.lists(st.text(vlpt.PRINTABLE, min_size=1, max_size=30), max_size=3)

        @settings(max_examples=5)
        @given(lists=st.lists(words, min_size=1, max_size=2), kind=text_encoders, seed=seeds)
        def check(lists, kind, seed):
            ids = torch.stack([alphabet.encode(each) for each in lists])
            masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))
            images = torch.zeros(len(lists), 3, 32, 32)
            with torch.no_grad():
                out = models[kind](images, masked)
            pooled, maps = models[kind].attention_maps(images, masked)
            B = len(lists)
            assert masked.shape == targets.shape == out.logits.argmax(-1).shape == (B, 25, 3)
            assert out.logits.shape == (B, 25, 3, 97) and maps.shape == (B, 25, 3, 1, 1)
            assert out.image.shape == out.text.shape == (B, 8) and pooled.shape == (B, 1, 1)
            assert torch.isfinite(vlpt.total_loss(out, targets))

        check()

    @pytest.mark.parametrize("decoder", ["visual_textual", "none"])
    @given(kind=text_encoders, seed=seeds)
    def test_the_trimmed_run_equals_the_run_over_all_25_slots(self, decoder, kind, seed):
        """A 25-letter word in another image switches trimming off; nobody else may notice."""
        model, ids = small(kind, decoder), make_ids(seed, 2, L=25, N=3)
        ids[:, 4:] = PAD
        ids[:, :, 2] = PAD
        images, long = randn(seed, 3, 3, 64, 64), torch.full((1, 25, 3), 3)
        short, full = model(images[:2], ids), model(images, torch.cat([ids, long]))
        assert short.logits.shape == (2, 25, 3, 7)
        close(short.logits, full.logits[:2])
        close(short.text, full.text[:2])
        assert (short.logits[ids == PAD] == 0).all()

    @pytest.mark.parametrize("decoder", ["visual_textual", "none"])
    @given(kind=text_encoders, L=st.integers(1, 25), N=st.integers(1, 3), seed=seeds)
    def test_decoding_the_masks_alone_gives_the_same_loss_and_gradients(
        self, decoder, kind, L, N, seed
    ):
        model, ids = small(kind, decoder), make_ids(seed, 3, L, N)
        images, generator = randn(seed, 3, 3, 64, 64), torch.Generator().manual_seed(seed)
        masked, targets = vlpt.mask_one_char(ids, generator)
        outs = [model(images, masked, masked_only) for masked_only in (False, True)]
        where = masked == MASK
        close(outs[1].logits[where], outs[0].logits[where])
        assert outs[1].logits.shape == outs[0].logits.shape and (outs[1].logits[~where] == 0).all()
        losses = [vlpt.total_loss(out, targets) for out in outs]
        close(*losses)
        gradients = [torch.autograd.grad(x, list(model.parameters()), materialize_grads=True)
                     for x in losses]  # fmt: skip
        for a, b in zip(*gradients, strict=True):
            close(a, b)

    def test_two_masks_in_a_word_are_named_where_one_is_decoded(self):
        ids = torch.tensor([[[MASK, 3], [3, MASK], [MASK, 3]]])
        assert small()(randn(0, 1, 3, 64, 64), ids).logits.shape == (1, 3, 2, 7)
        with pytest.raises(ValueError, match="ids: got a word with two MASK, wanted at most one"):
            small()(randn(0, 1, 3, 64, 64), ids, masked_only=True)

    def test_ids_may_stay_on_the_cpu(self):
        """They are read there to trim, which would make a GPU wait; "meta" stands for one."""
        model, images = VLPT(SMALL).to("meta"), torch.zeros(2, 3, 64, 64, device="meta")
        for masked_only in (False, True):
            out = model(images, make_ids(0, 2), masked_only)
            assert out.logits.device.type == "meta" and out.logits.shape == (2, 4, 3, 7)

    @given(kind=text_encoders, seed=seeds)
    def test_a_batch_of_one_equals_its_row_in_a_larger_batch(self, kind, seed):
        model, images, ids = small(kind), randn(seed, 3, 3, 64, 64), make_ids(seed, 3)
        whole, one = model(images, ids), model(images[1:2], ids[1:2])
        for a, b in zip(whole[:3], one[:3], strict=True):
            close(a[1:2], b)

    def test_same_seed_same_parameters_and_output(self):
        outputs = []
        for _ in range(2):
            torch.manual_seed(5)
            model = VLPT(TINY).eval()
            outputs.append(model(torch.ones(1, 3, 64, 64), make_ids(0, 1)))
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))

    def test_saved_and_loaded_model_is_bit_identical(self, tmp_path):
        torch.manual_seed(0)
        model = VLPT(TINY).eval()
        torch.save(model.state_dict(), tmp_path / "m.pt")
        torch.manual_seed(1)
        again = VLPT(TINY).eval()
        again.load_state_dict(torch.load(tmp_path / "m.pt"))
        images, ids = torch.randn(2, 3, 64, 64), make_ids(0, 2)
        pairs = zip(model(images, ids), again(images, ids), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_bfloat16_autocast_runs_and_is_near_float32(self):
        torch.manual_seed(0)
        model, images, ids = VLPT(TINY).eval(), torch.randn(2, 3, 64, 64), make_ids(0, 2, least=1)
        want = model(images, ids)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(images, ids)
        # bfloat16 has 8 bits: a few percent after a dozen layers
        assert (got.logits.float() - want.logits).norm() < 0.05 * want.logits.norm()

    def test_every_parameter_learns(self):
        model, ids = VLPT(TINY), make_ids(1, 4, least=2)
        masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        for name, p in model.named_parameters():  # a zero gain would hide what is before it
            if name.endswith("bn3.weight"):
                torch.nn.init.ones_(p)
        vlpt.total_loss(model(torch.randn(4, 3, 64, 64), masked), targets).backward()
        # softmax ignores a shift of all scores, so a key bias has no gradient but rounding
        silent = [n for n, p in model.named_parameters() if p.grad is None or p.grad.norm() == 0]
        assert not [name for name in silent if not name.endswith("k_proj.bias")]

    def test_overfits_eight_images_to_accuracy_one(self):
        torch.manual_seed(0)
        model, images = VLPT(TINY), torch.randn(8, 3, 64, 64)
        ids = make_ids(0, 8, L=25, N=3, V=13, least=2)
        ids[:, 4:] = PAD
        masked, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for _ in range(80):
            out = model(images, masked)
            loss = vlpt.total_loss(out, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        where = targets != IGNORE
        assert (out.logits.argmax(-1)[where] == targets[where]).all()
        assert vlpt.contrastive_loss(out.image, out.text, out.log_scale) < 0.1

    @pytest.mark.parametrize(
        ("images", "ids", "message"),
        [((2, 3, 60, 64), (2, 25, 3), r"images: got \(2, 3, 60, 64\), wanted .* multiples of 32"),
         ((2, 1, 64, 64), (2, 25, 3), r"images: got \(2, 1, 64, 64\)"),
         ((3, 64, 64), (2, 25, 3), r"images: got \(3, 64, 64\)"),
         ((2, 3, 64, 64), (3, 25, 3), r"ids: got \(3, 25, 3\), wanted \(2, 1..25, 1..3\)"),
         ((2, 3, 64, 64), (2, 26, 3), r"ids: got \(2, 26, 3\)"),
         ((2, 3, 64, 64), (2, 25, 4), r"ids: got \(2, 25, 4\)"),
         ((2, 3, 64, 64), (2, 0, 3), r"ids: got \(2, 0, 3\)"),
         ((2, 3, 64, 64), (2, 25), r"ids: got \(2, 25\)")],
    )  # fmt: skip
    def test_shapes_that_do_not_fit_are_named(self, images, ids, message):
        for call in (small(), small().attention_maps):
            with pytest.raises(ValueError, match=message):
                call(torch.zeros(images).double(), torch.full(ids, 3))

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["character", "sentence"])
    def test_torch_compile_gives_the_same_result(self, kind):
        model, images, ids = small(kind), randn(0, 2, 3, 64, 64), make_ids(0, 2)
        for got, want in zip(torch.compile(model)(images, ids), model(images, ids), strict=True):
            close(got, want)


class TestCommandLine:
    def test_prints_every_stage_with_shape_and_size(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["vlpt.py"])
        vlpt.main()
        lines = capsys.readouterr().out.splitlines()
        stages = "Backbone AttentionPool TextEncoder VisualTextualDecoder Linear VLPT"
        assert [line.split()[0] for line in lines] == stages.split()
        size = sum(p.numel() for p in VLPT(TINY).parameters())
        assert f"{size:,} parameters -> (2, 128) (2, 128) (2, 25, 3, 13) ()" in lines[-1]

    @pytest.mark.parametrize("given", ["run", "run/checkpoint.pt"])
    @pytest.mark.parametrize("layout", ["native", "mmocr", "timm"])
    def test_exports_a_run(self, tmp_path, monkeypatch, given, layout):
        monkeypatch.chdir(tmp_path)
        model = self.write_run(SMALL)
        options = [] if layout == "native" else ["--layout", layout]
        monkeypatch.setattr(sys, "argv", ["vlpt.py", "export", given, "b.safetensors", *options])
        vlpt.main()
        got = vlpt.load_backbone("b.safetensors", "clip_resnet", **SMALL.backbone_size).state_dict()
        assert all(torch.equal(got[k], v) for k, v in model.backbone.state_dict().items())
        said = read_metadata(Path("b.safetensors"))
        assert (said["layout"], said["alphabet_size"]) == (layout, "4")
        assert (said["training_data"], said["steps"]) == ("synth", "12")

    def write_run(self, config: Config) -> VLPT:
        """Leave in run/ what train_min.py does."""
        model = VLPT(config)
        Path("run").mkdir()
        torch.save({"state_dict": model.state_dict(), "config": asdict(config), "step": 12,
                    "args": {"data": "synth"}}, "run/checkpoint.pt")  # fmt: skip
        return model

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [("none b.pt", r"none'"), ("empty b.pt", r"empty/checkpoint\.pt'"),
         ("foreign.pt b.pt", r"foreign\.pt: not a checkpoint of train_min\.py"),
         ("other.pt b.pt", r"other\.pt: not a checkpoint of train_min\.py"),
         ("cut.pt b.pt", r"cut\.pt: not a readable checkpoint"),
         ("odd.pt b.pt", r"odd\.pt: not a readable checkpoint"),
         ("run b.bin", r"path: got b\.bin, wanted other \.pt, \.safetensors"),
         ("run no/b.pt", r"path: got no/b\.pt, wanted .* in an existing folder"),
         ("run b.pt --layout mmocr", "layout: got 'mmocr', wanted native, timm, or"),
         ("run b.safetensors", "safetensors"), ("b.safetensors b.pt", "safetensors")],
    )  # fmt: skip
    def test_a_mistake_is_one_line_and_writes_nothing(
        self, tmp_path, monkeypatch, capsys, arguments, message
    ):
        monkeypatch.chdir(tmp_path)
        self.write_run(replace(SMALL, backbone="resnet18", backbone_size={}))
        Path("empty").mkdir()
        torch.save({"epoch": 1}, "foreign.pt")
        torch.save({"state_dict": 1}, "odd.pt")
        torch.save({"config": {"sides": 3}}, "other.pt")
        Path("cut.pt").write_bytes(Path("run/checkpoint.pt").read_bytes()[:-200])
        before = set(tmp_path.rglob("*"))
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if not installed
        monkeypatch.setattr(sys, "argv", ["vlpt.py", "export", *arguments.split()])
        with pytest.raises(SystemExit) as stop:
            vlpt.main()
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (1, "", 1)
        assert re.match(rf"vlpt\.py: error: .*{message}", err)
        assert set(tmp_path.rglob("*")) == before

    def test_a_layout_that_does_not_exist_is_named(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["vlpt.py", "export", "run", "b.pt", "--layout", "keras"])
        with pytest.raises(SystemExit) as stop:
            vlpt.main()
        assert stop.value.code == 2 and "invalid choice: 'keras'" in capsys.readouterr().err

    def test_a_wrong_argument_is_one_line(self):
        script = [sys.executable, vlpt.__file__, "huge"]
        done = subprocess.run(script, capture_output=True, text=True)
        assert done.returncode == 2 and "invalid choice: 'huge'" in done.stderr
        assert "Traceback" not in done.stderr
