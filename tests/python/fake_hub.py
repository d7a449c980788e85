"""A hub in this process: an HTTP server that speaks the few routes by which models are fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """Files by commit, and what branches and tags stand for."""

    commits: dict[str, Files]
    names: dict[str, str]
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return self.names.get(revision, revision if revision in self.commits else None)


def repository(files: Files, **tags: Files) -> Repository:
    """A repository with `files` on its main branch, and others at tags."""
    commits = {
        hashlib.sha1(name.encode()).hexdigest(): content for name, content in {"main": files, **tags}.items()
    }
    return Repository(commits, dict(zip(["main", *tags], commits, strict=True)))


@dataclass
class Hub:
    """What is on it, what was asked, and what goes wrong."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path, and the `Range` asked for."""
    break_once: dict[str, int] = field(default_factory=dict)
    """File: after how many bytes the connection is closed, once."""
    broken: bool = False
    """Whether every answer is an error of the server's own."""

    def fetched(self) -> list[str]:
        """The files sent, in order."""
        gets = (path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path)
        return [path.partition("/resolve/")[2].partition("/")[2] for path in gets]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.broken:
            self._send(500, b"out of order", {})
            return
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4 if is_api else 2 :]
        repository = self.hub.repositories.get(name)
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.commit(revision) if repository else None
        if repository is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif rest[:1] == ["resolve"]:
            self._file(repository, commit, "/".join(rest[2:]))
        elif rest[:1] in ([], ["revision"]):
            self._describe(name, commit, repository.commits[commit])
        else:
            self._refuse(404, "EntryNotFound", "no such route here")

    def _describe(self, name: str, commit: str, files: Files) -> None:
        siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
        answer = {"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: Repository, commit: str, file: str) -> None:
        content = repository.commits[commit].get(file)
        if repository.gated:
            self._refuse(403, "GatedRepo", "Access to it is restricted")
            return
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if asked else 200, content[start:], headers, file)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str], file: str = "") -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = self.hub.break_once.pop(file, None)
        self.wfile.write(body[:end])
        if end is not None:
            self.close_connection = True
