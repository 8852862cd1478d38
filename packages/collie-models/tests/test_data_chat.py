"""ChatEncoder: the tokens of a conversation are its template's text, and the targets what the assistant has to write.

Every expected text is written out by hand, beside the templates of chat_templates.py.
"""

import json
import pickle

import chat_templates
import pytest
from chat_tokenizers import byte_level, metaspace

from collie.data import ChatEncoder
from collie.data._rows import Encoded, Refused
from collie.interfaces import DataError

SYSTEM = {"role": "system", "content": "You are helpful."}
TWO_TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6."},
]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
WITH_TOOLS = [
    {"role": "user", "content": "Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]


def _part(tokenizer, ids):
    """What ids stand for that follow others: of the first of a text some decoders take a space off."""
    start = tokenizer.eos_token
    whole = tokenizer.decode([tokenizer.eos_token_id, *ids], clean_up_tokenization_spaces=False)
    assert whole.startswith(start)
    return whole.removeprefix(start)


def _one(encoder, messages, tools=None, index=0):
    (result,) = encoder.encode([{"messages": messages, "tools": tools}], [index])
    return result


def _encoded(encoder, tokenizer, messages, tools=None):
    """The whole text, and the texts of the runs of targets, of a row that must not be refused."""
    result = _one(encoder, messages, tools)
    assert isinstance(result, Encoded), result
    ids, labels = result.tokens.input_ids, result.tokens.labels
    assert result.tokens.attention_mask == [1] * len(ids) and result.uncut == len(ids) and len(labels) == len(ids)
    runs, run = [], []
    for token, label in zip([*ids, None], [*labels, -100], strict=True):
        if label == -100:
            if run:
                runs.append(_part(tokenizer, run))
            run = []
        else:
            assert label == token
            run.append(token)
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False), runs


def _refusal(encoder, messages, tools=None, index=0):
    result = _one(encoder, messages, tools, index)
    assert isinstance(result, Refused) and result.index == index, result
    return result.reason


CASES = {
    "chatml": (
        chat_templates.chatml,
        [SYSTEM, *TWO_TURNS],
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 4.<|im_end|>\n<|im_start|>user\nAnd 3 + 3?<|im_end|>\n"
        "<|im_start|>assistant\n6.<|im_end|>\n",
        ["It is 4.<|im_end|>", "6.<|im_end|>"],
    ),
    "llama-2": (
        chat_templates.llama_2,
        [SYSTEM, *TWO_TURNS],
        "<s>[INST] <<SYS>>\nYou are helpful.\n<</SYS>>\n\nWhat is 2 + 2? [/INST] It is 4. </s>"
        "<s>[INST] And 3 + 3? [/INST] 6. </s>",
        [" It is 4. </s>", " 6. </s>"],
    ),
    "llama-3": (
        chat_templates.llama_3,
        [SYSTEM, *TWO_TURNS],
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are helpful.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 4.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd 3 + 3?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n6.<|eot_id|>",
        ["It is 4.<|eot_id|>", "6.<|eot_id|>"],
    ),
    "qwen-3": (  # the empty block of the last turn is the prompt's, where no thoughts are asked for
        lambda: chat_templates.chatml(chat_templates.QWEN_3),
        [SYSTEM, *TWO_TURNS],
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 4.<|im_end|>\n<|im_start|>user\nAnd 3 + 3?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n6.<|im_end|>\n",
        ["It is 4.<|im_end|>", "6.<|im_end|>"],
    ),
    "mistral": (
        chat_templates.mistral,
        TWO_TURNS,
        "<s>[INST] What is 2 + 2?[/INST] It is 4.</s>[INST] And 3 + 3?[/INST] 6.</s>",
        [" It is 4.</s>", " 6.</s>"],
    ),
    "zephyr": (
        chat_templates.zephyr,
        [SYSTEM, *TWO_TURNS],
        "<|system|>\nYou are helpful.</s>\n<|user|>\nWhat is 2 + 2?</s>\n<|assistant|>\nIt is 4.</s>\n"
        "<|user|>\nAnd 3 + 3?</s>\n<|assistant|>\n6.</s>\n",
        ["It is 4.</s>", "6.</s>"],
    ),
    "gemma": (
        chat_templates.gemma,
        TWO_TURNS,
        "<bos><start_of_turn>user\nWhat is 2 + 2?<end_of_turn>\n<start_of_turn>model\nIt is 4.<end_of_turn>\n"
        "<start_of_turn>user\nAnd 3 + 3?<end_of_turn>\n<start_of_turn>model\n6.<end_of_turn>\n",
        ["It is 4.<end_of_turn>", "6.<end_of_turn>"],
    ),
    "generation": (
        lambda: chat_templates.chatml(chat_templates.GENERATION),
        [SYSTEM, *TWO_TURNS],
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 4.<|im_end|>\n<|im_start|>user\nAnd 3 + 3?<|im_end|>\n"
        "<|im_start|>assistant\n6.<|im_end|>\n",
        ["It is 4.<|im_end|>", "6.<|im_end|>"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_text_and_targets(name):
    """All turns, the last, the first: the text is the template's in each case, and the end of a turn a target."""
    make, messages, text, turns = CASES[name]
    tokenizer = make()
    for train_on, wanted in (("all", turns), ("last", turns[-1:]), ([0], turns[:1]), ([-2, 1], turns)):
        assert _encoded(ChatEncoder(tokenizer, train_on=train_on), tokenizer, messages) == (text, wanted)


@pytest.mark.parametrize("name", CASES)
def test_a_single_turn(name):
    make, messages, _, turns = CASES[name]
    tokenizer = make()
    _, runs = _encoded(ChatEncoder(tokenizer), tokenizer, messages[:-2])
    assert runs == turns[:1]


def test_a_message_says_that_it_is_no_target():
    tokenizer = chat_templates.chatml()
    for flag in ({"train": False}, {"weight": 0}):
        messages = [TWO_TURNS[0], {**TWO_TURNS[1], **flag}, TWO_TURNS[2], {**TWO_TURNS[3], "weight": 1}]
        text, runs = _encoded(ChatEncoder(tokenizer), tokenizer, messages)
        assert runs == ["6.<|im_end|>"] and text == _encoded(ChatEncoder(tokenizer), tokenizer, TWO_TURNS)[0]
        assert "leave the row out" in _refusal(ChatEncoder(tokenizer, train_on=[0]), messages)
    assert "weight=0.5: 0 or 1" in _refusal(ChatEncoder(tokenizer), [TWO_TURNS[0], {**TWO_TURNS[1], "weight": 0.5}])
    assert "only turns of the assistant" in _refusal(
        ChatEncoder(tokenizer), [{**TWO_TURNS[0], "train": True}, TWO_TURNS[1]]
    )


def test_content_of_parts_and_missing_content():
    tokenizer = chat_templates.chatml()
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " 2 + 2?"}]
    messages = [{"role": "user", "content": parts, "name": None}, TWO_TURNS[1]]
    assert _encoded(ChatEncoder(tokenizer), tokenizer, messages) == _encoded(
        ChatEncoder(tokenizer), tokenizer, TWO_TURNS[:2]
    )
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, TWO_TURNS[1]]
    assert "type 'image_url': only text" in _refusal(ChatEncoder(tokenizer), image)


# Thoughts


THOUGHT = [TWO_TURNS[0], {**TWO_TURNS[1], "reasoning_content": "Two and two."}]
THOUGHT_TWICE = [*THOUGHT, TWO_TURNS[2], {**TWO_TURNS[3], "reasoning_content": "Three."}]


def test_thoughts_are_targets_where_the_template_writes_them():
    """Those of an earlier turn it leaves out: no prefix of the text shows that turn, and yet its place is exact."""
    tokenizer = chat_templates.chatml(chat_templates.QWEN_3)
    encoder = ChatEncoder(tokenizer)
    _, runs = _encoded(encoder, tokenizer, THOUGHT)
    assert runs == ["<think>\nTwo and two.\n</think>\n\nIt is 4.<|im_end|>"]
    text, runs = _encoded(encoder, tokenizer, THOUGHT_TWICE)
    assert text == (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n"
        "<|im_start|>user\nAnd 3 + 3?<|im_end|>\n<|im_start|>assistant\n<think>\nThree.\n</think>\n\n6.<|im_end|>\n"
    )
    assert runs == ["It is 4.<|im_end|>", "<think>\nThree.\n</think>\n\n6.<|im_end|>"]


def test_thoughts_between_tool_calls():
    """Turns behind the last question keep their thoughts; the last turn without any gets an empty block."""
    tokenizer = chat_templates.chatml(chat_templates.QWEN_3)
    messages = [WITH_TOOLS[0], {**WITH_TOOLS[1], "reasoning_content": "Ask."}, *WITH_TOOLS[2:]]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
    text, runs = _encoded(ChatEncoder(tokenizer), tokenizer, messages, [WEATHER])
    assert runs == [f"<think>\nAsk.\n</think>\n\n{call}", "It is sunny.<|im_end|>"]
    assert text.startswith("<|im_start|>system\n# Tools\n<tools>\n" + json.dumps(WEATHER))
    longer = [*messages, *TWO_TURNS[:2]]  # the same steps as history: neither has thoughts, nor an empty block
    _, runs = _encoded(ChatEncoder(tokenizer), tokenizer, longer, [WEATHER])
    assert runs == [call, "It is sunny.<|im_end|>", "It is 4.<|im_end|>"]


def test_a_prompt_that_opens_the_thoughts():
    """What the generation prompt writes of a think block is no target, and what the model writes of it is."""
    template = chat_templates.QWEN_3.replace(
        "{{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking",
        "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- if x",
    )
    tokenizer = chat_templates.chatml(template)
    _, runs = _encoded(ChatEncoder(tokenizer), tokenizer, THOUGHT)
    assert runs == ["Two and two.\n</think>\n\nIt is 4.<|im_end|>"]
    _, runs = _encoded(ChatEncoder(tokenizer, train_on="last"), tokenizer, THOUGHT_TWICE)
    assert runs == ["Three.\n</think>\n\n6.<|im_end|>"]
    reason = _refusal(ChatEncoder(tokenizer), THOUGHT_TWICE, index=7)  # no prompt leads to the first turn as it stands
    assert reason.startswith("row 7: where its turn 0 stands") and "train_on='last'" in reason


def test_a_switch_that_is_off_unless_asked():
    """As DeepSeek V3.1 has it: the prompt closes the thoughts, or opens them; neither mark is the model's to write."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content }}{% else %}"
        "{{ '<|endoftext|>' + ('<think>' + m.reasoning_content if m.reasoning_content else '') + '</think>' }}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|endoftext|>{{ '<think>' if thinking else '</think>' }}{% endif %}"
    )
    tokenizer = chat_templates.chatml(template)
    _, runs = _encoded(ChatEncoder(tokenizer), tokenizer, [*THOUGHT, *TWO_TURNS[2:]])
    assert runs == ["Two and two.</think>It is 4.<|im_end|>", "6.<|im_end|>"]


def test_template_variables():
    tokenizer = chat_templates.chatml("{{- mark }}" + chat_templates.QWEN_3)
    encoder = ChatEncoder(tokenizer, chat_template_kwargs={"mark": "now"})
    assert _encoded(encoder, tokenizer, THOUGHT)[0].startswith("now<|im_start|>user")


# Tools


def test_tool_calls_of_llama_3():
    tokenizer = chat_templates.llama_3()
    _, runs = _encoded(ChatEncoder(tokenizer), tokenizer, WITH_TOOLS)
    assert runs == ['{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>', "It is sunny.<|eot_id|>"]


def test_tools_that_a_longer_conversation_has_elsewhere():
    """With Mistral's template they stand before the last question: each turn's own prefix has them elsewhere."""
    tokenizer = chat_templates.mistral()
    messages = [*TWO_TURNS[:2], *WITH_TOOLS]
    text, runs = _encoded(ChatEncoder(tokenizer), tokenizer, messages, [WEATHER])
    assert text == (
        "<s>[INST] What is 2 + 2?[/INST] It is 4.</s>[AVAILABLE_TOOLS] " + json.dumps([WEATHER]) + "[/AVAILABLE_TOOLS]"
        '[INST] Paris?[/INST][TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]</s>'
        "[TOOL_RESULTS] sunny[/TOOL_RESULTS] It is sunny.</s>"
    )
    call = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]</s>'
    assert runs == [" It is 4.</s>", call, " It is sunny.</s>"]


def test_what_a_template_leaves_out_is_refused():
    """Without a tool, a call, thoughts or a system message the model would learn another conversation."""
    encoder = ChatEncoder(chat_templates.chatml())
    assert "does not write tool calls" in _refusal(encoder, WITH_TOOLS)
    assert "'weather' is not in its text" in _refusal(encoder, TWO_TURNS, [WEATHER])
    assert "reasoning_content" in _refusal(encoder, THOUGHT)
    silent = "{% for m in messages if m.role != 'system' %}{{ m.role + m.content }}{% endfor %}"
    reason = _refusal(ChatEncoder(chat_templates.chatml(silent)), [SYSTEM, *TWO_TURNS], index=3)
    assert reason.startswith("row 3: the chat template leaves out its message 0, of the role 'system'")


# {% generation %}


def test_several_generation_blocks_of_a_turn():
    tokenizer = chat_templates.chatml(chat_templates.GENERATION)
    thoughts = "<think>Two and two.</think>It is 4.<|im_end|>"
    messages = [*THOUGHT, *TWO_TURNS[2:]]
    assert _encoded(ChatEncoder(tokenizer), tokenizer, messages)[1] == [thoughts, "6.<|im_end|>"]
    assert _encoded(ChatEncoder(tokenizer, train_on=[0]), tokenizer, messages)[1] == [thoughts]
    assert _encoded(ChatEncoder(tokenizer, train_on="last"), tokenizer, messages)[1] == ["6.<|im_end|>"]


def test_the_mask_of_transformers_where_that_is_right():
    tokenizer = chat_templates.chatml(chat_templates.GENERATION)
    theirs = tokenizer.apply_chat_template(
        [SYSTEM, *TWO_TURNS], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = _one(ChatEncoder(tokenizer), [SYSTEM, *TWO_TURNS]).tokens
    assert ours.input_ids == theirs["input_ids"]
    assert [int(label != -100) for label in ours.labels] == theirs["assistant_masks"]


def test_a_generation_block_that_ends_at_the_first_token():
    """transformers' own mask then takes in all that follows (its issue 47325)."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = chat_templates.chatml(template)
    messages = [{"role": "assistant", "content": "I"}, {"role": "user", "content": "And?"}, TWO_TURNS[1]]
    result = _one(ChatEncoder(tokenizer), messages)
    first = tokenizer("I", add_special_tokens=False)["input_ids"]
    assert len(first) == 1 and result.tokens.labels[:2] == [first[0], -100]
    assert _part(tokenizer, [label for label in result.tokens.labels[1:] if label != -100]) == "It is 4."


def test_a_generation_block_within_a_macro_is_placed_or_refused():
    """A macro's output begins at 0 for transformers' count of characters."""
    macro = "{% macro turn(m) %}{% generation %}{{ ' ' + m.content }}{% endgeneration %}{% endmacro %}"
    each = "{% for m in messages %}<|im_start|>{{ TURN if m.role == 'assistant' else m.content }}{% endfor %}"
    tokenizer = chat_templates.chatml(macro + each.replace("TURN", "turn(m)"))
    assert _encoded(ChatEncoder(tokenizer), tokenizer, TWO_TURNS)[1] == [" It is 4.", " 6."]
    tokenizer = chat_templates.chatml(macro + each.replace("TURN", "(turn(m) | trim)"))  # of the block's own space
    assert "a filter or a macro around it" in _refusal(ChatEncoder(tokenizer), TWO_TURNS)


# Ends of turns


def test_the_end_of_a_turn_is_its_eos_not_what_follows_it():
    ends = {
        "<|im_end|>\\n": "6.<|im_end|>",  # white space behind the end: an engine has stopped
        "<|im_end|><|endoftext|>\\n": "6.<|im_end|>",  # what follows eos
        "<|endoftext|><|im_end|>\\n": "6.<|endoftext|><|im_end|>",
        "\\n</tool_call> <|im_end|>": "6.\n</tool_call> <|im_end|>",
        "\\n": "6.\n",  # no token ends the turn: it is a target to its last character
    }
    for end, wanted in ends.items():
        tokenizer = chat_templates.chatml(chat_templates.CHATML.replace("<|im_end|>' + '\\n'", end + "'"))
        assert _encoded(ChatEncoder(tokenizer), tokenizer, TWO_TURNS)[1][-1] == wanted


def test_an_end_that_is_not_eos():
    """Of a base model whose eos is another the end of the turn is a target all the same."""
    tokenizer = chat_templates.chatml(eos="<|endoftext|>")
    assert _encoded(ChatEncoder(tokenizer), tokenizer, TWO_TURNS)[1] == ["It is 4.<|im_end|>", "6.<|im_end|>"]


def test_ends_can_be_left_out_of_the_targets():
    for template in (chat_templates.CHATML, chat_templates.GENERATION):
        tokenizer = chat_templates.chatml(template)
        encoder = ChatEncoder(tokenizer, train_on_end=False)
        assert _encoded(encoder, tokenizer, TWO_TURNS)[1] == ["It is 4.", "6."]


def test_an_end_that_depends_on_what_follows_is_refused():
    last = "('<|im_end|>' if loop.last or m.role == 'user' else '<|endoftext|>')"
    template = "{% for m in messages %}{{ m.role + m.content + " + last + " }}{% endfor %}"
    tokenizer = chat_templates.chatml(template)
    assert "where others follow" in _refusal(ChatEncoder(tokenizer), TWO_TURNS)
    assert _encoded(ChatEncoder(tokenizer, train_on="last"), tokenizer, TWO_TURNS)[1] == ["assistant6.<|im_end|>"]


# Tokens and characters


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_a_prompt_that_ends_with_a_space(trim_offsets):
    """ " It" is one token; an engine has the space in the prompt, and so has the row: the two are tokenised apart."""
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = chat_templates.chatml(template, trim_offsets=trim_offsets)
    assert len(tokenizer(" It", add_special_tokens=False)["input_ids"]) == 1
    text, runs = _encoded(ChatEncoder(tokenizer), tokenizer, TWO_TURNS[:2])
    assert runs == ["It is 4.<|im_end|>"] and text == "user: What is 2 + 2?<|im_end|>assistant: It is 4.<|im_end|>"
    ids = _one(ChatEncoder(tokenizer), TWO_TURNS[:2]).tokens.input_ids
    prompt = tokenizer("user: What is 2 + 2?<|im_end|>assistant: ", add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt)] == prompt
    one_space = metaspace(
        ["<s>", "</s>"], eos="</s>", prepend="always", template=template.replace("<|im_end|>", "</s>")
    )
    assert "generation prompt ends without a space" in _refusal(ChatEncoder(one_space), TWO_TURNS[:2])


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_characters_of_several_tokens_and_spaces_at_the_edges(trim_offsets):
    tokenizer = chat_templates.chatml(trim_offsets=trim_offsets)
    messages = [{"role": "user", "content": "二加二？ "}, {"role": "assistant", "content": "  四 🙂  "}]
    text, runs = _encoded(ChatEncoder(tokenizer), tokenizer, messages)
    assert text == "<|im_start|>user\n二加二？ <|im_end|>\n<|im_start|>assistant\n  四 🙂  <|im_end|>\n"
    assert runs == ["  四 🙂  <|im_end|>"]


class _Slow:
    """A tokenizer as transformers has them in Python: no offsets."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def __call__(self, texts, **options):
        assert "return_offsets_mapping" not in options
        return self._fast(texts, **options)


def test_a_tokenizer_without_offsets():
    fast = chat_templates.chatml()
    assert _encoded(ChatEncoder(_Slow(fast)), fast, TWO_TURNS) == _encoded(ChatEncoder(fast), fast, TWO_TURNS)
    within = [TWO_TURNS[0], {"role": "assistant", "content": "It"}]
    spaced = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    spaced += "{% if add_generation_prompt %}assistant: {% endif %}"
    assert "Use a fast tokenizer" in _refusal(ChatEncoder(_Slow(fast), spaced), within)


# max_length


def test_max_length_cuts_from_the_right():
    tokenizer = chat_templates.chatml()
    whole = _one(ChatEncoder(tokenizer), TWO_TURNS)
    labels = whole.tokens.labels
    first, length = next(i for i, label in enumerate(labels) if label != -100), len(labels)
    after = first + next(i for i, label in enumerate(labels[first:]) if label == -100)
    inside = {cut: _one(ChatEncoder(tokenizer, max_length=cut), TWO_TURNS) for cut in range(2, length + 3)}
    for cut, result in inside.items():
        if cut <= first:
            assert isinstance(result, Refused) and f"max_length={cut} cuts it from {length} tokens" in result.reason
            assert f"begins at token {first}" in result.reason
        else:
            assert result.uncut == length and result.tokens == whole.tokens.cut(cut)
            partly = first < cut < after or (cut < length and labels[cut - 1] != -100 and labels[cut] != -100)
            assert result.inside_turn == partly
    assert inside[first + 1].inside_turn and not inside[after].inside_turn and not inside[length].inside_turn


# What is refused, and how


def test_the_templates_own_words_are_the_reason():
    reason = _refusal(ChatEncoder(chat_templates.gemma()), [SYSTEM, *TWO_TURNS], index=12)
    assert reason == "row 12: the chat template does not take it: System role not supported"
    assert "must alternate" in _refusal(ChatEncoder(chat_templates.llama_2()), [TWO_TURNS[0], *TWO_TURNS])


@pytest.mark.parametrize(
    ("messages", "tools", "words"),
    [
        ([], None, "'messages' is no list of messages"),
        ("hello", None, "'messages' is no list of messages"),
        (["hello"], None, "message 0 is no dict with a 'role'"),
        ([TWO_TURNS[0]], None, "no message has the role 'assistant'"),
        (TWO_TURNS[1:], None, "nothing comes before its first turn"),
        (TWO_TURNS, "[", "'tools' is no JSON"),
        (TWO_TURNS, ["weather"], "'tools' is no list of JSON schemas"),
        ([TWO_TURNS[0], {"role": "assistant", "tool_calls": [{"function": {}}]}], None, "no function with a name"),
        (
            [TWO_TURNS[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            None,
            "the arguments of 'f', which message 1 calls, are no JSON",
        ),
    ],
)
def test_rows_that_are_no_conversations(messages, tools, words):
    """A bad row is refused by itself: those beside it are not touched, and stay in order."""
    encoder = ChatEncoder(chat_templates.chatml())
    good = {"messages": TWO_TURNS, "tools": None}
    first, bad, last = encoder.encode([good, {"messages": messages, "tools": tools}, good], [4, 5, 6])
    assert isinstance(bad, Refused) and bad.index == 5 and words in bad.reason and bad.reason.startswith("row 5: ")
    assert isinstance(first, Encoded) and first == last


def test_turns_that_are_not_there():
    encoder = ChatEncoder(chat_templates.chatml(), train_on=[2])
    assert "train_on=[2] names none of its turns: it has 2 assistant turns" in _refusal(encoder, TWO_TURNS)


def test_options_that_do_not_fit(tmp_path):
    tokenizer = chat_templates.chatml()
    for train_on in ("first", [], [0.5], [True]):
        with pytest.raises(DataError, match="neither 'all' nor 'last'"):
            ChatEncoder(tokenizer, train_on=train_on)
    with pytest.raises(DataError, match=r"no Jinja: line 2"):
        ChatEncoder(tokenizer, "{% for m in messages %}\n{% endif %}")
    with pytest.raises(DataError, match="neither Jinja text, nor a file"):
        ChatEncoder(tokenizer, tmp_path / "none.jinja")
    with pytest.raises(DataError, match="neither Jinja text, nor a file"):
        ChatEncoder(tokenizer, "no template at all " * 50)
    with pytest.raises(DataError, match="has no chat template: give chat_template"):
        ChatEncoder(byte_level(["</s>"], eos="</s>"))


# Templates by name and by file; what a worker gets


def test_a_template_by_name_and_by_file(tmp_path):
    tokenizer = chat_templates.chatml({"default": chat_templates.CHATML, "tool_use": chat_templates.QWEN_3})
    assert "<tools>" in _encoded(ChatEncoder(tokenizer), tokenizer, TWO_TURNS, [WEATHER])[0]
    thinking = _encoded(ChatEncoder(tokenizer, "tool_use"), tokenizer, THOUGHT)
    assert (
        "<think>\nTwo and two." in thinking[0]
        and "<think>" not in _encoded(ChatEncoder(tokenizer), tokenizer, TWO_TURNS)[0]
    )
    (tmp_path / "mine.jinja").write_text(chat_templates.QWEN_3)
    for path in (tmp_path / "mine.jinja", str(tmp_path / "mine.jinja")):
        assert _encoded(ChatEncoder(tokenizer, path), tokenizer, THOUGHT) == thinking
    with pytest.raises(DataError, match="Did you mean 'tool_use'"):
        ChatEncoder(tokenizer, "tool-use")


def test_fingerprint_and_pickle():
    """A process that tokenises gets a copy; what changes tokens or targets changes the fingerprint."""
    encoder = ChatEncoder(chat_templates.chatml())
    same = pickle.loads(pickle.dumps(encoder))
    assert same.fingerprint() == encoder.fingerprint() and _one(same, TWO_TURNS) == _one(encoder, TWO_TURNS)
    others = [
        ChatEncoder(chat_templates.chatml(), train_on="last"),
        ChatEncoder(chat_templates.chatml(), train_on=[0]),
        ChatEncoder(chat_templates.chatml(), max_length=9),
        ChatEncoder(chat_templates.chatml(), train_on_end=False),
        ChatEncoder(chat_templates.chatml(), chat_template_kwargs={"enable_thinking": False}),
        ChatEncoder(chat_templates.chatml(), chat_templates.QWEN_3),
        ChatEncoder(chat_templates.chatml(eos="<|endoftext|>")),
        ChatEncoder(chat_templates.chatml(added=["<tool_call>"])),
    ]
    assert len({encoder.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)
    tokenizer = chat_templates.chatml()
    tokenizer("It is 4.", truncation=True, max_length=2)  # which the tokenizer keeps in mind
    assert ChatEncoder(tokenizer).fingerprint() == encoder.fingerprint()
