"""What evaluators report is what one process reports, in every layout, the uneven last batch included."""

import string

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForClassfication, EvaluatorForGeneration, EvaluatorForPerplexity
from collie.data import CollieDatasetForClassification, CollieDatasetForGeneration, CollieDatasetForPerplexity
from collie.metrics import AccuracyMetric, BleuMetric, ChrfMetric, ClassifyFPreRecMetric, RougeMetric, TokenF1Metric
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks, toy_llama_config

LAYOUTS = {
    "dp2": (2, {}),
    "dp3": (3, {}),
    "tp2": (2, {"tp_size": 2}),
    "pp2": (2, {"pp_size": 2}),
    "dp2-zero3": (2, {"ds_config": {"zero_optimization": {"stage": 3}}}),
    "dp3-zero3": (3, {"ds_config": {"zero_optimization": {"stage": 3}}}),
}
ROWS = [
    ("你好，世界", "世界好"),
    ("one two", "three four"),
    ("a", "b"),
    ("今天", "很好。"),
    ("x y z", "y"),
    ("12", "34 5"),
    ("e", "f g"),
]


def bytes_tokenizer():
    alphabet = ["<pad>", "<s>", "</s>", *sorted(ByteLevel.alphabet())]
    tokens = Tokenizer(BPE({token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer, tokens.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **names)


def results(sizes):
    """Every evaluator over seven rows, two a batch: an uneven number for every number of replicas."""
    tokenizer = bytes_tokenizer()
    config = CollieConfig(eval_batch_size=2, use_flash=False, **sizes)
    config.model_config = toy_llama_config(vocab_size=len(tokenizer), max_position_embeddings=256)
    config.initization_method, config.initization_method_params = "normal", {"std": 0.4}
    model = CollieModelForCausalLM.from_config(config)
    rows = [{"input": one, "output": other + string.printable[:94]} for one, other in ROWS]  # it shares some letters
    questions = [
        {"input": one, "output": [other, "no", "也许"][: 2 + at % 2], "target": at % 2}
        for at, (one, other) in enumerate(ROWS)
    ]
    options = {"cache": False, "processes": 1}
    found = EvaluatorForPerplexity(model, CollieDatasetForPerplexity(rows, tokenizer, **options)).eval()
    metrics = {"bleu": BleuMetric(tokenize="char", smooth="floor"), "chrf": ChrfMetric(gather_result=False)}
    metrics |= {"rouge": RougeMetric(split_fn=list), "f1": TokenF1Metric("zh", gather_result=False)}
    settings = GenerationConfig(max_new_tokens=6)
    prompts = CollieDatasetForGeneration(rows, tokenizer, **options)
    texts = EvaluatorForGeneration(model, prompts, tokenizer, metrics, generation_config=settings)
    found |= texts.eval()
    for style in ("harness", "helm"):
        asked = CollieDatasetForClassification(questions, tokenizer, style=style, **options)
        metrics = {f"{style}-acc": AccuracyMetric(), f"{style}-f": ClassifyFPreRecMetric(f_type="macro")}
        found |= EvaluatorForClassfication(model, asked, tokenizer, metrics).eval()
    return found, texts.signatures()


@pytest.fixture(scope="module")
def alone():
    (found,) = run_ranks(1, results, {})
    numbers = found[0]
    assert numbers["chrf#chrf"] > 0 and numbers["rouge#rouge1"] > 0 and 0 < numbers["harness-acc#acc"] < 1
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_reports_what_one_process_reports(layout, alone):
    """Texts and choices exactly; the perplexity to float32's rounding, where ranks sum parts."""
    ranks, sizes = LAYOUTS[layout]
    expected, signatures = alone
    for found, signed in run_ranks(ranks, results, sizes, timeout=120):
        assert found.pop("ppl") == pytest.approx(expected["ppl"], rel=1e-5)
        assert found == {name: value for name, value in expected.items() if name != "ppl"}
        assert signed == signatures
    assert torch.isfinite(torch.tensor(expected["ppl"]))
