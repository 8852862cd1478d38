"""The Trainer on pipeline stages: the same losses, norms and weights as one process, whatever is dealt and how."""

import warnings
from functools import partial

import pytest
import torch
from toy_training import LR, make_config, make_model, rows

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.optim import AdaLomo, Lomo, freeze
from collie.parallel import active_topology, cut_of, original_of, setup_distribution
from collie.testing import RankError, run_ranks, toy_llama_config

LAYERS = 4
ROWS = 15  # of targets and lengths that differ
FUSED = {"lomo": partial(Lomo, lr=LR), "adalomo": partial(AdaLomo, lr=LR / 10)}  # whose steps are longer


class Losses(Callback):
    """Keeps each step's loss."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, loss):
        self.seen.append(float(loss))


def data():
    """Rows whose lengths and target counts differ, so that micro-batches of a step do, too."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(4, 14, (ROWS,), generator=generator).tolist()
    made = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]
    return [
        {"input_ids": ids, "labels": [-100] * (i % 3) + ids[i % 3 :], "attention_mask": [1] * len(ids)}
        for i, ids in enumerate(made)
    ]


def row_loss(logits, labels):
    """A loss of a user's own: over full logits, a mean over rows."""
    log = logits[:, :-1].log_softmax(-1)
    target = labels[:, 1:].clamp(min=0)
    picked = log.gather(-1, target.unsqueeze(-1)).squeeze(-1) * (labels[:, 1:] >= 0)
    return -picked.sum(1).mean() / 16


def train_fn(trainer, batch, step):
    """A train_fn that calls the model itself."""
    return row_loss(trainer.model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])


def train(
    pp=1, tp=1, dp=1, stage=0, optimizer="sgd", schedule="1f1b", micro=2, accumulate=2, tied=True, clip=0.0, **options
):
    """Train two epochs; return the losses, and this rank's parameters by the whole model's names."""
    ds_config = {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0 if optimizer in FUSED else clip}
    config = make_config(stage, pp_size=pp, tp_size=tp, dp_size=dp, pp_schedule=schedule, ds_config=ds_config)
    config.train_micro_batch_size, config.gradient_accumulation_steps = micro, accumulate
    config.train_epochs = 2
    config.checkpointing = options.pop("checkpointing", False)
    config.sequence_parallel = options.pop("sequence_parallel", False)
    config.model_config = toy_llama_config(
        num_hidden_layers=LAYERS, tie_word_embeddings=tied, initializer_range=0.3, use_cache=False
    )
    setup_distribution(config)
    model = make_model(config)
    if frozen := options.pop("frozen", None):
        freeze(model, frozen)
    if optimizer in FUSED:
        made = FUSED[optimizer](model, clip_grad_norm=clip or None)
    else:
        made = torch.optim.SGD(model.parameters(), lr=LR)
    losses = Losses()
    trainer = Trainer(model, config, optimizer=made, train_dataset=data(), callbacks=[losses], **options)
    trainer.train()
    return losses.seen, parts(model)


def parts(model):
    """This rank's parameters, each with the cut that says of what it is a part."""
    topology = active_topology()
    return {
        name: (cut_of(parameter), topology.tp_rank, original_of(parameter), parameter.detach().clone())
        for name, parameter in model.named_parameters()
    }


def compare(results, expected, tolerance=2e-5):
    """Every rank has the reference's losses, every held part is the reference's, and all layers are held."""
    reference_losses, reference = expected
    seen = set()
    for losses, held in results:
        assert losses == pytest.approx(reference_losses, rel=1e-5)
        for name, (cut, tp_rank, original, value) in held.items():
            whole_name = original or (cut.name if cut is not None else name)
            seen.add(whole_name)
            whole = reference[whole_name][3]
            if cut is not None:
                rebuilt = whole.clone()
                cut.put(value, tp_rank, rebuilt)
                value = rebuilt
            torch.testing.assert_close(value, whole, atol=tolerance, rtol=0)
    assert seen == set(reference)


@pytest.fixture(scope="module")
def one_process():
    """References, each made once."""
    made = {}

    def get(**arguments):
        key = tuple(sorted(arguments.items(), key=str))
        if key not in made:
            [made[key]] = run_ranks(1, lambda: train(**arguments))
        return made[key]

    return get


@pytest.mark.parametrize(
    ("ranks", "arguments"),
    [
        (2, {"pp": 2}),
        (2, {"pp": 2, "tied": False, "checkpointing": True}),
        (2, {"pp": 2, "schedule": "interleaved"}),
        (2, {"pp": 2, "optimizer": "lomo"}),
        (2, {"pp": 2, "optimizer": "lomo", "schedule": "interleaved"}),
        (2, {"pp": 2, "optimizer": "adalomo"}),
        (4, {"pp": 2, "tp": 2, "optimizer": "adalomo"}),
        (4, {"pp": 2, "dp": 2, "optimizer": "lomo"}),
        (4, {"pp": 2, "dp": 2, "stage": 1}),
        (4, {"pp": 2, "tp": 2, "optimizer": "lomo"}),
        (4, {"pp": 2, "tp": 2, "stage": 1}),
        (4, {"pp": 2, "tp": 2, "sequence_parallel": True, "schedule": "interleaved"}),
        (4, {"pp": 4}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_stages_train_as_one_process_does(one_process, ranks, arguments, clip):
    """Over 1f1b and interleaved, tied and untied ends, tp, dp, ZeRO-1 and LOMO; clipping by the exact norm."""
    micro, accumulate = (2, 2) if arguments.get("dp", 1) == 1 else (2, 1)
    optimizer = arguments.get("optimizer", "sgd")
    expected = one_process(clip=clip, optimizer=optimizer, tied=arguments.get("tied", True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fillers
        results = run_ranks(ranks, lambda: train(clip=clip, micro=micro, accumulate=accumulate, **arguments))
    compare(results, expected)
    assert clip == 0.0 or expected[0] != one_process(clip=0.0, optimizer=optimizer, tied=arguments.get("tied", True))[0]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_a_loss_of_the_users_own_is_computed_on_the_last_stage(one_process, schedule):
    """It gets full logits, and its mean over rows is the step's."""
    expected = one_process(loss_fn=row_loss)
    compare(run_ranks(2, lambda: train(pp=2, schedule=schedule, loss_fn=row_loss)), expected)


@pytest.mark.parametrize("arguments", [{}, {"optimizer": "lomo"}, {"schedule": "interleaved"}])
def test_a_train_fn_gets_the_whole_steps_batch(one_process, arguments):
    """`model(**batch)` gives it full logits on every rank, and backward passes through all stages."""
    optimizer = arguments.get("optimizer", "sgd")
    expected = one_process(loss_fn=row_loss, optimizer=optimizer)
    seen = []

    def count(trainer, batch, step):
        seen.append(len(batch["input_ids"]))
        return train_fn(trainer, batch, step)

    def run():
        result = train(pp=2, train_fn=count, **arguments)
        assert seen == [4, 4, 4, 3] * 2
        return result

    compare(run_ranks(2, run), expected)


def test_a_stage_may_have_nothing_to_train(one_process):
    """The first one, of which a fused optimizer has an empty group."""
    frozen = {"tied": False, "optimizer": "lomo", "clip": 0.5, "frozen": ("embed.*", "layers.0.*", "layers.1.*")}
    compare(run_ranks(2, lambda: train(pp=2, **frozen)), one_process(**frozen))


def test_fillers_count_for_nothing_and_are_told_of(one_process):
    """One micro-batch cannot keep two stages at work: the other is filled."""

    def run():
        with pytest.warns(UserWarning, match="gradient_accumulation_steps=1 gives the pipeline 1 of the 2"):
            return train(pp=2, micro=4, accumulate=1)

    compare(run_ranks(2, run), one_process())


def test_float16_is_refused_where_deepspeed_steps():
    """The schedule's backward passes know of no loss scale of its."""

    def run():
        config = make_config(0, pp_size=2, dp_size=1)
        config.model_config = toy_llama_config(num_hidden_layers=2)
        model = make_model(config, dtype=torch.float16)
        with pytest.raises(ConfigError, match="pp_size=2: a pipeline that DeepSpeed steps does not scale losses"):
            Trainer(model, config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_dataset=rows())

    run_ranks(2, run)


def test_what_a_users_loss_raises_is_what_is_raised():
    """And not that a stage failed; torch says no more than that."""

    def broken(logits, labels):
        raise KeyError("mine")

    with pytest.raises(RankError, match="KeyError: 'mine'"):
        run_ranks(2, lambda: train(pp=2, loss_fn=broken))
