"""A dataset of conversations: what it takes of ChatEncoder, and that a run without ends of turns is refused."""

import json

import chat_templates
import pytest
from torch.utils.data import Subset

from collie.data import ChatEncoder, CollieDatasetForTraining, CollieStream, Source, check_rows
from collie.interfaces import ConfigError, DataError

ROWS = [
    {
        "messages": [
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "content": "It is 4."},
            {"role": "user", "content": f"And {number} + 3?"},
            {"role": "assistant", "content": "6."},
        ]
    }
    for number in range(5)
]
NO_END = chat_templates.CHATML.replace("+ '<|im_end|>' ", "")
OUTSIDE = chat_templates.GENERATION.replace(
    " + '<|im_end|>' }}\n        {%- endgeneration %}\n        {{- '", " }}{% endgeneration %}{{- '<|im_end|>"
)


def _targets(dataset):
    return [
        dataset.tokenizer.decode(
            [label for label in row["labels"] if label != -100], clean_up_tokenization_spaces=False
        )
        for row in dataset
    ]


def test_options_reach_the_encoder(tmp_path):
    tokenizer = chat_templates.chatml()
    assert _targets(CollieDatasetForTraining(ROWS, tokenizer)) == ["It is 4.<|im_end|>6.<|im_end|>"] * 5
    assert _targets(CollieDatasetForTraining(ROWS, tokenizer, train_on="last")) == ["6.<|im_end|>"] * 5
    assert _targets(CollieDatasetForTraining(ROWS, tokenizer, train_on_end=False, train_on=[0])) == ["It is 4."] * 5
    (tmp_path / "qwen.jinja").write_text("{{ mark }}" + chat_templates.QWEN_3)
    marked = CollieDatasetForTraining(
        ROWS, tokenizer, chat_template=tmp_path / "qwen.jinja", chat_template_kwargs={"mark": "It is"}
    )
    assert all(tokenizer.decode(row["input_ids"]).startswith("It is<|im_start|>") for row in marked)
    sharegpt = [{"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "It is 4."}]}]
    assert _targets(CollieDatasetForTraining(sharegpt, tokenizer)) == ["It is 4.<|im_end|>"]


def test_bad_rows_are_named_or_skipped_with_the_reason(tmp_path):
    bad = {"messages": [{"role": "system", "content": "You are helpful."}, *ROWS[0]["messages"]]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:2], bad, ROWS[2]]))
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: the chat template does not take it: System role not"):
        CollieDatasetForTraining(file, chat_templates.gemma(), cache=False)
    dataset = CollieDatasetForTraining(file, chat_templates.gemma(), cache=False, on_bad_row="skip")
    assert len(dataset) == 3 and [index for index, _ in dataset.report.sources[0].skipped] == [2]


def test_a_run_that_trains_no_end_of_a_turn_is_refused():
    """A template whose end is no token, or outside of the template's own mask; or answers that are all cut."""
    tokenizer = chat_templates.chatml()
    check_rows(CollieDatasetForTraining(ROWS, tokenizer))
    for template in (NO_END, OUTSIDE):
        dataset = CollieDatasetForTraining(ROWS, tokenizer, chat_template=template)
        assert _targets(dataset)[0].strip() in ("It is 4.\n6.", "It is 4.6.")
        with pytest.raises(DataError, match=r"would not learn to stop.*ends no turn of the 5 conversations"):
            check_rows(dataset)
        with pytest.raises(DataError, match=r"would not learn to stop"):
            check_rows(Subset(dataset, [1, 2]))
        check_rows(CollieDatasetForTraining(ROWS, tokenizer, chat_template=template, train_on_end=False))
    start = CollieDatasetForTraining(ROWS, tokenizer)[0]["labels"].index(tokenizer("It")["input_ids"][0])
    cut = CollieDatasetForTraining(ROWS, tokenizer, max_length=start + 2)
    assert cut.report.inside_turn == 5
    with pytest.raises(DataError, match=rf"max_length={start + 2} cuts every one of the 5 conversations"):
        check_rows(cut)


def test_one_end_among_many_rows_is_found():
    """Looking goes on to the last row: only there a turn ends with its token."""
    tokenizer = chat_templates.chatml()
    template = NO_END.replace("message['content']", "message['content'] + (message['end'] or '')")
    last = {"messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "6.", "end": "<|im_end|>"}]}
    rows = [ROWS[number % 5] for number in range(1500)]
    check_rows(CollieDatasetForTraining([*rows, last], tokenizer, chat_template=template))
    with pytest.raises(DataError, match="would not learn to stop"):
        check_rows(CollieDatasetForTraining(rows, tokenizer, chat_template=template))


def test_other_rows_need_no_end_of_a_turn():
    """Pairs have the eos, where the tokenizer has one; a source that trains ends speaks for a mixture."""
    tokenizer = chat_templates.chatml()
    pairs = Source([{"input": "What is 2 + 2? ", "output": "It is 4."}])
    check_rows(CollieDatasetForTraining(pairs, tokenizer, add_special_tokens=False))
    check_rows(CollieDatasetForTraining([pairs, Source(ROWS)], tokenizer, add_special_tokens=False))
    with pytest.raises(DataError, match="of the 1 conversations"):
        check_rows(CollieDatasetForTraining(pairs, tokenizer, chat_template=NO_END))


@pytest.mark.parametrize("template", [NO_END, OUTSIDE])
def test_a_stream_s_first_conversations_train_ends_too(template):
    """Or it is refused before any rank works; not where that is meant, and rows of text have no turns."""
    tokenizer = chat_templates.chatml()
    CollieStream(ROWS, tokenizer, rows=5).check()
    with pytest.raises(DataError, match=r"in none of the stream's first 5 conversations.*train_on_end=False"):
        CollieStream(ROWS, tokenizer, rows=5, chat_template=template).check()
    with pytest.raises(DataError, match="in none of the stream's first 5 conversations"):
        CollieStream(ROWS, rows=5, encoder=ChatEncoder(tokenizer, template)).check()
    CollieStream(ROWS, tokenizer, rows=5, chat_template=template, train_on_end=False).check()
    CollieStream([{"text": "a text"}], tokenizer, rows=1, chat_template=template).check()


def test_what_a_stream_s_own_encoder_would_ignore_is_refused():
    tokenizer = chat_templates.chatml()
    for options in ({"tokenizer": tokenizer}, {"max_length": 8}, {"train_on": "last"}, {"chat_template": NO_END}):
        with pytest.raises(ConfigError, match="or leave out encoder"):
            CollieStream(ROWS, rows=5, encoder=ChatEncoder(tokenizer), **options)
