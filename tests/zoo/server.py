"""A loopback web server with the faults of real ones: what the download tests talk to.

`conftest.hub_server` makes the Hub of it, `publish` puts a repository there.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
import urllib.parse
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "timm/resnet20.made_up"
CONFIG: dict[str, Any] = {
    "architecture": "resnet20",
    "num_classes": 5,
    "label_names": ["ant", "bee", "cat", "dog", "eel"],
    "pretrained_cfg": {
        "tag": "made_up",
        "license": "mit",
        "input_size": [3, 40, 40],
        "test_input_size": [3, 48, 48],
        "test_crop_pct": 1.0,
        "interpolation": "bicubic",
        "crop_pct": 0.94,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    },
}


@dataclasses.dataclass
class File:
    """One file that is served."""

    content: bytes
    large: bool = False
    """kept outside git, as the Hub does: named by its sha256, and found by a redirect"""
    damaged: bool = False
    """one bit of what is sent is flipped"""
    truncated: bool = False
    """the second half is missing, and the response says so"""
    drop_after: int | None = None
    """the connection of the first request ends after so many bytes"""
    drop_always: bool = False
    """that of every request does"""
    ranges: bool = True
    """whether parts can be asked for"""
    redirect: str | None = None
    """where every GET is sent instead"""
    announced: str | None = None
    """the Content-Length of every GET, whatever is sent"""
    endless: bool = False
    """the response to a GET says no length and never ends"""
    pause: float | None = None
    """seconds before each byte of what is sent"""

    @property
    def etag(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(f"blob {len(self.content)}\0".encode() + self.content).hexdigest()


class Server:
    """Serves `files` by path; `requests` holds (method, path, Range header) of what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.refusals: dict[str, tuple[int, str]] = {}  # of a path: status, the Hub's error code
        self._closing = False
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                server._answer(self, body=False)

            def do_GET(self) -> None:
                server._answer(self, body=True)

            def log_message(self, *args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._closing = True
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add_repository(self, name: str, **files: File) -> None:
        """Files of a Hub repository; `config_json` is served as config.json."""
        for key, file in files.items():
            self.files[f"/{name}/resolve/main/{key.replace('_', '.')}"] = file
            self.files[f"/{name}/resolve/{COMMIT}/{key.replace('_', '.')}"] = file

    def got(self, suffix: str) -> list[str | None]:
        """Range headers of the GETs of paths with this ending."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(suffix)]

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, *, body: bool) -> None:
        # A proxy is asked for the whole address.
        path = urllib.parse.urlsplit(handler.path).path
        self.requests.append((handler.command, handler.path, handler.headers.get("Range")))
        parts = path.split("/")
        if path in self.refusals:
            self._refuse(handler, *self.refusals[path])
            return
        file = self.files.get(path)
        if file is None and parts[1] == "cdn":
            file = next((f for f in self.files.values() if f.etag == parts[2]), None)
        if file is None:
            code = "EntryNotFound"
            if not self._serves(parts[:5]):
                code = "RevisionNotFound" if self._serves(parts[:4]) else "RepoNotFound"
            self._refuse(handler, 404, code)
            return
        if file.large and parts[1] != "cdn" and "resolve" in parts:
            handler.send_response(302)
            handler.send_header("Location", f"{self.url}/cdn/{file.etag}/{parts[-1]}")
            handler.send_header("X-Repo-Commit", COMMIT)
            handler.send_header("X-Linked-Etag", f'"{file.etag}"')
            handler.send_header("X-Linked-Size", str(len(file.content)))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self._send(handler, file, body)

    def _refuse(self, handler: http.server.BaseHTTPRequestHandler, status: int, code: str) -> None:
        handler.send_response(status)
        handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _serves(self, parts: list[str]) -> bool:
        return any(name.startswith("/".join(parts) + "/") for name in self.files)

    def _send(self, handler: http.server.BaseHTTPRequestHandler, file: File, body: bool) -> None:
        if body and file.redirect is not None:
            handler.send_response(302)
            handler.send_header("Location", file.redirect)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        content, start = bytearray(file.content), 0
        if file.damaged:
            content[len(content) // 2] ^= 1
        if file.truncated:
            del content[len(content) // 2 :]
        asked = handler.headers.get("Range")
        if asked and file.ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
        handler.send_response(206 if asked and file.ranges else 200)
        if asked and file.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("ETag", f'"{file.etag}"')
        handler.send_header("X-Repo-Commit", COMMIT)
        if body and file.endless:
            self._send_without_end(handler)
            return
        length = str(len(content) - start)
        handler.close_connection |= file.announced is not None
        handler.send_header("Content-Length", (file.announced if body else None) or length)
        handler.end_headers()
        if not body:
            return
        if file.pause is not None:
            with contextlib.suppress(ConnectionError):
                for byte in content[start:]:
                    threading.Event().wait(file.pause)
                    handler.wfile.write(bytes([byte]))
            return
        if file.drop_after is None:
            handler.wfile.write(content[start:])
            return
        handler.wfile.write(content[start : start + file.drop_after])
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.close()
        if not file.drop_always:
            file.drop_after = None

    def _send_without_end(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_header("Connection", "close")
        handler.end_headers()
        with contextlib.suppress(ConnectionError):  # until the other side has enough
            while not self._closing:
                handler.wfile.write(bytes(1 << 20))


def publish(server: Server, content: bytes, config: Any = CONFIG, **faults: Any) -> File:
    """Puts a repository in timm's form on a server, as `NAME`; returns the file of weights."""
    weights = File(content, large=True, **faults)
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    server.add_repository(NAME, config_json=File(text), model_safetensors=weights)
    return weights
