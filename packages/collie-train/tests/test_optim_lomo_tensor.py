"""LOMO on models that tensor parallelism splits: the norm it clips by, and the weights it ends at, are SGD's."""

import pytest
import torch
from torch import nn
from toy_training import LR, make_config, make_model, rows, snapshot
from transformers import LlamaConfig, Qwen3Config

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.optim import Lomo, rewind_random_numbers
from collie.parallel import full_parameters, setup_distribution, shard_of
from collie.testing import run_ranks, toy_config

IDS = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(5))
CLIP = 0.5
STEPS = 3


def model_of(tp=1, stage=0, dropout=0.0, split=False, kind=LlamaConfig, **fields):
    """`split` along the sequence, with recomputed layers."""
    config = make_config(stage, tp_size=tp, dropout=dropout, sequence_parallel=split, checkpointing=split)
    config.model_config = toy_config(kind, initializer_range=0.4, **fields)
    topology = setup_distribution(config)
    return make_model(config), topology


def loss_of(model, ids):
    return model(ids, labels=ids, return_logits=False, num_items_in_batch=32).loss


def clipped_sgd(tied, kind=LlamaConfig):
    """torch's own clipping and SGD, in one process."""
    model, _ = model_of(kind=kind, tie_word_embeddings=tied)
    model.train()
    optimizer, norms = torch.optim.SGD(model.parameters(), lr=LR), []
    for _ in range(STEPS):
        loss_of(model, IDS).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
    return norms, {name: p.detach() for name, p in model.named_parameters()}


def clipped_lomo(tp, stage, tied, accumulate, split=False, kind=LlamaConfig):
    model, topology = model_of(tp, stage, split=split, kind=kind, tie_word_embeddings=tied)
    model.train()
    optimizer, norms = Lomo(model, lr=LR, clip_grad_norm=CLIP), []
    mine = IDS.chunk(topology.dp_size)[topology.dp_rank]
    for _ in range(STEPS):
        if accumulate:
            for ids in mine.chunk(2):
                optimizer.accumulate(loss_of(model, ids) * topology.dp_size)
            norms.append(optimizer.apply_accumulated(LR))
            continue
        loss = loss_of(model, mine) * topology.dp_size
        norms.append(optimizer.grad_norm(loss))
        if optimizer.needs_second_forward:
            loss = loss_of(model, mine) * topology.dp_size
        optimizer.fused_backward(loss, LR)
    return norms, dict(full_parameters(model, topology))


@pytest.mark.parametrize(
    ("ranks", "tp", "stage", "tied", "accumulate"),
    [
        (2, 2, 0, False, False),
        (2, 2, 3, True, False),  # one dp rank: slices that are wholes
        (4, 4, 0, False, False),  # 2 key/value heads on 4 ranks: each counts once
        (4, 4, 0, True, True),
        (4, 2, 1, False, True),
        (4, 2, 3, True, False),
        (4, 2, 3, False, True),
    ],
)
def test_clipping_under_tensor_parallelism_equals_torchs(ranks, tp, stage, tied, accumulate):
    """Split parameters are summed over tp, shared and replicated ones counted once, in every ZeRO stage."""
    ends_at_the_same(run_ranks(1, clipped_sgd, tied), run_ranks(ranks, clipped_lomo, tp, stage, tied, accumulate))


@pytest.mark.parametrize(("ranks", "tp", "stage", "accumulate"), [(2, 2, 0, True), (4, 4, 0, False), (4, 2, 3, False)])
def test_gradients_in_parts_are_summed_before_they_are_applied(ranks, tp, stage, accumulate):
    """Qwen3 along 9 positions: a rank sees a part of what its norms act on, and of some norms a part of the heads."""
    results = run_ranks(ranks, clipped_lomo, tp, stage, True, accumulate, True, Qwen3Config)
    ends_at_the_same(run_ranks(1, clipped_sgd, True, Qwen3Config), results)


def ends_at_the_same(alone, results):
    """Norms of the gradients and weights after the last step."""
    [(expected_norms, expected)] = alone
    assert min(expected_norms) > 1
    for norms, _ in results:
        assert norms == results[0][0]  # to the bit, or replicas would drift apart
        assert norms == pytest.approx(expected_norms, rel=1e-5)
    assert results[0][1].keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(results[0][1][name], weight, atol=2e-6, rtol=1e-5)


def one_step(tp, stage):
    """How far a clipped step of learning rate 1 goes with dropout, and the key weights that this rank holds."""
    model, topology = model_of(tp, stage, dropout=0.5)
    model.train()
    before = {n: p.clone() if p is not None else None for n, p in full_parameters(model, topology)}
    optimizer = Lomo(model, lr=1.0, clip_grad_norm=0.25)
    rewind = rewind_random_numbers(topology.device)
    loss = loss_of(model, IDS)
    assert optimizer.grad_norm(loss) > 0.25
    if optimizer.needs_second_forward:
        rewind()
        loss = loss_of(model, IDS)
    optimizer.fused_backward(loss, 1.0)
    after = dict(full_parameters(model, topology))
    keys = [shard_of(layer.attention.k.weight, topology).data.clone() for layer in model.layers.values()]
    if topology.rank != 0:
        return None, keys
    return torch.stack([(after[name] - before[name]).norm() for name in after]).norm().item(), keys


@pytest.mark.parametrize("stage", [0, 3])
def test_both_passes_see_the_same_dropout_and_copies_stay_equal(stage):
    """The step is lr·clip long only if the norm was that of the gradient applied, in the masks of each rank's heads.

    Ranks that hold the same keys drop other weights, and still get the same gradient.
    """
    results = run_ranks(4, one_step, 4, stage)
    assert results[0][0] == pytest.approx(0.25, rel=1e-4)
    for first, second in ((0, 1), (2, 3)):
        assert all(torch.equal(a, b) for a, b in zip(results[first][1], results[second][1], strict=True))
    assert not torch.equal(results[0][1][0], results[2][1][0])


def trained(tp, stage, micro, optimizer):
    """Losses and weights of a whole training, ten rows in global batches of four."""
    config = make_config(stage, micro=micro, tp_size=tp)
    model = make_model(config)
    losses = []

    class Record(Callback):
        def on_train_batch_end(self, trainer, loss):
            losses.append(float(loss))

    lomo = optimizer == "lomo"
    made = Lomo(model, lr=LR, clip_grad_norm=1.0) if lomo else torch.optim.SGD(model.parameters(), lr=LR)
    trainer = Trainer(model=model, config=config, optimizer=made, train_dataset=rows(), callbacks=[Record()])
    trainer.train()
    return losses, snapshot(model, trainer)


@pytest.mark.parametrize("optimizer", ["sgd", "lomo"])
@pytest.mark.parametrize("stage", [0, 3])
def test_a_replica_of_two_ranks_trains_as_one_process(optimizer, stage):
    """tp 2 × dp 2: both ranks of a replica read the same rows, and an incomplete last batch counts as one process's."""
    [(losses, weights)] = run_ranks(1, trained, 1, 0, 4, optimizer)
    results = run_ranks(4, trained, 2, stage, 2, optimizer, timeout=120)
    for ours, _ in results:
        assert ours == pytest.approx(losses, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(results[0][1][name], weight, atol=5e-6, rtol=1e-5)
