"""Which family serves a config: each says so itself, and another distribution's families are found by entry point."""

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from collie.interfaces import ConfigError, nearest

if TYPE_CHECKING:
    from collie.models.base import CollieModelForCausalLM

    Model = TypeVar("Model", bound=type[CollieModelForCausalLM])

_ENTRY_POINTS = "collie.models"
_OURS = tuple(
    f"collie.models.{family}"
    for family in (
        *("llama", "qwen2", "qwen3", "mistral", "moss_moon", "moss"),
        *("chatglm2", "chatglm", "internlm", "internlm2"),
    )
)
_families: list["type[CollieModelForCausalLM]"] = []


def register(family: "Model") -> "Model":
    """Make a family known (a class decorator). One registered later is asked first.

    A distribution that names its class under the entry-point group "collie.models" need not be imported for it.
    """
    if family not in _families:
        _families.insert(0, family)
    return family


def find_family(model_config: Any) -> "type[CollieModelForCausalLM]":
    """Return the family that serves a model's config.

    Raises:
        ConfigError: none does; the message lists the model types that are known.
    """
    _import_families()
    for family in _families:
        if family.serves(model_config):
            return family
    known = sorted({name for family in _families for name in family.model_types})
    asked = getattr(model_config, "model_type", "")
    near = nearest(str(asked), known)
    described = describe_type(model_config, _families)
    raise ConfigError(
        f"No model family of CoLLiE serves model_type {described}; known are {', '.join(known)}."
        f"{f' Did you mean {near!r}?' if near and near != asked else ''} Other models of transformers can be loaded "
        f"with its AutoModelForCausalLM and trained under ZeRO."
    )


def describe_type(model_config: Any, families: "Iterable[type[CollieModelForCausalLM]]") -> str:
    """Return a config's model_type, quoted, and which field it lacks of those that mark the families of that type."""
    asked = getattr(model_config, "model_type", "")
    marks = {field for family in families if asked in family.model_types for field in family.marks}
    lacking = sorted(field for field in marks if not hasattr(model_config, field))
    if not lacking:
        return repr(asked)
    return f"{asked!r} without the field {' and '.join(lacking)} (another model of that name)"


@cache
def _import_families() -> None:
    for module in _OURS:
        import_module(module)
    for entry in entry_points(group=_ENTRY_POINTS):
        register(entry.load())
