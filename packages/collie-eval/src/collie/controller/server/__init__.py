"""Answers to prompts from a model that is in training."""

from collie.controller.server._server import Server

__all__ = ["Server"]
