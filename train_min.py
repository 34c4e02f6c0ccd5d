"""Pre-train VLPT on CPUs or GPUs, and leave a backbone that text detectors can load.

    python train_min.py                                      # the demo: rendered digits, on a CPU
    python train_min.py --preset oclip_rn50 --data synthtext:PATH --name rn50
    torchrun --nproc-per-node 4 train_min.py ...             # the same on four GPUs
    python train_min.py --name rn50 --resume                 # continue; on CPUs as if never stopped
    python train_min.py compare runs/A runs/B                # two runs side by side

Results go to runs/NAME/: backbone.safetensors is the product. run.json holds the settings,
log.jsonl has a line for each step, metrics.json has the result, and report.html shows all of it.
The last line printed is `RESULT key=value ...`.

Held-out images measure what was learned: the masked characters are predicted once from their own
image and once from another image. The difference, `gain`, measures how much of the accuracy comes
from the image rather than from the other characters.

D6, D7 and so on are the differences from the released code that vlpt.py lists at its top.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import data_stub
import readers
import vlpt
from training import data, distributed, runs
from training.dataset import Batch
from training.distributed import print_rank0, rank, world_size
from training.gradcache import cached_backward
from training.init import load_init
from training.log import Log, check_tensorboard
from training.options import Parser, folder_name, number, some_path
from training.recompute import recompute
from training.retrieval import Retrieval, unmasked_words


class Preset(NamedTuple):
    config: vlpt.Config
    scene: data_stub.Scene  # what `--data synth` draws
    lr: float
    warmup: int  # steps


PRESETS = {
    "tiny": Preset(vlpt.TINY, data_stub.DIGITS, lr=2e-3, warmup=150),
    "oclip_rn50": Preset(vlpt.OCLIP_RN50, data_stub.Scene(), lr=1e-4, warmup=10_000),  # published
}
BACKBONES = (*vlpt.TORCHVISION_BACKBONES, *vlpt.CLIP_BACKBONES)

# ---- Options -----------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    description, examples, *_ = __doc__.split("\n\n")
    parser = Parser(
        "train_min.py",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("model and images").add_argument
    data_help = f"{readers.SPECS}; see docs/data.md (default: synth)"
    add("--data", default="synth", metavar="SOURCE", help=data_help)
    preset = "sizes, learning rate and warm-up; oclip_rn50 has the published ones (default: tiny)"
    add("--preset", choices=PRESETS, default="tiny", help=preset)
    add("--backbone", choices=BACKBONES, help="image backbone (default: the preset's)")
    init = "an export, a checkpoint, or ImageNet weights to start from (default: random weights)"
    add("--init", type=some_path, metavar="FILE|torchvision", help=init)
    size = "height and width of images, a multiple of 32 (default: tiny 64, oclip_rn50 512)"
    add("--image-size", type=number(int, 32), metavar="PIXELS", help=size)
    alphabet = (
        "characters to learn; data: those of the training words; FILE: those of a UTF-8 text "
        "(default: ascii; the digits for tiny on synth)"
    )
    add("--alphabet", metavar="ascii|data|FILE", help=alphabet)
    subset = "train on N images, the same ones for the same --seed (default: all)"
    add("--subset", type=number(int, 1), metavar="N", help=subset)
    annotated = "share of each image's words to train on, 0..1, at least one word (default: 1, all)"
    share = number(float, 0, exclusive=True)
    add("--annotated", type=share, default=1.0, metavar="SHARE", help=annotated)

    add = parser.add_argument_group("training").add_argument
    samples = "images to train on, repetitions included, in whole batches (default: 40000)"
    add("--samples", type=number(int, 2), default=40_000, metavar="N", help=samples)
    batch = "images in a step, in all processes together (default: 64)"
    add("--batch", type=number(int, 2), default=64, metavar="N", help=batch)
    pieces = (
        "save memory by running the batch in at most K pieces, each twice (GradCache; default: 1)"
    )
    add("--accumulate", type=number(int, 1), default=1, metavar="K", help=pieces)
    recompute_help = "save memory by running the backbone twice (default: off)"
    add("--recompute", action="store_true", help=recompute_help)
    lr = (
        "base learning rate, scaled by the warm-up and a cosine "
        "(default: tiny 2e-3, oclip_rn50 1e-4 as published)"
    )
    add("--lr", type=number(float, 0, exclusive=True), help=lr)
    warmup = "steps of linear warm-up (default: tiny 150, oclip_rn50 10000 as published)"
    add("--warmup", type=number(int, 0), metavar="N", help=warmup)
    decay = "weight decay of all but gains and biases (default: 0.1)"
    add("--weight-decay", type=number(float, 0), default=0.1, metavar="DECAY", help=decay)
    heldout = "held-out images to evaluate on, at most; they stay in memory (default: 1024)"
    add("--eval", type=number(int, 2), default=1024, metavar="N", help=heldout)
    seed = "seed of weights, images, words and masks (default: 0)"
    add("--seed", type=number(int, 0, 2**63), default=0, metavar="N", help=seed)
    workers = (
        "processes that load images, for each process that trains (default: 1; with GPUs, the "
        "cores less 2, shared by the processes that train, at most 16)"
    )
    add("--workers", type=number(int, 0), metavar="N", help=workers)
    device = "where to run; auto: a GPU if there is one (default: auto)"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=device)

    add = parser.add_argument_group("the run's folder").add_argument
    add("--name", type=folder_name, default="demo", help="results go to runs/NAME (default: demo)")
    overwrite = "replace what an earlier run left there (default: off)"
    add("--overwrite", action="store_true", help=overwrite)
    resume = "continue the run with its options, from its last checkpoint or from the one before"
    add("--resume", nargs="?", const="last", choices=("last", "previous"), help=resume)
    tensorboard = "log to runs/NAME/tensorboard as well (default: off)"
    add("--tensorboard", action="store_true", help=tensorboard)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.resume and args.overwrite:
        parser.error("--resume: expected it without --overwrite, got both")
    if args.resume:
        args = runs.resume_options(parser, argv, args, PRESETS)
    args.lr = PRESETS[args.preset].lr if args.lr is None else args.lr
    args.warmup = PRESETS[args.preset].warmup if args.warmup is None else args.warmup
    if args.image_size is not None and args.image_size % 32:
        parser.error(f"--image-size: expected a multiple of 32, got {args.image_size}")
    if args.annotated > 1:
        parser.error(f"--annotated: expected at most 1, got {args.annotated}")
    if args.samples < args.batch:
        parser.error(f"--samples: expected at least one batch of {args.batch}, got {args.samples}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu or auto, as torch finds no GPU, got cuda")
    return args


def configure(args: argparse.Namespace) -> tuple[vlpt.Config, data_stub.Scene]:
    """The preset, changed as the options say."""
    config, scene = PRESETS[args.preset].config, PRESETS[args.preset].scene
    alphabet = config.alphabet if args.data == "synth" else vlpt.PRINTABLE
    if args.alphabet is not None:
        sources = []
        if args.alphabet == "data":
            sources.append(readers.open_source(args.data, "train", seed=args.seed, scene=scene))
        alphabet = readers.read_alphabet(args.alphabet, *sources)
    if alphabet != config.alphabet:  # the preset's scene is made for its own alphabet
        scene = data_stub.Scene(alphabet=alphabet)
    if args.backbone:
        config = dataclasses.replace(config, backbone=args.backbone, backbone_size={})
    size = config.image_size if args.image_size is None else args.image_size
    return dataclasses.replace(config, alphabet=alphabet, image_size=size), scene


# ---- The step ----------------------------------------------------------------------------------


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices, but not gains, biases and the temperature."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)


def lr_at(step: int, steps: int, warmup: int) -> float:
    """The fraction of --lr at step 0, 1, ...: a linear warm-up times a cosine from 1 to 0."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def model_input(images: Tensor) -> Tensor:
    """Normalise uint8 images, in the memory format with which convolutions are fastest."""
    return vlpt.normalize(images).contiguous(memory_format=torch.channels_last)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on a GPU, and in float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def forward(
    model: nn.Module, images: Tensor, ids: Tensor, targets: Tensor
) -> tuple[vlpt.Output, Tensor]:
    """Run a `vlpt.MaskedOnly` on uint8 images.

    Returns:
        The output and the targets of the masked characters alone, as `vlpt.MaskedOnly` gives them.
    """
    with mixed_precision(images.device):
        return model(model_input(images), ids, targets)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    ids: Tensor,
    targets: Tensor,
    accumulate: int = 1,
) -> Tensor:
    """One update from this process's part of the batch. The host never waits for the GPU.

    Returns:
        (5,), the `training.log.TERMS` of the whole batch before the update: L_cls, L_bc,
        exp(logit_scale), accuracy and gradient norm.
    """
    bare = distributed.unwrap(model)
    contrastive = bare.config.contrastive
    optimizer.zero_grad(set_to_none=True)
    if accumulate == 1:
        output, targets = forward(model, images, ids, targets)
        output, targets = distributed.gather_outputs(output, targets)  # of all processes, D7
        loss = vlpt.total_loss(output, targets, contrastive)
        loss.backward()
    else:
        loss, output, targets = cached_backward(
            forward, model, images, ids, targets, accumulate, contrastive
        )
    norm = nn.utils.clip_grad_norm_(bare.parameters(), 1.0)  # D10
    with torch.no_grad():
        char = vlpt.char_loss(output.logits, targets)
        num_right = (output.logits.argmax(dim=-1) == targets).sum()
        accuracy = num_right / (targets != vlpt.IGNORE_INDEX).sum().clamp(min=1)
        numbers = torch.stack([char, loss - char, bare.logit_scale.exp(), accuracy, norm])
        optimizer.step()
        # D6. Slightly less than the cap, because the loss has no gradient beyond it.
        bare.logit_scale.clamp_(max=math.log(vlpt.MAX_SCALE) - 1e-6)
    return numbers


# ---- Evaluation --------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: vlpt.VLPT, batches: Iterable[Batch], seed: int) -> dict[str, float]:
    """Accuracy on the masked characters, with the right and with another image; retrieval at 1.

    An image that is alone in its batch, because the others cannot be read, has no other image to
    be compared with, and counts as unreadable.

    Args:
        batches: with W processes, every W-th held-out batch, as `data.evaluation_batches` loads
            them. The result is that of all of them.
    Returns:
        Shares, 0..1, among them those of `training.retrieval.Retrieval`; `gain`, -1..1; and the
        numbers of pictures, masked characters and unreadable pictures.
    """
    model.eval()
    distributed.broadcast_buffers(model)  # BatchNorm is synchronised on GPUs only
    device = next(model.parameters()).device
    counts, retrieval = Counter[str](), Retrieval()
    for turn, batch in enumerate(batches):
        counts["unreadable"] += len(batch.skipped)
        if len(batch.images) < 2:
            counts["unreadable"] += len(batch.images)
            continue
        position = turn * world_size() + rank()  # among the batches of all processes
        images, ids, targets = data.prepare(batch, data.seed_of(seed, position), device)
        with mixed_precision(device):
            image, image_tokens, grid = model.encode_image(model_input(images))
            char_features, text = model.encode_text(ids)
            masked_features, masked_targets = vlpt.select_masked(char_features, targets)
            own = model.decode(masked_features, image, image_tokens, grid)
            other = model.decode(masked_features, image.roll(1, 0), image_tokens.roll(1, 0), grid)
        counts["right"] += int((own.argmax(-1) == masked_targets).sum())
        counts["other"] += int((other.argmax(-1) == masked_targets).sum())
        counts["characters"] += int((masked_targets != vlpt.IGNORE_INDEX).sum())
        counts["pictures"] += len(images)
        retrieval.add(position, image, text, unmasked_words(ids, targets))
    model.train()

    counts = sum(distributed.all_gather_lists([counts]), Counter[str]())
    return {
        "acc_right": counts["right"] / counts["characters"],
        "acc_other": counts["other"] / counts["characters"],
        "gain": (counts["right"] - counts["other"]) / counts["characters"],
        **retrieval.result(),
        "pictures": counts["pictures"],
        "characters": counts["characters"],
        "unreadable": counts["unreadable"],
    }


# ---- The run -----------------------------------------------------------------------------------


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Everything from the options to the RESULT line.

    What is drawn in a step follows from the seed and the step's number, so a run that goes on from
    a checkpoint takes the same steps as one that was never stopped.
    """
    # Data. The first process writes SynthText's index, and the others read it.
    with distributed.rank0_first():
        config, scene = configure(args)
        training_set, heldout = data.open_data(args, config, scene)
    described = {"train": data.describe(training_set), "heldout": data.describe(heldout)}
    runs.check_data(args, described)
    print_rank0("\n".join(f"{half}: {found}" for half, found in described.items()))
    local_batch = args.batch // world_size()  # of each process
    workers = data.default_workers(device) if args.workers is None else args.workers
    workers = data.fitting_workers(workers, local_batch, config.image_size)

    # Model and optimizer.
    torch.manual_seed(args.seed)
    model = vlpt.VLPT(config)
    # A run that was stopped before its first checkpoint starts from --init once more.
    if args.init and not (args.resume and runs.has_checkpoint(Path("runs", args.name))):
        print_rank0(f"started from {args.init}: {load_init(model, args.init)}")
    if args.recompute:
        recompute(model.backbone)
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    parameters = sum(p.numel() for p in model.parameters())
    where = distributed.describe(device)
    print_rank0(f"{where}, {workers} workers, {parameters:,} parameters, seed {args.seed}")

    # The run's folder, and what an earlier part of the run left there.
    out = runs.open_folder(args)
    steps = args.samples // args.batch
    done, log_state = 0, dict[str, Any]()
    chance = math.log(len(config.alphabet)), 2 * math.log(args.batch)
    entropy = data.character_entropy(training_set)
    if args.resume:
        done, log_state = runs.restore(out, args.resume, model, optimizer)
        print_rank0(f"resumed after {done * args.batch:,} pictures")
    else:
        facts = {"device": where, "parameters": parameters, "chance": chance, "entropy": entropy}
        facts["data"] = described
        runs.write_run(out, args, config, facts)
    if steps <= args.warmup:
        print_rank0(
            f"warning: the run ends after {steps:,} steps, before its warm-up of {args.warmup:,} "
            "steps is over; see --warmup"
        )
    log = Log(training_set, args.batch, chance, entropy, out, args.tensorboard, done, log_state)
    heldout_batches = data.evaluation_batches(heldout, args.eval, args.batch, workers)
    if done == steps:
        log.require_evaluation(steps * args.batch)

    # The loop.
    masked_only = vlpt.MaskedOnly(model)
    trained = distributed.distribute(masked_only)
    batches = data.training_batches(training_set, args.batch, done + 1, steps, workers)
    hidden = True if rank() else None  # None lets tqdm itself hide the bar without a terminal
    bar = tqdm(total=steps * args.batch, initial=done * args.batch, leave=False, disable=hidden)
    with runs.catch_signals() as caught, bar, contextlib.closing(batches):
        start = time.perf_counter()
        for step, batch in enumerate(batches, start=done + 1):
            waited = time.perf_counter() - start
            samples = step * args.batch
            log.skip(samples, batch.skipped, batch.outside)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * lr_at(step - 1, steps, args.warmup)
            images, ids, targets = data.prepare(
                batch, data.seed_of(args.seed, step, rank()), device
            )
            numbers = train_step(trained, optimizer, images, ids, targets, args.accumulate)
            log.step(samples, numbers)  # stops one step late if they are not finite
            log.record_time(waited, time.perf_counter() - start)
            bar.update(args.batch)

            is_evaluated = step % math.ceil(steps / 10) == 0 or step == steps
            stop = int(distributed.all_reduce(torch.tensor(len(caught))))  # a signal stops them all
            if is_evaluated or stop:
                log.flush()  # so that no checkpoint holds a step that was not finite
                if is_evaluated:
                    line = log.evaluation(samples, evaluate(model, heldout_batches, args.seed))
                    with bar.external_write_mode():
                        print_rank0(line)
                    log.log_reading(samples, model, heldout)
                log.gather_skipped()
                runs.save_checkpoint(out, model, optimizer, args, step, log.state())
            if stop and step < steps:
                raise runs.Stopped(
                    caught, f"{samples:,} pictures, saved in {out}/; --resume continues"
                )
            start = time.perf_counter()

    # The result. The product comes first, and neither a figure nor a terminal can prevent it.
    if rank() > 0:
        return
    path = out / "backbone.safetensors"
    vlpt.export_backbone(model, path, training_data=args.data, steps=steps)
    result = {**log.evaluations[-1], "skipped": log.skipped.total(), "wait": log.wait_share()}
    result["seconds"] = round(log.elapsed())
    metrics = {"result": result, "evaluations": log.evaluations}
    vlpt.write_atomically(out / "metrics.json", json.dumps(metrics, indent=1).encode())
    log.print_skipped()
    with runs.warn_only("draw the report"):
        from training import report

        report.draw_all(out, model, heldout)
    print_rank0(f"wrote {out}/: " + " ".join(sorted(path.name for path in out.iterdir())))
    shown = [f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items()]
    print_rank0(f"RESULT data={args.data} preset={args.preset} seed={args.seed} {' '.join(shown)}")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    advice = "lower --batch, or add --accumulate K or --recompute"
    with runs.one_line_errors("train_min.py", advice, "--resume continues the run"):
        if argv[:1] == ["compare"]:
            from training import report

            return report.main(argv[1:])
        args = parse_args(argv)
        if args.tensorboard:
            check_tensorboard()
        with distributed.process_group(args.device) as device:
            runs.check_processes(args)
            runs.check_folder(args)
            train(args, device)


if __name__ == "__main__":
    main()
