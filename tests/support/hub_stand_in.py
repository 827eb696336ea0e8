"""A small stand-in for the Hugging Face hub on this machine: as much of its API as deploying a Space asks for.

It keeps Spaces in memory. What it was asked is on record, with the token that came along.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "standInToken" * 3


@dataclass
class HubSpace:
    """One Space: its files, settings and how far it is."""

    visibility: str
    sdk: str
    hardware: str | None = None
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.png filter=lfs\n"})
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])
    stages: list[str] = field(default_factory=lambda: ["RUNNING"])
    error: str = ""


@dataclass
class Hub:
    """The stand-in's memory.

    Attributes:
        spaces: By USER/NAME.
        asked: Method, path and authorization of each request.
        stages: What a new commit's build goes through, last one staying.
        error: What the runtime says of a failed build.
        refuse: Paths that are answered with an error, whose body repeats what was asked, authorization included.
        refuse_with: That error's status.
        known_sha: Whether the runtime says which commit runs.
    """

    address: str = ""
    spaces: dict[str, HubSpace] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    stages: tuple[str, ...] = ("BUILDING", "APP_STARTING", "RUNNING")
    error: str = ""
    refuse: str = "$^"
    refuse_with: int = 500
    known_sha: bool = True
    uploads: dict[str, bytes] = field(default_factory=dict)
    yaml: list[str] = field(default_factory=list)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The stand-in, listening on this machine while it is needed."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        hub, path = self.state, self.path.split("?")[0]
        body = self._body()
        authorization = self.headers.get("Authorization")
        hub.asked.append((self.command, path, authorization))
        if re.search(hub.refuse, path):
            return self._answer({"error": f"broken: {authorization} {body.decode(errors='replace')}"}, hub.refuse_with)
        if not path.startswith("/lfs/") and authorization != f"Bearer {TOKEN}":
            return self._answer({"error": "unauthorized"}, 401)
        for method, pattern, reply in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return reply(self, body, **found.groupdict())
        return self._answer({"error": f"The stand-in does not know {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, data: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _space(self, name: str) -> HubSpace | None:
        space = self.state.spaces.get(name)
        if space is None:
            self._answer({"error": "Repository not found"}, 404, (("X-Error-Code", "RepoNotFound"),))
        return space

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.state.spaces:
            return self._answer({"error": "You already created this space repo"}, 409)
        space = HubSpace(asked.get("visibility", "public"), asked["sdk"], asked.get("hardware"))
        space.variables = {item["key"]: item["value"] for item in asked.get("variables", [])}
        space.secrets = {item["key"]: item["value"] for item in asked.get("secrets", [])}
        self.state.spaces[name] = space
        self._answer({"url": f"{self.state.address}/spaces/{name}", "name": name})

    def info(self, body: bytes, name: str) -> None:
        if space := self._space(name):
            siblings = [{"rfilename": path} for path in space.files]
            self._answer({"id": name, "sha": space.commits[-1], "siblings": siblings, "tags": []})

    def tree(self, body: bytes, name: str) -> None:
        if space := self._space(name):
            files = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in space.files.items()
            ]
            self._answer(files)

    def validate(self, body: bytes) -> None:
        self.state.yaml.append(json.loads(body)["content"])
        self._answer({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        def oid(path: str) -> str | None:
            content = self.state.spaces[name].files.get(path)
            return None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

        self._answer(
            {
                "files": [
                    {
                        "path": item["path"],
                        "uploadMode": "lfs" if item["path"].endswith(".png") else "regular",
                        "shouldIgnore": False,
                        "oid": oid(item["path"]),
                    }
                    for item in json.loads(body)["files"]
                ]
            }
        )

    def lfs_batch(self, body: bytes, name: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"href": f"{self.state.address}/lfs/{item['oid']}"}
            known = item["oid"] in self.state.uploads
            objects.append(item if known else {**item, "actions": {"upload": upload}})
        self._answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        fits = hashlib.sha256(body).hexdigest() == oid
        if fits:
            self.state.uploads[oid] = body
        self._answer({}, 200 if fits else 400)

    def commit(self, body: bytes, name: str) -> None:
        space = self._space(name)
        if space is None:
            return
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                space.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                space.files[value["path"]] = self.state.uploads[value["oid"]]
            elif entry["key"] == "deletedFile":
                del space.files[value["path"]]
        oid = hashlib.sha1(body).hexdigest()
        space.commits.append(oid)
        space.stages = list(self.state.stages)
        space.error = self.state.error
        self._answer(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.state.address}/spaces/{name}/commit/{oid}"}
        )

    def variable(self, body: bytes, name: str) -> None:
        if space := self._space(name):
            asked = json.loads(body)
            space.variables[asked["key"]] = asked["value"]
            self._answer({key: {"value": value} for key, value in space.variables.items()})

    def secret(self, body: bytes, name: str) -> None:
        if space := self._space(name):
            asked = json.loads(body)
            space.secrets[asked["key"]] = asked["value"]
            self._answer({})

    def hardware(self, body: bytes, name: str) -> None:
        if space := self._space(name):
            space.hardware = json.loads(body)["flavor"]
            self._runtime(space, space.stages[0])

    def runtime(self, body: bytes, name: str) -> None:
        if space := self._space(name):
            stage = space.stages.pop(0) if len(space.stages) > 1 else space.stages[0]
            self._runtime(space, stage)

    def _runtime(self, space: HubSpace, stage: str) -> None:
        data: dict[str, Any] = {"stage": stage, "hardware": {"current": None, "requested": space.hardware}}
        if self.state.known_sha:
            # While it builds, the commit before still runs.
            building = stage.endswith("BUILDING") or stage == "OLD"
            data["sha"] = space.commits[-2 if building else -1]
        if stage == "OLD":
            data["stage"] = "RUNNING"
        if space.error:
            data["errorMessage"] = space.error
        self._answer(data)


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", rf"/api/spaces/{_NAME}", _Handler.info),
    ("GET", rf"/api/spaces/{_NAME}/revision/main", _Handler.info),
    ("GET", rf"/api/spaces/{_NAME}/tree/main", _Handler.tree),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/spaces/{_NAME}/preupload/main", _Handler.preupload),
    ("POST", rf"/spaces/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", rf"/api/spaces/{_NAME}/commit/main", _Handler.commit),
    ("POST", rf"/api/spaces/{_NAME}/variables", _Handler.variable),
    ("POST", rf"/api/spaces/{_NAME}/secrets", _Handler.secret),
    ("POST", rf"/api/spaces/{_NAME}/hardware", _Handler.hardware),
    ("GET", rf"/api/spaces/{_NAME}/runtime", _Handler.runtime),
)
