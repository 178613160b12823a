"""Finds pool files behind urls (``s3://``, ``https://``, ``hf://``) and reads ranges of them.

What is asked for is little: a listing with sizes, then ranges. Credentials, endpoints and
certificates come from the environment, as each library takes them; nothing is read from the url.
What the network answers becomes a ``SourceError`` that says what to do. Caching, and what DuckDB
sees of the files, is the business of pool_files.py.
"""

import fnmatch
import itertools
import logging
import posixpath
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fsspec.utils import glob_translate

from coyo_tools.errors import CoyoError, MissingExtraError, SourceError

Answer = TypeVar("Answer")

_logger = logging.getLogger(__name__)

SCHEMES = ("s3", "https", "http", "hf")
_GLOB_SIGNS = frozenset("*?[")
_MANIFEST = "manifest.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BETWEEN = re.compile(r"\s+(?=[a-z0-9]+://)")  # a key on S3 may have spaces itself
# botocore waits a minute for a connection and tries five times; a wrong endpoint should be told
# sooner, a busy server still gets three tries.
_WAITS = (0.5, 2, 8)
_MAY_PASS = frozenset({429, 500, 502, 503, 504})
_S3_CONFIG = {"connect_timeout": 10, "retries": {"mode": "standard", "max_attempts": 3}}


@dataclass(frozen=True)
class RemoteFile:
    """One file behind a url: its size in bytes, its ETag or hash if any, and its ranges.

    ``read`` takes start and end and raises ``SourceError``.
    """

    url: str
    size: int
    tag: str
    read: Callable[[int, int], bytes]


def is_remote(address: str) -> bool:
    """Say whether an address is a url rather than a path."""
    return "://" in address


def find_remote(addresses: str, *, token: str | None = None) -> list[RemoteFile]:
    """List the parquet files that an address names, in order of their names.

    Args:
        addresses: a url of a file, of a directory or with a glob (https: where the server lists its
            directories), ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``, or several urls with
            spaces between.
        token: the hub's; default HF_TOKEN or the login's.

    Raises:
        SourceError: nothing there, no access, no network.
        MissingExtraError: the scheme's library is not installed.
    """
    found = []
    for address in _BETWEEN.split(addresses.strip()):
        with network_errors(address):
            hub = _scheme(address) == "hf"
            files = _find_hub(address, token) if hub else _OPENERS[_scheme(address)](address)
        if not files:
            raise SourceError(f"{address} holds no *.parquet file.")
        found += files
    return found


def _scheme(address: str) -> str:
    scheme = urlsplit(address).scheme
    if "@" in urlsplit(address).netloc and scheme in ("http", "https"):
        raise SourceError(
            "The url has a user or password in it, which would end up in manifests and messages.",
            "Put them into ~/.netrc and leave them out of the url.",
        )
    if scheme not in SCHEMES:
        raise SourceError(
            f"{address} has a scheme that can't be opened: {scheme}.",
            f"Known are {', '.join(f'{name}://' for name in SCHEMES)}.",
        )
    return scheme


def _find_s3(address: str) -> list[RemoteFile]:
    try:
        import s3fs
    except ImportError as error:
        raise MissingExtraError(f"{address}", "remote", "s3fs") from error
    files = s3fs.S3FileSystem(config_kwargs=_S3_CONFIG, use_listings_cache=False)
    return [
        RemoteFile(
            f"s3://{name}",
            int(info["size"]),
            str(info.get("ETag", "")).strip('"'),
            _ranges(files, name, f"s3://{name}"),
        )
        for name, info in _listed(files, address.removeprefix("s3://")).items()
    ]


def _find_http(address: str) -> list[RemoteFile]:
    try:
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError as error:
        raise MissingExtraError(f"{address}", "remote", "aiohttp") from error
    # As any tool, through the proxies of the environment and with ~/.netrc.
    files = HTTPFileSystem(use_listings_cache=False, client_kwargs={"trust_env": True})
    path = urlsplit(address).path
    several = _GLOB_SIGNS & set(posixpath.basename(path)) or path.endswith("/")
    names = list(_listed(files, address)) if several else [address]
    found = []
    for name in names:
        info = files.info(name)
        if info.get("size") is None:
            raise SourceError(f"The server does not say how long {name} is.", _DOWNLOAD)
        tag = str(info.get("ETag", "")).strip('"')
        found.append(RemoteFile(name, int(info["size"]), tag, _ranges(files, name, name)))
    return found


def _find_hub(address: str, token: str | None) -> list[RemoteFile]:
    from huggingface_hub import HfApi, RepoFile

    repo, revision, path = split_hub(address)
    hub = HfApi(token=token)
    pinned = revision is not None and _COMMIT.fullmatch(revision)
    commit = (
        revision
        if pinned
        else asked_again(lambda: hub.dataset_info(repo, revision=revision), address).sha
    )

    def listed(folder: str, *, recursive: bool) -> list[RepoFile]:
        items = hub.list_repo_tree(
            repo, folder or None, recursive=recursive, revision=commit, repo_type="dataset"
        )
        return [item for item in items if isinstance(item, RepoFile)]

    if _GLOB_SIGNS & set(path):
        matches = re.compile(glob_translate(path)).match
        fixed = itertools.takewhile(lambda part: not _GLOB_SIGNS & set(part), path.split("/"))
        files = [item for item in listed("/".join(fixed), recursive=True) if matches(item.path)]
    elif not path:
        files = [item for item in listed("", recursive=True) if item.path.endswith(".parquet")]
    else:
        found = asked_again(
            lambda: hub.get_paths_info(repo, [path], revision=commit, repo_type="dataset"), address
        )
        if not found:
            raise SourceError(f"{address} does not exist.", "Check the path behind the data set.")
        if isinstance(found[0], RepoFile):
            files = [found[0]]
        else:
            files = [
                item for item in listed(path, recursive=False) if item.path.endswith(".parquet")
            ]
    return [
        RemoteFile(
            url=f"hf://datasets/{repo}@{commit}/{item.path}",
            size=item.size,
            tag=item.lfs.sha256 if item.lfs else item.blob_id,
            read=_hub_ranges(repo, commit, item.path, address, token),
        )
        for item in sorted(files, key=lambda item: item.path)
    ]


def split_hub(address: str) -> tuple[str, str | None, str]:
    """Split ``hf://datasets/OWNER/NAME@REVISION/PATH`` into repository, revision, path.

    Raises:
        SourceError: it has another form.
    """
    parts = address.removeprefix("hf://").strip("/").split("/", 3)
    if len(parts) < 3 or parts[0] != "datasets" or not all(parts[:3]):
        raise SourceError(
            f"{address} names no data set.", "Write hf://datasets/OWNER/NAME[@REVISION][/PATH]."
        )
    name, _, revision = parts[2].partition("@")
    path = parts[3] if len(parts) > 3 else ""
    if revision == "refs" and path.count("/") >= 1:  # refs/convert/parquet, refs/pr/7
        kind, value, *rest = path.split("/", 2)
        revision, path = f"refs/{kind}/{value}", rest[0] if rest else ""
    return f"{parts[1]}/{name}", revision.replace("%2F", "/") or None, path


def _listed(files: Any, address: str) -> dict[str, dict[str, Any]]:
    """List a file, the files that match a glob, or the parquet files of a directory."""
    if _GLOB_SIGNS & set(urlsplit(address).path):
        matches: dict[str, dict[str, Any]] = files.glob(address, detail=True)
        return {name: info for name, info in sorted(matches.items()) if info["type"] == "file"}
    address = address.rstrip("/")
    info = None if files.protocol in ("http", ("http", "https")) else files.info(address)
    if info is not None and info["type"] == "file":
        return {str(info["name"]): info}
    listing = {str(item["name"]): item for item in files.ls(f"{address}/", detail=True)}
    made = any(posixpath.basename(name) == _MANIFEST for name in listing)
    wanted = "part-*.parquet" if made else "*.parquet"
    return {
        name: item
        for name, item in sorted(listing.items())
        if item["type"] == "file" and fnmatch.fnmatchcase(posixpath.basename(name), wanted)
    }


def _ranges(files: Any, name: str, url: str) -> Callable[[int, int], bytes]:
    def read(start: int, end: int) -> bytes:
        with network_errors(url):
            raw = asked_again(lambda: files.cat_file(name, start=start, end=end), url)
            return _whole(bytes(raw), start, end, url)

    return read


def asked_again(call: Callable[[], Answer], url: str) -> Answer:
    """Call something that uses the network, and again after a fault that may pass.

    Waits as long as the server asks for (Retry-After), else half a second, two, eight; each wait is
    logged as a warning, which reaches stderr.
    """
    for usual in _WAITS:
        try:
            return call()
        except Exception as error:
            status = _status(error)
            if status not in _MAY_PASS and not (status is None and _is_network(error)):
                raise
            wait = max(usual, _retry_after(error))
            reason = f"answered {status}" if status else f"broke off ({_first_line(error)})"
            _logger.warning("%s %s; asking again in %g s", url, reason, wait)
            time.sleep(wait)
    return call()


def _is_network(error: Exception) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"ClientPayloadError", "ServerDisconnectedError", "ClientOSError"})


def _retry_after(error: BaseException) -> float:
    """Return the seconds that a server asks to wait, 0 if it doesn't."""
    headers = getattr(error, "headers", None) or getattr(
        getattr(error, "response", None), "headers", None
    )
    value = str((headers or {}).get("retry-after", ""))
    return float(value) if value.isdecimal() else 0.0


def _hub_ranges(
    repo: str, commit: str | None, path: str, url: str, token: str | None
) -> Callable[[int, int], bytes]:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_backoff,
    )

    place = hf_hub_url(repo, path, repo_type="dataset", revision=commit)

    def read(start: int, end: int) -> bytes:
        headers = build_hf_headers(token=token) | {"range": f"bytes={start}-{end - 1}"}
        with network_errors(url):
            response = http_backoff(
                "GET", place, headers=headers, timeout=60, follow_redirects=True
            )
            hf_raise_for_status(response)
            return _whole(response.content, start, end, url)

    return read


def _whole(raw: bytes, start: int, end: int, url: str) -> bytes:
    if len(raw) != end - start:
        raise SourceError(
            f"{url} gave {len(raw):,} bytes where {end - start:,} were asked for: it changed, "
            "or the server doesn't do ranges.",
            _DOWNLOAD,
        )
    return raw


_OPENERS = {"s3": _find_s3, "https": _find_http, "http": _find_http}
_DOWNLOAD = "Download the files and open the directory."


class network_errors:  # noqa: N801
    """Turn what a network library raises into a ``SourceError`` that says what to do."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, CoyoError):
            explained = explain(error, self._url)
            if explained is not None:
                raise explained from error


def explain(error: Exception, url: str) -> SourceError | None:
    """Say what a network library's exception means and what to do; ``None`` for a defect of ours.

    The libraries are told by the status they carry and the names of their classes, so that none of
    them has to be imported.
    """
    hub, s3 = url.startswith("hf://"), url.startswith("s3://")
    key = (
        "Set HF_TOKEN, or run `hf auth login`."
        if hub
        else "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
        "FSSPEC_S3_ANON=true."
        if s3
        else "The url must be readable without signing in."
    )
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, url)  # fsspec calls every failure of https so
    names = {cls.__name__ for cls in type(error).__mro__}
    status = _status(error)
    if "GatedRepoError" in names:
        return SourceError(
            f"{url} is gated: its owner asks for an agreement first.",
            f"Accept it on the data set's page, then: {key}",
        )
    if "HFValidationError" in names:
        return SourceError(f"{url} names no data set.", "Its name is OWNER/NAME.")
    if "RevisionNotFoundError" in names:
        return SourceError(f"{url}: there is no such revision.", "Check what stands behind the @.")
    if "RepositoryNotFoundError" in names:
        return SourceError(
            f"{url} does not exist, or it is private and the token has no access.",
            f"Check the name. {key}",
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return SourceError(f"{url} does not exist (404).", "Check the address.")
    if status == 401 or "NoCredentialsError" in names:
        return SourceError(f"{url} needs credentials, none were accepted.", key)
    if status == 403 or isinstance(error, PermissionError):
        return SourceError(f"Access to {url} is denied (403).", key)
    if status == 429:
        return SourceError(f"{url}: too many requests (429).", "Wait some minutes and try again.")
    if status is not None and status >= 400:
        return SourceError(f"{url}: the server answers {status}.", "Try again later.")
    if "Timeout" in type(error).__name__ or isinstance(error, TimeoutError):
        return SourceError(f"{url} did not answer in time.", "Check the network and try again.")
    if any("Certificate" in name or "SSL" in name for name in names) or "CERTIFICATE" in str(error):
        return SourceError(
            f"The certificate of {url} is not trusted: {_first_line(error)}.",
            "SSL_CERT_FILE names a file of certificates to trust.",
        )
    if isinstance(error, OSError) or names & _UNREACHABLE:
        return SourceError(
            f"{url} can't be reached: {_first_line(error)}.",
            "Check the address, the network, and HF_ENDPOINT if it is set."
            if hub
            else "Check the address, the network, and AWS_ENDPOINT_URL if it is set."
            if s3
            else "Check the address and the network.",
        )
    return None


_UNREACHABLE = frozenset({"ClientError", "BotoCoreError", "TransportError", "HTTPError"})


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception, or the one it came from, carries."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        status = getattr(seen, "status", None) or getattr(response, "status_code", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
        seen = seen.__cause__
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
