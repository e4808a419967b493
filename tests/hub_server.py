"""A server on the loopback interface that speaks the part of the hub's API that downloads of models use."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """State of the server.

    Args:
        repos: Folder with the files of every repository by its id, or by ``ID@BRANCH``.
        gated: Ids that are listed and whose files are refused with 401.
        requests: Method, path and ``Range`` of every request.
        url: Address.
    """

    repos: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> list[str]:
        """Names of the files whose contents were asked for, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep the terminal clean."""

    def do_HEAD(self) -> None:
        self._answer(contents=False)

    def do_GET(self) -> None:
        self._answer(contents=True)

    def _answer(self, *, contents: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision = (api[1], api[3] or "main") if api else (found[1], found[2]) if found else ("", "")
        if repo not in self.hub.repos:
            return self._error(404, "RepoNotFound")
        commits = {"main": COMMIT} | {key.partition("@")[2]: hashlib.sha1(key.encode()).hexdigest()
                                      for key in self.hub.repos if key.startswith(f"{repo}@")}
        branch = next((name for name, commit in commits.items() if revision in (name, commit)), None)
        if branch is None:
            return self._error(404, "RevisionNotFound")
        folder, commit = self.hub.repos.get(f"{repo}@{branch}", self.hub.repos[repo]), commits[branch]
        if api:
            files = [{"type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size,
                      "oid": _etag(file)} for file in sorted(folder.rglob("*")) if file.is_file()]
            return self._json(files if api[2] == "tree" else {
                "id": repo, "sha": commit, "siblings": [{"rfilename": file["path"]} for file in files]})
        assert found
        if repo in self.hub.gated:
            return self._error(401, "GatedRepo")
        file = folder / found[3]
        return self._file(file, contents, commit) if file.is_file() else self._error(404, "EntryNotFound")

    def _file(self, file: Path, contents: bool, commit: str) -> None:
        data, wanted = file.read_bytes(), self.headers.get("Range")
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Size", str(len(data)))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if contents:
            self.wfile.write(data[first:])

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serving(repos: dict[str, Path]) -> Iterator[Hub]:
    """Serve the repositories until the block ends."""
    hub = Hub(repos)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
