"""The page: who may see it, what it says, and that it looks right in a browser."""

import base64
import html
import inspect
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from collie.interfaces import ConfigError
from collie.utils.data_provider import GradioProvider

gradio_client = pytest.importorskip("gradio_client", reason="needs the extra collie-eval[gradio]")
pytest.importorskip("gradio", minversion="6")
TOKEN = "a-token-of-the-tests"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Bytes:
    """A tokenizer whose tokens are bytes: most Chinese characters are three of them."""

    chat_template = None

    def __call__(self, text):
        return {"input_ids": list(text.encode())}

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", "replace")


class Model(threading.Thread):
    """Answers as a training would: one prompt after the other, a byte at a time, as long as it is not cancelled."""

    def __init__(self, provider):
        super().__init__(daemon=True)
        self.provider = provider
        self.held = threading.Event()  # while it is not set, the answer does not go on
        self.held.set()
        self.ended = threading.Event()

    def run(self):
        while not self.ended.is_set():
            ids = self.provider.get_data()
            if ids is None:
                time.sleep(0.01)
                continue
            if ids == list(b"too long"):
                self.provider.put_error("a prompt of 8 tokens leaves no room to answer: the model has 8 positions.")
                continue
            for byte in b"\xe4\xbd\xa0\xe5\xa5\xbd <b>" + bytes(ids) + b"</b>\nsecond line":
                while not self.held.is_set() and not self.provider.cancelled():
                    time.sleep(0.01)
                if self.provider.cancelled():
                    break
                self.provider.put_feedback([byte])
                if byte == ord("<"):
                    time.sleep(0.1)  # what is there so far is seen
            self.provider.put_feedback(None)


@pytest.fixture(scope="module")
def page():
    provider = GradioProvider(Bytes(), port=0, stream=True, token=TOKEN)
    provider.start_provider()
    model = Model(provider)
    model.start()
    yield provider, model, f"http://127.0.0.1:{provider.port}/"
    model.ended.set()
    provider.stop_provider()
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", provider.port), timeout=5)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None


def get(url, data=None, **headers):
    """Status, headers and text of an answer, without following a redirect."""
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_nothing_is_seen_without_the_token(page):
    """Neither page, nor its parts, nor its interface; not with a wrong token, not with one in the URL."""
    url = page[2]
    for path in ("", "config", "gradio_api/info", "theme.css", "gradio_api/startup-events", f"?token={TOKEN}"):
        status, headers, text = get(url + path)
        assert status == 401 and headers["www-authenticate"] == "Bearer" and TOKEN not in text
    assert get(url, authorization="Bearer wrong")[0] == 401
    assert get(url, cookie=f"collie-{page[0].port}={TOKEN}")[0] == 401
    assert get(url + "gradio_api/queue/join", b"{}", content_type="application/json")[0] == 401
    status, headers, text = get(url, accept="text/html")
    assert status == 401 and "<form" in text and headers["cache-control"] == "no-store"


def test_a_browser_logs_in_for_a_cookie_and_a_program_sends_the_token(page):
    url, form = page[2], urllib.parse.urlencode({"token": TOKEN}).encode()
    status, headers, text = get(url + "login", b"token=wrong")
    assert status == 401 and "not the token" in text and "set-cookie" not in headers
    assert get(url + "login", b"token=" + b"a" * 5000)[0] == 413
    status, headers, _ = get(url + "login", form)
    cookie = headers["set-cookie"]
    assert status == 303 and headers["location"] == "/" and TOKEN not in cookie
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    for known in ({"cookie": cookie.partition(";")[0]}, {"authorization": f"Bearer {TOKEN}"}):
        status, headers, text = get(url, **known)
        assert status == 200 and "gradio" in text and "default-src 'self'" in headers["content-security-policy"]


def test_another_sites_page_may_not_ask(page):
    """Whatever cookie its request carries: other ports of this machine are the same site to a browser."""
    url, form = page[2], urllib.parse.urlencode({"token": TOKEN}).encode()
    cookie = get(url + "login", form)[1]["set-cookie"].partition(";")[0]
    for origin in ("http://127.0.0.1:1", "null", "https://example.org", "http://[", ""):
        assert get(url + "gradio_api/queue/join", b"{}", cookie=cookie, origin=origin)[0] == 403
        status, headers, _ = get(url + "config", cookie=cookie, origin=origin)
        assert status == 403 and "access-control-allow-origin" not in headers
    assert get(url + "login", form, origin=url.rstrip("/"))[0] == 303


def client(url):
    return gradio_client.Client(url, headers={"Authorization": f"Bearer {TOKEN}"}, verbose=False)


def last(output):
    """The last message's text, which is shown as it is, and the line about it."""
    _, talk, status, *_ = output
    return html.unescape(talk[-1]["content"][0]["text"]), status


def test_an_answer_grows_and_whole_characters_are_seen(page):
    job = client(page[2]).submit("hi", [], 32, 0.0, api_name="/answer")
    text, status = last(job.result(timeout=30))
    assert text == "你好 <b>hi</b>\nsecond line" and status.startswith("Answered at step 0 · 28 tokens")
    grown = [last(output)[0] for output in job.outputs()[1:]]
    assert len(set(grown)) > 3 and all(text.startswith(one) for one in grown if one != "hi")


def test_what_cannot_be_answered_is_said(page):
    ask = client(page[2])
    text, talk, status, *_ = ask.predict("too long", [], 32, 0.0, api_name="/answer")
    assert status == "⚠ Not answered: a prompt of 8 tokens leaves no room to answer: the model has 8 positions."
    assert (text, talk) == ("too long", [])  # to be mended; the conversation is as it was
    assert ask.predict(" ", [], 32, 0.0, api_name="/answer")[2] == "Write a prompt first."


def test_several_wait_for_their_turn_and_each_can_stop(page):
    """The second is told of the first; stopping the first lets the second have its turn."""
    _, model, url = page
    model.held.clear()
    try:
        first, second = client(url), client(url)
        one = first.submit("one", [], 32, 0.0, api_name="/answer")
        _until(lambda: any("Waiting" in output[2] for output in one.outputs()))
        _until(lambda: page[0]._current is not None)
        two = second.submit("two", [], 32, 0.0, api_name="/answer")
        _until(lambda: any(output[2].startswith("1 prompt is answered before yours") for output in two.outputs()))
        first.predict(api_name="/cancel")
        assert one.result(timeout=30)[2].startswith("Stopped at step 0 · 0 tokens")
    finally:
        model.held.set()
    assert last(two.result(timeout=30))[0] == "你好 <b>two</b>\nsecond line"


def _until(holds, seconds=30):
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_port_in_use_and_a_short_token_are_refused(page):
    with pytest.raises(ConfigError, match=f"port={page[0].port}: .* Choose another port, or 0"):
        GradioProvider(Bytes(), port=page[0].port).start_provider()
    with pytest.raises(ConfigError, match="has 3 characters: use 8 or more"):
        GradioProvider(Bytes(), token="abc")
    assert GradioProvider(Bytes()).token != GradioProvider(Bytes()).token


def test_a_token_of_ones_own_is_whole_in_the_address_and_in_a_header(caplog):
    for token in ("with a space", "密码密码密码密码"):
        with pytest.raises(ConfigError, match="ASCII without spaces"):
            GradioProvider(Bytes(), token=token)
    provider = GradioProvider(Bytes(), port=0, token="a+b&c=d#e%20f")
    provider.start_provider()
    try:
        address = next(word for word in caplog.text.split() if word.startswith("http://"))
        given = urllib.parse.parse_qs(urllib.parse.urlsplit(address).fragment)
        assert given == {"token": [provider.token]} and caplog.text.count(address) == 1
        assert get(f"http://127.0.0.1:{provider.port}/config", authorization=f"Bearer {provider.token}")[0] == 200
    finally:
        provider.stop_provider()


def test_sharing_is_gradios_work_and_ends_with_the_page(monkeypatch, caplog):
    """Asked for as gradio's own launch asks for it; where its service does not answer, that is said."""
    from gradio import networking, tunneling

    signature = inspect.signature(networking.setup_tunnel)
    tunnel = SimpleNamespace(killed=[], kill=lambda: tunnel.killed.append(1))

    def setup(*arguments):
        given = signature.bind(*arguments).arguments
        monkeypatch.setattr(tunneling, "CURRENT_TUNNELS", [tunnel])
        assert given["local_host"] == "127.0.0.1" and given["local_port"] == provider.port
        return "https://name.example"

    monkeypatch.setattr(networking, "setup_tunnel", setup)
    provider = GradioProvider(Bytes(), port=0, share=True)
    provider.start_provider()
    provider.stop_provider()
    assert f"https://name.example/#token={provider.token}" in caplog.text and tunnel.killed == [1]

    def fails(*arguments):
        raise RuntimeError("Could not get share link")

    monkeypatch.setattr(networking, "setup_tunnel", fails)
    with pytest.raises(ConfigError, match="share=True: gradio's service gives no public address: Could not"):
        provider.start_provider()
    provider.stop_provider()


class Browser:
    """Chromium without a window, over the pipe of its DevTools protocol: JSON, each message ended by a zero byte."""

    def __init__(self, folder):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # the protocol wants descriptors 3 and 4
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        flags = (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}",
            "--no-first-run", "--disable-background-networking", "--window-size=1100,900", "about:blank",
        )  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", CHROMIUM, *flags], pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._answers = os.fdopen(self._read, "rb")
        self._ids = itertools.count(1)
        self._session = None
        self.requested = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Network.enable")
        self.call("Page.enable")

    def call(self, method, **parameters):
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self):
        data = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        return data

    def value(self, expression):
        """What a JavaScript expression is worth in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=60):
        _until(lambda: self.value(expression), seconds)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._write)
        self._answers.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(page, tmp_path):
    """From the link in the log to an answer, which is text and no markup; nothing is fetched from elsewhere."""
    _, model, url = page
    shots = Path(os.environ.get("COLLIE_SCREENSHOTS", tmp_path))
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=url)
        browser.wait("!!document.querySelector('form input[name=token]')")
        browser.screenshot(shots / "login.png")
        browser.call("Page.navigate", url="about:blank")
        browser.call("Page.navigate", url=f"{url}#token={TOKEN}")
        browser.wait("!!document.querySelector('#prompt textarea') && !!document.querySelector('#send')")
        assert TOKEN not in browser.value("location.href + document.cookie + document.documentElement.outerHTML")
        model.held.clear()
        _ask(browser, "Tell me of <collies>")
        browser.wait("!!document.querySelector('#stop')")
        browser.screenshot(shots / "waiting.png")
        model.held.set()
        browser.wait("document.querySelector('#status').innerText.startsWith('Answered at step 0')")
        told = browser.value("document.querySelector('#conversation').innerText")
        assert "你好 <b>Tell me of <collies></b>\nsecond line" in told
        model.held.clear()
        _ask(browser, "again")
        browser.wait("!!document.querySelector('#stop')")
        browser.value("document.querySelector('#stop').click()")
        browser.wait("document.querySelector('#status').innerText.startsWith('Stopped at step 0')")
        model.held.set()
        browser.wait("document.querySelector('#prompt textarea').value == 'again'")  # to be mended
        _ask(browser, "too long")
        browser.wait("document.querySelector('#status').innerText.includes('the model has 8 positions')")
        browser.screenshot(shots / "page.png")
        assert (shots / "page.png").stat().st_size > 10_000
        foreign = [one for one in browser.requested if not one.startswith((url, "data:", "blob:", "about:"))]
        assert foreign == [] and not any(TOKEN in one.partition("#")[0] for one in browser.requested)
    finally:
        model.held.set()
        browser.close()


def _ask(browser, text):
    """Type into the prompt and send it with Enter, as a person does."""
    browser.wait("!!document.querySelector('#prompt textarea') && !document.querySelector('#prompt textarea').disabled")
    browser.value("document.querySelector('#prompt textarea').focus()")
    browser.value("document.querySelector('#prompt textarea').select()")  # what is typed replaces it
    browser.call("Input.insertText", text=text)
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
