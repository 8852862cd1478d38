"""The command collie-eval: the evaluators' own numbers, shown, written, and on several ranks."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, GenerationConfig

from collie.controller.evaluator import EvaluatorForClassification, EvaluatorForGeneration, EvaluatorForPerplexity
from collie.data import CollieDatasetForClassification, CollieDatasetForGeneration, CollieDatasetForPerplexity
from collie.evaluation import main
from collie.evaluation._launch import processes
from collie.evaluation._options import parse
from collie.interfaces import ConfigError
from collie.metrics import BleuMetric, ChrfMetric
from collie.models import CollieModelForCausalLM

GSM8K = pathlib.Path(__file__).parent / "data" / "gsm8k.jsonl"


@pytest.fixture
def answers(tmp_path) -> pathlib.Path:
    """Five rows of input and output."""
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()[:5]]
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "\n".join(json.dumps({"input": row["question"][:40], "output": row["answer"][:20]}) for row in rows)
    )
    return path


@pytest.fixture
def choices(tmp_path) -> pathlib.Path:
    """Five questions with two or three candidates."""
    path = tmp_path / "choices.jsonl"
    rows = [{"input": f"{n} + {n} =", "output": [str(2 * n), "7", "no"][: 2 + n % 2], "target": 0} for n in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(autouse=True)
def _no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLIE_CACHE", str(tmp_path / "cache"))


def _json(capfd, *words) -> dict:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_losses_and_texts_are_the_evaluators_own(checkpoint, answers, capfd):
    told = _json(
        capfd, "--model", checkpoint, "--data", answers, "--metric", "ppl,bleu,chrf", "--max-new-tokens", 8,
        "--batch-size", 2,
    )  # fmt: skip
    model, tokenizer = CollieModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    model.collie_config.eval_batch_size = 2
    perplexity = EvaluatorForPerplexity(model, CollieDatasetForPerplexity(answers, tokenizer)).eval()
    texts = EvaluatorForGeneration(
        model,
        CollieDatasetForGeneration(answers, tokenizer),
        tokenizer,
        {"bleu": BleuMetric(), "chrf": ChrfMetric()},
        generation_config=GenerationConfig(max_new_tokens=8),
    )
    assert told["results"] == pytest.approx({**perplexity, **texts.eval()})
    assert told["signatures"] == texts.signatures() and "tok:13a" in told["signatures"]["bleu"]
    assert told["rows"] == {"loss": 5, "text": 5}


@pytest.mark.parametrize("style", ["harness", "helm"])
def test_choices_and_samples(checkpoint, choices, tmp_path, style, capfd):
    samples = tmp_path / "new" / "samples.jsonl"
    told = _json(
        capfd, "--model", checkpoint, "--data", choices, "--metric", "acc,classify", "--style", style,
        "--samples", samples, "--max-rows", 4,
    )  # fmt: skip
    model, tokenizer = CollieModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    dataset = CollieDatasetForClassification(choices, tokenizer, style=style)[:4]
    expected = EvaluatorForClassification(model, dataset, tokenizer).eval()
    assert {name: told["results"][name] for name in expected} == expected
    assert set(told["results"]) == {*expected, "classify#f", "classify#pre", "classify#rec"}
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [row["target"] for row in rows] == ([0] * 4 if style == "harness" else ["A"] * 4)
    assert all(("+" in row["prompt"]) if style == "helm" else row["prompt"] is None for row in rows)
    right = sum(row["output"] == row["target"] for row in rows)
    assert told["results"]["acc#correct"] == right


def test_a_table_names_metrics_and_signatures(checkpoint, answers, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--model", str(checkpoint), "--data", str(answers), "--metric", "chrf", "--max-new-tokens", "4"]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "chrf#chrf" in out and "nrefs:1|case:mixed|eff:yes|nc:6" in out


def test_ranks_are_started_and_print_once(checkpoint, answers, capfd):
    """Under torchrun on two ranks the numbers are those of one process."""
    words = ["--model", str(checkpoint), "--data", str(answers), "--metric", "ppl", "--batch-size", "2"]
    alone = _json(capfd, *words)
    run = subprocess.run(
        [sys.executable, "-m", "collie.evaluation", *words, "--json", "--nproc", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["results"] == pytest.approx(alone["results"], rel=1e-6)
    assert told["rows"] == {"loss": 5}


def test_lm_eval_runs_a_local_task(checkpoint, tmp_path, capfd, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "task.yaml").write_text(f"""
task: local_numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{GSM8K}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["1", "2", "3"]
doc_to_target: 1
metric_list: [{{metric: acc}}]
""")
    output = tmp_path / "out" / "report.json"
    words = ["lm-eval", "--model", checkpoint, "--tasks", "local_numbers", "--include-path", tmp_path, "--limit", 4]
    told = _json(capfd, *words, "--output", output)
    numbers = told["results"]["local_numbers"]
    report = json.loads(output.read_text())
    assert report["results"]["local_numbers"]["acc,none"] == numbers["acc,none"]
    answers = [[log for log, _ in row["filtered_resps"]] for row in report["samples"]["local_numbers"]]
    assert numbers["acc,none"] == sum(max(row) == row[1] for row in answers) / 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--metric", "rogue"], "Did you mean rouge?"),
        (["--metric", ","], "names no metric"),
        (["--metric", "ppl", "--batch-size", "0"], "--batch-size 0"),
        (["--metric", "ppl", "--nproc", "3", "--tp", "2"], "--nproc 3 does not fit"),
        (["--metric", "ppl", "--tp", "0"], "1 or more"),
        (["--metric", "bleu", "--max-new-tokens", "0"], "--max-new-tokens 0: give 1 or more"),
        (["--metric", "ppl", "--max-rows", "0"], "--max-rows 0: give 1 or more"),
        (["--metric", "ppl,acc", "--max-new-tokens", "3"], "--max-new-tokens 3: no metric of ppl,acc generates text"),
        (["--metric", "ppl", "--samples", "s.jsonl"], "--samples s.jsonl: no metric of ppl has an output"),
        (["--metric", "ppl,bleu", "--style", "helm"], "--style helm: no metric of ppl,bleu"),
        (["--metric", "ppl,chrf", "--language", "zh"], "--language zh: no metric of ppl,chrf"),
        (["--metric", "bleu", "--samples", "/proc/none/s.jsonl"], "--samples /proc/none/s.jsonl cannot be written"),
    ],
)
def test_what_cannot_work_gets_a_sentence(checkpoint, answers, words, sentence, capfd):
    assert main(["--model", str(checkpoint), "--data", str(answers), *words]) == 2
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--limit", "0"], "--limit 0.0: give more than 0"),
        (["--num-fewshot", "-1"], "--num-fewshot -1: give 0 or more"),
        (["--max-length", "0"], "--max-length 0: give 1 or more"),
        (["--include-path", "nowhere"], "--include-path nowhere is no folder"),
        (["--output", "/proc/none/report.json"], "--output /proc/none/report.json cannot be written"),
    ],
)
def test_what_lm_eval_cannot_do_is_said_before_a_model_is_loaded(words, sentence, capfd):
    assert main(["lm-eval", "--model", "nowhere", "--tasks", "task", *words]) == 2
    assert sentence in capfd.readouterr().err


def test_how_many_processes_are_started():
    def count(*words):
        return processes(parse(["--model", "m", "--data", "d", "--metric", "ppl", *words]))

    assert count() == 1
    assert count("--tp", "2", "--pp", "3") == 6
    assert count("--tp", "2", "--dp", "2") == 4
    assert count("--tp", "2", "--nproc", "6") == 6
    with pytest.raises(ConfigError, match="leave --nproc or --dp out"):
        count("--dp", "2", "--nproc", "3")


def test_help_needs_no_torch():
    script = "import sys; from collie.evaluation import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    run = subprocess.run(
        [sys.executable, "-c", script + "assert 'torch' not in sys.modules"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "rouge" in run.stdout and "lm-eval" in run.stdout
