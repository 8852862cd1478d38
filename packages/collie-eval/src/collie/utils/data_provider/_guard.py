"""Who may see a page: only whoever has its token."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]

_LOGIN = "/login"
_LONGEST_LOGIN = 4096  # bytes of what the login's form sends
_PAUSE = 0.5  # seconds before it is said that a token is wrong
_HEADERS = {  # the page is all here: a model's text must not make the browser fetch anything from elsewhere
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'none'; "
        "base-uri 'self'"
    ),
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>CoLLiE</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: light-dark(#f6f7f9, #14161a); }}
form {{ width: min(24rem, 90vw); box-sizing: border-box; padding: 2rem; border-radius: 12px;
  background: light-dark(#fff, #1e2127); box-shadow: 0 1px 12px rgb(0 0 0 / 12%); }}
h1 {{ margin: 0 0 .25rem; font-size: 1.25rem; }} p {{ margin: 0 0 1rem; color: light-dark(#555, #aaa); }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .6rem .75rem; border-radius: 8px; }}
input {{ border: 1px solid light-dark(#bbb, #555); background: transparent; color: inherit; margin-bottom: .75rem; }}
button {{ border: 0; background: #2f6f4f; color: #fff; cursor: pointer; }}
.wrong {{ color: light-dark(#b00020, #ff8a80); }}
</style></head><body><form method="post" action="/login"><h1>A model in training</h1>
<p>The log of the run's rank 0 says the token of this page.</p>{wrong}
<input name="token" type="password" aria-label="Token" placeholder="Token" autocomplete="off" autofocus required>
<button>Open</button></form><script>
const token = new URLSearchParams(location.hash.slice(1)).get("token");  // what follows # is never sent or logged
if (token) {{ history.replaceState(null, "", location.pathname); const form = document.forms[0];
  form.token.value = token; form.submit(); }}
</script></body></html>"""


class Guard:
    """Lets requests through to an ASGI application that carry its token; others get 401, and people a form to log in.

    Programs send `Authorization: Bearer TOKEN`. A browser is given a cookie in exchange for the token: one that
    scripts cannot read, that no other site's requests carry, and from which the token cannot be found. The token is
    never part of a URL that is sent. A request with another page's Origin is refused, also one that only reads: pages
    on other ports of this machine are the same site to a browser, which sends the cookie, and gradio lets them read.
    """

    def __init__(self, app: _App, token: str, name: str) -> None:
        self._app, self._token = app, token
        self._cookie = f"collie-{name}"  # cookies do not tell ports apart
        self._pass = hmac.new(token.encode(), b"collie page", hashlib.sha256).hexdigest()

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(Request(scope, receive), send)
        else:  # the page needs no WebSocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, request: Request, send: Any) -> None:
        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", [])}
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *(one for one in more if one[0] not in given)]
            await send(message)

        refusal = await self._refusal(request)
        await (refusal or self._app)(request.scope, request.receive, send_with_headers)

    async def _refusal(self, request: Request) -> Response | None:
        """Return what is answered in place of the page; None where the request may pass."""
        by_header = _equal(request.headers.get("authorization", ""), f"Bearer {self._token}")
        if not by_header and not _from_the_page(request):
            return JSONResponse({"error": "this request comes from another site's page."}, status_code=403)
        if request.url.path == _LOGIN and request.method == "POST":
            return await self._log_in(request)
        if by_header or _equal(request.cookies.get(self._cookie, ""), self._pass):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return _form()
        sentence = "this page needs its token, which the log of the run's rank 0 says: Authorization: Bearer TOKEN"
        return JSONResponse({"error": sentence}, status_code=401, headers={"www-authenticate": "Bearer"})

    async def _log_in(self, request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _LONGEST_LOGIN:
                return JSONResponse({"error": "no token is this long."}, status_code=413)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not _equal(given, self._token):
            await asyncio.sleep(_PAUSE)
            return _form('<p class="wrong" role="alert">This is not the token of this run.</p>')
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(self._cookie, self._pass, httponly=True, samesite="strict")
        return answer


def _form(wrong: str = "") -> Response:
    return HTMLResponse(_PAGE.format(wrong=wrong), status_code=401, headers={"cache-control": "no-store"})


def _equal(given: str, expected: str) -> bool:
    """Compare without telling by the time it takes how much of a secret was right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _from_the_page(request: Request) -> bool:
    """Whether a browser says that a request comes from this page; other programs say nothing of it."""
    origin = request.headers.get("origin")
    host = origin.partition("://")[2] if origin is not None else ""  # no parser: whoever asks may write anything
    own = (request.headers.get("host"), request.headers.get("x-forwarded-host"))
    return origin is None or (host != "" and host in own)
