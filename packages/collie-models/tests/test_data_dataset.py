"""CollieDatasetForTraining: which tokens a row becomes, which of them are targets, and what a bad row is told."""

import json
import pickle

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from collie.data import CollieDatasetForTraining, check_rows
from collie.interfaces import DataError

TEXT = "Collie is a python package for finetuning large language models."
PAIR = {"input": "Collie is a python package for ", "output": "finetuning large language models."}


@pytest.fixture(scope="module")
def backend():
    """A byte-level BPE in which " finetuning" is one token: so a space at the end of an input would merge into it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    return tokenizer.to_str()


def _tokenizer(backend, template="$A"):
    tokenizer = Tokenizer.from_str(backend)
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizer(backend):
    return _tokenizer(backend)


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_input_and_output_are_tokenised_apart(tokenizer):
    """Joined as text, "for " would lose its space to " finetuning"; the answer would then decode differently."""
    row = CollieDatasetForTraining([PAIR], tokenizer)[0]
    given, wanted = _ids(tokenizer, PAIR["input"]), _ids(tokenizer, PAIR["output"])
    assert row["input_ids"] == [*given, *wanted, 1]
    assert row["input_ids"][:-1] != _ids(tokenizer, PAIR["input"] + PAIR["output"])
    assert row["labels"] == [-100] * len(given) + [*wanted, 1]
    assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert tokenizer.decode([i for i in row["labels"] if i != -100], skip_special_tokens=True) == PAIR["output"]


def test_every_token_of_a_text_is_a_target(tokenizer):
    row = CollieDatasetForTraining([{"text": TEXT}], tokenizer)[0]
    assert row["input_ids"] == row["labels"] == [*_ids(tokenizer, TEXT), 1]


def test_a_text_that_brings_its_eos_gets_no_second(tokenizer):
    row = CollieDatasetForTraining([{"text": TEXT + "</s>"}], tokenizer)[0]
    assert row["input_ids"] == [*_ids(tokenizer, TEXT), 1]


def test_without_special_tokens(backend):
    tokenizer = _tokenizer(backend, "<s> $A </s>")
    dataset = CollieDatasetForTraining([PAIR, {"text": TEXT}], tokenizer, add_special_tokens=False)
    assert dataset[0]["input_ids"] == _ids(tokenizer, PAIR["input"]) + _ids(tokenizer, PAIR["output"])
    assert dataset[1]["input_ids"] == _ids(tokenizer, TEXT)


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
def test_bos_stands_once_at_the_front_and_eos_once_at_the_end(backend, template):
    """Also with a tokenizer that itself puts eos behind each text: none may stand between input and output."""
    tokenizer = _tokenizer(backend, template)
    pair, text, no_input = CollieDatasetForTraining([PAIR, {"text": TEXT}, {"input": "", "output": "a b"}], tokenizer)
    given, wanted = _ids(tokenizer, PAIR["input"]), _ids(tokenizer, PAIR["output"])
    assert pair["input_ids"] == [0, *given, *wanted, 1]
    assert pair["labels"] == [-100] * (1 + len(given)) + [*wanted, 1]
    assert text["labels"] == text["input_ids"] == [0, *_ids(tokenizer, TEXT), 1]
    assert no_input["labels"] == [-100, *_ids(tokenizer, "a b"), 1]


def test_a_tokenizer_without_eos_is_reported(backend, caplog):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend))
    row = CollieDatasetForTraining([PAIR], tokenizer)[0]
    assert row["labels"][-1] == _ids(tokenizer, PAIR["output"])[-1]
    assert "no eos_token" in caplog.text


def test_order_is_kept_over_chunks_and_kinds(tokenizer):
    """More rows than are tokenised at once, of three kinds in turn."""
    rows = []
    for i in range(2500):
        kinds = [{"text": f"row {i}"}, {"input": f"{i} ", "output": "out"}, {"input_ids": [5, 6, i], "number": i}]
        rows.append(kinds[i % 3])
    dataset = CollieDatasetForTraining((row for row in rows), tokenizer)
    assert len(dataset) == 2500
    for i in (0, 1, 2, 1023, 1024, 1025, 2047, 2048, 2499):
        row = dataset[i]
        if i % 3 == 0:
            assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == f"row {i}"
        elif i % 3 == 1:
            assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == f"{i} out"
        else:
            assert row == {"input_ids": [5, 6, i], "attention_mask": [1, 1, 1], "labels": [5, 6, i], "number": i}
        assert ("number" in row) == (i % 3 == 2)


def test_processed_rows_are_taken_as_they_are():
    rows = [
        {
            "input_ids": torch.tensor([3, 4, 5]),
            "labels": np.array([-100, 4, 5]),
            "attention_mask": (1, 1, 1),
            "id": "a",
        },
        {"input_ids": [7, 8, 0], "attention_mask": [True, True, False], "id": "b"},
        {"input_ids": [7, 8], "labels": None, "id": "c"},
    ]
    first, second, third = CollieDatasetForTraining(rows)
    assert first == {"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1], "labels": [-100, 4, 5], "id": "a"}
    # without labels the tokens that count are targets, and padding is none
    assert second == {"input_ids": [7, 8, 0], "attention_mask": [1, 1, 0], "labels": [7, 8, -100], "id": "b"}
    assert third == {"input_ids": [7, 8], "attention_mask": [1, 1], "labels": [7, 8], "id": "c"}
    assert all(type(i) is int for row in (first, second) for name in ("input_ids", "labels") for i in row[name])


def test_a_slice_is_a_dataset_over_the_same_memory(tokenizer):
    class Mine(CollieDatasetForTraining):
        pass

    dataset = Mine([{"text": f"row {i}"} for i in range(10)], tokenizer)
    part = dataset[2:8][::-2]
    assert type(part) is Mine and len(part) == 3
    assert [part[i] for i in range(3)] == [dataset[i] for i in (7, 5, 3)]
    assert part[-1] == dataset[3] and part[np.int64(0)] == dataset[7]
    assert part._mixture is dataset._mixture
    with pytest.raises(IndexError):
        part[3]
    assert len(dataset) == 10


def test_shuffle_mixes_once_by_seed(tokenizer):
    rows = [{"text": f"row {i}"} for i in range(50)]
    plain = list(CollieDatasetForTraining(rows, tokenizer))
    one, same, other = (list(CollieDatasetForTraining(rows, tokenizer, shuffle=True, seed=s)) for s in (1, 1, 2))
    assert one == same != other and one != plain
    assert sorted(map(str, one)) == sorted(map(str, plain))


def test_max_length_cuts_from_the_right(tokenizer):
    whole = CollieDatasetForTraining([PAIR], tokenizer)[0]
    length = len(_ids(tokenizer, PAIR["input"])) + 1
    cut = CollieDatasetForTraining([PAIR], tokenizer, max_length=length)[0]
    assert cut == {name: values[:length] for name, values in whole.items()}
    processed = [{"input_ids": [1, 2, 3], "position_ids": [0, 1, 2], "names": ["a", "b", "c"], "length": 3}]
    row = CollieDatasetForTraining(processed, max_length=2)[0]
    assert row["position_ids"] == [0, 1] and row["names"] == ["a", "b", "c"] and row["length"] == 3


def test_max_length_that_leaves_no_target(tokenizer):
    """The input fills it: the row could only give a loss of nothing."""
    length, uncut = len(_ids(tokenizer, PAIR["input"])), len(CollieDatasetForTraining([PAIR], tokenizer)[0]["labels"])
    with pytest.raises(DataError, match=rf"row 1 has no target token: max_length={length} cut it from {uncut} tokens"):
        CollieDatasetForTraining([{"text": "a b c"}, PAIR], tokenizer, max_length=length)
    for wrong in (0, 1, -2):
        with pytest.raises(DataError, match=f"max_length={wrong}"):
            CollieDatasetForTraining([PAIR], tokenizer, max_length=wrong)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a text", "row 1 is a str, not a dict"),
        ({"prompt": "a", "answer": "b"}, r"row 1 has the keys \['answer', 'prompt'\]: a row needs 'text', or 'input'"),
        ({"input": "a"}, r"row 1 has the keys \['input'\]"),
        ({"text": 3}, r"'text' of row 1 is a int \('3'\): a string is needed"),
        ({"input": "a", "output": None}, "'output' of row 1 is a NoneType"),
        ({"input_ids": [1, 2], "labels": [1]}, "row 1 has 2 input_ids and 1 labels"),
        ({"input_ids": [1, 2], "attention_mask": [1, 1, 1]}, "row 1 has 2 input_ids and 3 attention_mask"),
        ({"input_ids": [[1, 2]]}, r"input_ids of row 1 is shape \(1, 2\): a flat list"),
        ({"input_ids": [1.5, 2.0]}, "input_ids of row 1 is list"),
        ({"input_ids": "12"}, "input_ids of row 1 is str '12'"),
        ({"input_ids": [1, [2]]}, "input_ids of row 1 is list"),
        ({"input_ids": [4, -1]}, "row 1 has the token id -1"),
        ({"input_ids": [4, 2**40]}, "row 1 has a value beyond 32 bits in input_ids: 1099511627776"),
        ({"input_ids": [4, 5], "labels": [-100, -100]}, "row 1 has no target token: all of its 2 labels are -100"),
        ({"input_ids": [4, 5], "labels": [4, -100]}, "its only target is its first token of 2"),
        ({"input_ids": [4]}, "its only target is its first token of 1"),
        ({"input_ids": []}, "row 1 has no target token: it is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tokenizer, row, sentence):
    good = {"text": "a b c"}
    with pytest.raises(DataError, match=sentence):
        CollieDatasetForTraining([good, row], tokenizer)


def test_text_without_a_tokenizer():
    with pytest.raises(DataError, match=r"row 1 is text .* no tokenizer: CollieDatasetForTraining\(rows, tokenizer\)"):
        CollieDatasetForTraining([{"input_ids": [1, 2]}, PAIR])


def test_no_rows_and_no_file():
    with pytest.raises(DataError, match="no rows"):
        CollieDatasetForTraining([])
    with pytest.raises(DataError, match=r"rows.json is not a file: give a .json, .jsonl, .csv or .parquet file"):
        CollieDatasetForTraining("rows.json")


@pytest.mark.parametrize("lines", [False, True])
def test_from_json(tokenizer, tmp_path, lines):
    rows = [
        PAIR,
        {"text": "大规模语言模型 \u2028 second"},
    ]  # a line separator that json leaves alone is no end of a row
    dump = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / ("rows.jsonl" if lines else "rows.json")
    path.write_text("\n".join([*dump, ""]) if lines else f"[{', '.join(dump)}]", encoding="utf-8")
    dataset = CollieDatasetForTraining.from_json(path, tokenizer=tokenizer, max_length=8)
    assert list(dataset) == list(CollieDatasetForTraining(rows, tokenizer, max_length=8))


def test_one_line_of_jsonl_is_one_row(tokenizer, tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps(PAIR))
    assert len(CollieDatasetForTraining.from_json(tmp_path / "one.jsonl", tokenizer)) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("hello", "begins with 'h'"),
        ('[{"text": 1', "no valid JSON: line 1"),
        ('{"text": "a b"}\n{"text"', "line 2 is no JSON object"),
        ('{\n"text": "a"}', "line 1 is no JSON object .*a list of rows and begins with"),
        ('[{"text": "a b"}, {"txt": "b"}]', r"rows.json: row 1 has the keys \['txt'\]"),
        ("[1]", "rows.json: row 0 is a int"),
    ],
)
def test_a_json_file_that_cannot_be_used(tokenizer, tmp_path, text, sentence):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        CollieDatasetForTraining.from_json(tmp_path / "rows.json", tokenizer)
    with pytest.raises(DataError, match=r"nowhere.json is not a file"):
        CollieDatasetForTraining.from_json(tmp_path / "nowhere.json", tokenizer)


@pytest.mark.parametrize("save", ["save_processed", "save_propressed"])
def test_save_and_load(tokenizer, tmp_path, save):
    rows = [{"text": f"row {i}"} for i in range(20)]
    rows.append({"input_ids": [3, 4], "labels": [-100, 4], "id": "x", "weights": torch.tensor([0.5, 1.0])})
    part = CollieDatasetForTraining(rows, tokenizer, shuffle=True)[3:]
    getattr(part, save)(tmp_path / "a" / "b")
    loaded = CollieDatasetForTraining.from_processed(tmp_path / "a" / "b")
    expected = [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in part]
    assert len(loaded) == 18 and list(loaded) == expected
    shuffled = CollieDatasetForTraining.from_processed(tmp_path / "a" / "b", shuffle=True, seed=3)
    assert list(shuffled) != expected and sorted(map(str, shuffled)) == sorted(map(str, expected))
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["collie-dataset.safetensors"]


def test_what_cannot_be_saved_or_loaded(tmp_path):
    dataset = CollieDatasetForTraining([{"input_ids": [3, 4], "thing": object()}])
    with pytest.raises(DataError, match="a object cannot be saved"):
        dataset.save_processed(tmp_path)
    with pytest.raises(DataError, match=r"holds no collie-dataset.safetensors.*pickle"):
        CollieDatasetForTraining.from_processed(tmp_path)
    CollieDatasetForTraining([{"input_ids": [3, 4]}]).save_processed(tmp_path)
    file = tmp_path / "collie-dataset.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        CollieDatasetForTraining.from_processed(tmp_path)
    # offsets are the last 16 bytes or stand before the tokens: make the row longer than the tokens there are
    file.write_bytes(whole.replace((2).to_bytes(8, "little"), (3).to_bytes(8, "little")))
    with pytest.raises(DataError, match="not consistent"):
        CollieDatasetForTraining.from_processed(tmp_path)


def test_a_dataset_can_be_pickled(tokenizer):
    """Data workers that are spawned get it so."""
    dataset = CollieDatasetForTraining([PAIR] * 3, tokenizer)[1:]
    assert list(pickle.loads(pickle.dumps(dataset))) == list(dataset)


def test_check_rows():
    good = {"input_ids": [1, 2], "labels": [-100, 2]}
    check_rows([good, {"input_ids": torch.tensor([1, 2])}])
    for bad, sentence in (
        ({"input_ids": [1, 2], "labels": [1, -100]}, "row 2 has no target token"),
        ({"input_ids": [1, 2], "labels": [1]}, "row 2 has 2 input_ids and 1 labels"),
        (
            {"text": "a"},
            r"row 2 has the keys \['text'\] and no input_ids: .*CollieDatasetForTraining\(rows, tokenizer\)",
        ),
        ({"ids": [1]}, r"row 2 has the keys \['ids'\]"),
    ):
        with pytest.raises(DataError, match=sentence):
            check_rows([good, good, bad])
        check_rows([good, good, bad], limit=2)
    with pytest.raises(DataError, match="no rows"):
        check_rows([])


def test_check_rows_does_not_read_a_checked_dataset_again(monkeypatch):
    dataset = CollieDatasetForTraining([{"input_ids": [1, 2]}])
    monkeypatch.setattr(type(dataset), "__getitem__", None)
    check_rows(dataset)
