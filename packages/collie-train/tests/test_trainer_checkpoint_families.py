"""An optimizer's state from layout to layout, bit for bit, for weights that are fused, reordered, copied or tied."""

import pytest
import torch
from resuming import adalomo, adamw
from safetensors.torch import load_file
from toy_training import make_config, make_model, rows
from transformers import PretrainedConfig

from collie.controller.trainer import Trainer
from collie.models.internlm2 import InternLM2Config
from collie.testing import run_ranks, toy_config, toy_llama_config, toy_moss_config

CHATGLM2 = PretrainedConfig.from_dict(
    {
        "model_type": "chatglm", "padded_vocab_size": 97, "hidden_size": 32, "ffn_hidden_size": 48, "num_layers": 2,
        "num_attention_heads": 4, "multi_query_group_num": 2, "kv_channels": 8, "seq_length": 64, "rmsnorm": True,
        "multi_query_attention": True, "add_qkv_bias": True, "add_bias_linear": False, "layernorm_epsilon": 1e-5,
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def tensors(folder):
    """All tensors of a checkpoint but random numbers, by file stem and name."""
    files = [file for file in folder.rglob("*.safetensors") if not file.name.startswith("rank-")]
    return {
        (file.name.partition("-")[0].partition(".")[0], name): tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    ("model_config", "optimizer", "wide"),
    [
        (toy_config(InternLM2Config), adamw, {"tp_size": 4}),  # rows in groups by kv head, which two ranks copy
        (CHATGLM2, adamw, {"tp_size": 4, "stage": 1}),  # queries, and copies of keys and values, in one projection
        (CHATGLM2, adalomo, {"tp_size": 4}),
        (toy_moss_config(), adamw, {"tp_size": 2, "stage": 3}),
        (toy_moss_config(), adalomo, {"tp_size": 2, "stage": 3}),
        (toy_llama_config(tie_word_embeddings=True), adamw, {"pp_size": 2, "stage": 1, "accumulate": 2, "micro": 2}),
        (toy_llama_config(tie_word_embeddings=True), adalomo, {"pp_size": 2, "accumulate": 2, "micro": 2}),
    ],
    ids=["internlm2", "chatglm2", "chatglm2 adalomo", "moss", "moss adalomo", "tied", "tied adalomo"],
)
def test_states_move_between_layouts_bit_for_bit(tmp_path, model_config, optimizer, wide):
    """Made in bfloat16 by many ranks; loaded and saved again by one, and that by many."""

    def trainer(layout):
        config = make_config(**layout, model_config=model_config)
        model = make_model(config, torch.bfloat16)
        return Trainer(model, config, optimizer=optimizer(model), train_dataset=rows())

    def make(layout, path):
        made = trainer(layout)
        made.train()
        made.save_checkpoint(path)

    def copy(layout, source, path):
        made = trainer(layout)
        made.load_checkpoint(source)
        made.save_checkpoint(path)

    ranks = wide.get("tp_size", 1) * wide.get("pp_size", 1) * (2 if wide.get("stage") == 3 else 1)
    run_ranks(ranks, make, wide, tmp_path / "wide")
    run_ranks(1, copy, {"stage": 1}, tmp_path / "wide", tmp_path / "one")
    run_ranks(ranks, copy, wide, tmp_path / "one", tmp_path / "back")
    expected = tensors(tmp_path / "wide")
    keys = {name.partition("/")[0] for stem, name in expected if stem == "optimizer"}
    if optimizer is adamw:
        assert keys == {"exp_avg", "exp_avg_sq", "master"}
    else:
        assert keys == {"exp_avg_sq", "fixed:exp_avg_sq_row", "fixed:exp_avg_sq_col"}
    for folder in ("one", "back"):
        found = tensors(tmp_path / folder)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]) and tensor.dtype == found[name].dtype, (folder, name)
