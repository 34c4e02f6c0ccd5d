"""Loading batches: worker processes, pictures that cannot be read, and the way to the device.

`training.dataset.Pretraining` decides that a picture is skipped, this file puts another one in its
place, and `training.log.Log` counts it and writes the reason to log.jsonl (docs/data.md,
docs/runs.md).
"""

import argparse
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import data_stub
import readers
import vlpt
from readers.folder import EVERY_TENTH
from training.augment import augment
from training.dataset import Batch, Item, Pretraining, collate, trim
from training.distributed import all_gather_lists, print_rank0, rank, world_size

MAX_ATTEMPTS = 8  # pictures in a row that are tried for one place in a batch
MAX_UNREADABLE = 0.1  # share of the training pictures; ten are always allowed


def open_data(
    args: argparse.Namespace, config: vlpt.Config, scene: data_stub.Scene
) -> tuple[Pretraining, Pretraining]:
    """Open the training half and the held-out half of --data.

    Raises:
        ValueError, OSError: the data are not what they should be; the message says what is wrong.
    """
    alphabet, size, seed = vlpt.Alphabet(config.alphabet), config.image_size, args.seed
    count = args.samples if args.subset is None else args.subset  # of rendered pictures
    source = readers.open_source(args.data, "train", size, count, seed, scene)
    vary = None if args.data == "synth" else augment  # rendered pictures vary enough
    train = Pretraining(source, alphabet, size, seed, args.subset, args.annotated, augment=vary)
    source = readers.open_source(args.data, "heldout", size, args.eval, seed, scene)
    heldout = Pretraining(source, alphabet, size, seed)
    if len(heldout.indices) < 2:
        raise ValueError(
            f"{args.data}: expected at least 2 usable held-out pictures, got 1; {EVERY_TENTH}"
        )
    return train, heldout


def describe(data: Pretraining) -> str:
    """How many pictures there are, and what was left out."""
    notes = "; ".join(f"{count:,} {what}" for what, count in data.notes.items())
    pictures = f"{len(data.indices):,} pictures of {data.source.root}"
    return f"{pictures}; notes on its annotation: {notes or 'none'}"


class SkipUnreadable(Dataset[Any]):
    """Item k is picture k or, if that cannot be read, the next of `attempts` pictures that can.

    Each item is a list: the reasons why pictures could not be read, and then the picture, if any.
    """

    def __init__(self, data: Pretraining, attempts: int) -> None:
        self.data = data
        self.attempts = attempts

    def __getitem__(self, k: int) -> list[Item]:
        found: list[Item] = []
        for offset in range(self.attempts):
            found.append(self.data[k + offset])
            if not isinstance(found[-1], str):
                break
        return found


def collate_attempts(items: list[list[Item]]) -> Batch:
    return collate(list(chain.from_iterable(items)))


def init_worker(_worker: int) -> None:
    """Workers ignore signals, since the main process ends them, and use one thread each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


def make_loader(
    data: Pretraining, batches: Iterable[Any], workers: int, attempts: int = 1
) -> Iterator[Batch]:
    """Load batches.

    Args:
        batches: the keys of each batch.
        attempts: pictures in a row to try for each key, which is left out if none can be read.
    Raises:
        RuntimeError: a worker died; the message begins with "DataLoader worker".
        OSError: as the data raise it.
    """
    loader = DataLoader(
        SkipUnreadable(data, attempts),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_attempts,
        worker_init_fn=init_worker,
        pin_memory=torch.cuda.is_initialized(),
    )
    iterator: Any = None
    try:
        iterator = iter(loader)
        yield from iterator
    except (EOFError, OSError) as error:
        if not workers or str(error).startswith("Caught"):  # torch passes on a worker's error
            raise
        raise RuntimeError(f"DataLoader worker is gone: {error!r}") from None
    finally:
        # Workers ignore signals, so at exit Python would wait for them forever.
        # No iterator: starting the workers failed, because a worker of another loader had died.
        if iterator is None:
            for child in multiprocessing.active_children():
                child.kill()
        elif workers:
            iterator._shutdown_workers()


def training_batches(
    data: Pretraining, batch: int, first_step: int, steps: int, workers: int
) -> Generator[Batch, None, None]:
    """This process's part of the batch of each step from `first_step` to `steps`, from 1.

    Raises:
        ValueError: too many pictures, or too many in a row, cannot be read.
    """
    size = batch // world_size()
    starts = [(step - 1) * batch + rank() * size for step in range(first_step, steps + 1)]
    keys = [range(start, start + size) for start in starts]
    num_unreadable = 0
    for count, loaded in enumerate(make_loader(data, keys, workers, MAX_ATTEMPTS), start=1):
        num_unreadable += len(loaded.skipped)
        reason = loaded.skipped[-1] if loaded.skipped else ""
        if len(loaded.images) < size:
            raise ValueError(
                f"{data.source.root}: expected a readable picture among {MAX_ATTEMPTS} in a row, "
                f"got none; the last: {reason}"
            )
        if num_unreadable > max(10, MAX_UNREADABLE * count * size):
            raise ValueError(
                f"{data.source.root}: expected at most {MAX_UNREADABLE:.0%} of the pictures to be "
                f"unreadable, got {num_unreadable} of {count * size}; the last: {reason}"
            )
        yield loaded


def evaluation_batches(heldout: Pretraining, count: int, batch: int, workers: int) -> list[Batch]:
    """Load the first `count` held-out pictures, once for all evaluations of a run.

    Args:
        count: pictures in all processes together; 1,024 of 512 x 512 pixels take 0.8 GB.
        batch: the pictures of a training step, in all processes together.
    Returns:
        With W processes, every W-th batch. The batches do not depend on W. Each has at least
        min(batch, 64) pictures, if there are so many, less those that cannot be read.
    Raises:
        ValueError: no batch of any process has two readable images to compare.
    """
    count = min(count, len(heldout.indices))
    keys = np.array_split(np.arange(count), max(1, count // min(batch, 64)))
    workers = fitting_workers(workers, len(keys[0]), heldout.size)  # no batch is larger
    loader = make_loader(heldout, keys[rank() :: world_size()], workers)
    loaded = [out_of_shared_memory(each) for each in loader]
    if max(all_gather_lists([len(each.images) for each in loaded])) < 2:
        reasons = all_gather_lists([reason for each in loaded for reason in each.skipped])
        last = f"; the last: {reasons[-1]}" if reasons else ""
        raise ValueError(f"held-out images: expected two readable ones in a batch, got none{last}")
    return loaded


def out_of_shared_memory(batch: Batch) -> Batch:
    """Copy what workers passed on, because /dev/shm may be small (see `fitting_workers`)."""
    images, ids = (x.clone() if x.is_shared() else x for x in (batch.images, batch.ids))
    return batch._replace(images=images, ids=ids)


def seed_of(*key: int) -> int:
    """A seed from a key, such as the run's seed, the step and the process.

    Trailing zeros do not count: (0, 5) and (0, 5, 0) give the same seed.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def prepare(batch: Batch, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Mask a character of each word, and send images, masked ids and targets to the device."""
    generator = torch.Generator().manual_seed(seed)
    ids, targets = vlpt.mask_one_char(batch.ids, generator)
    if device.type == "cpu":  # for speed; a GPU prefers shapes that never change
        ids = trim(ids)
        targets = targets[:, : ids.shape[1], : ids.shape[2]]
    images, ids, targets = (to_device(x, device) for x in (batch.images, ids, targets))
    return images, ids, targets


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor without waiting for the device, which needs pinned memory."""
    if device.type == "cuda" and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def default_workers(device: torch.device) -> int:
    """How many workers to use: 1 on a CPU; with a GPU, the process's share of the cores less 2."""
    if device.type == "cpu":
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, min(16, (cores - 2) // local_world_size()))


def local_world_size() -> int:
    """The processes of the run on this machine; all of them if the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def fitting_workers(workers: int, batch: int, image_size: int, shm: str = "/dev/shm") -> int:
    """Reduce the number of workers to what shared memory holds; workers wait forever if it is full.

    Args:
        batch: pictures that each worker loads at once.
        shm: the folder through which workers pass batches; three batches a worker are on the way.
    """
    if not os.path.isdir(shm):
        return workers
    batch_bytes = batch * (3 * image_size**2 + 8 * vlpt.MAX_CHARS * vlpt.MAX_WORDS)
    free = shutil.disk_usage(shm).free // local_world_size()
    fitting = min(workers, free // (3 * batch_bytes))
    if fitting < workers:
        print_rank0(
            f"warning: {shm} has {free / 2**20:,.0f} MiB free for a process, and {workers} workers "
            f"need {3 * workers * batch_bytes / 2**20:,.0f} MiB; going on with {fitting} workers. "
            "In a container, give it more, for example by docker run --shm-size 8g"
        )
    return fitting


def character_entropy(data: Pretraining) -> float:
    """The entropy in nats of the learnable characters in the words of a source.

    It is about the L_cls of guesses by frequency alone. Every character counts once here, and
    every word in the loss, so the letters of short words weigh more there.
    """
    source = data.source
    if isinstance(source, data_stub.Rendered):  # its words are drawn, so look at many of them
        rng = np.random.default_rng(0)
        words = (data_stub.draw_word(rng, source.scene, source.split) for _ in range(5000))
        counts = Counter("".join(words))
    else:
        counts = source.characters()
    learnable = [count for char, count in counts.items() if char in data.alphabet.index]
    shares = torch.tensor(learnable, dtype=torch.float64) / sum(learnable)
    return torch.special.entr(shares).sum().item()
