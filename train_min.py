"""Pre-train VLPT on one CPU or GPU and leave a backbone that detectors can load.

    python train_min.py                                      # the demo: digits, rendered, on a CPU
    python train_min.py --preset oclip_rn50 --data synthtext:PATH --name rn50

Everything lands in runs/NAME/: backbone.safetensors (the product), checkpoint.pt, metrics.json,
loss.png, attention.png. The last line printed is `RESULT key=value ...`.

Held-out pictures tell what was learned: the masked character is predicted once with its own
picture and once with another one. The difference was read from pixels; the rest is guessed from
the other letters.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import data_stub
import vlpt
from experiments import report_min

PRESETS = {  # the model, the pictures that `--data synth` draws for it, its learning rate
    "tiny": (vlpt.TINY, data_stub.DIGITS, 1e-3),
    "oclip_rn50": (vlpt.OCLIP_RN50, data_stub.Scene(), 1e-4),  # published
}
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "clip_resnet50", "clip_resnet101")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(
        lr=None, image_size=None, alphabet=None, subset=None, backbone=None, init=None
    )  # fmt: skip
    preset, add = argparse.SUPPRESS, parser.add_argument  # the preset's, see `configure`
    add("--data", default="synth", help="synth, synthtext:PATH, icdar2015:PATH or jsonl:PATH")
    add("--preset", choices=PRESETS, default="tiny", help="sizes of the model")
    add("--backbone", choices=BACKBONES, default=preset,
        help="image backbone (default: the preset's, CLIP's stem)")  # fmt: skip
    add("--init", metavar="PATH|torchvision", default=preset,
        help="start the backbone from an export, a run (its folder) or the released oCLIP one, "
        "or from torchvision's ImageNet weights (default: random)")  # fmt: skip
    add("--name", default="demo", help="results go to runs/NAME, replacing those there")
    add("--samples", type=int, default=60_000, help="pictures to train on, repeats included")
    add("--batch", type=int, default=64, help="pictures a step, at least 2")
    add("--lr", type=float, default=preset,
        help="largest learning rate (default: 1e-3 for tiny, 1e-4 for oclip_rn50)")  # fmt: skip
    add("--warmup", type=int, default=150, help="steps of linear warm-up; published: 10000")
    add("--weight-decay", type=float, default=0.1, help="AdamW's, not on gains and biases")
    add(
        "--image-size",
        type=int,
        default=preset,
        help="height = width, pixels, a multiple of 32 (default: 64 for tiny, 512 for oclip_rn50)",
    )
    add(
        "--alphabet",
        default=preset,
        metavar="ascii|data|PATH",
        help=f"characters to learn: 94 of printable ASCII; those of the training words, the most "
        f"frequent {data_stub.MOST}; those of a UTF-8 file (default: digits for tiny on synth, "
        f"else ascii)",
    )
    add("--subset", type=int, default=preset, metavar="N",
        help="train on N pictures, the same for the same seed (default: all)")  # fmt: skip
    add("--annotated", type=float, default=1.0, metavar="SHARE",
        help="share of its words that each training picture keeps, at least one")  # fmt: skip
    add("--eval", type=int, default=1024, help="held-out pictures to evaluate on, at most")
    add("--seed", type=int, default=0, help="of weights, pictures, words, masks")
    add("--workers", type=int, default=1, help="processes that prepare pictures, 0 for none")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    add("--tensorboard", action="store_true", help="log to runs/NAME/tensorboard as well")
    args = parser.parse_args(argv)
    smallest = {"samples": 2, "batch": 2, "eval": 2, "warmup": 0, "workers": 0, "seed": 0}
    for name, least in smallest.items():
        if getattr(args, name) < least:
            parser.error(f"--{name}: got {getattr(args, name)}, wanted at least {least}")
    if args.seed >= 2**63:
        parser.error(f"--seed: got {args.seed}, wanted less than 2**63")
    args.lr = PRESETS[args.preset][2] if args.lr is None else args.lr
    if not 0 < args.lr < math.inf or not 0 <= args.weight_decay < math.inf:
        parser.error("--lr must be above 0 and --weight-decay not below 0")
    if args.samples < args.batch:
        parser.error(f"--samples: got {args.samples}, wanted at least one batch of {args.batch}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but torch finds no GPU; use cpu or auto")
    return args


def configure(args: argparse.Namespace) -> tuple[vlpt.Config, data_stub.Scene]:
    """The preset, with what the options change."""
    config, scene, _ = PRESETS[args.preset]
    if args.alphabet is None:
        alphabet = config.alphabet if args.data == "synth" else vlpt.PRINTABLE
    else:
        source = None
        if args.alphabet == "data":
            source = data_stub.open_source(args.data, "train", 32, 2, args.seed, scene)
        alphabet = data_stub.read_alphabet(args.alphabet, source)
    if alphabet != config.alphabet:
        scene = dataclasses.replace(data_stub.Scene(), alphabet=alphabet)
    size = config.image_size if args.image_size is None else args.image_size
    if args.backbone:
        config = dataclasses.replace(config, backbone=args.backbone, backbone_size={})
    return dataclasses.replace(config, alphabet=alphabet, image_size=size), scene


def load_init(init: str, config: vlpt.Config) -> vlpt.Backbone:
    """The backbone that --init names, in the sizes of `config`."""
    source = init
    if init == "torchvision":
        if not config.backbone.startswith("resnet"):
            plain = "|".join(name for name in BACKBONES if name.startswith("resnet"))
            got = f"--backbone {config.backbone}"
            raise ValueError(f"--init torchvision: got {got}, which it lacks, wanted {plain}")
        try:
            model = torchvision.models.get_model(config.backbone, weights="DEFAULT")
        except (OSError, RuntimeError) as error:  # no network; a download that was cut short
            raise ValueError(f"--init torchvision: cannot fetch its weights: {error}") from None
        source = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    return vlpt.load_backbone(source, config.backbone, **config.backbone_size)


def load_pool(init: str, pool: vlpt.AttentionPool) -> str:
    """Fill the pool from --init where that has one of its shape; what was loaded, in words."""
    tensors = {} if init == "torchvision" else vlpt.read_tensors(init, "visual.attnpool.", "pool.")
    shapes = {key: value.shape for key, value in pool.state_dict().items()}
    if {key: getattr(value, "shape", None) for key, value in tensors.items()} != shapes:
        return "backbone only, its pool has other sizes" if tensors else "backbone only"
    pool.load_state_dict(tensors)
    return "backbone and pool"


def make_loader(
    data: data_stub.Pretraining, batches: Iterable[Iterable[int]], workers: int
) -> Iterator[data_stub.Batch]:
    return iter(DataLoader(data, batch_sampler=batches, num_workers=workers,
                           collate_fn=data_stub.collate))  # fmt: skip


def make_optimizer(model: vlpt.VLPT, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices, not gains, biases and the temperature."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999))


def lr_at(step: int, steps: int, warmup: int) -> float:
    """Part of the largest learning rate at a step: linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def run_model(model: vlpt.VLPT, images: Tensor, ids: Tensor) -> vlpt.Output:
    """Forward in bfloat16 where that is fast, results in float32 for the losses."""
    images = vlpt.normalize(images).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        output = model(images, ids)
    return vlpt.Output(*(value.float() for value in output))


def train_step(
    model: vlpt.VLPT, optimizer: torch.optim.Optimizer, images: Tensor, ids: Tensor, targets: Tensor
) -> dict[str, float]:
    """One update; the losses in nats, exp(log_scale) and the share of characters read."""
    output = run_model(model, images, ids)
    loss = vlpt.total_loss(output, targets, model.config.contrastive)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}; a smaller --lr may help")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        masked = targets != vlpt.IGNORE
        right = (output.logits.argmax(-1) == targets)[masked].float().mean().item()
        char = vlpt.char_loss(output.logits, targets).item()
    return {"char": char, "contrastive": loss.item() - char,
            "scale": output.log_scale.exp().clamp(max=100).item(), "acc": right}  # fmt: skip


@torch.no_grad()
def evaluate(model: vlpt.VLPT, batches: Iterable[data_stub.Batch], seed: int) -> dict[str, float]:
    """Masked-character accuracy with the right and with another picture, retrieval at 1."""
    model.eval()
    device, generator = model.log_scale.device, torch.Generator().manual_seed(seed)
    right = other = masked = unreadable = 0
    features = []
    for batch in batches:
        unreadable += len(batch.skipped)
        if len(batch.images) < 2:  # pictures that cannot be decoded may leave nothing to compare
            continue
        images = batch.images.to(device)
        ids, targets = (x.to(device) for x in vlpt.mask_one_char(batch.ids, generator))
        where = targets != vlpt.IGNORE
        output = run_model(model, images, ids)
        swapped = run_model(model, images.roll(1, 0), ids)
        right += (output.logits.argmax(-1) == targets)[where].sum().item()
        other += (swapped.logits.argmax(-1) == targets)[where].sum().item()
        masked += where.sum().item()
        features.append((output.image, output.text))
    model.train()
    if not masked:
        raise ValueError("no held-out picture can be read")
    image, text = (
        torch.nn.functional.normalize(torch.cat(x), dim=1) for x in zip(*features, strict=True)
    )
    nearest, own = (image @ text.T), torch.arange(len(image), device=device)
    return {"acc_right": right / masked, "acc_other": other / masked,
            "gain": (right - other) / masked,
            "i2t": (nearest.argmax(1) == own).float().mean().item(),
            "t2i": (nearest.argmax(0) == own).float().mean().item(),
            "pictures": len(image), "characters": masked, "unreadable": unreadable}  # fmt: skip


def save_checkpoint(path: Path, model: vlpt.VLPT, optimizer: torch.optim.Optimizer, **rest) -> None:
    """Write weights, optimiser and settings, whole or not at all."""
    part = path.with_name(path.name + ".part")
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
                "config": dataclasses.asdict(model.config), **rest}, part)  # fmt: skip
    part.replace(path)


def open_data(
    args: argparse.Namespace, config: vlpt.Config, scene: data_stub.Scene
) -> tuple[data_stub.Pretraining, data_stub.Pretraining]:
    """Training and held-out half of --data; says what each leaves out."""
    halves = []
    for split, count in (("train", args.samples), ("heldout", args.eval)):
        size = config.image_size
        source = data_stub.open_source(args.data, split, size, count, args.seed, scene)
        chosen = ()
        if split == "train":  # rendered pictures are varied enough
            chosen = args.subset, args.annotated, args.data != "synth"
        alphabet = vlpt.Alphabet(config.alphabet)
        half = data_stub.Pretraining(source, alphabet, size, args.seed, *chosen)
        notes = "; ".join(f"{count:,} {what}" for what, count in half.notes.items())
        pictures = f"{len(half.indices):,} pictures of {args.data}"
        print(f"{split}: {pictures}; left out or cut: {notes or 'nothing'}")
        halves.append(half)
    if len(halves[1].indices) < 2:
        raise ValueError(f"{args.data}: got 1 usable held-out picture, wanted 2 or more")
    return halves[0], halves[1]


class Log:
    """Prints one line an evaluation, keeps every number, writes to TensorBoard if asked."""

    def __init__(self, chance: tuple[float, float], board: Path | None) -> None:
        self.rows: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.skipped: Counter[str] = Counter()
        self.outside = 0
        self.seconds: list[tuple[float, float]] = []  # of each step: waiting for data, in all
        self.timed = 0  # steps whose seconds are printed
        self.start, self.printed, self.board = time.perf_counter(), 0, None
        self.chance = chance
        if board is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError("--tensorboard: needs `pip install tensorboard`") from None
            self.board = SummaryWriter(str(board))
        print(
            "  pictures   L_cls    L_bc   scale   read | held-out right  other    i2t    t2i  img/s"
            "   wait"
        )
        print(f"{'chance':>10} {chance[0]:7.3f} {chance[1]:7.3f}   (ln V, 2 ln B; nats)")

    def wait(self, first: int = 0) -> float:
        """The share of their time, 0..1, that the steps from `first` on waited for data."""
        seconds = np.array(self.seconds[first:]).reshape(-1, 2).sum(0)
        return float(seconds[0] / seconds[1]) if seconds[1] else 0.0

    def step(self, samples: int, row: dict[str, float]) -> None:
        self.rows.append({"samples": samples} | row)
        if self.board is not None:
            for key, value in row.items():
                self.board.add_scalar(f"train/{key}", value, samples)

    def evaluation(self, samples: int, result: dict[str, float]) -> str:
        """Note an evaluation; the line to print, with means since the last one."""
        self.evaluations.append({"samples": samples} | result)
        if self.board is not None:
            for key, value in result.items():
                self.board.add_scalar(f"heldout/{key}", value, samples)
        recent, self.printed = self.rows[self.printed :], len(self.rows)
        keys = ("char", "contrastive", "scale", "acc")
        mean = [np.mean([row[key] for row in recent]) if recent else math.nan for key in keys]
        wait, self.timed = self.wait(self.timed), len(self.seconds)
        speed = samples / (time.perf_counter() - self.start)
        line = "{:>10,} {:7.3f} {:7.3f} {:7.2f} {:6.3f} |".format(samples, *mean)
        shares = (result[key] for key in ("acc_right", "acc_other", "i2t", "t2i"))
        return (
            line
            + " " * 9
            + " ".join(f"{share:6.3f}" for share in shares)
            + f" {speed:6.0f} {wait:6.2f}"
        )


def fit(
    model: vlpt.VLPT,
    train: data_stub.Pretraining,
    heldout: data_stub.Pretraining,
    args: argparse.Namespace,
    out: Path,
) -> Log:
    """The training loop: ten evaluations, each with a checkpoint."""
    device, generator = model.log_scale.device, torch.Generator().manual_seed(args.seed)
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    chance = math.log(len(train.alphabet)), 2 * math.log(args.batch)
    log = Log(chance, out / "tensorboard" if args.tensorboard else None)
    steps, count = args.samples // args.batch, min(args.eval, len(heldout.indices))
    keys = (range(k * args.batch, (k + 1) * args.batch) for k in range(steps))
    held_keys = np.array_split(np.arange(count), max(1, count // args.batch))
    batches = make_loader(train, keys, args.workers)
    bar = tqdm(batches, total=steps, unit="step", disable=None, leave=False)
    began = time.perf_counter()
    for step, batch in enumerate(bar, start=1):
        waited = time.perf_counter() - began
        log.skipped.update(batch.skipped)
        log.outside += batch.outside
        for group in optimizer.param_groups:
            group["lr"] = args.lr * lr_at(step - 1, steps, args.warmup)
        if len(batch.images):
            masked, targets = vlpt.mask_one_char(batch.ids, generator)
            tensors = (x.to(device) for x in (batch.images, masked, targets))
            log.step(step * args.batch, train_step(model, optimizer, *tensors))
        log.seconds.append((waited, time.perf_counter() - began))
        if step % math.ceil(steps / 10) == 0 or step == steps:
            result = evaluate(model, make_loader(heldout, held_keys, args.workers), args.seed)
            bar.write(log.evaluation(step * args.batch, result))
            save_checkpoint(out / "checkpoint.pt", model, optimizer, step=step, args=vars(args))
        began = time.perf_counter()
    return log


def run(args: argparse.Namespace) -> None:
    """Everything from the options to the RESULT line."""
    config, scene = configure(args)
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    backbone = load_init(args.init, config) if args.init else None  # or its error, before the data
    torch.manual_seed(args.seed)
    train, heldout = open_data(args, config, scene)
    model = vlpt.VLPT(config)
    if backbone is not None:
        model.backbone = backbone
        print(f"started from {args.init}: {load_pool(args.init, model.pool)}")
    model.to("cuda" if cuda else "cpu", memory_format=torch.channels_last)
    size = sum(p.numel() for p in model.parameters())
    device = torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)"
    print(f"{device}, torch {torch.__version__}, seed {args.seed}, {size:,} parameters")
    out = Path("runs") / args.name
    out.mkdir(parents=True, exist_ok=True)
    log = fit(model, train, heldout, args, out)
    for reason, count in log.skipped.most_common(5):
        print(f"skipped {count} times: {reason}")
    if len(log.skipped) > 5:
        print(f"skipped as well: {len(log.skipped) - 5:,} other pictures")
    if log.outside:
        print(f"left out {log.outside:,} times: a word that is mostly outside its picture")
    vlpt.export_backbone(model, out / "backbone.safetensors", training_data=args.data,
                         steps=args.samples // args.batch)  # fmt: skip
    report_min.plot_losses(out / "loss.png", log.rows, log.evaluations, log.chance)
    report_min.plot_attention(out / "attention.png", model, heldout)
    result = log.evaluations[-1] | {
        "skipped": log.skipped.total(), "wait": log.wait(),
        "seconds": round(time.perf_counter() - log.start)
    }  # fmt: skip
    metrics = {"args": vars(args), "config": dataclasses.asdict(config), "result": result,
               "evaluations": log.evaluations, "steps": log.rows}  # fmt: skip
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"wrote {out}/: " + " ".join(sorted(path.name for path in out.iterdir())))
    shown = (f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items())
    print(f"RESULT data={args.data} preset={args.preset} seed={args.seed}", *shown)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"train_min.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"train_min.py: stopped; runs/{args.name}/ holds what the last evaluation left")


if __name__ == "__main__":
    main()
