"""VLPT: an unofficial PyTorch re-implementation of oCLIP in one module.

    Language Matters: A Weakly Supervised Vision-Language Pre-training Approach for Scene Text
    Detection and Spotting. Xue et al., ECCV 2022.
    Paper: https://arxiv.org/abs/2203.03911    Released code: https://github.com/bytedance/oclip
    CLIP, on which it builds: https://github.com/openai/CLIP

The method pre-trains the backbone of a text detector from images and the transcriptions of some
of the words in them, without bounding boxes. One character of every word is replaced by a MASK
token. A text encoder turns the word into one feature per character, and a decoder predicts the
masked character by letting the feature at MASK attend to the image. The idea is that this only
works well if the backbone learns what characters look like and where they are. A contrastive loss
also pulls the feature of an image towards that of its own words, masked as they are, and away from
those of other images. After training, the backbone is exported and everything else is dropped.

    images (B, 3, H, W)                  words, as ids (B, L, N)
       |                                    |  mask_one_char                        step 4
       |  backbone                          v
       v                                 ids with MASK, targets
    feature map (B, C, h, w)                |
       |  AttentionPool        step 1       |  TextEncoder                          steps 2, 3
       |                                    v
       +--> image tokens (B, S, D)       character features (B, L, N, D) --means--> text (B, D)
       |         |                          |                                         |
       |         +--> VisualTextualDecoder <+                                         |
       |                   |  head             step 5                                 |
       |              logits (B, L, N, V), targets ---> char_loss    step 6           |
       |                                                                              |
       +--> image feature (B, D) -----------> contrastive_loss <----------------------+  step 7

    B  images in a batch             V  size of the vocabulary       T  width of the text encoder
    L  characters per word, <= 25    S  image tokens, h * w; keys    D  width of the joint space
    N  words per image, <= 3 (D8)    C  channels of the feature map  Q  queries of an attention

Token ids, targets, logits and attention maps always have the order (B, L, N), characters before
words, so that the predictions for a batch have the shape (B, 25, 3).

    step                                  equation                  here                  proof
    1  image encoder                      v, f = pool(backbone(I))  VLPT.encode_image     TestStep1
    2  character embedding                ce_j = W_c c_j + PE_j     TextEncoder.embed     TestStep2
    3  text encoder, one word at a time   te = Enc(ce)              TextEncoder.forward   TestStep3
    4  mask one character, before step 2                            mask_one_char         TestStep4
    5  decoder, without self-attention    y = Dec(te, f)            VisualTextualDecoder  TestStep5
    6  masked-character loss              L_cls                     char_loss             TestStep6
    7  contrastive loss                   L_bc = H(i2t) + H(t2i)    contrastive_loss      TestStep7
    8  total loss                         loss = L_cls + L_bc       total_loss            TestStep8
    9  only the backbone is transferred                             export_backbone       TestStep9

v is the image feature and f the image tokens of the images I, c_j the one-hot vector of character
j, W_c the embedding matrix, PE_j a learned position, te the character features, y what `head` turns
into logits, H a cross-entropy, i2t image-to-text and t2i its reverse. `VLPT` chains steps 1, 2, 3
and 5. The column "proof" says how the name of a step's test class in test_vlpt.py begins.

Differences from the released code. Each is marked by its number where it occurs in this file; D10,
D11 and most of D7 and D8 are in the trainer and its data.
    D1   The feature of a word is the mean over its characters. Released: the state at its end
         token.
    D2   The query that predicts the masked character is its own feature, the one at MASK. Released:
         the state at the end token of its word. `VLPT` decodes every character, so that its
         predictions, the argmax of the logits, are (B, 25, 3); training decodes the masked ones
         alone, see `MaskedOnly`.
    D3   The contrastive loss is the sum of both directions, as in the paper. Released: half of it.
    D4   Empty word slots are left out of every mean. Released: the mean is over all 32 slots.
    D5   A character attends to its whole word, so the feature at MASK knows what follows. Released:
         a causal mask, so only the end token knows the whole word.
    D6   exp(logit_scale) is capped at 100, CLIP's limit, so the temperature is at least 0.01. The
         trainer also clamps logit_scale itself. Released: the cap is commented out.
    D7   Gradients flow through the features of all processes. Released: each of G GPUs sends the
         gradient of L_bc through its own features only. DistributedDataParallel then averages
         these G partial gradients instead of summing them, so the encoders get 1/G of the gradient
         of L_bc, but all of that of L_cls. Together with D3, L_bc weighs 2G times as much here,
         16 times for 8 GPUs as in the paper.
    D8   An image has up to 3 words, drawn anew in every epoch. Released: its first 32 words.
    D9   Matrices of attention layers are initialised with a standard deviation of width^-0.5,
         other linear layers as torch does. Released: residual projections are scaled further by
         (2 * layers)^-0.5, and the standard deviations in the decoder, the text projection, the
         head and the first layers of the MLPs are computed from the width of the text encoder.
    D10  The trainer clips gradients at 1.0 and synchronises BatchNorm. Released: neither.
    D11  Images are stretched to a square. Released: RandomResizedCrop.
    D12  There is no end token after a word. Released: an end token, for which the 25th character of
         a long word has to give way, and no UNK. Both vocabularies have 97 entries.
"""

import contextlib
import io
import os
import sys
import unicodedata
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

__version__ = "0.4.0"

MAX_CHARS = 25  # L, longer words are cut
MAX_WORDS = 3  # N (D8), images with fewer words have empty slots
PAD, MASK, UNK = 0, 1, 2  # token ids; the ids of the alphabet's characters follow
IGNORE_INDEX = -100  # the target of a position that is not masked
MAX_SCALE = 100.0  # the cap of exp(logit_scale), D6
PRINTABLE = "".join(chr(code) for code in range(33, 127))  # 94 ASCII characters, without space
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's statistics of RGB pixels in 0..1
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


# ---- Words, configuration, pixels --------------------------------------------------------------


def normalize_text(text: str) -> str:
    """Compose Unicode characters (NFC), so that the same letter always has the same spelling."""
    return unicodedata.normalize("NFC", text)


class Alphabet:
    """Maps words to token ids and back. The vocabulary is PAD, MASK, UNK and then `chars`.

    Args:
        chars: the characters that can be learned, in NFC, each once. Any other one becomes UNK.
    Raises:
        ValueError: `chars` is empty, or a character occurs twice.
    """

    mask_id = MASK  # for callers who put MASK into words themselves

    def __init__(self, chars: str = PRINTABLE) -> None:
        self.chars = "".join(map(normalize_text, chars))
        if not chars or len(set(self.chars)) != len(self.chars):
            raise ValueError(f"alphabet: expected one or more distinct characters, got {chars!r}")
        self.index = {char: k for k, char in enumerate(self.chars, start=UNK + 1)}

    def __len__(self) -> int:
        """V, the size of the vocabulary."""
        return UNK + 1 + len(self.chars)

    def encode(self, words: Sequence[str]) -> Tensor:
        """Turn the words of one image into ids.

        Args:
            words: at most 3, none empty. Words of more than 25 characters are cut.
        Returns:
            (25, 3) int64, one column per word, PAD after its end and in empty slots.
        Raises:
            ValueError: there are more than 3 words, or one is empty.
        """
        if len(words) > MAX_WORDS or "" in words:
            raise ValueError(
                f"words: expected at most {MAX_WORDS} words, none empty, got {list(words)}"
            )
        ids = torch.full((MAX_CHARS, MAX_WORDS), PAD)
        for i, word in enumerate(words):
            for j, char in enumerate(normalize_text(word)[:MAX_CHARS]):  # D12: no end token
                ids[j, i] = self.index.get(char, UNK)
        return ids

    def decode(self, ids: Tensor) -> list[str]:
        """Turn (L, N) ids into N words: MASK is "_", UNK U+FFFD, PAD and IGNORE_INDEX nothing."""
        text = ["", "_", "\ufffd", *self.chars]
        return ["".join(text[k] for k in word if k != IGNORE_INDEX) for word in ids.T.tolist()]


@dataclass(frozen=True)
class Config:
    """The sizes of a model and the paper's ablations. The defaults are those of the released code.

    Raises:
        ValueError: image_size, a number of layers or heads, text_encoder or decoder is not
            possible. Other values are checked by the layers that are built with them.
    """

    alphabet: str = PRINTABLE  # characters that can be learned
    image_size: int = 512  # height and width of training images in pixels, a multiple of 32
    backbone: str = "clip_resnet50"  # a name for build_backbone
    backbone_size: Mapping[str, Any] = field(default_factory=dict)  # keywords of build_backbone
    embed_dim: int = 384  # D
    text_width: int = 64  # T
    text_layers: int = 6
    text_heads: int = 8
    decoder_layers: int = 6
    decoder_heads: int = 8
    text_encoder: str = "character"  # ablation "sentence": all words of an image as one sequence
    decoder: str = "visual_textual"  # ablation "none": classify character + image feature
    contrastive: bool = True  # ablation False: loss = L_cls

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % 32:
            raise ValueError(f"image_size: expected a multiple of 32, got {self.image_size}")
        for name in ("text_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, width in (("text_heads", "text_width"), ("decoder_heads", "embed_dim")):
            size, heads = getattr(self, width), getattr(self, name)
            if not 1 <= heads <= size or size % heads:
                raise ValueError(f"{name}: expected a divisor of {width}, {size}, got {heads}")
        if self.text_encoder not in ("character", "sentence"):
            raise ValueError(
                f"text_encoder: expected 'character' or 'sentence', got {self.text_encoder!r}"
            )
        if self.decoder not in ("visual_textual", "none"):
            raise ValueError(f"decoder: expected 'visual_textual' or 'none', got {self.decoder!r}")


OCLIP_RN50 = Config()  # the published model
TINY = Config(  # learns to read digits on a CPU in minutes
    alphabet="0123456789",
    image_size=64,
    backbone="clip_resnet",
    backbone_size={"width": 32, "layers": (1, 2)},
    embed_dim=128,
    text_layers=1,
    decoder_layers=2,
)


def normalize(pixels: Tensor) -> Tensor:
    """Normalise RGB pixels (B, 3, H, W), uint8 in 0..255, by CLIP's mean and std, to float32."""
    # Channel by channel, since copying a tensor of constants to a GPU makes the host wait.
    channels = [(pixels[:, c] / 255 - PIXEL_MEAN[c]) / PIXEL_STD[c] for c in range(3)]
    return torch.stack(channels, dim=1)


# ---- Step 1: image encoder, a ResNet and an attention pool -------------------------------------


class Backbone(nn.Module, ABC):
    """A ResNet without its classifier. Subclasses define the stem and layer1, layer2, ...

    Parameters have the names of torchvision's and CLIP's checkpoints, which `load_backbone` reads.

    Attributes:
        name: the name that `build_backbone` knows.
        num_stages: the number of layer1, layer2, ...
        channels: channels of the last feature map, C.
        stride: image pixels per cell of the last feature map, along one side.
    """

    def __init__(self, name: str, num_stages: int, channels: int) -> None:
        super().__init__()
        self.name = name
        self.num_stages = num_stages
        self.channels = channels
        self.stride = 4 * 2 ** (num_stages - 1)  # 4 by the stem; stages after layer1 double it

    @property
    def stages(self) -> list[nn.Module]:
        """layer1, layer2, ... in order."""
        return [self.get_submodule(f"layer{k}") for k in range(1, self.num_stages + 1)]

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) into the input of layer1, with stride 4."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn (B, 3, H, W) into the feature maps of layer1, layer2, ... with strides 4, 8, ..."""
        x = self.stem(images)
        feature_maps = []
        for stage in self.stages:
            x = stage(x)
            feature_maps.append(x)
        return feature_maps


class Bottleneck(nn.Module):
    """CLIP's residual block: 1x1, 3x3 and 1x1 convolutions; average pooling instead of strides.

    After https://github.com/openai/CLIP/blob/main/clip/model.py, class Bottleneck.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn3.weight)  # a new block returns relu(shortcut)
        self.downsample = nn.Sequential()  # the shortcut, by default the identity
        if stride > 1 or in_channels != out_channels:
            self.downsample.add_module("-1", self.avgpool)  # the names in CLIP's checkpoints
            self.downsample.add_module("0", nn.Conv2d(in_channels, out_channels, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.avgpool(y)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x), inplace=True)


class CLIPResNet(Backbone):
    """CLIP's and oCLIP's ResNet: a stem of three convolutions, then stages of `Bottleneck`s.

    After https://github.com/openai/CLIP/blob/main/clip/model.py, class ModifiedResNet.
    """

    def __init__(self, name: str, layers: Sequence[int], width: int = 64) -> None:
        out_channels = 4 * width * 2 ** (len(layers) - 1)  # the last Bottleneck's
        super().__init__(name, len(layers), out_channels)
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        in_channels = width
        for k, num_blocks in enumerate(layers):
            stage_width = width * 2**k
            blocks = [Bottleneck(in_channels, stage_width, stride=1 if k == 0 else 2)]
            in_channels = 4 * stage_width
            for _ in range(num_blocks - 1):
                blocks.append(Bottleneck(in_channels, stage_width, stride=1))
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))

    def stem(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)  # stride 2
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return self.avgpool(x)  # stride 4


class TorchvisionResNet(Backbone):
    """One of torchvision's ResNets, without its pooling and classifier."""

    def __init__(self, name: str) -> None:
        resnet = torchvision.models.get_model(name, weights=None)
        super().__init__(name, 4, resnet.fc.in_features)
        for child, module in resnet.named_children():
            if child not in ("avgpool", "fc"):
                self.add_module(child, module)

    def stem(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))  # stride 2
        return self.maxpool(x)  # stride 4


TORCHVISION_BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
CLIP_BACKBONES = {"clip_resnet50": (3, 4, 6, 3), "clip_resnet101": (3, 4, 23, 3)}


def build_backbone(name: str, **size: Any) -> Backbone:
    """Build an image backbone with random weights.

    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101" (torchvision's), "clip_resnet50",
            "clip_resnet101" (CLIP's), or "clip_resnet" for other sizes of CLIP's.
        size: only for "clip_resnet": `layers`, the number of blocks in each of one to four stages,
            and `width`, 64 unless given.
    Raises:
        ValueError: the name is unknown, or `size` does not fit the name.
    """
    names = (*TORCHVISION_BACKBONES, *CLIP_BACKBONES, "clip_resnet")
    if name not in names:
        raise ValueError(f"backbone: expected one of {', '.join(names)}, got {name!r}")
    if name == "clip_resnet":
        if (
            not {"layers"} <= size.keys() <= {"layers", "width"}
            or not 1 <= len(size["layers"]) <= 4
            or min(size["layers"]) < 1
        ):
            raise ValueError(
                "backbone_size: expected layers (one to four positive numbers) and optionally "
                f"width for clip_resnet, got {size}"
            )
        return CLIPResNet(name, **size)
    if size:
        raise ValueError(f"backbone_size: expected nothing for {name}, got {size}")
    if name in CLIP_BACKBONES:
        return CLIPResNet(name, CLIP_BACKBONES[name])
    return TorchvisionResNet(name)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention, with the parameter names of CLIP's attention pool.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, out_width: int | None = None) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, out_width or width)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)  # D9: the same for every projection
            nn.init.zeros_(layer.bias)

    def split_heads(self, x: Tensor) -> Tensor:
        """Turn (B, S, width) into (B, heads, S, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Attend from queries to keys.

        Args:
            query: (B, Q, width).
            key, value: (B, S, width).
            valid: (B, S) bool, the keys that may be attended to; None for all. B counts sequences.
        Returns:
            (B, Q, out_width).
        """
        q = self.split_heads(self.q_proj(query))  # (B, heads, Q, width/heads)
        k = self.split_heads(self.k_proj(key))  # (B, heads, S, width/heads)
        v = self.split_heads(self.v_proj(value))  # (B, heads, S, width/heads)
        allowed = None if valid is None else valid[:, None, None, :]  # for all heads and queries
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def attention_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """How much each query attends to each key, (B, Q, S), the mean over heads; for figures."""
        q = self.split_heads(self.q_proj(query))  # (B, heads, Q, width/heads)
        k = self.split_heads(self.k_proj(key))  # (B, heads, S, width/heads)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, heads, Q, S)
        return scores.softmax(dim=-1).mean(dim=1)


def interpolate_pos_embed(table: Tensor, side: int, grid: Sequence[int]) -> Tensor:
    """Resize a table of positions (side * side, C) to a grid of h * w positions, (h * w, C)."""
    if tuple(grid) == (side, side):
        return table
    table_2d = table.T.reshape(1, -1, side, side)  # (1, C, side, side)
    table_2d = F.interpolate(table_2d, size=tuple(grid), mode="bicubic")  # (1, C, h, w)
    return table_2d[0].flatten(1).T


class AttentionPool(Attention):
    """Turns a feature map into one image feature and a token for each of its cells.

    As in CLIP, the mean of the map is prepended as a further token, a learned position is added to
    every token, and the output at the mean token is the image feature. oCLIP also keeps the
    outputs at the other tokens, as input of its decoder. It is an `Attention`, instead of having
    one, because in CLIP's checkpoints q_proj and the others belong to the pool itself.
    After https://github.com/openai/CLIP/blob/main/clip/model.py, class AttentionPool2d.

    Args:
        channels: C of the feature map.
        side: height and width of the feature map in training. Other sizes interpolate positions.
        embed_dim: D.
    """

    def __init__(self, channels: int, side: int, embed_dim: int) -> None:
        heads = max(1, channels // 64)  # CLIP's rule
        super().__init__(channels, heads, out_width=embed_dim)
        self.side = side
        positions = torch.randn(1 + side * side, channels) * channels**-0.5
        self.positional_embedding = nn.Parameter(positions)

    def to_tokens(self, feature_map: Tensor) -> Tensor:
        """Turn (B, C, h, w) into (B, 1 + S, C): the mean token, then the cells, with positions."""
        cells = feature_map.flatten(2).transpose(1, 2)  # (B, S, C)
        mean = cells.mean(dim=1, keepdim=True)  # (B, 1, C)
        mean_position = self.positional_embedding[:1]
        cell_positions = self.positional_embedding[1:]
        cell_positions = interpolate_pos_embed(cell_positions, self.side, feature_map.shape[2:])
        return torch.cat([mean + mean_position, cells + cell_positions], dim=1)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Turn (B, C, h, w) into the image feature (B, D) and the image tokens (B, S, D)."""
        tokens = self.to_tokens(feature_map)
        pooled = super().forward(tokens, tokens, tokens)  # (B, 1 + S, D)
        return pooled[:, 0], pooled[:, 1:]


# ---- Steps 2 and 3: character embedding and text encoder ---------------------------------------


class MLP(nn.Module):
    """The two-layer perceptron of a Transformer layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        x = x * torch.sigmoid(1.702 * x)  # QuickGELU, CLIP's approximation of GELU
        return self.c_proj(x)


class EncoderLayer(nn.Module):
    """A pre-norm Transformer layer, CLIP's ResidualAttentionBlock."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Turn (B, S, width) into the same shape; only `valid` (B, S) tokens are attended to."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, valid)
        return x + self.mlp(self.ln_2(x))


class TextEncoder(nn.Module):
    """The character-aware text encoder: a Transformer over the characters of one word.

    Each word is a sequence of its own, so the words of an image never see each other, and a
    position is that of a character in its word.
    """

    words_per_sequence = 1  # the words of an image share their positions

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(len(Alphabet(config.alphabet)), width)
        positions = torch.empty(MAX_CHARS, self.words_per_sequence, width)
        self.positional_embedding = nn.Parameter(positions)
        nn.init.normal_(self.token_embedding.weight, std=0.02)  # both as in CLIP
        nn.init.normal_(self.positional_embedding, std=0.01)
        layers = [EncoderLayer(width, config.text_heads) for _ in range(config.text_layers)]
        self.layers = nn.ModuleList(layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, config.embed_dim, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """Step 2, ce_j = W_c c_j + PE_j with learned PE: (B, L, N) ids to (B, L, N, T)."""
        L, N = ids.shape[1:]
        # (L, 1, T), the same for every word; for SentenceEncoder (L, N, T)
        positions = self.positional_embedding[:L, :N]
        return self.token_embedding(ids) + positions

    def to_sequences(self, x: Tensor) -> Tensor:
        """Turn (B, L, N, ...) into one sequence per word, (B * N, L, ...)."""
        return x.transpose(1, 2).flatten(0, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Step 3, te = Enc(ce): (B, L, N) ids to (B, L, N, D).

        No character ever attends to a pad. The output at a pad has no meaning and affects no loss.
        The shapes below are those of one word per sequence.
        """
        B, L, N = ids.shape
        x = self.to_sequences(self.embed(ids))  # (B * N, L, T)
        valid = self.to_sequences(ids != PAD)  # (B * N, L)
        # Not every kernel defines attention to no key, so the pads of an empty slot attend to each
        # other.
        valid = valid | ~valid.any(dim=1, keepdim=True)
        for layer in self.layers:
            x = layer(x, valid)  # D5: no causal mask
        x = self.text_projection(self.ln_final(x))  # (B * N, L, D)
        x = x.reshape(B, N, L, -1)  # the inverse of flatten, for words and for sentences
        return x.transpose(1, 2)  # (B, L, N, D)


class SentenceEncoder(TextEncoder):
    """The paper's ablation: all words of an image are one sequence of N * L positions."""

    words_per_sequence = MAX_WORDS  # each with positions of its own

    def to_sequences(self, x: Tensor) -> Tensor:
        """Turn (B, L, N, ...) into one sequence per image, (B, N * L, ...)."""
        return x.transpose(1, 2).flatten(1, 2)


def mean_where(x: Tensor, included: Tensor, dim: int) -> Tensor:
    """The mean of x (..., D) along `dim` where `included` (...) is true; zero if it nowhere is."""
    included = included.unsqueeze(-1)
    return (x * included).sum(dim) / included.sum(dim).clamp(min=1)


# ---- Step 4: masking, which happens before step 2 ----------------------------------------------


def mask_one_char(ids: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Replace one character of every word by MASK, each character with the same probability.

    PAD and UNK are never masked, so a word without a known character stays as it is.

    Args:
        ids: (B, L, N) int64.
        generator: one on the CPU, so that a run draws the same on every kind of device; None for
            torch's global generator.
    Returns:
        The ids with MASK, (B, L, N), and the targets, (B, L, N): the id that was replaced where
        MASK is, and IGNORE_INDEX everywhere else.
    """
    can_be_masked = ids > UNK
    scores = torch.rand(ids.shape, generator=generator).to(ids.device)
    scores = scores.masked_fill(~can_be_masked, -1)
    position = scores.argmax(dim=1, keepdim=True)  # (B, 1, N), one in each word slot
    is_drawn = torch.zeros_like(can_be_masked).scatter(1, position, True)  # (B, L, N)
    masked = is_drawn & can_be_masked  # nothing in slots without a known character
    return ids.masked_fill(masked, MASK), ids.masked_fill(~masked, IGNORE_INDEX)


# ---- Step 5: visual-textual decoder ------------------------------------------------------------


class DecoderLayer(nn.Module):
    """Cross-attention and an MLP, without self-attention, so queries never see each other.

    As in the released code, one LayerNorm follows the attention, before its residual sum, and the
    other precedes the MLP.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let queries (B, Q, width) attend to keys and values (B, S, width)."""
        query = query + self.ln_1(self.attn(query, key, value))
        return query + self.mlp(self.ln_2(query))


class VisualTextualDecoder(nn.Module):
    """Lets the characters attend to the image: y = Dec(te, f).

    Keys are the image tokens plus a learned position; values are the image tokens alone.

    Args:
        config: the model's sizes.
        side: height and width of the feature map in training. Other sizes interpolate positions.
    """

    def __init__(self, config: Config, side: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.side = side
        self.positional_embedding = nn.Parameter(torch.randn(side * side, width) * width**-0.5)
        layers = [DecoderLayer(width, config.decoder_heads) for _ in range(config.decoder_layers)]
        self.layers = nn.ModuleList(layers)
        self.ln_final = nn.LayerNorm(width)

    def add_positions(self, image_tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Turn image tokens (B, S, D) of a grid (h, w) into keys (B, S, D)."""
        return image_tokens + interpolate_pos_embed(self.positional_embedding, self.side, grid)

    def forward(self, query: Tensor, image_tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Turn queries (B, Q, D) and tokens (B, S, D) of a grid (h, w) into (B, Q, D)."""
        key = self.add_positions(image_tokens, grid)
        for layer in self.layers:
            query = layer(query, key, image_tokens)
        return self.ln_final(query)

    def attention_weights(self, query: Tensor, image_tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """How much each query attends to each token in the last layer, (B, Q, S)."""
        key = self.add_positions(image_tokens, grid)
        *earlier_layers, last_layer = self.layers
        for layer in earlier_layers:
            query = layer(query, key, image_tokens)
        return last_layer.attn.attention_weights(query, key)


# ---- The model ---------------------------------------------------------------------------------


def autocast_off(x: Tensor) -> torch.autocast:
    """A context without autocast: operations keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)


def to_float32(x: Tensor) -> Tensor:
    """Raise half precision to float32 and leave float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Output(NamedTuple):
    """What the model returns. The image and text features are not L2-normalised."""

    image: Tensor  # (B, D)
    text: Tensor  # (B, D), zero for an image without words
    logits: Tensor  # (B, L, N, V), without meaning at pads
    logit_scale: Tensor  # (), the natural logarithm of 1 / temperature


class VLPT(nn.Module):
    """Image encoder, text encoder and decoder, in the sizes of a `Config`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, **config.backbone_size)
        side = config.image_size // self.backbone.stride
        self.pool = AttentionPool(self.backbone.channels, side, config.embed_dim)
        is_sentence = config.text_encoder == "sentence"
        self.text = SentenceEncoder(config) if is_sentence else TextEncoder(config)
        self.decoder = None if config.decoder == "none" else VisualTextualDecoder(config, side)
        self.head = nn.Linear(config.embed_dim, len(Alphabet(config.alphabet)))
        # As in CLIP, the temperature starts at 0.07. Without the contrastive loss it has no use.
        logit_scale = torch.tensor(1 / 0.07).log()
        self.logit_scale = nn.Parameter(logit_scale, requires_grad=config.contrastive)

    def forward(self, images: Tensor, ids: Tensor) -> Output:
        """Steps 1, 2, 3 and 5.

        Args:
            images: (B, 3, H, W) as `normalize` returns them, H and W multiples of 32, also for a
                backbone with fewer than four stages, whose stride is smaller.
            ids: (B, L, N) int64 as `mask_one_char` returns them. L is at most 25 and N at most 3;
                what is PAD in the whole batch may be cut off at the end of either.
        Raises:
            ValueError: the shape of an argument does not fit.
        """
        check_shapes(images, ids)
        image, image_tokens, grid = self.encode_image(images)  # (B, D), (B, S, D), (h, w)
        char_features, text = self.encode_text(ids)  # (B, L, N, D), (B, D)
        logits = self.decode(char_features, image, image_tokens, grid)  # (B, L, N, V)
        return Output(image, text, logits, self.logit_scale)

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Step 1: images (B, 3, H, W) to image feature (B, D), image tokens (B, S, D), (h, w)."""
        feature_map = self.backbone(images)[-1]  # (B, C, h, w)
        image, image_tokens = self.pool(feature_map)
        h, w = feature_map.shape[2:]
        return image, image_tokens, (h, w)

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Steps 2 and 3: ids (B, L, N) to character features (B, L, N, D) and text feature (B, D).

        A word's feature is the mean over its characters, and the text feature the mean over the
        words of the image. In training the words are masked, as in the released code.
        """
        is_char = ids != PAD  # (B, L, N)
        is_word = is_char.any(dim=1)  # (B, N)
        char_features = self.text(ids)  # (B, L, N, D)
        word_features = mean_where(char_features, is_char, dim=1)  # (B, N, D), D1: a mean
        text = mean_where(word_features, is_word, dim=1)  # (B, D), D4: without empty slots
        return char_features, text

    def decode(
        self, char_features: Tensor, image: Tensor, image_tokens: Tensor, grid: Sequence[int]
    ) -> Tensor:
        """Step 5: character features (B, L, N, D) to logits (B, L, N, V) over the vocabulary.

        The image tokens (B, S, D) are those of a feature map of the size `grid`, (h, w). The image
        feature (B, D) is read by the ablation decoder="none" alone.
        """
        query = char_features.flatten(1, 2)  # (B, L * N, D), D2: the characters' own features
        if self.decoder is None:
            y = query + image.unsqueeze(1)
        else:
            y = self.decoder(query, image_tokens, grid)  # (B, L * N, D)
        with autocast_off(y):  # in bfloat16 a logit of 8.03 would become 8
            logits = self.head(y.to(self.head.weight.dtype))  # (B, L * N, V)
        return logits.unflatten(1, char_features.shape[1:3])

    @torch.no_grad()
    def attention_maps(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where the image feature and each character look, for figures. Call `eval()` first.

        The decoder attends to image tokens, which the pool has already mixed over the image. As a
        heuristic, the last decoder layer's weights are multiplied by the pool's weights, which
        tells where the attended tokens come from. All weights are means over the heads.

        Args:
            images, ids: as for `forward`.
        Returns:
            The pool's map for the image feature, (B, h, w), and the map of every character,
            (B, L, N, h, w). Both leave out the mean token, and each map sums to 1.
        Raises:
            ValueError: a shape does not fit, or the model has no decoder.
        """
        check_shapes(images, ids)
        if self.decoder is None:
            raise ValueError("decoder: attention maps need 'visual_textual', got 'none'")
        feature_map = self.backbone(images)[-1]
        h, w = feature_map.shape[2:]
        tokens = self.pool.to_tokens(feature_map)
        pool_weights = self.pool.attention_weights(tokens, tokens[:, 1:])  # (B, 1 + S, S)
        image_map = pool_weights[:, 0]  # (B, S)
        _, image_tokens = self.pool(feature_map)
        query = self.text(ids).flatten(1, 2)  # (B, L * N, D)
        decoder_weights = self.decoder.attention_weights(query, image_tokens, (h, w))
        char_maps = decoder_weights @ pool_weights[:, 1:]  # (B, L * N, S)
        return image_map.unflatten(1, (h, w)), char_maps.reshape(*ids.shape, h, w)


class MaskedOnly(nn.Module):
    """The model as it is trained: it decodes only the masked character of each word.

    The loss looks at no other position and queries do not see each other, so losses and gradients
    are those of the whole model. It is a module so that DistributedDataParallel can wrap it.
    """

    def __init__(self, model: VLPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, ids: Tensor, targets: Tensor) -> tuple[Output, Tensor]:
        """As `VLPT.forward`, for one position of each word.

        Args:
            images, ids: as for `VLPT.forward`.
            targets: (B, L, N) with at most one target per word, as `mask_one_char` returns them.
        Returns:
            An output whose logits are (B, 1, N, V), and its targets, (B, 1, N).
        """
        check_shapes(images, ids)
        image, image_tokens, grid = self.model.encode_image(images)
        char_features, text = self.model.encode_text(ids)
        masked_features, targets = select_masked(char_features, targets)
        logits = self.model.decode(masked_features, image, image_tokens, grid)  # (B, 1, N, V)
        return Output(image, text, logits, self.model.logit_scale), targets


def select_masked(char_features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The feature of each word's masked character, (B, 1, N, D), and its target, (B, 1, N).

    A slot without a target gives its first position, whose target is IGNORE_INDEX.
    """
    position = (targets != IGNORE_INDEX).int().argmax(dim=1, keepdim=True)  # (B, 1, N)
    features = char_features.take_along_dim(position.unsqueeze(-1), dim=1)
    return features, targets.gather(1, position)


def check_shapes(images: Tensor, ids: Tensor) -> None:
    """Raise a ValueError that names the argument whose shape does not fit."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] % 32 or shape[3] % 32 or 0 in shape:
        raise ValueError(
            f"images: expected shape (B, 3, H, W) with H and W multiples of 32, got {shape}"
        )
    B, L, N = len(images), MAX_CHARS, MAX_WORDS
    shape = tuple(ids.shape)
    if len(shape) != 3 or shape[0] != B or shape[1] > L or shape[2] > N or 0 in shape:
        raise ValueError(f"ids: expected shape ({B}, 1..{L}, 1..{N}), got {shape}")


# ---- Steps 6, 7 and 8: losses ------------------------------------------------------------------


def char_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L_cls, step 6: the mean cross-entropy over the masked characters.

    Args:
        logits: (B, L, N, V).
        targets: (B, L, N) int64, the masked character's id, IGNORE_INDEX where nothing is masked.
    Returns:
        A scalar in nats, at least 0, and 0 with zero gradient if nothing is masked. Guessing
        evenly among the alphabet's characters gives ln(V - 3), as PAD, MASK and UNK are never
        targets. Guessing by their frequencies gives the entropy of the targets, a fairer baseline.
    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape[:-1] != targets.shape:
        expected, got = tuple(logits.shape[:-1]), tuple(targets.shape)
        raise ValueError(f"targets: expected shape {expected} as in logits, got {got}")
    logits = to_float32(logits).flatten(0, 2)  # (B * L * N, V)
    targets = targets.flatten()
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (targets != IGNORE_INDEX).sum().clamp(min=1)  # torch's mean of none is NaN


def contrastive_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, is_pair: Tensor | None = None
) -> Tensor:
    """L_bc = H(i2t) + H(t2i), step 7: pairs of image and text against the rest of the batch.

    Args:
        image, text: (B, D), row b of both is a pair. They are L2-normalised here.
        logit_scale: scalar, ln(1 / temperature). Its exponential is capped at 100 (D6). Above the
            cap it has no gradient and would be stuck. A trainer therefore has to clamp it to
            slightly less than ln(100), as train_min.train_step does. At ln(100) itself, which
            float32 rounds up, the exponential would already be above 100.
        is_pair: (B,) bool, the rows that take part. Others are neither pairs nor negatives of
            other pairs. None: all take part.
    Returns:
        A scalar in nats, at least 0: the sum of both directions (D3), each a mean over the pairs.
        For n pairs it is 2 ln n at chance. For fewer than two it is 0, with zero gradient.
    Raises:
        ValueError: the shapes differ.
    """
    if image.shape != text.shape:
        expected, got = tuple(image.shape), tuple(text.shape)
        raise ValueError(f"text: expected shape {expected} as image, got {got}")
    if is_pair is None:
        is_pair = torch.ones(len(image), dtype=torch.bool, device=image.device)
    image = F.normalize(to_float32(image), dim=1)
    text = F.normalize(to_float32(text), dim=1)
    scale = logit_scale.exp().clamp(max=MAX_SCALE)  # D6
    with autocast_off(image):
        logits = scale * image @ text.T  # (B, B), image i against text j
    # A row that is no pair gets no label, and as a column the lowest logit: a probability of 0.
    # Selecting the pairs instead would make the host wait for the GPU.
    labels = torch.arange(len(image), device=image.device).masked_fill(~is_pair, IGNORE_INDEX)
    lowest = torch.finfo(logits.dtype).min
    i2t = logits.masked_fill(~is_pair, lowest)
    t2i = logits.T.masked_fill(~is_pair, lowest)
    loss_i2t = F.cross_entropy(i2t, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    loss_t2i = F.cross_entropy(t2i, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return (loss_i2t + loss_t2i) / is_pair.sum().clamp(min=1)  # D3: not halved


def total_loss(output: Output, targets: Tensor, contrastive: bool = True) -> Tensor:
    """loss = L_cls + L_bc, step 8, without weights.

    An image without a target counts in neither loss: it has no words, or none of their characters
    is in the alphabet.

    Args:
        output: of `VLPT` or `MaskedOnly`. To train with several processes, first gather the
            outputs and targets of all of them, in a way that gradients pass through (D7).
        targets: those of `output.logits`: (B, L, N) from `mask_one_char` for `VLPT`, or the
            (B, 1, N) that `MaskedOnly` returns.
        contrastive: the model's `config.contrastive`; False is the ablation loss = L_cls.
    Returns:
        A scalar in nats, at least 0; it is 0, with a gradient of 0, if nothing is masked.
    Raises:
        ValueError: the shapes of logits and targets differ.
    """
    loss = char_loss(output.logits, targets)
    if contrastive:
        has_target = (targets != IGNORE_INDEX).flatten(1).any(dim=1)  # (B,)
        loss = loss + contrastive_loss(output.image, output.text, output.logit_scale, has_target)
    return loss


# ---- Step 9: export and loading of the backbone ------------------------------------------------

# The stem of CLIP's ResNet has other names in each library. "native" are CLIP's own, "mmocr" those
# of MMOCR's CLIPResNet, and "timm" those of timm's resnetaa50d.
LAYOUTS = {
    "native": ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
    "mmocr": ("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7"),
    "timm": ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"),
}


def layout_keys(backbone: Backbone, layout: str) -> dict[str, str]:
    """Map the names of a backbone's tensors to their names in a layout.

    torchvision's ResNets have the same names in timm; MMOCR's layout exists for CLIP's only.
    """
    keys = {key: key for key in backbone.state_dict()}
    if layout == "native" or isinstance(backbone, TorchvisionResNet):
        return keys
    stem = dict(zip(LAYOUTS["native"], LAYOUTS[layout], strict=True))
    for key in keys:
        module, rest = key.split(".", maxsplit=1)
        renamed = f"{stem.get(module, module)}.{rest}"
        # The parts of a shortcut, pooling, convolution and norm, are numbered -1, 0, 1 by CLIP and
        # 0, 1, 2 by timm and MMOCR. The norm comes first, so that no name is changed twice.
        renamed = renamed.replace("downsample.1.", "downsample.2.")
        renamed = renamed.replace("downsample.0.", "downsample.1.")
        keys[key] = renamed
    return keys


def export_backbone(
    model: VLPT | Backbone, path: str | Path, layout: str = "native", **notes: object
) -> None:
    """Write the weights of the backbone alone, running statistics included.

    Args:
        model: a `VLPT`, not wrapped for several GPUs, or a backbone.
        path: a file in an existing folder, whose name ends in ".pt" or ".safetensors". The latter
            needs the package safetensors and also holds metadata: backbone, layout, pixel
            statistics, version and, for a `VLPT`, the size of its alphabet and `backbone_size`.
        layout: whose names the tensors get: "native" (CLIP's or torchvision's), "timm", or "mmocr",
            which is for CLIP's ResNets only.
        notes: more metadata, for example training_data="synth". A .pt file holds no metadata.
    Raises:
        ValueError: the ending or the layout is not possible, or the folder does not exist.
        OSError: the file cannot be written. A file that was there before is not changed.
        ImportError: the package safetensors is missing.
    """
    path = Path(path)
    backbone = model.backbone if isinstance(model, VLPT) else model
    layouts = ["native", "timm"] if isinstance(backbone, TorchvisionResNet) else list(LAYOUTS)
    if layout not in layouts:
        expected = ", ".join(layouts)
        raise ValueError(f"layout: expected one of {expected} for {backbone.name}, got {layout!r}")
    if path.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"path: expected a name that ends in .pt or .safetensors, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"path: expected a file in an existing folder, got {path}")
    keys = layout_keys(backbone, layout)
    state = {keys[k]: tensor.cpu().contiguous() for k, tensor in backbone.state_dict().items()}
    metadata: dict[str, object] = {
        **notes,
        "format": "pt",  # safetensors' own note that the tensors are torch's
        "backbone": backbone.name,
        "layout": layout,
        "pixel_mean": list(PIXEL_MEAN),
        "pixel_std": list(PIXEL_STD),
        "vlpt_version": __version__,
    }
    if isinstance(model, VLPT):
        metadata["alphabet_size"] = len(Alphabet(model.config.alphabet).chars)
        metadata |= model.config.backbone_size
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        content = save(state, {key: str(value) for key, value in metadata.items()})
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    write_atomically(path, content)


def load_backbone(source: str | Path | Mapping[str, Any], name: str, **size: Any) -> Backbone:
    """Build a backbone with the weights of an export, our checkpoint or the released one.

    Args:
        source: a file, or the mapping that it holds. The layout is recognised by the names.
        name, size: as for `build_backbone`.
    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or its tensors are not exactly those of this backbone.
        ImportError: it is a .safetensors file and the package is missing.
    """
    backbone = build_backbone(name, **size)
    state = read_tensors(source, "visual.", "backbone.", "")  # released, `VLPT`, bare backbone
    # CLIP's pool and torchvision's classifier are no part of the backbone.
    state = {k: v for k, v in state.items() if not k.startswith(("attnpool.", "fc."))}
    # Of all layouts, take the one that shares the most names with the file.
    layouts = [layout_keys(backbone, layout) for layout in LAYOUTS]
    best = max(layouts, key=lambda keys: len(state.keys() & set(keys.values())))
    native_keys = {theirs: ours for ours, theirs in best.items()}
    renamed = {native_keys.get(key, key): value for key, value in state.items()}
    file = "source" if isinstance(source, Mapping) else source
    if len(renamed) < len(state):
        raise ValueError(f"{file}: expected the names of one layout, got those of several")
    try:
        backbone.load_state_dict(renamed)
    except RuntimeError as error:
        # torch writes one line each for missing keys, unexpected keys and other shapes.
        lines = [line.strip()[:200] for line in str(error).splitlines()[1:5]]
        raise ValueError(f"{file}: not the weights of {name}: {'; '.join(lines)}") from None
    return backbone


def read_tensors(source: str | Path | Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """Return the tensors of a checkpoint whose names begin with a prefix, without that prefix.

    Of several prefixes the first one that occurs is used; if none does, the result is empty.
    Leading "module." is always removed. For example `read_tensors(path, "visual.attnpool.")` is
    the pool of the released checkpoint.
    """
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source)
    state = checkpoint.get("state_dict", checkpoint)
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    for prefix in prefixes:
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if found:
            return found
    return {}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the dictionary in a .pt or .safetensors file. No code in the file is executed.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or of another kind.
        ImportError: it is a .safetensors file and the package is missing.
    """
    path = Path(path)
    if is_torchscript(path):
        raise ValueError(
            f"{path}: expected a checkpoint, got a TorchScript archive; if you trust it, convert "
            "it with torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        checkpoint = dict(torch.load(path, map_location="cpu", weights_only=True))
        dict(checkpoint.get("state_dict", {}))  # fails if it is not a mapping
        return checkpoint
    except (OSError, ImportError):
        raise
    except Exception as error:  # every kind of damage raises an exception of its own
        raise ValueError(
            f"{path}: expected a checkpoint of tensors and plain values, got a damaged file or "
            f"other Python objects ({type(error).__name__})"
        ) from None


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI's CLIP checkpoints are."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return False  # no archive or a damaged one; reading it will say what is wrong


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and onto the disk, so that no crash leaves half of it."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); the file is as it was before"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # its error would hide the one above
            part.unlink(missing_ok=True)


def print_shapes(config: Config) -> None:
    """Run a model on two blank images and print the size and the output of each of its parts."""
    model = VLPT(config).eval()
    ids = Alphabet(config.alphabet).encode([config.alphabet[:MAX_CHARS]] * MAX_WORDS)
    masked_ids, targets = mask_one_char(ids.expand(2, -1, -1))
    images = torch.zeros(2, 3, config.image_size, config.image_size)

    def report(part: nn.Module, _inputs: Any, outputs: Any) -> None:
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        shapes = " ".join(str(tuple(tensor.shape)) for tensor in outputs)
        parameters = sum(p.numel() for p in part.parameters())
        print(f"{type(part).__name__:<21}{parameters:>11,} parameters -> {shapes}")

    for part in (*model.children(), model):
        part.register_forward_hook(report)
    print(f"{'mask_one_char':<44} -> {tuple(masked_ids.shape)} {tuple(targets.shape)}")
    model(images, masked_ids)


if __name__ == "__main__":
    presets = {"tiny": TINY, "oclip_rn50": OCLIP_RN50}
    preset = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    if preset not in presets:
        sys.exit(f"vlpt.py: error: expected one of {', '.join(presets)}, got {preset!r}")
    print_shapes(presets[preset])
