"""What lies between those who ask and the server: queues, text, options, and requests in a run's folder."""

import importlib.util
import json
import queue

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from collie.events import Prompt, RunFolder
from collie.interfaces import ConfigError, DataError, MissingExtraError, RunContext
from collie.utils.data_provider import BaseProvider, DashProvider, GradioProvider, RunFolderProvider, _run_folder
from collie.utils.data_provider._options import NEW_TOKENS, asked_config
from collie.utils.data_provider._text import TextStream, encode_prompt

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def byte_tokenizer(chat_template=None):
    """Byte-level BPE without merges: each byte is a token, as the rare characters of real models are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = chat_template
    return fast


def word_tokenizer():
    """Words with a marked space before them, which the decoder strips at the beginning of a text."""
    words = ["▁a", "▁collie", "▁runs", "s", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


# --- text


@pytest.mark.parametrize("text", ["你好，世界", "naïve 🐕\u200d🦺 ok", "plain", "é", f"a{UNKNOWN}b{UNKNOWN}"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_pieces_are_whole_characters_and_together_the_text(text, size):
    tokenizer = byte_tokenizer()
    ids, stream = tokenizer(text)["input_ids"], TextStream(tokenizer)
    pieces = [stream.add(ids[at : at + size]) for at in range(0, len(ids), size)]
    assert "".join(pieces) + stream.end() == text == tokenizer.decode(ids)
    if UNKNOWN not in text:
        assert UNKNOWN not in "".join(pieces)


def test_a_character_that_never_ends_is_shown_at_the_end():
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer)
    ids = tokenizer("a你")["input_ids"]
    assert [stream.add([one]) for one in ids[:3]] == ["a", "", ""]
    assert stream.end() == tokenizer.decode(ids[:3])[1:] != ""


def test_spaces_between_tokens_are_kept():
    """A word by itself loses the space before it; the text of all tokens has it."""
    stream = TextStream(word_tokenizer())
    assert "".join(stream.add([one]) for one in (0, 1, 3, 2, 4)) + stream.end() == "a collies runs."


def test_a_conversation_is_written_by_the_template_or_is_its_last_message():
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "?"}]
    with_template, without = byte_tokenizer(TEMPLATE), byte_tokenizer()
    assert with_template.decode(encode_prompt(with_template, talk)) == "[user]hi[assistant]ho[user]?[assistant]"
    assert without.decode(encode_prompt(without, talk)) == "?"
    assert without.decode(encode_prompt(without, "[user]")) == "[user]"


# --- options


def test_options_become_a_config_of_their_own():
    given = GenerationConfig(max_new_tokens=9, top_k=3)
    config = asked_config(given, {"temperature": 0.5})
    assert (config.do_sample, config.temperature, config.max_new_tokens, config.top_k) == (True, 0.5, 9, 3)
    config = asked_config(given, {"temperature": 0, "max_new_tokens": 2})
    assert (config.do_sample, config.temperature, config.max_new_tokens) == (False, None, 2)
    assert asked_config(given, {"top_p": 0.9, "do_sample": False}).do_sample is False
    assert given.max_new_tokens == 9 and given.do_sample is None
    assert asked_config(None, {}).max_new_tokens == NEW_TOKENS
    assert asked_config(GenerationConfig(max_length=7), {}).max_new_tokens is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_token": 3}, "'max_new_token' is none of .* Use 'max_new_tokens'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number from 1"),
        ({"max_new_tokens": True}, "max_new_tokens=True must be"),
        ({"max_new_tokens": 10**12}, "max_new_tokens=1000000000000 must be"),
        ({"temperature": -1}, "temperature=-1 must be a number from 0"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"top_p": "0.5"}, "top_p='0.5' must be a number from 0 to 1"),
        ({"do_sample": 1}, "do_sample=1 must be true or false"),
        ({"stop_strings": ["a"]}, "'stop_strings' is none of"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(DataError, match=sentence):
        asked_config(None, options)


# --- queues


def test_each_asker_has_an_answer_of_its_own_in_the_order_of_asking():
    provider = BaseProvider(generation_config=GenerationConfig(max_new_tokens=3))
    first, second = provider.ask([1]), provider.ask([2], GenerationConfig(max_new_tokens=5))
    provider.put_data([3])
    assert (provider.ahead(first), provider.ahead(second)) == (0, 1)
    assert provider.get_data() == [1] and provider.generation_config_now().max_new_tokens == 3
    assert (provider.ahead(first), provider.ahead(second)) == (0, 1)
    provider.put_feedback([7, 8])
    provider.put_feedback(None)
    assert provider.get_data() == [2] and provider.generation_config_now().max_new_tokens == 5
    provider.put_error("too long.")
    assert provider.get_data() == [3] and provider.get_data() is None
    provider.put_feedback([9])
    provider.put_feedback(None)
    assert (first.get(0), first.get(0), first.error) == ([7, 8], None, None)
    assert (second.get(0), second.error) == (None, "too long.")
    assert (provider.get_feedback(0), provider.get_feedback(0), provider.last_error) == ([9], None, None)
    with pytest.raises(queue.Empty):
        second.get(timeout=0)


def test_the_reason_belongs_to_the_answer_that_ended_with_it():
    provider = BaseProvider()
    for ids in ([1], [2]):
        provider.put_data(ids)
        provider.get_data()
        provider.put_error("no.") if ids == [1] else provider.put_feedback(None)
    assert provider.get_feedback(0) is None and provider.last_error == "no."
    assert provider.get_feedback(0) is None and provider.last_error is None


def test_cancelling_reaches_what_is_under_way_and_what_waits():
    provider = BaseProvider()
    provider.cancel()  # nothing is under way
    first, second, third = (provider.ask([one]) for one in (1, 2, 3))
    assert provider.get_data() == [1] and not provider.cancelled()
    provider.cancel()
    second.cancel()
    assert provider.cancelled()
    provider.put_feedback(None)
    assert provider.get_data() == [3] and not provider.cancelled()
    assert first.get(0) is None and second.get(0) is None and second.ended and not third.ended


def test_at_the_end_of_training_who_waits_is_told():
    provider = BaseProvider()
    begun, waits = provider.ask([0]), provider.ask([1])
    provider.get_data()
    provider.stop_provider()
    late = provider.ask([2])
    for question in (begun, waits):
        assert question.get(0) is None and "has ended before this was answered" in question.error
    assert late.get(0) is None and "nobody answers any more" in late.error


def test_what_is_not_there_says_what_to_use(monkeypatch):
    with pytest.raises(ConfigError, match="Use GradioProvider"):
        DashProvider(None, port=1)
    if importlib.util.find_spec("gradio") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'collie-eval\[gradio\]'"):
            GradioProvider(None)


# --- requests in a run's folder


class Events:
    def __init__(self):
        self.found = []

    def write(self, event, *, step=None):
        self.found.append((event, step))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A run, a provider that looks into it each time, and what it writes."""
    monkeypatch.setattr(_run_folder, "_POLL_SECONDS", 0.0)
    run, events = RunFolder.create(tmp_path), Events()
    provider = RunFolderProvider(byte_tokenizer(TEMPLATE))
    provider.bind(RunContext(events=events, rank=0, world_size=1, step=lambda: 4, folder=str(run.path)))
    provider.start_provider()
    return run, provider, events.found


def test_a_request_is_answered_once_by_events(asked, monkeypatch):
    run, provider, found = asked
    request = run.request("prompt", text="hi", max_new_tokens=5, temperature=0)
    other = run.request("prompt", messages=[{"role": "user", "content": "hi"}])
    assert provider.tokenizer.decode(provider.get_data()) == "hi"
    assert run.pending() == [] and provider.generation_config_now().max_new_tokens == 5
    for token in provider.tokenizer("你好")["input_ids"]:
        provider.put_feedback([token])
    provider.put_feedback(None)
    first, last = found  # what came within a quarter of a second is one event
    assert first == (Prompt(request, "你", done=False), 4)
    assert (last[0].text, last[0].done, last[0].error, last[0].tokens, last[1]) == ("好", True, "", 6, 4)
    assert last[0].seconds >= 0
    assert provider.tokenizer.decode(provider.get_data()) == "[user]hi[assistant]"
    provider.put_error("too long.")
    assert found[2][0] == Prompt(other, "", True, error="too long.", tokens=0, seconds=0.0)
    assert provider.get_data() is None and len(found) == 3


def test_a_request_to_cancel_ends_an_answer_that_is_known(asked):
    run, provider, found = asked
    first, second = run.request("prompt", text="a"), run.request("prompt", text="b")
    assert provider.get_data() is not None
    run.request("cancel", request="../job")
    run.request("cancel")
    assert not provider.cancelled() and run.pending() == []
    run.request("cancel", request=second)
    assert not provider.cancelled()
    run.request("cancel", request=first)
    assert provider.cancelled()
    provider.put_feedback(None)
    assert provider.get_data() is None
    assert [(event.request, event.done) for event, _ in found] == [(first, True), (second, True)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "either text or messages"),
        ({"text": "a", "messages": []}, "either text or messages"),
        ({"text": ["a"]}, "a prompt's text is a string"),
        ({"text": ""}, "and not an empty one"),
        ({"messages": [{"role": "root", "content": "a"}]}, "with a role of system, user, assistant"),
        ({"messages": [{"role": "user", "content": 3}]}, "a text each"),
        ({"text": "a", "temperature": "hot"}, "temperature='hot' must be"),
        ({"text": "a", "tools": []}, "'tools' is none of"),
    ],
)
def test_what_is_no_prompt_is_answered_with_a_sentence(asked, arguments, sentence):
    run, provider, found = asked
    request = run.request("prompt", **arguments)
    assert provider.get_data() is None and run.pending() == []
    ((event, _),) = found
    assert event.request == request and event.done and sentence in event.error


def test_a_template_that_refuses_is_no_reason_to_fail(asked):
    run, provider, found = asked
    provider.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    run.request("prompt", messages=[{"role": "user", "content": "a"}])
    assert provider.get_data() is None and "roles must alternate" in found[0][0].error


def test_files_that_are_no_requests_are_left(asked):
    run, provider, found = asked
    for number, text in enumerate(["{", "[]", json.dumps({"kind": "prompt", "t": 0, "arguments": []}), "\0" * 9]):
        (run.control / f"{number:020d}-00000000.json").write_text(text)
    (run.control / "prompt.json").write_text(json.dumps({"kind": "prompt", "t": 0, "arguments": {"text": "a"}}))
    assert provider.get_data() is None and found == [] and len(list(run.control.iterdir())) == 5


@pytest.mark.parametrize("value", [10**400, "x" * 2**19, [1] * 2**17, 2**20 + 1, float("nan")])
def test_what_somebody_sends_is_told_back_in_a_few_words(value):
    """In an event of the run: not a mebibyte of it, and a number that no float holds is a sentence like any other."""
    for name in ("temperature", "max_new_tokens"):
        with pytest.raises(DataError, match=f"^{name}=.* must be a ") as caught:
            asked_config(None, {name: value})
        assert len(str(caught.value)) < 150
