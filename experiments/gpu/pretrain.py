"""`pretrain`: learn to read rendered words in minutes, while the CPU cores draw them.

    workers --render--> PicturePool (uint8, on the device) --vary, draw words, mask--> train_step

A picture is drawn once and seen up to five times, each time cropped, turned and coloured anew, and
with words and masks drawn anew. The pictures become harder in three stages; the model's head has
all characters from the start.
"""

import dataclasses
import itertools
import math
import multiprocessing
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import data_stub
import train_min
import vlpt
from experiments.gpu.programme import NUMBERS, SHORT, Programme, Result, Sizes
from training import data
from training.dataset import Pretraining
from training.weights import save_model

SEED = 0
MAX_SHOWN = 4  # words of a rendered picture, of which up to three are drawn for each use
STAGES = ("digits", "short", "full")
GOAL = 0.6  # accuracy on masked characters that ends the first stage
FULL_SHARE = 0.7  # of full scenes in the last stage; the others stay short words
RESERVE = 30  # seconds for starting the workers, the evaluation and writing


def run(programme: Programme, share: float) -> None:
    """Pre-train for a share of the time that is left; leave OUT/model.pt and OUT/backbone.pt."""
    seconds = share * programme.seconds_left - RESERVE
    programme.run("pretrain/model", max(0.0, seconds) + RESERVE, pretrain, programme, seconds)


# ---- Rendering ---------------------------------------------------------------------------------


class RenderedWords(Dataset[tuple[Tensor, Tensor]]):
    """Endless rendered pictures (3, S, S) uint8 with ids (L, 4), of the stage that is current.

    Args:
        config: the model's, for image size and alphabet.
        stage: the stage's number in `STAGES`, shared with the workers.
    """

    def __init__(self, config: vlpt.Config, stage: Any) -> None:
        self.size = config.image_size
        self.alphabet = vlpt.Alphabet(config.alphabet)
        self.stage = stage

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        stage = STAGES[self.stage.value]
        is_full = stage == "full" and np.random.default_rng([SEED, k]).random() < FULL_SHARE
        scene = data_stub.Scene() if is_full else NUMBERS if stage == "digits" else SHORT
        sample = data_stub.render(SEED, k, self.size, "train", scene)
        ids = torch.full((vlpt.MAX_CHARS, MAX_SHOWN), vlpt.PAD)
        for i, word in enumerate(sample.words[:MAX_SHOWN]):
            ids[:, i] = self.alphabet.encode([word])[:, 0]
        return torch.from_numpy(sample.image).permute(2, 0, 1).contiguous(), ids


@contextmanager
def rendered_batches(
    config: vlpt.Config, stage: Any, size: int, workers: int, on_gpu: bool
) -> Iterator[queue.Queue[tuple[Tensor, Tensor]]]:
    """A queue that a thread fills with batches from worker processes while the block runs."""
    loader = DataLoader(
        RenderedWords(config, stage),
        batch_sampler=([*range(k, k + size)] for k in itertools.count(0, size)),  # without an end
        num_workers=workers,
        worker_init_fn=data.init_worker,
        pin_memory=on_gpu,
    )
    arrived: queue.Queue[tuple[Tensor, Tensor]] = queue.Queue(maxsize=2 * workers)
    ended = threading.Event()
    batches = iter(loader)  # starts the workers

    def fill() -> None:
        for images, ids in batches:
            while not ended.is_set():
                try:
                    arrived.put((images, ids), timeout=0.2)
                    break
                except queue.Full:
                    continue
            if ended.is_set():
                return

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield arrived
    finally:
        ended.set()
        thread.join(timeout=10)


class PicturePool:
    """Pictures on the device, and their ids on the CPU; new ones take the place of the oldest."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        side = sizes.config.image_size
        self.images = torch.empty(sizes.pool, 3, side, side, dtype=torch.uint8, device=device)
        self.ids = torch.full((sizes.pool, vlpt.MAX_CHARS, MAX_SHOWN), vlpt.PAD)
        self.uses_left = np.zeros(sizes.pool, int)
        self.max_uses = sizes.uses
        self.num_added = 0

    def add(self, images: Tensor, ids: Tensor) -> None:
        size, count = len(self.uses_left), len(images)
        first = self.num_added % size
        if first + count > size:  # the last places stay as they are
            self.num_added += size - first
            first = 0
        places = slice(first, first + count)
        self.images[places].copy_(images, non_blocking=True)
        self.ids[places] = ids
        self.uses_left[places] = self.max_uses
        self.num_added += count

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor] | None:
        """Images and ids (B, L, N) of pictures with uses left, or None if there are too few."""
        usable = np.flatnonzero(self.uses_left)
        if len(usable) < batch:
            return None
        chosen = rng.choice(usable, batch, replace=False)
        self.uses_left[chosen] -= 1
        index = torch.from_numpy(chosen)
        images = self.images[data.to_device(index, self.images.device)]
        return images, draw_words(self.ids[index], rng)


def draw_words(ids: Tensor, rng: np.random.Generator) -> Tensor:
    """Up to three of the words (B, L, W) of each picture, (B, L, 3)."""
    has_word = (ids != vlpt.PAD).any(1)  # (B, W)
    scores = torch.from_numpy(rng.random(has_word.shape)).masked_fill(~has_word, -1)
    drawn = scores.topk(vlpt.MAX_WORDS, dim=1).indices  # (B, 3)
    return ids.gather(2, drawn[:, None, :].expand(-1, ids.shape[1], -1))


def vary(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Crop, turn and colour each picture (B, 3, S, S) uint8 a little, on its device.

    The changes are gentle, so that few words leave the picture. torchvision's transforms would
    change all pictures of a batch alike, and make the host wait for the GPU.
    """
    B = len(images)
    angle = rng.uniform(-5, 5, B) * np.pi / 180
    zoom = rng.uniform(0.92, 1.1, B)  # above 1 the borders are cropped
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    shift_x, shift_y = rng.uniform(-0.05, 0.05, (2, B))  # 2 is the width of the picture
    affine = np.stack([cos, -sin, shift_x, sin, cos, shift_y], 1).reshape(B, 2, 3)
    colors = rng.uniform(0.7, 1.3, (3, B, 1, 1, 1))
    theta, factors = (
        data.to_device(torch.from_numpy(x.astype(np.float32)), images.device)
        for x in (affine, colors)
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    x = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = factors
    x = x * brightness
    x = x.mean((1, 2, 3), keepdim=True).lerp(x, contrast)
    x = x.mean(1, keepdim=True).lerp(x, saturation)
    return x.round().clamp(0, 255).to(torch.uint8)


# ---- Training ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Curriculum:
    """Which of `STAGES` is current. Short runs go through them in proportion."""

    sizes: Sizes
    stage: Any  # the number in STAGES, shared with the workers
    changes: dict[str, int] = dataclasses.field(default_factory=dict)  # stage to its first step

    def update(self, step: int, accuracy: float, steps: float) -> None:
        """Move on if it is time.

        Args:
            accuracy: on the masked characters of recent steps.
            steps: how many there will be about.
        """
        scale = min(1.0, steps / self.sizes.planned_steps)
        digits_end, short_end = scale * self.sizes.digits_steps, scale * self.sizes.short_steps
        if self.stage.value == 0 and (accuracy >= GOAL or step >= digits_end):
            self.enter(1, step)
        if self.stage.value == 1 and step >= short_end:
            self.enter(2, step)

    def enter(self, stage: int, step: int) -> None:
        self.stage.value = stage
        self.changes[STAGES[stage]] = step


def pretrain(programme: Programme, seconds: float) -> Result:
    """Train, evaluate on full held-out scenes, and save the model and its backbone."""
    if seconds <= 0:
        raise ValueError(f"--minutes: expected time for training, got {seconds:.0f} s")
    sizes, device = programme.sizes, programme.device
    torch.manual_seed(SEED)
    torch.backends.cudnn.benchmark |= device.type == "cuda"
    model = vlpt.VLPT(sizes.config).to(device).to(memory_format=torch.channels_last)
    found = train(model, sizes, device, seconds)
    heldout = Pretraining(
        data_stub.Rendered(sizes.config.image_size, sizes.heldout, split="heldout"),
        vlpt.Alphabet(sizes.config.alphabet),
        sizes.config.image_size,
        SEED,
    )
    workers = data.default_workers(device)
    batches = data.evaluation_batches(heldout, sizes.heldout, sizes.batch, workers)
    found |= train_min.evaluate(model, batches, SEED)
    save_model(model, programme.out / "model.pt")
    vlpt.export_backbone(model, programme.out / "backbone.pt", training_data="synth")
    return found


def train(model: vlpt.VLPT, sizes: Sizes, device: torch.device, seconds: float) -> Result:
    """Train for so many seconds. The cosine of the learning rate ends when the time does."""
    masked_only = vlpt.MaskedOnly(model)
    optimizer = train_min.make_optimizer(model, sizes.lr, weight_decay=0.1)
    pool = PicturePool(sizes, device)
    rng = np.random.default_rng(SEED)
    generator = torch.Generator().manual_seed(SEED)
    stage = multiprocessing.Value("i", 0)
    curriculum = Curriculum(sizes, stage, {STAGES[0]: 0})
    workers = data.default_workers(device)
    recent: list[Tensor] = []
    curve: list[dict[str, float]] = []
    step, waited = 0, 0.0
    part = min(64, sizes.batch)
    with rendered_batches(sizes.config, stage, part, workers, device.type == "cuda") as arrived:
        start = time.monotonic()
        while True:
            while not arrived.empty():
                pool.add(*arrived.get())
            elapsed = time.monotonic() - start
            progress = max(elapsed / seconds, step / sizes.max_steps)
            if progress >= 1:
                break
            drawn = pool.draw(sizes.batch, rng)
            if drawn is None:
                pool.add(*arrived.get(timeout=60))  # raises Empty if the workers are gone
                waited += time.monotonic() - start - elapsed
                continue
            steps = max(step + 1, round(step / max(progress, 1e-3)))  # at this pace
            for group in optimizer.param_groups:
                group["lr"] = sizes.lr * train_min.lr_at(step, steps, sizes.warmup)
            images = vary(drawn[0], rng)
            ids, targets = (
                data.to_device(x, device) for x in vlpt.mask_one_char(drawn[1], generator)
            )
            recent.append(train_min.train_step(masked_only, optimizer, images, ids, targets))
            step += 1
            if step % sizes.look_every == 0:
                char, contrastive, _, accuracy, _ = torch.stack(recent).mean(0).tolist()
                recent.clear()
                if not math.isfinite(char + contrastive):
                    raise FloatingPointError(f"step {step}: the loss is {char} + {contrastive}")
                curriculum.update(step, accuracy, steps)
                numbers = {"char": char, "contrastive": contrastive, "accuracy": accuracy}
                curve.append({"step": step, "seconds": round(elapsed, 1), **numbers})
    return {
        "steps": step,
        "pictures_s": step * sizes.batch / elapsed,
        "rendered_s": pool.num_added / elapsed,
        "wait": waited / elapsed,
        "workers": workers,
        "stages": curriculum.changes,
        "curve": curve[:: max(1, len(curve) // 40)],
    }
