"""`check`: what is computed on the GPU is what the tests have verified on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import data_stub
import vlpt
from experiments.bench import random_words
from experiments.gpu.programme import Programme, Result, Sizes
from training.gradcache import cached_backward
from training.recompute import recompute
from transfer.dataset import TrainingCrops, open_dataset
from transfer.detect import place, train_detector
from transfer.heads import build_detector
from transfer.pyramid import DetectorConfig

ROOT = Path(__file__).resolve().parents[2]
BATCH = 16
OUTPUTS = ("image", "text", "logits")  # that are compared
STEPS = 40  # of train_min.py, which is stopped half-way

# train_min.py, which gets the signal of Ctrl-C in the middle of step `STEPS / 2`.
INTERRUPTED = f"""
import os, signal, sys
import train_min
train_step, calls = train_min.train_step, []
def interrupt(*args, **kwargs):
    calls.append(1)
    if len(calls) == {STEPS // 2}:
        os.kill(os.getpid(), signal.SIGINT)
    return train_step(*args, **kwargs)
train_min.train_step = interrupt
train_min.main(sys.argv[1:])
"""


class Batch(NamedTuple):
    images: Tensor  # uint8
    ids: Tensor
    targets: Tensor


def run(programme: Programme) -> None:
    sizes, device = programme.sizes, programme.device
    programme.run("check/float32", 8, compare_devices, sizes, device)
    programme.run("check/bf16", 4, compare_precisions, sizes, device)
    programme.run("check/accumulate", 4, compare_accumulation, sizes, device)
    programme.run("check/recompute", 4, compare_recomputation, sizes, device)
    folder = programme.out / "check"
    programme.run("check/train_min", 40, stop_and_resume, folder, device)
    programme.run("check/detector", 10, train_five_steps, sizes, device)


def make_model(sizes: Sizes) -> vlpt.MaskedOnly:
    """A model whose residual blocks do something, which those of a new one do not."""
    torch.manual_seed(0)
    model = vlpt.VLPT(sizes.check_config)
    for name, parameter in model.backbone.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.5)
    return vlpt.MaskedOnly(model)


def make_batch(sizes: Sizes, device: torch.device) -> Batch:
    config = sizes.check_config
    generator = torch.Generator().manual_seed(0)
    pictures = [data_stub.render(0, k, config.image_size).image for k in range(BATCH)]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    ids = random_words(config, BATCH, (1, 4), (2, 10))
    ids, targets = vlpt.mask_one_char(ids, generator)
    return Batch(images.to(device), ids.to(device), targets.to(device))


def forward(
    model: torch.nn.Module, images: Tensor, ids: Tensor, targets: Tensor
) -> tuple[vlpt.Output, Tensor]:
    """The model in float32, unless the caller has switched autocast on."""
    return model(vlpt.normalize(images), ids, targets)


def compute(model: torch.nn.Module, batch: Batch, bf16: bool = False) -> tuple[vlpt.Output, Tensor]:
    """The output of a model, and its gradient as one vector, both in float64 on the CPU."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
        output, targets = forward(model, *batch)
    vlpt.total_loss(output, targets).backward()
    return vlpt.Output(*(x.detach().double().cpu() for x in output)), gradient_of(model)


def gradient_of(model: torch.nn.Module) -> Tensor:
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients).double().cpu()


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute in all 23 bits of float32 on a GPU, which by default drops 13 in convolutions."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def verdict(found: Result, limits: dict[str, float]) -> Result:
    """Add whether all numbers are within their limits.

    Raises: ValueError if they are not, so that the step counts as failed and is tried again.
    """
    for key, limit in limits.items():
        if not found[key] <= limit:
            raise ValueError(f"{key}: expected at most {limit}, got {found}")
    return {"ok": True, **found}


def compare_devices(sizes: Sizes, device: torch.device) -> Result:
    """The same model and batch on the CPU and on the device, in float32."""
    model = make_model(sizes)
    expected, expected_gradient = compute(model, make_batch(sizes, torch.device("cpu")))
    with without_tf32():
        output, gradient = compute(model.to(device), make_batch(sizes, device))
    found = {key: difference(getattr(output, key), getattr(expected, key)) for key in OUTPUTS}
    found["gradient"] = difference(gradient, expected_gradient)
    return verdict(found, dict.fromkeys(OUTPUTS, 1e-4))


def compare_precisions(sizes: Sizes, device: torch.device) -> Result:
    """bfloat16 and float32 on the same device.

    Batch norms are in evaluation mode, as the statistics of a small batch amplify the rounding.
    The cosine in training mode is reported as well.
    """
    model, batch = make_model(sizes).to(device), make_batch(sizes, device)
    found: Result = {}
    for mode in ("training", "evaluation"):
        model.train(mode == "training")
        with without_tf32():
            expected, expected_gradient = compute(model, batch)
        output, gradient = compute(model, batch, bf16=True)
        cosine = torch.nn.functional.cosine_similarity(gradient, expected_gradient, dim=0)
        found[f"logits in {mode}"] = difference(output.logits, expected.logits)
        found[f"1 - cosine in {mode}"] = 1 - float(cosine)
    return verdict(found, {"logits in evaluation": 2e-2, "1 - cosine in evaluation": 1e-2})


def compare_accumulation(sizes: Sizes, device: torch.device) -> Result:
    """The gradient of a batch in two pieces, and of the whole batch.

    Batch norms are in evaluation mode, as the statistics of a piece are not those of the batch.
    """
    model, batch = make_model(sizes).to(device).eval(), make_batch(sizes, device)
    with without_tf32():
        _, expected = compute(model, batch)
        model.zero_grad(set_to_none=True)
        cached_backward(forward, model, *batch, num_pieces=2)
    return verdict({"gradient": difference(gradient_of(model), expected)}, {"gradient": 1e-3})


def compare_recomputation(sizes: Sizes, device: torch.device) -> Result:
    """The gradient with --recompute and without."""
    model, batch = make_model(sizes).to(device), make_batch(sizes, device)
    with without_tf32():
        _, expected = compute(model, batch)
        recompute(model.model.backbone)
        _, gradient = compute(model, batch)
    return verdict({"gradient": difference(gradient, expected)}, {"gradient": 1e-3})


def stop_and_resume(folder: Path, device: torch.device) -> Result:
    """Train the small model, stop it in the middle of the run by a signal, and go on."""
    folder.mkdir(exist_ok=True)
    options = ["--samples", str(8 * STEPS), "--batch", "8", "--eval", "16", "--name", "resumed"]
    options += ["--device", device.type, "--workers", "1"]
    stopped = call(folder, "-c", INTERRUPTED, *options, "--overwrite")
    if stopped.returncode != 130:
        raise ValueError(f"stop: expected status 130, got {stopped.returncode}: {stopped.stderr}")
    resumed = call(folder, str(ROOT / "train_min.py"), "--name", "resumed", "--resume")
    if resumed.returncode:
        raise ValueError(f"--resume: expected status 0, got {resumed.stderr}")
    log = (folder / "runs/resumed/log.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in log]
    samples = [row["samples"] for row in rows if row["kind"] == "step"]
    expected = [8 * step for step in range(1, STEPS + 1)]
    if samples != expected:
        raise ValueError(f"log.jsonl: expected each of {STEPS} steps once, got {samples}")
    return {"ok": True, "steps": STEPS, "result": resumed.stdout.splitlines()[-1]}


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,  # seconds
    )


def train_five_steps(sizes: Sizes, device: torch.device) -> Result:
    """Five steps of the detector on rendered pictures."""
    config = DetectorConfig(backbone="resnet18", width=sizes.width, long_side=sizes.crop)
    model = place(build_detector(config), device.type)
    batch = sizes.detector_batch
    source = open_dataset("synth", "train", sizes.crop, 5 * batch)
    crops = TrainingCrops(source, config, sizes.crop, seed=0)
    with redirect_stdout(sys.stderr):  # lines of JSON alone go to standard output
        rows = train_detector(model, crops, samples=5 * batch, batch=batch, lr=1e-3)
    return {"ok": True, "text_loss": rows[-1]["text"], "kernel_loss": rows[-1]["kernel"]}
