"""Rows, batches, and which rank reads which of them: datasets, padding, loaders for training and evaluation."""

from collie.data._batches import MicroBatch, evaluation_batches
from collie.data._check import check_rows
from collie.data._dataset import CollieDatasetForTraining
from collie.data._loader import CollieDataLoader
from collie.data._packing import PackedDataset, PackingReport
from collie.data._padder import DEFAULT_PADDING, ColliePadder
from collie.data._sampler import CollieBatchSampler, SeededSampler
from collie.module import IGNORE_INDEX

__all__ = [
    "DEFAULT_PADDING",
    "IGNORE_INDEX",
    "CollieBatchSampler",
    "CollieDataLoader",
    "CollieDatasetForTraining",
    "ColliePadder",
    "MicroBatch",
    "PackedDataset",
    "PackingReport",
    "SeededSampler",
    "check_rows",
    "evaluation_batches",
]
