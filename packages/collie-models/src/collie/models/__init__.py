"""Language models that CoLLiE builds itself, so that they can be split over ranks."""

from collie.models._generation import CausalLMOutput
from collie.models._initialise import generator_for
from collie.models._quantize import is_quantized, keep_trainable
from collie.models._registry import find_family, register
from collie.models._steps import require_values
from collie.models.base import CollieModelForCausalLM
from collie.models.chatglm import ChatGLMConfig, ChatGLMForCausalLM
from collie.models.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from collie.models.internlm import InternLMConfig, InternLMForCausalLM
from collie.models.internlm2 import InternLM2Config, InternLM2ForCausalLM
from collie.models.llama import LlamaForCausalLM
from collie.models.mistral import MistralForCausalLM
from collie.models.moss import MossConfig, MossForCausalLM
from collie.models.moss_moon import Moss003MoonConfig, Moss003MoonForCausalLM
from collie.models.qwen2 import Qwen2ForCausalLM
from collie.models.qwen3 import Qwen3ForCausalLM

__all__ = [
    "CausalLMOutput",
    "ChatGLM2Config",
    "ChatGLM2ForCausalLM",
    "ChatGLMConfig",
    "ChatGLMForCausalLM",
    "CollieModelForCausalLM",
    "InternLM2Config",
    "InternLM2ForCausalLM",
    "InternLMConfig",
    "InternLMForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Moss003MoonConfig",
    "Moss003MoonForCausalLM",
    "MossConfig",
    "MossForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "find_family",
    "generator_for",
    "is_quantized",
    "keep_trainable",
    "register",
    "require_values",
]
