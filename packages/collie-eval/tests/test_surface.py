"""What the two leaves offer, and what they leave alone."""

import subprocess
import sys

import pytest

import collie.controller.evaluator
import collie.metrics


def test_public_names():
    assert collie.metrics.__all__ == ["BaseMetric", "DecodeMetric", "PPLMetric"]
    assert collie.controller.evaluator.__all__ == ["Evaluator", "EvaluatorForGeneration", "EvaluatorForPerplexity"]


@pytest.mark.parametrize("leaf", ["collie.metrics", "collie.controller.evaluator"])
def test_a_leaf_imports_alone_without_the_trainer_and_without_deepspeed(leaf):
    script = f"import {leaf}, sys; print([n for n in sys.modules if n in ('deepspeed', 'collie.controller.trainer')])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr
