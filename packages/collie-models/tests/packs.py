"""What the tests of packed rows share: rows, packs of them, and what a model makes of either."""

import random

import torch

from collie.data import ColliePadder, PackedDataset
from collie.module import GPTLMLoss, count_targets, targets, token_loss
from collie.parallel import active_topology, full_parameters

LENGTHS = (11, 7, 5, 2, 4, 9, 3, 10)


def toy_rows(vocabulary, lengths=LENGTHS):
    """Rows of these lengths, each with a target and some with a first part that is none."""
    draw = random.Random(5)
    rows = []
    for number, length in enumerate(lengths):
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        hidden = number % 2 * (length // 2)
        labels = [-100] * hidden + ids[hidden:]
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    return rows


def packed(rows, length, **padder):
    """All rows as one batch of packs."""
    packs = PackedDataset(rows, length)
    return ColliePadder(**padder)(list(packs))


def apart(rows):
    """Each row as a batch of its own."""
    return [ColliePadder()([row]) for row in rows]


def gradients_of(model, batches):
    """The mean loss over all targets of the batches, and its gradients by name."""
    loss = GPTLMLoss()
    model.zero_grad()
    total = sum(int(count_targets(targets(batch))) for batch in batches)
    shares = []
    for batch in batches:
        share = token_loss(model, batch, loss, total)
        share.backward()
        shares.append(share.detach().double())
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return torch.stack(shares).sum(), grads


def whole_gradients(grads, model):
    """These gradients in the shapes of the whole model, on the first rank of each stage."""
    for name, parameter in model.named_parameters():
        parameter.data = grads[name]
    return {name: whole.clone() for name, whole in full_parameters(model, active_topology()) if whole is not None}
