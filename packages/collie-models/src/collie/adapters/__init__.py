"""Adapters (LoRA and its kin) through PEFT, in every parallel layout."""

from collie.adapters._adalora import AdapterState, adapter_state, after_step, put_adapter_state
from collie.adapters._adapter import Adapter, adapter_of
from collie.adapters._attach import add_adapter
from collie.adapters._merge import merge
from collie.adapters._names import AdapterNames
from collie.adapters._peft import load_peft, prepare_to_train, refuse_wrapper, save_peft
from collie.adapters._supported import refuse_unsupported
from collie.adapters._wrapped import wrapped_adapters

__all__ = [
    "Adapter",
    "AdapterNames",
    "AdapterState",
    "adapter_of",
    "adapter_state",
    "add_adapter",
    "after_step",
    "load_peft",
    "merge",
    "prepare_to_train",
    "put_adapter_state",
    "refuse_unsupported",
    "refuse_wrapper",
    "save_peft",
    "wrapped_adapters",
]
