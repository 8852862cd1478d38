"""A model, a file of rows, and metrics by name."""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collie.controller.evaluator import (
    Evaluator,
    EvaluatorForClassification,
    EvaluatorForGeneration,
    EvaluatorForPerplexity,
)
from collie.data import (
    CollieDatasetForClassification,
    CollieDatasetForGeneration,
    CollieDatasetForPerplexity,
    CollieDatasetForTraining,
    ColliePadder,
    Source,
)
from collie.evaluation._load import load
from collie.evaluation._measures import Reading, chosen
from collie.metrics import BaseMetric
from collie.metrics._text import rows_of, text_of
from collie.parallel import active_topology


@dataclass
class Report:
    """What a command found: `name#key` → number, metric → how it was computed, and how many rows each reading had."""

    results: dict[str, float] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


def evaluate(options: argparse.Namespace) -> Report:
    """Evaluate as `collie-eval` was asked; every rank gets the same. Rank 0 writes the samples."""
    readings = chosen(options.metric, options.language or "en")
    model, tokenizer = load(options)
    report, samples = Report(), list[dict[str, Any]]()
    for reading, metrics in readings.items():
        dataset = _dataset(reading, options, tokenizer)
        kept = _Samples()
        wanted = options.samples is not None and reading != "loss"
        evaluator = _evaluator(reading, options, model, tokenizer, dataset)
        evaluator.metrics = {**metrics, "samples": kept} if wanted else dict(metrics)
        report.results |= evaluator.eval()
        report.signatures |= evaluator.signatures()
        report.rows[reading] = len(dataset)
        samples += kept.get_metric()
    if options.samples is not None and active_topology().rank == 0:
        _write(options.samples, samples)
    return report


def _dataset(reading: Reading, options: argparse.Namespace, tokenizer: Any) -> CollieDatasetForTraining:
    source = Source(options.data, max_rows=options.max_rows)
    common = {"chat_template": options.chat_template}
    match reading:
        case "loss":
            return CollieDatasetForPerplexity(source, tokenizer, **common)
        case "text":
            return CollieDatasetForGeneration(source, tokenizer, **common)
        case "choice":
            return CollieDatasetForClassification(source, tokenizer, style=options.style or "harness", **common)


def _evaluator(
    reading: Reading, options: argparse.Namespace, model: Any, tokenizer: Any, dataset: CollieDatasetForTraining
) -> Evaluator:
    common: dict[str, Any] = {"model": model, "dataset": dataset, "tokenizer": tokenizer, "metrics": {}}
    match reading:
        case "loss":
            return EvaluatorForPerplexity(**common)
        case "text":
            from transformers import GenerationConfig

            settings = GenerationConfig(max_new_tokens=options.max_new_tokens)  # None leaves it to the evaluator
            return EvaluatorForGeneration(**common, generation_config=settings)
        case "choice":
            limit = {"max_new_tokens": options.max_new_tokens} if options.max_new_tokens is not None else {}
            return EvaluatorForClassification(**common, collate_fn=ColliePadder(), **limit)


class _Samples(BaseMetric):
    """Keeps what was asked, answered and expected, of every row."""

    def __init__(self) -> None:
        super().__init__(gather_result=True)
        self._rows: list[dict[str, Any]] = []

    def update(self, result: dict[str, Any]) -> None:
        outputs, targets = _plain(result["pred"]), _plain(result["target"])
        prompts = rows_of(result["input_ids"]) if "input_ids" in result else [None] * len(outputs)
        for prompt, output, target in zip(prompts, outputs, targets, strict=True):
            text = None if prompt is None else text_of("samples", prompt, self.tokenizer)
            self._rows.append({"prompt": text, "output": output, "target": target})

    def get_metric(self) -> list[dict[str, Any]]:
        """The rows, in the order of the dataset."""
        return self._rows


def _plain(values: Any) -> list[Any]:
    return [value.item() if hasattr(value, "item") else value for value in values]


def _write(path: Path, samples: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
