"""One or many processes: joining them, printing once, and gathering a batch with its gradients."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vlpt

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of torch's env:// method


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Choose this process's device, and join the other processes for as long as the block runs.

    Any launcher works that sets torch's environment variables: torchrun, Kubeflow, or a script
    around srun or mpirun.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
    Raises:
        ValueError: the environment variables are incomplete, or there are too few GPUs.
    """
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    this_rank = int(os.environ.get("RANK", 0))
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing and (num_processes > 1 or this_rank > 0):
        raise ValueError(
            f"environment: expected {', '.join(VARIABLES)} as torchrun sets them, "
            f"got no {' and no '.join(missing)}"
        )
    this_device = torch.device("cpu")
    if use_cuda:
        num_gpus = torch.cuda.device_count()
        # srun and mpirun do not set LOCAL_RANK, and may show each process its own GPU alone.
        local_rank = int(os.environ.get("LOCAL_RANK", this_rank % max(1, num_gpus)))
        if local_rank >= num_gpus:
            raise ValueError(
                f"processes: expected at most {num_gpus}, one for each GPU of this machine, "
                f"got at least {local_rank + 1}"
            )
        this_device = torch.device("cuda", local_rank)
        torch.cuda.set_device(this_device)
        torch.backends.cudnn.benchmark = True  # training shapes never change
    if num_processes > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")
    yield this_device
    if dist.is_initialized():  # not after an error, since the others may never come to this point
        dist.destroy_process_group()


def describe(device: torch.device) -> str:
    """The hardware in words, for the log."""
    name = f"cpu ({torch.get_num_threads()} threads)"
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    return name if world_size() == 1 else f"{name} in each of {world_size()} processes"


@contextmanager
def rank0_first() -> Iterator[None]:
    """Let the first process run a block before the others, who may then read what it wrote."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


def print_rank0(text: str) -> None:
    """Print in the first process. A terminal that is gone, or a full disk, does not end a run."""
    if rank() == 0:
        try:
            print(text, flush=True)
        except OSError:
            pass


def all_reduce(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient."""
    if world_size() > 1:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
    return values


def all_gather_lists(own: list[Any]) -> list[Any]:
    """The lists of all processes, joined in the order of the processes."""
    lists = [own]
    if world_size() > 1:
        lists = [[] for _ in range(world_size())]
        dist.all_gather_object(lists, own)
    return [item for each in lists for item in each]


def distribute(model: vlpt.MaskedOnly) -> nn.Module:
    """With several processes, average gradients and, on GPUs, synchronise BatchNorm (D10)."""
    if world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:  # torch has it for GPUs only
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model)


def unwrap(model: nn.Module) -> vlpt.VLPT:
    """The model inside of `vlpt.MaskedOnly` and `distribute`."""
    masked_only: Any = model.module if isinstance(model, DistributedDataParallel) else model
    return masked_only.model


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the running statistics of the first one."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather_outputs(output: vlpt.Output, targets: Tensor) -> tuple[vlpt.Output, Tensor]:
    """Join the outputs and targets of all processes into those of the whole batch (D7).

    Gradients flow back to the process that a row came from. When each process computes the same
    loss of the whole batch, a row's gradient is the sum over W equal losses, of which
    DistributedDataParallel takes the mean over W processes. The result is the exact gradient.

    Args:
        output, targets: of `vlpt.MaskedOnly`, with the same B in each process. Processes may have
            trimmed their words differently.
    """
    if world_size() == 1:
        return output, targets
    missing = vlpt.MAX_WORDS - targets.shape[2]
    logits = F.pad(output.logits, (0, 0, 0, missing))  # (B, 1, MAX_WORDS, V)
    targets = F.pad(targets, (0, missing), value=vlpt.IGNORE_INDEX)  # (B, 1, MAX_WORDS)
    gathered = vlpt.Output(
        image=all_gather_rows(output.image),
        text=all_gather_rows(output.text),
        logits=all_gather_rows(logits),
        logit_scale=output.logit_scale,
    )
    return gathered, all_gather_rows(targets)


class AllGather(torch.autograd.Function):
    """Turns (B, ...) of each process into (W * B, ...); a row's gradients return to its process.

    torch.distributed.nn has the same function, but torch 2.14 declares it deprecated.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        rows = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(rows, own)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient).chunk(world_size())[rank()]


def all_gather_rows(own: Tensor) -> Tensor:
    """Apply `AllGather` in float32 or more, so that the gradients of W processes add up in it."""
    if own.is_floating_point():
        own = vlpt.to_float32(own)
    return AllGather.apply(own.contiguous())
