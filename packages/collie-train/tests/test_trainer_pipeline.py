"""The Trainer on pipeline stages: the same losses, norms and weights as one process, whatever is dealt and how."""

import warnings
from functools import partial

import pytest
import torch
from toy_training import LR, make_config, make_model, rows
from transformers import MistralConfig

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.data import ColliePadder
from collie.interfaces import ConfigError
from collie.models import ChatGLMConfig
from collie.optim import AdaLomo, Lomo
from collie.parallel import active_topology, cut_of, original_of, setup_distribution
from collie.testing import RankError, run_ranks, toy_config, toy_llama_config

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


def described(family="llama", **fields):
    """The config of a family of four layers."""
    if family == "dynamic":  # rows are longer than the original context, each micro-batch by another length
        scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        return described(rope_parameters=scaling, max_position_embeddings=6, **fields)
    sizes = {"num_hidden_layers": LAYERS, "initializer_range": 0.3, "use_cache": False} | fields
    if family == "mistral":  # a window that every row is longer than
        return toy_config(MistralConfig, sliding_window=3, **sizes)
    if family == "chatglm":  # in data() the last tokens before an answer begin it
        return ChatGLMConfig(
            vocab_size=97,
            hidden_size=32,
            num_layers=LAYERS,
            num_attention_heads=4,
            inner_hidden_size=48,
            bos_token_id=95,
            eos_token_id=2,
            gmask_token_id=94,
            mask_token_id=93,
            pad_token_id=0,
        )
    return toy_llama_config(**sizes)


def train(
    pp=1,
    tp=1,
    dp=1,
    stage=0,
    optimizer="sgd",
    schedule="1f1b",
    micro=2,
    accumulate=2,
    tied=True,
    clip=0.0,
    family="llama",
    keep="",
    dtype=torch.float32,
    dropout=0.0,
    **options,
):
    """Train two epochs what has `keep` in its name; return the losses, and this rank's parameters by name."""
    ds_config = {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0 if optimizer in FUSED else clip}
    config = make_config(stage, pp_size=pp, tp_size=tp, dp_size=dp, pp_schedule=schedule, ds_config=ds_config)
    config.train_micro_batch_size, config.gradient_accumulation_steps = micro, accumulate
    config.train_epochs = 2
    config.checkpointing = options.pop("checkpointing", False)
    config.sequence_parallel = options.pop("sequence_parallel", False)
    config.dropout = dropout
    config.model_config = described(family, tie_word_embeddings=tied) if family == "llama" else described(family)
    setup_distribution(config)
    model = make_model(config, dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(keep in name)
    if optimizer in FUSED:
        made = FUSED[optimizer](model, clip_grad_norm=clip or None)
    elif optimizer == "groups":
        vectors, matrices = ([p for p in model.parameters() if (p.dim() > 1) is deep] for deep in (False, True))
        made = torch.optim.SGD([{"params": vectors, "lr": LR / 2}, {"params": matrices}], lr=LR)
    elif callable(optimizer):
        made = optimizer(model)
    else:
        made = torch.optim.SGD(model.parameters(), lr=LR)
    losses = Losses()
    callbacks = [losses, *options.pop("callbacks", [])]
    options.setdefault("train_dataset", data())
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.pop("autocast", False))
    then_clip = options.pop("then_clip", None)
    trainer = Trainer(model, config, optimizer=made, callbacks=callbacks, **options)
    with autocast:
        trainer.train()
    if then_clip is not None:
        config.ds_config = {**ds_config, "gradient_clipping": then_clip}
        Trainer(model, config, optimizer=made, callbacks=callbacks, **options).train()
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
        (4, {"pp": 2, "dp": 2, "optimizer": "lomo", "micro": 1, "accumulate": 2}),
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
    arguments = {"accumulate": 2 // arguments.get("dp", 1), **arguments}
    optimizer = arguments.get("optimizer", "sgd")
    expected = one_process(clip=clip, optimizer=optimizer, tied=arguments.get("tied", True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fillers
        results = run_ranks(ranks, lambda: train(clip=clip, **arguments))
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


@pytest.mark.parametrize(
    "arguments",
    [
        {"optimizer": "lomo"},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "stage": 1, "schedule": "interleaved"},
    ],
)
@pytest.mark.parametrize("keep", ["layers.3", "layers.0"])
def test_a_stage_with_nothing_to_train_takes_part_in_every_step(one_process, arguments, keep):
    """The other stage clips by the norm of all, and what is frozen stays as it was."""
    expected = one_process(clip=0.5, optimizer=arguments["optimizer"], keep=keep)
    results = run_ranks(2, lambda: train(pp=2, clip=0.5, keep=keep, **arguments))
    compare(results, expected)


def test_each_group_keeps_its_place_and_its_learning_rate(one_process):
    """Of the first stage one group is frozen, of the last both: DeepSpeed drops none of them."""
    arguments = {"optimizer": "groups", "keep": "layers.0.mlp.", "clip": 0.5}
    expected = one_process(**arguments)

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.0, lambda step: 1.0])  # of the second, LR

    compare(run_ranks(2, lambda: train(pp=2, stage=1, lr_scheduler=schedule, **arguments)), expected)


def test_a_train_fn_trains_the_last_stage_alone(one_process):
    """Its backward passes meet the frozen stage's exchanges."""
    expected = one_process(loss_fn=row_loss, keep="layers.3")
    compare(run_ranks(2, lambda: train(pp=2, train_fn=train_fn, keep="layers.3")), expected)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("no parameter's name", "no parameter of the model requires a gradient on any pipeline stage"),
        ("head", "embed and model.head are one weight.*only head requires a gradient. Set requires_grad of embed"),
    ],
)
def test_what_cannot_be_frozen_is_refused_on_every_rank(keep, message):
    """With the same words, before any of them waits for another."""

    def run():
        with pytest.raises(ConfigError, match=message):
            train(pp=2, keep=keep)

    run_ranks(2, run)


def answers():
    """ChatGLM's rows: a context that every token sees, a mark, the beginning of the answer, and the answer."""
    return [
        {
            **row,
            "input_ids": [*row["input_ids"][:2], 94, 95, *row["input_ids"][2:]],
            "labels": [-100] * 4 + row["labels"][2:],
        }
        | {"attention_mask": [1] * (len(row["input_ids"]) + 2)}
        for row in data()
    ]


@pytest.mark.parametrize(("family", "made"), [("chatglm", answers), ("mistral", data), ("dynamic", data)])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_what_layers_share_follows_from_the_batch(family, made, schedule):
    """Prefix masks with two channels of positions, sliding windows, frequencies by the length: micro-batches of a step
    differ in all of these."""
    [expected] = run_ranks(1, lambda: train(family=family, train_dataset=made()))
    compare(run_ranks(2, lambda: train(pp=2, family=family, schedule=schedule, train_dataset=made())), expected)


class Norms(Callback):
    """Keeps the norm of each step's gradient."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, loss):
        self.seen.append(trainer.engine.grad_norm())


def in_bf16(**arguments):
    """The losses and norms of a run in bf16 that clips."""
    norms = Norms()
    losses, _ = train(dtype=torch.bfloat16, clip=0.5, callbacks=[norms], **arguments)
    return losses, norms.seen


@pytest.mark.parametrize(("ranks", "arguments"), [(2, {"pp": 2}), (2, {"pp": 2, "stage": 1}), (2, {"tp": 2})])
def test_bf16_follows_one_process(ranks, arguments):
    """Also in the norm by which it clips, with stage 0, where DeepSpeed's own counts the first rank alone."""
    [(losses, norms)] = run_ranks(1, in_bf16)
    for their_losses, their_norms in run_ranks(ranks, lambda: in_bf16(**arguments)):
        assert their_losses == pytest.approx(losses, rel=2**-7)  # an ulp of bf16, where sums round differently
        assert their_norms[0] == pytest.approx(norms[0], rel=2**-7)  # those of later steps drift apart


def test_positions_may_stand_for_all_rows_of_a_micro_batch():
    """[1, S] is the same as [B, S], where micro-batches differ in rows and lengths."""

    def collate(rows):
        batch = ColliePadder()(rows)
        return {**batch, "position_ids": 2 * torch.arange(batch["input_ids"].shape[1])[None]}

    [expected] = run_ranks(1, lambda: train(train_dataset_collate_fn=collate))
    [other] = run_ranks(1, train)
    assert expected[0] != other[0]
    compare(run_ranks(2, lambda: train(pp=2, train_dataset_collate_fn=collate)), expected)


def dropped(**options):
    """A run's losses and weights with dropout, and what this rank draws after it."""
    losses, held = train(dropout=0.3, **options)
    return losses, [value for *_, value in held.values()], torch.rand(3)


@pytest.mark.parametrize("options", [{}, {"schedule": "interleaved"}, {"train_fn": train_fn}])
def test_dropout_is_drawn_apart_and_stages_go_on_alike(options):
    """Recomputing drops the same again; after it all ranks of a replica draw the same numbers."""
    first, second = (
        run_ranks(2, lambda again=again: dropped(pp=2, checkpointing=again, **options)) for again in (False, True)
    )
    for (losses, weights, noise), (their_losses, their_weights, _) in zip(first, second, strict=True):
        assert losses == their_losses and losses == first[0][0]
        assert all(map(torch.equal, weights, their_weights))
        assert torch.equal(noise, first[0][2])


def test_a_train_fn_draws_the_same_on_every_stage():
    """Torch's numbers, whatever the ranks drew before."""
    drawn = []

    def noisy(trainer, batch, step):
        drawn.append(torch.rand(2))
        loss = train_fn(trainer, batch, step)
        drawn.append(torch.rand(2))
        torch.rand(trainer.topology.rank + 1)
        return loss

    def run():
        train(pp=2, dropout=0.3, train_fn=noisy)
        return torch.stack(drawn)

    first, second = run_ranks(2, run)
    assert torch.equal(first, second)
    assert len(first.unique()) == first.numel()


def test_fillers_count_for_nothing_and_are_told_of(one_process):
    """One micro-batch cannot keep two stages at work: the other is filled."""

    def run():
        with pytest.warns(UserWarning, match="gradient_accumulation_steps=1 gives the pipeline 1 of the 2"):
            return train(pp=2, micro=4, accumulate=1)

    compare(run_ranks(2, run), one_process())


def test_an_optimizer_goes_on_in_another_engine(one_process):
    """What held the place of a frozen stage's group is gone; under ZeRO there is nothing of the model left in it."""
    arguments = {"keep": "layers.3", "clip": 0.5, "then_clip": 0.2}
    compare(run_ranks(2, lambda: train(pp=2, **arguments)), one_process(**arguments))

    def again():
        with pytest.raises(ConfigError, match=r"optimizer=SGD has none of the model's .*Make a new optimizer"):
            train(pp=2, stage=1, **arguments)

    run_ranks(2, again)


class LayersInHalf(Callback):
    """Lets each layer's output be in autocast's dtype, as that of a family without float32 sums is."""

    def on_after_trainer_initialized(self, trainer):
        for layer in trainer.model.layers.values():
            layer.register_forward_hook(lambda _, __, x_BSE: x_BSE.bfloat16())


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_stages_hand_on_what_the_next_one_receives_under_autocast(one_process, schedule):
    """In the weights' dtype, whatever a stage's last layer gave."""
    expected, _ = one_process()
    options = {"schedule": schedule, "autocast": True, "callbacks": [LayersInHalf()]}
    for losses, held in run_ranks(2, lambda: train(pp=2, **options)):
        assert losses[:2] == pytest.approx(expected[:2], abs=0.05)  # later ones drift apart, as bf16 rounds
        assert losses[0] != expected[0]
        assert all(value.dtype is torch.float32 for *_, value in held.values())


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
