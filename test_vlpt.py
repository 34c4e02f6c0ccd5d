"""The proof of the equations in vlpt.py: one class for each step of its table, in its order.

Each class begins with what it proves. Most tests compare vlpt.py with an oracle, which is a loop
over Python floats, or check a symmetry, a limit or a derivative. These run in float64, so that a
wrong axis, a lost pad or a missing position cannot hide in rounding. Words contain unknown
characters, "?", and many tests mask them first, as in training.

Hypothesis draws the inputs whose contents matter. `make test` tries up to 25 cases of each
property and `make proof` (HYPOTHESIS_PROFILE=deep) up to 1000, see conftest.py; properties with
slow oracles get fewer. No test shares a model with another one.

tests/ proves the rest: the alphabet and the configuration (test_words.py), the exported files and
their errors (test_export.py), the same results from torch, open_clip and timm (test_others.py).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

import vlpt
from vlpt import IGNORE_INDEX, MASK, PAD, TINY, UNK, VLPT, Alphabet, Config, MaskedOnly

fewer_examples = settings(max_examples=settings.default.max_examples * 2 // 5)  # for slow oracles

TEXT_ENCODERS = ["character", "sentence"]
DECODERS = ["visual_textual", "none"]
BACKBONES = ["resnet18", "resnet34", "resnet50", "resnet101", "clip_resnet50", "clip_resnet101"]
SMALL = Config(  # small enough for oracles in Python; V = 7
    alphabet="abcd",
    image_size=64,
    backbone="clip_resnet",
    backbone_size={"width": 4, "layers": (1, 1, 1, 1)},
    embed_dim=8,
    text_width=6,
    text_layers=2,
    text_heads=3,
    decoder_layers=2,
    decoder_heads=2,
)

# What Hypothesis draws
small_int = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)
a_word = st.text("abcd?", min_size=1, max_size=4)  # "?" is not in the alphabet
image_words = st.lists(a_word, max_size=3)
some_image_words = st.lists(a_word, min_size=1, max_size=3)
batches = st.lists(image_words, min_size=1, max_size=3)  # the words of one to three images
nonempty_batches = st.lists(some_image_words, min_size=1, max_size=3)
text_encoders = st.sampled_from(TEXT_ENCODERS)


def encode(batch: list[list[str]], L: int = 4) -> Tensor:
    """Turn the words of each image into ids (B, L, 3) of the alphabet "abcd"; "?" becomes UNK."""
    return torch.stack([Alphabet("abcd").encode(words)[:L] for words in batch])


def is_known(word: str) -> bool:
    """Whether a word has a character that can be masked."""
    return word.strip("?") != ""


def randn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_images(batch: list, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Tensor:
    """One image of noise, (3, H, W), for every element of a batch."""
    return randn(seed, len(batch), 3, *size)


def mask(ids: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    return vlpt.mask_one_char(ids, torch.Generator().manual_seed(seed))


def randomize_parameters(module: nn.Module, seed: int = 0) -> nn.Module:
    """Turn to float64 and evaluation mode, and move parameters and statistics away from 0 and 1.

    A gain of 1 or a bias of 0 would hide that it is not used.
    """
    module = module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name != "logit_scale":
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for name, b in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.add_(0.3 * torch.rand(b.shape, generator=generator, dtype=b.dtype))
    return module


def small_model(text_encoder: str = "character", decoder: str = "visual_textual") -> VLPT:
    """A new model of the sizes `SMALL`; the same parameters every time."""
    torch.manual_seed(0)
    model = VLPT(replace(SMALL, text_encoder=text_encoder, decoder=decoder))
    randomize_parameters(model)
    return model


def small_text(text_encoder: str = "character") -> vlpt.TextEncoder:
    """The text encoder alone, for tests that need nothing else."""
    torch.manual_seed(0)
    encoder = vlpt.SentenceEncoder if text_encoder == "sentence" else vlpt.TextEncoder
    return randomize_parameters(encoder(SMALL))


def assert_equal(got: Tensor | float | list, expected: Tensor | float | list) -> None:
    """Equal up to rounding in float64."""
    got = torch.as_tensor(got, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def assert_same_gradients(losses: list[Tensor], parameters: list[Tensor]) -> None:
    """Both losses have the same gradient with respect to every parameter."""
    first, second = (
        torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses
    )
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)


def assert_gradient_is_derivative(
    module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """Compare autograd with a central difference of function(*inputs).

    Both are taken along one random direction in the space of all parameters and inputs. They
    disagree if a path to the result is cut, for example by `detach`, unless what it carries is
    below the tolerance.
    """
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    leaves = [*(p for p in module.parameters() if p.requires_grad), *inputs]
    direction = [randn(k, *leaf.shape) for k, leaf in enumerate(leaves)]
    length = math.sqrt(sum(d.square().sum().item() for d in direction))
    output = function(*inputs)
    weights = randn(len(leaves), *output.shape)
    gradients = torch.autograd.grad((output * weights).sum(), leaves, materialize_grads=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    @torch.no_grad()
    def value_at(step: float) -> Tensor:
        kept = [leaf.clone() for leaf in leaves]
        for leaf, d in zip(leaves, direction, strict=True):
            leaf.add_(d, alpha=step)
        value = (function(*inputs) * weights).sum()
        for leaf, old in zip(leaves, kept, strict=True):
            leaf.copy_(old)
        return value

    step = 1e-5 / length
    difference = (value_at(step) - value_at(-step)) / (2 * step)
    # The error of such a difference was below 1e-6 in all cases measured.
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-5)


# ---- Oracles: nested lists of floats in, nested lists of floats out ------------------------------


def linear_by_hand(x: list, layer: nn.Linear) -> list:
    """y = W x + b for every token x."""
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    rows = layer.weight.tolist()
    return [
        [
            sum(w * v for w, v in zip(row, token, strict=True)) + b
            for row, b in zip(rows, bias, strict=True)
        ]
        for token in x
    ]


def softmax_by_hand(scores: list[float]) -> list[float]:
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def attention_weights_by_hand(attention: vlpt.Attention, query: list, key: list) -> list:
    """softmax(q k / sqrt(width)) as [head][query][key]."""
    q = linear_by_hand(query, attention.q_proj)
    k = linear_by_hand(key, attention.k_proj)
    width = len(q[0]) // attention.heads
    weights = []
    for head in range(attention.heads):
        channels = range(head * width, (head + 1) * width)
        scores = [[sum(a[c] * b[c] for c in channels) / math.sqrt(width) for b in k] for a in q]
        weights.append([softmax_by_hand(row) for row in scores])
    return weights


def attention_by_hand(attention: vlpt.Attention, query: list, key: list, value: list) -> list:
    weights = attention_weights_by_hand(attention, query, key)
    v = linear_by_hand(value, attention.v_proj)
    width = len(v[0]) // attention.heads
    mixed = [
        [sum(weights[c // width][i][j] * v[j][c] for j in range(len(v))) for c in range(len(v[0]))]
        for i in range(len(query))
    ]
    return linear_by_hand(mixed, attention.c_proj)


def layer_norm_by_hand(x: list, norm: nn.LayerNorm) -> list:
    out = []
    for token in x:
        mean = sum(token) / len(token)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in token) / len(token) + norm.eps)
        gains, biases = norm.weight.tolist(), norm.bias.tolist()
        standardized = [(v - mean) / deviation for v in token]
        out.append([v * g + b for v, g, b in zip(standardized, gains, biases, strict=True)])
    return out


def add_by_hand(x: list, y: list) -> list:
    return [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(x, y, strict=True)]


def mean_by_hand(rows: list) -> list:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def mlp_by_hand(mlp: vlpt.MLP, x: list) -> list:
    hidden = linear_by_hand(x, mlp.c_fc)
    hidden = [[v / (1 + math.exp(-1.702 * v)) for v in token] for token in hidden]
    return linear_by_hand(hidden, mlp.c_proj)


def resize_by_hand(table: list, side: int, grid: tuple[int, int]) -> list:
    """Bicubic interpolation (a = -0.75, edges repeated) of side * side rows to a grid (h, w)."""

    def taps(position: int, size: int) -> list[tuple[int, float]]:
        """The four cells that a position is made of, and their weights."""
        source = (position + 0.5) * side / size - 0.5
        first = math.floor(source) - 1
        cells = []
        for cell in range(first, first + 4):
            x, a = abs(source - cell), -0.75
            if x <= 1:
                weight = (a + 2) * x**3 - (a + 3) * x**2 + 1
            else:
                weight = a * (x**3 - 5 * x**2 + 8 * x - 4)
            cells.append((min(max(cell, 0), side - 1), weight))
        return cells

    resized = []
    for y, x in np.ndindex(*grid):
        row = [0.0] * len(table[0])
        for i, weight_y in taps(y, grid[0]):
            for j, weight_x in taps(x, grid[1]):
                cell = table[i * side + j]
                row = [r + weight_y * weight_x * c for r, c in zip(row, cell, strict=True)]
        resized.append(row)
    return resized


def pool_tokens_by_hand(pool: vlpt.AttentionPool, feature_map: Tensor) -> list:
    """The mean of a map (C, h, w), then its cells, plus positions."""
    mean_position, *positions = pool.positional_embedding.tolist()
    positions = resize_by_hand(positions, pool.side, feature_map.shape[1:])
    cells = feature_map.flatten(1).T.tolist()
    return add_by_hand([mean_by_hand(cells), *cells], [mean_position, *positions])


def text_encoder_by_hand(text: vlpt.TextEncoder, characters: list[tuple[int, int, int]]) -> list:
    """Encode characters that see each other, without any pads.

    A character is (id, place j in its word, number i of its word; 0 where words share positions).
    """
    x = []
    for token_id, j, i in characters:
        embedding = text.token_embedding.weight[token_id].tolist()
        position = text.positional_embedding[j, i].tolist()
        x.append([w + p for w, p in zip(embedding, position, strict=True)])
    for layer in text.layers:
        y = layer_norm_by_hand(x, layer.ln_1)
        x = add_by_hand(x, attention_by_hand(layer.attn, y, y, y))
        x = add_by_hand(x, mlp_by_hand(layer.mlp, layer_norm_by_hand(x, layer.ln_2)))
    return linear_by_hand(layer_norm_by_hand(x, text.ln_final), text.text_projection)


def decoder_layer_by_hand(layer: vlpt.DecoderLayer, query: list, key: list, value: list) -> list:
    attended = attention_by_hand(layer.attn, query, key, value)
    query = add_by_hand(query, layer_norm_by_hand(attended, layer.ln_1))
    return add_by_hand(query, mlp_by_hand(layer.mlp, layer_norm_by_hand(query, layer.ln_2)))


def decoder_keys_by_hand(
    decoder: vlpt.VisualTextualDecoder, image_tokens: list, grid: tuple[int, int]
) -> list:
    positions = resize_by_hand(decoder.positional_embedding.tolist(), decoder.side, grid)
    return add_by_hand(image_tokens, positions)


def decoder_by_hand(
    decoder: vlpt.VisualTextualDecoder, query: list, image_tokens: list, grid: tuple[int, int]
) -> list:
    key = decoder_keys_by_hand(decoder, image_tokens, grid)
    for layer in decoder.layers:
        query = decoder_layer_by_hand(layer, query, key, image_tokens)
    return layer_norm_by_hand(query, decoder.ln_final)


def cross_entropy_by_hand(logits: list[float], target: int) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(v - largest) for v in logits)) - logits[target]


def contrastive_loss_by_hand(image: list, text: list, logit_scale: float, is_pair: list) -> float:
    def cosine(x: list, y: list) -> float:
        return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)

    scale = min(math.exp(logit_scale), 100.0)
    pairs = [(i, t) for i, t, counts in zip(image, text, is_pair, strict=True) if counts]
    total = 0.0
    for k, (image_k, text_k) in enumerate(pairs):
        total += cross_entropy_by_hand([scale * cosine(image_k, t) for _, t in pairs], k)
        total += cross_entropy_by_hand([scale * cosine(i, text_k) for i, _ in pairs], k)
    return total / max(1, len(pairs))


# ---- The proof -----------------------------------------------------------------------------------


class TestStep1ImageEncoder:
    """v, f = pool(backbone(I)): a ResNet, then attention over its cells and their mean."""

    @staticmethod
    def clip_by_definition(state: dict[str, Tensor], x: Tensor, layers: tuple, heads: int) -> tuple:
        """CLIP's ModifiedResNet and AttentionPool2d as published, from the tensors' names alone.

        Unlike CLIP's, the pool keeps the outputs at all tokens, as oCLIP's does.

        Returns:
            The feature maps of all stages, the image feature, the image tokens.
        """

        def conv(x: Tensor, name: str, **options: int) -> Tensor:
            return F.conv2d(x, state[f"{name}.weight"], **options)

        def norm(x: Tensor, name: str) -> Tensor:
            mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

        x = norm(conv(x, "conv1", stride=2, padding=1), "bn1").relu()
        x = norm(conv(x, "conv2", padding=1), "bn2").relu()
        x = norm(conv(x, "conv3", padding=1), "bn3").relu()
        x = F.avg_pool2d(x, 2)
        maps = []
        for stage, blocks in enumerate(layers, 1):
            for block in range(blocks):
                name = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
                y = norm(conv(y, f"{name}.conv2", padding=1), f"{name}.bn2").relu()
                y = F.avg_pool2d(y, stride)
                y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
                if block == 0:
                    x = conv(F.avg_pool2d(x, stride), f"{name}.downsample.0")
                    x = norm(x, f"{name}.downsample.1")
                x = (y + x).relu()
            maps.append(x)
        x = x.flatten(start_dim=2).permute(2, 0, 1)  # NCHW -> (HW)NC
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)  # (HW+1)NC
        x = x + state["positional_embedding"][:, None, :]
        projections = {f"{p}_proj_weight": state[f"{p}_proj.weight"] for p in "qkv"}
        x, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            x.shape[-1],
            heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([state[f"{p}_proj.bias"] for p in "qkv"]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0,
            out_proj_weight=state["c_proj.weight"],
            out_proj_bias=state["c_proj.bias"],
            use_separate_proj_weight=True,
            training=False,
            need_weights=False,
            **projections,
        )
        return maps, x[0], x[1:].transpose(0, 1)

    @pytest.mark.parametrize(("layers", "heads"), [((1, 1, 1, 1), 4), ((2, 1, 3), 2)])
    def test_with_the_same_weights_it_is_clips_published_definition(self, layers, heads):
        """In the feature map of every stage, in both outputs and in every weight's gradient."""
        torch.manual_seed(1)
        size = {"width": 8, "layers": layers}
        model = randomize_parameters(VLPT(replace(SMALL, backbone_size=size)))
        images = random_images([0, 1])
        maps = model.backbone(images)
        image, tokens, _ = model.encode_image(images)
        parameters = [*model.backbone.named_parameters(), *model.pool.named_parameters()]
        state = dict(parameters) | dict(model.backbone.named_buffers())
        expected_maps, expected_image, expected_tokens = self.clip_by_definition(
            state, images, layers, heads
        )
        for got, expected in zip(maps, expected_maps, strict=True):
            assert_equal(got, expected)
        assert_equal(image, expected_image)
        assert_equal(tokens, expected_tokens)
        sums = [(x * randn(0, *x.shape)).sum() for x in (image, expected_image)]
        sums[0] = sums[0] + (tokens * randn(1, *tokens.shape)).sum()
        sums[1] = sums[1] + (expected_tokens * randn(1, *tokens.shape)).sum()
        assert_same_gradients(sums, [p for _, p in parameters])

    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_a_torchvision_backbone_is_torchvisions(self, name):
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(name, weights=None).double().eval()
        ours = vlpt.build_backbone(name).double().eval()
        state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
        ours.load_state_dict(state)
        images = random_images([0, 1])
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for feature_map, layer in zip(ours(images), (1, 2, 3, 4), strict=True):
            x = getattr(theirs, f"layer{layer}")(x)
            assert_equal(feature_map, x)

    @pytest.mark.parametrize("name", BACKBONES)
    def test_a_backbone_has_the_tensors_of_its_name(self, name):
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in vlpt.build_backbone(name).state_dict().items()}
            if name.startswith("clip"):
                blocks = [
                    len({k.split(".")[1] for k in shapes if k.startswith(f"layer{n}.")})
                    for n in (1, 2, 3, 4)
                ]
                assert (
                    blocks == {"clip_resnet50": [3, 4, 6, 3], "clip_resnet101": [3, 4, 23, 3]}[name]
                )
                assert shapes["layer4.0.conv3.weight"] == (2048, 512, 1, 1)
            else:
                theirs = torchvision.models.get_model(name, weights=None).state_dict()
                expected = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
                assert shapes == expected

    def test_a_bottleneck_pools_where_it_strides(self):
        torch.manual_seed(0)
        block = randomize_parameters(vlpt.Bottleneck(3, 2, stride=2), 3)
        x = randn(0, 2, 3, 6, 4)

        def norm(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
            mean, var, gain, bias = (
                t[:, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
            )
            return (y - mean) / (var + bn.eps).sqrt() * gain + bias

        def conv_1x1(conv: nn.Conv2d, y: Tensor) -> Tensor:
            return torch.einsum("oi,bihw->bohw", conv.weight[..., 0, 0], y)

        def pool(y: Tensor) -> Tensor:
            corners = (y[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
            return sum(corners) / 4

        y = norm(block.bn1, conv_1x1(block.conv1, x)).relu()
        patches = F.unfold(y, 3, padding=1).view(2, 2, 9, 6, 4)
        y = torch.einsum("oip,biphw->bohw", block.conv2.weight.flatten(2), patches)
        y = pool(norm(block.bn2, y).relu())
        y = norm(block.bn3, conv_1x1(block.conv3, y))
        shortcut = norm(block.downsample[2], conv_1x1(block.downsample[1], pool(x)))
        assert_equal(block(x), (y + shortcut).relu())

    @pytest.mark.parametrize("stride", [1, 2])
    def test_a_new_bottleneck_returns_relu_of_its_shortcut(self, stride):
        block, x = vlpt.Bottleneck(8, 2, stride).double(), randn(0, 1, 8, 4, 4)
        assert_equal(block(x), block.downsample(x).relu())

    def test_clip_resnet50_has_the_330_tensors_of_clip(self):
        with torch.device("meta"):
            state = vlpt.build_backbone("clip_resnet50").state_dict()
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        assert len(shapes) == 330
        assert shapes["conv1.weight"] == (32, 3, 3, 3)
        assert shapes["conv3.weight"] == (64, 32, 3, 3)
        assert shapes["bn3.running_var"] == (64,)
        assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
        assert shapes["layer3.5.conv3.weight"] == (1024, 256, 1, 1)
        assert shapes["layer4.0.downsample.1.bias"] == (2048,)

    @pytest.mark.parametrize("name", BACKBONES)
    def test_a_backbone_returns_four_maps_with_strides_4_to_32(self, name):
        with torch.device("meta"):
            backbone = vlpt.build_backbone(name)
            maps = backbone(torch.zeros(1, 3, 64, 96))
        assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert (maps[-1].shape[1], backbone.stride) == (backbone.channels, 32)

    def test_the_pool_has_clips_names_shapes_and_heads(self):
        with torch.device("meta"):
            pool = vlpt.AttentionPool(2048, 16, 384)
        expected = {"positional_embedding": (257, 2048)}
        for name, rows in (("q", 2048), ("k", 2048), ("v", 2048), ("c", 384)):
            expected[f"{name}_proj.weight"] = (rows, 2048)
            expected[f"{name}_proj.bias"] = (rows,)
        assert {k: tuple(v.shape) for k, v in pool.state_dict().items()} == expected
        assert pool.heads == 32

    @given(
        side=st.integers(1, 3), h=st.integers(1, 3), w=st.integers(1, 3), D=small_int, seed=seeds
    )
    def test_the_pool_is_attention_over_the_mean_token_and_the_cells(self, side, h, w, D, seed):
        """Also of maps that are not square or have another size than in training."""
        torch.manual_seed(seed)
        pool = randomize_parameters(vlpt.AttentionPool(6, side, D), seed)
        pool.heads = 2
        feature_map = randn(seed, 2, 6, h, w)
        image, image_tokens = pool(feature_map)
        for b in range(2):
            tokens = pool_tokens_by_hand(pool, feature_map[b])
            expected = attention_by_hand(pool, tokens, tokens, tokens)
            assert_equal(image[b], expected[0])
            assert_equal(image_tokens[b], expected[1:])

    @pytest.mark.parametrize("seed", range(3))
    def test_positions_tell_places_apart(self, seed):
        torch.manual_seed(seed)
        pool = randomize_parameters(vlpt.AttentionPool(4, 2, 3), seed)
        feature_map = randn(seed, 1, 4, 2, 2)
        image, flipped = pool(feature_map)[0], pool(feature_map.flip(2))[0]
        assert not torch.allclose(image, flipped, rtol=1e-6)
        nn.init.zeros_(pool.positional_embedding)
        assert_equal(pool(feature_map)[0], pool(feature_map.flip(2))[0])

    @pytest.mark.parametrize("seed", range(3))
    def test_the_gradient_of_the_pool_is_its_derivative(self, seed):
        torch.manual_seed(seed)
        pool = randomize_parameters(vlpt.AttentionPool(4, 2, 3), seed)

        def all_outputs(feature_map: Tensor) -> Tensor:
            image, image_tokens = pool(feature_map)
            return torch.cat([image.unsqueeze(1), image_tokens], dim=1)

        assert_gradient_is_derivative(pool, all_outputs, randn(seed, 2, 4, 2, 3))

    @given(side=small_int, grid=st.tuples(small_int, small_int), seed=seeds)
    def test_positions_are_interpolated_for_other_image_sizes(self, side, grid, seed):
        table = randn(seed, side * side, 2)
        resized = vlpt.interpolate_pos_embed(table, side, grid)
        assert_equal(resized, resize_by_hand(table.tolist(), side, grid))
        if grid == (side, side):
            assert torch.equal(resized, table)

    @pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 32)])
    def test_any_multiple_of_32_is_an_image_size(self, size):
        image, tokens, grid = small_model().encode_image(random_images([0], size=size))
        assert grid == (size[0] // 32, size[1] // 32)
        assert image.shape == (1, 8) and tokens.shape == (1, grid[0] * grid[1], 8)

    @given(pixels=arrays(np.uint8, (2, 3, 2, 4)))
    def test_pixels_are_normalized_by_clips_statistics(self, pixels):
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        normalized = vlpt.normalize(torch.from_numpy(pixels))
        assert normalized.shape == pixels.shape and normalized.dtype == torch.float32
        for b, c, y, x in np.ndindex(*pixels.shape):
            expected = (pixels[b, c, y, x] / 255 - mean[c]) / std[c]
            assert normalized[b, c, y, x].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("vgg", {}, "backbone: expected one of resnet18, .*, got 'vgg'"),
            ("resnet18", {"width": 8}, "backbone_size: expected nothing for resnet18, got {'width"),
            (
                "clip_resnet",
                {},
                "backbone_size: expected layers .* and optionally width .*, got {}",
            ),
            ("clip_resnet", {"layers": (1,), "depth": 2}, "backbone_size: .* got .*depth"),
            ("clip_resnet", {"layers": ()}, "backbone_size: .*one to four .* got .*layers"),
            ("clip_resnet", {"layers": (1,) * 5}, "backbone_size: .*one to four .* got .*layers"),
            ("clip_resnet", {"layers": (0, 2)}, "backbone_size: .*positive .* got .*layers"),
        ],
    )
    def test_an_impossible_backbone_is_an_error(self, name, size, message):
        with pytest.raises(ValueError, match=message):
            vlpt.build_backbone(name, **size)

    @pytest.mark.parametrize("heads", [0, 3])
    def test_heads_that_do_not_divide_the_width_are_an_error(self, heads):
        message = f"heads: expected a divisor of the width 8, got {heads}"
        with pytest.raises(ValueError, match=message):
            vlpt.Attention(8, heads)


class TestStep2Embedding:
    """ce_j = W_c c_j + PE_j with one-hot c_j and learned PE."""

    token_ids = arrays(
        np.int64,
        st.tuples(small_int, st.sampled_from([1, 4, 25]), st.just(3)),
        elements=st.integers(0, 6),
    )

    @fewer_examples
    @given(token_ids=token_ids, text_encoder=text_encoders)
    def test_is_a_one_hot_vector_times_a_matrix_plus_a_position(self, token_ids, text_encoder):
        """For PAD, MASK, UNK and characters at all of the 25 positions."""
        text, ids = small_text(text_encoder), torch.from_numpy(token_ids)
        embedded = text.embed(ids)
        assert embedded.shape == (*ids.shape, 6)
        matrix = text.token_embedding.weight.tolist()
        for b, j, i in np.ndindex(*ids.shape):
            one_hot = [float(token_id == ids[b, j, i]) for token_id in range(7)]
            # All words share their positions; in a sentence each has its own.
            position = text.positional_embedding[j, i if text_encoder == "sentence" else 0].tolist()
            expected = [sum(one_hot[k] * matrix[k][c] for k in range(7)) for c in range(6)]
            assert embedded[b, j, i].tolist() == add_by_hand([expected], [position])[0]

    @pytest.mark.parametrize("text_encoder", TEXT_ENCODERS)
    def test_its_gradient_is_its_derivative(self, text_encoder):
        text, ids = small_text(text_encoder), encode([["ab", "cda"], ["d"]])
        assert_gradient_is_derivative(text, lambda: text.embed(ids).sin())

    def test_positions_are_learned_parameters(self):
        positions = small_model().text.positional_embedding
        assert positions.requires_grad and positions.shape == (25, 1, 6)
        assert small_model("sentence").text.positional_embedding.shape == (25, 3, 6)


class TestStep3TextEncoder:
    """te = Enc(ce): a Transformer over the characters of one word."""

    @fewer_examples
    @given(batch=batches)
    @example(batch=[["abcd?" * 5, "a"]])  # every position
    def test_a_masked_word_is_encoded_alone_and_without_pads(self, batch):
        L = max([4, *(len(word) for words in batch for word in words)])
        text, (ids, _) = small_text(), mask(encode(batch, L))
        features = text(ids)
        assert features.shape == (len(batch), L, 3, 8)
        for b, words in enumerate(batch):
            for i, word in enumerate(words):
                characters = [(ids[b, j, i].item(), j, 0) for j in range(len(word))]
                expected = text_encoder_by_hand(text, characters)
                assert_equal(features[b, : len(word), i], expected)

    @fewer_examples
    @given(words=some_image_words)
    def test_in_the_sentence_ablation_all_words_are_one_sequence(self, words):
        text, (ids, _) = small_text("sentence"), mask(encode([words]))
        places = [(j, i) for i, word in enumerate(words) for j in range(len(word))]
        characters = [(ids[0, j, i].item(), j, i) for j, i in places]
        features = text(ids)
        for (j, i), expected in zip(places, text_encoder_by_hand(text, characters), strict=True):
            assert_equal(features[0, j, i], expected)

    @given(first=a_word, second=a_word, third=a_word)
    def test_words_of_an_image_never_see_each_other(self, first, second, third):
        assume(second != third)
        ids = encode([[first], [first, second], [first, third]])
        text, sentence = small_text(), small_text("sentence")
        alone, with_second, with_third = text(ids)[:, : len(first), 0]
        assert_equal(alone, with_second)
        assert_equal(alone, with_third)
        _, with_second, with_third = sentence(ids)[:, : len(first), 0]
        assert (with_second - with_third).abs().max() > 1e-6  # in a sentence they do

    @given(words=st.lists(a_word, min_size=3, max_size=3), order=st.permutations(range(3)))
    def test_permuting_the_words_permutes_the_features(self, words, order):
        text, ids = small_text(), encode([words])
        is_char = ids[:, :, order] != PAD
        assert_equal(text(ids[:, :, order])[is_char], text(ids)[:, :, order][is_char])

    @given(batch=nonempty_batches, text_encoder=text_encoders)
    def test_pads_are_never_attended_to(self, batch, text_encoder):
        text, (ids, _) = small_text(text_encoder), mask(encode(batch))
        is_char = ids != PAD
        before = text(ids)[is_char]
        (gradient,) = torch.autograd.grad(before.square().sum(), text.token_embedding.weight)
        assert (gradient[PAD] == 0).all()
        with torch.no_grad():
            text.token_embedding.weight[PAD] += 5
        assert_equal(text(ids)[is_char], before)

    @pytest.mark.parametrize("text_encoder", TEXT_ENCODERS)
    def test_every_sequence_has_a_token_to_attend_to(self, text_encoder):
        text, used = small_text(text_encoder), []
        text.layers[0].register_forward_pre_hook(lambda _layer, args: used.append(args[1]))
        text(encode([["ab", "c"], []]))
        assert used[0].any(dim=1).all()

    def test_a_character_sees_those_after_it(self):
        text = small_text()
        first_characters = text(encode([["ab"], ["ac"]]))[:, 0, 0]
        assert not torch.allclose(*first_characters)

    @pytest.mark.parametrize("text_encoder", TEXT_ENCODERS)
    def test_its_gradient_is_its_derivative(self, text_encoder):
        text, ids = small_text(text_encoder), encode([["ab", "cda"], [], ["d"]])
        assert_gradient_is_derivative(text, lambda: text(ids)[ids != PAD])

    @given(batch=batches, text_encoder=text_encoders)
    def test_the_text_feature_is_the_mean_over_characters_then_words(self, batch, text_encoder):
        model, (ids, _) = small_model(text_encoder), mask(encode(batch))
        char_features, text = model.encode_text(ids)
        for b, words in enumerate(batch):
            word_means = []
            for i, word in enumerate(words):
                rows = char_features[b, : len(word), i].tolist()
                word_means.append(mean_by_hand(rows))
            assert_equal(text[b], mean_by_hand(word_means) if words else [0.0] * 8)

    @pytest.mark.parametrize("text_encoder", TEXT_ENCODERS)
    def test_without_any_word_the_text_feature_and_its_gradients_are_zero(self, text_encoder):
        model = small_model(text_encoder)
        _, text = model.encode_text(encode([[], []]))
        assert (text == 0).all()
        parameters = list(model.text.parameters())
        for gradient in torch.autograd.grad(text.sum(), parameters, materialize_grads=True):
            assert (gradient == 0).all()


class TestStep4Masking:
    """One character of every word, uniformly drawn, becomes MASK and is the word's target."""

    @given(
        batch=st.lists(st.lists(st.text("abcd?", min_size=1, max_size=25), max_size=3), min_size=1),
        seed=seeds,
    )
    def test_masks_exactly_one_known_character_of_every_word_that_has_one(self, batch, seed):
        ids = encode(batch, L=25)  # "?" becomes UNK
        masked, targets = mask(ids, seed)
        assert masked.shape == targets.shape == ids.shape
        for b, i in np.ndindex(len(batch), 3):
            before, after = ids[b, :, i].tolist(), masked[b, :, i].tolist()
            changed = [j for j in range(25) if before[j] != after[j]]
            has_known_character = any(token_id > UNK for token_id in before)
            assert len(changed) == has_known_character
            expected = [IGNORE_INDEX] * 25
            for j in changed:
                assert before[j] > UNK and after[j] == MASK
                expected[j] = before[j]
            assert targets[b, :, i].tolist() == expected

    def test_every_known_character_is_equally_likely_and_every_word_is_drawn_by_itself(self):
        """Chi-square tests at p = 1e-6. The seed is fixed, so they pass or fail for good.

        Whatever is drawn for one word must say nothing about another word of the same image or of
        the next image, so all pairs of positions are equally likely as well.
        """
        from scipy.stats import chi2

        batch = [["ab?cd", "?dcba", "aa?aa"]] * 20_000
        masked, _ = mask(encode(batch, L=5), seed=7)
        positions = (masked == MASK).int().argmax(dim=1)  # (B, 3)
        assert (masked == MASK).sum(dim=1).eq(1).all()
        known_places = [[n for n, char in enumerate(word) if char != "?"] for word in batch[0]]
        numbers = torch.stack(  # (B, 3), which of its word's four known characters is masked
            [
                torch.tensor([places.index(place) for place in positions[:, i].tolist()])
                for i, places in enumerate(known_places)
            ],
            dim=1,
        )

        def assert_uniform(outcomes: Tensor, kinds: int) -> None:
            counts = torch.bincount(outcomes, minlength=kinds).double()
            expected = len(outcomes) / kinds
            statistic = ((counts - expected) ** 2 / expected).sum().item()
            assert statistic < chi2.ppf(1 - 1e-6, kinds - 1)

        for i in range(3):
            assert_uniform(numbers[:, i], 4)
            assert_uniform(4 * numbers[::2, i] + numbers[1::2, i], 16)  # an image and the next
            assert_uniform(4 * numbers[:10_000, i] + numbers[10_000:, i], 16)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert_uniform(4 * numbers[:, i] + numbers[:, j], 16)

    @pytest.mark.parametrize("length", [1, 2, 25])
    def test_long_and_short_words_are_masked_evenly(self, length):
        count = 100_000
        ids = encode([["a" * length]], L=25).expand(count, -1, -1)
        counts = (mask(ids, seed=7)[0][:, :length, 0] == MASK).sum(dim=0)
        five_deviations = 5 * math.sqrt(count / length * (1 - 1 / length))  # of a binomial count
        assert (counts - count / length).abs().max() <= five_deviations

    def test_follows_the_generator_alone_or_the_global_seed_without_one(self):
        ids = encode([["a" * 25] * 3] * 8, L=25)
        torch.manual_seed(0)
        one = mask(ids, seed=1)[0]
        assert torch.equal(one, mask(ids, seed=1)[0])
        assert not torch.equal(one, mask(ids, seed=2)[0])
        torch.manual_seed(3)
        one = vlpt.mask_one_char(ids)[0]
        torch.manual_seed(3)
        assert torch.equal(one, vlpt.mask_one_char(ids)[0])


class TestStep5Decoder:
    """y = Dec(te, f): cross-attention to keys f + position and values f, no self-attention."""

    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("Q", [1, 3])
    @pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 1)])
    def test_equals_the_stack_computed_by_hand(self, Q, grid, seed):
        decoder, query = small_model().decoder, randn(seed, 2, Q, 8)
        tokens = randn(9, 2, grid[0] * grid[1], 8)
        y = decoder(query, tokens, grid)
        for b in range(2):
            expected = decoder_by_hand(decoder, query[b].tolist(), tokens[b].tolist(), grid)
            assert_equal(y[b], expected)

    @given(Q=st.integers(2, 6), seed=seeds)
    def test_queries_never_see_each_other(self, Q, seed):
        decoder, query, tokens = small_model().decoder, randn(seed, 2, Q, 8), randn(9, 2, 4, 8)
        assert_equal(decoder(query[:, 1:], tokens, (2, 2)), decoder(query, tokens, (2, 2))[:, 1:])

    @pytest.mark.parametrize("seed", range(3))
    def test_values_have_no_positions(self, seed):
        """With equal keys every token has the same weight, so only values could bring positions."""
        decoder, query, tokens = small_model().decoder, randn(seed, 1, 2, 8), randn(9, 1, 4, 8)
        for layer in decoder.layers:
            nn.init.zeros_(layer.attn.k_proj.weight)
        before = decoder(query, tokens, (2, 2))
        nn.init.zeros_(decoder.positional_embedding)
        assert_equal(decoder(query, tokens, (2, 2)), before)

    @pytest.mark.parametrize("seed", range(3))
    def test_keys_have_positions(self, seed):
        decoder, query, tokens = small_model().decoder, randn(seed, 1, 2, 8), randn(9, 1, 4, 8)
        swapped = tokens[:, [1, 0, 3, 2]]
        assert not torch.allclose(decoder(query, tokens, (2, 2)), decoder(query, swapped, (2, 2)))
        nn.init.zeros_(decoder.positional_embedding)
        assert_equal(decoder(query, tokens, (2, 2)), decoder(query, swapped, (2, 2)))

    @pytest.mark.parametrize("seed", range(3))
    def test_its_gradient_is_its_derivative(self, seed):
        """With respect to queries, image tokens, which are keys and values, and parameters."""
        decoder, query, tokens = small_model().decoder, randn(seed, 2, 3, 8), randn(9, 2, 6, 8)
        assert_gradient_is_derivative(
            decoder, lambda query, tokens: decoder(query, tokens, (2, 3)), query, tokens
        )

    @given(batch=nonempty_batches)
    def test_the_model_decodes_every_character_into_logits(self, batch):
        model, (ids, _) = small_model(), mask(encode(batch))
        images = random_images(batch, size=(64, 96))
        logits = model(images, ids).logits
        _, image_tokens, grid = model.encode_image(images)
        for b, words in enumerate(batch):
            for i, word in enumerate(words):
                query = model.text(ids)[b : b + 1, : len(word), i]
                y = model.decoder(query, image_tokens[b : b + 1], grid)[0]
                assert_equal(logits[b, : len(word), i], linear_by_hand(y.tolist(), model.head))

    @given(batch=nonempty_batches, text_encoder=text_encoders)
    def test_without_a_decoder_the_head_reads_character_plus_image(self, batch, text_encoder):
        model, ids, images = small_model(text_encoder, "none"), encode(batch), random_images(batch)
        output, char_features = model(images, ids), model.text(ids)
        for b, j, i in np.ndindex(*ids.shape):
            query = (char_features[b, j, i] + output.image[b]).tolist()
            assert_equal(output.logits[b, j, i], linear_by_hand([query], model.head)[0])

    @pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 1)])
    @pytest.mark.parametrize("words", [["ab", "cda"], ["abcd", "a", "bb"]])
    def test_attention_maps_equal_softmax_by_hand(self, words, grid):
        model, images = small_model(), random_images([0], size=(32 * grid[0], 32 * grid[1]))
        ids, _ = mask(encode([words]))
        image_map, char_maps = model.attention_maps(images, ids)
        assert image_map.shape == (1, *grid) and char_maps.shape == (1, 4, 3, *grid)
        tokens = pool_tokens_by_hand(model.pool, model.backbone(images)[-1][0])
        by_head = attention_weights_by_hand(model.pool, tokens, tokens[1:])
        pool_weights = np.mean(by_head, axis=0)
        assert_equal(image_map.flatten(), pool_weights[0].tolist())
        image_tokens = attention_by_hand(model.pool, tokens, tokens, tokens)[1:]
        key = decoder_keys_by_hand(model.decoder, image_tokens, grid)
        query = model.text(ids)[0].flatten(0, 1).tolist()
        first, last = model.decoder.layers
        query = decoder_layer_by_hand(first, query, key, image_tokens)
        decoder_weights = np.mean(attention_weights_by_hand(last.attn, query, key), axis=0)
        assert_equal(char_maps.flatten(), (decoder_weights @ pool_weights[1:]).ravel().tolist())

    @given(batch=batches, text_encoder=text_encoders)
    def test_every_attention_map_sums_to_one(self, batch, text_encoder):
        images = random_images(batch, size=(64, 96))
        image_map, char_maps = small_model(text_encoder).attention_maps(images, encode(batch, 25))
        assert_equal(image_map.sum((1, 2)), torch.ones(len(batch)))
        assert_equal(char_maps.sum((3, 4)), torch.ones(len(batch), 25, 3))

    def test_attention_maps_without_a_decoder_are_an_error(self):
        with pytest.raises(ValueError, match="decoder: attention maps need 'visual_textual'"):
            small_model(decoder="none").attention_maps(random_images([0]), encode([["a"]]))


class TestStep6CharLoss:
    """L_cls: cross-entropy at the masked positions only, the mean over them, in nats."""

    logit_arrays = arrays(
        np.float64,
        st.tuples(small_int, st.just(4), st.just(3), st.integers(7, 9)),
        elements=st.floats(-9, 9),
    )

    @given(logits=logit_arrays, data=st.data())
    def test_is_the_mean_cross_entropy_over_the_masked_positions(self, logits, data):
        B = len(logits)
        batch = data.draw(st.lists(image_words, min_size=B, max_size=B))
        _, targets = mask(encode(batch), data.draw(seeds))
        terms = [
            cross_entropy_by_hand(logits[place].tolist(), targets[place].item())
            for place in np.ndindex(*targets.shape)
            if targets[place] != IGNORE_INDEX
        ]
        loss = vlpt.char_loss(torch.from_numpy(logits), targets)
        assert_equal(loss, sum(terms) / max(1, len(terms)))

    @given(batch=nonempty_batches, other=st.floats(-1e3, 1e3), seed=seeds)
    def test_unmasked_positions_change_neither_loss_nor_gradient(self, batch, other, seed):
        _, targets = mask(encode(batch), seed)
        ignored = targets == IGNORE_INDEX
        logits = randn(seed, *targets.shape, 7).requires_grad_()
        loss = vlpt.char_loss(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert (gradient[ignored] == 0).all()
        assert (gradient[~ignored].abs().sum(-1) > 0).all()
        assert vlpt.char_loss(logits.masked_fill(ignored[..., None], other), targets) == loss

    @given(B=small_int, V=st.integers(4, 97))
    def test_is_ln_V_for_constant_logits(self, B, V):
        targets = torch.full((B, 25, 3), IGNORE_INDEX)
        targets[:, 0] = 3
        logits = torch.full((B, 25, 3, V), 0.5, dtype=torch.float64)
        assert_equal(vlpt.char_loss(logits, targets), math.log(V))

    @given(V=st.integers(4, 97))
    def test_is_ln_of_V_minus_3_for_even_guesses_among_the_characters(self, V):
        """PAD, MASK and UNK are never targets, so a model learns to give them no probability."""
        logits = torch.zeros(2, 25, 3, V, dtype=torch.float64)
        logits[..., : UNK + 1] = -math.inf
        assert_equal(vlpt.char_loss(logits, torch.full((2, 25, 3), 3)), math.log(V - 3))

    def test_is_zero_with_zero_gradient_if_nothing_is_masked(self):
        logits = randn(0, 2, 4, 3, 7).requires_grad_()
        loss = vlpt.char_loss(logits, torch.full((2, 4, 3), IGNORE_INDEX))
        assert loss == 0 and (torch.autograd.grad(loss, logits)[0] == 0).all()

    def test_its_gradient_is_its_derivative(self):
        targets = torch.tensor([[[3, IGNORE_INDEX], [IGNORE_INDEX, 4]]])
        logits = randn(0, 1, 2, 2, 5).requires_grad_()
        assert torch.autograd.gradcheck(lambda logits: vlpt.char_loss(logits, targets), logits)

    def test_half_precision_logits_are_raised_to_float32(self):
        logits, (_, targets) = 9 * randn(0, 2, 4, 3, 7).bfloat16(), mask(encode([["ab"], ["cd"]]))
        loss = vlpt.char_loss(logits, targets)
        assert loss.dtype == torch.float32 and loss == vlpt.char_loss(logits.float(), targets)

    def test_shapes_that_differ_are_an_error(self):
        message = r"targets: expected shape \(2, 4, 3\) as in logits, got \(2, 4\)"
        with pytest.raises(ValueError, match=message):
            vlpt.char_loss(randn(0, 2, 4, 3, 7), torch.zeros(2, 4).long())


def feature_pairs(max_rows: int = 4) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Image and text features, (B, D) each, whose rows are not nearly zero."""

    def make(shape: tuple[int, int]) -> st.SearchStrategy[Tensor]:
        rows = arrays(np.float64, shape, elements=st.floats(-3, 3))
        rows = rows.filter(lambda x: np.linalg.norm(x, axis=1).min() > 0.1)
        return rows.map(torch.from_numpy)

    shapes = st.tuples(st.integers(1, max_rows), small_int)
    return shapes.flatmap(lambda shape: st.tuples(make(shape), make(shape)))


class TestStep7Contrastive:
    """L_bc = H(i2t) + H(t2i): the sum of two cross-entropies of scaled cosine similarities."""

    logit_scale = torch.tensor(1.3, dtype=torch.float64)

    @given(pair=feature_pairs(), logit_scale=st.floats(-1, 6), data=st.data())
    def test_is_the_sum_of_both_cross_entropies(self, pair, logit_scale, data):
        image, text = pair
        is_pair = data.draw(st.lists(st.booleans(), min_size=len(image), max_size=len(image)))
        loss = vlpt.contrastive_loss(
            image, text, torch.tensor(logit_scale, dtype=torch.float64), torch.tensor(is_pair)
        )
        expected = contrastive_loss_by_hand(image.tolist(), text.tolist(), logit_scale, is_pair)
        assert_equal(loss, expected)

    @given(pair=feature_pairs())
    def test_without_a_mask_all_pairs_count(self, pair):
        all_rows = torch.ones(len(pair[0]), dtype=torch.bool)
        expected = vlpt.contrastive_loss(*pair, self.logit_scale, all_rows)
        assert_equal(vlpt.contrastive_loss(*pair, self.logit_scale), expected)

    @given(pair=feature_pairs())
    def test_does_not_change_when_images_and_texts_are_swapped(self, pair):
        x, y = pair
        loss = vlpt.contrastive_loss(x, y, self.logit_scale)
        assert_equal(loss, vlpt.contrastive_loss(y, x, self.logit_scale))

    @given(pair=feature_pairs(), factors=st.lists(st.floats(0.1, 9), min_size=8, max_size=8))
    def test_does_not_change_when_rows_are_rescaled(self, pair, factors):
        x, y = pair
        by = torch.tensor(factors, dtype=torch.float64).reshape(2, 4, 1)[:, : len(x)]
        loss = vlpt.contrastive_loss(x, y, self.logit_scale)
        assert_equal(vlpt.contrastive_loss(by[0] * x, by[1] * y, self.logit_scale), loss)

    @given(pair=feature_pairs(), data=st.data())
    def test_does_not_change_when_pairs_are_permuted(self, pair, data):
        x, y = pair
        order = data.draw(st.permutations(range(len(x))))
        loss = vlpt.contrastive_loss(x, y, self.logit_scale)
        assert_equal(vlpt.contrastive_loss(x[order], y[order], self.logit_scale), loss)

    @given(B=small_int, D=small_int)
    def test_is_2_ln_B_for_equal_features(self, B, D):
        same = torch.ones(B, D, dtype=torch.float64)
        assert_equal(vlpt.contrastive_loss(same, same, self.logit_scale), 2 * math.log(B))

    @pytest.mark.parametrize("pairs", [0, 1])
    def test_is_zero_with_zero_gradient_for_fewer_than_two_pairs(self, pairs):
        image, text = randn(0, 3, 2).requires_grad_(), randn(1, 3, 2).requires_grad_()
        loss = vlpt.contrastive_loss(image, text, self.logit_scale, torch.arange(3) < pairs)
        assert loss == 0
        for gradient in torch.autograd.grad(loss, [image, text]):
            assert (gradient == 0).all()

    @given(pair=feature_pairs())
    def test_the_scale_is_capped_at_100(self, pair):
        at_cap = vlpt.contrastive_loss(*pair, torch.tensor(100.0, dtype=torch.float64).log())
        logit_scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        loss = vlpt.contrastive_loss(*pair, logit_scale)
        assert_equal(loss, at_cap)
        assert torch.autograd.grad(loss, logit_scale)[0] == 0

    @given(pair=feature_pairs(), padding=st.floats(-3, 3), seed=seeds)
    @example(pair=(randn(0, 2, 3), randn(1, 2, 3)), padding=0.0, seed=0)  # as encode_text gives
    def test_rows_that_are_no_pairs_change_neither_loss_nor_gradient(self, pair, padding, seed):
        image, text = (x.clone().requires_grad_() for x in pair)
        B, D = image.shape
        more_images = torch.cat([image, randn(seed, 2, D)])
        more_texts = torch.cat([text, torch.full((2, D), padding)])
        is_pair = torch.arange(B + 2) < B
        losses = [
            vlpt.contrastive_loss(image, text, self.logit_scale),
            vlpt.contrastive_loss(more_images, more_texts, self.logit_scale, is_pair),
        ]
        assert_equal(*losses)
        assert_same_gradients(losses, [image, text])

    def test_its_gradient_is_its_derivative(self):
        image, text = randn(0, 3, 2).requires_grad_(), randn(1, 3, 2).requires_grad_()
        logit_scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(vlpt.contrastive_loss, (image, text, logit_scale))

    def test_is_computed_in_float32_under_autocast(self):
        image, text, scale = randn(0, 6, 8).bfloat16(), randn(1, 6, 8).bfloat16(), torch.tensor(4.0)
        expected = vlpt.contrastive_loss(image.float(), text.float(), scale)
        with torch.autocast("cpu", torch.bfloat16):
            loss = vlpt.contrastive_loss(image, text, scale)
        assert loss.dtype == torch.float32 and loss == expected

    def test_shapes_that_differ_are_an_error(self):
        message = r"text: expected shape \(2, 2\) as image, got \(3, 2\)"
        with pytest.raises(ValueError, match=message):
            vlpt.contrastive_loss(randn(0, 2, 2), randn(0, 3, 2), self.logit_scale)


class TestStep8Total:
    """loss = L_cls + L_bc, without weights."""

    @given(batch=batches, text_encoder=text_encoders, seed=seeds)
    @example(batch=[["ab"], ["??"], ["?", "c"], []], text_encoder="character", seed=0)
    def test_is_the_cross_entropies_computed_by_hand(self, batch, text_encoder, seed):
        model, (masked, targets) = small_model(text_encoder), mask(encode(batch), seed)
        output = model(random_images(batch), masked)
        places = [place for place in np.ndindex(*targets.shape) if targets[place] != IGNORE_INDEX]
        terms = [
            cross_entropy_by_hand(output.logits[place].tolist(), targets[place].item())
            for place in places
        ]
        char = sum(terms) / max(1, len(terms))
        contrastive = contrastive_loss_by_hand(
            output.image.tolist(),
            output.text.tolist(),
            output.logit_scale.item(),
            is_pair=[any(map(is_known, words)) for words in batch],
        )
        assert_equal(vlpt.total_loss(output, targets), char + contrastive)
        assert_equal(vlpt.total_loss(output, targets, contrastive=False), char)

    @fewer_examples
    @given(batch=nonempty_batches, text_encoder=text_encoders, decoder=st.sampled_from(DECODERS))
    def test_the_gradient_of_the_whole_model_is_its_derivative(self, batch, text_encoder, decoder):
        """With respect to every parameter, with a convolution in place of the backbone.

        Finite differences need a backbone without the kinks of ReLU. The gradients of CLIP's
        ResNet are proven in TestStep1ImageEncoder.
        """

        class Smooth(nn.Conv2d):
            def forward(self, images: Tensor) -> list[Tensor]:
                return [super().forward(images)]

        model = small_model(text_encoder, decoder)
        model.backbone = Smooth(3, model.backbone.channels, 32, stride=32).double()
        images, (masked, targets) = random_images(batch), mask(encode(batch))
        assert_gradient_is_derivative(
            model, lambda: vlpt.total_loss(model(images, masked), targets)
        )

    @fewer_examples
    @given(batch=nonempty_batches, text_encoder=text_encoders, seed=seeds)
    def test_an_image_without_known_words_changes_no_loss_and_no_gradient(
        self, batch, text_encoder, seed
    ):
        """Neither one without any words nor one with unknown characters only."""
        model, images = small_model(text_encoder), random_images([*batch, [], ["??"]])
        masked, targets = mask(encode([*batch, [], ["??"]]), seed)
        losses = [
            vlpt.total_loss(model(images[:n], masked[:n]), targets[:n])
            for n in (len(batch), len(batch) + 2)
        ]
        assert_equal(*losses)
        assert_same_gradients(losses, list(model.parameters()))

    def test_without_the_contrastive_loss_the_scale_is_not_trained(self):
        assert VLPT(SMALL).logit_scale.requires_grad
        assert not VLPT(replace(SMALL, contrastive=False)).logit_scale.requires_grad


class TestStep9Export:
    """Only the backbone leaves: pool, text encoder and decoder are dropped.

    tests/test_consumers.py loads the files into the other libraries, except MMOCR.
    """

    @pytest.mark.parametrize("layout", ["native", "mmocr", "timm"])
    def test_the_file_holds_the_backbone_and_nothing_else(self, tmp_path, layout):
        model = small_model()
        vlpt.export_backbone(model, tmp_path / "b.pt", layout)
        exported = torch.load(tmp_path / "b.pt", weights_only=True)
        expected = model.backbone.state_dict()
        keys = vlpt.layout_keys(model.backbone, layout)
        assert list(exported) == [keys[key] for key in expected]
        for theirs, ours in zip(exported.values(), expected.values(), strict=True):
            assert torch.equal(theirs, ours)

    @pytest.mark.parametrize("ending", [".pt", ".safetensors"])
    @pytest.mark.parametrize(
        ("name", "layout"),
        [
            ("clip_resnet", "native"),
            ("clip_resnet", "mmocr"),
            ("clip_resnet", "timm"),
            ("resnet18", "native"),
            ("resnet18", "timm"),
        ],
    )
    def test_what_is_exported_loads_back_bit_by_bit(self, tmp_path, name, layout, ending):
        size = SMALL.backbone_size if name == "clip_resnet" else {}
        config = replace(SMALL, backbone=name, backbone_size=size)
        model = randomize_parameters(VLPT(config)).float()
        model = model.to(memory_format=torch.channels_last)  # as train_min.py trains it
        vlpt.export_backbone(model, tmp_path / f"b{ending}", layout)
        loaded = vlpt.load_backbone(tmp_path / f"b{ending}", name, **size).state_dict()
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(loaded[key], value), key

    def test_torchvision_itself_reads_the_export(self, tmp_path):
        backbone = vlpt.build_backbone("resnet18")
        vlpt.export_backbone(backbone, tmp_path / "b.pt")
        theirs = torchvision.models.resnet18(weights=None)
        keys = theirs.load_state_dict(torch.load(tmp_path / "b.pt"), strict=False)
        assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys
        for key, value in backbone.state_dict().items():
            assert torch.equal(theirs.state_dict()[key], value), key

    @pytest.mark.parametrize(
        ("layout", "ours", "theirs"),
        [
            ("mmocr", "conv1", "stem.0"),
            ("mmocr", "bn1", "stem.1"),
            ("mmocr", "conv2", "stem.3"),
            ("mmocr", "bn2", "stem.4"),
            ("mmocr", "conv3", "stem.6"),
            ("mmocr", "bn3", "stem.7"),
            ("mmocr", "layer1.0.bn3", "layer1.0.bn3"),
            ("mmocr", "layer2.0.downsample.0", "layer2.0.downsample.1"),
            ("mmocr", "layer2.0.downsample.1", "layer2.0.downsample.2"),
            ("timm", "conv1", "conv1.0"),
            ("timm", "bn1", "conv1.1"),
            ("timm", "conv2", "conv1.3"),
            ("timm", "bn2", "conv1.4"),
            ("timm", "conv3", "conv1.6"),
            ("timm", "bn3", "bn1"),
            ("timm", "layer1.0.bn3", "layer1.0.bn3"),
            ("timm", "layer2.0.downsample.0", "layer2.0.downsample.1"),
            ("timm", "layer2.0.downsample.1", "layer2.0.downsample.2"),
        ],
    )
    def test_tensors_have_the_names_of_the_library(self, layout, ours, theirs):
        backbone = vlpt.build_backbone("clip_resnet", **SMALL.backbone_size)
        keys = vlpt.layout_keys(backbone, layout)
        matching = [key for key in backbone.state_dict() if key.startswith(f"{ours}.")]
        assert matching
        for key in matching:
            assert keys[key] == key.replace(f"{ours}.", f"{theirs}.", 1)

    @pytest.mark.parametrize("prefix", ["module.visual.", "visual.", ""])
    def test_a_checkpoint_of_the_released_form_gives_backbone_and_pool(self, prefix, tmp_path):
        model = small_model().float()
        backbone, pool = model.backbone.state_dict(), model.pool.state_dict()
        released = {prefix + key: value for key, value in backbone.items()}
        if prefix:
            released |= {f"{prefix}attnpool.{key}": value for key, value in pool.items()}
            released[prefix.replace("visual.", "transformer.x")] = torch.zeros(1)
        optimizer = torch.optim.AdamW(model.parameters()).state_dict()
        checkpoint = {"state_dict": released, "optimizer": optimizer, "epoch": 3}
        torch.save(checkpoint, tmp_path / "r.pt")
        for source in (tmp_path / "r.pt", str(tmp_path / "r.pt"), checkpoint, released):
            loaded = vlpt.load_backbone(source, "clip_resnet", **SMALL.backbone_size).state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in backbone.items())
            tensors = vlpt.read_tensors(source, "visual.attnpool.")
            assert tensors.keys() == (pool.keys() if prefix else set())
            assert all(torch.equal(value, pool[key]) for key, value in tensors.items())

    def test_torchvisions_own_checkpoint_gives_its_backbone(self):
        theirs = torchvision.models.resnet18(weights=None).state_dict()
        loaded = vlpt.load_backbone(theirs, "resnet18").state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in loaded.items())

    def test_the_weights_of_a_whole_model_give_its_backbone(self):
        model = small_model().float()
        loaded = vlpt.load_backbone(model.state_dict(), "clip_resnet", **SMALL.backbone_size)
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)

    def test_exporting_does_not_change_the_model(self, tmp_path):
        model = small_model()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        vlpt.export_backbone(model, tmp_path / "b.pt", "timm")
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class TestModel:
    """The steps together have the promised shapes, and what is there for speed changes nothing."""

    printable_batches = st.lists(
        st.lists(st.text(vlpt.PRINTABLE, min_size=1, max_size=30), max_size=3),
        min_size=1,
        max_size=2,
    )

    @pytest.mark.parametrize("name", ["resnet18", "clip_resnet"])
    def test_everything_is_B_25_3(self, name):
        """With both text encoders, on random words of all printable characters."""
        size = SMALL.backbone_size if name == "clip_resnet" else {}
        config = replace(
            SMALL, alphabet=vlpt.PRINTABLE, backbone=name, backbone_size=size, image_size=32
        )
        models = {kind: VLPT(replace(config, text_encoder=kind)).eval() for kind in TEXT_ENCODERS}
        alphabet = Alphabet(vlpt.PRINTABLE)

        @settings(max_examples=5)
        @given(batch=self.printable_batches, text_encoder=text_encoders, seed=seeds)
        def check(batch: list, text_encoder: str, seed: int) -> None:
            B = len(batch)
            model, images = models[text_encoder], torch.zeros(B, 3, 32, 32)
            masked, targets = mask(torch.stack([alphabet.encode(words) for words in batch]), seed)
            with torch.no_grad():
                output = model(images, masked)
            image_map, char_maps = model.attention_maps(images, masked)
            assert masked.shape == targets.shape == (B, 25, 3)
            assert output.logits.shape == (B, 25, 3, 97)
            assert output.logits.argmax(-1).shape == (B, 25, 3)
            assert output.image.shape == output.text.shape == (B, 8)
            assert image_map.shape == (B, 1, 1) and char_maps.shape == (B, 25, 3, 1, 1)
            assert torch.isfinite(vlpt.total_loss(output, targets))

        check()

    @fewer_examples
    @given(batch=batches, text_encoder=text_encoders, decoder=st.sampled_from(DECODERS), seed=seeds)
    def test_decoding_the_masked_characters_alone_gives_the_same_loss_and_gradients(
        self, batch, text_encoder, decoder, seed
    ):
        model, images = small_model(text_encoder, decoder), random_images(batch)
        masked, targets = mask(encode(batch), seed)
        whole = model(images, masked)
        output, masked_targets = MaskedOnly(model)(images, masked, targets)
        assert output.logits.shape == (len(batch), 1, 3, 7)
        assert_equal(output.image, whole.image)
        assert_equal(output.text, whole.text)
        assert torch.equal(masked_targets[:, 0], targets.amax(dim=1))  # IGNORE_INDEX is negative
        losses = [vlpt.total_loss(whole, targets), vlpt.total_loss(output, masked_targets)]
        assert_equal(*losses)
        assert_same_gradients(losses, list(model.parameters()))

    @given(batch=batches, text_encoder=text_encoders, decoder=st.sampled_from(DECODERS))
    def test_trimming_the_ids_to_the_longest_word_changes_nothing(
        self, batch, text_encoder, decoder
    ):
        model, images, ids = (
            small_model(text_encoder, decoder),
            random_images(batch),
            encode(batch, 25),
        )
        L = max([1, *(len(word) for words in batch for word in words)])
        N = max([1, *(len(words) for words in batch)])
        whole, trimmed = model(images, ids), model(images, ids[:, :L, :N])
        is_char = ids[:, :L, :N] != PAD
        assert_equal(trimmed.logits[is_char], whole.logits[:, :L, :N][is_char])
        assert_equal(trimmed.text, whole.text)

    @given(batch=batches, text_encoder=text_encoders)
    def test_an_image_does_not_depend_on_the_others_in_its_batch(self, batch, text_encoder):
        model, images, ids = small_model(text_encoder), random_images(batch), encode(batch)
        whole, alone = model(images, ids), model(images[:1], ids[:1])
        for a, b in zip(whole[:3], alone[:3], strict=True):
            assert_equal(a[:1], b)

    def test_model_and_losses_never_read_the_value_of_a_tensor(self):
        """A GPU would have to wait for it. Fake tensors have no values, so reading one fails."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        masked, targets = mask(encode([["ab", "cda"], []]))
        with FakeTensorMode() as fake:
            model = MaskedOnly(VLPT(SMALL))
            masked, targets = fake.from_tensor(masked), fake.from_tensor(targets)
            output, targets = model(torch.zeros(2, 3, 64, 64), masked, targets)
            vlpt.total_loss(output, targets).backward()
            assert all(p.grad is not None for p in model.parameters())
            with pytest.raises(RuntimeError):
                output.logits.sum().item()

    def test_under_autocast_the_head_computes_in_float32(self):
        model = VLPT(replace(SMALL, decoder="none")).eval()
        char_features, image = 9 * torch.randn(2, 4, 3, 8).bfloat16(), torch.randn(2, 8).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.decode(char_features, image, torch.zeros(2, 4, 8), (2, 2))
        query = char_features + image[:, None, None]
        torch.testing.assert_close(logits, model.head(query.float()), rtol=1e-6, atol=1e-6)

    def test_under_autocast_position_tables_stay_in_float32(self):
        model, ids = VLPT(SMALL), encode([["a?"]])
        with torch.autocast("cpu", torch.bfloat16):
            assert model.text.embed(ids).dtype == torch.float32
            assert model.pool.to_tokens(torch.zeros(1, 128, 2, 3).bfloat16()).dtype == torch.float32
            keys = model.decoder.add_positions(torch.zeros(1, 6, 8).bfloat16(), (2, 3))
            assert keys.dtype == torch.float32

    def test_bfloat16_autocast_is_near_float32(self):
        torch.manual_seed(0)
        model, images = VLPT(TINY).eval(), torch.randn(2, 3, 64, 64)
        ids = torch.stack(
            [Alphabet(TINY.alphabet).encode(words) for words in (["12"], ["3", "45"])]
        )
        expected = model(images, ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            got = model(images, ids).logits
        # bfloat16 has 8 significant bits, so a few percent are lost over a dozen layers.
        assert got.dtype == torch.float32 and (got - expected).norm() < 0.05 * expected.norm()

    def test_the_published_model_has_the_published_sizes(self):
        with torch.device("meta"):
            model = VLPT(vlpt.OCLIP_RN50)
        assert model.pool.heads == 32 and model.pool.side == 16
        for stack, width in ((model.text, 64), (model.decoder, 384)):
            assert len(stack.layers) == 6
            for layer in stack.layers:
                assert layer.attn.heads == 8
                assert layer.mlp.c_fc.weight.shape == (4 * width, width)
                assert layer.ln_1.eps == layer.ln_2.eps == stack.ln_final.eps == 1e-5
        # Tied layers, a lost bias, or a table that is fixed or of another size change the number.
        T, D, V = 64, 384, 97
        layer_T, layer_D = (12 * width**2 + 13 * width for width in (T, D))
        for part, expected in (
            (model.text, V * T + 25 * T + 6 * layer_T + 2 * T + T * D),
            (model.decoder, 16 * 16 * D + 6 * layer_D + 2 * D),
            (model.head, V * D + V),
        ):
            assert sum(p.numel() for p in part.parameters()) == expected

    def test_every_part_has_the_sizes_of_its_own_settings(self):
        model = small_model()
        assert [layer.attn.heads for layer in model.text.layers] == [3, 3]
        assert [layer.attn.heads for layer in model.decoder.layers] == [2, 2]
        model = VLPT(replace(SMALL, backbone_size={"width": 4, "layers": (1, 1, 1)}))
        assert model.pool.side == model.decoder.side == 64 // 16

    def test_everything_but_batch_norm_is_the_same_in_training(self):
        model, ids, images = small_model(), encode([["ab", "c?"]]), random_images([0])
        before = model(images, ids)
        model.train()
        model.backbone.eval()
        after = model(images, ids)
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a, b)

    def test_tables_start_with_the_standard_deviations_of_clip(self):
        torch.manual_seed(0)
        model = VLPT(TINY)
        for table, std in (
            (model.text.token_embedding.weight, 0.02),
            (model.text.positional_embedding, 0.01),
            (model.pool.positional_embedding, model.backbone.channels**-0.5),
            (model.decoder.positional_embedding, TINY.embed_dim**-0.5),
        ):
            # Four standard deviations of the estimate from the smallest table, of 832 numbers.
            assert table.std().item() == pytest.approx(std, rel=0.1)

    def test_attention_starts_with_a_standard_deviation_of_width_to_the_minus_half(self):
        torch.manual_seed(0)
        attention = vlpt.Attention(256, 4, out_width=64)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.c_proj):
            assert abs(layer.weight.std().item() * 16 - 1) < 0.02 and not layer.bias.any()

    def test_the_temperature_starts_at_0_07(self):
        assert VLPT(SMALL).logit_scale.exp().item() == pytest.approx(1 / 0.07)

    def test_other_linear_layers_start_as_torch_starts_them(self):
        """Uniformly between -bound and bound, the number of inputs to the minus half."""
        torch.manual_seed(0)
        model = VLPT(TINY)
        mlps = [model.text.layers[0].mlp, model.decoder.layers[0].mlp]
        layers = [model.text.text_projection, model.head]
        layers += [layer for mlp in mlps for layer in (mlp.c_fc, mlp.c_proj)]
        for layer in layers:
            bound = layer.in_features**-0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)

    def test_the_same_seed_gives_the_same_parameters_and_outputs(self):
        outputs = []
        for _ in range(2):
            torch.manual_seed(5)
            model = VLPT(TINY).eval()
            outputs.append(
                model(torch.ones(1, 3, 64, 64), Alphabet("0123456789").encode(["12"])[None])
            )
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))

    def test_a_saved_and_loaded_model_gives_the_same_bits(self, tmp_path):
        torch.manual_seed(0)
        model = VLPT(TINY).eval()
        torch.save(model.state_dict(), tmp_path / "m.pt")
        loaded = VLPT(TINY).eval()
        loaded.load_state_dict(torch.load(tmp_path / "m.pt"))
        images, ids = torch.randn(2, 3, 64, 64), encode([["ab"], ["c"]])
        outputs = zip(model(images, ids), loaded(images, ids), strict=True)
        assert all(torch.equal(a, b) for a, b in outputs)

    @pytest.mark.parametrize(
        ("backbone", "size"), [("clip_resnet", TINY.backbone_size), ("resnet18", {})]
    )
    def test_every_parameter_learns(self, backbone, size):
        torch.manual_seed(0)
        model = VLPT(replace(TINY, backbone=backbone, backbone_size=size))
        for name, p in model.named_parameters():
            if name.endswith("bn3.weight"):  # zero at the start, which stops gradients before it
                nn.init.ones_(p)
        masked, targets = mask(encode([["ab", "cda"], ["dd"], ["bcd", "a", "ca"], ["ba"]]))
        vlpt.total_loss(model(torch.randn(4, 3, 64, 64), masked), targets).backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # Softmax does not change when a constant is added to all scores, as a bias of keys does.
        assert not [name for name in silent if not name.endswith("k_proj.bias")]

    def test_learns_eight_images_by_heart(self):
        torch.manual_seed(0)
        model, images = VLPT(TINY), torch.randn(8, 3, 64, 64)
        alphabet, rng = Alphabet(TINY.alphabet), np.random.default_rng(0)
        batch = [["".join(rng.choice(list(TINY.alphabet), 3)) for _ in range(3)] for _ in range(8)]
        masked, targets = mask(torch.stack([alphabet.encode(words) for words in batch])[:, :3])
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for _ in range(80):
            output = model(images, masked)
            optimizer.zero_grad()
            vlpt.total_loss(output, targets).backward()
            optimizer.step()
        is_masked = targets != IGNORE_INDEX
        assert (output.logits.argmax(-1)[is_masked] == targets[is_masked]).all()
        assert vlpt.contrastive_loss(output.image, output.text, output.logit_scale) < 0.1

    @pytest.mark.parametrize(
        ("images", "ids", "message"),
        [
            ((2, 3, 48, 64), (2, 25, 3), r"images: .* multiples of 32, got \(2, 3, 48, 64\)"),
            ((2, 3, 64, 48), (2, 25, 3), r"images: .* multiples of 32, got \(2, 3, 64, 48\)"),
            ((2, 1, 64, 64), (2, 25, 3), r"images: expected .* got \(2, 1, 64, 64\)"),
            ((2, 3, 64), (2, 25, 3), r"images: expected .* got \(2, 3, 64\)"),
            ((2, 3, 64, 64, 1), (2, 25, 3), r"images: expected .* got \(2, 3, 64, 64, 1\)"),
            ((2, 3, 0, 64), (2, 25, 3), r"images: expected .* got \(2, 3, 0, 64\)"),
            ((0, 3, 64, 64), (0, 25, 3), r"images: expected .* got \(0, 3, 64, 64\)"),
            ((2, 3, 64, 64), (3, 25, 3), r"ids: expected shape \(2, 1..25, 1..3\), got \(3, 25, 3"),
            ((2, 3, 64, 64), (2, 26, 3), r"ids: expected .* got \(2, 26, 3\)"),
            ((2, 3, 64, 64), (2, 24, 4), r"ids: expected .* got \(2, 24, 4\)"),
            ((2, 3, 64, 64), (2, 0, 3), r"ids: expected .* got \(2, 0, 3\)"),
            ((2, 3, 64, 64), (2, 24, 0), r"ids: expected .* got \(2, 24, 0\)"),
            ((2, 3, 64, 64), (2, 25), r"ids: expected .* got \(2, 25\)"),
        ],
    )
    def test_shapes_that_do_not_fit_are_errors(self, images, ids, message):
        model, images, ids = small_model(), torch.zeros(images).double(), torch.full(ids, 3)
        for call in (model, model.attention_maps, lambda *x: MaskedOnly(model)(*x, ids)):
            with pytest.raises(ValueError, match=message):
                call(images, ids)

    def test_images_are_multiples_of_32_for_a_backbone_of_stride_8_as_well(self):
        model = VLPT(replace(SMALL, backbone_size={"width": 4, "layers": (1, 1)}))
        assert model.backbone.stride == 8
        with pytest.raises(ValueError, match="multiples of 32"):
            model(torch.zeros(1, 3, 48, 64), torch.full((1, 25, 3), 3))

    @pytest.mark.slow
    @pytest.mark.parametrize("text_encoder", TEXT_ENCODERS)
    def test_torch_compile_gives_the_same_result(self, text_encoder):
        model, images, ids = small_model(text_encoder), random_images([0, 1]), encode([["ab"], []])
        for got, expected in zip(
            torch.compile(model)(images, ids), model(images, ids), strict=True
        ):
            assert_equal(got, expected)
