"""The one place where training meets collie-eval: `Trainer(eval_dataset=…)` and `Trainer(data_provider=…)`."""

import importlib.util
from collections.abc import Callable
from typing import Any

from torch import nn

from collie.config import CollieConfig
from collie.interfaces import MissingExtraError, SupportsEval, SupportsServer, require


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
    """Return a Server that answers the prompts of `data_provider`, and with a tokenizer those in the run's folder.

    Without a data_provider it is made where it can be: of a model that generates, where collie-eval is installed. None
    where nobody can ask.

    Raises:
        MissingExtraError: collie-eval is not installed, and a data_provider was given.
    """
    if data_provider is None:
        can_ask = tokenizer is not None and callable(getattr(model, "generate", None))
        if not can_ask or not _is_there("collie.controller.server"):
            return None
    module = require("collie.controller.server", "collie-train[eval]", "data_provider")
    providers = [data_provider] if data_provider is not None else []
    if tokenizer is not None:
        provided = require("collie.utils.data_provider", "collie-train[eval]", "data_provider")
        providers.append(provided.RunFolderProvider(tokenizer))
    server: SupportsServer = module.Server(model, providers)
    return server


def _is_there(leaf: str) -> bool:
    """Whether a leaf of another distribution is installed."""
    try:
        return importlib.util.find_spec(leaf) is not None
    except MissingExtraError:  # the namespace says whose it is, in place of None
        return False
