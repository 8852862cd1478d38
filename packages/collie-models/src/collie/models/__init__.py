"""Language models that CoLLiE builds itself, so that they can be split over ranks."""

from collie.models._generation import CausalLMOutput
from collie.models._registry import find_family, register
from collie.models.base import CollieModelForCausalLM
from collie.models.llama import LlamaForCausalLM
from collie.models.mistral import MistralForCausalLM
from collie.models.moss_moon import Moss003MoonConfig, Moss003MoonForCausalLM
from collie.models.qwen2 import Qwen2ForCausalLM
from collie.models.qwen3 import Qwen3ForCausalLM

__all__ = [
    "CausalLMOutput",
    "CollieModelForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Moss003MoonConfig",
    "Moss003MoonForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "find_family",
    "register",
]
