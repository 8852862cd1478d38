"""The server's own side: who is asked, what is handed over, and what cannot be answered."""

import queue
import threading

import pytest
import torch
from transformers import GenerationConfig

from collie.config import CollieConfig
from collie.controller.server import Server
from collie.events import Alert
from collie.interfaces import ConfigError, RunContext
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks, toy_llama_config
from collie.utils.data_provider import BaseProvider, DashProvider


class Given(BaseProvider):
    """Prompts that are there from the start."""

    def __init__(self, *prompts, **arguments):
        arguments.setdefault(
            "generation_config", GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=None)
        )
        super().__init__(**arguments)
        self.asked = threading.Event()
        for prompt in prompts:
            self.put_data(prompt)

    def provider_handler(self):
        self.put_data([9, 9])
        self.asked.set()

    def answers(self):
        found = []
        while True:
            try:
                found.append(self.get_feedback(timeout=0))
            except queue.Empty:
                return found


def toy():
    config = CollieConfig(checkpointing=False, use_flash=False)
    config.model_config = toy_llama_config(initializer_range=0.4)
    return CollieModelForCausalLM.from_config(config)


class Events:
    def __init__(self):
        self.found = []

    def write(self, event, *, step=None):
        self.found.append((event, step))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "prompt", [[5, 6, 7], torch.tensor([5, 6, 7]), torch.tensor([[5, 6, 7]])], ids=["list", "S", "1S"]
)
def test_an_answer_is_what_the_model_generates(stream, prompt):
    """In one piece or token by token, and then its end; the model's mode is put back."""

    def run():
        model, provider = toy(), Given(prompt, stream=stream)
        server = Server(model.train(), provider)
        assert server.waiting() and server.waiting()
        server.data_provider_handler()
        assert model.training and not server.waiting()
        server.data_provider_handler()  # nothing waits: nothing happens
        expected = model.eval().generate(torch.tensor([[5, 6, 7]]), generation_config=provider.generation_config)
        return provider.answers(), expected[0, 3:].tolist()

    pieces, expected = run_ranks(1, run)[0]
    assert pieces == ([*([one] for one in expected), None] if stream else [expected, None])


def test_a_prompt_that_cannot_be_answered_is_an_alert_and_ends():
    """An id that the model does not have, nothing at all, no ids, stop strings without a tokenizer."""

    def run():
        events = Events()
        provider = Given([5, 97], [], 3, [5])
        server = Server(toy(), provider)
        server.bind(RunContext(events=events, rank=0, world_size=1, step=lambda: 4))
        for _ in range(3):
            server.data_provider_handler()
        provider.generation_config = GenerationConfig(max_new_tokens=2, stop_strings=["a"])
        server.data_provider_handler()
        return provider.answers(), provider.last_error, events.found

    answers, provider_error, events = run_ranks(1, run)[0]
    assert answers == [None] * 4
    assert [(type(event), event.code, step) for event, step in events] == [(Alert, "prompt", 4)] * 4
    assert provider_error == events[-1][0].message.removeprefix("a prompt was not answered: ")
    assert "a prompt is a list of token ids, 0 … 97 - 1" in events[0][0].message


def test_the_provider_is_started_once_on_rank_0():
    def run():
        provider = Given()
        server = Server(toy(), provider)
        try:
            server.start()
            server.start()
            provider.asked.wait(timeout=5 if torch.distributed.get_rank() == 0 else 0)
            return provider.get_data(), provider.get_data()
        finally:
            server.stop()

    assert run_ranks(2, run, init=True) == [([9, 9], None), (None, None)]


def test_what_is_no_provider_or_cannot_generate_is_refused():
    with pytest.raises(ConfigError, match="data_provider is a list"):
        Server(torch.nn.Linear(1, 1), [])
    with pytest.raises(ConfigError, match="Linear has no generate"):
        Server(torch.nn.Linear(1, 1), Given())
    with pytest.raises(ConfigError, match="Use GradioProvider"):
        DashProvider(tokenizer=None)
