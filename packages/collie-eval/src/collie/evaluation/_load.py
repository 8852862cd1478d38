"""The model and tokenizer of a command, in the layout that it asks for."""

import argparse
from typing import Any

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.parallel import setup_distribution


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model on every rank, and the tokenizer that lies beside it.

    Raises:
        ConfigError: sizes that do not fit, or no tokenizer.
        CheckpointError: the checkpoint cannot be read.
    """
    from transformers import AutoTokenizer

    config = CollieConfig.from_pretrained(options.model)
    config.tp_size, config.pp_size = options.tp, options.pp
    if options.dp is not None:
        config.dp_size = options.dp
    config.eval_batch_size = options.batch_size
    if options.zero:
        config.ds_config = {"zero_optimization": {"stage": options.zero}}
    setup_distribution(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {options.model} has no tokenizer that transformers can read: {error}") from error
    extra = {"dtype": options.dtype} if options.dtype is not None else {}
    return CollieModelForCausalLM.from_pretrained(options.model, config=config, **extra), tokenizer
