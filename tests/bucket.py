"""A bucket on loopback: gcp-storage-emulator, which can be told to fail.

`conftest.bucket` starts it; jxfer finds it through $STORAGE_EMULATOR_HOST.
"""

import functools
import http.server
import json
import logging
import pathlib
import threading

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

NAME = "some-bucket"
URL = f"gs://{NAME}"


class _IsThere(Exception):
    """An object that must be new is not."""


class _Server(http.server.HTTPServer):
    request_queue_size = 128  # all threads of a transfer may come at once


class Bucket:
    """Holds objects in memory."""

    def __init__(self) -> None:
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self._storage = Storage(use_memory_fs=True)
        self.status: int | None = None
        """what every request is answered with; None: as it should be"""
        self._new_only = False
        """whether the request under way may replace nothing; they come one after another"""
        self.writes: list[str] = []
        """names of objects in the order in which they were written"""
        self._server = _Server(("127.0.0.1", 0), functools.partial(self._handler(), self._storage))
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.wipe()

    def wipe(self) -> None:
        """Empties it."""
        self.status = None
        self.writes.clear()
        self._storage.wipe()
        buckets.create_bucket(NAME, self._storage)

    def names(self, inside: str = "") -> list[str]:
        """Of the objects below a path, sorted."""
        return sorted(n for n in self._storage.objects.get(NAME, {}) if n.startswith(inside))

    def upload(self, folder: pathlib.Path, where: str) -> str:
        """Puts a local folder at a path; returns its address."""
        from jxfer.data import remote

        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        remote.send(folder, names, f"{URL}/{where}")
        return f"{URL}/{where}"

    def close(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(bucket) -> type[server.RequestHandler]:
        create_file = bucket._storage.create_file

        def noted(place: str, name: str, *args: object, **options: object) -> object:
            if bucket._new_only and name in bucket.names():
                raise _IsThere
            bucket.writes.append(name)
            return create_file(place, name, *args, **options)

        bucket._storage.create_file = noted

        class Handler(server.RequestHandler):
            def parse_request(self) -> bool:
                if not super().parse_request():
                    return False
                # The emulator knows no preconditions.
                bucket._new_only = "ifGenerationMatch=0" in self.path
                if bucket.status is None:
                    return True
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._refuse(bucket.status)
                return False

            def do_POST(self) -> None:
                try:
                    super().do_POST()
                except _IsThere:
                    self._refuse(412)

            def _refuse(self, status: int) -> None:
                error = {"error": {"code": status, "message": "secret text of the server"}}
                body = json.dumps(error).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
