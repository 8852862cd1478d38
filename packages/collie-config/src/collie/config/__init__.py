"""Every setting of a run in one object."""

from collie.config._config import CollieConfig, load_config
from collie.config._deepspeed import MONITOR_KEYS
from collie.config._validate import INITIALIZATIONS

__all__ = ["INITIALIZATIONS", "MONITOR_KEYS", "CollieConfig", "load_config"]
