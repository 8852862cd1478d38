"""A model that answers prompts while it is trained: on all ranks, and without a trace in the training."""

import queue

import pytest
import torch
from transformers import GenerationConfig

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.server import Server
from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks, toy_llama_config
from collie.utils.data_provider import BaseProvider


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


class Asking(BaseProvider, Callback):
    """Asks after the first and after the third step."""

    def __init__(self, **arguments):
        super().__init__(generation_config=GenerationConfig(max_new_tokens=4, do_sample=True), **arguments)

    def provider_handler(self):
        """Nothing: the callback asks, so that it is known when."""

    def on_train_batch_end(self, trainer, loss):
        if trainer.topology.rank == 0 and trainer.global_batch_idx in (0, 2):
            self.put_data([5, 6, 7 + trainer.global_batch_idx])

    def answers(self):
        found = []
        while True:
            try:
                found.append(self.get_feedback(timeout=0))
            except queue.Empty:
                return found


class Losses(Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, loss):
        self.found.append(loss.item())


def trained(asks, stage, sizes):
    """The losses of five steps, with dropout, and what was answered."""
    config = CollieConfig(train_epochs=1, checkpointing=False, use_flash=False, dropout=0.2, **sizes)
    config.ds_config = {"zero_optimization": {"stage": stage}}
    config.model_config = toy_llama_config(initializer_range=0.3)
    if "pp_size" in sizes:
        config.gradient_accumulation_steps = 2
    model = CollieModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 97, (20, 6), generator=generator).tolist()]
    rows = rows[: 5 * config.gradient_accumulation_steps * (1 if sizes else torch.distributed.get_world_size())]
    asking, losses = Asking(stream=stage == 3), Losses()
    Trainer(
        model, config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_dataset=rows,
        callbacks=[asking, losses] if asks else losses, data_provider=asking if asks else None,
    ).train()  # fmt: skip
    return losses.found, asking.answers()


@pytest.mark.parametrize(
    ("ranks", "stage", "sizes"), [(1, 0, {}), (2, 1, {}), (2, 3, {}), (2, 0, {"tp_size": 2}), (2, 0, {"pp_size": 2})]
)
def test_losses_are_bitwise_those_of_a_training_without_prompts(ranks, stage, sizes):
    """Two prompts, answered by sampling, on rank 0; all losses as if nobody had asked."""

    def run():
        return trained(True, stage, sizes), trained(False, stage, sizes)

    results = run_ranks(ranks, run)
    for rank, ((losses, answers), (without, none)) in enumerate(results):
        assert losses == without and len(losses) == 5 and none == []
        if rank:
            assert answers == []
            continue
        assert answers.count(None) == 2 and answers[-1] is None
        tokens = [token for piece in answers if piece is not None for token in piece]
        assert 2 <= len(tokens) <= 8 and all(0 <= token < 97 for token in tokens)


def test_a_server_of_ones_own_and_both_at_once():
    def run():
        config = CollieConfig(checkpointing=False, use_flash=False)
        config.model_config = toy_llama_config()
        model = CollieModelForCausalLM.from_config(config)
        provider = Asking()
        server = Server(model, provider)
        assert Trainer(model, config, server=server).server is server
        with pytest.raises(ConfigError, match="both given"):
            Trainer(model, config, server=server, data_provider=provider)

    run_ranks(1, run)
