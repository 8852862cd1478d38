"""What is trained, in a file: recipes, what their data becomes, and the command collie-train."""

from collie.recipes._data import DataRecipe, SourceRecipe
from collie.recipes._inspection import InspectedRow, Inspection, inspect_data
from collie.recipes._reader import read_recipe

__all__ = ["DataRecipe", "InspectedRow", "Inspection", "SourceRecipe", "inspect_data", "read_recipe"]
