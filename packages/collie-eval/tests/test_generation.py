"""What is generated comes from the prompt alone, and only what is new is reported."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from collie.controller.evaluator import EvaluatorForGeneration
from collie.data import ColliePadder
from collie.events import Eval, Sample
from collie.interfaces import ConfigError, DataError
from collie.metrics import BaseMetric, DecodeMetric
from collie.testing import run_ranks


class Rows(BaseMetric):
    """Keeps pred, target and input_ids of every row."""

    def reset(self):
        self.rows = []

    def update(self, result):
        self.rows += zip(result["pred"], result["target"], result["input_ids"], strict=True)

    def get_metric(self):
        return float(len(self.rows))


@pytest.fixture
def evaluate(bigram, letters):
    """Rows that an evaluator reports for a dataset."""

    def run(dataset, tokenizer=letters, **arguments):
        metric = Rows(gather_result=True)
        settings = GenerationConfig(max_new_tokens=4)
        arguments = {"generation_config": settings, "model": bigram, **arguments}
        EvaluatorForGeneration(dataset=dataset, tokenizer=tokenizer, metrics={"rows": metric}, **arguments).eval()
        return metric.rows

    return run


@pytest.mark.parametrize("left", [True, False])
def test_the_answer_never_enters_the_model(bigram, letters, evaluate, config, left):
    """Prompts are cut and padded on the left, whichever side the collate_fn padded."""
    rows = evaluate(
        [letters.pair("abc", "xyz"), letters.pair("k", "xyzx")],
        config=config,
        collate_fn=ColliePadder(padding_left=left),
    )
    assert [ids.tolist() for ids in bigram.seen] == [[[3, 4, 5], [0, 0, 13]]]
    assert rows == [("defg", "xyz", [3, 4, 5]), ("lmno", "xyzx", [13])]


def test_a_row_without_labels_is_a_prompt_as_a_whole(letters, evaluate):
    assert evaluate([{"input_ids": letters.encode("abc")}]) == [("defg", None, [3, 4, 5])]
    assert evaluate([{"input_ids": [3, 4], "labels": [-100, -100]}]) == [("cdef", None, [3, 4])]


def test_pred_ends_with_the_end_token_and_padding_is_dropped(letters, evaluate):
    pair = letters.pair("wx", "yz")
    assert evaluate([pair])[0][:2] == ("yz", "yz")
    assert evaluate([pair], skip_special_tokens=False)[0][:2] == ("yz</s>", "yz</s>")
    assert evaluate([pair], tokenizer=None, generation_config=GenerationConfig(max_new_tokens=4, eos_token_id=2))[
        0
    ] == (
        [27, 28, 2],
        [27, 28, 2],
        [25, 26],
    )


def test_what_the_generation_config_leaves_open(bigram, evaluate):
    """Greedy, 128 new tokens, and the tokenizer's special tokens before the model's."""
    bigram.generation_config = SimpleNamespace(eos_token_id=9, pad_token_id=8)
    mine = GenerationConfig()
    evaluate([{"input_ids": [3]}], generation_config=mine)
    made = bigram.settings
    assert (made.max_new_tokens, made.do_sample, made.eos_token_id, made.pad_token_id) == (128, False, 2, 0)
    assert (mine.max_new_tokens, mine.eos_token_id) == (None, None)  # the caller's own stays as it was
    evaluate([{"input_ids": [3]}], tokenizer=None)
    assert (bigram.settings.eos_token_id, bigram.settings.pad_token_id) == (9, 8)
    bigram.config = SimpleNamespace(n_positions=16)
    evaluate([{"input_ids": [3] * 6}], generation_config=mine)
    assert bigram.settings.max_new_tokens == 10  # what the model's positions leave
    evaluate(
        [{"input_ids": [3]}], generation_config=GenerationConfig(max_new_tokens=1, eos_token_id=[7, 5], do_sample=True)
    )
    made = bigram.settings
    assert (made.max_new_tokens, made.do_sample, made.eos_token_id, made.pad_token_id) == (1, True, [7, 5], 0)


def test_without_any_padding_token_the_end_token_pads(bigram, evaluate):
    evaluate(
        [{"input_ids": [3]}], tokenizer=None, generation_config=GenerationConfig(max_new_tokens=1, eos_token_id=[5])
    )
    assert bigram.settings.pad_token_id == 5


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_texts_are_in_the_order_of_the_dataset_on_every_rank(bigram, letters, pairs, config, ranks, capfd):
    def rank() -> tuple[list[str], dict[str, float], int]:
        metric = DecodeMetric()
        evaluator = EvaluatorForGeneration(
            generation_config=GenerationConfig(max_new_tokens=2),
            model=bigram,
            tokenizer=letters,
            dataset=pairs,
            config=config,
            metrics={"decode": metric},
        )
        return evaluator.eval(), metric.get_metric(), len(bigram.seen)

    expected = ["bc", "fg", "jk", "no", "rs", "vw", "z"]  # what follows each prompt's last letter
    for results, texts, calls in run_ranks(ranks, rank):
        assert (results, texts) == ({}, expected)
        assert calls == -(-7 // (2 * ranks))
    printed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("decoded: ")]
    assert printed == [f"decoded: {text}" for text in expected]  # by rank 0 alone


def test_samples_show_prompt_output_and_target(bigram, letters, pairs, context, events):
    evaluator = EvaluatorForGeneration(bigram, pairs, letters, generation_config=GenerationConfig(max_new_tokens=1))
    evaluator.metrics["decode"].verbose = False
    evaluator.bind(context, bigram)
    evaluator.eval()
    assert events.of(Eval)[0].rows == 7
    assert events.of(Sample) == [
        Sample("a", "b", "a"),
        Sample("de", "f", "bc"),
        Sample("ghi", "j", "cde"),
        Sample("jklm", "n", "d"),
    ]


def test_a_row_without_a_prompt_gets_a_sentence(evaluate):
    with pytest.raises(DataError, match=r"Row 0 .*first token is already a label"):
        evaluate([{"input_ids": [3, 4], "labels": [3, 4]}])
    with pytest.raises(DataError, match=r"Row 0 .*0 tokens"):
        evaluate([{"input_ids": [3], "attention_mask": [0]}])
    with pytest.raises(DataError, match="needs input_ids"):
        evaluate([{"labels": [3]}])


def test_several_sequences_a_row_are_refused(bigram):
    with pytest.raises(ConfigError, match="num_return_sequences=3"):
        EvaluatorForGeneration(bigram, generation_config=GenerationConfig(num_return_sequences=3, num_beams=3))


def test_a_model_of_transformers_generates_what_it_generates_alone(letters, config):
    """Left-padded in a batch of two against each prompt by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=29,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).eval()
    prompts = ["abcde", "x"]
    settings = GenerationConfig(max_new_tokens=6, eos_token_id=2, pad_token_id=0, do_sample=False)
    alone = []
    for prompt in prompts:
        ids = torch.tensor([letters.encode(prompt)])
        mask = torch.ones_like(ids)
        new = model.generate(ids, attention_mask=mask, generation_config=settings)[0, ids.shape[1] :]
        alone.append(letters.decode(new.tolist(), skip_special_tokens=True))
    metric = DecodeMetric(verbose=False)
    EvaluatorForGeneration(
        model,
        [letters.pair(prompt, "zz") for prompt in prompts],
        letters,
        {"decode": metric},
        config=config,
        generation_config=GenerationConfig(max_new_tokens=6),
    ).eval()
    assert metric.get_metric() == alone
