"""The gradient of a whole batch in the memory of a piece of it (GradCache).

Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
https://arxiv.org/abs/2101.06983. Plain accumulation is wrong for this method, since the
contrastive loss compares every image with every text of the batch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vlpt
from training.distributed import gather_outputs
from training.recompute import frozen_statistics

Forward = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[vlpt.Output, Tensor]]


def cached_backward(
    forward: Forward,
    model: nn.Module,
    images: Tensor,
    ids: Tensor,
    targets: Tensor,
    num_pieces: int,
    contrastive: bool = True,
) -> tuple[Tensor, vlpt.Output, Tensor]:
    """Add the gradient of `vlpt.total_loss` of the batch of all processes to the parameters.

    The result is exact except for the batch statistics, which are those of a piece.

    Args:
        forward: calls the model with a piece's images, ids and targets.
        model: a `vlpt.MaskedOnly`, or DistributedDataParallel around it.
        images, ids, targets: this process's part of the batch, as `forward` takes them.
        num_pieces: how many pieces to cut it into, at most; each is run twice.
        contrastive: as in `vlpt.total_loss`.
    Returns:
        The loss, and the outputs and targets of all processes, without a graph.
    """
    bare: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    chunks = (x.chunk(num_pieces) for x in (images, ids, targets))
    pieces = list(zip(*chunks, strict=True))

    # First pass: the outputs of every piece, without a graph. Statistics move in the second pass.
    with torch.no_grad(), frozen_statistics(bare):
        results = [forward(bare, *piece) for piece in pieces]
    outputs = [output for output, _ in results]
    own_targets = torch.cat([piece_targets for _, piece_targets in results])
    logit_scale = outputs[0].logit_scale

    # The gradient of the loss with respect to these outputs.
    leaves = vlpt.Output(
        image=leaf(torch.cat([output.image for output in outputs])),
        text=leaf(torch.cat([output.text for output in outputs])),
        logits=leaf(torch.cat([output.logits for output in outputs])),
        logit_scale=leaf(logit_scale),
    )
    whole, whole_targets = gather_outputs(leaves, own_targets)
    loss = vlpt.total_loss(whole, whole_targets, contrastive)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    image_gradients, text_gradients, logits_gradients, scale_gradient = gradients

    # Second pass: each piece with a graph. Its surrogate loss has these gradients.
    rows = 0
    for k, piece in enumerate(pieces):
        of_piece = slice(rows, rows + len(piece[0]))
        rows = of_piece.stop
        no_sync: AbstractContextManager[None] = nullcontext()
        if isinstance(model, DistributedDataParallel) and k < len(pieces) - 1:
            no_sync = model.no_sync()  # gradients are averaged in the last piece
        with no_sync:
            output, _ = forward(model, *piece)
            surrogate = (output.image * image_gradients[of_piece]).sum()
            surrogate = surrogate + (output.text * text_gradients[of_piece]).sum()
            surrogate = surrogate + (output.logits * logits_gradients[of_piece]).sum()
            surrogate = surrogate + output.logit_scale * scale_gradient / len(pieces)
            surrogate.backward()
    return loss.detach(), vlpt.Output(*(x.detach() for x in whole)), whole_targets


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()
