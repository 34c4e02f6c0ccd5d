"""A training step never makes the host wait for a GPU: not the trainer's, nor the detector's.

A host that waits cannot prepare the next operations, so that the GPU idles. The operations that
wait are counted on the CPU, where they are dispatched in the same way.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_min
import vlpt
from training import data
from training.dataset import Batch
from training.recompute import recompute
from transfer import detect, heads, psenet
from transfer.pyramid import DetectorConfig

# Operations that give the host a value, or a tensor whose size depends on values, and the one that
# makes a tensor of the host's numbers.
WAITING = {
    "_local_scalar_dense",  # item, bool, int and float
    "nonzero",  # boolean indices as well
    "masked_select",
    "_unique2",
    "equal",
    "repeat_interleave",
    "lift_fresh",  # torch.tensor(numbers, device=...)
}
READING = ("tolist", "numpy", "cpu")  # methods that read without an operation of their own


class HostWaits(TorchDispatchMode):
    """Counts the operations for which a host would wait."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts = Counter()
        for name in READING:
            monkeypatch.setattr(torch.Tensor, name, self.counting(name))

    def counting(self, name):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *args, **kwargs):
            self.counts[name] += 1
            return method(tensor, *args, **kwargs)

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[-1].split(".")[0]
        has_mask = name in ("index", "index_put", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or has_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count(monkeypatch, step, *args):
    """The waits of a second step; in a first one the optimizer makes its state."""
    step(*args)
    with monkeypatch.context() as patch, HostWaits(patch) as waits:
        step(*args)
    return dict(waits.counts)


def make_batch(words):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    alphabet = vlpt.Alphabet(vlpt.TINY.alphabet)
    batch = Batch(images, torch.stack([alphabet.encode(w) for w in words]), [])
    return data.prepare(batch, 0, torch.device("cpu"))


@pytest.mark.parametrize(("accumulate", "recomputed"), [(1, False), (2, False), (1, True)])
def test_the_trainers_step_waits_for_nothing(accumulate, recomputed, monkeypatch):
    model = vlpt.VLPT(vlpt.TINY)
    if recomputed:
        recompute(model.backbone)
    optimizer = train_min.make_optimizer(model, 1e-3, 0.1)
    images, ids, targets = make_batch([["12", "345"], ["6"], [], ["789"]])
    step = (train_min.train_step, vlpt.MaskedOnly(model), optimizer, images, ids, targets)
    assert count(monkeypatch, *step, accumulate) == {}


@pytest.mark.parametrize(("head", "maps"), [("psenet", psenet.NUM_KERNELS), ("db", 3)])
def test_the_detectors_step_waits_for_nothing(head, maps, monkeypatch):
    config = DetectorConfig(backbone="resnet18", width=8, head=head)
    model = heads.build_detector(config)
    optimizer = detect.make_optimizer(model, 1e-3)
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    truth = torch.randint(2, (2, maps, 64, 64), dtype=torch.uint8)
    step = (detect.train_step, model, optimizer, pixels, truth, torch.ones(2, 64, 64))
    assert count(monkeypatch, *step) == {"_local_scalar_dense": 1}  # of hard_pixels, on CPUs alone
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert count(monkeypatch, *step) == {}


def test_hard_pixels_are_the_same_on_a_gpu(monkeypatch):
    scores, truth, valid = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    args = (scores, truth < 0.1, valid < 0.9)
    chosen = psenet.hard_pixels(*args)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert torch.equal(psenet.hard_pixels(*args), chosen)


def test_what_waits_is_counted(monkeypatch):
    def step(x):
        x[x > 0]
        torch.tensor([1.0, 2.0])
        return x.sum().item(), x.tolist(), bool(x.any())

    counts = count(monkeypatch, step, torch.ones(3))
    assert counts == {"index": 1, "lift_fresh": 1, "_local_scalar_dense": 2, "tolist": 1}
