"""A model hub on a real socket: serves the data sets of a folder the way huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """The address of a hub whose data set owner/name is the folder root/owner/name; a branch is name@branch."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    root: Path

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        if path.startswith("/api/datasets/"):
            name, _, revision = path.removeprefix("/api/datasets/").partition("/revision/")
            self._info(name, revision)
        elif path.startswith("/datasets/"):
            name, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
            self._file(name, rest.partition("/")[2], body)
        else:
            self._send(404, b"", {}, body)

    def _info(self, name: str, revision: str) -> None:
        folder = self.root / (f"{name}@{revision.replace('/', '-')}" if revision not in ("", COMMIT) else name)
        if not (self.root / name).is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, file: str, body: bool) -> None:
        found = [path for path in self.root.glob(f"{name}*/{file}") if path.is_file()]
        if not found:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = found[0].read_bytes()
        etag = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        return self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(header, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""
