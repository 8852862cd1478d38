"""Where prompts to a model in training come from, and where its answers go."""

from collie.utils.data_provider._base import BaseProvider
from collie.utils.data_provider._dash import DashProvider
from collie.utils.data_provider._gradio import GradioProvider
from collie.utils.data_provider._question import Question
from collie.utils.data_provider._run_folder import RunFolderProvider

__all__ = ["BaseProvider", "DashProvider", "GradioProvider", "Question", "RunFolderProvider"]
