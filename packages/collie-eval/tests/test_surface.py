"""What the four leaves offer, and what they leave alone."""

import subprocess
import sys

import pytest

import collie.controller.evaluator
import collie.controller.server
import collie.evaluation
import collie.metrics
import collie.utils.data_provider


def test_public_names():
    assert collie.metrics.__all__ == [
        "AccuracyMetric",
        "BaseMetric",
        "BleuMetric",
        "ChrfMetric",
        "ClassifyFPreRecMetric",
        "DecodeMetric",
        "ExactMatchMetric",
        "PPLMetric",
        "RougeMetric",
        "TokenF1Metric",
    ]
    assert collie.controller.server.__all__ == ["Server"]
    assert collie.evaluation.__all__ == ["harness_model", "main", "run_tasks"]
    assert collie.utils.data_provider.__all__ == [
        "BaseProvider",
        "DashProvider",
        "GradioProvider",
        "Question",
        "RunFolderProvider",
    ]
    assert collie.controller.evaluator.__all__ == [
        "Evaluator",
        "EvaluatorForClassfication",
        "EvaluatorForClassification",
        "EvaluatorForGeneration",
        "EvaluatorForPerplexity",
    ]


@pytest.mark.parametrize(
    "leaf",
    [
        "collie.metrics",
        "collie.controller.evaluator",
        "collie.controller.server",
        "collie.evaluation",
        "collie.utils.data_provider",
    ],
)
def test_a_leaf_imports_alone_without_the_trainer_and_without_deepspeed(leaf):
    script = f"import {leaf}, sys; print([n for n in sys.modules if n in ('deepspeed', 'collie.controller.trainer')])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr
