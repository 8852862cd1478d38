"""Where prompts to a model in training come from, and where its answers go."""

from collie.utils.data_provider._base import BaseProvider
from collie.utils.data_provider._gradio import GradioProvider

__all__ = ["BaseProvider", "GradioProvider"]
