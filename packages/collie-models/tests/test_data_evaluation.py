"""Datasets of evaluators: a prompt never holds its answer, and a candidate is scored by its own tokens."""

import json

import pytest
from data_toys import TEMPLATE, byte_tokenizer, targets_of, text_of

from collie.data import (
    CollieDatasetForClassification,
    CollieDatasetForGeneration,
    CollieDatasetForPerplexity,
    CollieDatasetForTraining,
    ColliePadder,
)
from collie.interfaces import DataError

MESSAGES = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
]
UP_TO_ANSWER = (
    "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n"
    "<|im_start|>assistant\n"
)
QUESTION = {"input": "Is it? ", "output": ["yes", "no", "maybe"], "target": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(TEMPLATE)


def test_perplexity_has_the_rows_of_training(tokenizer):
    rows = [{"text": "a"}, {"input": "b", "output": "c"}, {"messages": MESSAGES}]
    assert list(CollieDatasetForPerplexity(rows, tokenizer)) == list(CollieDatasetForTraining(rows, tokenizer))


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"input": "a ", "output": "b"}, "<s>a ", "b"),
        ({"input": "a "}, "<s>a ", None),
        ({"input": "a ", "output": ["b", "c"]}, "<s>a ", ["b", "c"]),
        ({"text": "once upon"}, "<s>once upon", None),
        ({"messages": MESSAGES}, UP_TO_ANSWER, "a2"),
        ({"messages": MESSAGES[:3]}, UP_TO_ANSWER, None),
        (
            {"conversations": [{"from": "human", "value": "q1"}]},
            "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
            None,
        ),
    ],
)
def test_a_prompt_is_what_stands_before_the_answer(tokenizer, row, prompt, target):
    [made] = CollieDatasetForGeneration([row], tokenizer)
    assert text_of(made, tokenizer) == prompt and made["target"] == target
    assert set(made) == {"input_ids", "attention_mask", "labels", "target"} and set(made["labels"]) == {-100}


def test_a_prompt_is_what_training_puts_before_the_answer(tokenizer):
    """Alpaca's text, and a question as a turn of the user: token for token."""
    rows = [{"instruction": "Add.", "input": "1+1", "output": "2"}, {"input": "1+1=", "output": "2"}]
    for template in (None, TEMPLATE):
        trained = CollieDatasetForTraining(rows, tokenizer, chat_template=template)
        asked = CollieDatasetForGeneration(rows, tokenizer, chat_template=template)
        for one, other in zip(trained, asked, strict=True):
            first = next(place for place, label in enumerate(one["labels"]) if label != -100)
            assert other["input_ids"] == one["input_ids"][:first] and other["target"] == "2"


def test_rows_of_tokens_are_prompts_as_they_are(tokenizer):
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "target": "x"}]
    bare, labelled = CollieDatasetForGeneration(rows)
    assert bare["labels"] == [-100] * 3 and labelled["labels"] == [-100, -100, 7] and labelled["target"] == "x"
    assert len(CollieDatasetForGeneration(rows[1:], max_length=2)) == 1
    with pytest.raises(DataError, match="row 0 has a prompt of 3 tokens, more than max_length=2"):
        CollieDatasetForGeneration(rows, max_length=2)


def test_a_prompt_that_is_too_long_is_named_and_never_cut(tokenizer):
    rows = [{"input": "ab"}, {"input": "abcdefgh", "output": "x"}]
    with pytest.raises(DataError, match="row 1 has a prompt of 9 tokens, more than max_length=8: raise max_length"):
        CollieDatasetForGeneration(rows, tokenizer, max_length=8)
    assert len(CollieDatasetForGeneration(rows, tokenizer, max_length=9)) == 2
    assert len(CollieDatasetForGeneration(rows, tokenizer, max_length=8, on_bad_row="skip")) == 1


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [
        ({"input": ""}, {"add_special_tokens": False}, "row 0 has an empty prompt"),
        ({"input": "a", "output": ["b", 3]}, {}, "'output' of row 0 is .*a list of strings that are all right"),
        ({"answer": "a"}, {}, r"row 0 has the keys \['answer'\]: a row needs 'text', or 'input', or 'instruction'"),
        ({"messages": [MESSAGES[1]]}, {}, "row 0: nothing comes before its first turn"),
        ({"input": "a"}, {"train_on": "last"}, "train_on='last': CollieDatasetForGeneration trains on nothing"),
    ],
)
def test_what_is_no_prompt(tokenizer, row, options, sentence):
    with pytest.raises(DataError, match=sentence):
        CollieDatasetForGeneration([row], tokenizer, **options)


def test_prompts_make_a_batch(tokenizer):
    rows = [{"input": "a ", "output": "b"}, {"input": "longer"}, {"text": "c", "id": 3}]
    batch = ColliePadder(padding_left=True)(list(CollieDatasetForGeneration(rows, tokenizer)))
    assert batch["input_ids"].shape == (3, 7) and batch["target"] == ["b", None, None]


def test_harness_scores_each_candidate_by_its_own_tokens(tokenizer):
    [row] = CollieDatasetForClassification([QUESTION], tokenizer)
    assert row["target"] == 1
    for ids, mask, labels, candidate in zip(
        row["input_ids"], row["attention_mask"], row["labels"], QUESTION["output"], strict=True
    ):
        one = {"input_ids": ids, "labels": labels}
        assert text_of(one, tokenizer) == f"<s>Is it? {candidate}"
        assert targets_of(one, tokenizer) == candidate and mask == [1] * len(ids)


def test_helm_lists_the_candidates_and_asks_for_a_letter(tokenizer):
    [row] = CollieDatasetForClassification([QUESTION], tokenizer, style="helm")
    assert text_of(row, tokenizer) == "<s>Is it? \nA. yes\nB. no\nC. maybe\nAnswer:"
    assert row["target"] == 1 and set(row["labels"]) == {-100}


@pytest.mark.parametrize("style", ["harness", "helm"])
def test_with_a_chat_template_the_question_is_a_turn(tokenizer, style):
    [row] = CollieDatasetForClassification([QUESTION], tokenizer, style=style, chat_template=TEMPLATE)
    asked = "Is it? " if style == "harness" else "Is it? \nA. yes\nB. no\nC. maybe\nAnswer:"
    prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    if style == "helm":
        assert text_of(row, tokenizer) == prompt
    else:
        assert [tokenizer.decode(ids) for ids in row["input_ids"]] == [prompt + text for text in QUESTION["output"]]


@pytest.mark.parametrize("style", ["harness", "helm"])
def test_classification_is_saved_loaded_and_sliced(tokenizer, tmp_path, style):
    rows = [QUESTION, {"input": "Which? ", "output": ["a", "b"], "target": 0}] * 2
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    dataset = CollieDatasetForClassification.from_json(tmp_path / "rows.json", tokenizer, style=style, cache=False)
    assert list(dataset) == list(CollieDatasetForClassification(rows, tokenizer, style=style))
    dataset[1:].save_processed(tmp_path / "saved")
    assert list(CollieDatasetForClassification.from_processed(tmp_path / "saved")) == list(dataset)[1:]


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [
        ({**QUESTION, "target": 3}, {}, "'target' of row 0 is '3': the number of the right candidate, 0 to 2"),
        ({**QUESTION, "target": "no"}, {}, "'target' of row 0 is 'no'"),
        ({**QUESTION, "target": True}, {}, "'target' of row 0 is 'True'"),
        ({**QUESTION, "output": "yes"}, {}, "'output' of row 0 is 'yes': a list of strings"),
        ({**QUESTION, "output": ["yes"], "target": 0}, {}, "row 0 has 1 candidates"),
        ({**QUESTION, "output": ["yes", ""]}, {}, "row 0 has an empty candidate"),
        (
            {**QUESTION, "output": list("ab" * 14)},
            {"style": "helm"},
            "row 0 has 28 candidates: style 'helm' has letters",
        ),
        (QUESTION, {"max_length": 12}, "row 0 has 13 tokens of input and candidate, more than max_length=12"),
        (QUESTION, {"max_length": 5}, "row 0 has a prompt of 8 tokens, more than max_length=5"),
        ({"input": "a", "output": "b"}, {}, r"row 0 has the keys .*: a row needs 'input' and 'output' and 'target'"),
        (QUESTION, {"style": "glue"}, "style='glue': give 'harness'"),
    ],
)
def test_what_is_no_question(tokenizer, row, options, sentence):
    with pytest.raises(DataError, match=sentence):
        CollieDatasetForClassification([row], tokenizer, **options)
