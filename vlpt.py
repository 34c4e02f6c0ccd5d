"""VLPT: oCLIP, vision-language pre-training for scene text, in one module.

Re-implements "Language Matters: A Weakly Supervised Vision-Language Pre-training Approach for
Scene Text Detection and Spotting" (Xue et al., ECCV 2022, arXiv 2203.03911). An image encoder
learns from pictures and the transcriptions of some of their words, without any boxes: one
character of each word is hidden and has to be read off the picture.

    images (B, 3, H, W)                   ids (B, L, N) <--mask_one_char-- transcriptions
       | backbone                            | TextEncoder: embed (B, L, N, T), then encode
    feature map (B, C, h, w)                 |
       | AttentionPool                    characters (B, L, N, D) --mean--> text (B, D)
       +--> local tokens (B, S, D) ---> VisualTextualDecoder <- characters    |
       |                                     | head                           |
       |                                  logits (B, L, N, V) -> char_loss    |
       +--> image (B, D) ----------------> contrastive_loss <-----------------+

B images, L = 25 characters a word, N = 3 words an image, V vocabulary, S = h*w image tokens,
T text width, D joint width. Ids, targets, logits and attention keep the order (B, L, N).

    step                                      here                     proof (test_vlpt.py)
    1 f = pool(backbone(I))                   AttentionPool            TestStep1ImageEncoder
    2 ce_j = W_c c_j + PE_j                   TextEncoder.embed        TestStep2Embedding
    3 te = Enc(ce), one word at a time        TextEncoder              TestStep3TextEncoder
    4 before 2: one character -> MASK         mask_one_char            TestStep4Masking
    5 y = Dec(te, local), no self-attention   VisualTextualDecoder     TestStep5Decoder
    6 L_cls, cross-entropy at the masks       char_loss                TestStep6CharLoss
    7 L_bc = H(i2t) + H(t2i)                  contrastive_loss         TestStep7Contrastive
    8 L = L_cls + L_bc                        total_loss               TestStep8Total
    9 only the backbone leaves                export_backbone          TestStep9Export

Where this differs from the released code; each place is marked by its number:
    D1 a word's feature is the mean over its characters; released: the state at its end token.
    D2 each of the L characters is a decoder query; released: one query a word.
    D3 the contrastive loss is the sum of both directions; released: half of it.
    D4 empty word slots count nowhere; released: the mean is over its 32 slots, empty or not.
    D5 a character sees its whole word; released: a causal mask.
    D6 exp(log_scale) is capped at 100; released: the cap is commented out.
    D7 gradients pass between processes (`own`); released: gathered features carry none.
"""

import argparse
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

__version__ = "0.1.0"
PAD, MASK, UNK = 0, 1, 2  # then characters: V = 97 as released, UNK in its end token's place
IGNORE = -100  # the target of a position that does not count
CHARS, WORDS = 25, 3  # L and N: slots; longer words are cut, fewer words leave slots empty
PRINTABLE = "".join(map(chr, range(33, 127)))  # the 94 printable ASCII characters, no space
nfc = partial(unicodedata.normalize, "NFC")  # the one form in which words are cut and spelled
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Alphabet:
    """Token ids of words in NFC: pad 0, MASK 1, UNK 2 (any other), `chars`; V = len(chars) + 3."""

    mask_id = MASK  # for callers; the same in every alphabet

    def __init__(self, chars: str = PRINTABLE) -> None:
        self.chars, self.index = chars, {nfc(char): k for k, char in enumerate(chars, UNK + 1)}
        if {*map(len, self.index)} != {1} or len(self.index) != len(chars):
            raise ValueError(f"alphabet: got {chars!r}, wanted one or more distinct characters")

    def __len__(self) -> int:
        return len(self.chars) + UNK + 1

    def encode(self, words: Sequence[str]) -> Tensor:
        """Words as (L, N) int64 ids, one a column, cut to L; ValueError if over N, or one empty."""
        if len(words) > WORDS or "" in words:
            raise ValueError(f"words: got {list(words)}, wanted at most {WORDS}, none empty")
        ids = torch.full((CHARS, WORDS), PAD)
        for i, word in enumerate(words):
            for j, char in enumerate(nfc(word)[:CHARS]):
                ids[j, i] = self.index.get(char, UNK)
        return ids

    def decode(self, ids: Tensor) -> list[str]:
        """Read (L, N) ids as N words; pads print nothing, MASK as "_", UNK as U+FFFD."""
        text = ["", "_", "\ufffd", *self.chars]
        return ["".join(text[k] for k in column) for column in ids.T.tolist()]


@dataclass(frozen=True)
class Config:
    """Sizes and ablations of one model; the defaults are the published ones."""

    alphabet: str = PRINTABLE  # characters a word may hold
    image_size: int = 512  # height = width in training, pixels
    backbone: str = "clip_resnet50"  # a name that build_backbone knows
    backbone_size: Mapping[str, Any] = field(default_factory=dict)  # build_backbone's keywords
    joint_width: int = 384  # D
    text_width: int = 64  # T
    text_layers: int = 6
    text_heads: int = 8
    decoder_layers: int = 6
    decoder_heads: int = 8
    text_encoder: str = "character"  # "sentence": all words as one sequence (ablation)
    decoder: str = "visual_textual"  # "none": the head reads te + global feature (ablation)
    contrastive: bool = True  # for the caller of total_loss; False: L = L_cls (ablation)

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % 32:
            raise ValueError(f"image_size: got {self.image_size}, wanted a multiple of 32")
        if self.decoder_layers < 1:
            raise ValueError(f"decoder_layers: got {self.decoder_layers}, wanted at least 1")
        for k, ok in (("text_encoder", "character, sentence"), ("decoder", "visual_textual, none")):
            if getattr(self, k) not in ok.split(", "):
                raise ValueError(f"{k}: got {getattr(self, k)!r}, wanted {ok}")


OCLIP_RN50 = Config()
TINY = Config(
    alphabet="0123456789", image_size=64, backbone="clip_resnet", joint_width=128, text_layers=2,
    backbone_size={"width": 24, "layers": (1, 2, 2)})  # fmt: skip


def normalize(pixels: Tensor) -> Tensor:
    """Turn RGB pixels (B, 3, H, W), uint8 0..255, into float32 by CLIP's mean and deviation."""
    mean, std = torch.tensor([PIXEL_MEAN, PIXEL_STD], device=pixels.device)[..., None, None]
    return (pixels / 255 - mean) / std


def resize_table(table: Tensor, side: int, size: Sequence[int]) -> Tensor:
    """Interpolate a position table (side*side, C) to another grid, (h*w, C); bicubic."""
    if tuple(size) == (side, side):
        return table
    return F.interpolate(table.T.reshape(1, -1, side, side), size, mode="bicubic")[0].flatten(1).T


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, Any]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


class Bottleneck(nn.Module):
    """CLIP's residual block: 1x1, 3x3, 1x1 convolutions; a stride is an average pooling."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = conv_bn(width, 4 * width, 1)
        nn.init.zeros_(self.bn3.weight)  # a new block is its shortcut
        self.downsample = nn.Sequential()  # the shortcut: empty, the identity
        if stride > 1 or inputs != 4 * width:  # named -1, 0, 1 as in released checkpoints
            for k, layer in enumerate((self.avgpool, *conv_bn(inputs, 4 * width, 1)), -1):
                self.downsample.add_module(str(k), layer)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(self.avgpool(y))) + self.downsample(x), inplace=True)


class Backbone(nn.ModuleDict):
    """A ResNet as its children in order: (B, 3, H, W) to the maps of layer1, layer2, ..."""

    def __init__(self, name: str, children: Mapping[str, nn.Module], channels: int) -> None:
        super().__init__(children)
        self.name, self.channels = name, channels  # channels of the last map
        self.stride = 2 ** (1 + sum(name.startswith("layer") for name in children))  # 4, 8, ..

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, child in self.items():
            x = child(x)
            if name.startswith("layer"):
                maps.append(x)
        return maps


def clip_resnet(layers: Sequence[int], width: int = 64) -> tuple[dict[str, nn.Module], int]:
    """CLIP's ResNet, a stem of three convolutions, then a stage for each count of blocks."""
    children, channels = {}, 3
    for k, outputs in enumerate((width // 2, width // 2, width), start=1):
        children[f"conv{k}"], children[f"bn{k}"] = conv_bn(channels, outputs, 3, 2 if k == 1 else 1)
        children[f"relu{k}"], channels = nn.ReLU(inplace=True), outputs
    children["avgpool"] = nn.AvgPool2d(2)
    for k, blocks in enumerate(layers):
        stage = [Bottleneck(channels, width * 2**k, 2 if k else 1)]
        channels = 4 * width * 2**k
        stage += [Bottleneck(channels, width * 2**k, 1) for _ in range(blocks - 1)]
        children[f"layer{k + 1}"] = nn.Sequential(*stage)
    return children, channels


def build_backbone(name: str, **size: Any) -> Backbone:
    """Build an image backbone with random weights; layer k has stride 2 ** (k + 1) (step 1).

    Args: name, "resnet18|34|50|101", torchvision's; "clip_resnet50|101", CLIP's; "clip_resnet",
        sized by `layers` (counts of blocks) and `width` (64 unless given). Any other: ValueError.
    """
    plain = ("resnet18", "resnet34", "resnet50", "resnet101")
    clip = {"clip_resnet50": (3, 4, 6, 3), "clip_resnet101": (3, 4, 23, 3), "clip_resnet": None}
    if name not in (*plain, *clip):
        raise ValueError(f"backbone: got {name!r}, wanted one of {', '.join((*plain, *clip))}")
    if size.keys() not in ([{"layers"}, {"layers", "width"}] if name == "clip_resnet" else [set()]):
        raise ValueError(f"backbone_size: got {size}, wanted layers, width, for clip_resnet alone")
    if name in clip:
        return Backbone(name, *clip_resnet(**(size or {"layers": clip[name]})))
    *children, _, (_, fc) = torchvision.models.get_model(name, weights=None).named_children()
    return Backbone(name, dict(children), fc.in_features)


class Attention(nn.Module):
    """Multi-head scaled-dot-product attention, named as CLIP's attention pool."""

    def __init__(self, width: int, heads: int, outputs: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: got {heads}, wanted a divisor of the width {width}")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, outputs or width)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, S, width/heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
        """Attend from (B, Q, width) over (B, S, width), to keys where `valid` (B, S) only."""
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        mask = None if valid is None else valid[:, None, None]  # over (B, heads, Q, S)
        y = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v), mask)
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """How much each query (B, Q, width) attends to each key, (B, Q, S); mean over heads."""
        q, k = self._split(self.q_proj(query)), self._split(self.k_proj(key))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)


class AttentionPool(Attention):
    """CLIP's attention pool (step 1); positions: the mean token's, then grid * grid of the map."""

    def __init__(self, channels: int, grid: int, outputs: int) -> None:
        super().__init__(channels, max(1, channels // 64), outputs)
        self.grid = grid
        self.positional_embedding = nn.Parameter(torch.randn(1 + grid**2, channels) / channels**0.5)

    def tokens(self, feature_map: Tensor) -> Tensor:
        """List (B, C, h, w) as (B, 1 + S, C): the mean token, then the map, plus positions."""
        x = feature_map.flatten(2).transpose(1, 2)
        first, rest = self.positional_embedding.split([1, self.grid**2])
        rest = resize_table(rest, self.grid, feature_map.shape[2:])
        return torch.cat([x.mean(1, keepdim=True), x], 1) + torch.cat([first, rest])

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Pool (B, C, h, w): mean token to image feature (B, D), the others to local (B, S, D)."""
        x = self.tokens(feature_map)
        y = super().forward(x, x, x, None)
        return y[:, 0], y[:, 1:]


class Layer(nn.Module):
    """Attention, MLP, CLIP's GELU; as released, `encode` normalises before and `decode` after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def mlp(self, x: Tensor) -> Tensor:
        x = self.c_fc(self.ln_2(x))
        return self.c_proj(F.silu(1.702 * x) / 1.702)  # x sigmoid(1.702 x)

    def encode(self, x: Tensor, valid: Tensor) -> Tensor:
        """Let characters (B, K, width) see those where `valid` (B, K) (step 3)."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, valid)
        return x + self.mlp(x)

    def decode(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let queries (B, Q, width) see the image tokens and not each other (step 5)."""
        query = query + self.ln_1(self.attn(query, key, value, None))
        return query + self.mlp(query)


class TextEncoder(nn.Module):
    """Transformer over each word; "sentence": over all words at once, a PE for each (L, N)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        T, self.sentence = config.text_width, config.text_encoder == "sentence"
        self.character = nn.Parameter(0.02 * torch.randn(len(Alphabet(config.alphabet)), T))
        self.position = nn.Parameter(0.01 * torch.randn(CHARS, WORDS if self.sentence else 1, T))
        self.layers = nn.ModuleList(Layer(T, config.text_heads) for _ in range(config.text_layers))
        self.ln_final = nn.LayerNorm(T)
        self.projection = nn.Linear(T, config.joint_width, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """ce_j = W_c c_j + PE_j, PE learned (step 2): (B, L, N) ids to (B, L, N, T)."""
        return F.embedding(ids, self.character) + self.position[: ids.shape[1], : ids.shape[2]]

    def forward(self, ids: Tensor) -> Tensor:
        """Encode (B, L, N) ids as (B, L, N, D), zero at pads; no character attends to a pad."""
        B, L, N = ids.shape
        first, last = (1, 2) if self.sentence else (0, 1)
        x = self.embed(ids).transpose(1, 2).flatten(first, last)  # (B*N, L, T), or (B, N*L, T)
        valid = (ids != PAD).transpose(1, 2).flatten(first, last)
        valid = valid | ~valid.any(1, keepdim=True)  # no characters: see pads, lest softmax be NaN
        for layer in self.layers:
            x = layer.encode(x, valid)  # D5
        x = self.projection(self.ln_final(x)).reshape(B, N, L, -1).transpose(1, 2)
        return x * (ids != PAD).unsqueeze(-1)


def mask_one_char(ids: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Hide one known character of every word that has one, each equally likely (step 4).

    Args: ids, (B, L, N) int64; generator, a CPU one, so devices draw alike; None: torch's own.
    Returns: ids with MASK at the drawn places; targets with the hidden ids there, else IGNORE.
    """
    draw = torch.rand(ids.shape, generator=generator, device="cpu").to(ids.device)
    winner = draw.masked_fill(ids <= UNK, -1).argmax(1, keepdim=True)
    masked = torch.zeros_like(ids, dtype=torch.bool).scatter(1, winner, True) & (ids > UNK)
    return ids.masked_fill(masked, MASK), ids.masked_fill(~masked, IGNORE)


class VisualTextualDecoder(nn.Module):
    """Reads the image tokens with the characters as queries (step 5)."""

    def __init__(self, config: Config, grid: int) -> None:
        super().__init__()
        width, heads, self.grid = config.joint_width, config.decoder_heads, grid
        self.position = nn.Parameter(torch.randn(grid**2, width) * width**-0.5)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(config.decoder_layers))
        self.ln_final = nn.LayerNorm(width)

    def forward(self, query: Tensor, local: Tensor, size: torch.Size, maps: bool = False) -> Tensor:
        """Queries (B, Q, D) read tokens (B, S, D), h*w = `size`; maps: last weights, (B, Q, S)."""
        key = local + resize_table(self.position, self.grid, size)  # values go without position
        for layer in self.layers:
            before, query = query, layer.decode(query, key, local)
        return self.layers[-1].attn.weights(before, key) if maps else self.ln_final(query)


class Output(NamedTuple):
    """What `VLPT.forward` returns; image and text features are not normalised."""

    image: Tensor  # (B, D)
    text: Tensor  # (B, D), zero for an image without words
    logits: Tensor  # (B, L, N, V), zero at pads; with `masked_only` at all but MASK
    log_scale: Tensor  # (), natural log of 1/temperature


def char_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L_cls (step 6): mean cross-entropy of logits (B, L, N, V) at the masked positions, where
    targets (B, L, N), of any device, hold the hidden ids; elsewhere they are IGNORE.

    Returns: () nats, >= 0, ln V at chance; 0, with zero gradient, where nothing is masked.
    Raises: ValueError if the shapes differ.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets: got {tuple(targets.shape)}, wanted {tuple(logits.shape[:-1])}")
    rows, wanted = logits.flatten(0, 2), targets.flatten().to(logits.device)
    total = F.cross_entropy(rows, wanted, ignore_index=IGNORE, reduction="sum")
    return total / (wanted != IGNORE).sum().clamp(min=1)


def contrastive_loss(image: Tensor, text: Tensor, log_scale: Tensor,
                     own: slice = slice(None)) -> Tensor:  # fmt: skip
    """L_bc = H(i2t) + H(t2i) over the batch's cosine similarities (step 7).

    Args: image, text, (B, D) of any norm, row b a pair; a zero text row, no words, counts nowhere;
        log_scale, ln(1/temperature), exp capped at 100 (D6); own, a process's rows, for its share.
    Returns: () nats, >= 0, 2 ln B at chance, B with words; 0 for fewer than two; shares add up.
    Raises: ValueError if the shapes differ.
    """
    if image.shape != text.shape:
        raise ValueError(f"text: got {tuple(text.shape)}, wanted {tuple(image.shape)}, as image")
    worded = text.ne(0).any(1)
    pairs = (worded.cumsum(0) - 1)[own][worded[own]]  # D7: places of own rows among the worded
    image, text = F.normalize(image[worded], dim=1), F.normalize(text[worded], dim=1)
    scale = log_scale.exp().clamp(max=100)  # D6; no gradient above, so the trainer caps it too
    i2t = F.cross_entropy(scale * image[pairs] @ text.T, pairs, reduction="sum")
    t2i = F.cross_entropy(scale * text[pairs] @ image.T, pairs, reduction="sum")
    return (i2t + t2i) / max(1, len(image))  # D3


def total_loss(output: Output, targets: Tensor, contrastive: bool = True) -> Tensor:
    """L = L_cls + L_bc, no weights (step 8); `contrastive=False` leaves L_bc out."""
    loss = char_loss(output.logits, targets)
    return loss + contrastive_loss(*output[:2], output.log_scale) if contrastive else loss


class VLPT(nn.Module):
    """Image encoder, character-aware text encoder and visual-textual decoder of one `Config`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, **config.backbone_size)
        grid, width = config.image_size // self.backbone.stride, config.joint_width
        self.pool = AttentionPool(self.backbone.channels, grid, width)
        self.text = TextEncoder(config)
        self.decoder = VisualTextualDecoder(config, grid) if config.decoder != "none" else None
        self.head = nn.Linear(width, len(Alphabet(config.alphabet)))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, images: Tensor, ids: Tensor, masked_only: bool = False) -> Output:
        """Steps 1, 2, 3, 5 on normalised images (B, 3, H, W), sides multiples of 32, and masked ids
        (B, L, N), of any device; ValueError otherwise. `masked_only`: logits at MASK, one a word.
        """
        self._check(images, ids, masked_only)
        filled = (ids != PAD).any(0)  # L, N from here: up to the last filled slot; the rest is 0
        L, N = (1 + max(filled.any(k).nonzero().flatten().tolist(), default=0) for k in (1, 0))
        used, feature_map = ids[:, :L, :N].to(images.device), self.backbone(images)[-1]
        image, local = self.pool(feature_map)
        te, valid = self.text(used), used != PAD  # te is zero at pads, so sums leave them out
        words = te.sum(1) / valid.sum(1).clamp(min=1).unsqueeze(-1)  # D1: (B, N, D)
        text = words.sum(1) / valid.any(1).sum(1, keepdim=True).clamp(min=1)  # D4
        if masked_only:  # only MASK's query, (B, 1, N, D): queries do not see each other
            valid = used == MASK
            te = (te * valid.unsqueeze(-1)).sum(1, keepdim=True)
        query, size = te.flatten(1, 2), feature_map.shape[2:]  # D2: (B, L*N or N, D)
        y = self.decoder(query, local, size) if self.decoder else query + image.unsqueeze(1)
        logits = self.head(y).unflatten(1, (-1, N)) * valid[..., None]  # one query to L, too
        logits = F.pad(logits, (0, 0, 0, ids.shape[2] - N, 0, ids.shape[1] - L))
        return Output(image, text, logits, self.log_scale)

    @torch.no_grad()
    def attention_maps(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where image and characters look, mean over heads; call eval() first; errors: `forward`'s.

        Returns: the pool's map (B, h, w), without the mean token; the last decoder layer's (B, L,
            N, h, w), seen through the pool, which mixes places. Each sums to 1, pads' too.
        """
        self._check(images, ids)
        if self.decoder is None:
            raise ValueError("decoder: got 'none', wanted 'visual_textual' for attention maps")
        feature_map = self.backbone(images)[-1]
        size, tokens = feature_map.shape[2:], self.pool.tokens(feature_map)
        places = self.pool.weights(tokens, tokens[:, 1:])  # (B, 1 + S, S): image, then local tokens
        query, local = self.text(ids.to(images.device)).flatten(1, 2), self.pool(feature_map)[1]
        characters = self.decoder(query, local, size, maps=True) @ places[:, 1:]
        return places[:, 0].unflatten(1, size), characters.reshape(*ids.shape, *size)

    def _check(self, images: Tensor, ids: Tensor, masked_only: bool = False) -> None:
        got, size = tuple(images.shape), tuple(ids.shape)
        if len(got) != 4 or got[1] != 3 or got[2] % 32 or got[3] % 32:
            raise ValueError(f"images: got {got}, wanted (B, 3, H, W), H and W multiples of 32")
        if len(size) != 3 or size[0] != got[0] or 0 in size or size[1] > CHARS or size[2] > WORDS:
            raise ValueError(f"ids: got {size}, wanted ({got[0]}, 1..{CHARS}, 1..{WORDS})")
        if masked_only and (ids == MASK).sum(1).gt(1).any():
            raise ValueError("ids: got a word with two MASK, wanted at most one for masked_only")


LAYOUTS = {  # the stem's names in CLIP, MMOCR's CLIPResNet and timm's resnetaa50d
    "native": ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
    "mmocr": ("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7"),
    "timm": ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")}  # fmt: skip


def layout_keys(backbone: Backbone, layout: str) -> dict[str, str]:
    """Map native keys to a layout's; a shortcut is -1, 0, 1 in CLIP and 0, 1, 2 elsewhere."""
    keys = {key: key for key in backbone.state_dict()}
    if layout != "native" and "conv3" in backbone:
        for key in keys:
            module, rest = key.split(".", 1)
            module = dict(zip(LAYOUTS["native"], LAYOUTS[layout], strict=True)).get(module, module)
            keys[key] = f"{module}.{rest}".replace("downsample.1", "downsample.2")
            keys[key] = keys[key].replace("downsample.0", "downsample.1")
    return keys


def export_backbone(model: VLPT | Backbone, path: str | Path, layout: str = "native",
                    **notes: object) -> None:  # fmt: skip
    """Write the backbone's weights and nothing else, whole or not at all (step 9).

    Args: path, ending in ".pt", or ".safetensors", which alone has metadata; layout, "native"
        (ours), "timm" or, for CLIP's ResNets, "mmocr"; notes, more metadata: training_data, steps.
    Raises: ValueError for another path or layout; OSError; ImportError without safetensors.
    """
    path, backbone = Path(path), model.backbone if isinstance(model, VLPT) else model
    if layout not in LAYOUTS or (layout == "mmocr" and "conv3" not in backbone):
        raise ValueError(f"layout: got {layout!r}, wanted native, timm, or mmocr for a clip_resnet")
    runs_own = path.name.startswith("checkpoint.")  # would be overwritten
    if runs_own or path.suffix not in (".pt", ".safetensors") or not path.parent.is_dir():
        raise ValueError(f"path: got {path}, wanted other .pt, .safetensors in an existing folder")
    keys = layout_keys(backbone, layout)
    state = {keys[k]: v.cpu().contiguous() for k, v in backbone.state_dict().items()}
    notes |= {"backbone": backbone.name, "layout": layout, "vlpt_version": __version__}
    notes |= {"format": "pt", "pixel_mean": list(PIXEL_MEAN), "pixel_std": list(PIXEL_STD)}
    if isinstance(model, VLPT):
        notes |= {"alphabet_size": len(model.config.alphabet)} | dict(model.config.backbone_size)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            if path.suffix == ".pt":
                torch.save(state, file)
            else:
                metadata = {key: str(value) for key, value in notes.items()}
                file.write(import_module("safetensors.torch").save(state, metadata))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_backbone(source: str | Path | Mapping[str, Any], name: str, **size: Any) -> Backbone:
    """Build `name`, see `build_backbone`, filled from an export, a checkpoint or the released one.

    Args: source, a path or the mapping that its file holds, in any layout.
    Raises: OSError; ValueError for a damaged file or other than exactly the backbone's tensors.
    """
    backbone, state = build_backbone(name, **size), read_tensors(source, "visual.", "backbone.", "")
    maps = [{v: k for k, v in layout_keys(backbone, layout).items()} for layout in LAYOUTS]
    native = max(maps, key=lambda names: len(state.keys() & names.keys()))  # the best layout
    state = {native.get(k, k): v for k, v in state.items() if not k.startswith("attnpool.")}
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:  # a line each for missing, for unknown and for misshaped keys
        told = "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:5])
        where = "source" if isinstance(source, Mapping) else source
        raise ValueError(f"{where}: not the weights of {name}: {told}") from None
    return backbone


def read_tensors(source: str | Path | Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """The tensors under the first prefix that a checkpoint has, names without that prefix."""
    held = source if isinstance(source, Mapping) else read_checkpoint(Path(source))
    state = {str(k).removeprefix("module."): v for k, v in held.get("state_dict", held).items()}
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in state)), prefixes[-1])
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the dict in a .pt or .safetensors file: tensors and plain values, no code is run."""
    path = path / "checkpoint.pt" if path.is_dir() else path  # the folder of a run
    try:
        if path.suffix == ".safetensors":
            return import_module("safetensors.torch").load_file(path)
        held = dict(torch.load(path, map_location="cpu", weights_only=True))
        return held | {"state_dict": dict(held.get("state_dict", held))}
    except (OSError, ImportError):
        raise
    except Exception as error:  # each kind of damage has its own class, in zipfile, pickle, torch
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__})") from None


def export_run(run: Path, out: Path, layout: str) -> None:
    """Export from a folder or checkpoint.pt that train_min.py left, see `export_backbone`."""
    held = read_checkpoint(run)
    try:
        model = VLPT(Config(**held["config"]))
        model.load_state_dict(held["state_dict"])
        notes = {"training_data": held["args"]["data"], "steps": held["step"]}
    except (KeyError, TypeError, RuntimeError):
        raise ValueError(f"{run}: not a checkpoint of train_min.py") from None
    export_backbone(model, out, layout, **notes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print a model's stages, or export a backbone.")
    commands = parser.add_subparsers(dest="command")
    for name in ("tiny", "oclip_rn50"):
        commands.add_parser(name, help="print each stage for a batch of two images")
    export = commands.add_parser("export", help="write the backbone of a run of train_min.py")
    export.add_argument("run", type=Path, help="runs/NAME, or a checkpoint.pt")
    export.add_argument("out", type=Path, help="a .safetensors or .pt to write")
    export.add_argument("--layout", choices=LAYOUTS, default="native", help="whose names")
    args = parser.parse_args()
    if args.command == "export":
        try:
            return export_run(args.run, args.out, args.layout)
        except (ValueError, OSError, ImportError) as error:
            parser.exit(1, f"vlpt.py: error: {error}\n")

    def report(stage: nn.Module, _inputs: object, outputs: Tensor | Sequence[Tensor]) -> None:
        shapes = [tuple(y.shape) for y in ([outputs] if isinstance(outputs, Tensor) else outputs)]
        size = sum(p.numel() for p in stage.parameters())
        print(f"{type(stage).__name__:<21}{size:>11,} parameters ->", *shapes)

    config = OCLIP_RN50 if args.command == "oclip_rn50" else TINY
    model = VLPT(config).eval()
    for stage in (*model.children(), model):
        stage.register_forward_hook(report)
    ids = Alphabet(config.alphabet).encode([config.alphabet * CHARS] * WORDS).expand(2, -1, -1)
    model(torch.zeros(2, 3, config.image_size, config.image_size), mask_one_char(ids)[0])


if __name__ == "__main__":
    main()
