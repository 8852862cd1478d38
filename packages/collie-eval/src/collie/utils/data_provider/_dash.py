"""The name of a provider of earlier CoLLiE that another does the work of."""

from typing import Any

from collie.interfaces import ConfigError
from collie.utils.data_provider._base import BaseProvider


class DashProvider(BaseProvider):
    """Prompts from a page made with Dash: refused, GradioProvider has the same arguments."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        raise ConfigError("DashProvider is not part of CoLLiE. Use GradioProvider, which takes the same arguments.")
