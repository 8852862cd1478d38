"""What users hand in that is nearly right: each gets what it asked for, or a sentence; never an error of Python's."""

import json
import tracemalloc

import pytest
from chat_templates import CHATML
from chat_tokenizers import byte_level
from data_toys import TEMPLATE, byte_tokenizer, targets_of, text_of

from collie.data import (
    CollieDatasetForClassification,
    CollieDatasetForGeneration,
    CollieDatasetForTraining,
    Source,
    check_rows,
)
from collie.data._files import file_rows
from collie.interfaces import DataError

TALK = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(TEMPLATE)


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Tokens that are kept on disk lie in the test's own folder."""
    monkeypatch.setenv("COLLIE_CACHE", str(tmp_path / "cache"))


def test_an_eos_that_is_an_added_token_of_the_plain_kind_ends_turns():
    """Checkpoints of ChatML often hold <|im_end|> as an added token that is not special, and name it as their eos."""
    tokenizer = byte_level(["<|im_start|>"], eos="<|im_end|>", added=["<|im_end|>"], template=CHATML)
    assert not tokenizer.added_tokens_decoder[tokenizer.eos_token_id].special
    dataset = CollieDatasetForTraining([TALK], tokenizer)
    assert targets_of(dataset[0], tokenizer) == "y<|im_end|>"
    check_rows(dataset)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a\ud800b"},
        {"input": "a\ud800", "output": "b"},
        {"instruction": "a", "output": "b\udfff"},
        {"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "y"}]},
    ],
)
def test_half_a_surrogate_pair_is_a_bad_row(tokenizer, tmp_path, row):
    """Cutting text by UTF-16 units leaves such halves in files of JSON; no tokenizer takes them."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (TALK, row)))
    with pytest.raises(DataError, match=r"rows\.jsonl: .*row 1\b.*half of a surrogate pair"):
        CollieDatasetForTraining(path, tokenizer)
    skipped = CollieDatasetForTraining(path, tokenizer, on_bad_row="skip")
    assert len(skipped) == 1 and skipped.report.skipped == 1


def test_half_a_surrogate_pair_in_what_is_evaluated(tokenizer):
    for dataset, row in (
        (CollieDatasetForGeneration, {"input": "a\ud800"}),
        (CollieDatasetForGeneration, {"messages": [{"role": "user", "content": "\ud800"}]}),
        (CollieDatasetForClassification, {"input": "a", "output": ["b", "\ud800"], "target": 0}),
    ):
        with pytest.raises(DataError, match=r"row 0\b.*half of a surrogate pair"):
            dataset([row], tokenizer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_on": 3}, r"train_on=3 is neither"),
        ({"max_length": None}, r"max_length=None: give a whole number"),
        ({"max_length": "8"}, r"max_length='8': give a whole number"),
        ({"max_length": 8.0}, r"max_length=8.0: give a whole number"),
        ({"processes": "2"}, r"processes='2': at least 1"),
        ({"processes": 2.0}, r"processes=2.0: at least 1"),
    ],
)
def test_options_of_another_type(tokenizer, options, sentence):
    with pytest.raises(DataError, match=sentence):
        CollieDatasetForTraining([TALK], tokenizer, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weight": "2"}, r"weight='2' of a source"),
        ({"weight": None}, r"weight=None of a source"),
        ({"max_rows": "5"}, r"max_rows='5' of a source"),
        ({"max_rows": 2.5}, r"max_rows=2.5 of a source"),
    ],
)
def test_a_source_s_numbers_of_another_type(options, sentence):
    with pytest.raises(DataError, match=sentence):
        Source([], **options)


def test_a_conversation_to_be_answered_without_a_template_is_a_bad_row():
    rows = [{"input": "a"}, TALK]
    with pytest.raises(DataError, match=r"^here: row 1 is a conversation and the tokenizer has no chat template"):
        CollieDatasetForGeneration(Source(rows, name="here"), byte_tokenizer())
    assert len(CollieDatasetForGeneration(rows, byte_tokenizer(), on_bad_row="skip")) == 1


def test_a_csv_file_with_a_column_twice(tokenizer, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("input,input,output\na,b,c\n")
    with pytest.raises(DataError, match=r"rows.csv has the column 'input' twice"):
        CollieDatasetForTraining(path, tokenizer)


def test_a_json_list_without_line_ends_is_not_read_whole(tmp_path):
    """json.dump writes one line, however large the list is."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "x" * 1000}] * 30_000))
    tracemalloc.start()
    try:
        assert next(file_rows(path)) == {"text": "x" * 1000}
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_text_before_an_odd_row_is_what_it_was(tokenizer):
    """Emoji and what is beyond 16 bits are no halves."""
    row = {"text": "🎉\U0010ffff\u2028é"}
    assert text_of(CollieDatasetForTraining([row], tokenizer)[0], tokenizer) == f"<s>{row['text']}</s>"


def test_variables_of_a_template_that_is_not_used(tokenizer):
    """Candidates are put into turns only where chat_template asks for it."""
    row, variables = {"input": "a", "output": ["b", "c"], "target": 0}, {"enable_thinking": False}
    with pytest.raises(DataError, match="uses a chat template only where chat_template gives one"):
        CollieDatasetForClassification([row], tokenizer, chat_template_kwargs=variables)
    CollieDatasetForClassification([row], tokenizer, chat_template=TEMPLATE, chat_template_kwargs=variables)
