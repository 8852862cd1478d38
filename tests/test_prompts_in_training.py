"""A model that answers prompts while it is trained: on all ranks, and without a trace in the training."""

import queue

import pytest
import torch
from transformers import GenerationConfig

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.server import Server, _server
from collie.controller.trainer import Trainer
from collie.events import EventReader, Prompt, RunFolder
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.testing import RankError, run_ranks, toy_llama_config
from collie.utils.data_provider import BaseProvider, RunFolderProvider

LAYOUTS = [(1, 0, {}), (2, 1, {}), (2, 3, {}), (2, 0, {"tp_size": 2}), (2, 0, {"pp_size": 2})]
VOCAB = 97


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


class Asking(BaseProvider, Callback):
    """Asks after some steps, on rank 0; what, is said by step."""

    def __init__(self, prompts, **arguments):
        config = GenerationConfig(max_new_tokens=6, do_sample=True, eos_token_id=None)
        super().__init__(generation_config=config, **arguments)
        self.prompts = prompts
        self.given_up = []

    def provider_handler(self):
        """Nothing: the callback asks, so that it is known when."""

    def on_train_batch_end(self, trainer, loss):
        if trainer.topology.rank == 0 and trainer.global_batch_idx in self.prompts:
            self.put_data(self.prompts[trainer.global_batch_idx])

    def put_error(self, reason):
        self.given_up.append(reason)
        super().put_error(reason)

    def answers(self):
        """The answers, each a list of tokens."""
        found = [[]]
        while True:
            try:
                piece = self.get_feedback(timeout=0)
            except queue.Empty:
                return found[:-1]
            if piece is None:
                found.append([])
            else:
                found[-1] += piece


class Losses(Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, loss):
        self.found.append(loss.item())


def trained(stage, sizes, provider=None, callbacks=(), prepare=lambda model: None, **arguments):
    """The losses of five steps, with dropout, while a provider asks."""
    config = CollieConfig(train_epochs=1, checkpointing=False, use_flash=False, dropout=0.2, **sizes)
    config.ds_config = {"zero_optimization": {"stage": stage}}
    config.model_config = toy_llama_config(initializer_range=0.3)
    if "pp_size" in sizes:
        config.gradient_accumulation_steps = 2
    model = CollieModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, VOCAB, (20, 6), generator=generator).tolist()]
    rows = rows[: 5 * config.gradient_accumulation_steps * (1 if sizes else torch.distributed.get_world_size())]
    losses = Losses()
    asking = [provider] if isinstance(provider, Callback) else []
    trainer = Trainer(
        model, config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_dataset=rows,
        callbacks=[*asking, *callbacks, losses], data_provider=provider, **arguments,
    )  # fmt: skip
    prepare(model)
    trainer.train()
    return losses.found, trainer


@pytest.mark.parametrize(("ranks", "stage", "sizes"), LAYOUTS)
def test_losses_are_bitwise_those_of_a_training_without_prompts(ranks, stage, sizes):
    """Two prompts, answered by sampling, on rank 0; all losses as if nobody had asked."""

    def run():
        asking = Asking({0: [5, 6, 7], 2: [5, 6, 9]}, stream=stage == 3)
        return trained(stage, sizes, asking)[0], asking.answers(), trained(stage, sizes)[0]

    for rank, (losses, answers, without) in enumerate(run_ranks(ranks, run)):
        assert losses == without and len(losses) == 5
        assert len(answers) == (0 if rank else 2) and all(1 <= len(answer) <= 6 for answer in answers)
        assert all(0 <= token < VOCAB for answer in answers for token in answer)


@pytest.mark.parametrize(("ranks", "stage", "sizes"), LAYOUTS)
def test_losses_are_the_same_after_prompts_that_are_cancelled_refused_or_fail(ranks, stage, sizes, monkeypatch):
    """One is cancelled (after its next token), two do not fit, in one the last rank runs out of memory: none hangs."""

    last = ranks - 1 if stage == 3 or sizes else 0  # of those that answer: one replica, unless each has a part

    class Troubled(Asking):
        def put_feedback(self, feedback):
            super().put_feedback(feedback)
            self.pieces += 1
            if self.pieces == 2:
                self.cancel()

    def fails(model):
        """Let the last rank's third forward of its last answer fail, after all that the ranks exchange in it.

        Under ZeRO-3 `generate` exchanges after it too, so there all ranks fail alike.
        """
        calls = []

        def forward(module, args, output):
            if not module.training and (stage == 3 or torch.distributed.get_rank() == last):
                calls.append(1)
                if len(calls) == 3 + 3:
                    raise torch.OutOfMemoryError("no memory for logits")

        model.register_forward_hook(forward)

    def free(device):  # enough for 4 + 6 tokens, on the last rank not for more
        return 10 * 2 * 2 * 16 * 4 if torch.distributed.get_rank() == last else 2**40

    monkeypatch.setattr(_server, "free_bytes", free)

    def run():
        troubled = Troubled({0: [2] * 3, 1: [3] * 64, 2: [3] * 50, 3: [3] * 4}, stream=True)
        troubled.pieces = 0
        losses, _ = trained(stage, sizes, troubled, prepare=fails)
        return losses, troubled.answers(), troubled.given_up, trained(stage, sizes)[0]

    for rank, (losses, answers, given_up, without) in enumerate(run_ranks(ranks, run)):
        assert losses == without and len(losses) == 5
        if rank:
            continue
        third = 2 if stage == 3 or last == 0 else 3  # rank 0 has made it where another rank failed
        assert [len(answer) for answer in answers] == [3, 0, 0, third]
        positions, memory, failure = given_up
        assert positions == "a prompt of 64 tokens leaves no room to answer: the model has 64 positions."
        assert memory.startswith("the keys and values of 50 + 6 tokens need ")
        assert "bytes, and 2,560 are free. Ask for a shorter answer (max_new_tokens)" in memory
        assert failure == "memory ran out while answering, and was given back: no memory for logits"


def test_a_rank_that_fails_where_others_wait_for_it_ends_the_run(monkeypatch):
    """Tensor-parallel rank 1 fails inside a layer, whose sum rank 0 waits for: no rank waits for ever."""
    monkeypatch.setattr(_server, "_PATIENCE", 1.0)

    def fails(model):
        def forward(module, args):
            if not module.training and torch.distributed.get_rank() == 1:
                raise torch.OutOfMemoryError("no memory for attention")

        next(iter(model.layers.values())).register_forward_pre_hook(forward)

    def run():
        trained(0, {"tp_size": 2}, Asking({0: [5, 6, 7]}), prepare=fails)

    with pytest.raises(RankError, match="the run cannot go on: OutOfMemoryError: no memory for attention"):
        run_ranks(2, run)


class Letters:
    """A tokenizer whose tokens are letters; without a chat template."""

    chat_template = None

    def __call__(self, text):
        return {"input_ids": [ord(letter) % VOCAB for letter in text]}

    def decode(self, ids, **options):
        return "".join(chr(ord("a") + token % 26) for token in ids)


class Dashboard(Callback):
    """Asks through the run's folder, as a dashboard does, and reads events."""

    def __init__(self, *requests):
        self.requests, self.ids = requests, []

    def on_train_batch_end(self, trainer, loss):
        if trainer.topology.rank == 0 and trainer.global_batch_idx == 0:
            run = RunFolder(trainer.run_folder)
            self.ids = [run.request("prompt", **request) for request in self.requests]

    def answers(self, trainer):
        """Text, error, tokens and step of each request's answer."""
        trainer._recorder.events.close()
        said = [
            (record.event, record.step)
            for record in EventReader(RunFolder(trainer.run_folder).event_files()[0]).read()
            if isinstance(record.event, Prompt)
        ]
        found = []
        for request in self.ids:
            events = [(event, step) for event, step in said if event.request == request]
            assert [event.done for event, _ in events] == [False] * (len(events) - 1) + [True]
            last, step = events[-1]
            found.append(("".join(event.text for event, _ in events), last.error, last.tokens, step))
        return found


@pytest.mark.parametrize(("ranks", "sizes"), [(1, {}), (2, {"tp_size": 2})])
def test_a_trainer_with_a_tokenizer_answers_the_dashboard(ranks, sizes, monkeypatch):
    """Without further ado, one a step, each once, and with a sentence where it cannot; losses are what they were."""
    monkeypatch.setattr("collie.utils.data_provider._run_folder._POLL_SECONDS", 0.0)

    def run():
        dashboard = Dashboard(
            {"text": "hi", "max_new_tokens": 4, "temperature": 0},
            {"text": "hello", "max_new_tokens": 3},
            {"text": "hi", "max_new_token": 4},
        )
        losses, trainer = trained(0, sizes, callbacks=[dashboard], tokenizer=Letters())
        answers = dashboard.answers(trainer) if trainer.topology.rank == 0 else None
        left = list((trainer.run_folder / "control").iterdir())
        return losses, trained(0, sizes)[0], answers, left

    results = run_ranks(ranks, run)
    for losses, without, _, left in results:
        assert losses == without and left == []
    (first, second, third) = results[0][2]
    assert first[1:] == ("", 4, 0) or first[1:] == ("", 4, 1)
    assert len(first[0]) == 4 and len(second[0]) == 3 and second[3] == first[3] + 1
    assert third[0] == "" and "Use 'max_new_tokens'" in third[1]


def test_a_trainer_without_a_tokenizer_says_that_it_does_not_answer(monkeypatch):
    monkeypatch.setattr("collie.controller.trainer._record._POLL_SECONDS", 0.0)

    def run():
        dashboard = Dashboard({"text": "hi"})
        _, trainer = trained(0, {}, callbacks=[dashboard])
        return dashboard.answers(trainer)

    ((text, error, _, _),) = run_ranks(1, run)[0]
    assert text == "" and error.startswith("this run answers no prompts. Give its Trainer a tokenizer")


def test_a_server_of_ones_own_and_both_at_once():
    def run():
        config = CollieConfig(checkpointing=False, use_flash=False)
        config.model_config = toy_llama_config()
        model = CollieModelForCausalLM.from_config(config)
        provider = Asking({})
        server = Server(model, provider)
        assert Trainer(model, config, server=server, tokenizer=Letters()).server is server
        assert not server.answers_requests and Server(model, [provider, RunFolderProvider(None)]).answers_requests
        assert Trainer(model, config).server is None
        with pytest.raises(ConfigError, match="both given"):
            Trainer(model, config, server=server, data_provider=provider)

    run_ranks(1, run)
