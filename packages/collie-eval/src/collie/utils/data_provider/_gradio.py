"""Prompts from a web page."""

import logging
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transformers import GenerationConfig

from collie.interfaces import ConfigError, RunContext, require
from collie.utils.data_provider._base import BaseProvider
from collie.utils.data_provider._options import asked_config
from collie.utils.data_provider._question import Question
from collie.utils.data_provider._text import encode_prompt

_SHORTEST_TOKEN = 8
_logger = logging.getLogger(__name__)


class GradioProvider(BaseProvider):
    """A web page where people converse with the model while it trains; it is there as long as the training.

    The page is on this machine alone unless asked otherwise, and wants a token, which rank 0's log says once together
    with the address. Nothing of it comes from elsewhere and nothing is told to anybody. Several people have their
    turn one after the other. Needs the extra `gradio`.

    Args:
        tokenizer: writes prompts as tokens and answers as text; its chat template, if it has one, the conversation.
        port: where the page is; 0 for any that is free.
        stream: show the answer as it grows; else when it is whole.
        generation_config: how to generate; the page's sliders come first. None means as the model's own says.
        host: the address to listen on. Any but 127.0.0.1 lets others reach the page, over HTTP that is not encrypted.
        share: also ask gradio's service for a public address, which sends everything through its servers.
        token: what lets people in, of 8 or more characters of ASCII, no spaces; None makes one.

    Raises:
        MissingExtraError: gradio is not installed.
        ConfigError: the token is too short, or has other characters.
    """

    def __init__(
        self,
        tokenizer: Any,
        port: int = 7878,
        stream: bool = False,
        generation_config: GenerationConfig | None = None,
        *,
        host: str = "127.0.0.1",
        share: bool = False,
        token: str | None = None,
    ) -> None:
        require("gradio", "collie-eval[gradio]", "GradioProvider")
        super().__init__(stream=stream, generation_config=generation_config)
        if token is not None and len(token) < _SHORTEST_TOKEN:
            raise ConfigError(
                f"token={'*' * len(token)} has {len(token)} characters: use {_SHORTEST_TOKEN} or more, or None, which "
                f"makes one."
            )
        if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
            raise ConfigError("token=… is of ASCII without spaces, which is all that an HTTP header can carry.")
        self.tokenizer, self.port, self.host, self.share = tokenizer, port, host, share
        self.token = token if token is not None else secrets.token_urlsafe(24)
        self._server: Any = None
        self._tunnel: Any = None
        self._context: RunContext | None = None

    def bind(self, context: RunContext) -> None:
        """Take the run's name and step, which the page shows."""
        self._context = context

    def provider_handler(self) -> None:
        """Nothing: the page is served on threads of its own."""

    def start_provider(self) -> None:
        """Open the page.

        Raises:
            ConfigError: its address is taken.
        """
        # starlette, uvicorn and gradio take seconds to import, and rank 0 alone needs them
        from collie.utils.data_provider._guard import Guard
        from collie.utils.data_provider._page import Asking, css, page, theme
        from collie.utils.data_provider._web_server import WebServer

        if self._server is not None:
            return
        gradio, fastapi = require("gradio", "collie-eval[gradio]"), require("fastapi", "collie-eval[gradio]")
        self._closed = False
        server = WebServer(self.host, self.port)
        blocks = page(
            Asking(
                tokenizer=self.tokenizer,
                ask=self._ask,
                ahead=self.ahead,
                step=lambda: self._context.step() if self._context is not None else 0,
                converses=bool(getattr(self.tokenizer, "chat_template", None)),
                name=self._run_name(),
            )
        )
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None), blocks, "/", server_name=self.host, server_port=server.port,
            footer_links=[], run_history=False, ssr_mode=False, max_file_size=1, theme=theme(), css=css(),
        )  # fmt: skip
        server.start(Guard(app, self.token, name=str(server.port)))
        self._server, self.port = server, server.port
        self._say_where()

    def stop_provider(self) -> None:
        """Close the page; whoever still waits is told that the training has ended."""
        super().stop_provider()
        if self._tunnel is not None:
            self._tunnel.kill()
        if self._server is not None:
            self._server.stop()
        self._server = self._tunnel = None

    def _ask(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Question:
        config = asked_config(self.generation_config, options)
        return self.ask(encode_prompt(self.tokenizer, messages), config)

    def _run_name(self) -> str:
        folder = self._context.folder if self._context is not None else None
        return Path(folder).name if folder is not None else "CoLLiE"

    def _say_where(self) -> None:
        """Tell rank 0's log where the page is, and its token: behind a #, which a browser does not send or keep."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        address = f"http://{host}:{self.port}/"
        if self.share:
            address = self._share()
        elif self.host not in ("127.0.0.1", "::1", "localhost"):
            _logger.warning("the page for prompts can be reached from other machines, over HTTP without encryption.")
        token = quote(self.token, safe="")
        _logger.warning("prompts to the model in training: %s#token=%s", address, token)  # shown by default

    def _share(self) -> str:
        """Return the public address that gradio's service gives to the page."""
        networking = require("gradio.networking", "collie-eval[gradio]", "share=True")
        tunneling = require("gradio.tunneling", "collie-eval[gradio]", "share=True")
        try:
            address = str(networking.setup_tunnel(self.host, self.port, secrets.token_urlsafe(32), None, None))
        except Exception as error:
            raise ConfigError(f"share=True: gradio's service gives no public address: {error}") from error
        self._tunnel = tunneling.CURRENT_TUNNELS[-1]
        return address.rstrip("/") + "/"
