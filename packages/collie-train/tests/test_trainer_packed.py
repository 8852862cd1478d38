"""The Trainer over packs: the losses and weights of the same rows apart, in every layout."""

import pytest
import torch
from torch.testing import assert_close
from toy_training import LR, make_config, make_model, sgd
from transformers import LlamaForCausalLM, MistralConfig

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.controller.trainer._joined import joined
from collie.data import CollieDatasetForTraining, ColliePadder, MicroBatch
from collie.optim import Lomo
from collie.parallel import cut_of, setup_distribution
from collie.testing import RankError, toy_config, toy_llama_config

LENGTHS = (10, 3, 7, 2, 5, 9, 4, 11, 6, 3, 8)
PACK = 13  # the rows fill 6 packs, some of them with padding; batches of 2 are of different lengths


class Losses(Callback):
    """Keeps each step's loss."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, loss):
        self.seen.append(float(loss))


def dataset():
    generator = torch.Generator().manual_seed(3)
    made = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]
    rows = [{"input_ids": ids, "labels": [-100] * (i % 2) + ids[i % 2 :]} for i, ids in enumerate(made)]
    return CollieDatasetForTraining(rows)


def described(family):
    sizes = {"num_hidden_layers": 4, "initializer_range": 0.3, "use_cache": False}
    if family == "mistral":
        return toy_config(MistralConfig, sliding_window=3, **sizes)
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}  # each row by its own length
    return toy_llama_config(rope_parameters=scaling, max_position_embeddings=6, **sizes)


def call_the_model(trainer, batch, step):
    """A train_fn. On stages it gets all packs of a step in one batch, so that its mean is that over all targets."""
    return trainer.model(**batch).loss


def train(packs, micro, accumulate, family="llama", fused=False, train_fn=None, stage=0, **options):
    """Train three steps of all rows; return the losses and this rank's parameters."""
    config = make_config(stage, micro, accumulate, train_epochs=3, **options)
    config.model_config = described(family)
    setup_distribution(config)
    model, losses = make_model(config), Losses()
    optimizer = Lomo(model, lr=LR) if fused else sgd(model.parameters())
    rows = dataset().packed(PACK) if packs else dataset()
    trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows, callbacks=[losses], train_fn=train_fn)
    trainer.train()
    parts = {}
    for name, parameter in model.named_parameters():
        cut = cut_of(parameter)
        parts[cut.name if cut is not None else name] = (cut, parameter.detach().clone())
    return losses.seen, parts, trainer.topology.tp_rank


@pytest.fixture(scope="module")
def apart(ranks):
    """Rows apart in one process, each by its own length, by family."""
    return {family: ranks(1, train, False, 1, len(LENGTHS), family)[0] for family in ("llama", "mistral")}


LAYOUTS = {
    "one process": (1, {"micro": 3, "accumulate": 2}),
    "checkpointing": (1, {"micro": 6, "accumulate": 1, "checkpointing": True}),
    "lomo": (1, {"micro": 2, "accumulate": 3, "fused": True}),
    "dp2": (2, {"micro": 2, "accumulate": 2}),
    "pp2": (2, {"pp_size": 2, "micro": 2, "accumulate": 3}),
    "pp2 interleaved": (2, {"pp_size": 2, "pp_schedule": "interleaved", "micro": 2, "accumulate": 3}),
    "pp2 train_fn": (2, {"pp_size": 2, "micro": 1, "accumulate": 6, "train_fn": call_the_model}),
    "tp2 pp2": (4, {"pp_size": 2, "tp_size": 2, "micro": 4, "accumulate": 2, "sequence_parallel": True}),
    "mistral pp2": (2, {"pp_size": 2, "micro": 1, "accumulate": 6, "family": "mistral"}),
}


def on_packs(options):
    return train(True, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_over_packs_is_that_over_their_rows(ranks, apart, layout):
    """Pipeline micro-batches differ in length and in how many packs they have, and some are fillers."""
    world, options = LAYOUTS[layout]
    losses, weights, _ = apart[options.get("family", "llama")]
    for seen, parts, tp_rank in ranks(world, on_packs, options):
        assert_close(seen, losses, atol=2e-6, rtol=2e-6)
        assert set(parts) <= set(weights)
        for name, (cut, part) in parts.items():
            whole, rebuilt = weights[name][1], part
            if cut is not None:
                cut.put(part, tp_rank, rebuilt := whole.clone())
            assert_close(rebuilt, whole, atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def with_own_loss():
    seen = []

    def loss(logits, labels, cu_seqlens):
        seen.append((labels, cu_seqlens))
        return logits.float().square().mean()

    config = make_config(micro=2)
    setup_distribution(config)
    model, packs = make_model(config), dataset().packed(PACK)
    Trainer(model, config, loss_fn=loss, optimizer=sgd(model.parameters()), train_dataset=packs).train()
    return seen


def test_an_own_loss_gets_packs_and_where_their_rows_begin(ranks):
    """A mean over packs, each of which counts as one row."""
    [seen] = ranks(1, with_own_loss)
    assert len(seen) == -(-len(dataset().packed(PACK)) // 2)
    for labels, starts in seen:
        assert (labels.flatten()[starts[:-1].long()] == -100).all()


def test_joined_packs_are_the_packs_of_each():
    """What a train_fn gets on stages: rows of packs keep their places, which are counted over all of them."""
    packs = dataset().packed(PACK)
    batches = [ColliePadder()([packs[0], packs[1]]), ColliePadder()([packs[len(packs) - 1]])]
    made = joined([MicroBatch(batch, len(batch["input_ids"])) for batch in batches]).batch
    together = ColliePadder()([packs[0], packs[1], packs[len(packs) - 1]])
    assert made.keys() == together.keys()
    assert all(torch.equal(made[key], together[key]) for key in together)


def by_transformers():
    config = make_config()
    setup_distribution(config)
    model = LlamaForCausalLM(toy_llama_config())
    Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=dataset().packed(PACK)).train()


def test_a_model_that_cannot_keep_rows_apart_is_refused(ranks):
    with pytest.raises(RankError, match=r"LlamaForCausalLM\.forward has no such parameter"):
        ranks(1, by_transformers)
