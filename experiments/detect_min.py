"""PSENet on a backbone of vlpt.py: does pre-training help to find text?

A small re-implementation of "Shape Robust Text Detection with Progressive Scale Expansion Network"
(Wang et al., CVPR 2019). A feature pyramid predicts for every pixel whether it lies in a word's
polygon, and in n - 1 shrunken copies of it, the kernels. The smallest ones lie apart even where
words touch, so they are told apart there and then grow back, scale by scale.

    image (B, 3, H, W) --Backbone--> maps at strides 4, 8, .. --Pyramid--> scores (B, n, H, W)
    train:   polygons --shrink, draw--> kernels (B, n, H, W)        scores, kernels -> psenet_loss
    predict: scores --threshold, expand--> labels (H, W) --outline--> polygons

n = 7 maps, the whole word first. Points are pixels x, y. A "###" region is neither text nor
background: no loss looks there, and the score (ICDAR 2015's) forgives a detection inside it.

    python experiments/detect_min.py train --data icdar2015:PATH --init runs/demo --name detect
    python experiments/detect_min.py eval runs/detect --data icdar2015:PATH
    python experiments/detect_min.py predict runs/detect photo.jpg
"""

import argparse
import io
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import pyclipper
import shapely
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the clone
import data_stub
import vlpt
from experiments.run_min import Parser, folder_name, number, some_path, write

KERNELS = 7  # n
BACKBONES: dict[str, Mapping[str, Any]] = {
    name: {} for name in ("resnet18", "resnet34", "resnet50", "resnet101",
                          "clip_resnet50", "clip_resnet101")}  # fmt: skip
BACKBONES["tiny"] = vlpt.TINY.backbone_size  # a clip_resnet; the others have one size each
SETTINGS = ("backbone", "width", "long", "smallest", "curved", "score", "device")  # of a detector
GREY = (114, 114, 114)  # beyond the picture
SOURCES = "synth, icdar2015:PATH, synthtext:PATH, jsonl:PATH or totaltext:PATH"


# ---------------------------------------------------------------------------------- annotations


class Page(NamedTuple):
    """One annotated picture."""

    image: Image.Image
    polygons: list[np.ndarray]  # of each word or region, (P, 2) float32 pixels x, y, P >= 3
    ignored: np.ndarray  # (len(polygons),) bool, True: "###", neither text nor background


class PageSource(Protocol):
    """Pages by number, from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Page: ...

    def name(self, index: int, /) -> str: ...


class Pages:
    """A source of data_stub.py as pages."""

    def __init__(self, source: data_stub.Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        name = self.source.name(index)
        return name.replace(" ", "_") if self.source.root == "synth" else Path(name).stem

    def __getitem__(self, index: int) -> Page:
        sample = self.source[index]
        if sample.quads is None:
            raise ValueError(f"{self.source.name(index)}: has no quads, wanted one for each word")
        regions = np.empty((0, 4, 2), np.float32) if sample.ignored is None else sample.ignored
        ignored = np.arange(len(sample.quads) + len(regions)) >= len(sample.quads)
        return Page(Image.fromarray(sample.image), [*sample.quads, *regions], ignored)


class TotalText:
    """Total-Text with its annotation as text files; its test pictures are the held-out ones."""

    TREE = """    ROOT/Images/Train/img11.jpg, ROOT/Images/Test/img1.jpg, and for each picture
    ROOT/txt_format/Train/poly_gt_img11.txt and so on"""
    LINE = re.compile(r"x: *\[\[([\d\s]+)]], *y: *\[\[([\d\s]+)]], *ornt: *\[u?'.'], *"
                      r"transcriptions: *\[u?(['\"])(.*)\3]\s*")  # fmt: skip

    def __init__(self, root: str | Path, split: str) -> None:
        folder = "Train" if split == "train" else "Test"
        images = data_stub.need(Path(root) / "Images" / folder, self.TREE)
        self.paths = sorted(p for p in images.iterdir() if p.suffix.lower() in (".jpg", ".png"))
        if not self.paths:
            raise ValueError(f"{images}: got no picture, wanted\n{self.TREE}")
        labels = Path(root) / "txt_format" / folder
        self.items = [self.read_item(labels / f"poly_gt_{path.stem}.txt") for path in self.paths]

    def read_item(self, label: Path) -> tuple[list[np.ndarray], np.ndarray]:
        text = "\n".join(data_stub.read_lines(label, self.TREE)).strip()
        found = [
            (match[1].split(), match[2].split(), match[4]) for match in self.LINE.finditer(text)
        ]
        if self.LINE.sub("", text) or any(len(x) != len(y) or len(x) < 3 for x, y, _ in found):
            wanted = "lines of x: [[..]], y: [[..]], ornt: [u'c'], transcriptions: [u'..']"
            raise ValueError(f"{label}: got {self.LINE.sub('', text)[:60]!r}, wanted {wanted}")
        ignored = np.array([word in ("#", "###") for *_, word in found], bool)
        return [np.array([x, y], np.float32).T for x, y, _ in found], ignored

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index].stem

    def __getitem__(self, index: int) -> Page:
        return Page(data_stub.open_image(self.paths[index])[0], *self.items[index])


def open_pages(
    spec: str, split: str, size: int = 256, count: int = 1000, seed: int = 0
) -> PageSource:
    """Open one half of a source; size, count and seed are those of rendered pictures.

    Raises: ValueError or OSError, which name what is wrong.
    """
    if spec.startswith("totaltext:") and spec != "totaltext:":
        return TotalText(spec.partition(":")[2], split)
    if spec.partition(":")[0] not in ("synth", "icdar2015", "synthtext", "jsonl"):
        raise ValueError(f"--data: got {spec!r}, wanted {SOURCES}")
    return Pages(data_stub.open_source(spec, split, size, count, seed))


# ------------------------------------------------------------------------- what is to be learned


def shrink(polygon: np.ndarray, rate: float) -> np.ndarray | None:
    """Shrink a polygon (P, 2) by Vatti clipping, section 3.3: each side moves in by d.

    d = A (1 - r^2) / P for the area A, the perimeter P and the rate r, 0..1. Returns the largest
    part, (Q, 2) float32; None where nothing is left.
    """
    shape = shapely.Polygon(polygon)
    if rate == 1:
        return polygon
    if shape.area == 0:
        return None
    offset = pyclipper.PyclipperOffset()
    points = np.rint(polygon * 1000).astype(np.int64).tolist()  # pyclipper counts in integers
    offset.AddPath(points, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    parts = offset.Execute(-1000 * shape.area * (1 - rate**2) / shape.length)
    parts = [np.array(part, np.float32) / 1000 for part in parts]
    return max(parts, key=lambda part: shapely.Polygon(part).area, default=None)


def draw_kernels(
    polygons: Sequence[np.ndarray], ignored: np.ndarray, shape: tuple[int, int], smallest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw what is to be predicted in a picture of shape (H, W).

    Kernel i of 0 .. n - 1 has the rate r_i = 1 - (1 - m) i / (n - 1), m the smallest one.
    Returns: kernels (n, H, W) uint8, 0 or 1; valid (H, W) uint8, 0 where the truth is unknown.
    """
    kernels, valid = np.zeros((KERNELS, *shape), np.uint8), np.ones(shape, np.uint8)
    for polygon, skip in zip(polygons, ignored, strict=True):
        if skip:
            cv2.fillPoly(valid, [np.rint(polygon).astype(np.int32)], 0)
            continue
        for kernel, rate in zip(kernels, np.linspace(1, smallest, KERNELS), strict=True):
            inner = shrink(polygon, float(rate))
            if inner is not None:
                cv2.fillPoly(kernel, [np.rint(inner).astype(np.int32)], 1)
    return kernels, np.where(kernels[0], 1, valid).astype(np.uint8)


def crop_page(page: Page, side: int, scale: float, rng: np.random.Generator) -> Page:
    """A side x side piece of a page that is scaled first, 3 times in 4 around one of its words."""
    whole, size = np.array(page.image.size), side / scale
    words = [p for p, skip in zip(page.polygons, page.ignored, strict=True) if not skip]
    centre = rng.uniform(0, whole)
    if words and rng.random() < 0.75:
        centre = words[rng.integers(len(words))].mean(0) + rng.uniform(-size / 3, size / 3, 2)
    corner = np.clip(centre - size / 2, 0, np.maximum(whole - size, 0))
    taken = np.minimum(whole - corner, size)
    box, shape = (*corner, *(corner + taken)), np.maximum(1, np.rint(taken * scale)).astype(int)
    image = page.image.resize(tuple(shape), Image.Resampling.BILINEAR, box, reducing_gap=2)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(0.7, 1.3))
    canvas = Image.new("RGB", (side, side), GREY)
    canvas.paste(image)
    return Page(canvas, [np.float32((p - corner) * scale) for p in page.polygons], page.ignored)


class Crops(torch.utils.data.Dataset[tuple[Tensor, Tensor, Tensor]]):
    """An endless run over pages: item k is a crop of page k mod length of a shuffled epoch.

    `long` is what the longer side of a page becomes, pixels, times a random 0.7 to 1.4.
    """

    def __init__(
        self, pages: PageSource, subset: int | None, long: int, side: int, smallest: float,
        seed: int,
    ) -> None:  # fmt: skip
        if subset is not None and not 1 <= subset <= len(pages):
            raise ValueError(f"--subset: got {subset}, wanted 1 to {len(pages)} pictures")
        order = np.random.default_rng([seed, 1]).permutation(len(pages))
        self.indices = order[:subset]  # a smaller subset is part of a larger one
        self.pages, self.long, self.side = pages, long, side
        self.smallest, self.seed = smallest, seed

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (3, S, S), kernels (n, S, S) and valid (S, S), all uint8."""
        epoch, position = divmod(k, len(self.indices))
        order = data_stub.shuffled(len(self.indices), self.seed, epoch)
        page, rng = self.pages[self.indices[order[position]]], np.random.default_rng([self.seed, k])
        scale = self.long / max(page.image.size) * 2 ** rng.uniform(-0.5, 0.5)
        page = crop_page(page, self.side, scale, rng)
        shape = (self.side, self.side)
        kernels, valid = draw_kernels(page.polygons, page.ignored, shape, self.smallest)
        pixels = np.array(page.image).transpose(2, 0, 1)
        return torch.from_numpy(pixels), torch.from_numpy(kernels), torch.from_numpy(valid)


# -------------------------------------------------------------------------------------- the model


class PSENet(nn.Module):
    """A backbone and a feature pyramid (section 3.2): P_i = lateral(C_i) + up(P_i+1), smoothed;
    F = P_2 || up(P_3) || up(P_4) ..; scores = conv(conv(F)), scaled up to the picture.
    """

    def __init__(self, backbone: vlpt.Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():  # how many channels each stage has
            maps = backbone.eval()(torch.zeros(1, 3, 64, 64))
        backbone.train()
        self.lateral = nn.ModuleList(nn.Conv2d(m.shape[1], width, 1) for m in maps)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in maps[1:])
        self.fuse = nn.Sequential(*vlpt.conv_bn(len(maps) * width, width, 3), nn.ReLU())
        self.head = nn.Conv2d(width, KERNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, n, H, W) for images (B, 3, H, W), normalised, sides multiples of 32."""
        tops = [layer(m) for layer, m in zip(self.lateral, self.backbone(images), strict=True)]
        levels = [tops.pop()]
        for smooth in self.smooth:
            levels.append(smooth(tops.pop() + F.interpolate(levels[-1], scale_factor=2)))
        size = levels[-1].shape[2:]
        levels = [F.interpolate(p, size, mode="bilinear", align_corners=False) for p in levels]
        scores = self.head(self.fuse(torch.cat(levels, 1)))  # (B, n, H/4, W/4)
        return F.interpolate(scores, images.shape[2:], mode="bilinear", align_corners=False)


def dice(scores: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """D = 2 sum(S G) / (sum(S^2) + sum(G^2)), eq. 5, over the pixels `where`; (B, H, W) to (B,)."""
    s, g = (scores * where).flatten(1), (truth * where).flatten(1)
    return 2 * (s * g).sum(1) / (s.square().sum(1) + g.square().sum(1)).clamp(min=1e-3)


def hard_pixels(scores: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Online hard example mining, section 3.4: the text pixels, and three times as many others,
    those that look most like text; all valid pixels of a picture without. (B, H, W) to bool.
    """
    text, rest = truth.bool() & valid.bool(), ~truth.bool() & valid.bool()
    chosen = []
    for score, word, other in zip(scores.detach(), text, rest, strict=True):
        count = min(3 * int(word.sum()), int(other.sum()))
        if count:
            floor = score[other].topk(count).values[-1]
            other = other & (score >= floor)
        chosen.append(word | other)
    return torch.stack(chosen)


def psenet_loss(logits: Tensor, kernels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of L = 0.7 L_c + 0.3 L_s (eq. 4, 6, 7), means over the pictures.

    Args: logits (B, n, H, W); kernels, as many, 0 or 1; valid (B, H, W), 0 where nothing counts.
    Returns: L_c = 1 - D(S_1, G_1) over the hard pixels; L_s = 1 - mean_i D(S_i, G_i) of the
        shrunken kernels over the pixels that are predicted to be text. Both (), 0..1.
    Note: a picture without words teaches nothing: its D and gradient are 0.
    """
    scores, truth, valid = logits.sigmoid(), kernels.float(), valid.bool()
    whole = dice(scores[:, 0], truth[:, 0], hard_pixels(scores[:, 0], truth[:, 0], valid))
    inside = valid & (scores[:, 0].detach() >= 0.5)
    parts = [dice(scores[:, i], truth[:, i], inside) for i in range(1, KERNELS)]
    return 1 - whole.mean(), 1 - torch.stack(parts).mean()


# ------------------------------------------------------------------------- from scores to polygons


def expand(kernels: np.ndarray) -> np.ndarray:
    """Progressive scale expansion, algorithm 1: labels (H, W), 0 for none, from kernels (n, H, W).

    Each connected part of the last, smallest kernel gets a number. Then the parts grow within the
    next larger kernel, all by one pixel (up, down, left, right) at a time; a pixel belongs to who
    comes first and, of those who come at once, to the smallest number.
    """
    height, width = kernels.shape[1:]
    framed = np.pad(kernels.astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    labels = cv2.connectedComponents(framed[-1], connectivity=4)[1].ravel()
    for kernel in framed[-2::-1]:
        edge, free = np.flatnonzero(labels), kernel.ravel() > 0
        while len(edge):
            to = np.concatenate([edge + step for step in (-1, 1, -width - 2, width + 2)])
            who = np.tile(labels[edge], 4)
            new = free[to] & (labels[to] == 0)
            to, who = to[new], who[new]
            order = np.argsort(-who, kind="stable")  # the last one that is written stays
            labels[to[order]] = who[order]
            edge = np.unique(to)
    return labels.reshape(height + 2, width + 2)[1:-1, 1:-1]


def outline(
    labels: np.ndarray, scores: np.ndarray, curved: bool, least: float, area: int
) -> tuple[list[np.ndarray], list[float]]:
    """Turn labels (H, W) into polygons, at least `area` pixels and of a mean score of `least`.

    Returns: a list of (P, 2) float32 polygons, quads unless `curved`, clockwise as they are seen;
        the mean of scores (H, W) in each.
    """
    polygons, means = [], []
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[rows, columns] == k
        mean = float(scores[rows, columns][inside].mean())
        if inside.sum() < area or mean < least:
            continue
        mask = np.pad(inside.astype(np.uint8), 1)
        loops, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        loop = max(loops, key=cv2.contourArea)
        polygon = cv2.boxPoints(cv2.minAreaRect(loop))
        if curved:
            polygon = cv2.approxPolyDP(loop, 0.01 * cv2.arcLength(loop, True), True)[:, 0]
        if len(polygon) < 3 or not cv2.contourArea(polygon):
            continue
        if cv2.contourArea(polygon, oriented=True) < 0:
            polygon = polygon[::-1]
        corner = np.array([columns.start - 1, rows.start - 1], np.float32)
        polygons.append(np.float32(polygon) + corner)
        means.append(mean)
    return polygons, means


@torch.no_grad()
def detect(
    model: PSENet, image: Image.Image, settings: dict[str, Any]
) -> tuple[list[np.ndarray], list[float]]:
    """Find text in a picture: polygons in its own pixels, and the mean score of each, 0..1."""
    scale = settings["long"] / max(image.size)
    size = [max(1, round(scale * side)) for side in image.size]
    canvas = Image.new("RGB", [-side // 32 * -32 for side in size], GREY)
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2))
    device = model.head.weight.device
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None].to(device)
    scores = model(vlpt.normalize(pixels).contiguous(memory_format=torch.channels_last))[0]
    scores = scores[:, : size[1], : size[0]].sigmoid().cpu().numpy()
    labels = expand((scores > 0.5) & (scores[0] > 0.5))
    polygons, means = outline(labels, scores[0], settings["curved"], settings["score"], area=10)
    stretch = np.divide(image.size, size)
    return [
        ((p + 0.5) * stretch - 0.5).clip(0, np.subtract(image.size, 1)) for p in polygons
    ], means


# -------------------------------------------------------------------------------------- the score


def area_of(polygon: np.ndarray) -> shapely.geometry.base.BaseGeometry:
    return shapely.make_valid(shapely.Polygon(polygon))


def match(
    truth: Sequence[np.ndarray], ignored: Sequence[bool] | np.ndarray, found: Sequence[np.ndarray]
) -> np.ndarray:
    """Count as ICDAR 2015 does: (matched, words, detections) of one picture, int64.

    A detection more than half of which lies in an ignored region counts nowhere. The others and
    the words are paired in their order, one to one, where their IoU is above 0.5.
    """
    words = [area_of(p) for p, skip in zip(truth, ignored, strict=True) if not skip]
    regions = [area_of(p) for p, skip in zip(truth, ignored, strict=True) if skip]
    boxes = [box for box in map(area_of, found)
             if not any(box.intersection(r).area > 0.5 * box.area for r in regions)]  # fmt: skip
    left = list(boxes)
    for word in words:
        for k, box in enumerate(left):
            common = word.intersection(box).area
            if common > 0.5 * (word.area + box.area - common):
                del left[k]
                break
    return np.array([len(boxes) - len(left), len(words), len(boxes)])


def f_score(counts: np.ndarray) -> dict[str, float]:
    """Precision, recall and their harmonic mean, 0..1, of counts that are summed over a set."""
    matched, words, boxes = counts.tolist()
    precision, recall = matched / max(1, boxes), matched / max(1, words)
    f = 2 * precision * recall / (precision + recall) if matched else 0.0
    return {"precision": precision, "recall": recall, "f": f}


def evaluate(
    model: PSENet, pages: PageSource, settings: dict[str, Any], out: Path | None = None
) -> dict[str, float]:
    """Score a model on pages; with `out`, write res_NAME.txt there in the competition's form."""
    model.eval()
    total, start, texts = np.zeros(3, np.int64), time.perf_counter(), dict[Path, str]()
    for k in tqdm(range(len(pages)), "evaluation", unit="picture", disable=None, leave=False):
        page = pages[k]
        polygons, _ = detect(model, page.image, settings)
        total += match(page.polygons, page.ignored, polygons)
        if out is not None:
            path = out / f"res_{pages.name(k)}.txt"
            if path in texts:
                raise ValueError(f"{path}: two pictures have this name, wanted one")
            lines = (",".join(map(str, np.rint(p).astype(int).ravel())) for p in polygons)
            texts[path] = "".join(line + "\r\n" for line in lines)
    model.train()
    if out is not None:
        out.mkdir(exist_ok=True)
        for path in out.glob("res_*.txt"):  # of another set
            path.unlink()
        for path, text in texts.items():
            write(path, text.encode())
    counts = dict(zip(("matched", "words", "detections"), total.tolist(), strict=True))
    seconds = round(time.perf_counter() - start, 1)
    return f_score(total) | counts | {"pictures": len(pages), "seconds": seconds}


# ---------------------------------------------------------------------------------------- commands


def build(settings: dict[str, Any], init: str | None = None) -> PSENet:
    """The detector of some settings; its backbone from `init`, an export or a run, or random."""
    name = settings["backbone"]
    known, size = "clip_resnet" if name == "tiny" else name, BACKBONES[name]
    if init:
        backbone = vlpt.load_backbone(init, known, **size)
    else:
        backbone = vlpt.build_backbone(known, **size)
    model = PSENet(backbone, settings["width"])
    return model.to(settings["device"]).to(memory_format=torch.channels_last)


def load(run: Path, device: str) -> tuple[PSENet, dict[str, Any]]:
    """A detector that `train` left. Raises: OSError, ValueError if it is anything else."""
    held = vlpt.read_checkpoint(run)
    try:
        settings = held["settings"] | {"device": device}
        model = build(settings)
        model.load_state_dict(held["state_dict"])
    except (KeyError, TypeError, RuntimeError):
        raise ValueError(f"{run}: not a detector, wanted what detect_min.py train left") from None
    return model.eval(), settings


def batches(data: Crops, count: int, batch: int, workers: int) -> Iterator[list[Tensor]]:
    keys = (list(range(k * batch, (k + 1) * batch)) for k in range(count))
    return iter(torch.utils.data.DataLoader(data, batch_sampler=keys, num_workers=workers))


def fit(model: PSENet, data: Crops, args: argparse.Namespace) -> list[dict[str, float]]:
    """Train: AdamW, linear warm-up, cosine to zero; a row of losses for each tenth of the steps."""
    steps, rows, recent = args.samples // args.batch, [], []
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == decays],
               "weight_decay": 1e-4 * decays} for decays in (True, False)]  # fmt: skip
    optimizer, start = torch.optim.AdamW(groups, lr=args.lr), time.perf_counter()
    model.train()
    loader = batches(data, steps, args.batch, args.workers)
    bar = tqdm(loader, total=steps, disable=None, leave=False)
    for step, batch in enumerate(bar):
        rate = min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        pixels, kernels, valid = (x.to(model.head.weight.device) for x in batch)
        images = vlpt.normalize(pixels).contiguous(memory_format=torch.channels_last)
        text, kernel = psenet_loss(model(images), kernels, valid)
        loss = 0.7 * text + 0.3 * kernel
        if not torch.isfinite(loss):
            told = f"the loss is {loss.item()}; wanted a smaller one"
            raise ValueError(f"--lr: got {args.lr}, {told}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append((text.item(), kernel.item()))
        if (step + 1) % math.ceil(steps / 10) == 0 or step + 1 == steps:
            text, kernel = np.mean(recent, 0).tolist()
            seconds = time.perf_counter() - start
            rows.append({"samples": (step + 1) * args.batch, "text": text, "kernel": kernel})
            bar.write(f"{rows[-1]['samples']:>9,} {text:7.3f} {kernel:7.3f} {seconds:8.0f}")
            recent = []
    return rows


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train on the training half of --data and write runs/NAME/; what metrics.json holds."""
    settings = {key: getattr(args, key) for key in SETTINGS}
    held = next(path for path in (args.out, *args.out.parents) if path.exists())
    if not held.is_dir() or (args.out / "run.json").exists():
        what = "a pre-training" if held.is_dir() else f"{held} is a file"
        raise ValueError(f"--name: got {args.name}: {what}, wanted another")
    torch.manual_seed(args.seed)
    model = build(settings, args.init)
    pages = open_pages(args.data, "train", args.long, args.samples, args.seed)
    data = Crops(pages, args.subset, args.long, args.crop, args.smallest, args.seed)
    size = sum(p.numel() for p in model.parameters())
    started = args.init or "random weights"
    print(f"{len(data.indices):,} pictures of {args.data}; {size:,} parameters from {started}")
    print("  samples    text  kernel  seconds   (1 - Dice, 0 is perfect)")
    rows, buffer = fit(model, data, args), io.BytesIO()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "settings": settings}, buffer)
    write(args.out / "checkpoint.pt", buffer.getvalue())
    (args.out / "score.json").unlink(missing_ok=True)  # of the detector before
    found = {"args": {k: str(v) for k, v in vars(args).items()}, "rows": rows}
    write(args.out / "metrics.json", json.dumps(found, indent=1).encode())
    print(f"wrote {args.out}/: checkpoint.pt metrics.json")
    return found


def score(args: argparse.Namespace) -> dict[str, float]:
    """Score a trained detector on the held-out half of --data."""
    model, settings = load(args.run, args.device)
    pages = open_pages(args.data, "heldout", settings["long"], args.count)
    found = evaluate(model, pages, settings, args.run / "results")
    write(args.run / "score.json", json.dumps(found | {"data": args.data}, indent=1).encode())
    print(f"wrote {args.run}/: score.json results/res_*.txt")
    shown = (f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in found.items())
    print(f"RESULT data={args.data}", *shown)
    return found


def predict(args: argparse.Namespace) -> None:
    """Write NAME.json and the overlay NAME.png for each picture, in runs/NAME/predictions/."""
    model, settings = load(args.run, args.device)
    paths = [p for path in args.images for p in ([path] if not path.is_dir() else sorted(
        p for p in path.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")))]  # fmt: skip
    if not paths:
        raise ValueError(f"{args.images[0]}: got no picture in it, wanted .jpg or .png")
    stems = Counter(path.stem for path in paths)
    if (twice := stems.most_common(1)[0])[1] > 1:
        raise ValueError(f"IMAGE: got {twice[1]} named {twice[0]}, wanted each name once")
    out = args.run / "predictions"
    out.mkdir(exist_ok=True)
    for path in paths:
        image, _ = data_stub.open_image(path)
        polygons, means = detect(model, image, settings)
        draw = ImageDraw.Draw(image)
        for polygon in polygons:
            points = [*map(tuple, polygon.tolist())]
            draw.line([*points, points[0]], fill=(255, 0, 80), width=2 + max(image.size) // 500)
        image.save(buffer := io.BytesIO(), "png")
        write(out / f"{path.stem}.png", buffer.getvalue())
        words = [{"polygon": np.round(p, 1).tolist(), "score": round(s, 4)}
                 for p, s in zip(polygons, means, strict=True)]  # fmt: skip
        entry = {"image": str(path), "width": image.width, "height": image.height, "text": words}
        write(out / f"{path.stem}.json", json.dumps(entry, indent=1).encode())
        print(f"{path}: {len(words)} texts; wrote {out / path.stem}.png, .json")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    shape = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(prog="detect_min.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = [commands.add_parser(name, help=text, description=text, formatter_class=shape,
                                   allow_abbrev=False)
               for name, text in (("train", "train a detector, into runs/NAME/"),
                                  ("eval", "score a detector on held-out pictures"),
                                  ("predict", "find text in pictures"))]  # fmt: skip
    add = parsers[0].add_argument
    add("--data", default="synth", help=SOURCES)
    add("--backbone", choices=BACKBONES, default="tiny", help="tiny: that of train_min.py's demo")
    add(
        "--init",
        type=some_path,
        metavar="PATH",
        help="backbone: an export, or a run of train_min.py",
    )
    add("--name", type=folder_name, default="detect",
        help="results go to runs/NAME, replacing a detector there")  # fmt: skip
    add("--samples", type=number(int, 1), default=8000, help="crops to train on, with repeats")
    add("--batch", type=number(int, 1), default=8, help="crops a step")
    add("--lr", type=number(float, 0, above=True), default=1e-3, help="largest learning rate")
    add("--long", type=number(int, 32), default=960, help="longer side of a picture, pixels")
    add("--crop", type=number(int, 32), default=256, help="side of a crop, a multiple of 32 pixels")
    add("--width", type=number(int, 1), default=64, help="channels of the pyramid; published: 256")
    add("--smallest", type=number(float, 0, 1, above=True), default=0.4,
        help="rate of the smallest kernel; curved text: 0.7")  # fmt: skip
    add("--curved", action="store_true", help="polygons out, not quads")
    add("--score", type=number(float, 0, 1, above=True), default=0.7,
        help="least mean score of a detection, 0..1")  # fmt: skip
    add("--subset", type=number(int, 1), metavar="N",
        help="train on N pictures, the same for the same seed")  # fmt: skip
    add("--seed", type=number(int, 0), default=0, help="of weights, pictures, crops")
    add("--workers", type=number(int, 0), default=1, help="processes that prepare crops, or 0")
    for command in parsers[1:]:
        command.add_argument("run", type=Path, help="the folder that train left")
    parsers[1].add_argument("--data", default="synth", help=SOURCES)
    parsers[1].add_argument("--count", type=number(int, 1), default=200, help="pictures of synth")
    parsers[2].add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="or a folder of them"
    )
    for command in parsers:
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where")
    args = parser.parse_args(argv)
    if args.command == "train":
        if args.samples < args.batch:
            parsers[0].error(f"--samples: got {args.samples}, wanted at least --batch {args.batch}")
        if args.crop % 32:
            parsers[0].error(f"--crop: got {args.crop}, wanted a multiple of 32")
        args.out = Path("runs") / args.name
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but torch finds no GPU; use cpu")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        {"train": train, "eval": score, "predict": predict}[args.command](args)
    except (ValueError, OSError, ImportError) as error:
        told = str(error).strip()
        if "Original Traceback" in told:  # from a worker process; the last line has the message
            told = told.splitlines()[-1].partition(": ")[2]
        sys.exit(f"detect_min.py: error: {told}")
    except KeyboardInterrupt:
        sys.exit("detect_min.py: stopped")


if __name__ == "__main__":
    main()
