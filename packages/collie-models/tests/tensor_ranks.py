"""What the tests of tensor parallelism share: a batch, toy models, and the whole gradients of a model in parts."""

import torch
from transformers import Qwen3Config

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.parallel import active_topology, full_parameters
from collie.testing import toy_config, toy_llama_config, toy_moss_config

IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81], [1, 2, 3, 4, 5, 6, 7, 8]])
LABELS = IDS.clone()
LABELS[0, :3] = -100
TOYS = {
    "llama": (toy_llama_config, {}),  # 4 heads over 2, 97 tokens
    "tied": (toy_llama_config, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "moss": (toy_moss_config, {}),
    "qwen3": (lambda **fields: toy_config(Qwen3Config, **fields), {"head_dim": 12}),
}


def make(toy, tp, stage=0, **fields):
    describe, overrides = TOYS[toy]
    config = CollieConfig(model_config=describe(initializer_range=0.2, **overrides))
    config.tp_size, config.use_flash, config.checkpointing = tp, False, False
    config.ds_config = {"zero_optimization": {"stage": stage}}
    for name, value in fields.items():
        setattr(config, name, value)
    return CollieModelForCausalLM.from_config(config), config


def whole_gradients(model):
    """Every parameter's gradient in the shape of the whole model, on the first rank."""
    for parameter in model.parameters():
        parameter.data = parameter.grad.clone()
    return dict(full_parameters(model, active_topology()))
