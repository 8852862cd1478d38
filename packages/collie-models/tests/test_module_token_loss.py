"""Which tokens a batch's loss is over, and that the head's way and the logits' way agree."""

import pytest
import torch
from torch import nn

from collie.config import CollieConfig
from collie.data import ColliePadder
from collie.interfaces import ConfigError, DataError
from collie.models import CollieModelForCausalLM
from collie.module import GPTLMLoss, call_by_name, count_targets, targets, token_loss
from collie.testing import run_ranks, toy_llama_config

ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}]


@pytest.mark.parametrize("left", [False, True])
def test_padding_on_either_side_counts_the_same_targets(left):
    """A row's first token is predicted by nothing, so not by padding either: 2 + 1 targets."""
    batch = ColliePadder(padding_left=left)(ROWS)
    assert int(count_targets(targets(batch))) == 3
    assert int(count_targets(targets(batch, -1), -1)) == 3


def test_rows_without_labels_learn_every_token_but_padding():
    batch = ColliePadder(padding_left=True)([{"input_ids": row["input_ids"]} for row in ROWS])
    assert targets(batch).tolist() == [[5, 6, 7, 8], [-100, -100, -100, 4]]
    with pytest.raises(DataError, match=r"labels or input_ids.*text"):
        targets({"text": ["a"]})


def test_the_head_and_the_logits_give_the_same_sum():
    """With return_logits and behind a wrapper without it, padded on either side: one number."""

    def run():
        config = CollieConfig()
        config.model_config = toy_llama_config()
        model = CollieModelForCausalLM.from_config(config)

        class Plain(nn.Module):
            def forward(self, input_ids, attention_mask):
                return model(input_ids, attention_mask)

        sums = []
        for left in (False, True):
            batch = ColliePadder(padding_left=left)(ROWS)
            for one in (model, Plain()):
                sums.append(token_loss(one, batch, GPTLMLoss()).item())
        return [*sums, 3 * token_loss(model, ColliePadder()(ROWS), GPTLMLoss(), divisor=3).item()]

    sums = run_ranks(1, run)[0]
    assert sums == pytest.approx([sums[0]] * 5, rel=1e-5) and sums[0] > 3


def test_functions_get_what_they_name():
    known = {"logits": torch.ones(1), "labels": None, "mask": 2}
    assert call_by_name(lambda mask, scale=3: mask * scale, known) == 6
    assert sorted(call_by_name(lambda **everything: everything, known)) == ["labels", "logits", "mask"]
    with pytest.raises(ConfigError, match=r"judge takes logits, labels.*have labels.*logits, mask"):
        call_by_name(lambda logits, labels: 0, known, "judge")
