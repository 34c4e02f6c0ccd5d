"""Run by torchrun from test_runs.py: W processes against one process with the whole batch.

Everything is in float64 and in evaluation mode, since each process has batch statistics of its own.
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist

import train_min
import vlpt
from training.dataset import Batch, trim
from training.distributed import distribute, gather_outputs, rank, world_size
from training.gradcache import cached_backward

WORDS = [
    ["12", "345"],
    [],
    ["7"],
    ["1234", "5", "67"],
    ["89"],
    ["0123456789"],
    [],
    [],
    ["42", "1"],
    ["66"],
    ["31"],
    ["5"],
]  # of 12 images, which can be shared by 2 or 3 processes


def make_ids():
    return torch.stack([vlpt.Alphabet("0123456789").encode(words) for words in WORDS])


def make_batch():
    torch.manual_seed(0)
    images = torch.randint(0, 255, (len(WORDS), 3, 64, 64), dtype=torch.uint8)
    return images, *vlpt.mask_one_char(make_ids(), torch.Generator().manual_seed(1))


def make_model(contrastive):
    torch.manual_seed(2)
    config = vlpt.Config(**vars(vlpt.TINY) | {"contrastive": contrastive})
    return vlpt.VLPT(config).eval().double()


def gradient(model):
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in gradients])


def double_input(images):
    return vlpt.normalize(images).double()


def one_process(contrastive):
    """Loss and gradient by the functions of vlpt.py alone, with every character decoded."""
    model = make_model(contrastive)
    images, ids, targets = make_batch()
    output = model(double_input(images), ids)
    loss = vlpt.total_loss(output, targets, contrastive)
    loss.backward()
    return loss.item(), gradient(model)


def many_processes(contrastive, num_pieces):
    """The same by this process's part of the batch, trimmed to its own longest word."""
    model = make_model(contrastive)
    trained = distribute(vlpt.MaskedOnly(model))
    images, ids, targets = (x.chunk(world_size())[rank()] for x in make_batch())
    ids = trim(ids)
    targets = targets[:, : ids.shape[1], : ids.shape[2]]
    if num_pieces == 1:
        output, targets = train_min.forward(trained, images, ids, targets)
        loss = vlpt.total_loss(*gather_outputs(output, targets), contrastive)
        loss.backward()
    else:
        loss, _, _ = cached_backward(
            train_min.forward, trained, images, ids, targets, num_pieces, contrastive
        )
    return loss.item(), gradient(model)


def main():
    cases = [(contrastive, pieces) for contrastive in (True, False) for pieces in (1, 2, 3)]
    expected = {contrastive: one_process(contrastive) for contrastive in (True, False)}

    train_min.model_input = double_input
    images, ids = make_batch()[0][:4], make_ids()[[0, 2, 3, 4]]
    heldout = [Batch(images.roll(k, 0), ids.roll(k, 0), []) for k in range(5)]
    evaluator = make_model(True)
    evaluation = train_min.evaluate(evaluator, heldout, seed=0)

    dist.init_process_group("gloo")
    for buffer in evaluator.buffers():  # after a step on CPUs each process has its own statistics
        buffer += rank()
    of_many = train_min.evaluate(evaluator, heldout[rank() :: world_size()], seed=0)
    found = {"evaluation": of_many == evaluation, "cases": {}}
    for contrastive, pieces in cases:
        expected_loss, expected_gradient = expected[contrastive]
        loss, got = many_processes(contrastive, pieces)
        largest = expected_gradient.abs().max()
        found["cases"][f"contrastive={contrastive} pieces={pieces}"] = {
            "loss": abs(loss - expected_loss),
            "largest": largest.item(),
            "gradient": ((got - expected_gradient).abs().max() / largest).item(),
        }
    if rank() == 0:
        Path("of_many.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
