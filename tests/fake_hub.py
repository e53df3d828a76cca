"""A hub on this machine that serves folders, as far as downloads need one; it can break off and refuse."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/(?:revision|tree)/\w+")
FILE = re.compile(rf"/([\w.-]+/[\w.-]+)/resolve/{COMMIT}/(.+)")


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repos: Folders, by repository.
        gated: Repositories that refuse everybody.
        broken: Name of a file -> after so many bytes its next downloads break off.
        served: Files that were asked for, with the first byte.
        requests: The paths of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.broken: dict[str, list[int]] = {}
        self.served: list[tuple[str, int]] = []
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that was left alone."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        api, file = API.fullmatch(path), FILE.fullmatch(path)
        repo = (api or file)[1] if api or file else ""
        if repo in self.server.gated:
            self.refuse(403, "GatedRepo")
        elif repo not in self.server.repos:
            self.refuse(404, "RepoNotFound")
        elif api:
            self.send(json.dumps(self.tree(repo) if "/tree/" in path else self.info(repo)).encode(), {})
        else:
            self.send_file(self.server.repos[repo] / file[2], body=body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def info(self, repo: str) -> dict:
        files = [{"rfilename": each["path"], "size": each["size"]} for each in self.tree(repo)]
        return {"id": repo, "sha": COMMIT, "siblings": files}

    def tree(self, repo: str) -> list[dict]:
        folder = self.server.repos[repo]
        return [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": sha1(path),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def send(self, data: bytes, headers: dict[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, path: Path, *, body: bool) -> None:
        data = path.read_bytes()
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        headers = {
            "ETag": f'"{sha1(path)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(data) - begin),
        }
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        if not body:
            self.send(b"", headers)
            return
        self.server.served.append((path.name, begin))
        limits = self.server.broken.get(path.name)
        limit = limits.pop(0) if limits else None
        self.send(data[begin:][:limit], headers, status=206 if begin else 200)
        if limit is not None:
            self.close_connection = True


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """Serve until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
