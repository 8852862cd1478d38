"""CoLLiE fine-tunes large language models.

Its packages come from five distributions. The names of all of them can be imported from here: each is loaded when it is
asked for, and one whose distribution is not installed says what installs it.
"""

import os
import pkgutil
from typing import TYPE_CHECKING, Any

__path__ = pkgutil.extend_path(__path__, __name__)  # the other distributions' folders

__distribution__ = "collie-config"  # read by collie.interfaces: another project's file in this place does not say so

from collie._namespace import check_foreign, list_names, resolve, tell_what_is_missing

if TYPE_CHECKING:
    from collie.config import CollieConfig as CollieConfig
    from collie.config import load_config as load_config

check_foreign(os.path.dirname(folder) for folder in __path__)
tell_what_is_missing()


def __getattr__(name: str) -> Any:
    return resolve(__name__, name)


def __dir__() -> list[str]:
    return list_names(__name__)
