"""Push: a subset's parts, card, Croissant metadata and manifest to the hub, in one commit.

What goes is listed here by name; anything else in the directory stays. Large files that the hub has
already are not sent again, so a push that was cut off goes on when it is given again, and one that
changes nothing makes no commit. A repository is private unless told otherwise.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from coyo_tools.balance import ENTRIES_FILE
from coyo_tools.dedupe import REMOVED
from coyo_tools.errors import CoyoError, OutputError, SourceError
from coyo_tools.manifest import MANIFEST, Manifest
from coyo_tools.publish.card_text import README
from coyo_tools.publish.chain import is_private_path, shown_path
from coyo_tools.publish.croissant import CROISSANT
from coyo_tools.publish.facts import PARTS, CardSettings, Part, read_parts, read_subset
from coyo_tools.publish.write import write_card
from coyo_tools.remote import explain
from coyo_tools.source import open_source

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_KIND = "dataset"
# Besides the parts. Of these, what an earlier push left and this one has not is taken away.
_MAY_GO = (REMOVED, ENTRIES_FILE)
_SIGN_IN = (
    "Make a token with write access on https://huggingface.co/settings/tokens, then set HF_TOKEN, "
    "or run `hf auth login`."
)
_AGAIN = "Give the command again: what the hub has already is not sent twice."


@dataclass(frozen=True)
class PushResult:
    """What a push did: ``commit`` is its id, or that of the newest there was if nothing changed."""

    repo: str
    url: str
    commit: str
    changed: bool
    private: bool
    files: tuple[str, ...]
    taken_away: tuple[str, ...]
    bytes: int
    notes: tuple[str, ...]


def push_subset(
    subset: Path, repo: str, *, public: bool = False, revision: str | None = None
) -> PushResult:
    """Upload a subset; the hub's address and token are the environment's.

    Args:
        subset: the subset; a card is written into it if it has none.
        repo: OWNER/NAME.
        public: make the repository public if it is new, or accept that it is.
        revision: a branch, made if it is new; default main.

    Raises:
        SourceError: it is no subset, or its files or card are not those of its manifest.
        OutputError: no token, no right to write there, a public repository, no network.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    _check_name(repo)
    manifest = read_subset(subset)
    token = get_token()
    if token is None:
        raise OutputError("The hub takes nothing without a token, and there is none.", _SIGN_IN)
    source = open_source(subset)
    parts = read_parts(subset, source, manifest)
    if not (subset / README).exists() and not (subset / CROISSANT).exists():
        write_card(subset, settings=CardSettings(repo=repo))
    _check_card(subset, manifest, parts)
    names = [part.name for part in parts]
    names += [name for name in _MAY_GO if (subset / name).is_file()]
    names += [README, CROISSANT, MANIFEST]
    hub = HfApi(token=token)
    with _hub_errors(repo, token):
        private = _open_repo(hub, repo, public=public)
        if revision is not None:
            hub.create_branch(repo, repo_type=_KIND, branch=revision, exist_ok=True)
        head = str(hub.repo_info(repo, repo_type=_KIND, revision=revision).sha)
        there = hub.list_repo_files(repo, repo_type=_KIND, revision=head)
        gone = [name for name in there if _is_ours(name) and name not in names]
        done = hub.create_commit(
            repo,
            [CommitOperationAdd(name, subset / name) for name in names]
            + [CommitOperationDelete(name) for name in gone],
            commit_message=f"{manifest.rows_out:,} rows, ids {manifest.id_digest}",
            repo_type=_KIND,
            revision=revision,
            # Fails if somebody else has pushed since `there` was read.
            parent_commit=head,
        )
    return PushResult(
        repo=repo,
        url=f"{hub.endpoint}/datasets/{repo}" + (f"/tree/{revision}" if revision else ""),
        commit=done.oid,
        changed=done.oid != head,
        private=private,
        files=tuple(names),
        taken_away=tuple(gone),
        bytes=sum((subset / name).stat().st_size for name in names),
        notes=tuple(_notes(manifest, public=public, private=private)),
    )


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OutputError(
            f"{repo!r} can't be a data set's name on the hub.",
            "Its name is OWNER/NAME, of letters, digits, '-', '_' and '.', without '--' and '..'.",
        ) from error
    if repo.count("/") != 1:
        raise OutputError(f"{repo!r} names no owner.", "Its name is OWNER/NAME.")


def _check_card(subset: Path, manifest: Manifest, parts: tuple[Part, ...]) -> None:
    """Refuse a card that is of other rows than those it would lie beside."""
    hint = f"Write it anew: coyo card {subset} --overwrite"
    for name in (README, CROISSANT):
        if not (subset / name).is_file():
            raise SourceError(f"{subset} has no {name}.", hint)
    try:
        text = (subset / README).read_text(encoding="utf-8")
        files = json.loads((subset / CROISSANT).read_text(encoding="utf-8"))["distribution"]
        described = {file["name"]: file["sha256"] for file in files if "sha256" in file}
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"The card in {subset} is damaged: {error!r}.", hint) from error
    if described != {part.name: part.sha256 for part in parts}:
        raise SourceError(
            f"{subset / CROISSANT} is of other bytes than those that lie beside it: the parts were "
            "touched since, or the card is an older one.",
            f"`coyo verify {subset}` says whether the parts are right. {hint}",
        )
    if manifest.id_digest not in text:
        raise SourceError(
            f"{subset / README} does not name the ids' digest {manifest.id_digest}, so it is the "
            "card of other rows.",
            hint,
        )


def _open_repo(hub: "HfApi", repo: str, *, public: bool) -> bool:
    """Find or make the repository; say whether it is private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = bool(hub.repo_info(repo, repo_type=_KIND).private)
    except RepositoryNotFoundError:
        hub.create_repo(repo, repo_type=_KIND, private=not public, exist_ok=True)
        private = bool(hub.repo_info(repo, repo_type=_KIND).private)
    if not private and not public:
        raise OutputError(
            f"{repo} is public: everybody sees what is pushed there.",
            "Add --public if that is meant, or name another repository.",
        )
    return private


def _is_ours(name: str) -> bool:
    return "/" not in name and (fnmatch(name, PARTS) or name in _MAY_GO)


def _notes(manifest: Manifest, *, public: bool, private: bool) -> list[str]:
    notes = []
    if public and private:
        notes.append("it was private before and stays so; its settings page makes it public")
    return notes + [
        f"{MANIFEST} is pushed as it is, and names the whole path or url of {shown_path(item.path)}"
        for item in manifest.inputs
        if is_private_path(item.path)
    ]


@contextmanager
def _hub_errors(repo: str, token: str) -> Iterator[None]:
    """Say in coyo's words what the hub refuses, and never the token.

    Raises:
        OutputError: with what to do.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that nothing has changed is said here
    try:
        yield
    except CoyoError:
        raise
    except Exception as error:
        told = _told(error, repo)
        if told is None:
            raise
        said, hint = (text.replace(token, "…") for text in told)
        raise OutputError(said, hint) from error
    finally:
        logger.setLevel(level)


def _told(error: Exception, repo: str) -> tuple[str, str] | None:
    """Return what was wrong and what to try; None for a defect of ours."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"The hub does not accept the token for {repo} (401).", _SIGN_IN
    if status == 403:
        return (
            f"The token may not write to {repo} (403).",
            "It needs the role `write`, and its owner the right to write there.",
        )
    if status == 412:
        return f"Somebody else has pushed to {repo} meanwhile (412).", _AGAIN
    if status in (402, 429) or (status is not None and status >= 500):
        return f"The hub answers {status} for {repo}.", _AGAIN
    if isinstance(error, ValueError) and "README.md" in str(error):
        lines = " ".join(str(error).split())
        return f"The hub refuses the card: {lines}", "Mend the front matter of README.md."
    known = explain(error, f"hf://datasets/{repo}")
    return None if known is None else (known.what, known.hint or _AGAIN)
