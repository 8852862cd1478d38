"""What the tests of CoLLiE and of its users' extensions share: forked ranks, toy models, golden folders."""

from collie.testing._goldens import golden, goldens_root
from collie.testing._memory import PeakMemory
from collie.testing._models import toy_config, toy_llama_config, toy_moss_config
from collie.testing._ranks import RankError, run_ranks

__all__ = [
    "PeakMemory",
    "RankError",
    "golden",
    "goldens_root",
    "run_ranks",
    "toy_config",
    "toy_llama_config",
    "toy_moss_config",
]
