"""How ranks are arranged, and how one model is spread over them."""

from collie.parallel._cut import Cut, cut_of
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import Engine, engine_for, release_parameters
from collie.parallel._environment import Env, env, set_seed
from collie.parallel._layout import Layout, fused
from collie.parallel._linear import ColumnLinear, MixedColumnLinear, RowLinear
from collie.parallel._materialise import Fill, full_parameters, materialise, refill
from collie.parallel._pipeline import Pipeline
from collie.parallel._plan import Column, Entry, Plan, Row, Summed, VocabColumn, VocabRow
from collie.parallel._random import apart, draw_alike
from collie.parallel._relay import Relay
from collie.parallel._shard import Shard, is_partitioned, shard_of, squared_norm
from collie.parallel._stages import Stages, deal
from collie.parallel._stream import Stream
from collie.parallel._tied import counts_here, mark_copy, original_of, sum_over_ends
from collie.parallel._topology import Topology, active_topology, setup_distribution
from collie.parallel._vocabulary import VocabEmbedding, VocabHead

__all__ = [
    "Column",
    "ColumnLinear",
    "Cut",
    "Engine",
    "Entry",
    "Env",
    "Fill",
    "Layout",
    "MixedColumnLinear",
    "Pipeline",
    "Plan",
    "Relay",
    "Row",
    "RowLinear",
    "Shard",
    "Stages",
    "Stream",
    "Summed",
    "Topology",
    "VocabColumn",
    "VocabEmbedding",
    "VocabHead",
    "VocabRow",
    "active_topology",
    "apart",
    "counts_here",
    "cut_of",
    "deal",
    "deepspeed_config",
    "draw_alike",
    "engine_for",
    "env",
    "full_parameters",
    "fused",
    "is_partitioned",
    "mark_copy",
    "materialise",
    "original_of",
    "refill",
    "release_parameters",
    "set_seed",
    "setup_distribution",
    "shard_of",
    "squared_norm",
    "sum_over_ends",
]
