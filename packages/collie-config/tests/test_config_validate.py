"""What validate() sets, and the sentence that each bad value gets."""

import warnings

import pytest

from collie.config import INITIALIZATIONS, CollieConfig
from collie.interfaces import ConfigError, ParallelSizeError


def valid(world_size: int = 1, **values) -> CollieConfig:
    config = CollieConfig(**values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.validate(world_size)
    return config


@pytest.mark.parametrize(
    ("world", "tp", "pp", "dp"), [(1, 1, 1, 1), (2, 2, 1, 1), (4, 2, 2, 1), (4, 1, 1, 4), (8, 2, 1, 4), (24, 2, 3, 4)]
)
def test_dp_size_1_means_what_is_left(world, tp, pp, dp):
    """And a warning says so where that is not 1, once."""
    config = CollieConfig(tp_size=tp, pp_size=pp)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config.validate(world)
        config.validate(world)
    assert config.dp_size == dp
    expected = [f"dp_size=1 becomes {dp}: {world} ranks / (tp_size={tp} × pp_size={pp})."] if dp > 1 else []
    assert [str(warning.message) for warning in caught] == expected
    assert all(warning.filename == __file__ for warning in caught)  # it points at the caller


def test_only_rank_0_warns(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert valid(4).dp_size == 4


def test_a_dp_size_that_was_asked_for_must_be_exact():
    assert valid(8, dp_size=4, tp_size=2).dp_size == 4
    with pytest.raises(ParallelSizeError) as caught:
        valid(8, dp_size=2, tp_size=2)
    assert str(caught.value) == (
        "dp_size=2 × tp_size=2 × pp_size=1 = 4 is not the world of 8 ranks. "
        "Set dp_size=4, or leave it at 1 to have it set by itself."
    )


def test_a_world_that_the_sizes_do_not_divide():
    with pytest.raises(ParallelSizeError) as caught:
        valid(6, tp_size=2, pp_size=2)
    assert str(caught.value) == (
        "tp_size=2 × pp_size=2 = 4 does not divide the world of 6 ranks. "
        "Start a multiple of 4 ranks, or set sizes whose product divides 6."
    )


@pytest.mark.filterwarnings("ignore:dp_size=1 becomes")
def test_a_dp_size_that_was_set_by_itself_follows_the_layout():
    """The same configuration can be validated for another layout; one that the user sets again is exact again."""
    config = CollieConfig()
    config.validate(4)
    config.tp_size = 2
    config.validate(4)
    assert config.dp_size == 2
    config.validate(2)
    assert config.dp_size == 1
    config.dp_size = 4
    with pytest.raises(ParallelSizeError, match="dp_size=4"):
        config.validate(4)


def test_valid_config_is_the_same():
    config = CollieConfig(tp_size=2)
    config.valid_config(2)
    assert config.dp_size == 1
    with pytest.raises(ParallelSizeError, match="tp_size=2"):
        config.valid_config(3)


@pytest.mark.parametrize("world", [0, -1, True, "2", 1.0])
def test_the_world_is_a_number_of_ranks(world):
    with pytest.raises(ParallelSizeError, match="world_size="):
        valid(world)


WHOLE = {
    "seed": 0,
    "dp_size": 1,
    "pp_size": 1,
    "tp_size": 1,
    "train_epochs": 1,
    "eval_per_n_steps": 0,
    "eval_per_n_epochs": 0,
    "train_micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_batch_size": 1,
    "dataloader_num_workers": 0,
}


@pytest.mark.parametrize(("name", "least"), WHOLE.items())
def test_whole_numbers_have_a_least_value(name, least):
    valid(**{name: least})
    for value in (least - 1, -5, 1.5, "1", None, True):
        with pytest.raises(ConfigError) as caught:
            valid(**{name: value})
        assert str(caught.value) == (
            f"{name}={value!r} is not a whole number of at least {least}. Set it to {least} or more."
        )


@pytest.mark.parametrize(
    "name", ["checkpointing", "use_flash", "low_cpu_mem_usage", "sequence_parallel", "group_by_length"]
)
@pytest.mark.parametrize("value", [1, "true", None])
def test_switches_are_true_or_false(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value!r} is not a bool. Set it to True or False."):
        valid(**{name: value})


ZERO = "ds_config asks for ZeRO stage"
ON = {"enabled": True}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seed": 2**32}, "seed=4294967296 does not fit 32 bits. Set it below 4294967296."),
        (
            {"sequence_parallel": True},
            "sequence_parallel=True splits sequences over tensor-parallel ranks, and tp_size=1 has no second one. "
            "Set tp_size to 2 or more, or sequence_parallel to False.",
        ),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability. Set it to at least 0.0 and below 1.0."),
        ({"dropout": 1.5}, "dropout=1.5 is not a probability."),
        ({"dropout": -0.1}, "dropout=-0.1 is not a probability."),
        ({"dropout": float("nan")}, "dropout=nan is not a probability."),
        ({"dropout": "0.1"}, "dropout='0.1' is not a probability."),
        (
            {"pp_partition_method": "even"},
            "pp_partition_method='even' is unknown. Use 'parameters', 'uniform' or 'type:REGEX'.",
        ),
        (
            {"pp_size": 2, "ds_config": {"zero_optimization": {"stage": 1, "overlap_comm": True}}},
            "ds_config['zero_optimization']['overlap_comm'] works inside DeepSpeed's backward pass, and with pp_size=2",
        ),
        ({"pp_schedule": "gpipe"}, "pp_schedule='gpipe' is unknown. Use '1f1b' or 'interleaved'."),
        ({"on_nan": "warn"}, "on_nan='warn' is unknown. Use 'stop', 'skip', 'ignore'."),
        ({"pp_partition_method": [2, 2]}, "pp_partition_method=[2, 2] is unknown."),
        ({"pp_partition_method": "type:"}, "pp_partition_method='type:' is unknown."),
        ({"pp_partition_method": "type:("}, "pp_partition_method='type:(' is no regular expression after 'type:'"),
        ({"initization_method": "kaiming_norm"}, "initization_method='kaiming_norm' is unknown. Use 'kaiming_normal'."),
        ({"initization_method": "zzz"}, "initization_method='zzz' is unknown. Use one of none, normal"),
        ({"initization_method": None}, "initization_method=None is unknown."),
        ({"init_method": "normal", "initization_method_params": [1]}, "initization_method_params=[1] is no dict"),
        ({"initization_method_params": {"std": 1}}, "initization_method_params={'std': 1} has no effect"),
        ({"ds_config": {"zero_optimization": {"stage": 4}}}, "zero_optimization.stage=4. Use 0, 1, 2 or 3."),
        ({"ds_config": {"zero_optimization": {"stage": "3"}}}, "zero_optimization.stage='3'. Use"),
        ({"ds_config": {"zero_optimization": {"stage": 2.0}}}, "zero_optimization.stage=2.0. Use 0, 1, 2 or 3."),
        ({"ds_config": {"zero_optimization": {"stage": "auto"}}}, "zero_optimization.stage='auto'. Use 0, 1, 2 or 3."),
        ({"ds_config": {"zero_optimization": {"stage": [1]}}}, "zero_optimization.stage=[1]. Use 0, 1, 2 or 3."),
        ({"ds_config": {"zero_optimization": {"stage": None}}}, "zero_optimization.stage=None. Use 0, 1, 2 or 3."),
        ({"ds_config": {"bf16": {"enabled": "yes"}}}, "ds_config has bf16.enabled='yes'. Use true, false or 'auto'."),
        ({"ds_config": {"fp16": True}}, 'ds_config has fp16=True. Write {"enabled": true}.'),
        ({"ds_config": {"zero_optimization": {"stage": True}}}, "zero_optimization.stage=True. Use"),
        ({"ds_config": {"zero_optimization": True}}, 'zero_optimization=True. Write {"stage": 0}'),
        ({"ds_config": {"fp16": ON, "bf16": ON}}, "ds_config enables both fp16 and bf16. Enable one of them."),
        (
            {"ds_config": {"train_micro_batch_size_per_gpu": 4}},
            "ds_config has train_micro_batch_size_per_gpu=4, but train_micro_batch_size=1. Leave it out of ds_config.",
        ),
        (
            {"ds_config": {"gradient_accumulation_steps": 4}, "gradient_accumulation_steps": 2},
            "ds_config has gradient_accumulation_steps=4, but gradient_accumulation_steps=2.",
        ),
        (
            {"ds_config": {"train_batch_size": 3}, "train_micro_batch_size": 2},
            "train_batch_size=3, but train_micro_batch_size=2 × gradient_accumulation_steps=1 × dp_size=1 = 2.",
        ),
        ({"ds_config": {"monitor_config": {"csv_monitor": 3}}}, "ds_config has csv_monitor=3, which is not a dict."),
        ({"ds_config": {"monitor_config": {"enabled": "yes"}}}, "monitor_config.enabled='yes'. Use true or false."),
        ({"ds_config": {"monitor_config": {"tag": 3}}}, "monitor_config.tag=3, which is not a string."),
        ({"ds_config": {"csv_monitor": {"enabled": 1}}}, "ds_config has csv_monitor=1. Use true or false."),
        ({"ds_config": {"comet": ON}}, "the monitor 'comet'. Use csv_monitor, tensorboard, wandb."),
        ({"ds_config": {"monitor_config": {"csv": ON}}}, "the monitor 'csv'. Use csv_monitor, tensorboard, wandb."),
        ({"model_config": None}, "model_config=None describes no model."),
        ({"model_config": "llama"}, "model_config='llama' has type str. Give a configuration object or a dict."),
        ({"peft_config": "lora"}, "peft_config='lora' has type str. Give a configuration object or a dict."),
        ({"quantization_config": 4}, "quantization_config=4 has type int. Give a configuration object or a dict."),
    ],
)
def test_a_bad_value_gets_a_sentence(values, sentence):
    with pytest.raises(ConfigError) as caught:
        valid(**values)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_with_gradient_partitioning_and_a_pipeline_is_refused(stage):
    values = {"pp_size": 2, "ds_config": {"zero_optimization": {"stage": stage}}}
    with pytest.raises(ConfigError) as caught:
        valid(2, **values)
    assert str(caught.value).startswith(f"{ZERO} {stage} with pp_size=2.")
    assert str(caught.value).endswith("Use stage 0 or 1, or pp_size=1.")


@pytest.mark.parametrize("stage", [0, 1])
def test_zero_0_and_1_go_with_a_pipeline(stage):
    assert valid(2, pp_size=2, ds_config={"zero_optimization": {"stage": stage}}).zero_stage == stage


@pytest.mark.parametrize("method", INITIALIZATIONS)
def test_each_initialization_is_accepted(method):
    valid(initization_method=method, initization_method_params=None if method == "none" else {"a": 1})


@pytest.mark.parametrize("method", ["parameters", "uniform", "type:(Llama|Moss).*Layer"])
def test_each_partition_method_is_accepted(method):
    valid(pp_partition_method=method)


def test_ds_config_may_repeat_the_sizes():
    sizes = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3, "train_batch_size": 24}
    valid(4, dp_size=4, train_micro_batch_size=2, gradient_accumulation_steps=3, ds_config=sizes)
    valid(ds_config=dict.fromkeys(sizes, "auto"))


AUTO = {"enabled": "auto"}


@pytest.mark.parametrize(
    "ds_config",
    [
        {"bf16": AUTO},
        {"fp16": AUTO, "bf16": ON},
        {"fp16": "auto", "bf16": None},
        {"tensorboard": AUTO, "comet": AUTO},
        {"monitor_config": {"csv_monitor": AUTO | {"output_path": "x"}, "enabled": "auto"}},
        {"monitor_config": "auto", "wandb": "auto"},
        {"gradient_clipping": "auto", "train_batch_size": "auto"},
    ],
)
def test_auto_is_as_good_as_not_set(ds_config):
    """transformers' Trainer wants its users to write it wherever it knows better."""

    def without(value):
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if item not in ("auto", None)}
        return value

    config = valid(ds_config=ds_config)
    assert config.monitor_config == valid(ds_config=without(ds_config)).monitor_config
    assert config.zero_stage == 0


def test_validate_leaves_a_refused_config_as_it_was():
    config = CollieConfig(ds_config={"train_batch_size": 3})
    with pytest.raises(ConfigError):
        config.validate(1)
    assert config.dp_size == 1


CSV = {"enabled": True, "output_path": "./logs/"}
OFF = {"enabled": False, "job_name": "collie"}


@pytest.mark.parametrize(
    ("ds_config", "csv", "tag"),
    [
        ({}, OFF, ""),
        ({"csv_monitor": CSV}, CSV | {"job_name": "collie"}, ""),
        ({"csv_monitor": CSV | {"job_name": "j"}}, CSV | {"job_name": "j"}, ""),
        ({"csv_monitor": {"output_path": "x"}}, OFF | {"output_path": "x"}, ""),  # DeepSpeed: off unless enabled
        ({"monitor_config": {"enabled": True, "tag": "t", "csv_monitor": CSV}}, CSV | {"job_name": "t"}, "t"),
        ({"monitor_config": {"csv_monitor": CSV}}, CSV | {"job_name": "collie"}, ""),
        (
            {"monitor_config": {"csv_monitor": {"output_path": "x"}}},
            {"enabled": True, "output_path": "x", "job_name": "collie"},
            "",
        ),
        (
            {"monitor_config": {"enabled": False, "csv_monitor": CSV}},
            CSV | {"enabled": False, "job_name": "collie"},
            "",
        ),
        ({"monitor_config": {"enabled": False}, "csv_monitor": CSV}, CSV | {"job_name": "collie"}, ""),
        ({"monitor_config": {"csv_monitor": CSV | {"enabled": False}}}, CSV | OFF, ""),
        ({"comet": {"enabled": False}}, OFF, ""),
    ],
)
def test_both_spellings_of_monitors_mean_the_same(ds_config, csv, tag):
    normal = valid(ds_config=ds_config).monitor_config
    assert normal["csv_monitor"] == csv and normal["tag"] == tag
    assert not normal["tensorboard"]["enabled"] and not normal["wandb"]["enabled"]
