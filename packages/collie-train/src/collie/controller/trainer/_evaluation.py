"""The one place where training meets collie-eval: `Trainer(eval_dataset=…)` and `Trainer(data_provider=…)`."""

import importlib.util
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


def prompt_server(model: nn.Module, data_provider: Any, tokenizer: Any) -> SupportsServer | None:
    """Return a Server that answers the prompts of `data_provider`, and those that lie in the run's folder.

    The latter need a tokenizer, and no data_provider: a run whose model generates answers the dashboard if it can.
    None: nobody can ask.

    Raises:
        MissingExtraError: collie-eval is not installed, and a data_provider was given.
    """
    needs_none = tokenizer is None or not callable(getattr(model, "generate", None))
    if data_provider is None and (needs_none or importlib.util.find_spec("collie.controller.server") is None):
        return None
    module = require("collie.controller.server", "collie-train[eval]", "data_provider")
    providers = [data_provider] if data_provider is not None else []
    if tokenizer is not None:
        provided = require("collie.utils.data_provider", "collie-train[eval]", "data_provider")
        providers.append(provided.RunFolderProvider(tokenizer))
    server: SupportsServer = module.Server(model, providers)
    return server
