"""The name of a provider that is to come."""

from typing import Any

from collie.interfaces import ConfigError
from collie.utils.data_provider._base import BaseProvider


class GradioProvider(BaseProvider):
    """Prompts from a web page; not available in this version, refused."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        raise ConfigError(
            "GradioProvider: prompts from a web page are not available in this version. Derive a provider of your own "
            "from BaseProvider, and read prompts in its provider_handler."
        )
