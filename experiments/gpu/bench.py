"""`bench`: speed and memory of a training step, of the detector's step, and of the loader."""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

import train_min
import vlpt
from experiments.bench import PEAK, Job, clock, flops, machine
from experiments.gpu.programme import Programme, Result, Sizes
from training import data
from transfer.detect import make_optimizer, place, train_step
from transfer.heads import build_detector
from transfer.psenet import NUM_KERNELS
from transfer.pyramid import DetectorConfig


def run(programme: Programme) -> None:
    sizes, device = programme.sizes, programme.device
    programme.run("machine", 2, describe_machine, device)
    jobs = [(str(batch), sizes.preset, batch) for batch in sizes.batches]
    jobs.append(("tiny", "tiny", sizes.small_batch))
    for label, preset, batch in jobs:
        for kind, estimate in (("bare", 6), ("plain", 8), ("recomputed", 10)):
            step = f"bench/{label}/{kind}"
            programme.run(step, estimate, measure, programme, label, preset, batch, kind)
    programme.run("bench/detector", 5, measure_detector, sizes, device)
    seconds = 15 + sizes.loader_seconds
    programme.run("loader/synth", seconds, measure_loader, "synth", sizes, device)
    if programme.icdar2015:
        spec = f"icdar2015:{programme.icdar2015}"
        programme.run("loader/icdar2015", seconds, measure_loader, spec, sizes, device)


def describe_machine(device: torch.device) -> Result:
    found: Result = {"machine": machine(device.type), "cores": os.cpu_count()}
    if device.type == "cuda":
        found["gpu_gb"] = torch.cuda.get_device_properties(device).total_memory / 1e9
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def time_steps(step: Callable[[], object], sizes: Sizes, device: torch.device) -> float:
    """The median seconds of a step, after some to warm up."""
    seconds = []
    for turn in range(sizes.warmup_steps + sizes.timed_steps):
        start = clock(device)
        step()
        if turn >= sizes.warmup_steps:
            seconds.append(clock(device) - start)
    return median(seconds)


def measure(programme: Programme, label: str, preset: str, batch: int, kind: str) -> Result:
    """A step of the trainer, or one of the bare backbone to compare it with.

    Args:
        label: names the steps to compare.
        kind: "bare", "plain" or "recomputed".
    """
    device = programme.device
    options = {"preset": preset, "batch": batch, "device": device.type}
    args = argparse.Namespace(**options, bf16=device.type == "cuda")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as in training
        torch.cuda.reset_peak_memory_stats()
    job = Job(args, bare=kind == "bare", recomputed=kind == "recomputed")

    def step() -> None:
        if job.bare:
            job.step()
        else:
            train_min.train_step(job.masked_only, job.optimizer, job.images, job.ids, job.targets)

    seconds = time_steps(step, programme.sizes, device)
    found: Result = {"pictures_s": batch / seconds, "step_s": seconds}
    if device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if kind == "plain":
        work = flops(job)
        found["gflop_picture"] = work / batch / 1e9
        if device.type == "cuda":
            name = torch.cuda.get_device_name()
            peak = next((value for key, value in PEAK.items() if key in name), None)
            found["share_of_bf16_peak"] = peak and work / seconds / peak
    bare = programme.results.get(f"bench/{label}/bare")
    if bare and kind != "bare":
        found["over_bare"] = seconds / bare["step_s"]
    return found


def measure_detector(sizes: Sizes, device: torch.device) -> Result:
    """A training step of the detector on random crops."""
    batch, side = sizes.detector_batch, sizes.crop
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    config = DetectorConfig(backbone="resnet18", width=sizes.width)
    model = place(build_detector(config), device.type)
    optimizer = make_optimizer(model, sizes.detector_lr)
    pixels = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    kernels = torch.randint(2, (batch, NUM_KERNELS, side, side), dtype=torch.uint8, device=device)
    valid = torch.ones(batch, side, side, dtype=torch.uint8, device=device)
    seconds = time_steps(
        lambda: train_step(model, optimizer, pixels, kernels, valid), sizes, device
    )
    found: Result = {"crops_s": batch / seconds, "step_s": seconds}
    if device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def measure_loader(spec: str, sizes: Sizes, device: torch.device) -> Result:
    """Train on batches of the real loader: the share of the time that the steps wait for it."""
    preset = train_min.PRESETS[sizes.preset]
    config = replace(preset.config, image_size=sizes.loader_size, alphabet=vlpt.PRINTABLE)
    batch = sizes.batches[0]
    options = ["--data", spec, "--batch", str(batch), "--samples", "1000000", "--eval", "2"]
    args = train_min.parse_args([*options, "--device", device.type])
    training_set, _ = data.open_data(args, config, train_min.PRESETS["oclip_rn50"].scene)
    workers = data.fitting_workers(data.default_workers(device), batch, config.image_size)
    torch.manual_seed(0)
    model = vlpt.VLPT(config).to(device).to(memory_format=torch.channels_last)
    masked_only, optimizer = vlpt.MaskedOnly(model), train_min.make_optimizer(model, 1e-4, 0.1)
    steps = args.samples // batch
    batches = data.training_batches(training_set, batch, 1, steps, workers)
    waited, counted = 0.0, 0
    first = asked = 0.0
    for turn, loaded in enumerate(batches):
        if turn == 0:  # then the workers are at work
            first = asked = clock_on_the_wall(device)
        arrived = clock_on_the_wall(device)
        waited += arrived - asked
        images, ids, targets = data.prepare(loaded, turn, device)
        train_min.train_step(masked_only, optimizer, images, ids, targets)
        counted += batch
        asked = clock_on_the_wall(device)
        if asked - first > sizes.loader_seconds:
            break
    total = asked - first
    return {"pictures_s": counted / total, "wait": waited / total, "workers": workers}


def clock_on_the_wall(device: torch.device) -> float:
    """Seconds, when the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
