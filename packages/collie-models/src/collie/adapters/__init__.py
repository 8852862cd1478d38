"""Adapters (LoRA and its kin) through PEFT, in every parallel layout."""

from collie.adapters._adalora import after_update
from collie.adapters._adapter import Adapter, adapter_of
from collie.adapters._attach import add_adapter
from collie.adapters._merge import merge
from collie.adapters._names import AdapterNames, refuse_unresumable
from collie.adapters._peft import load_peft, prepare_to_train, refuse_wrapper, save_peft
from collie.adapters._supported import refuse_unsupported

__all__ = [
    "Adapter",
    "AdapterNames",
    "adapter_of",
    "add_adapter",
    "after_update",
    "load_peft",
    "merge",
    "prepare_to_train",
    "refuse_unresumable",
    "refuse_unsupported",
    "refuse_wrapper",
    "save_peft",
]
