"""A model of which a pipeline rank holds some stages: what is kept, and how a forward passes through all of them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig

from collie.interfaces import ParallelSizeError
from collie.models._generation import CausalLMOutput
from collie.parallel import Relay, Topology, active_topology, deal, draws_of_stage

if TYPE_CHECKING:
    from collie.models._decoder import Decoder

_FIRST, _LAST = ("embed",), ("norm", "head")


def keep_stages(model: "Decoder", topology: Topology) -> None:
    """Leave of a model on `meta` the stages of this pipeline rank; what it does not hold is None.

    Raises:
        ParallelSizeError: there are fewer layers than stages, pp_partition_method matches none of them, or the model
            has parameters outside its embedding, layers, norm and head.
    """
    if topology.pp_size == 1:
        return
    _refuse_others(model)
    first, last = ([getattr(model, name) for name in names] for names in (_FIRST, _LAST))
    stages = model.stages = deal(model.layers, first, last, model.collie_config, topology.pp_rank)
    kept = {name for stage in stages.own for name in stages.layers[stage]}
    for name in [name for name in model.layers if name not in kept]:
        del model.layers[name]
    for here, names in ((stages.has_first, _FIRST), (stages.has_last, _LAST)):
        for name in names if not here else ():
            setattr(model, name, None)


def _refuse_others(model: "Decoder") -> None:
    known = (*_FIRST, "layers", *_LAST)
    others = sorted({name.partition(".")[0] for name, _ in model.named_parameters()} - set(known))
    if others:
        raise ParallelSizeError(
            f"pp_size={model.collie_config.pp_size} deals {', '.join(known)} to stages, and {type(model).__name__} has "
            f"parameters in {', '.join(others)}, too. Set pp_size to 1."
        )


class StageCache(DynamicCache):
    """A cache that says how long it is also where its first layers belong to another stage.

    Args:
        config: the model's.
        first: number of the first layer that this rank has.
    """

    def __init__(self, config: PretrainedConfig, first: int) -> None:
        super().__init__(config=config)
        self._first = first

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of cached tokens, of the first layer here unless another is asked for."""
        return int(super().get_seq_length(layer_idx or self._first))


def relayed(
    model: "Decoder",
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    inputs_embeds: Tensor | None,
    cu_seqlens: Tensor | None,
    **wanted: Any,
) -> CausalLMOutput:
    """Run the stages one after the other, each on its rank; every rank returns what the last stage does.

    Args:
        model: the stages of this rank.
        input_ids, attention_mask, position_ids, inputs_embeds, cu_seqlens: as in `CollieModelForCausalLM.forward`, on
            every rank.
        cache: extended by the layers that are here.
        wanted: arguments of `finish`.
    """
    given = inputs_embeds if input_ids is None else input_ids
    stages = model.stages
    assert stages is not None and given is not None
    rows, length = given.shape[:2]
    shape = model.stage_shape(rows, length, cache)
    topology = active_topology()
    relay = Relay(stages, topology)
    dropout = model.collie_config.dropout if model.training else 0.0
    arranged = model.arranged(input_ids, attention_mask, position_ids, inputs_embeds, cache, cu_seqlens)
    output = CausalLMOutput()
    for stage in stages.own:
        with draws_of_stage(topology, stage, dropout), model.flow(length, cache):
            x_BSE = model.enter(input_ids, inputs_embeds) if stage == 0 else relay.receive(stage, shape, model.dtype)
            x_BSE = model.run_layers(x_BSE, *arranged, cache, stages.layers[stage])
            if stage == stages.count - 1:
                output = model.finish(x_BSE, **wanted)
            else:
                relay.send(stage, x_BSE, model.dtype)
    labels, return_logits, keep = wanted["labels"], wanted["return_logits"], wanted["logits_to_keep"]
    if labels is not None:
        output.loss = relay.share(output.loss, (), torch.float32)
    if labels is None or return_logits:
        logits = (rows, min(keep, length) if keep else length, model.config.vocab_size)
        output.logits = relay.share(output.logits, logits, _logits_dtype(model.dtype, topology.device.type))
    return output


def _logits_dtype(weights: torch.dtype, device_type: str) -> torch.dtype:
    """The dtype of a head's product, which only the last stage computes: autocast leaves float64 alone."""
    if weights is torch.float64 or not torch.is_autocast_enabled(device_type):
        return weights
    return torch.get_autocast_dtype(device_type)
