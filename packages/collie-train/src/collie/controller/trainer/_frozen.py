"""Weights that are frozen on some pipeline stages: what the ranks of a replica must agree on before a step is made."""

import torch
import torch.distributed as dist

from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.parallel import Topology


def check_trainable(model: CollieModelForCausalLM, topology: Topology) -> None:
    """Refuse, on every rank alike, what no stage or only one end of a tied weight is to train. Collective.

    A single stage without anything to train is sound.

    Raises:
        ConfigError: nothing requires a gradient, or a tied weight does so on the first or the last stage alone.
    """
    trains = [any(p.requires_grad for p in model.parameters())]
    trains += [part is not None and part.weight.requires_grad for part in (model.embed, model.head)]
    anywhere = torch.tensor(trains, dtype=torch.int32, device=topology.device)
    dist.all_reduce(anywhere, op=dist.ReduceOp.MAX, group=topology.model_group)
    some, embed, head = map(bool, anywhere.tolist())
    if not some:
        raise ConfigError("no parameter of the model requires a gradient on any pipeline stage: nothing is trained.")
    if getattr(model.config, "tie_word_embeddings", False) and embed != head:
        trained, frozen = ("embed", "head") if embed else ("head", "embed")
        raise ConfigError(
            f"tie_word_embeddings: model.embed and model.head are one weight, on the first and the last pipeline "
            f"stage, and only {trained} requires a gradient. Set requires_grad of {frozen} to the same."
        )
