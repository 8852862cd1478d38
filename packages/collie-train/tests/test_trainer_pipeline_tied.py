"""A tied weight on two pipeline stages is one weight to every optimizer, group and train_fn."""

import pytest
import torch
from test_trainer_pipeline import compare, row_loss, train, train_fn
from toy_training import LR

from collie.interfaces import ConfigError
from collie.optim import Lomo
from collie.testing import run_ranks

DECAY = 0.5


def steps_itself(trainer, batch, step):
    """A train_fn as scripts for DeepSpeed have it."""
    loss = train_fn(trainer, batch, step)
    trainer.engine.backward(loss)
    trainer.engine.step()
    return float(loss)


@pytest.mark.parametrize("arguments", [{}, {"stage": 1, "schedule": "interleaved"}])
def test_a_train_fn_may_step_the_engine_itself(arguments):
    """Its gradients of both ends are summed before the update, and clipped by the norm of their sum."""
    same = {"micro": 4, "accumulate": 1, "clip": 0.5}
    [expected] = run_ranks(1, lambda: train(loss_fn=row_loss, **same))
    compare(run_ranks(2, lambda: train(pp=2, train_fn=steps_itself, **same, **arguments)), expected)


def sgd(*groups, rest=None):
    """An optimizer with groups by the beginning of a name; those of no group have the options of `rest`."""

    def make(model):
        left = dict(model.named_parameters())
        made = []
        for start, options in groups:
            names = [name for name in left if name.startswith(start)]
            made.append({"params": [left.pop(name) for name in names], **options})
        if rest is not None:
            made.append({"params": list(left.values()), **rest})
        return torch.optim.SGD(made, lr=LR)

    return make


@pytest.mark.parametrize(
    "make",
    [
        sgd(("embed", {"weight_decay": 0.0}), rest={"weight_decay": DECAY}),
        sgd(("head", {"lr": 0.0}), rest={"weight_decay": DECAY}),  # which in one process has no parameter
        sgd(("norm", {}), ("layers", {"weight_decay": DECAY})),  # neither end is updated
        sgd(("head", {}), ("layers", {"weight_decay": DECAY})),  # nor here, where the copy alone has a group
        lambda model: Lomo(model, lr=LR, weight_decay=DECAY, no_decay=("embed*",)),
        lambda model: Lomo(model, lr=LR, weight_decay=DECAY, no_decay=("head*", "*norm*")),
    ],
    ids=["embed apart", "head apart", "neither", "the copy alone", "lomo embed", "lomo head"],
)
def test_the_copy_has_the_options_of_the_original(make):
    """Its group's learning rate and decay, whatever its own name would give it."""
    [expected] = run_ranks(1, lambda: train(optimizer=make))
    compare(run_ranks(2, lambda: train(pp=2, optimizer=make)), expected)


def test_groups_that_the_copy_finds_no_place_in_are_refused():
    """On every rank, the one between the ends, too."""

    def without_empty_groups(model):
        made = sgd(("embed", {"weight_decay": 0.0}), rest={"weight_decay": DECAY})(model)
        return torch.optim.SGD([group for group in made.param_groups if group["params"]], lr=LR)

    def run():
        with pytest.raises(
            ConfigError, match=r"embed.weight is on the first .* lr=0.05, weight_decay=0.0, and its copy"
        ):
            train(pp=3, optimizer=without_empty_groups)

    run_ranks(3, run)


def test_lomo_leaves_backward_to_the_trainer():
    """What it would apply on the way through the stages is half of the tied weight's gradient."""

    def fused(trainer, batch, step):
        trainer.optimizer.fused_backward(train_fn(trainer, batch, step))

    def run():
        with pytest.raises(RuntimeError, match=r"tie_word_embeddings with pp_size=2.*Return the loss from train_fn"):
            train(pp=2, optimizer="lomo", train_fn=fused)

    run_ranks(2, run)


def test_lomo_may_own_backward_where_ends_are_not_tied():
    """Each gradient is complete where it comes up."""

    def fused(trainer, batch, step):
        loss = train_fn(trainer, batch, step)
        trainer.optimizer.fused_backward(loss)
        return float(loss)

    same = {"micro": 4, "accumulate": 1, "optimizer": "lomo", "tied": False}
    [expected] = run_ranks(1, lambda: train(loss_fn=row_loss, **same))
    compare(run_ranks(2, lambda: train(pp=2, train_fn=fused, **same)), expected)
