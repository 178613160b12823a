"""Servers of the tests' own for remote pools: files over TLS, a data set hub, an S3.

The hub speaks what huggingface_hub and datasets ask of the real one: repository info, tree,
paths-info, resolve with a redirect to another host, ranges, HEAD, gated and absent repositories.
"""

import hashlib
import json
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import trustme


@dataclass
class Asked:
    """What clients asked for: requests by method and path, bytes of bodies by path, tokens."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    tokens: set[str] = field(default_factory=set)

    def clear(self) -> None:
        self.requests.clear()
        self.bytes.clear()
        self.tokens.clear()


class FileServer(ThreadingHTTPServer):
    """Serves ``files`` by path, with ranges, and lists directories as links.

    ``before`` may answer a request itself: it returns an HTTP status and headers, or None.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type["_Files"] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or _Files)
        self.files: dict[str, bytes] = {}
        self.asked = Asked()
        self.ranges = True
        self.before: Callable[[str, str], tuple[int, dict[str, str]] | None] = lambda *_: None
        self.scheme = "http"

    def url(self, path: str = "") -> str:
        return f"{self.scheme}://localhost:{self.server_port}{path}"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news."""


class _Files(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.requests[f"{self.command} {path}"] += 1
        if token := self.headers.get("authorization"):
            self.server.asked.tokens.add(token)
        early = self.server.before(self.command, path)
        if early is not None:
            self.answer(*early)
        else:
            self.serve(path)

    def serve(self, path: str) -> None:
        if path in self.server.files:
            self.send_file(path, self.server.files[path])
        elif path.endswith("/"):
            names = [name for name in self.server.files if name.startswith(path)]
            links = "".join(f'<a href="{name}">{name}</a>' for name in names)
            self.answer(200, {"content-type": "text/html"}, links.encode())
        else:
            self.answer(404, {})

    def send_file(self, path: str, data: bytes, **headers: str) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        sent = {"etag": etag, "content-type": "application/octet-stream"} | headers
        status = 200
        if self.server.ranges:
            sent["accept-ranges"] = "bytes"
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
            if wanted:
                first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
                last = min(last, len(data) - 1)
                sent["content-range"] = f"bytes {first}-{last}/{len(data)}"
                data, status = data[first : last + 1], 206
        if self.command != "HEAD":
            self.server.asked.bytes[path] += len(data)
        self.answer(status, sent, data)

    def answer(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serving(server: FileServer, certificates: Path | None = None) -> Iterator[FileServer]:
    """Run a server; with ``certificates``, over TLS: the authority's is written there."""
    if certificates is not None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        authority.cert_pem.write_to_path(str(certificates))
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.scheme = "https"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Hub(FileServer):
    """A hub with one repository; ``files`` are its files by path inside, ``kind`` is what it is.

    ``store`` is the other host that large files are redirected to. ``token`` is asked for where it
    is set; ``gated`` says that even a token has no access.
    """

    def __init__(
        self,
        repo: str,
        store: FileServer,
        kind: str = "datasets",
        handler: type["_HubHandler"] | None = None,
    ) -> None:
        super().__init__(handler or _HubHandler)
        self.kind = kind
        self.repo = repo
        self.store = store
        self.commit = "c0ffee" + "0" * 34
        self.older_commits: set[str] = set()
        self.token: str | None = None
        self.gated = False

    def put(self, path: str, data: bytes) -> None:
        self.files[path] = data
        self.store.files[f"/blobs/{hashlib.sha256(data).hexdigest()}"] = data


class _HubHandler(_Files):
    server: Hub

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.requests[f"POST {path}"] += 1
        if token := self.headers.get("authorization"):
            self.server.asked.tokens.add(token)
        if not self.refused(path):
            self.post(path, body)

    def post(self, _path: str, body: bytes) -> None:
        wanted = parse_qs(body.decode()).get("paths", [])
        items = [self.described(name) for name in wanted if name in self.server.files]
        folders = [
            {"type": "directory", "path": name, "oid": "0" * 40}
            for name in wanted
            if any(file.startswith(f"{name}/") for file in self.server.files)
        ]
        self.send_json([*items, *folders])

    def serve(self, path: str) -> None:
        if self.refused(path):
            return
        repo, kind = self.server.repo, self.server.kind
        info = re.fullmatch(rf"/api/{kind}/{repo}(?:/revision/(.+))?", path)
        tree = re.fullmatch(rf"/api/{kind}/{repo}/tree/([^/]+)(?:/(.*))?", path)
        files = repo if kind == "models" else f"{kind}/{repo}"
        resolve = re.fullmatch(rf"/{files}/resolve/([^/]+)/(.+)", path)
        found = info or tree or resolve
        if found is None:
            self.fail(404, "RepoNotFound", "Repository not found")
        elif (revision := found[1] or "main") not in self.revisions():
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {found[1]}")
        elif info:
            siblings = [{"rfilename": name} for name in self.server.files]
            self.send_json(
                {"id": repo, "sha": self.commit_of(revision), "siblings": siblings, "tags": []}
                | {"private": False, "gated": False, "downloads": 0, "likes": 0}
            )
        elif tree:
            self.send_tree(tree[2] or "", "recursive=true" in self.path.lower())
        elif resolve:
            self.resolve(resolve[2], self.commit_of(revision))

    def revisions(self) -> set[str]:
        return {"main", self.server.commit} | self.server.older_commits

    def commit_of(self, revision: str) -> str:
        return self.server.commit if revision == "main" else revision

    def refused(self, path: str) -> bool:
        if f"/{self.server.repo}" not in path:
            # As the real hub: what may be private is not told from what does not exist.
            known = self.headers.get("authorization")
            self.fail(404 if known else 401, "RepoNotFound", "Repository not found")
            return True
        if self.server.gated and ("/resolve/" in path or path.endswith("/auth-check")):
            self.fail(403, "GatedRepo", "Access to this dataset is restricted")
            return True
        token = self.server.token
        if token is not None and self.headers.get("authorization") != f"Bearer {token}":
            self.fail(401, "RepoNotFound", "Invalid credentials")
            return True
        return False

    def send_tree(self, folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        names = sorted(name for name in self.server.files if name.startswith(prefix))
        if not names:
            self.fail(404, "EntryNotFound", "Not found")
            return
        items: dict[str, dict[str, object]] = {}
        for name in names:
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                inner = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    items[inner] = {"type": "directory", "path": inner, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                items[name] = self.described(name)
        self.send_json(list(items.values()))

    def described(self, name: str) -> dict[str, object]:
        data = self.server.files[name]
        sha = hashlib.sha256(data).hexdigest()
        lfs = {"oid": sha, "size": len(data), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(data), "oid": sha[:40], "lfs": lfs}

    def resolve(self, name: str, commit: str) -> None:
        if name not in self.server.files:
            self.fail(404, "EntryNotFound", "Entry not found")
            return
        data = self.server.files[name]
        sha = hashlib.sha256(data).hexdigest()
        sent = {"x-repo-commit": commit, "etag": f'"{sha}"'}
        if not name.endswith(".parquet"):
            self.send_file(name, data, **sent)
            return
        sent |= {"x-linked-size": str(len(data)), "x-linked-etag": f'"{sha}"'}
        sent |= {"location": self.server.store.url(f"/blobs/{sha}")}
        self.answer(302, sent)

    def fail(self, status: int, code: str, message: str) -> None:
        text = json.dumps({"error": message}).encode()
        self.answer(status, {"x-error-code": code, "x-error-message": message}, text)

    def send_json(self, data: object) -> None:
        self.answer(200, {"content-type": "application/json"}, json.dumps(data).encode())
