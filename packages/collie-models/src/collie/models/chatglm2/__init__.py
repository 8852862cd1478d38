"""ChatGLM2 and ChatGLM3 (Team GLM 2024). ChatGLM, with its two position channels, is a family of its own."""

from collie.models.chatglm2.configuration import ChatGLM2Config
from collie.models.chatglm2.model import ChatGLM2ForCausalLM
from collie.models.chatglm2.names import NAMES
from collie.models.chatglm2.plan import PLAN

__all__ = ["NAMES", "PLAN", "ChatGLM2Config", "ChatGLM2ForCausalLM"]
