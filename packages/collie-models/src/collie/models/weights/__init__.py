"""Checkpoints in Hugging Face layout: their names, their files, reading slices of them and writing them."""

from collie.models.weights._checkpoint import Checkpoint
from collie.models.weights._hub import local_folder
from collie.models.weights._names import Names, Rename, Reorder, Rows, inverse, pick
from collie.models.weights._reader import Reader, TensorInfo, open_reader
from collie.models.weights._shards import byte_size
from collie.models.weights._writer import Description, write_folder

__all__ = [
    "Checkpoint",
    "Description",
    "Names",
    "Reader",
    "Rename",
    "Reorder",
    "Rows",
    "TensorInfo",
    "byte_size",
    "inverse",
    "local_folder",
    "open_reader",
    "pick",
    "write_folder",
]
