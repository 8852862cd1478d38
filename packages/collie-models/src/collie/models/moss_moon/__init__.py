"""MOSS-moon 003 (Sun et al. 2024) and CodeGen (Nijkamp et al. 2023), from which it was trained on."""

from collie.models.moss_moon.configuration import Moss003MoonConfig
from collie.models.moss_moon.model import Moss003MoonForCausalLM, Moss003MoonLayer
from collie.models.moss_moon.names import NAMES
from collie.models.moss_moon.plan import PLAN

__all__ = ["NAMES", "PLAN", "Moss003MoonConfig", "Moss003MoonForCausalLM", "Moss003MoonLayer"]
