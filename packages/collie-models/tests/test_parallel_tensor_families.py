"""Every family over tensor-parallel ranks: logits, loss and each gradient are those of one process."""

import pytest
import torch
from safetensors.torch import load_file
from tensor_ranks import whole_gradients
from torch.testing import assert_close

import collie.models
from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.models._steps import own_plan
from collie.testing import golden

pytest.importorskip("deepspeed")


def test_every_family_says_how_it_is_split():
    """An inherited plan is none: its blocks may hold what the table of the family above does not name."""
    named = (getattr(collie.models, name) for name in collie.models.__all__ if name.endswith("ForCausalLM"))
    assert [family for family in named if own_plan(family) is None] == [CollieModelForCausalLM]


def on_golden(case, tp, sequence):
    """Logits of the case's padded batch, its loss inside the head, and all gradients."""
    config = CollieConfig.from_pretrained(str(golden(case)))
    config.tp_size, config.sequence_parallel, config.checkpointing = tp, sequence, False
    stored = load_file(golden(case) / "golden.safetensors")
    batch = [stored["input_ids"], stored["attention_mask"]]
    model = CollieModelForCausalLM.from_pretrained(golden(case), config=config)
    with torch.no_grad():
        logits = model(*batch).logits[batch[1].bool()]
    loss = model.train()(*batch, labels=stored["labels"], return_logits=False).loss
    loss.backward()
    return logits, loss.detach(), whole_gradients(model)


def whole_and_split(case, tp):
    return on_golden(case, tp, False), on_golden(case, tp, True)


@pytest.mark.parametrize(
    ("case", "tp"),
    [
        *(("llama3", 2), ("qwen2", 2), ("qwen3", 2), ("mistral_swa", 2), ("moss7b_via_llama", 2), ("internlm", 2)),
        *(("internlm2", 4), ("chatglm2", 2), ("chatglm2", 4), ("chatglm_shallow", 2), ("moss_moon", 2), ("codegen", 2)),
    ],
)
def test_a_family_in_parts_equals_its_golden_in_one_process(ranks, case, tp):
    """With the stream between blocks whole, and split along 19 positions, which neither 2 nor 4 divides.

    Of ChatGLM2 and InternLM2 each key/value head is on two of 4 ranks, in a fused projection.
    """
    [(logits, loss, grads)] = ranks(1, on_golden, case, 1, False)
    results = ranks(tp, whole_and_split, case, tp)
    for both in results:
        for ours in both:
            assert_close(ours[0], logits, atol=5e-5, rtol=0)
            assert_close(ours[1], loss, atol=1e-5, rtol=0)
    for _, _, ours in results[0]:
        assert ours.keys() == grads.keys()
        for name, grad in grads.items():
            assert_close(ours[name], grad, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
