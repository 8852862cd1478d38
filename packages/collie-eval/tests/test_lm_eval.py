"""lm-evaluation-harness on a CoLLiE model: the numbers of its own `hf` model, on every rank of every layout."""

import copy
import pathlib

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from collie.config import CollieConfig
from collie.evaluation import harness_model, run_tasks
from collie.evaluation._lm import generation_settings
from collie.interfaces import ConfigError, DataError
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks

DATA = pathlib.Path(__file__).parent / "data" / "gsm8k.jsonl"
COMMON = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{DATA}"}}}}
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
"""
TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_choice: "{{[answer.split('#### ')[1], '7', '25 eggs', '300']}}"
doc_to_target: 0
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_text": """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["a", "Q"], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match}]
""",
    "local_rolling": """
output_type: loglikelihood_rolling
doc_to_target: "{{question}} {{answer}}"
metric_list: [{metric: byte_perplexity}]
""",
}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with three tasks over local rows, and nothing of it in anybody's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, words in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}{COMMON}{words}")
    return tmp_path


def _loaded(folder, **sizes):
    config = CollieConfig.from_pretrained(folder)
    for name, size in sizes.items():
        setattr(config, name, size)
    return CollieModelForCausalLM.from_pretrained(folder, config=config), AutoTokenizer.from_pretrained(folder)


def _answers(report):
    """Each request's answer, by task and row."""
    return {
        name: [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
        for name, rows in report["samples"].items()
    }


def _collie(folder, tasks, batch_size=3, **sizes):
    model, tokenizer = _loaded(folder, **sizes)
    options = {"batch_size": batch_size, "include_path": tasks, "include_defaults": False, "num_fewshot": 1}
    report = run_tasks(model, tokenizer, list(TASKS), **options)
    return _answers(report), report["results"]


def test_answers_and_results_are_those_of_the_harness_s_own_model(checkpoint, tasks):
    """Texts longer than the model's 256 positions are among them, and one example stands before each question."""
    theirs = simple_evaluate(
        model=HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=2),
        tasks=list(TASKS),
        num_fewshot=1,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    expected = _answers(theirs)
    ((ours, results),) = run_ranks(1, _collie, checkpoint, tasks)
    for answers, reference in zip(ours["local_choice"], expected["local_choice"], strict=True):
        assert [log for log, _ in answers] == pytest.approx([log for log, _ in reference], abs=1e-4)
        assert [greedy for _, greedy in answers] == [greedy for _, greedy in reference]
    assert ours["local_text"] == expected["local_text"]
    assert len({text for (text,) in ours["local_text"]}) > 3
    for (log,), (reference,) in zip(ours["local_rolling"], expected["local_rolling"], strict=True):
        assert log == pytest.approx(reference, rel=1e-6, abs=1e-3)  # a sum over hundreds of tokens
    for task, numbers in results.items():
        for name, value in numbers.items():
            if isinstance(value, float):
                assert value == pytest.approx(theirs["results"][task][name], rel=1e-5), f"{task} {name}"


@pytest.mark.parametrize(
    ("ranks", "sizes"), [(2, {}), (3, {}), (2, {"tp_size": 2}), (2, {"pp_size": 2}), (4, {"tp_size": 2})]
)
def test_every_rank_of_every_layout_has_the_numbers_of_one_process(ranks, sizes, checkpoint, tasks):
    ((alone, results),) = run_ranks(1, _collie, checkpoint, tasks)
    for answers, numbers in run_ranks(ranks, lambda: _collie(checkpoint, tasks, batch_size=2, **sizes)):
        assert answers["local_text"] == alone["local_text"]
        for name in ("local_choice", "local_rolling"):
            flat = [torch.tensor(row, dtype=torch.float64) for row in answers[name]]
            reference = [torch.tensor(row, dtype=torch.float64) for row in alone[name]]
            torch.testing.assert_close(flat, reference, rtol=1e-5, atol=1e-4)
        assert numbers["local_choice"] == results["local_choice"]


def test_the_order_of_requests_does_not_matter(checkpoint):
    def rank():
        lm = harness_model(*_loaded(checkpoint), batch_size=2)
        pairs = [("", "ab"), ("abc", " d"), ("a b ", "c"), ("<s>x", "yz")]
        requests = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
        return lm.loglikelihood(requests), lm.loglikelihood(requests[::-1])[::-1]

    ((forward, backward),) = run_ranks(1, rank)
    assert [log for log, _ in forward] == pytest.approx([log for log, _ in backward], abs=1e-5)


def test_a_chat_template_is_the_tokenizer_s(checkpoint):
    _, tokenizer = _loaded(checkpoint)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    lm = harness_model(torch.nn.Linear(1, 1), tokenizer)
    chat = [{"role": "user", "content": "hi"}]
    assert lm.apply_chat_template(chat) == "[user] hi\n[assistant]"
    assert lm.chat_template(True) == tokenizer.chat_template


def test_generation_options_of_tasks():
    settings, stops = generation_settings({"until": "\n", "max_gen_toks": 5, "temperature": 0.0, "max_tokens": 9})
    assert (settings.max_new_tokens, settings.do_sample, stops) == (5, False, ["\n"])
    settings, stops = generation_settings({"do_sample": True, "temperature": 0.7, "until": ["", "x"]})
    assert (settings.max_new_tokens, settings.do_sample, settings.temperature, stops) == (256, True, 0.7, ["x"])
    with pytest.raises(ConfigError, match="best_of"):
        generation_settings({"best_of": 3})


def test_requests_that_cannot_be_answered_get_a_sentence(checkpoint, tasks):
    model, tokenizer = _loaded(checkpoint)
    lm = harness_model(model, tokenizer, max_length=8)
    with pytest.raises(DataError, match="9 tokens, and the model 8 positions"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a", "b" * 9), 0)])
    with pytest.raises(ConfigError, match="12 new tokens, and the model has 8"):
        lm.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 12}), 0)])
    with pytest.raises(ConfigError, match="no_such_task"):
        run_tasks(model, tokenizer, ["no_such_task"], include_path=tasks, include_defaults=False)
    with pytest.raises(ConfigError, match="batch_size=0"):
        harness_model(model, tokenizer, batch_size=0)
    with pytest.raises(ConfigError, match="max_length=0"):
        harness_model(model, tokenizer, max_length=0)


def test_what_is_cut_is_told(checkpoint):
    lm = harness_model(*_loaded(checkpoint), max_length=8)
    with pytest.warns(UserWarning, match="1 of 2 requests are longer than 8 tokens"):
        lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in (("a" * 20, "b"), ("a", "b"))])
    asked = [Instance("generate_until", {}, (text, {"max_gen_toks": 2}), 0) for text in ("a", "a" * 20, "aa")]
    with pytest.warns(UserWarning, match="1 of 3 prompts are longer than 6 tokens"):
        lm.generate_until(asked)


def test_training_mode_is_put_back(checkpoint):
    model, tokenizer = _loaded(checkpoint)
    model.train()
    before = copy.deepcopy([module.training for module in model.modules()])
    harness_model(model, tokenizer).loglikelihood([Instance("loglikelihood", {}, ("a", "b"), 0)])
    assert [module.training for module in model.modules()] == before
