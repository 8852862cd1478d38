"""Mixing sources: how often an epoch reads a row, what a change of weights costs, and what the report counts."""

import json
from collections import Counter

import numpy as np
import pytest
from data_toys import byte_tokenizer, text_of

from collie.data import CollieDatasetForTraining, Source
from collie.data._encode import TextEncoder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLIE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def _rows(letter, count):
    return [{"text": f"{letter}{number}"} for number in range(count)]


def _texts(dataset, tokenizer):
    return [text_of(row, tokenizer)[3:-4] for row in dataset]


def test_a_weight_is_how_often_an_epoch_reads_a_row(tokenizer):
    sources = [
        Source(_rows("a", 10), weight=2.5),
        Source(_rows("b", 10), weight=0.3),
        Source(_rows("c", 4), max_rows=3),
    ]
    counts = Counter(_texts(CollieDatasetForTraining(sources, tokenizer), tokenizer))
    assert Counter(counts[f"a{number}"] for number in range(10)) == {2: 5, 3: 5}
    assert Counter(counts[f"b{number}"] for number in range(10)) == {0: 7, 1: 3}
    assert [counts[f"c{number}"] for number in range(4)] == [1, 1, 1, 0]


def test_without_shuffle_a_source_follows_the_other_in_its_own_order(tokenizer):
    dataset = CollieDatasetForTraining([Source(_rows("a", 3)), Source(_rows("b", 2), weight=2)], tokenizer)
    assert _texts(dataset, tokenizer) == ["a0", "a1", "a2", "b0", "b1", "b0", "b1"]
    assert [dataset[index] for index in range(7)] == list(dataset)
    assert _texts(dataset[::-3], tokenizer) == ["b1", "b0", "a0"]
    assert dataset[-1] == dataset[6] == dataset[np.int64(4)]
    assert dataset.lengths.tolist() == [4] * 7


def test_a_larger_weight_reads_what_the_smaller_read_and_more(tokenizer):
    def drawn(weight, seed=1):
        return set(
            _texts(CollieDatasetForTraining(Source(_rows("a", 50), weight=weight), tokenizer, seed=seed), tokenizer)
        )

    assert drawn(0.2) < drawn(0.5) < drawn(0.9) < drawn(1.0)
    assert drawn(0.5) == drawn(0.5) != drawn(0.5, seed=2)
    assert len(drawn(0.001)) == 1  # a source that is asked for is there


def test_shuffle_mixes_the_sources_by_seed(tokenizer):
    sources = [Source(_rows("a", 30)), Source(_rows("b", 30), weight=0.5)]
    plain, one, same, other = (
        _texts(CollieDatasetForTraining(sources, tokenizer, shuffle=shuffle, seed=seed), tokenizer)
        for shuffle, seed in ((False, 1), (True, 1), (True, 1), (True, 2))
    )
    assert one == same and sorted(one) == sorted(plain) and one != plain != other
    assert {text[0] for text in one[:10]} == {"a", "b"}


def test_a_change_of_weights_or_rows_tokenises_nothing_again(tokenizer, tmp_path, monkeypatch):
    """Each source has its own tokens; a mixture is an order of them."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _rows("a", 20)))
    encoded = []
    encode = TextEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, rows, indices: encoded.extend(rows) or encode(self, rows, indices)
    )

    def mixed(weight, max_rows, **options):
        sources = [Source(path, weight=weight, max_rows=max_rows), Source(_rows("b", 10), name="b")]
        return CollieDatasetForTraining(sources, tokenizer, cache=True, processes=1, **options)

    first = mixed(1.0, None)
    assert len(encoded) == 30
    assert len(mixed(0.5, None)) == 20 and len(mixed(3.0, 5)) == 25 and len(mixed(1.0, None, shuffle=True)) == 30
    assert len(encoded) == 30
    assert list(mixed(1.0, None)) == list(first)
    mixed(1.0, None, max_length=3)  # other tokens
    assert len(encoded) == 60


def test_a_mixture_is_saved_in_its_order(tokenizer, tmp_path):
    """Tables of several kinds: of text, of rows with a mask and labels of their own, and with further fields."""
    processed = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0], "labels": [-100, 9, -100], "id": "x"},
        {"input_ids": [8, 9], "id": "y"},
    ]
    sources = [Source(_rows("a", 5), weight=1.5), Source(processed), Source(_rows("b", 2))]
    dataset = CollieDatasetForTraining(sources, tokenizer, shuffle=True)
    dataset[2:].save_processed(tmp_path / "saved")
    loaded = CollieDatasetForTraining.from_processed(tmp_path / "saved")
    assert list(loaded) == list(dataset)[2:] and len(loaded) == len(dataset) - 2
    texts = CollieDatasetForTraining([Source(_rows("a", 2)), Source(_rows("b", 2))], tokenizer)
    texts.save_processed(tmp_path / "texts")
    assert list(CollieDatasetForTraining.from_processed(tmp_path / "texts")) == list(texts)


def test_the_report_counts_what_an_epoch_reads(tokenizer):
    pairs = [
        {"input": "abc", "output": "defghij"},
        {"input": "abc", "output": "d"},
        {"input": "abcdefghij", "output": "k"},
    ]
    texts = [{"text": "x" * 9}, {"text": "y"}]
    dataset = CollieDatasetForTraining(
        [Source(pairs, name="pairs", weight=2), Source(texts)], tokenizer, max_length=8, on_bad_row="skip"
    )
    report = dataset.report
    first, second = report.sources
    # <s>abc | defg, cut within the answer; <s>abc | d</s>; each twice
    assert (first.name, first.format, first.usable, first.rows, first.tokens, first.targets) == (
        *("pairs", "input/output"),
        *(2, 4, 2 * (8 + 6), 2 * (4 + 2)),
    )
    assert (first.truncated, first.inside_turn, len(first.skipped)) == (2, 2, 1)
    assert first.lengths[0] == 6 and first.lengths[100] == 8
    # a text has no answer that a cut could end
    assert (second.name, second.tokens, second.truncated, second.inside_turn) == ("source 1", 8 + 3, 1, 0)
    assert (report.rows, report.tokens, report.truncated, report.inside_turn, report.skipped) == (6, 39, 3, 2, 1)
    told = json.loads(json.dumps(report.as_dict()))
    assert told["sources"][0]["skipped"][0]["index"] == 2 and told["lengths"]["100"] == 8
    lines = str(report).splitlines()
    assert lines[0].split()[:2] == ["source", "format"] and lines[1].split()[:4] == ["pairs", "input/output", "2", "4"]
    assert lines[3].startswith("all ") and lines[4].startswith("skipped: pairs: row 2 has no target token")


def test_a_slice_reports_itself(tokenizer):
    dataset = CollieDatasetForTraining([Source(_rows("a", 5)), Source(_rows("b", 5))], tokenizer)[3:6]
    assert [source.rows for source in dataset.report.sources] == [2, 1]
    assert dataset.report.tokens == int(dataset.lengths.sum())
