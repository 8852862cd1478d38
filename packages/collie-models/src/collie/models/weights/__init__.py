"""Checkpoints in Hugging Face layout: their names, their files, reading slices of them and writing them."""

from collie.models.weights._checkpoint import Checkpoint
from collie.models.weights._hub import local_folder
from collie.models.weights._names import Names, Rename, Reorder, Rows, inverse, pick
from collie.models.weights._reader import Reader, TensorInfo, open_indexed, open_reader
from collie.models.weights._shards import byte_size, sync
from collie.models.weights._state import SameNames, StateNames, StateTensors, file_order, state_name
from collie.models.weights._writer import Description, write_description, write_folder

__all__ = [
    "Checkpoint",
    "Description",
    "Names",
    "Reader",
    "Rename",
    "Reorder",
    "Rows",
    "SameNames",
    "StateNames",
    "StateTensors",
    "TensorInfo",
    "byte_size",
    "file_order",
    "inverse",
    "local_folder",
    "open_indexed",
    "open_reader",
    "pick",
    "state_name",
    "sync",
    "write_description",
    "write_folder",
]
