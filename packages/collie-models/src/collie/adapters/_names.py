"""What a checkpoint of an adapter's training calls its tensors."""

from collections.abc import Mapping

from collie.adapters._adapter import Stored
from collie.models.weights import Names, Rename, Reorder


class AdapterNames:
    """The names of a model with an adapter: PEFT's for what the adapter trains, and the family's for all else.

    See `collie.models.weights.StateNames`.
    """

    def __init__(self, names: Names, stored: Mapping[str, Stored]) -> None:
        self._names, self._stored = names, stored

    def to_checkpoint(self, ours: str) -> tuple[str, Rename]:
        """Return the name of our parameter there, and the entry that orders its rows."""
        stored = self._stored.get(ours)
        if stored is None:
            return self._names.to_checkpoint(ours)
        return stored.key, Reorder(stored.key, ours, lambda config, total: stored.rows)

    def ignores(self, checkpoint: str) -> bool:
        """Whether the checkpoint's tensor is known to be no parameter."""
        return self._names.ignores(checkpoint)
