"""How ranks are arranged, and how one model is spread over them."""

from collie.parallel._cut import Cut, cut_of
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import Engine, close_engine, current_engine, engine_for, release_parameters
from collie.parallel._environment import Env, env, set_seed
from collie.parallel._gather import full_parameters, leads_stage
from collie.parallel._layout import Layout, fused
from collie.parallel._linear import ColumnLinear, MixedColumnLinear, RowLinear
from collie.parallel._materialise import Fill, materialise, refill
from collie.parallel._once import once_per_node
from collie.parallel._pipeline import Pipeline
from collie.parallel._plan import Column, Entry, Plan, Row, Summed, VocabColumn, VocabRow
from collie.parallel._random import apart, draw_alike, draws_of_stage
from collie.parallel._relay import Relay
from collie.parallel._shard import Shard, is_partitioned, shard_of, squared_norm
from collie.parallel._stages import Stages, deal
from collie.parallel._stream import Stream
from collie.parallel._tied import counts_here, mark_copy, original_of, sum_over_ends
from collie.parallel._together import share_over_stage, together, together_in_stage
from collie.parallel._topology import Topology, active_topology, setup_distribution
from collie.parallel._vocabulary import VocabEmbedding, VocabHead, resize_vocabulary
from collie.parallel._whole import Whole, total_of_whole

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
    "Whole",
    "active_topology",
    "apart",
    "close_engine",
    "counts_here",
    "current_engine",
    "cut_of",
    "deal",
    "deepspeed_config",
    "draw_alike",
    "draws_of_stage",
    "engine_for",
    "env",
    "full_parameters",
    "fused",
    "is_partitioned",
    "leads_stage",
    "mark_copy",
    "materialise",
    "once_per_node",
    "original_of",
    "refill",
    "release_parameters",
    "resize_vocabulary",
    "set_seed",
    "setup_distribution",
    "shard_of",
    "share_over_stage",
    "squared_norm",
    "sum_over_ends",
    "together",
    "together_in_stage",
    "total_of_whole",
]
