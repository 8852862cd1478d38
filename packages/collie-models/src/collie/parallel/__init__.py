"""How ranks are arranged, and how one model is spread over them."""

from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import Engine, engine_for, release_parameters
from collie.parallel._environment import Env, env, set_seed
from collie.parallel._materialise import Fill, full_parameters, materialise, refill
from collie.parallel._shard import Shard, is_partitioned, shard_of, squared_norm
from collie.parallel._topology import Topology, active_topology, setup_distribution

__all__ = [
    "Engine",
    "Env",
    "Fill",
    "Shard",
    "Topology",
    "active_topology",
    "deepspeed_config",
    "engine_for",
    "env",
    "full_parameters",
    "is_partitioned",
    "materialise",
    "refill",
    "release_parameters",
    "set_seed",
    "setup_distribution",
    "shard_of",
    "squared_norm",
]
