"""What each tensor-parallel rank holds, looked at in one process with the rank as an argument."""

import re

import pytest
import torch
from torch import nn

from collie.config import CollieConfig
from collie.interfaces import ParallelSizeError
from collie.models import LlamaForCausalLM, Moss003MoonForCausalLM
from collie.module import Attention, LMHead
from collie.parallel import (
    Column,
    Plan,
    Row,
    Topology,
    VocabColumn,
    VocabRow,
    cut_of,
    full_parameters,
    fused,
    materialise,
)
from collie.testing import toy_llama_config, toy_moss_config

DTYPE = torch.float32


def on_meta(family, model_config):
    with torch.device("meta"):
        return family(CollieConfig(model_config=model_config))


def numbers(name, shape, start, stop, columns=None):
    """Every element of every parameter is another number: its place, plus the length of the parameter's name."""
    whole = torch.arange(shape.numel(), dtype=DTYPE).view(shape) + len(name)
    if columns is not None:
        whole = whole[:, columns[0] : columns[1]]
    return whole.flatten()[start:stop]


def part(family, model_config, tp, rank):
    model = on_meta(family, model_config)
    topology = Topology(rank=rank, world_size=tp, tp_size=tp)
    model.plan.apply(model, topology)
    materialise(model, CollieConfig(), topology, DTYPE, numbers)
    return model


FAMILIES = [
    (LlamaForCausalLM, toy_llama_config(), 2),
    (LlamaForCausalLM, toy_llama_config(), 4),  # 2 key/value heads on 4 ranks
    (LlamaForCausalLM, toy_llama_config(tie_word_embeddings=True, attention_bias=True, mlp_bias=True), 2),
    (Moss003MoonForCausalLM, toy_moss_config(), 4),
]


@pytest.mark.parametrize(("family", "model_config", "tp"), FAMILIES)
def test_the_parts_make_the_whole(family, model_config, tp):
    """Put together, the ranks' parts are every parameter of the model, and each element lies where it was."""
    whole = {
        name: numbers(name, p.shape, 0, p.numel()).view(p.shape)
        for name, p in on_meta(family, model_config).named_parameters()
    }
    seen = {name: torch.full_like(tensor, -1) for name, tensor in whole.items()}
    for rank in range(tp):
        for name, parameter in part(family, model_config, tp, rank).named_parameters():
            cut = cut_of(parameter)
            if cut is None:
                assert "norm" in name or name.endswith(("out.bias", "down.bias"))
                assert torch.equal(parameter, whole[name])
                seen[name] = parameter
            else:
                assert parameter.shape == cut.shape and cut.whole == whole[cut.name].shape
                cut.put(parameter.detach(), rank, seen[cut.name])
    for name, tensor in whole.items():
        assert torch.equal(seen[name], tensor), name


def test_padding_of_the_vocabulary_is_zero():
    """97 tokens on 2 ranks: the second has 48 of them and one row that is none."""
    tied = toy_llama_config(tie_word_embeddings=True)
    parts = [part(LlamaForCausalLM, tied, 2, rank) for rank in range(2)]
    assert [p.embed.weight.shape[0] for p in parts] == [49, 49]
    assert all(p.head.weight is p.embed.weight for p in parts)
    assert torch.equal(parts[1].embed.weight[48], torch.zeros(32)) and parts[1].embed.weight[47].abs().min() > 0


def test_keys_and_values_go_where_their_queries_are():
    """4 query and 2 key/value heads on 4 ranks: a pair of ranks holds one key/value head, and one counts it."""
    for rank in range(4):
        attention = part(LlamaForCausalLM, toy_llama_config(), 4, rank).layers["0"].attention
        assert (attention.heads, attention.kv_heads) == (1, 1)
        head = rank // 2
        assert cut_of(attention.k.weight).held[rank] == ((8 * head, 8 * head + 8),)
        assert cut_of(attention.k.weight).counts_on(rank) is (rank % 2 == 0)
        assert cut_of(attention.q.weight).counts_on(rank)


class Block(nn.Module):
    """Attention with a fused projection and fewer key/value heads than ranks, and a fused gate."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.attention = Attention(8, 4, 2, 2, index=0, fused=True)
        self.gate_up = nn.Linear(8, 24)
        self.down = nn.Linear(12, 8)
        self.head = LMHead(8, 5)


PLAN = Plan(
    {
        "embed": VocabRow(),
        "attention.qkv": Column(layout=fused("q", "k", "v")),
        "attention.out": Row(),
        "gate_up": Column(layout=fused("gate", "up")),
        "down": Row(),
        "head": VocabColumn(),
    }
)


@pytest.mark.parametrize("tp", [2, 4])
def test_fused_blocks_are_each_divided(tp):
    """A rank's fused rows are its part of every block, not a slice of the whole; shared ones are a parameter apart."""
    held = []
    for rank in range(tp):
        with torch.device("meta"):
            block = Block()
        PLAN.apply(block, Topology(rank=rank, world_size=tp, tp_size=tp))
        gate = 12 // tp
        expected = ((rank * gate, (rank + 1) * gate), (12 + rank * gate, 12 + (rank + 1) * gate))
        assert cut_of(block.gate_up.weight).held[rank] == expected
        qkv = [cut_of(p) for n, p in block.attention.qkv.named_parameters() if n.endswith("weight")]
        assert {cut.name for cut in qkv} == {"attention.qkv.weight"}
        held.append([cut.held[rank] for cut in qkv])
    if tp == 2:
        assert held == [[((0, 4), (8, 10), (12, 14))], [((4, 8), (10, 12), (14, 16))]]
    else:
        shared = [((8, 10), (12, 14)), ((10, 12), (14, 16))]
        assert held == [[((2 * rank, 2 * rank + 2),), shared[rank // 2]] for rank in range(4)]


@pytest.mark.parametrize(
    ("fields", "tp", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48}, 4,
         "tp_size=4 does not divide num_attention_heads=6 (llama). Use tp_size 1, 2 or 6."),
        ({"num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 96}, 4,
         "tp_size=4 neither divides num_key_value_heads=6 nor is a multiple of it (llama). "
         "Use tp_size 1, 2, 3, 6 or 12."),
        ({"intermediate_size": 50}, 4,
         "tp_size=4 does not divide the 50 rows of layers.0.mlp.gate (llama). Use tp_size 1 or 2."),
    ],
)  # fmt: skip
def test_sizes_that_do_not_divide_name_those_that_do(fields, tp, message):
    model = on_meta(LlamaForCausalLM, toy_llama_config(**fields))
    with pytest.raises(ParallelSizeError, match=f"^{re.escape(message)}$"):
        model.plan.check(model, tp, "llama")


def test_a_pattern_that_matches_nothing_is_an_error():
    with torch.device("meta"):
        block = Block()
    with pytest.raises(KeyError, match=r"attention\.query"):
        Plan({"attention.query": Column()}).apply(block, Topology(world_size=2, tp_size=2))


def test_an_unsplit_model_gives_its_own_names():
    """full_parameters of a part in a world of one rank: names and shapes are the whole model's."""
    model = part(Moss003MoonForCausalLM, toy_moss_config(), 1, 0)
    whole = {name: p.shape for name, p in on_meta(Moss003MoonForCausalLM, toy_moss_config()).named_parameters()}
    assert {name: t.shape for name, t in full_parameters(model, Topology())} == whole
