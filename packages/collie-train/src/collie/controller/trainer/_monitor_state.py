"""What monitors keep in checkpoints, so that a resumed run goes on with the same run of wandb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collie.callbacks import Callback
from collie.utils.monitor import MultiMonitors

if TYPE_CHECKING:
    from collie.controller.trainer import Trainer


class MonitorState(Callback):
    """Carries the monitors' state into checkpoints and back, after the user's callbacks."""

    def __init__(self, monitors: MultiMonitors) -> None:
        self._monitors = monitors

    @property
    def callback_name(self) -> str:
        return "monitors"

    def on_save_checkpoint(self, trainer: Trainer) -> dict[str, Any] | None:
        """What the monitors' sinks have begun; None where that is nothing."""
        return self._monitors.state_dict() or None

    def on_load_checkpoint(self, trainer: Trainer, states: dict[str, Any] | None) -> None:
        """Go on with it."""
        self._monitors.load_state_dict(states or {})
