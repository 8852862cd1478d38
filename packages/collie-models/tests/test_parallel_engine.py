"""One engine a model, and the same steps as a bare loop in every ZeRO stage."""

import pytest
import torch
from torch import nn

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.parallel import deepspeed_config, engine_for, full_parameters, materialise, setup_distribution
from collie.testing import run_ranks

pytest.importorskip("deepspeed")


def _net():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def _data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 4, generator=generator) * 5, torch.randn(4, 3, generator=generator) * 5


def _config(stage, **fields):
    config = CollieConfig()
    config.ds_config = {"zero_optimization": {"stage": stage}}
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _spread(config):
    topology = setup_distribution(config)
    weights = dict(_net().named_parameters())
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    materialise(model, config, topology, torch.float32, lambda name, shape, a, b: weights[name].detach().flatten()[a:b])
    return model, topology


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_three_steps_equal_a_bare_loop(stage):
    """SGD on two ranks, gradients far above norm 1 (DeepSpeed clips by default), a forward pass between the steps."""
    x, y = _data()
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        loss = (model(x) - y).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        assert norm > 1
        optimizer.step()
        optimizer.zero_grad()

    def run():
        config = _config(stage)
        ours, topology = _spread(config)
        engine = engine_for(ours, config, torch.optim.SGD(ours.parameters(), lr=0.01))
        mine = slice(2 * topology.rank, 2 * topology.rank + 2)
        for _ in range(3):
            engine.backward((engine(x[mine]) - y[mine]).square().mean())
            assert engine.step()
            with torch.no_grad():
                ours(x)
        return dict(full_parameters(ours, topology))

    ours = run_ranks(2, run)[0]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), atol=1e-6, rtol=0)


def test_a_process_that_nobody_launched_partitions_and_trains():
    """`python script.py` under ZeRO-3: DeepSpeed reads torchrun's variables, and there are none."""

    def run():
        import os

        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        x, y = _data()
        config = _config(3)
        model, _ = _spread(config)
        engine = engine_for(model, config, torch.optim.SGD(model.parameters(), lr=0.01))
        losses = []
        for _ in range(2):
            loss = (engine(x) - y).square().mean()
            losses.append(loss.item())
            engine.backward(loss)
            engine.step()
        return losses

    first, second = run_ranks(1, run)[0]
    assert second < first


def test_exactly_one_engine_a_model():
    """The forward-only engine of ZeRO-3 is replaced when an optimizer comes, and asked for again it is the same one."""

    def run():
        config = _config(3)
        model, _ = _spread(config)
        forward_only = engine_for(model, config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = engine_for(model, config, optimizer)
        same = engine_for(model, config, optimizer)
        return forward_only is engine_for(model, config), training is forward_only, training is same

    assert run_ranks(1, run) == [(False, False, True)]


def test_whole_tensor_statistics_are_refused_on_shards():
    """Adafactor factors a matrix; ZeRO gives it a flat piece."""

    def run():
        config = _config(1)
        model, _ = _spread(config)
        with pytest.raises(ConfigError, match=r"Adafactor.*stage 1"):
            engine_for(model, config, torch.optim.Adafactor(model.parameters()))
        return True

    assert run_ranks(1, run) == [True]


def test_clipping_is_always_written_and_the_users_is_kept():
    """DeepSpeed's default clips at 1.0."""
    assert deepspeed_config(_config(0), torch.float32)["gradient_clipping"] == 0.0
    config = _config(0)
    config.ds_config = {"gradient_clipping": 2.5}
    assert deepspeed_config(config, torch.float32)["gradient_clipping"] == 2.5


def test_sizes_are_the_fields_and_precision_is_the_models():
    config = _config(0, train_micro_batch_size=2, gradient_accumulation_steps=3)
    made = deepspeed_config(config, torch.float32)
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (2, 3)
    config.ds_config = {"bf16": {"enabled": True}}
    with pytest.raises(ConfigError, match=r"bf16.*float32"):
        deepspeed_config(config, torch.float32)
    assert deepspeed_config(_config(0), torch.bfloat16)["bf16"] == {"enabled": True}
