"""Formats: which one a row's columns make it, what becomes of it, and what a row of none is told."""

import json

import pytest
from data_toys import TEMPLATE, byte_tokenizer, targets_of, text_of

from collie.data import CollieDatasetForTraining, Source
from collie.data._formats import FORMATS, Formats
from collie.interfaces import DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(TEMPLATE)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ("text", "text"),
        ("text id", "text"),
        ("input output", "input/output"),
        ("input output text", "input/output"),
        ("instruction output", "alpaca"),
        ("instruction input output text", "alpaca"),  # as tatsu-lab/alpaca has them
        ("conversations id system tools", "sharegpt"),
        ("messages text source", "messages"),
        ("input_ids labels text messages", "input_ids"),
    ],
)
def test_columns_tell_the_format(columns, name):
    assert Formats().of(dict.fromkeys(columns.split(), "x"), 0).name == name


def test_a_table_with_a_column_for_each_format_fills_one_of_them(tokenizer):
    """As parquet has it: the columns that are not the row's are None."""
    columns = ("text", "messages", "input", "output")
    rows = [{"text": "t"}, {"messages": [USER, ANSWER]}, {"input": "i", "output": "o"}]
    dataset = CollieDatasetForTraining([{**dict.fromkeys(columns), **row} for row in rows], tokenizer)
    assert [targets_of(row, tokenizer) for row in dataset] == ["<s>t</s>", "a<|im_end|>", "o</s>"]
    assert dataset.report.sources[0].format == "text, messages, input/output"


def test_columns_of_several_formats_need_a_word(tokenizer):
    row = {
        "messages": [USER, ANSWER],
        "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}],
    }
    with pytest.raises(DataError, match=r"keys \['conversations', 'messages'\], which may be 'sharegpt' or 'messages'"):
        CollieDatasetForTraining([row], tokenizer)
    for name, answer in (("messages", "a"), ("sharegpt", "y")):
        dataset = CollieDatasetForTraining(Source([row], format=name), tokenizer)
        assert targets_of(dataset[0], tokenizer) == f"{answer}<|im_end|>"
        assert dataset.report.sources[0].format == name


def test_a_forced_format_is_kept_to(tokenizer):
    with pytest.raises(DataError, match=r"row 0 has the keys \['text'\]: a row needs 'instruction' and 'output'"):
        CollieDatasetForTraining(Source([{"text": "a"}], format="alpaca"), tokenizer)
    with pytest.raises(DataError, match=r"format='sharegtp' is no format: is it 'sharegpt'\? Known are 'text', "):
        CollieDatasetForTraining(Source([{"text": "a"}], format="sharegtp"), tokenizer)


def test_unknown_columns_are_named_with_all_that_are_known():
    with pytest.raises(DataError) as caught:
        Formats().of({"prompt": "a", "answer": "b"}, 7)
    assert "row 7 has the keys ['answer', 'prompt']: a row needs" in str(caught.value)
    assert all(repr(column) in str(caught.value) for format in FORMATS for column in format.columns)


def test_alpaca_is_the_text_that_alpaca_was_trained_on(tokenizer):
    rows = [
        {"instruction": "Add.", "input": "1+1", "output": "2"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say hi.", "input": None, "output": "hi", "system": "Be kind."},
    ]
    paired, bare, system = CollieDatasetForTraining(rows, tokenizer)
    assert text_of(paired, tokenizer) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1+1\n\n"
        "### Response:\n2</s>"
    )
    assert text_of(bare, tokenizer) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nSay hi.\n\n### Response:\nhi</s>"
    )
    assert text_of(system, tokenizer) == "<s>Be kind.\n\n### Instruction:\nSay hi.\n\n### Response:\nhi</s>"
    assert [targets_of(row, tokenizer) for row in (paired, bare, system)] == ["2</s>", "hi</s>", "hi</s>"]
    with pytest.raises(DataError, match=r"row 0 has a history .*give chat_template"):
        CollieDatasetForTraining([{**rows[0], "history": [["a", "b"]]}], tokenizer)


def test_with_a_chat_template_questions_and_answers_are_turns(tokenizer):
    rows = [
        {"instruction": "Add.", "input": "1+1", "output": "2", "system": "s", "history": [["q1", "a1"]]},
        {"input": "i", "output": "o"},
        {"text": "t"},
    ]
    alpaca, pair, text = CollieDatasetForTraining(rows, tokenizer, chat_template=TEMPLATE, train_on="last")
    assert text_of(alpaca, tokenizer) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nAdd.\n1+1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    )
    assert targets_of(alpaca, tokenizer) == "2<|im_end|>"
    assert text_of(pair, tokenizer) == "<|im_start|>user\ni<|im_end|>\n<|im_start|>assistant\no<|im_end|>\n"
    assert text_of(text, tokenizer) == "<s>t</s>"


def test_sharegpt_is_the_same_conversation_as_messages(tokenizer):
    turns = [
        ("human", "q"),
        ("gpt", "a"),
        ("user", "r"),
        ("ChatGPT", "b"),
        ("function_response", "f"),
        ("assistant", "c"),
    ]
    roles = ["user", "assistant", "user", "assistant", "tool", "assistant"]
    sharegpt = {"conversations": [{"from": who, "value": text} for who, text in turns], "system": "s"}
    messages = [{"role": role, "content": text} for role, (_, text) in zip(roles, turns, strict=True)]
    expected = {"messages": [{"role": "system", "content": "s"}, *messages]}
    listed = {"conversations": expected["messages"]}
    one, two, three = CollieDatasetForTraining([sharegpt, expected, listed], tokenizer)
    assert one == two == three
    assert targets_of(one, tokenizer) == "a<|im_end|>b<|im_end|>c<|im_end|>"


def _example(row, name):
    [format] = [format for format in FORMATS if format.name == name]
    return format.example(row, 3)


def test_tools_calls_and_reasoning_are_kept():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [USER, {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}]
    assert _example({"messages": messages, "tools": tools}, "messages") == {"messages": messages, "tools": tools}
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(call["function"])}]
    example = _example({"conversations": turns, "tools": json.dumps(tools)}, "sharegpt")
    assert example["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert example["tools"] == json.dumps(tools)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"conversations": "x"}, r"'conversations' of row 0 is a str \('x'\): a list of dicts is needed"),
        ({"conversations": []}, "'conversations' of row 0 is empty"),
        ({"messages": ["a"]}, "'messages' of row 0 is a list"),
        ({"messages": "[{"}, "'messages' of row 0 is text that is no JSON"),
        (
            {"conversations": [{"from": "narrator", "value": "x"}]},
            "turn 0 of row 0 is from 'narrator': known are system",
        ),
        ({"conversations": [{"from": "human", "text": "x"}]}, r"turn 0 of row 0 has the keys \['from', 'text'\]"),
        (
            {"conversations": [{"from": "function_call", "value": "add"}]},
            "turn 0 of row 0 is a function_call that is no",
        ),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "function_call without a name"),
        ({"instruction": 3, "output": "x"}, "'instruction' of row 0 is a int"),
        ({"messages": [USER]}, "row 0.*no message has the role 'assistant'"),
    ],
)
def test_a_row_that_breaks_its_format_is_told_how(tokenizer, row, sentence):
    with pytest.raises(DataError, match=sentence):
        CollieDatasetForTraining([row], tokenizer)


def test_messages_in_a_csv_file_are_json(tokenizer, tmp_path):
    text = json.dumps([USER, ANSWER]).replace('"', '""')
    (tmp_path / "chat.csv").write_text(f'messages\n"{text}"\n')
    dataset = CollieDatasetForTraining(tmp_path / "chat.csv", tokenizer, cache=False)
    assert list(dataset) == list(CollieDatasetForTraining([{"messages": [USER, ANSWER]}], tokenizer))
