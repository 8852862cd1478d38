"""One name, collie, shared by five distributions: which brings what, and what is said where one is missing."""

from collie._namespace._foreign import check_foreign
from collie._namespace._lazy import list_names, resolve, tell_what_is_missing
from collie._namespace._table import LEAVES, NAMES

__all__ = ["LEAVES", "NAMES", "check_foreign", "list_names", "resolve", "tell_what_is_missing"]
