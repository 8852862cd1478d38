"""How ranks are arranged, and how one model is spread over them."""

from collie.parallel._added import Choice, is_added, mark_added, plain_name, whole_name
from collie.parallel._borrowed import borrow
from collie.parallel._collectives import sum_backward, total
from collie.parallel._cut import Cut, Ranges, cut_of, mark
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import Engine, close_engine, current_engine, engine_for, release_parameters
from collie.parallel._environment import Env, env, set_seed
from collie.parallel._gather import full_parameters, leads_stage
from collie.parallel._layout import Layout, fused
from collie.parallel._linear import ColumnLinear, MixedColumnLinear, RowLinear
from collie.parallel._logical import WEIGHT, Described, Held, Task, assemble, held_weights, held_whole, share_out
from collie.parallel._materialise import Fill, materialise, refill
from collie.parallel._notes import await_notes, leave_note
from collie.parallel._once import once_per_node
from collie.parallel._optimizer_state import FIXED, MASTER, Number, OptimizerState, Saved, put_state, take_state
from collie.parallel._partial import mark_partial
from collie.parallel._pipeline import Pipeline
from collie.parallel._plan import Column, Entry, Plan, Row, Summed, VocabColumn, VocabRow
from collie.parallel._random import apart, draw_alike, draws_of_stage
from collie.parallel._relay import Relay
from collie.parallel._shard import Shard, is_partitioned, part_shape, replace_part, shard_of, squared_norm, whole_part
from collie.parallel._stages import Stages, deal
from collie.parallel._state_places import scaler_state, set_scaler_state
from collie.parallel._stream import Stream
from collie.parallel._tied import counts_here, mark_copy, original_of, sum_over_ends
from collie.parallel._together import share_over_stage, together, together_in_stage
from collie.parallel._topology import Topology, active_topology, setup_distribution
from collie.parallel._vocabulary import VocabEmbedding, VocabHead, resize_vocabulary
from collie.parallel._whole import Whole, total_of_whole

__all__ = [
    "FIXED",
    "MASTER",
    "WEIGHT",
    "Choice",
    "Column",
    "ColumnLinear",
    "Cut",
    "Described",
    "Engine",
    "Entry",
    "Env",
    "Fill",
    "Held",
    "Layout",
    "MixedColumnLinear",
    "Number",
    "OptimizerState",
    "Pipeline",
    "Plan",
    "Ranges",
    "Relay",
    "Row",
    "RowLinear",
    "Saved",
    "Shard",
    "Stages",
    "Stream",
    "Summed",
    "Task",
    "Topology",
    "VocabColumn",
    "VocabEmbedding",
    "VocabHead",
    "VocabRow",
    "Whole",
    "active_topology",
    "apart",
    "assemble",
    "await_notes",
    "borrow",
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
    "held_weights",
    "held_whole",
    "is_added",
    "is_partitioned",
    "leads_stage",
    "leave_note",
    "mark",
    "mark_added",
    "mark_copy",
    "mark_partial",
    "materialise",
    "once_per_node",
    "original_of",
    "part_shape",
    "plain_name",
    "put_state",
    "refill",
    "release_parameters",
    "replace_part",
    "resize_vocabulary",
    "scaler_state",
    "set_scaler_state",
    "set_seed",
    "setup_distribution",
    "shard_of",
    "share_out",
    "share_over_stage",
    "squared_norm",
    "sum_backward",
    "sum_over_ends",
    "take_state",
    "together",
    "together_in_stage",
    "total",
    "total_of_whole",
    "whole_name",
    "whole_part",
]
