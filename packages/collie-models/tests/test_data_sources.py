"""Sources of rows: each kind gives the rows that it holds, and one that cannot be read says what and where."""

import json
import sys

import pytest
from data_toys import byte_tokenizer, text_of

import collie.data._files as files
from collie.data import CollieDatasetForGeneration, CollieDatasetForTraining, Source
from collie.interfaces import DataError, MissingExtraError

ROWS = [{"input": f'{number}, "so"\n', "output": "大规模 \u2028 x"} for number in range(5)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLIE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def expected(tokenizer):
    return list(CollieDatasetForTraining(ROWS, tokenizer))


def _json(path):
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")


def _jsonl(path):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS), encoding="utf-8-sig")


def _csv(path):
    def quoted(text):
        return '"' + text.replace('"', '""') + '"'

    lines = ["output,input", *(f"{quoted(row['output'])},{quoted(row['input'])}" for row in ROWS)]
    path.write_bytes("\r\n".join([*lines, ""]).encode())


def _parquet(path):
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(ROWS), path, row_group_size=2)


@pytest.mark.parametrize(
    ("suffix", "write"), [("json", _json), ("jsonl", _jsonl), ("csv", _csv), ("parquet", _parquet)]
)
def test_a_file_gives_its_rows(tokenizer, expected, tmp_path, suffix, write):
    path = tmp_path / f"rows.{suffix}"
    write(path)
    for data in (path, str(path), Source(path), [Source(path)]):
        assert list(CollieDatasetForTraining(data, tokenizer)) == expected
    part = CollieDatasetForTraining(Source(path, max_rows=3), tokenizer)
    assert list(part) == expected[:3]
    [source] = part.report.sources
    assert (source.name, source.format, source.rows) == (str(path), "input/output", 3)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        " [ ] ",
        "[1, 23 ,-4.5e3]",
        '[{"a": [1, {"b": "]"}]}, "x,]", null, true]',
        '\n[\n {"a": "é"},\r\n\t{"a": 2}\n]\n',
        "[[], [[]], {}]",
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_a_json_list_is_read_in_pieces_as_json_reads_it_whole(tmp_path, monkeypatch, text, piece):
    """Wherever a piece ends: within a number, a string, an escape, between two items."""
    monkeypatch.setattr(files, "_PIECE", piece)
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8", newline="")
    assert list(files.json_rows(path)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[{"a": 1}\n{"a": 2}]', "line 2, expecting ','"),
        ('[{"a": 1},\n\n]', "line 3, Expecting value"),
        ('[{"a": 1},\n{"a":\n\n x}]', "line 4, Expecting value"),
        ('[{"a": 1}]\n\n[2]', "line 3, something stands behind the list"),
        ('[{"a": 1},\n{"a": "b', "line 2, Unterminated string"),
        ("[1, 2", "line 1, expecting ','"),
    ],
)
@pytest.mark.parametrize("piece", [1, 1000])
def test_a_json_list_that_is_none_is_told_its_line(tmp_path, monkeypatch, text, sentence, piece):
    monkeypatch.setattr(files, "_PIECE", piece)
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"rows.json is no valid JSON: {sentence}"):
        list(files.json_rows(path))


def test_a_line_of_jsonl_is_read_when_it_is_asked_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n{"text"\n')
    rows = files.json_rows(path)
    assert next(rows) == {"text": "a"} and next(rows) == {"text": "b"}
    with pytest.raises(DataError, match=r"rows.jsonl line 4 is no JSON object"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("text,id\na,1\nb\n", "line 3 has 1 values for the 2 columns"),
        ("text,id\na,1,2,3\n", "line 2 has 4 values for the 2 columns"),
        ('text\n"a" b"\n', "is no valid CSV behind line 1"),
        ("", "no rows"),
        ("text\n", "no rows"),
    ],
)
def test_a_csv_file_that_cannot_be_used(tokenizer, tmp_path, text, sentence):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"rows.csv.*{sentence}"):
        CollieDatasetForTraining(path, tokenizer)


def test_a_csv_value_may_be_a_long_document(tokenizer, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "a" * 200_000 + "\n")
    assert len(CollieDatasetForTraining(path, tokenizer)[0]["input_ids"]) == 200_002


def test_files_that_are_none(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"gone.parquet is not a file"):
        CollieDatasetForTraining(tmp_path / "gone.parquet", tokenizer)
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl is not UTF-8"):
        CollieDatasetForTraining(tmp_path / "latin.jsonl", tokenizer)
    with pytest.raises(DataError, match=r"holds no collie-dataset.safetensors"):
        CollieDatasetForTraining(tmp_path, tokenizer)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"was written by `datasets`: give Source\(datasets.load_from_disk"):
        CollieDatasetForTraining(tmp_path, tokenizer)


def test_parquet_that_cannot_be_read(tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"rows.parquet cannot be read as parquet"):
        CollieDatasetForTraining(path, tokenizer)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'collie-models\[datasets\]'"):
        CollieDatasetForTraining(path, tokenizer)


def test_a_split_of_several(tokenizer, expected):
    """A DatasetDict is a dict of datasets, and so is a dict of lists."""
    data = {"train": ROWS, "test": ROWS[:1]}
    assert list(CollieDatasetForTraining(Source(data, split="train"), tokenizer)) == expected
    for split, sentence in ((None, "mapping of 'train', 'test': say which"), ("dev", "'dev' is not in the data")):
        with pytest.raises(DataError, match=sentence):
            Source(data, split=split)
    with pytest.raises(DataError, match="which has no splits"):
        Source(ROWS, split="train")


def test_datasets_of_datasets(tokenizer, expected):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    for data in (
        whole,
        Source(datasets.DatasetDict({"a": whole, "b": whole.select([0])}), split="a"),
        whole.to_iterable_dataset(),
    ):
        assert list(CollieDatasetForTraining(data, tokenizer)) == expected
    assert list(CollieDatasetForTraining(Source(whole, max_rows=2), tokenizer)) == expected[:2]


def test_a_stream_is_read_to_max_rows_and_no_further(tokenizer, expected):
    read = []

    def rows():
        for row in ROWS:
            read.append(row)
            yield row
        raise AssertionError("the end was asked for")

    assert list(CollieDatasetForTraining(Source(rows(), max_rows=4), tokenizer)) == expected[:4]
    assert len(read) == 4


def test_a_saved_folder_is_a_source(tokenizer, expected, tmp_path):
    CollieDatasetForTraining(ROWS, tokenizer).save_processed(tmp_path / "saved")
    assert list(CollieDatasetForTraining(tmp_path / "saved")) == expected
    cut = CollieDatasetForTraining(Source(tmp_path / "saved", max_rows=2), max_length=14)
    assert [row["input_ids"] for row in cut] == [row["input_ids"][:14] for row in expected[:2]]
    assert cut.report.truncated == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weight": 0}, "weight=0 of a source: give a number above 0, or leave the source out"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"max_rows": 0}, "max_rows=0 of a source: give at least 1"),
    ],
)
def test_a_source_that_gives_nothing(options, sentence):
    with pytest.raises(DataError, match=sentence):
        Source(ROWS, **options)


def test_what_is_no_source(tokenizer):
    for data, sentence in (
        (7, "a int has no rows"),
        ([Source(ROWS), ROWS], "item 1 of the sources is a list"),
        ({"text": ["a"]}, "mapping of 'text': say which"),
    ):
        with pytest.raises(DataError, match=sentence):
            CollieDatasetForTraining(data, tokenizer)


def test_a_bad_row_is_named_by_its_source_and_index(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a b"}\n{"text": null}\n')
    with pytest.raises(DataError, match=r"rows.jsonl: 'text' of row 1 is a NoneType"):
        CollieDatasetForTraining(path, tokenizer)
    with pytest.raises(DataError, match=r"^mine: 'text' of row 1"):
        CollieDatasetForTraining(Source(path, name="mine"), tokenizer)
    with pytest.raises(DataError, match=r"^source 1: row 2 has no target token"):
        CollieDatasetForTraining([Source(ROWS), Source([{"text": "ab"}, {"text": "c"}, {"input_ids": []}])], tokenizer)


def test_bad_rows_are_skipped_and_counted_on_request(tokenizer):
    rows = [{"text": "ab"}, {"txt": "b"}, 3, {"text": "cd"}, {"input": "abcdefgh", "output": "x"}, {"text": "e" * 20}]
    dataset = CollieDatasetForTraining(rows, tokenizer, max_length=6, on_bad_row="skip")
    assert [text_of(row, tokenizer) for row in dataset] == ["<s>ab</s>", "<s>cd</s>", "<s>eeeee"]
    [source] = dataset.report.sources
    assert [index for index, _ in source.skipped] == [1, 2, 4]
    assert "row 4 has no target token: max_length=6 cut it from 11 tokens" in source.skipped[2][1]
    assert source.truncated == 1
    with pytest.raises(DataError, match=r"none of the 2 rows can be used.*row 0 has the keys \['txt'\]"):
        CollieDatasetForTraining([{"txt": 1}, {"txt": 2}], tokenizer, on_bad_row="skip")
    with pytest.raises(DataError, match="on_bad_row='ignore': give 'raise' or 'skip'"):
        CollieDatasetForTraining(rows, tokenizer, on_bad_row="ignore")


def test_rows_beyond_max_rows_may_be_bad(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a b"}\n{"text": "c"}\n{"text": 3}\n')
    for data in (path, [json.loads(line) for line in path.read_text().splitlines()]):
        dataset = CollieDatasetForTraining(Source(data, max_rows=2), tokenizer)
        assert len(dataset) == 2 and dataset.report.skipped == 0


def test_a_tokenizer_or_a_template_that_is_missing_is_the_reason(tokenizer):
    messages = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(DataError, match=r"^row 0 is text .* no tokenizer: CollieDatasetForTraining\(rows, tokenizer\)"):
        CollieDatasetForTraining(ROWS)
    with pytest.raises(DataError, match=r"none of the 5 rows can be used.*row 0 is text"):
        CollieDatasetForTraining(ROWS, on_bad_row="skip")
    for kind in (CollieDatasetForTraining, CollieDatasetForGeneration):
        with pytest.raises(DataError, match=r"row 0 is a conversation .*has no chat template: .*chat_template"):
            kind(messages, tokenizer)


def test_a_cache_of_what_cannot_be_known_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"cache=True: what the dataset contains .generator. cannot be told"):
        CollieDatasetForTraining((row for row in ROWS), tokenizer, cache=True)
