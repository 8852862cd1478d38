"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023) for CoLLiE."""

from collie_gpt_neox.model import GPTNeoXForCausalLM

__all__ = ["GPTNeoXForCausalLM"]
