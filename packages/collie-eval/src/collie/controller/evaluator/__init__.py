"""Evaluation of a model over a dataset, alone or inside a Trainer."""

from collie.controller.evaluator._classification import EvaluatorForClassfication, EvaluatorForClassification
from collie.controller.evaluator._evaluator import Evaluator
from collie.controller.evaluator._generation import EvaluatorForGeneration
from collie.controller.evaluator._perplexity import EvaluatorForPerplexity

__all__ = [
    "Evaluator",
    "EvaluatorForClassfication",
    "EvaluatorForClassification",
    "EvaluatorForGeneration",
    "EvaluatorForPerplexity",
]
