"""The one place where training meets collie-eval: `Trainer(eval_dataset=…)` and `Trainer(data_provider=…)`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from collie.config import CollieConfig
from collie.interfaces import SupportsEval, SupportsServer, require


def dataset_evaluator(
    model: nn.Module,
    config: CollieConfig,
    dataset: Any,
    tokenizer: Any,
    eval_fn: Callable[..., dict[str, Any]] | None,
    metrics: dict[str, Any] | None,
    collate_fn: Callable[..., Any],
) -> SupportsEval:
    """Return the generic Evaluator over `dataset`.

    Raises:
        MissingExtraError: collie-eval is not installed.
    """
    module = require("collie.controller.evaluator", "collie-train[eval]", "eval_dataset")
    evaluator: SupportsEval = module.Evaluator(
        model=model,
        dataset=dataset,
        tokenizer=tokenizer,
        metrics=metrics,
        eval_fn=eval_fn,
        config=config,
        collate_fn=collate_fn,
    )
    return evaluator


def prompt_server(model: nn.Module, data_provider: Any) -> SupportsServer:
    """Return a Server that answers the prompts of `data_provider`.

    Raises:
        MissingExtraError: collie-eval is not installed.
    """
    module = require("collie.controller.server", "collie-train[eval]", "data_provider")
    server: SupportsServer = module.Server(model, data_provider)
    return server
