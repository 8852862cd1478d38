"""The configuration of a model type that transformers does not know. This module imports transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from transformers import PretrainedConfig

# transformers rewrites the first two into its own spelling, and takes the third as a choice for its own models.
_KEPT_APART = ("rope_scaling", "rope_theta", "attn_implementation")
_RENAMED = ("torch_dtype",)  # to dtype


class PlainModelConfig(PretrainedConfig):
    """All fields of a config.json as they stand there, whatever they are; written back the same way.

    PretrainedConfig itself drops the model_type of a class that has none, use_cache and the fields of generation.
    """

    rope_scaling: ClassVar[Any] = None

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        """Make one from the fields of a config.json."""
        config: Self = cls.from_dict({key: value for key, value in values.items() if key not in _KEPT_APART})
        for key, value in values.items():
            if key not in config.__dict__ and key not in _RENAMED:
                config.__dict__[key] = value
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with the model_type that was read."""
        values: dict[str, Any] = super().to_dict()
        values["model_type"] = self.__dict__.get("model_type", "")
        return values

    def _get_generation_parameters(self) -> dict[str, Any]:
        """Return none, so that save_pretrained does not refuse a temperature that old checkpoints have here."""
        return {}
