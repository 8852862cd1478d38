"""The command collie-train. torch is loaded where data is read, and no weight of a model is."""

from collie.recipes.cli._main import main

__all__ = ["main"]
