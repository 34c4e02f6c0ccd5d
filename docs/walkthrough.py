# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # VLPT, one picture through all nine steps
#
# This page goes with the paper, [*Language Matters* (Xue et al., ECCV
# 2022)](https://arxiv.org/abs/2203.03911), and with the file
# `vlpt.py`, which re-implements its method, oCLIP. It takes
# one picture of a number through the nine steps of that file, with the model that `make demo` has
# trained. Each step shows the equation, calls the function of `vlpt.py` that computes it, and
# prints or draws the result. Each `assert` checks a sentence of the text. The page is the output of
# the program `docs/walkthrough.py`, which stops at the first `assert` that fails, so that all of
# them hold for the model shown here. The equations need a connection to the network, since the page
# loads MathJax to draw them.
#
# The letters are those of `vlpt.py`:
#
# | letter | meaning |
# |---|---|
# | $B$ | images in a batch |
# | $L$ | characters per word, at most 25 |
# | $N$ | words per image, at most 3 |
# | $V$ | entries of the vocabulary: PAD, MASK, UNK and the ten digits |
# | $C$ | channels of the backbone's feature map |
# | $S$ | image tokens, one for each cell of the feature map |
# | $T$ | width of the text encoder |
# | $D$ | width of the joint space of images and texts |
#
# In the code, `data_stub` renders the pictures. Functions named `draw_...` only draw, and the page
# does not show them.

# %%
import json
import math
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchvision

import data_stub
import vlpt
from training.dataset import Pretraining, collate
from training.gallery import draw_heat

# %% tags=["remove-input"]
# Drawing only. The page does not show this cell.
plt.rcParams.update({"font.size": 12, "axes.titlesize": 12, "figure.dpi": 110})
BLUE, ORANGE, GREY = "#2f7fc1", "#d9701a", "#8a8a8a"


def new_figure(rows, columns, width, height, **keywords):
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **keywords)


def no_ticks(axes):
    axes.set(xticks=[], yticks=[])


def draw_ids(alphabet, ids, masked_ids, targets):
    """Three tables (L, N): ids, ids with MASK and targets; positions run from left to right."""
    names = {vlpt.PAD: "PAD", vlpt.MASK: "MASK", vlpt.UNK: "UNK", vlpt.IGNORE_INDEX: "ignore"}
    names |= {id_: f"“{char}”" for char, id_ in alphabet.index.items()}
    titles = ("ids of the words", "masked ids, the model's input", "targets, for the loss alone")
    _, all_axes = new_figure(3, 1, 7, 6.6)
    for axes, table, title in zip(all_axes, (ids, masked_ids, targets), titles, strict=True):
        shown = table[:6].T  # (N, 6)
        colors = torch.where(shown > vlpt.UNK, 2, torch.where(shown == vlpt.MASK, 3, 0))
        axes.imshow(colors.numpy(), "Pastel1_r", vmin=0, vmax=8, aspect="auto")
        for i, word_ids in enumerate(shown.tolist()):
            for j, id_ in enumerate(word_ids):
                axes.text(j, i, f"{id_}\n{names[id_]}", ha="center", va="center", fontsize=11)
        axes.set_yticks(range(len(shown)), [f"word {i}" for i in range(len(shown))])
        axes.set_xticks(range(shown.shape[1]), [f"j = {j}" for j in range(shown.shape[1])])
        axes.tick_params(length=0)
        axes.set_title(title)


def draw_image_tokens(pixels, image_map):
    """The picture, the same with the cells of the feature map, and the pool's attention."""
    h, w = image_map.shape
    height, width = pixels.shape[1:]
    _, all_axes = new_figure(1, 2, 7, 3.9)
    all_axes[0].imshow(pixels.permute(1, 2, 0).numpy())
    for k in range(1, h):
        all_axes[0].axhline(k * height / h - 0.5, color="white", linewidth=0.8)
    for k in range(1, w):
        all_axes[0].axvline(k * width / w - 0.5, color="white", linewidth=0.8)
    all_axes[0].set_title(f"the picture, cut into\n{h} by {w} cells, one per image token")
    draw_heat(all_axes[1], pixels, image_map)
    all_axes[1].set_title("where the image feature looks\n(bright = more attention)")
    for axes in all_axes:
        no_ticks(axes)


def draw_influence(influence, rows, columns):
    """Which input each character feature depends on."""
    _, axes = new_figure(1, 1, 7, 5.6)
    axes.imshow(influence.numpy(), "Blues", vmin=0, vmax=1.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks([x - 0.5 for x in range(len(columns) + 1)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(len(rows) + 1)], minor=True)
    axes.grid(which="minor", color="#cccccc", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("input at this position (· is PAD)")
    axes.set_ylabel("feature of this character")
    axes.set_title("blue: the feature depends on the input")


def draw_reading(rows):
    """For each (title, pixels, map, names, probabilities): picture, attention and five guesses."""
    _, grid = new_figure(len(rows), 2, 7, 3.6 * len(rows))
    for (left, right), (title, pixels, heat, names, probabilities, answer) in zip(
        grid, rows, strict=True
    ):
        draw_heat(left, pixels, heat)
        no_ticks(left)
        left.set_title(f"{title}:\nwhere the decoder looks")
        colors = [ORANGE if name == answer else BLUE for name in names]
        right.barh(range(len(names)), probabilities, color=colors)
        right.set_yticks(range(len(names)), names)
        right.invert_yaxis()
        right.set(xlim=(0, 1.25), xticks=[0, 0.5, 1])
        for y, p in enumerate(probabilities):
            right.text(p + 0.02, y, f"{p:.3f}", va="center")
        right.set_title("probability of the five\nlikeliest characters")


def draw_softmaxes(i2t, t2i, pictures, texts):
    """The two softmaxes of the similarity matrix, with the sums of rows or columns."""
    _, all_axes = new_figure(2, 1, 6.4, 11)
    titles = (
        "image to text: each row sums to 1\n(which text belongs to this picture?)",
        "text to image: each column sums to 1\n(which picture belongs to this text?)",
    )
    for axes, matrix, title in zip(all_axes, (i2t, t2i), titles, strict=True):
        axes.imshow(matrix.numpy(), "Blues", vmin=0, vmax=1.2)
        for y in range(len(matrix)):
            for x in range(len(matrix)):
                weight = "bold" if x == y else "normal"
                color = "white" if matrix[y, x] > 0.5 else "black"
                text = f"{matrix[y, x]:.2f}"
                axes.text(x, y, text, color=color, fontweight=weight, ha="center", va="center")
        axes.set_xticks(range(len(texts)), texts)
        axes.set_yticks(range(len(pictures)), pictures)
        axes.tick_params(length=0)
        axes.set(xlabel="text, with its masked character", ylabel="picture of", title=title)


def draw_losses(values, chance):
    """Bars for an untrained and the trained model, with the level of chance as a line."""
    _, all_axes = new_figure(1, len(chance), 7, 4)
    for axes, name in zip(all_axes, chance, strict=True):
        bars = axes.bar(list(values), [loss[name] for loss in values.values()], color=[GREY, BLUE])
        axes.bar_label(bars, fmt="%.2f")
        axes.axhline(chance[name], color=ORANGE, linestyle="--")
        axes.set_title(f"{name}\nchance {chance[name]:.2f} (line)")
        axes.margins(y=0.15)
    all_axes[0].set_ylabel("nats")


# %% [markdown]
# ## The model and the pictures
#
# `make demo` leaves its model in `runs/demo`. The page tells from that run's own evaluation whether
# the model has learned to read. `gain` is the accuracy of the masked characters with the correct
# image minus the accuracy with another image. Statements that need a
# trained model are checked if `gain` is above 0.5. All others hold for any weights and are always
# checked.

# %%
run = Path("runs/demo")
if not (run / "metrics.json").is_file():
    sys.exit(f"{run}: expected the folder of a finished run, got none; run `make demo` first")
checkpoint = vlpt.read_checkpoint(run / "checkpoint.pt")
config = vlpt.Config(**checkpoint["config"])
model = vlpt.VLPT(config)
model.load_state_dict(checkpoint["state_dict"])
model.eval().requires_grad_(False)  # nothing is trained here

gain = json.loads((run / "metrics.json").read_text())["result"]["gain"]
is_trained = gain > 0.5
print(f"gain = {gain:.2f}, so the model is {'trained' if is_trained else 'hardly trained'}")

# %% [markdown]
# We take 64 of the demo's held-out pictures. Each shows one number of two to four digits, and none
# of these numbers was in the training data. `mask_one_char` masks one digit
# of each number (step 4 explains it).

# %%
B = 64
source = data_stub.Rendered(config.image_size, 1024, split="heldout", scene=data_stub.DIGITS)
alphabet = vlpt.Alphabet(config.alphabet)
heldout = Pretraining(source, alphabet, config.image_size, seed=0)
batch = collate([heldout[k] for k in range(B)])
images = vlpt.normalize(batch.images)
masked_ids, targets = vlpt.mask_one_char(batch.ids, torch.Generator().manual_seed(0))
print(f"images {tuple(images.shape)}, ids {tuple(masked_ids.shape)}")

# %% [markdown]
# The model does not read every picture. So that there is something to see, we look ahead. We follow
# the first picture of four digits whose masked digit the model predicts from the picture itself,
# but not from another picture.

# %%
is_masked = targets != vlpt.IGNORE_INDEX  # (B, L, N)
output = model(images, masked_ids)
output_swapped = model(images.roll(1, dims=0), masked_ids)  # each with the previous picture
is_read = ((output.logits.argmax(-1) == targets) & is_masked).any(dim=(1, 2))  # (B,)
is_guessed = ((output_swapped.logits.argmax(-1) == targets) & is_masked).any(dim=(1, 2))
has_four_digits = batch.ids[:, 3, 0] != vlpt.PAD
is_telling = is_read & ~is_guessed & has_four_digits
assert not is_trained or is_telling.any()
k = int(is_telling.int().argmax())  # the first
(word, *_), (masked_word, *_) = alphabet.decode(batch.ids[k]), alphabet.decode(masked_ids[k])
print(f"picture {k} shows {word}, and the text encoder is given {masked_word}")

# %% [markdown]
# ## Step 1: the image encoder
#
# $$v, f = \mathrm{pool}(\mathrm{backbone}(I))$$
#
# The backbone is a ResNet. It turns the image $I$ into a feature map of $C$ channels, in which a
# cell stands for a square of the image. The attention pool is CLIP's. It makes a token of each
# cell, puts the mean of all cells in front, and adds a learned position to each:
#
# $$x_0 = \tfrac{1}{S} \sum_s \mathrm{cell}_s + p_0, \qquad x_s = \mathrm{cell}_s + p_s$$
#
# One layer of attention then lets every token look at all of them. Its output at the mean token is
# the *image feature* $v$, which the contrastive loss uses. Its outputs at the cells are the *image
# tokens* $f$, which the decoder uses.

# %%
image = images[k : k + 1]
feature_map = model.backbone(image)[-1]
tokens = model.pool.to_tokens(feature_map)
image_feature, image_tokens, (h, w) = model.encode_image(image)
image_map, _ = model.attention_maps(image, masked_ids[k : k + 1])  # (1, h, w)
print(f"feature map    {tuple(feature_map.shape)}  (B, C, h, w)")
print(f"image feature  {tuple(image_feature.shape)}  (B, D)")
print(f"image tokens   {tuple(image_tokens.shape)}  (B, S, D)")

S, D = h * w, config.embed_dim
assert image_feature.shape == (1, D) and image_tokens.shape == (1, S, D)
mean_cell = feature_map.mean(dim=(2, 3))
assert torch.allclose(tokens[:, 0], mean_cell + model.pool.positional_embedding[0], atol=1e-5)
assert torch.allclose(image_map.sum(), torch.tensor(1.0))
draw_image_tokens(batch.images[k], image_map[0])
# %% [markdown]
# On the right are the pool's attention weights of the mean token, without its weight for itself.
# They say from which cells the image feature is made. A cell also depends on pixels around its
# square, because the convolutions of the backbone overlap.

# %% [markdown]
# ## Step 4: mask one character of every word
#
# The number of this step is that of the table in `vlpt.py`, but masking comes before step 2. In
# every word one character is drawn, each with the same probability, and replaced by MASK. The
# drawn character becomes the target. All other positions are ignored by the loss.
#
# A word is a column of $L = 25$ ids, and an image has $N = 3$ columns. PAD fills the rest of a
# column, and the columns of words that the image does not have. Here are the first six positions
# of our picture, with $j$ from left to right. All positions after them are PAD.

# %%
draw_ids(alphabet, batch.ids[k], masked_ids[k], targets[k])
is_word = (batch.ids != vlpt.PAD).any(dim=1)  # (B, N)
assert (is_masked.sum(dim=1) == is_word).all()  # one in every word, none in an empty slot
assert (masked_ids[is_masked] == vlpt.MASK).all()
assert (targets[is_masked] == batch.ids[is_masked]).all()
assert (masked_ids[~is_masked] == batch.ids[~is_masked]).all()

# %% [markdown]
# To see that every character is equally likely, we mask the word 4,000 times.

# %%
copies = batch.ids[k].expand(4000, -1, -1)
_, many_targets = vlpt.mask_one_char(copies, torch.Generator().manual_seed(0))
shares = (many_targets[:, : len(word), 0] != vlpt.IGNORE_INDEX).float().mean(dim=0)
for char, share in zip(word, shares.tolist(), strict=True):
    print(f"{char}: masked in {share:.1%} of the draws")
assert torch.allclose(shares, torch.tensor(1 / len(word)), atol=0.04)

# %% [markdown]
# ## Step 2: the character embedding
#
# $$ce_j = W_c \, c_j + PE_j$$
#
# $c_j$ is the one-hot vector of the character at position $j$, so $W_c c_j$ is one column of the
# matrix $W_c$. $PE_j$ is a vector that is learned for each position. Both have $T$
# numbers. The first three of them are printed here, so that the sums can be checked by eye, up to
# the rounding of the last digit. MASK has a column of $W_c$ like any character.

# %%
ids = masked_ids[k : k + 1]  # (1, L, N)
ce = model.text.embed(ids)  # (1, L, N, T)
one_hot = F.one_hot(ids, len(alphabet)).float()  # (1, L, N, V)
W_c = model.text.token_embedding.weight.T  # (T, V)
PE = model.text.positional_embedding  # (L, 1, T), the same for every word
W_c_c = one_hot @ W_c.T  # (1, L, N, T)

for j, char in enumerate(masked_word):
    name = "MASK" if char == "_" else char
    for label, vector in (
        (f"W_c c_{j} ({name})", W_c_c[0, j, 0]),
        (f"PE_{j}", PE[j, 0]),
        (f"ce_{j}", ce[0, j, 0]),
    ):
        numbers = " ".join(f"{x:7.3f}" for x in vector[:3].tolist())
        print(f"{label:<14} {numbers}")
    print()
assert torch.allclose(ce, W_c_c + PE, atol=1e-6)

# %% [markdown]
# ## Step 3: the character-aware text encoder
#
# $$te = \mathrm{Enc}(ce)$$
#
# The encoder is a Transformer, and each word is a sequence of its own. A character may attend to
# all characters of its word, before and after it. It may attend neither to pads nor to other words,
# even those of the same image. A linear layer then brings each feature to $D$ numbers.
#
# The demo's pictures have one word each. To show who may attend to whom we need an image with three
# words, and take those of our picture and of the next two. If a character may not attend to a
# position, the gradient of its feature with respect to the input there is exactly zero.

# %%
three_words = masked_ids[[k, (k + 1) % B, (k + 2) % B], :, 0].T[None]  # (1, L, N)
three_words = three_words[:, :5]  # four digits and a PAD at most
inputs = []  # of the first layer, (N, L, T), one sequence per word
hook = model.text.layers[0].register_forward_pre_hook(
    lambda _, args: inputs.append(args[0].requires_grad_())
)
te = model.text(three_words)  # (1, L, N, D)
hook.remove()

characters = [(i, j) for i in range(3) for j in range(5) if three_words[0, j, i] != vlpt.PAD]
influence = []
for i, j in characters:
    (gradient,) = torch.autograd.grad(te[0, j, i].square().sum(), inputs, retain_graph=True)
    influence.append((gradient != 0).any(dim=-1).flatten())  # (N * L,)
influence = torch.stack(influence)

word_of_input = torch.arange(3).repeat_interleave(5)
word_of_feature = torch.tensor([i for i, _ in characters])
is_char = (three_words[0].T != vlpt.PAD).flatten()
assert (influence == (word_of_feature[:, None] == word_of_input) & is_char).all()
columns = [char for text in alphabet.decode(three_words[0]) for char in text.ljust(5, "·")]
draw_influence(influence, [columns[5 * i + j] for i, j in characters], columns)
# %% [markdown]
# The three blue blocks are the three words. The feature at MASK, written `_`, depends on the
# characters of its own word and on nothing else. So far it has not seen the image.
#
# The feature of a word is the mean over its characters, and the *text feature* of an image is the
# mean over its words. Pads and empty word slots are left out of both means. (The released code
# takes the state at an end token instead, see D1 in `vlpt.py`.) Our picture has one word, so its
# text feature is the mean of the features of its four characters.

# %%
char_features, text_feature = model.encode_text(ids)  # (1, L, N, D), (1, D)
print(f"character features {tuple(char_features.shape)}  (B, L, N, D)")
print(f"text feature       {tuple(text_feature.shape)}  (B, D)")
assert torch.allclose(text_feature[0], char_features[0, : len(word), 0].mean(dim=0), atol=1e-5)

# %% [markdown]
# ## Step 5: the visual-textual decoder
#
# $$y = \mathrm{Dec}(te, f)$$
#
# The character features are queries, and the image tokens are keys and values. A learned position
# $P$ is added to the keys alone. A layer turns a query $q$ into that of the
# next layer:
#
# $$r = q + \mathrm{LN}(\mathrm{Attn}(q,\; f + P,\; f))$$
#
# $$q_{\mathrm{next}} = r + \mathrm{MLP}(\mathrm{LN}(r))$$
#
# One more LayerNorm after the last layer gives $y$.
#
# There is no self-attention, so the queries never see each other. Each of the 25 positions of each
# word is a query, and a linear layer turns its $y$ into $V$ logits. At PAD they have no meaning.

# %%
logits = model.decode(char_features, image_feature, image_tokens, (h, w))
print(f"logits {tuple(logits.shape)}  (B, L, N, V)")
print(f"argmax {tuple(logits.argmax(-1).shape)}     (B, L, N)")
assert torch.allclose(logits[0], output.logits[k], atol=1e-4)  # as in the whole batch

j = int(is_masked[k, :, 0].int().argmax())  # where the word has its MASK
alone = char_features[:, j : j + 1, :1]  # (1, 1, 1, D), the masked character alone
logits_alone = model.decode(alone, image_feature, image_tokens, (h, w))
assert torch.allclose(logits_alone[0, 0, 0], logits[0, j, 0], atol=1e-4)  # needs no other query

# %% [markdown]
# Because the queries are independent, training decodes only the masked one and gets the same loss.
#
# Now we read the masked character twice, once from its own picture and once from another one. The
# words are the same, so whatever differs comes from the picture. The right answer is orange. The
# maps on the left multiply the attention weights of the last decoder layer with those of the pool,
# because the pool has already mixed the image tokens (see `VLPT.attention_maps`). They are a rough
# hint and no proof of what the model uses: they show the last layer alone, and a cell also knows of
# the pixels around it. The brightest spot need not lie on the masked digit.

# %%
names = ["PAD", "MASK", "UNK", *alphabet.chars]
rows = []
for title, shown in (("own picture", k), ("another picture", (k - 1) % B)):
    image = images[shown : shown + 1]
    probabilities = model(image, ids).logits[0, j, 0].softmax(dim=0)  # (V,)
    _, char_maps = model.attention_maps(image, ids)  # (1, L, N, h, w)
    top = probabilities.topk(5)
    guesses = [names[id_] for id_ in top.indices.tolist()]
    rows.append(
        (title, batch.images[shown], char_maps[0, j, 0], guesses, top.values.tolist(), word[j])
    )
    print(f"{title}: in {masked_word}, p({word[j]}) = {probabilities[targets[k, j, 0]]:.3f}")
draw_reading(rows)
# %% [markdown]
# One picture proves little, so we count over the batch. This is how the demo computes `acc_right`,
# `acc_other` and `gain`, but over 1,024 pictures. Over 64 pictures the shares are rough: by chance
# alone, a share of 10 % varies with a standard deviation of 4 percentage points.

# %%
right, other = is_read.float().mean(), is_guessed.float().mean()
print(f"own picture {right:.1%}, another picture {other:.1%}, chance 10 %")
assert not is_trained or right > other + 0.3

# %% [markdown]
# ## Step 6: the masked-character loss
#
# $$L_{cls} = -\frac{1}{M} \sum_{m=1}^{M} \ln p_m(\mathrm{target}_m),
#   \qquad p_m = \mathrm{softmax}(\mathrm{logits}_m)$$
#
# The sum is over the $M$ masked characters of the batch. For our picture alone $M = 1$, and the
# loss is minus the logarithm of the probability that is printed above. Two kinds of guessing say
# what a loss means: if all entries of the vocabulary are equally likely it is $\ln V$, and if the
# digits alone are equally likely it is $\ln 10$, since PAD, MASK and UNK are never a target.

# %%
L_cls = vlpt.char_loss(output.logits, targets)
L_cls_of_one = vlpt.char_loss(output.logits[k : k + 1], targets[k : k + 1])
probability = output.logits[k, j, 0].softmax(dim=0)[targets[k, j, 0]]
print(f"our picture: L_cls = {L_cls_of_one:.3f} = -ln {probability:.3f}")
print(f"the batch:   L_cls = {L_cls:.3f}")
assert torch.allclose(L_cls_of_one, -probability.log(), atol=1e-4)

guess = torch.zeros_like(output.logits)
guess_digits = guess.clone()
guess_digits[..., : vlpt.UNK + 1] = -1e9  # no probability
chance_V, chance_10 = vlpt.char_loss(guess, targets), vlpt.char_loss(guess_digits, targets)
print(f"guessing:    ln {len(alphabet)} = {chance_V:.3f}, ln 10 = {chance_10:.3f}")
assert math.isclose(chance_V, math.log(len(alphabet)), rel_tol=1e-5)
assert math.isclose(chance_10, math.log(10), rel_tol=1e-5)
assert not is_trained or L_cls < chance_10

# %% [markdown]
# ## Step 7: the batch-level contrastive loss
#
# $$L_{bc} = H(\text{i2t}) + H(\text{t2i}), \qquad
#   z_{ab} = \frac{1}{\tau} \cdot \frac{v_a^{\top} t_b}{\lVert v_a \rVert \lVert t_b \rVert}$$
#
# $$H(\text{i2t}) = -\frac{1}{B} \sum_a \ln \frac{e^{z_{aa}}}{\sum_b e^{z_{ab}}}, \qquad
#   H(\text{t2i}) = -\frac{1}{B} \sum_b \ln \frac{e^{z_{bb}}}{\sum_a e^{z_{ab}}}$$
#
# $z_{ab}$ is the cosine similarity of image feature $v_a$ and text feature $t_b$, divided by the
# temperature $\tau$, which is learned as `logit_scale`, $\ln(1/\tau)$. The pairs are on the
# diagonal. An image should pick its own text from its row, and a text its own image from its
# column. `contrastive_loss` returns the loss and not the matrix. We therefore compute the matrix of
# six pictures here, and check that it gives the same loss. A dark cell off the diagonal is a
# mistake of the model.

# %%
texts = [words[0] for words in map(alphabet.decode, masked_ids)]
six = [k]
for b in range(B):  # six pictures whose masked words differ
    if len(six) < 6 and texts[b] not in {texts[a] for a in six}:
        six.append(b)
v, t = F.normalize(output.image[six], dim=1), F.normalize(output.text[six], dim=1)
z = output.logit_scale.exp() * v @ t.T  # (6, 6)
i2t, t2i = z.softmax(dim=1), z.softmax(dim=0)
assert torch.allclose(i2t.sum(dim=1), torch.ones(6))
assert torch.allclose(t2i.sum(dim=0), torch.ones(6))

L_bc_of_six = vlpt.contrastive_loss(output.image[six], output.text[six], output.logit_scale)
H_i2t, H_t2i = -i2t.diag().log().mean(), -t2i.diag().log().mean()
print(f"temperature {1 / output.logit_scale.exp():.3f}")
print(f"H(i2t) + H(t2i) = {H_i2t:.3f} + {H_t2i:.3f} = {L_bc_of_six:.3f}")
print(f"chance, 2 ln 6  = {2 * math.log(6):.3f}")
assert torch.allclose(L_bc_of_six, H_i2t + H_t2i, atol=1e-4)
draw_softmaxes(i2t, t2i, [alphabet.decode(batch.ids[b])[0] for b in six], [texts[b] for b in six])
# %% [markdown]
# If all features were the same, each softmax would be even. Then each direction would cost $\ln B$,
# and the loss would be $2 \ln B$. The loss cannot reach zero here, for two reasons. The batch has
# some numbers twice, and their pairs cannot be told apart. The text feature is also made from the
# masked word, which may fit several pictures.

# %%
L_bc = vlpt.contrastive_loss(output.image, output.text, output.logit_scale)
same = torch.ones(B, D)
chance_bc = vlpt.contrastive_loss(same, same, output.logit_scale)
print(f"the batch: L_bc = {L_bc:.3f}, chance 2 ln {B} = {chance_bc:.3f}")
assert math.isclose(chance_bc, 2 * math.log(B), rel_tol=1e-5)
assert not is_trained or L_bc < chance_bc
assert len({alphabet.decode(ids_)[0] for ids_ in batch.ids}) < B  # some numbers occur twice

# %% [markdown]
# ## Step 8: the total loss
#
# $$\mathrm{loss} = L_{cls} + L_{bc}$$
#
# Both terms count equally. The bars compare the demo's model with one that has random weights. The
# line is chance, $\ln 10$ for $L_{cls}$ and $2 \ln B$ for $L_{bc}$. Random weights are usually
# above it, because they favour some answers without a reason.

# %%
total = vlpt.total_loss(output, targets)
print(f"L = {L_cls:.3f} + {L_bc:.3f} = {total:.3f}")
assert torch.allclose(total, L_cls + L_bc)

torch.manual_seed(0)
untrained = vlpt.VLPT(config).eval().requires_grad_(False)(images, masked_ids)
losses = {}
for name, result in (("random", untrained), ("demo", output)):
    losses[name] = {
        "L_cls": vlpt.char_loss(result.logits, targets).item(),
        "L_bc": vlpt.contrastive_loss(result.image, result.text, result.logit_scale).item(),
        "L": vlpt.total_loss(result, targets).item(),
    }
chance = {"L_cls": math.log(10), "L_bc": 2 * math.log(B), "L": math.log(10) + 2 * math.log(B)}
assert not is_trained or all(losses["demo"][name] < chance[name] for name in chance)
draw_losses(losses, chance)
# %% [markdown]
# ## Step 9: only the backbone leaves
#
# Pool, text encoder and decoder have done their work and are dropped. The exported file holds the
# tensors of the backbone, running statistics of BatchNorm included, and nothing else.

# %%
for name, part in model.named_children():
    size = sum(parameter.numel() for parameter in part.parameters())
    print(f"{name:<10}{size:>10,} parameters, {'exported' if name == 'backbone' else 'dropped'}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "backbone.pt"
    vlpt.export_backbone(model, path)
    exported = torch.load(path, weights_only=True)
    loaded = vlpt.load_backbone(path, config.backbone, **config.backbone_size).eval()
assert exported.keys() == model.backbone.state_dict().keys()
assert torch.equal(loaded(images[k : k + 1])[-1], feature_map)
print(f"{len(exported)} tensors, from {next(iter(exported))} to {list(exported)[-1]}")

# %% [markdown]
# The loaded backbone gives exactly the feature map of step 1. The demo's backbone has a size of its
# own, which no library has. With `--backbone resnet18` a run trains torchvision's ResNet. Its file
# fits torchvision's model, except that the classifier `fc` is not in the file.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "resnet18.pt"
    vlpt.export_backbone(vlpt.build_backbone("resnet18"), path)
    state = torch.load(path, weights_only=True)
missing, unexpected = torchvision.models.resnet18().load_state_dict(state, strict=False)
print(f"not in the file: {missing}")
print(f"not in torchvision's model: {unexpected}")
assert missing == ["fc.weight", "fc.bias"] and unexpected == []

# %% [markdown]
# ## Where to go from here
#
# - `vlpt.py` has the code of all steps, and `test_vlpt.py` checks each equation on random inputs,
#   with one test class for each step.
# - `train_step` in `train_min.py` is the loop body: the two losses, clipping, one step of AdamW.
# - `docs/differences.md` lists where the released code does something else.
# - To try something, change `docs/walkthrough.py` and run `make walkthrough` again. For example,
#   draw other masks with another seed, or follow another picture. To use the notebook beside this
#   page in Jupyter, first run `%cd ../..` in it.
