"""A Hugging Face Hub of one repository on this machine: what its client asks for when it fetches a snapshot."""

import hashlib
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Hub:
    """Serves the folder of each revision, and counts requests.

    revisions: name → folder; the commit is made up from the name.
    token: what a client must send, or None.
    """

    def __init__(self, repository, revisions, token=None):
        self.repository = repository
        self.revisions = {name: Path(folder) for name, folder in revisions.items()}
        self.token = token
        self.requests = Counter()  # about the repository, by "METHOD path"
        self.url = ""

    @staticmethod
    def commit(revision):
        return hashlib.sha1(revision.encode()).hexdigest()

    def folder(self, revision):
        """The folder of a branch or of a commit, or None."""
        return next((f for name, f in self.revisions.items() if revision in (name, self.commit(name))), None)

    def fetched(self):
        """How often each file's contents were sent."""
        sent = {key: n for key, n in self.requests.items() if key.startswith("GET") and "/resolve/" in key}
        return {key.rpartition("/")[2]: n for key, n in sent.items()}

    def answer(self, method, path, token):
        """Return status, headers and body."""
        if self.repository not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        self.requests[f"{method} {path}"] += 1
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}, b""
        parts = path.removeprefix("/api/models/").removeprefix("/").removeprefix(self.repository).strip("/").split("/")
        kind, revision, *name = parts if len(parts) > 1 else ("revision", "main")
        folder = self.folder(revision)
        if folder is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit = next(self.commit(known) for known, f in self.revisions.items() if f == folder)
        files = sorted(file for file in folder.iterdir() if file.is_file())
        if kind == "revision":
            siblings = [{"rfilename": file.name} for file in files]
            return _json({"id": self.repository, "sha": commit, "siblings": siblings})
        if kind == "tree":
            return _json(
                [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)} for f in files]
            )  # fmt: skip
        file = folder / name[0]
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit}, file.read_bytes()


def _etag(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _json(content):
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextmanager
def serving(hub):
    """Serve a hub from a thread of this process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status, headers, body = hub.answer(self.command, self.path.partition("?")[0], self.headers["Authorization"])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
