"""The distributed helpers of existing scripts, under their old address."""

from collie.parallel import Env, active_topology, env, set_seed, setup_distribution

__all__ = ["Env", "active_topology", "env", "set_seed", "setup_distribution"]
