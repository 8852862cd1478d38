"""InternLM2 and InternLM2.5 (Cai et al. 2024)."""

from collie.models.internlm2.configuration import InternLM2Config
from collie.models.internlm2.model import InternLM2ForCausalLM
from collie.models.internlm2.names import NAMES
from collie.models.internlm2.plan import PLAN

__all__ = ["NAMES", "PLAN", "InternLM2Config", "InternLM2ForCausalLM"]
