"""How ranks are arranged, and how one model is spread over them."""

from collie.parallel._added import is_added, mark_added, plain_name
from collie.parallel._borrowed import borrow
from collie.parallel._collectives import sum_backward, total
from collie.parallel._cut import Cut, Ranges, cut_of, mark
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import Engine, close_engine, current_engine, engine_for, release_parameters
from collie.parallel._environment import Env, env, set_seed
from collie.parallel._layout import Layout, fused
from collie.parallel._linear import ColumnLinear, MixedColumnLinear, RowLinear
from collie.parallel._materialise import Choice, Fill, full_parameters, leads_stage, materialise, refill, whole_name
from collie.parallel._once import once_per_node
from collie.parallel._partial import mark_partial
from collie.parallel._pipeline import Pipeline
from collie.parallel._plan import Column, Entry, Plan, Row, Summed, VocabColumn, VocabRow
from collie.parallel._random import apart, draw_alike
from collie.parallel._relay import Relay
from collie.parallel._shard import Shard, is_partitioned, replace_part, shard_of, squared_norm, whole_part
from collie.parallel._stages import Stages, deal
from collie.parallel._stream import Stream
from collie.parallel._tied import counts_here, mark_copy, original_of, sum_over_ends
from collie.parallel._together import share_over_stage, together
from collie.parallel._topology import Topology, active_topology, setup_distribution
from collie.parallel._vocabulary import VocabEmbedding, VocabHead, resize_vocabulary

__all__ = [
    "Choice",
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
    "Ranges",
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
    "borrow",
    "close_engine",
    "counts_here",
    "current_engine",
    "cut_of",
    "deal",
    "deepspeed_config",
    "draw_alike",
    "engine_for",
    "env",
    "full_parameters",
    "fused",
    "is_added",
    "is_partitioned",
    "leads_stage",
    "mark",
    "mark_added",
    "mark_copy",
    "mark_partial",
    "materialise",
    "once_per_node",
    "original_of",
    "plain_name",
    "refill",
    "release_parameters",
    "replace_part",
    "resize_vocabulary",
    "set_seed",
    "setup_distribution",
    "shard_of",
    "share_over_stage",
    "squared_norm",
    "sum_backward",
    "sum_over_ends",
    "together",
    "total",
    "whole_name",
    "whole_part",
]
