"""Every family on pipeline stages, and on those with tensor parallelism: logits, gradients and files of one process."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.parallel import active_topology, cut_of, full_parameters, original_of
from collie.testing import golden

pytest.importorskip("deepspeed")
CASES = ("llama3", "qwen2", "qwen3", "mistral_swa", "moss7b_via_llama", "internlm", "internlm2", "chatglm2")
CASES += ("chatglm_shallow", "moss_moon", "codegen")  # the first three have tied ends


def on_golden(case, folder, tp, pp):
    """Logits of the case's padded batch, its loss inside the head, and the gradients of this rank's stage, where it
    leads one; the weights are saved to `folder`."""
    config = CollieConfig.from_pretrained(str(golden(case)))
    config.tp_size, config.pp_size, config.checkpointing = tp, pp, False
    stored = load_file(golden(case) / "golden.safetensors")
    batch = [stored["input_ids"], stored["attention_mask"]]
    model = CollieModelForCausalLM.from_pretrained(golden(case), config=config)
    model.save_pretrained(folder / case)
    with torch.no_grad():
        logits = model(*batch).logits[batch[1].bool()]
    loss = model.train()(*batch, labels=stored["labels"], return_logits=False).loss
    loss.backward()
    return logits, loss.detach(), gradients(model)


def gradients(model):
    """(the tied weight's name or None, whole gradient) by name; each end of a tied weight has its share of it."""
    tied = {}
    for name, parameter in model.named_parameters():
        cut, parameter.data = cut_of(parameter), parameter.grad.clone()
        tied[cut.name if cut is not None else name] = original_of(parameter)
    walked = full_parameters(model, active_topology(), copies=True)
    return {name: (tied[name], whole.clone()) for name, whole in walked if whole is not None}


def weights(folder):
    """The tensors of a checkpoint; each stage has written files of its own."""
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def all_on_goldens(folder, tp=1, pp=1):
    return {case: on_golden(case, folder, tp, pp) for case in CASES}


@pytest.fixture(scope="module")
def one_process(ranks, tmp_path_factory):
    """Its results, and where it has saved the weights."""
    folder = tmp_path_factory.mktemp("one")
    [results] = ranks(1, all_on_goldens, folder)
    return results, folder


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 2)])
def test_every_family_on_stages_equals_one_process(ranks, one_process, tmp_path, tp, pp):
    """Saved tensors have the same names, and are equal to the bit."""
    expected, saved_alone = one_process
    results = ranks(tp * pp, all_on_goldens, tmp_path, tp, pp)
    for case, (logits, loss, alone) in expected.items():
        summed = {}
        for their_logits, their_loss, grads in (rank[case] for rank in results):
            assert_close(their_logits, logits, atol=5e-5, rtol=0, msg=lambda text, case=case: f"{case}: {text}")
            assert_close(their_loss, loss, atol=1e-5, rtol=0)
            for name, (tied, grad) in grads.items():
                key = tied or name
                summed[key] = summed[key] + grad if key in summed else grad
        assert summed.keys() == alone.keys()
        for name, (_, grad) in alone.items():
            assert_close(summed[name], grad, atol=1e-5, rtol=1e-3, msg=lambda text, at=(case, name): f"{at}: {text}")
        saved, source = (weights(folder / case) for folder in (tmp_path, saved_alone))
        assert saved.keys() == source.keys()
        assert all(torch.equal(saved[name], source[name]) for name in source)
