"""An HTTP server on a thread, which ends when it is told to."""

import logging
import socket
import threading
import time
from typing import Any

import uvicorn

from collie.interfaces import ConfigError

_START_SECONDS = 60.0


class WebServer:
    """Serves an ASGI application on an address that it takes at once, so that one in use is told where it was given.

    Args:
        host, port: the address; port 0 takes one that is free, which `port` then says.

    Raises:
        ConfigError: the address cannot be taken.
    """

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ConfigError(
                f"host={host!r}, port={port}: {error}. Choose another port, or 0 for a free one."
            ) from None
        self.port = int(self._socket.getsockname()[1])
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, app: Any) -> None:
        """Serve `app`; returns when it answers."""
        config = uvicorn.Config(
            app, log_config=None, log_level=logging.WARNING, access_log=False, ws="none", lifespan="on",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [self._socket]}, name="collie-page", daemon=True
        )
        self._thread.start()
        limit = time.monotonic() + _START_SECONDS
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() > limit:
                raise ConfigError(f"the page on port {self.port} did not start; the log says why.")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it; whoever is being answered is given a second."""
        if self._server is not None and self._thread is not None:
            log = logging.getLogger("uvicorn.error")
            level = log.level
            log.setLevel(logging.CRITICAL)  # each page that is still open would be an error with its traceback
            self._server.should_exit = True
            self._thread.join(timeout=10)
            log.setLevel(level)
        self._socket.close()
