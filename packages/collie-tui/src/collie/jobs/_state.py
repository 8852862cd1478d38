"""The words for a job's state, one place for all of them."""

from enum import StrEnum


class State(StrEnum):
    """What a job is doing, or how it ended."""

    STARTING = "starting"
    RUNNING = "running"
    EVALUATING = "evaluating"
    SAVING = "saving"
    STALLED = "stalled"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        """Whether nothing more will come from the job's supervisor."""
        return self in (State.STOPPED, State.FINISHED, State.FAILED, State.LOST)

    @classmethod
    def parse(cls, word: object) -> "State | None":
        """The state named `word`, None for one that this version does not know."""
        try:
            return cls(str(word))
        except ValueError:
            return None
