"""The server's own side: who is asked, what is handed over, and what cannot be answered."""

import queue
import threading

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM, MistralConfig

from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForPerplexity
from collie.controller.server import Server
from collie.controller.server._limits import cache_bytes
from collie.events import Alert
from collie.interfaces import ConfigError, RunContext
from collie.metrics import PPLMetric
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
            server.stop()  # one of the two: it goes on
            provider.asked.wait(timeout=5 if torch.distributed.get_rank() == 0 else 0)
            return provider.get_data(), provider.get_data()
        finally:
            server.stop()

    assert run_ranks(2, run, init=True) == [([9, 9], None), (None, None)]


def test_a_provider_that_cannot_start_is_refused_on_every_rank():
    class Taken(Given):
        def start_provider(self):
            raise OSError("address already in use")

    def run():
        first = Given([5])
        with pytest.raises(ConfigError, match="OSError: address already in use"):
            Server(toy(), [first, Taken()]).start()
        first.asked.wait(timeout=5 if torch.distributed.get_rank() == 0 else 0)
        return first.answers()

    assert run_ranks(2, run, init=True)[0] == [None, None]  # also what the first has asked meanwhile


def test_each_part_of_the_model_keeps_its_own_mode():
    """A part that somebody put into eval mode stays in it, or training would go on otherwise than before."""

    def run():
        model = toy().train()
        frozen = next(module for name, module in model.named_modules() if name.endswith("mlp"))
        frozen.eval()
        before = {name: module.training for name, module in model.named_modules()}
        Server(model, Given([5, 6])).data_provider_handler()
        return before == {name: module.training for name, module in model.named_modules()}

    assert run_ranks(1, run)[0]


class Broken(Given):
    """A provider with a fault at one of the places where the server calls it."""

    def __init__(self, place, *prompts):
        super().__init__(*prompts)
        self.place = place

    def get_data(self):
        return self._unless("get_data") or super().get_data()

    def generation_config_now(self):
        return self._unless("generation_config_now") or super().generation_config_now()

    def cancelled(self):
        return self._unless("cancelled") or super().cancelled()

    def put_feedback(self, feedback):
        self._unless("put_feedback")
        super().put_feedback(feedback)

    def _unless(self, place):
        if place == self.place:
            raise ValueError("somebody's mistake")


@pytest.mark.parametrize("place", ["get_data", "generation_config_now", "cancelled", "put_feedback"])
def test_a_provider_s_fault_ends_no_training(place):
    """It is an alert on rank 0 and nothing on the others, and another provider is answered."""

    def run():
        events, good = Events(), Given([7])
        rank = torch.distributed.get_rank()
        server = Server(toy(), [Broken(place, [5]), good])
        server.bind(RunContext(events=events, rank=rank, world_size=2, step=lambda: 4))
        for _ in range(3):
            server.data_provider_handler()
        return [event.message for event, _ in events.found], good.answers()

    (messages, answers), (none, _) = run_ranks(2, run, init=True)
    assert messages and all("ValueError: somebody's mistake" in message for message in messages) and none == []
    assert answers[-1] is None and len(answers) == 2


def test_what_is_no_provider_or_cannot_generate_is_refused():
    with pytest.raises(ConfigError, match="data_provider is a list"):
        Server(torch.nn.Linear(1, 1), [])
    with pytest.raises(ConfigError, match="Linear has no generate"):
        Server(torch.nn.Linear(1, 1), Given())
    with pytest.raises(ConfigError, match="Use GradioProvider"):
        DashProvider(tokenizer=None)


def test_providers_take_turns_and_the_answer_goes_to_who_asked():
    def run():
        first, second = Given([5], [6]), Given([7])
        server = Server(toy(), [first, second])
        order = []
        for _ in range(3):
            assert server.waiting()
            order.append(server.data_provider is first)
            server.data_provider_handler()
        return order, len(first.answers()), len(second.answers()), server.waiting()

    assert run_ranks(1, run)[0] == ([True, False, True], 4, 2, False)


def test_an_answer_ends_where_the_models_positions_do():
    """64 of them; a prompt that leaves none is refused, and so is one beyond the length that was asked for."""

    def run():
        provider = Given([5] * 62, [5] * 64)
        server = Server(toy(), provider)
        server.data_provider_handler()
        server.data_provider_handler()
        provider.generation_config = GenerationConfig(max_length=3)
        provider.put_data([5] * 3)
        server.data_provider_handler()
        return provider.answers(), provider.last_error

    answers, error = run_ranks(1, run)[0]
    assert len(answers[0]) == 2 and answers[1:] == [None] * 3
    assert error == "a prompt of 3 tokens has no room for an answer within the asked max_length."


@pytest.mark.parametrize("model_type", ["llama", "window", "transformers"])
@pytest.mark.parametrize("tokens", [3, 20])
def test_the_bytes_of_a_cache_are_those_that_it_has(model_type, tokens):
    """Counted in a cache that the model filled; a window of 8 keeps the keys that the next query needs."""

    def run():
        if model_type == "transformers":
            model = LlamaForCausalLM(toy_llama_config())
        else:
            config = CollieConfig(checkpointing=False, use_flash=False)
            config.model_config = toy_llama_config()
            if model_type == "window":
                config.model_config = MistralConfig(**toy_llama_config().to_dict() | {"sliding_window": 8})
            model = CollieModelForCausalLM.from_config(config)
        cache = model.eval()(torch.arange(3, 3 + tokens)[None], use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        return held, cache_bytes(model, tokens, None), cache_bytes(model, tokens, GenerationConfig(num_beams=3))

    held, counted, with_beams = run_ranks(1, run)[0]
    slack = counted // 8 if model_type == "window" and tokens > 8 else 0  # the key that the next query drops
    assert counted - slack <= held <= counted and with_beams == 3 * counted


def test_an_evaluator_answers_between_its_batches():
    """On all ranks, also where one has only fillers left; what it measures is what it was without prompts."""

    def run():
        rows = [{"input_ids": [3 + i, 5, 6, 7], "labels": [3 + i, 5, 6, 7]} for i in range(5)]
        provider = Given([5, 6], [7, 8])
        model = toy()

        def ppl(server):
            return EvaluatorForPerplexity(model, rows, metrics={"ppl": PPLMetric()}, server=server).eval()

        return ppl(None), ppl(Server(model, provider)), provider.answers()

    (without, served, answers), (_, other, none) = run_ranks(2, run)
    assert without == served == other and none == []
    assert answers.count(None) == 3  # one is asked as it starts
