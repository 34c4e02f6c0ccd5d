"""Run by torchrun from test_runs.py: compares W processes with one on the whole batch."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_min
import vlpt
from data_stub import Batch
from experiments import run_min

WORDS = [["12", "345"], [], ["7"], ["1234", "5", "67"], ["89"], ["0123456789"], [], [], ["42", "1"],
         ["66"], ["31"], ["5"]]  # fmt: skip  # of 12 images: as many for each of 2 or 3 processes


def batch():
    torch.manual_seed(0)
    images = torch.randint(0, 255, (len(WORDS), 3, 64, 64), dtype=torch.uint8)
    ids = torch.stack([vlpt.Alphabet("0123456789").encode(words) for words in WORDS])
    return images, *vlpt.mask_one_char(ids, torch.Generator().manual_seed(1))


def fresh(contrastive):
    torch.manual_seed(2)
    config = vlpt.Config(**vars(vlpt.TINY) | {"contrastive": contrastive})
    return vlpt.VLPT(config).eval().double()  # each process has batch statistics of its own


def gradient(model):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                      for p in model.parameters()])  # fmt: skip


def double_precision(model, images, ids):
    return model(vlpt.normalize(images).double(), ids, masked_only=True)


def alone(contrastive):
    """Loss and gradient of one process, by the functions of vlpt.py alone."""
    model = fresh(contrastive)
    images, ids, targets = batch()
    output = model(vlpt.normalize(images).double(), ids)
    loss = vlpt.total_loss(output, targets, contrastive)
    loss.backward()
    return loss.item(), gradient(model)


def main():
    found, train_min.run_model = {}, double_precision
    cases = [(f"contrastive={c} pieces={k}", c, k) for c in (True, False) for k in (1, 2, 3)]
    expected = [alone(contrastive) for _, contrastive, _ in cases]
    held = [Batch(torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8), batch()[1][:4].clone()
                  .masked_fill(batch()[1][:4] == vlpt.MASK, 5), []) for _ in range(5)]  # fmt: skip
    evaluator = fresh(True)
    whole = train_min.evaluate(evaluator, held, 0)
    dist.init_process_group("gloo")
    rank, world = run_min.rank(), run_min.world()
    for buffer in evaluator.buffers():  # after a step on CPUs each process has its statistics
        buffer += rank
    spread = train_min.evaluate(evaluator, held[rank::world], 0)
    for (case, contrastive, pieces), (loss, grad) in zip(cases, expected, strict=True):
        model = fresh(contrastive)
        spreader = DistributedDataParallel(model)
        part = [x.chunk(world)[rank] for x in batch()]
        if pieces == 1:
            told = train_min.whole_backward(spreader, *part)
        else:
            told = train_min.cached_backward(spreader, *part, pieces)
        told = run_min.over_all(told)
        largest = grad.abs().max()
        found[case] = {"loss": abs(told[0] + told[1] - loss).item(), "largest": largest.item(),
                       "gradient": ((gradient(model) - grad).abs().max() / largest).item(),
                       "evaluation": spread == whole}  # fmt: skip
    if rank == 0:
        Path("of_many.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
