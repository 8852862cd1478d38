"""Name patterns choose what is trained and what decays, the same in every layout."""

import pytest
import torch
from torch import nn
from toy_training import make_config, make_model

from collie.interfaces import ConfigError
from collie.optim import Lomo, freeze, param_groups, train_only
from collie.parallel import active_topology, original_of, setup_distribution
from collie.testing import run_ranks, toy_llama_config


def toy():
    return nn.ModuleDict({"embed": nn.Embedding(3, 2), "layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(2))})


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_patterns_choose_what_is_trained():
    model = toy()
    freeze(model, ["embed*", "*.bias"])
    assert trained(model) == {"layers.0.weight", "layers.1.weight"}
    train_only(model, "layers.1.*")
    assert trained(model) == {"layers.1.weight", "layers.1.bias"}


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"freeze='\*layer.1.wieght'.*layers\.1\.weight"):
        freeze(toy(), ["embed*", "*layer.1.wieght"])
    with pytest.raises(ConfigError, match="train_only got no pattern"):
        train_only(toy(), [])
    with pytest.raises(ConfigError, match=r"no_decay='\*nrom\*'"):
        param_groups(toy(), 0.1, no_decay=("*nrom*",))
    assert len(param_groups(toy(), 0.1, no_decay=("*bias", "*norm*"))) == 2  # one of several may be for other models


def test_groups_for_a_torch_optimizer():
    model = toy()
    freeze(model, "embed*")
    decayed, others = torch.optim.AdamW(param_groups(model, 0.1, no_decay="*bias")).param_groups
    assert (decayed["weight_decay"], [p.dim() for p in decayed["params"]]) == (0.1, [2, 2])
    assert (others["weight_decay"], [p.dim() for p in others["params"]]) == (0.0, [1, 1])


def test_lomo_decays_what_no_pattern_names_and_each_group_has_its_learning_rate():
    model = toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Lomo(model, lr=0.5, weight_decay=0.1, no_decay=("*bias", "embed*"))
    for group, lr in zip(optimizer.param_groups, (0.5, 0.2), strict=True):
        group["lr"] = lr
    optimizer.fused_backward(sum(p.sum() for p in model.parameters()))  # every gradient is 1
    for name, parameter in model.named_parameters():
        lr, decay = (0.2, 0.0) if "bias" in name or "embed" in name else (0.5, 0.1)
        torch.testing.assert_close(parameter.detach(), before[name] - lr * (1 + decay * before[name]))
    optimizer.fused_backward(sum(p.sum() for p in model.parameters()), lr=0.0)  # for all of them
    torch.testing.assert_close(model["embed"].weight.detach(), before["embed.weight"] - 0.2)


def test_stages_agree_on_patterns_and_copies_follow_their_originals():
    """A pattern may name another stage's layers; a tied head on the last stage is the embedding of the first."""

    def run():
        config = make_config(0, pp_size=2)
        config.model_config = toy_llama_config(num_hidden_layers=2, tie_word_embeddings=True)
        setup_distribution(config)
        model = make_model(config)
        freeze(model, ["embed.*", "layers.0.*"])
        copies = [p for p in model.parameters() if original_of(p)]
        with pytest.raises(ConfigError, match=r"layers\.7"):
            freeze(model, "layers.7.*")
        assert [p.requires_grad for p in copies] == [False] * active_topology().pp_rank
        return sorted({name.split(".")[0] + "." + name.split(".")[1] for name in trained(model)})

    assert run_ranks(2, run) == [[], ["layers.1", "norm.weight"]]
