"""From a checkpoint's folder to a run, in the layout that wrote it or another."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from collie.adapters import AdapterState, adapter_state, put_adapter_state
from collie.controller.trainer._checkpoint._encode import decode
from collie.controller.trainer._checkpoint._manifest import TRAINING, Manifest
from collie.controller.trainer._checkpoint._position import position_in
from collie.controller.trainer._checkpoint._random import put_random_numbers
from collie.controller.trainer._checkpoint._run import Position, Run, kind_of
from collie.controller.trainer._checkpoint._saved import SavedState
from collie.controller.trainer._checkpoint._snapshot import ADAPTER_INDEX, LEARNT, LEARNT_INDEX, STATE, rank_file
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM
from collie.models.weights import Checkpoint, StateTensors, open_indexed, open_reader
from collie.parallel import part_shape, put_state, refill, set_seed


def restore(run: Run, folder: Path, manifest: Manifest) -> Position:
    """Bring a run to where a checkpoint was written, and return its position.

    Raises:
        CheckpointError: the checkpoint is of another model, dtype or optimizer, or its position is not one of this
            run's data and batch size. The weights are replaced after all checks that need no optimizer.
    """
    state = json.loads((folder / TRAINING / STATE).read_text(encoding="utf-8"))
    _check_kind(run, folder, state)
    position = position_in(run, Position(**state["position"]), state["data"])
    saved = SavedState(run, folder, manifest)
    _put_weights(run, folder)
    if run.optimizer is not None:
        put_state(run.model, run.optimizer, run.topology, saved)
    _put_adapter_state(run, folder)
    for name, scheduler in run.schedulers().items():
        if name in state["schedulers"]:
            scheduler.load_state_dict(decode(state["schedulers"][name]))
    if state["scaler"] is not None:
        run.set_scaler_state(decode(state["scaler"]))
    _put_random_numbers(run, folder, manifest, position)
    run.callbacks.on_load_checkpoint(run.trainer, {name: decode(one) for name, one in state["callbacks"].items()})
    return position


def _check_kind(run: Run, folder: Path, state: dict[str, Any]) -> None:
    for what, saved, here in (
        ("weights in", state["dtype"], run.dtype),
        ("the optimizer", state["optimizer"], kind_of(run.optimizer)),
    ):
        if saved != here and here is not None:
            raise CheckpointError(
                f"{folder} was written with {what} {saved}, and this run has {here}. Resume with the same, or take "
                f"the weights alone with load_model."
            )


def _put_weights(run: Run, folder: Path) -> None:
    if run.adapter_alone:
        reader = open_indexed(folder / TRAINING / ADAPTER_INDEX)
        adapter = Checkpoint(reader, run.names, run.model_config, run.adapter_shapes())
        refill(run.model, run.topology, adapter.fill(torch.float32), only=run.keeps)  # its dtype may be another
        return
    if isinstance(run.model, CollieModelForCausalLM):
        run.model.load_weights(folder)
        return
    reader, model = open_reader(folder), run.model
    shapes = {name: part_shape(parameter) for name, parameter in model.named_parameters()}
    every = (name for name, _ in model.named_parameters(remove_duplicate=False))
    dtype = next(model.parameters()).dtype
    checkpoint = Checkpoint(reader, run.names, run.model_config, shapes, [name for name in every if name not in shapes])
    refill(model, run.topology, checkpoint.fill(dtype))
    with torch.no_grad():
        for name, buffer in run.buffers.items():
            if name in reader.tensors:
                rows = buffer.shape[0] if buffer.shape else 1
                buffer.copy_(reader.rows(name, [(0, rows)]).view(buffer.shape))


def _put_adapter_state(run: Run, folder: Path) -> None:
    """Give back what an adapter's training has learnt besides its values, if it learns such."""
    if run.adapter is None or adapter_state(run.model) is None:
        return
    learnt = folder / TRAINING / LEARNT
    if not learnt.is_file():
        raise CheckpointError(
            f"{folder} has no {TRAINING}/{LEARNT}: it is of another kind of adapter. Resume with the peft_config that "
            f"wrote it."
        )
    tensors = StateTensors(folder / TRAINING / LEARNT_INDEX, run.names, run.model_config)
    found = {
        (name, key): tensors.fill(key)(name, stored.shape, 0, stored.shape.numel()).view(stored.shape).clone()
        for name, stored in run.adapter.stored.items()
        for key in tensors.keys(name)
    }
    updates = json.loads(learnt.read_text(encoding="utf-8"))["updates"]
    put_adapter_state(run.model, AdapterState(updates, found))


def _put_random_numbers(run: Run, folder: Path, manifest: Manifest, position: Position) -> None:
    """Turn generators back to where they stood, if the checkpoint has this rank's; else seed them for this step.

    The ranks of a tensor-parallel group draw alike, so theirs fit any tp_size.
    """
    topology, saved = run.topology, manifest.layout
    if (saved["pp_size"], saved["dp_size"]) != (topology.pp_size, topology.dp_size):
        set_seed(run.config, after=position.finished)
        return
    tp_rank = topology.tp_rank if saved["tp_size"] == topology.tp_size else 0
    rank = (topology.pp_rank * topology.dp_size + topology.dp_rank) * saved["tp_size"] + tp_rank
    states: dict[str, Tensor] = load_file(folder / rank_file(rank))
    put_random_numbers(states, topology.device)
