"""Pre-train VLPT on CPUs or GPUs and leave a backbone that detectors can load.

    python train_min.py                                      # the demo: digits, rendered, on a CPU
    python train_min.py --preset oclip_rn50 --data synthtext:PATH --name rn50
    torchrun --nproc-per-node 4 train_min.py ...             # the same on four GPUs
    python train_min.py --name rn50 --resume                 # go on; on CPUs to the same bits
    python train_min.py --replay runs/rn50                   # the whole run once more

Everything lands in runs/NAME/: backbone.safetensors (the product), run.json (what the run depends
on), log.jsonl (a line a step), checkpoint.pt and the one before it, metrics.json and pictures.
The last line printed is `RESULT key=value ...`.

Held-out pictures tell what was learned: the masked character is predicted once with its own
picture and once with another one. The difference was read from pixels; the rest is guessed from
the other letters.
"""

import argparse
import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import data_stub
import vlpt
from experiments import report_min
from experiments.recompute_min import Recomputed
from experiments.run_min import (
    Log,
    Parser,
    Stopped,
    folder_name,
    gather,
    need_tensorboard,
    number,
    open_folder,
    over_all,
    rank,
    read_run,
    restore,
    save_checkpoint,
    say,
    signals,
    some_path,
    world,
    write,
    write_facts,
)  # fmt: skip

PRESETS = {  # the model, the pictures that `--data synth` draws for it, its learning rate
    "tiny": (vlpt.TINY, data_stub.DIGITS, 1e-3),
    "oclip_rn50": (vlpt.OCLIP_RN50, data_stub.Scene(), 1e-4),  # published
}
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "clip_resnet50", "clip_resnet101")
FREE = {"name", "resume", "overwrite", "replay", "workers", "device", "tensorboard",
        "skip_nonfinite"}  # fmt: skip  # may be given anew with --resume or --replay
BROKEN = 0.1  # largest share of training pictures that may be unreadable, and replaced; 10 always
TRIES = 8  # pictures in a row that are tried for one place in a batch
LOG_CAP = math.log(100) - 1e-6  # of log_scale, just where the loss still has a gradient (D6)

# ------------------------------------------------------------------------------------- options


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train_min.py", allow_abbrev=False, description=__doc__.split("\n\n")[0],
        epilog="`train_min.py compare runs/A runs/B` sets two runs side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    unset = argparse.SUPPRESS  # --help names no default, `parse_args` makes it None
    add = parser.add_argument_group("model and pictures").add_argument
    add("--data", default="synth", help="synth, synthtext:PATH, icdar2015:PATH or jsonl:PATH")
    add("--preset", choices=PRESETS, default="tiny", help="sizes of the model")
    add("--backbone", choices=BACKBONES, default=unset,
        help="image backbone (default: the preset's, CLIP's stem)")  # fmt: skip
    add("--init", type=some_path, metavar="PATH|torchvision", default=unset,
        help="start the backbone from an export, a run (its folder) or the released oCLIP one, "
        "or from torchvision's ImageNet weights (default: random)")  # fmt: skip
    add("--image-size", type=int, default=unset,
        help="height = width, pixels, a multiple of 32 (default: 64 for tiny, 512 for oclip_rn50)",
    )  # fmt: skip
    add("--alphabet", default=unset, metavar="ascii|data|PATH",
        help=f"characters to learn: 94 of printable ASCII; those of the training words, the most "
        f"frequent {data_stub.MOST}; those of a UTF-8 file (default: digits for tiny on synth, "
        f"else ascii)")  # fmt: skip
    add("--subset", type=number(int, 1), default=unset, metavar="N",
        help="train on N pictures, the same for the same seed (default: all)")  # fmt: skip
    add("--annotated", type=float, default=1.0, metavar="SHARE",
        help="share of its words that each training picture keeps, at least one")  # fmt: skip
    add = parser.add_argument_group("training").add_argument
    add("--samples", type=number(int, 2), default=60_000,
        help="pictures to train on, repeats included, as whole batches")  # fmt: skip
    add("--batch", type=number(int, 2), default=64,
        help="pictures a step, in all processes together")  # fmt: skip
    add("--accumulate", type=number(int, 1), default=1, metavar="K",
        help="run each process's part of the batch in K pieces, twice: less memory, the gradient "
        "of the whole batch (GradCache), batch statistics of a piece")  # fmt: skip
    add(
        "--recompute",
        action="store_true",
        help="keep less of the backbone between forward and backward, compute it again instead",
    )
    add("--lr", type=number(float, 0, above=True), default=unset,
        help="largest learning rate (default: 1e-3 for tiny, 1e-4 for oclip_rn50)")  # fmt: skip
    add("--warmup", type=number(int, 0), default=150,
        help="steps of linear warm-up; published: 10000")  # fmt: skip
    add("--weight-decay", type=number(float, 0), default=0.1,
        help="AdamW's, not on gains and biases")  # fmt: skip
    add("--skip-nonfinite", type=number(int, 0), default=0, metavar="N",
        help="steps with an infinite or undefined loss or gradient to leave out before "
        "stopping")  # fmt: skip
    add("--eval", type=number(int, 2), default=1024, help="held-out pictures to evaluate on")
    add("--seed", type=number(int, 0, 2**63), default=0, help="of weights, pictures, words, masks")
    add("--workers", type=number(int, 0), default=1,
        help="processes that prepare pictures, 0 for none")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    add = parser.add_argument_group("the run's folder").add_argument
    add("--name", type=folder_name, default="demo", help="results go to runs/NAME")
    add("--overwrite", action="store_true", help="replace what a run left there")
    add(
        "--resume",
        nargs="?",
        const="last",
        choices=("last", "previous"),
        default=unset,
        help="go on from its checkpoint, or from the one before, with the options of its start",
    )
    add(
        "--replay",
        metavar="runs/A",
        type=Path,
        default=unset,
        help="repeat a run with its options, in runs/A-replay unless --name says where",
    )
    add("--tensorboard", action="store_true", help="log to runs/NAME/tensorboard as well")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; those of an earlier run where --resume or --replay names one.

    Raises: SystemExit for a wrong option; ValueError or OSError for a wrong earlier run.
    """
    parser = make_parser()
    named = [action for action in parser._actions if action.dest != "help"]
    defaults = {action.dest: None for action in named if action.default is argparse.SUPPRESS}
    args = parser.parse_args(argv, argparse.Namespace(**defaults))
    for action in named:
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(argv))  # once more, without defaults
    if args.resume and (args.overwrite or args.replay):
        parser.error("--resume: got --overwrite or --replay as well, wanted one of them")
    if args.replay or args.resume:
        if args.replay and "name" not in given:
            args.name = f"{args.replay.resolve().name}-replay"
        earlier = read_run(args.replay or Path("runs") / args.name)["args"]
        differ = [
            f"--{key.replace('_', '-')}: got {given[key]!r}, wanted "
            + ("it left out, as there" if earlier[key] is None else f"{earlier[key]!r} as there")
            for key in given.keys() & earlier.keys() - FREE
            if given[key] != earlier[key]
        ]
        if differ:
            raise ValueError("options contradict the earlier run's: " + "; ".join(sorted(differ)))
        kept = {k: v for k, v in earlier.items() if k != "name" and k not in given}
        args = argparse.Namespace(**vars(args) | kept)
    args.lr = PRESETS[args.preset][2] if args.lr is None else args.lr
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
        sources = []
        if args.alphabet == "data":
            sources = [data_stub.open_source(args.data, "train", 32, 2, args.seed, scene)]
        alphabet = data_stub.read_alphabet(args.alphabet, *sources)
    if alphabet != config.alphabet:
        scene = dataclasses.replace(data_stub.Scene(), alphabet=alphabet)
    size = config.image_size if args.image_size is None else args.image_size
    if args.backbone:
        config = dataclasses.replace(config, backbone=args.backbone, backbone_size={})
    return dataclasses.replace(config, alphabet=alphabet, image_size=size), scene


def load_init(init: str, config: vlpt.Config) -> vlpt.Backbone:
    """The backbone that --init names, in the sizes of `config`."""
    source: Any = init
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


# ----------------------------------------------------------------------------- many processes


@contextmanager
def processes(args: argparse.Namespace) -> Iterator[torch.device]:
    """This process's device; under torchrun all processes are connected meanwhile."""
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= (count := torch.cuda.device_count()):
            raise ValueError(f"--nproc-per-node: got more than the {count} GPUs of this machine")
        torch.cuda.set_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    if args.resume or args.replay:
        count = read_run(args.replay or Path("runs") / args.name)["processes"]
        if count != world():  # they would draw other masks
            raise ValueError(f"torchrun: got {world()} processes, wanted {count} as in that run")
    if args.batch % world():
        raise ValueError(f"--batch: got {args.batch}, wanted a multiple of {world()} processes")
    yield device
    if dist.is_initialized():  # not after an error: the others may never come to the end
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------ the step


class Nonfinite(FloatingPointError):
    """A loss or gradient is infinite or undefined; `terms` are the step's numbers."""

    def __init__(self, terms: dict[str, float]) -> None:
        told = ", ".join(f"{key} {value:.4g}" for key, value in terms.items())
        super().__init__(f"a loss or gradient is not finite: {told}")
        self.terms = terms


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices, not gains, biases and the temperature."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)


def lr_at(step: int, steps: int, warmup: int) -> float:
    """Part of --lr at step 0, 1, ...: a linear warm-up times a cosine from 1 to 0 at `steps`."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def seed_of(*key: int) -> int:
    """A seed from the run's seed and a step and process, or a piece of an evaluation.

    Zeros at the end do not count: an evaluation's piece k draws as the first process's step k,
    on other pictures.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def run_model(model: nn.Module, images: Tensor, ids: Tensor) -> vlpt.Output:
    """Forward in bfloat16 where that is fast, results in float32 for the losses."""
    images = vlpt.normalize(images).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        output = model(images, ids, masked_only=True)
    return vlpt.Output(*(value.float() for value in output))


def char_part(logits: Tensor, targets: Tensor, total: Tensor) -> Tensor:
    """What these characters add to L_cls, whose mean is over `total` characters."""
    return vlpt.char_loss(logits, targets) * (targets != vlpt.IGNORE).sum() / total.clamp(min=1)


def contrastive_part(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """What this process's rows (B, D) add to L_bc of all processes' pictures."""
    own = slice(rank() * len(image), (rank() + 1) * len(image))
    return vlpt.contrastive_loss(gather(image), gather(text), log_scale, own)


def whole_backward(model: nn.Module, images: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """Gradients of L = L_cls + L_bc over the pictures of all processes; each adds its part of L.

    DistributedDataParallel takes the mean over W processes of what is a sum, hence the factor W.
    Returns: this process's part of (L_cls, L_bc, characters read right), (3,).
    """
    output = run_model(model, images, ids)
    masked = targets != vlpt.IGNORE
    char = char_part(output.logits, targets, over_all(masked.sum()))
    contrastive = 0 * output.log_scale  # a gradient of 0: DDP expects one of each parameter
    if bare(model).config.contrastive:
        contrastive = contrastive_part(output.image, output.text, output.log_scale)
    (world() * (char + contrastive)).backward()
    right = ((output.logits.argmax(-1) == targets) & masked).sum()
    return torch.stack([char, contrastive, right]).detach()


def cached_backward(
    model: nn.Module, images: Tensor, ids: Tensor, targets: Tensor, pieces: int
) -> Tensor:
    """The same in the memory of one piece (GradCache, Gao et al. 2021, arXiv 2101.06983).

    First the features of every piece without a graph; L_bc of them all gives each feature its
    gradient; then every piece once more, pulled by these. Exact but for batch statistics, which
    are those of a piece, the same in both passes.
    """
    net, total = bare(model), over_all((targets != vlpt.IGNORE).sum())
    parts = list(zip(images.chunk(pieces), ids.chunk(pieces), targets.chunk(pieces), strict=True))
    contrastive, pulls = torch.zeros_like(net.log_scale), None
    if net.config.contrastive:
        running = [buffer.clone() for buffer in net.buffers()]
        with torch.no_grad():
            first = [run_model(net, *part[:2])[:2] for part in parts]  # image, text
        for buffer, value in zip(net.buffers(), running, strict=True):
            buffer.copy_(value)
        features = [torch.cat(rows) for rows in zip(*first, strict=True)]
        leaves = [x.detach().requires_grad_() for x in (*features, net.log_scale)]
        contrastive = contrastive_part(*leaves)
        pulls = torch.autograd.grad(contrastive, leaves)
    char, right = torch.zeros_like(contrastive), torch.zeros_like(contrastive)
    done = 0
    for part in parts:
        here = slice(done, done + len(part[0]))
        done = here.stop
        wait = isinstance(model, DistributedDataParallel) and done < len(images)  # for the last
        with model.no_sync() if wait else nullcontext():  # type: ignore[operator]  # of DDP
            output = run_model(model, *part[:2])
            loss = char_part(output.logits, part[2], total)
            char += loss.detach()
            if pulls:
                pull_image, pull_text, pull_scale = pulls
                loss = loss + (output.image * pull_image[here]).sum()
                loss = loss + (output.text * pull_text[here]).sum()
                loss = loss + output.log_scale * pull_scale / len(parts)
            else:
                loss = loss + 0 * output.log_scale
            (world() * loss).backward()
        right += ((output.logits.argmax(-1) == part[2]) & (part[2] != vlpt.IGNORE)).sum()
    return torch.stack([char, contrastive, right]).detach()


def bare(model: nn.Module) -> vlpt.VLPT:
    """The model inside of DistributedDataParallel."""
    inside: Any = model.module if isinstance(model, DistributedDataParallel) else model
    return inside


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, ids: Tensor,
    targets: Tensor, accumulate: int = 1,
) -> dict[str, float]:  # fmt: skip
    """One update; the losses in nats, exp(log_scale), the share of characters read, grad norm.

    Raises: Nonfinite, and nothing of the model has changed.
    """
    net = bare(model)
    before = [buffer.clone() for buffer in net.buffers()]
    optimizer.zero_grad(set_to_none=True)
    if accumulate == 1:
        sums = whole_backward(model, images, ids, targets)
    else:
        sums = cached_backward(model, images, ids, targets, accumulate)
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    sums = over_all(torch.cat([sums, (targets != vlpt.IGNORE).sum()[None]]))
    numbers = torch.stack([*sums, norm, net.log_scale.detach().exp()]).tolist()  # one copy
    char, contrastive, right, masked, norm, scale = numbers
    terms = {"char": char, "contrastive": contrastive, "scale": scale,
             "acc": right / max(1, masked), "norm": norm}  # fmt: skip
    if not all(map(math.isfinite, terms.values())):
        for buffer, value in zip(net.buffers(), before, strict=True):
            buffer.copy_(value)
        raise Nonfinite(terms)
    optimizer.step()
    with torch.no_grad():
        net.log_scale.clamp_(max=LOG_CAP)  # D6, in the parameter as well
    return terms


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[data_stub.Batch], seed: int) -> dict[str, float]:
    """Masked-character accuracy with the right and with another picture, retrieval at 1.

    Under torchrun `batches` are every W-th of the held-out ones; the result is that of them all.
    A picture that is alone in its batch, as others cannot be read, has nothing to be compared with
    and counts as unreadable.
    """
    net, found, reason = bare(model), [], "none was there"
    net.eval()
    if dist.is_initialized():  # on CPUs their batch statistics differ; the first's are saved
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
    device, generator = net.log_scale.device, torch.Generator()
    for turn, batch in enumerate(batches):
        counts, feature = Counter(unreadable=len(batch.skipped)), None
        reason = (batch.skipped or [reason])[-1]
        if len(batch.images) == 1:
            counts["unreadable"] += 1
        if len(batch.images) > 1:
            position = turn * world() + rank()  # of the piece among all, see held_keys in fit
            generator.manual_seed(seed_of(seed, position))
            images = batch.images.to(device)
            ids, targets = vlpt.mask_one_char(batch.ids, generator)
            targets = targets.to(device)
            where = targets != vlpt.IGNORE
            output = run_model(net, images, ids)
            swapped = run_model(net, images.roll(1, 0), ids)
            counts["right"] = int((output.logits.argmax(-1) == targets)[where].sum())
            counts["other"] = int((swapped.logits.argmax(-1) == targets)[where].sum())
            counts["masked"] = int(where.sum())
            feature = position, output.image.cpu(), output.text.cpu()
        found.append((counts, feature))
    net.train()
    everywhere: list[Any] = [found]
    if dist.is_initialized():
        everywhere = [None] * world()
        dist.all_gather_object(everywhere, found)
    counts = sum((count for count, _ in chain(*everywhere)), Counter())
    held = sorted((f for _, f in chain(*everywhere) if f), key=lambda f: f[0])  # by position
    masked, right, other = (counts[key] for key in ("masked", "right", "other"))
    if not masked:
        raise ValueError(f"no two held-out pictures of a batch can be read; {reason}")
    _, *features = zip(*held, strict=True)
    image, text = (nn.functional.normalize(torch.cat(rows), dim=1) for rows in features)
    nearest, own = (image @ text.T), torch.arange(len(image))
    return {"acc_right": right / masked, "acc_other": other / masked,
            "gain": (right - other) / masked,
            "i2t": (nearest.argmax(1) == own).float().mean().item(),
            "t2i": (nearest.argmax(0) == own).float().mean().item(),
            "pictures": len(image), "characters": masked,
            "unreadable": counts["unreadable"]}  # fmt: skip


# ----------------------------------------------------------------------------------- the data


class Unbroken(torch.utils.data.Dataset[Any]):
    """Item k is picture k, or the next one that can be read: a list of what went wrong and it."""

    def __init__(self, data: data_stub.Pretraining) -> None:
        self.data = data

    def __getitem__(self, k: int) -> list[Any]:
        tried: list[Any] = []
        for following in range(TRIES):
            tried.append(self.data[k + following])
            if not isinstance(tried[-1], str):
                break
        return tried


def collate(items: list[list[Any]]) -> data_stub.Batch:
    return data_stub.collate(list(chain.from_iterable(items)))


def calm(_worker: int) -> None:
    """Signals are for the main process, which lets its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def make_loader(
    data: data_stub.Pretraining, batches: Iterable[Any], workers: int, train: bool = False
) -> Iterator[data_stub.Batch]:
    """Batches of these keys; in training a picture that cannot be read is replaced.

    Raises: RuntimeError that begins with "DataLoader worker" if one dies, here or wherever the
        process is when torch hears of it; OSError from the data.
    """
    try:
        yield from DataLoader(
            Unbroken(data) if train else data, batch_sampler=batches, num_workers=workers,
            collate_fn=collate if train else data_stub.collate, worker_init_fn=calm,
            pin_memory=torch.cuda.is_initialized())  # fmt: skip
    except (EOFError, OSError) as error:
        if not workers:
            raise
        if str(error).startswith("Caught"):  # so torch begins what a worker raised, with its trace
            raise OSError(str(error).strip().split("\n")[-1]) from None
        raise RuntimeError(f"DataLoader worker is gone: {error!r}") from None  # with half a batch


def open_data(
    args: argparse.Namespace, config: vlpt.Config, scene: data_stub.Scene
) -> tuple[list[data_stub.Pretraining], list[str]]:
    """Training and held-out half of --data, and what each holds and leaves out, in words."""
    halves, told = [], []
    for split, count in (("train", args.samples), ("heldout", args.eval)):
        size = config.image_size
        source = data_stub.open_source(args.data, split, size, count, args.seed, scene)
        chosen: dict[str, Any] = {}
        if split == "train":
            chosen = {"subset": args.subset, "annotated": args.annotated,
                      "augment": args.data != "synth"}  # fmt: skip  # rendered ones vary enough
        alphabet = vlpt.Alphabet(config.alphabet)
        half = data_stub.Pretraining(source, alphabet, size, args.seed, **chosen)
        notes = "; ".join(f"{count:,} {what}" for what, count in half.notes.items())
        pictures = f"{len(half.indices):,} pictures of {args.data}"
        told.append(f"{pictures}; left out or cut: {notes or 'nothing'}")
        halves.append(half)
    if len(halves[1].indices) < 2:
        raise ValueError(f"{args.data}: got 1 usable held-out picture, wanted 2 or more")
    return halves, told


# --------------------------------------------------------------------------------- the training


def training_batches(
    data: data_stub.Pretraining, args: argparse.Namespace, done: int
) -> Iterator[data_stub.Batch]:
    """This process's part of every batch after step `done`.

    Raises: ValueError if more than BROKEN of the pictures (and more than 10) are unreadable, or
        TRIES in a row; see `make_loader`.
    """
    part, unread = args.batch // world(), 0
    starts = [step * args.batch + rank() * part for step in range(args.samples // args.batch)]
    keys = [range(k, k + part) for k in starts[done:]]
    batches = make_loader(data, keys, args.workers, train=True)
    for count, batch in enumerate(batches, 1):
        unread, seen = unread + len(batch.skipped), count * part
        told = f"{unread} pictures cannot be read, {seen} wanted, at most {BROKEN:.0%} may"
        if len(batch.images) < part:
            told = f"{TRIES} pictures in a row cannot be read"
        if len(batch.images) < part or unread > max(10, BROKEN * seen):
            raise ValueError(f"{args.data}: {told}; {batch.skipped[-1]}")
        yield batch


def distribute(model: vlpt.VLPT) -> nn.Module:
    """The model that averages gradients over processes; on GPUs batch statistics are common."""
    if world() == 1:
        return model
    if model.log_scale.is_cuda:  # torch has it on GPUs only
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model)


def fit(
    model: vlpt.VLPT, train: data_stub.Pretraining, heldout: data_stub.Pretraining,
    args: argparse.Namespace, out: Path,
) -> Log:  # fmt: skip
    """The training loop: up to ten evaluations, each with a checkpoint.

    What is drawn in a step follows from the seed and the step's number, so a run that goes on from
    a checkpoint takes the same steps as one that was never stopped.
    Raises: ValueError, OSError, Nonfinite; Stopped, when it has saved itself.
    """
    device, generator = model.log_scale.device, torch.Generator()
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    done, state = 0, dict[str, Any]()
    if args.resume:
        done, state = restore(out, args.resume, model, optimizer)
        say(f"resumed after {done * args.batch:,} pictures" if done else "no checkpoint yet: anew")
    chance = math.log(len(train.alphabet)), 2 * math.log(args.batch)
    log = Log(chance, out, args.tensorboard, done * args.batch, state)
    whole, steps = distribute(model), args.samples // args.batch
    if done == steps and rank() == 0:  # nothing is left to do but to tell its result
        if not log.evaluations or log.evaluations[-1]["samples"] != steps * args.batch:
            told = "got no evaluation after the last step; --resume previous takes the last steps"
            raise ValueError(f"{out}/log.jsonl: {told} once more, if that checkpoint is there")
    count = min(args.eval, len(heldout.indices))
    pieces = max(1, count // min(args.batch, 64))  # of at least a batch or 64; the same for any W
    held_keys = np.array_split(np.arange(count), pieces)[rank() :: world()]  # this process's
    bar = tqdm(total=steps * args.batch, initial=done * args.batch, unit="picture", leave=False,
               disable=True if rank() else None)  # fmt: skip
    with signals() as caught, bar:
        began = time.perf_counter()
        for step, batch in enumerate(training_batches(train, args, done), done + 1):
            waited, samples = time.perf_counter() - began, step * args.batch
            log.skip(samples, batch.skipped, batch.outside)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * lr_at(step - 1, steps, args.warmup)
            generator.manual_seed(seed_of(args.seed, step, rank()))
            masked, targets = vlpt.mask_one_char(batch.ids, generator)
            images, targets = (x.to(device, non_blocking=True) for x in (batch.images, targets))
            try:
                row = train_step(whole, optimizer, images, masked, targets, args.accumulate)
                log.step(samples, row)
                told = f"L_cls {row['char']:.3f}, read {row['acc']:.2f}"
                if log.evaluations:
                    told += f", i2t {log.evaluations[-1]['i2t']:.2f}"
                bar.set_postfix_str(told)
            except Nonfinite as error:
                log.share()  # which pictures were replaced; every process comes here
                pictures = [train.index(k) for k in range(samples - args.batch, samples)]
                log.blame(samples, error.terms, [train.source.name(index) for index in pictures])
                if log.nonfinite > args.skip_nonfinite:
                    raise
            log.seconds.append((waited, time.perf_counter() - began))
            bar.update(args.batch)
            evaluated = step % math.ceil(steps / 10) == 0 or step == steps
            if evaluated:
                batches = make_loader(heldout, held_keys, args.workers)
                line = log.evaluation(samples, evaluate(whole, batches, args.seed))
                if rank() == 0:
                    bar.write(line)
                if log.board is not None:
                    log.board.add_figure(
                        "attention", report_min.attention_figure(model, heldout), samples
                    )
            stop = int(over_all(torch.tensor(len(caught))))  # any signal stops all processes
            if evaluated or stop:
                save_checkpoint(out, model, optimizer, args, step, log)
            if stop and step < steps:
                told = f"stopped after {samples:,} pictures, saved in {out}/; --resume goes on"
                raise Stopped(caught[0] if caught else signal.SIGTERM, told)
            began = time.perf_counter()
    return log


def run(args: argparse.Namespace, device: torch.device) -> None:
    """Everything from the options to the RESULT line."""
    for turn in ("first", "others"):  # the first process indexes SynthText, the others read that
        if turn == ("others" if rank() else "first"):
            config, scene = configure(args)
            (train, heldout), told = open_data(args, config, scene)
        if dist.is_initialized():
            dist.barrier()
    for split, text in zip(("train", "heldout"), told, strict=True):
        say(f"{split}: {text}")
    saved = args.resume and any((Path("runs") / args.name).glob("checkpoint*.pt"))
    backbone = load_init(args.init, config) if args.init and not saved else None  # else `restore`
    torch.manual_seed(args.seed)
    model = vlpt.VLPT(config)
    if backbone is not None:
        model.backbone = backbone
        say(f"started from {args.init}: {load_pool(args.init, model.pool)}")
    if args.recompute:
        model.backbone = Recomputed.of(model.backbone)
    model.to(device).to(memory_format=torch.channels_last)
    size, threads = sum(p.numel() for p in model.parameters()), torch.get_num_threads()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({threads} threads)"
    if world() > 1:
        where += f" in each of {world()} processes"
    say(f"{where}, torch {torch.__version__}, seed {args.seed}, {size:,} parameters")
    out = open_folder(args)
    if rank() == 0 and not args.resume:
        write_facts(out, args, config, told, where, size)
    log = fit(model, train, heldout, args, out)
    if rank() == 0:
        finish(model, heldout, args, out, log)


def finish(
    model: vlpt.VLPT, heldout: data_stub.Pretraining, args: argparse.Namespace, out: Path, log: Log
) -> None:
    """The product, the pictures, the RESULT line."""
    for reason, count in log.skipped.most_common(5):
        print(f"skipped {count} times: {reason}")
    if len(log.skipped) > 5:
        print(f"skipped as well: {len(log.skipped) - 5:,} other pictures")
    if log.outside:
        print(f"left out {log.outside:,} times: a word that is mostly outside its picture")
    vlpt.export_backbone(model, out / "backbone.safetensors", training_data=args.data,
                         steps=args.samples // args.batch)  # fmt: skip
    result = log.evaluations[-1] | {
        "skipped": log.skipped.total(), "nonfinite": log.nonfinite, "wait": log.wait(),
        "seconds": round(log.elapsed())}  # fmt: skip
    metrics = {"result": result, "evaluations": log.evaluations}
    write(out / "metrics.json", json.dumps(metrics, indent=1).encode())
    report_min.plot_losses(out / "loss.png", log.rows, log.evaluations, log.chance)
    report_min.plot_attention(out / "attention.png", model, heldout)
    report_min.write_report(out)
    print(f"wrote {out}/: " + " ".join(sorted(path.name for path in out.iterdir())))
    shown = (f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items())
    print(f"RESULT data={args.data} preset={args.preset} seed={args.seed}", *shown)


def main(argv: list[str] | None = None) -> None:
    place = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["compare"]:
            return report_min.main(argv[1:])
        args = parse_args(argv)
        if args.tensorboard:
            need_tensorboard()
        with processes(args) as device:
            run(args, device)
    except FloatingPointError as error:
        sys.exit(f"train_min.py: {place}error: {error}; nonfinite.json names its step and "
                 "pictures; a smaller --lr may help, or --skip-nonfinite N")  # fmt: skip
    except torch.cuda.OutOfMemoryError:
        wanted = "a smaller --batch, --accumulate K or --recompute"
        sys.exit(f"train_min.py: {place}error: the GPU's memory is full; wanted {wanted}")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"train_min.py: {place}error: {error}")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        told = str(error).split("\n")[0].strip().rstrip(".")
        sys.exit(f"train_min.py: {place}error: {told}; --resume goes on from the last checkpoint")
    except Stopped as stop:
        print(f"train_min.py: {place}{stop}", file=sys.stderr)
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        print(f"train_min.py: {place}stopped, not while training", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
