"""What runs a model: the Trainer (collie-train), evaluators and the server (collie-eval)."""

import pkgutil
from typing import Any

__path__ = pkgutil.extend_path(__path__, __name__)  # the other distributions' folders

from collie._namespace import list_names, resolve


def __getattr__(name: str) -> Any:
    return resolve(__name__, name)


def __dir__() -> list[str]:
    return list_names(__name__)
