"""Rows, batches, and which rank reads which of them: datasets, padding, loaders for training and evaluation."""

from collie.data._batches import MicroBatch, evaluation_batches
from collie.data._check import check_rows
from collie.data._dataset import CollieDatasetForTraining
from collie.data._length_groups import LengthGroupedSampler
from collie.data._loader import CollieDataLoader
from collie.data._padder import DEFAULT_PADDING, ColliePadder
from collie.data._sampler import CollieBatchSampler, SeededSampler
from collie.data._stream import CollieStream
from collie.module import IGNORE_INDEX

__all__ = [
    "DEFAULT_PADDING",
    "IGNORE_INDEX",
    "CollieBatchSampler",
    "CollieDataLoader",
    "CollieDatasetForTraining",
    "ColliePadder",
    "CollieStream",
    "LengthGroupedSampler",
    "MicroBatch",
    "SeededSampler",
    "check_rows",
    "evaluation_batches",
]
