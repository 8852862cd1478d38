"""Checkpoints in Hugging Face layout: their names, their files, reading slices of them and writing them."""

from collie.models.weights._checkpoint import Checkpoint
from collie.models.weights._hub import local_folder
from collie.models.weights._names import Names, Rename, Reorder, Rows, inverse, pick
from collie.models.weights._reader import Reader, TensorInfo, open_indexed, open_reader
from collie.models.weights._remote import RemoteFolder, fetched, is_url, whole_folders
from collie.models.weights._shards import byte_size, sync
from collie.models.weights._state import SameNames, StateNames, StateTensors, file_order, state_name
from collie.models.weights._target import Target, writing
from collie.models.weights._writer import Description, model_target, remote_model, write_description, write_folder

__all__ = [
    "Checkpoint",
    "Description",
    "Names",
    "Reader",
    "RemoteFolder",
    "Rename",
    "Reorder",
    "Rows",
    "SameNames",
    "StateNames",
    "StateTensors",
    "Target",
    "TensorInfo",
    "byte_size",
    "fetched",
    "file_order",
    "inverse",
    "is_url",
    "local_folder",
    "model_target",
    "open_indexed",
    "open_reader",
    "pick",
    "remote_model",
    "state_name",
    "sync",
    "whole_folders",
    "write_description",
    "write_folder",
    "writing",
]
