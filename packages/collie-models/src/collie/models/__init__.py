"""Language models that CoLLiE builds itself, so that they can be split over ranks."""

from collie.models._generation import CausalLMOutput
from collie.models._registry import find_family, register
from collie.models.base import CollieModelForCausalLM
from collie.models.llama import LlamaForCausalLM
from collie.models.moss_moon import Moss003MoonConfig, Moss003MoonForCausalLM

__all__ = [
    "CausalLMOutput",
    "CollieModelForCausalLM",
    "LlamaForCausalLM",
    "Moss003MoonConfig",
    "Moss003MoonForCausalLM",
    "find_family",
    "register",
]
