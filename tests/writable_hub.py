"""A hub that data sets can be pushed to: what huggingface_hub asks of the real one to do so.

Repositories are made, branches begun, large files stored by their SHA-256 on another host, commits
refused whose parent is not the newest. Nothing is kept of a push that was cut off but large files.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from remote_servers import FileServer, Hub, _Files, _HubHandler


@dataclass
class Commit:
    """One commit: what it did, and the files of its branch afterwards."""

    branch: str
    parent: str
    summary: str
    added: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


class Store(FileServer):
    """The other host: takes large files, by the address that the hub gave out."""

    def __init__(self) -> None:
        super().__init__(_StoreHandler)


class _StoreHandler(_Files):
    def do_PUT(self) -> None:  # noqa: N802
        data = self.rfile.read(int(self.headers["content-length"]))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.requests[f"PUT {path}"] += 1
        if token := self.headers.get("authorization"):
            self.server.asked.tokens.add(token)
        early = self.server.before("PUT", path)
        if early is not None:
            self.answer(*early)
        elif hashlib.sha256(data).hexdigest() != path.rpartition("/")[2]:
            self.answer(400, {})
        else:
            self.server.files[path] = data
            self.answer(200, {"etag": '"stored"'})


class WritableHub(Hub):
    """A hub with room for one repository; ``exists`` says whether it was made yet.

    ``files`` are those of main, ``branches`` the files of every branch. ``may_write`` says whether
    the token may.
    """

    def __init__(self, repo: str, store: Store) -> None:
        super().__init__(repo, store, handler=_WritableHandler)
        self.exists = False
        self.private = True
        self.may_write = True
        self.yaml_errors: list[str] = []
        self.branches: dict[str, dict[str, bytes]] = {}
        self.heads: dict[str, str] = {}
        self.commits: list[Commit] = []

    def make(self, *, private: bool) -> None:
        """Make the repository, with the file that the real hub puts there."""
        self.exists, self.private = True, private
        self.files = {".gitattributes": b"*.parquet filter=lfs\n"}
        self.branches["main"] = self.files
        self.heads["main"] = self.commit


class _WritableHandler(_HubHandler):
    server: WritableHub

    def refused(self, path: str) -> bool:
        if path in ("/api/repos/create", "/api/validate-yaml"):
            if self.server.token is not None and not self.known():
                self.fail(401, "", "Invalid username or password.")
                return True
            return False
        if not self.server.exists or f"/{self.server.repo}" not in path:
            self.fail(404 if self.known() else 401, "RepoNotFound", "Repository not found")
            return True
        return super().refused(path)

    def known(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {self.server.token}"

    def revisions(self) -> set[str]:
        return {*self.server.branches, *self.server.heads.values()}

    def commit_of(self, revision: str) -> str:
        return self.server.heads.get(revision, revision)

    def serve(self, path: str) -> None:
        repo = self.server.repo
        tree = re.fullmatch(rf"/api/datasets/{repo}/tree/([^/]+)", path)
        info = re.fullmatch(rf"/api/datasets/{repo}(?:/revision/(.+))?", path)
        if self.server.exists and tree and not self.refused(path):
            files = self.files_at(tree[1])
            self.send_json([self.described_as(name, data) for name, data in files.items()])
        elif self.server.exists and info and not self.refused(path):
            revision = info[1] or "main"
            if revision not in self.revisions():
                self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return
            files = self.files_at(revision)
            self.send_json(
                {"id": repo, "sha": self.commit_of(revision), "private": self.server.private}
                | {"siblings": [{"rfilename": name} for name in files], "tags": []}
                | {"gated": False, "downloads": 0, "likes": 0}
            )
        elif not tree and not info:
            super().serve(path)
        elif not self.server.exists:
            self.refused(path)

    def files_at(self, revision: str) -> dict[str, bytes]:
        branches = {commit: name for name, commit in self.server.heads.items()}
        name = revision if revision in self.server.branches else branches[revision]
        return self.server.branches[name]

    def described_as(self, name: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}

    def post(self, path: str, body: bytes) -> None:
        early = self.server.before("POST", path)
        if early is not None:
            self.answer(*early)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            errors = [{"message": said} for said in self.server.yaml_errors]
            answer = json.dumps({"errors": errors, "warnings": []}).encode()
            self.answer(400 if errors else 200, {"content-type": "application/json"}, answer)
        elif path.endswith("/paths-info") or "/paths-info/" in path:
            super().post(path, body)
        elif not self.server.may_write:
            self.fail(403, "", "You don't have the rights to write to this repository.")
        elif found := re.search(r"/branch/(.+)$", path):
            self.branch(found[1])
        elif found := re.search(r"/preupload/(.+)$", path):
            self.preupload(found[1], json.loads(body)["files"])
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(body)["objects"])
        elif found := re.search(r"/commit/(.+)$", path):
            self.commit_to(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.fail(404, "", f"no such address: {path}")

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self.server.may_write or name != self.server.repo:
            self.fail(403, "", f"You don't have the rights to create under {asked['organization']}")
            return
        assert asked["type"] == "dataset"
        self.server.make(private=asked["visibility"] == "private")
        self.send_json({"url": self.server.url(f"/datasets/{name}")})

    def branch(self, name: str) -> None:
        if name in self.server.branches:
            self.fail(409, "", "Reference already exists")
            return
        self.server.branches[name] = dict(self.server.files)
        self.server.heads[name] = self.server.heads["main"]
        self.send_json({})

    def preupload(self, revision: str, files: list[dict[str, Any]]) -> None:
        there = self.files_at(revision)
        answers = []
        for file in files:
            large = file["path"].endswith(".parquet")
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
            }
            if file["path"] in there:
                data = there[file["path"]]
                answer["oid"] = hashlib.sha256(data).hexdigest() if large else _git_oid(data)
            answers.append(answer)
        self.send_json({"files": answers})

    def batch(self, objects: list[dict[str, Any]]) -> None:
        store = self.server.store
        answers = []
        for item in objects:
            blob = f"/blobs/{item['oid']}"
            if blob not in store.files:
                item = item | {"actions": {"upload": {"href": store.url(blob)}}}
            answers.append(item)
        self.send_json({"transfer": "basic", "objects": answers})

    def commit_to(self, revision: str, lines: list[dict[str, Any]]) -> None:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, self.server.heads[revision]):
            self.fail(412, "", "A commit has happened since.")
            return
        files = dict(self.server.branches[revision])
        made = Commit(revision, self.server.heads[revision], header["summary"])
        for line in lines[1:]:
            value = line["value"]
            name = value["path"]
            if line["key"] == "deletedFile":
                del files[name]
                made.deleted.append(name)
                continue
            if line["key"] == "file":
                files[name] = base64.b64decode(value["content"])
            else:
                files[name] = self.server.store.files[f"/blobs/{value['oid']}"]
            made.added.append(name)
        self.server.commits.append(made)
        self.server.branches[revision] = files
        if revision == "main":
            self.server.files = files
            for name, data in files.items():
                self.server.put(name, data)
        head = hashlib.sha256(json.dumps([lines, made.parent]).encode()).hexdigest()[:40]
        self.server.heads[revision] = head
        self.send_json(
            {
                "commitUrl": self.server.url(f"/datasets/{self.server.repo}/commit/{head}"),
                "commitOid": head,
            }
        )


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - as git does
