"""Recipes in YAML, and `collie-train inspect`: what it shows of a data set, as a person and as a program reads it."""

import dataclasses
import json
import os
import subprocess
import sys

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from collie.interfaces import ConfigError
from collie.recipes import DataRecipe, SourceRecipe, inspect_data, read_recipe
from collie.recipes.cli import main

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 四."},
    {"role": "user", "content": "Sure?\x1b[2J"},
    {"role": "assistant", "content": "Yes."},
]
BAD = {"messages": TALK[:1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, rows in several forms, and recipes."""
    folder = tmp_path_factory.mktemp("data")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["What is 2 + 2? It is 4. Sure? Yes. user assistant"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder / "tokenizer")
    _write(folder / "chat.jsonl", [{"messages": TALK}, BAD, *[{"messages": TALK[:2]}] * 3])
    _write(folder / "good.jsonl", [{"messages": TALK}] * 4)
    _write(folder / "pairs.jsonl", [{"input": "What is 2 + 2? ", "output": "It is 4." * n} for n in range(1, 6)])
    split = datasets.Dataset.from_list([{"messages": TALK}])
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(folder / "arrow")
    (folder / "recipe.yaml").write_text(
        "tokenizer: tokenizer\nmax_length: 60\non_bad_row: skip\n"
        "data:\n  - {path: chat.jsonl, name: chat}\n  - {path: pairs.jsonl, name: pairs, weight: 2}\n"
    )
    return folder


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Tokens that are kept on disk lie in the test's own folder."""
    monkeypatch.setenv("COLLIE_CACHE", str(tmp_path / "cache"))


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _inspect(capsys, *arguments):
    """The exit status and what was printed."""
    status = main(["inspect", *map(str, arguments)])
    return status, capsys.readouterr()


# The command


def test_tokens_of_a_row_with_marks(folder, capsys, monkeypatch):
    """Brackets around what is trained, bars between tokens, and nothing that a terminal would act on."""
    status, printed = _inspect(capsys, folder / "good.jsonl", "--tokenizer", folder / "tokenizer")
    assert status == 0
    text = printed.out.replace("│", "")
    assert "<|im_start|>user↵\nWhat is 2 + 2?<|im_end|>↵\n<|im_start|>assistant↵\n⟦It is 四.<|im_end|>⟧↵\n" in text
    assert "user↵\nSure?\\x1b[2J<|im_end|>↵\n" in text and "⟦Yes.<|im_end|>⟧↵" in text and "\x1b" not in text
    assert "│<|im_end|>⟧↵" in printed.out and "<|im_start|>│" in printed.out
    assert printed.out.splitlines()[0].startswith(f"row 0 of {folder / 'good.jsonl'}: ")
    assert "tokens a row: 0%: " in printed.out and "messages" in printed.out


def test_all_that_there_is_to_know_as_json(folder, capsys):
    status, printed = _inspect(capsys, folder / "recipe.yaml", "--json", "--row", 2)
    found = json.loads(printed.out)
    assert status == 0 and found["refused"] is None
    assert found["rows"] == 4 + 2 * 5 and found["skipped"] == 1
    chat, pairs = found["sources"]
    assert (chat["name"], chat["format"], chat["rows"], chat["weight"]) == ("chat", "messages", 4, 1.0)
    assert (pairs["name"], pairs["format"], pairs["rows"], pairs["weight"]) == ("pairs", "input/output", 10, 2.0)
    assert chat["skipped"][0]["index"] == 1 and "no message has the role 'assistant'" in chat["skipped"][0]["reason"]
    assert chat["truncated"] == chat["inside_turn"] == 0 and chat["lengths"]["100"] >= chat["lengths"]["0"] > 0
    row = found["row"]
    assert (row["source"], row["number"]) == ("chat", 2)  # row 1 cannot be used, and counts
    assert "".join(row["texts"]) == (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is 四.<|im_end|>\n"
    )
    trained = [text for text, target in zip(row["texts"], row["trained"], strict=True) if target]
    assert "".join(trained) == "It is 四.<|im_end|>"
    assert len(row["ids"]) == row["uncut"] == len(row["texts"])


def test_what_a_row_was_left_out_for(folder, capsys):
    status, printed = _inspect(capsys, folder / "recipe.yaml", "--row", 1)
    assert status == 0 and printed.out.startswith("row 1 of chat is left out: row 1: no message has the role")


def test_a_run_that_would_be_refused_is_told_apart(folder, capsys, tmp_path):
    """By its status, for programs: 1 for a bad row that is not to be skipped, and where no end of a turn is trained."""
    status, printed = _inspect(capsys, folder / "chat.jsonl", "--tokenizer", folder / "tokenizer")
    assert status == 1 and "A run would be refused: row 1: no message has the role 'assistant'" in printed.out
    template = tmp_path / "endless.jinja"
    template.write_text(TEMPLATE.replace("<|im_end|>\n", "\n"))
    status, printed = _inspect(
        capsys, folder / "good.jsonl", "--tokenizer", folder / "tokenizer", "--chat-template", template, "--json"
    )
    assert status == 1 and "would not learn to stop" in json.loads(printed.out)["refused"]


def test_options_go_over_the_recipe(folder, capsys):
    _, printed = _inspect(capsys, folder / "recipe.yaml", "--json", "--train-on", "0", "--max-length", 20, "--rows", 1)
    found = json.loads(printed.out)
    (chat, pairs), row = found["sources"], found["row"]
    assert (chat["rows"], pairs["rows"]) == (1, 2) and chat["truncated"] == 1 == chat["inside_turn"]
    assert len(row["ids"]) == 20 < row["uncut"] and row["trained"][-1]
    _, printed = _inspect(capsys, folder / "recipe.yaml", "--source", "pairs", "--row", 0)
    assert "row 0 of pairs: " in printed.out and "⟦It is 4.<|im_end|>⟧" in printed.out.replace("│", "")


def test_a_split_of_a_folder_of_datasets(folder, capsys):
    arguments = (folder / "arrow", "--tokenizer", folder / "tokenizer")
    status, printed = _inspect(capsys, *arguments, "--split", "test", "--train-on", "last", "--format", "messages")
    assert status == 0 and "⟦Yes.<|im_end|>⟧" in printed.out.replace("│", "") and "⟦It" not in printed.out
    status, printed = _inspect(capsys, *arguments)
    assert status == 2 and "'train', 'test'" in printed.err


def test_a_terminal_without_unicode(folder):
    """Brackets and escapes in ASCII; as a process, since an encoding is the process's own."""
    command = [sys.executable, "-c", "import sys; from collie.recipes.cli import main; sys.exit(main())", "inspect"]
    ended = subprocess.run(
        [*command, str(folder / "good.jsonl"), "--tokenizer", str(folder / "tokenizer")],
        capture_output=True,
        timeout=100,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert ended.returncode == 0, ended.stderr
    text = ended.stdout.decode("ascii").replace("<|im_end|>", "END").replace("|", "")
    assert "[[It is \\u56db.END]]\\n\n" in text


def test_help_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from collie.recipes.cli import main\n"
        "try: main(['inspect', '--help'])\n"
        "finally: print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout.endswith("set()\n") and "DATA_OR_RECIPE" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.jsonl"], "no tokenizer: give `tokenizer`"),
        (["good.jsonl", "--tokenizer", "nowhere"], "the tokenizer 'nowhere' cannot be loaded"),
        (["none.jsonl", "--tokenizer", "tokenizer"], "none.jsonl is not a file"),
        (["good.jsonl", "--tokenizer", "tokenizer", "--row", "4"], "has no row 4: 4 were looked at"),
        (["recipe.yaml", "--source", "char"], "there is no source 'char': the sources are 'chat', 'pairs'"),
        (["recipe.yaml", "--format", "text"], "--format is for a file of rows"),
        (["none.yaml"], "none.yaml does not exist"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    status, printed = _inspect(capsys, *arguments)
    assert status == 2 and words in printed.err and printed.err.startswith("collie-train: ") and not printed.out


# Recipes


def test_a_recipe_and_a_larger_one(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Larger(DataRecipe):
        epochs: int = 1

    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: m\ntrain_on: [0, -1]\nchat_template_kwargs: {enable_thinking: false}\n"
        "data: [{path: a.jsonl, weight: 2, max_rows: 3}]\n"
    )
    wanted = {
        "model": "m",
        "train_on": (0, -1),
        "chat_template_kwargs": {"enable_thinking": False},
        "data": (SourceRecipe(path="a.jsonl", weight=2.0, max_rows=3),),
    }
    assert read_recipe(file, DataRecipe) == DataRecipe(**wanted)
    file.write_text(file.read_text() + "epochs: 3\n")
    assert read_recipe(file, Larger) == Larger(**wanted, epochs=3)
    with pytest.raises(ConfigError, match=r"recipe.yaml: epochs is no key of a recipe"):
        read_recipe(file, DataRecipe)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: []\nmax_lenght: 3", "max_lenght is no key of a recipe. Did you mean 'max_length'?"),
        ("data: [{path: a, wieght: 2}]", r"data\[0\].wieght is no key of a recipe. Did you mean 'weight'?"),
        ("data: [{name: a}]", r"data\[0\].path is missing"),
        ("tokenizer: a", "data is missing"),
        ("data: a.jsonl", "data is 'a.jsonl': a list is needed"),
        ("data: []\nmax_length: many", "max_length is 'many': a whole number is needed"),
        ("data: []\nmax_length: true", r"max_length is True \(a bool\): a whole number is needed"),
        ("data: []\ntrain_on: first", "train_on is 'first': 'all' or 'last' or a list is needed"),
        ("data: []\ntrain_on: [a]", r"train_on\[0\] is 'a': a whole number is needed"),
        ("data: []\ntokenizer: 3", r"tokenizer is 3 \(a int\): text is needed"),
        ("- a", "the recipe is .*: names and values are needed"),
        ("data: [", "is no YAML"),
    ],
)
def test_a_recipe_that_is_wrong_is_told_where(tmp_path, text, words):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^{file}.*{words}"):
        read_recipe(file, DataRecipe)


def test_inspection_from_python(folder):
    recipe = read_recipe(folder / "recipe.yaml", DataRecipe)
    found = inspect_data(recipe, folder, limit=3)
    assert found.row.number == 0 and found.report.rows == 2 + 2 * 3 and found.refused is None
    with pytest.raises(ConfigError, match="data is empty"):
        inspect_data(dataclasses.replace(recipe, data=()), folder)


def test_the_first_rows_alone_are_tokenised(folder, tmp_path):
    """What is kept on disk is all of a file: to look at its first rows, nothing is."""
    recipe = read_recipe(folder / "recipe.yaml", DataRecipe)
    inspect_data(recipe, folder, limit=2)
    assert not list(tmp_path.rglob("*.safetensors"))
    inspect_data(recipe, folder)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
