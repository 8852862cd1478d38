"""Rows, batches, and which rank reads which of them: datasets, padding, loaders for training and evaluation."""

from collie.data._batches import MicroBatch, evaluation_batches
from collie.data._chat import ChatEncoder
from collie.data._check import check_rows
from collie.data._dataset import CollieDatasetForPerplexity, CollieDatasetForTraining
from collie.data._evaluation import CollieDatasetForClassification, CollieDatasetForGeneration
from collie.data._length_groups import LengthGroupedSampler
from collie.data._loader import CollieDataLoader
from collie.data._packing import PackedDataset, PackingReport
from collie.data._padder import DEFAULT_PADDING, ColliePadder
from collie.data._report import DataReport, SourceReport
from collie.data._sampler import CollieBatchSampler, SeededSampler
from collie.data._sources import Source
from collie.data._stream import CollieStream
from collie.module import IGNORE_INDEX

__all__ = [
    "DEFAULT_PADDING",
    "IGNORE_INDEX",
    "ChatEncoder",
    "CollieBatchSampler",
    "CollieDataLoader",
    "CollieDatasetForClassification",
    "CollieDatasetForGeneration",
    "CollieDatasetForPerplexity",
    "CollieDatasetForTraining",
    "ColliePadder",
    "CollieStream",
    "DataReport",
    "LengthGroupedSampler",
    "MicroBatch",
    "PackedDataset",
    "PackingReport",
    "SeededSampler",
    "Source",
    "SourceReport",
    "check_rows",
    "evaluation_batches",
]
