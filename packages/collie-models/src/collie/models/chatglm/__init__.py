"""ChatGLM, the first (Du et al. 2022, "GLM"; Zeng et al. 2022, "GLM-130B"). ChatGLM2 is a family of its own."""

from collie.models.chatglm.configuration import ChatGLMConfig
from collie.models.chatglm.model import ChatGLMForCausalLM, ChatGLMLayer
from collie.models.chatglm.names import NAMES
from collie.models.chatglm.plan import PLAN

__all__ = ["NAMES", "PLAN", "ChatGLMConfig", "ChatGLMForCausalLM", "ChatGLMLayer"]
