"""The command collie-eval, and lm-evaluation-harness on CoLLiE's models."""

from collie.evaluation._main import main
from collie.evaluation._tasks import harness_model, run_tasks

__all__ = ["harness_model", "main", "run_tasks"]
