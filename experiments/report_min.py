"""What a run of train_min.py looks like: its curves, and where the model looks."""

from itertools import islice
from pathlib import Path

import torch
from matplotlib.figure import Figure

import data_stub
import vlpt


def plot_losses(
    path: Path,
    steps: list[dict[str, float]],
    evaluations: list[dict[str, float]],
    chance: tuple[float, float],
) -> None:
    """Losses with their chance levels, and held-out accuracy with the right and another picture."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, name, level, color in (
        ("char", "masked character, L_cls", chance[0], "tab:blue"),
        ("contrastive", "contrastive, L_bc", chance[1], "tab:orange"),
    ):
        x, y = [row["samples"] for row in steps], [row[key] for row in steps]
        left.plot(x, y, color=color, label=name, linewidth=0.8)
        left.axhline(level, color=color, linestyle=":", label=f"its chance, {level:.2f}")
    left.set(xlabel="training pictures", ylabel="nats", title="training losses", ylim=(0, None))
    for key, name in (("acc_right", "its own picture"), ("acc_other", "another picture")):
        x, y = [e["samples"] for e in evaluations], [e[key] for e in evaluations]
        right.plot(x, y, "o-", label=f"shown {name}")
    title = "held-out words: masked characters right"
    right.set(xlabel="training pictures", ylabel="share", title=title, ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def plot_attention(
    path: Path, model: vlpt.VLPT, heldout: data_stub.Pretraining, pictures: int = 6
) -> None:
    """Where the model looks: a row a picture, a column for each hidden character of a word."""
    items = (heldout[k] for k in range(min(4 * pictures, len(heldout.indices))))
    chosen = list(islice((item[:2] for item in items if not isinstance(item, str)), pictures))
    device, alphabet = model.log_scale.device, heldout.alphabet
    most = min(8, max(len(alphabet.decode(ids)[0]) for _, ids in chosen))
    figure = Figure(figsize=(1.7 * (2 + most), 2.0 * len(chosen) + 0.6), layout="constrained")
    grid = figure.subplots(len(chosen), 2 + most, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    model.eval()
    for row, (pixels, ids) in zip(grid, chosen, strict=True):
        word = alphabet.decode(ids)[0][:most]
        hidden = ids.repeat(len(word), 1, 1)  # copy j hides character j of the first word
        hidden[range(len(word)), range(len(word)), 0] = vlpt.MASK
        images, hidden = pixels.expand(len(word), -1, -1, -1).to(device), hidden.to(device)
        with torch.no_grad():
            read = model(vlpt.normalize(images), hidden).logits[:, :, 0].argmax(-1)
        pooled, maps = model.attention_maps(vlpt.normalize(images), hidden)
        panels = [(None, word, "black"), (pooled[0], "image feature", "black")]
        for j, char in enumerate(word):
            guess = alphabet.decode(read[j, j].reshape(1, 1))[0] or "nothing"
            color = "tab:green" if guess == char else "tab:red"
            panels.append((maps[j, j, 0], f"{word[:j]}_{word[j + 1 :]}  read {guess}", color))
        for axes, (heat, title, color) in zip(row, panels, strict=False):
            axes.imshow(pixels.permute(1, 2, 0).numpy())
            axes.set_title(title, color=color, parse_math=False, fontsize=11)
            if heat is not None:
                heat = heat.cpu().numpy()
                extent = (-0.5, pixels.shape[2] - 0.5, pixels.shape[1] - 0.5, -0.5)
                axes.imshow(heat, "inferno", alpha=0.55, interpolation="bilinear", extent=extent)
    model.train()
    figure.suptitle(
        "held-out pictures, and where the image feature looks; then, one character hidden (_), "
        "\nwhat is read in its place and where it was looked for (bright = more attention)"
    )
    figure.savefig(path, dpi=100)
