"""What ``coyo_align`` is given and how its refusals are told, for training and evaluation alike.

Curation and training meet on disk only: the training package gets paths, and knows nothing of
manifests, subsets and coyo's errors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from coyo_tools.errors import MissingExtraError, SourceError, TrainingError
from coyo_tools.manifest import MANIFEST, Input, read_manifest
from coyo_tools.shard_hashes import holds_tars, tars_fingerprint
from coyo_tools.shards import SHARDS_KIND
from coyo_tools.source import Source


class Counted(Protocol):
    """A result of ``coyo_align`` that says which samples it went without."""

    @property
    def skipped(self) -> dict[str, int]:
        """Samples that could not be used, by reason."""
        ...

    @property
    def missing_ids(self) -> int:
        """Ids asked for that are not in the shards."""
        ...


@contextmanager
def align_errors(command: str) -> Iterator[None]:
    """Say in coyo's words that the training package is missing, or what it refuses."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(command, "train", str(error.name)) from error
    except ValueError as error:
        from coyo_align.errors import AlignError

        if not isinstance(error, AlignError):
            raise
        raise TrainingError(str(error)) from error


def open_shards(shards: Path) -> Input:
    """Check that ``shards`` holds tars and describe it for a manifest."""
    if not shards.is_dir():
        raise SourceError(f"{shards} does not exist or is not a directory.")
    if (shards / MANIFEST).is_file():
        manifest = read_manifest(shards)
        if manifest.kind == "index":
            raise SourceError(f"{shards} holds a pool and shards.", f"Use {shards / 'shards'}.")
        if manifest.kind != SHARDS_KIND:
            raise SourceError(f"{shards} is a {manifest.kind} directory, not shards.")
        return Input("shards", str(shards), manifest.id_digest)
    if not holds_tars(shards):
        raise SourceError(f"{shards} holds no .tar files.", "`coyo download` and `coyo index` do.")
    return Input("shards", str(shards), tars_fingerprint(shards))


def ids_path(subset: Source | None) -> Path | None:
    """Return what coyo_align reads ids from: a parquet file, or the folder of the parts."""
    if subset is None:
        return None
    if subset.remote:
        raise SourceError(f"{subset.path} is remote.", "Training reads ids from a local subset.")
    files = [Path(file) for file in subset.files]
    if len(files) == 1:
        return files[0]
    if not all(file.match("part-*.parquet") for file in files):
        raise SourceError(
            f"{subset.path} is several files.", "Give a subset directory or a single parquet file."
        )
    return files[0].parent


def lost_of(result: Counted) -> dict[str, int]:
    """Return what did not reach the model, by reason; ids without a picture are one."""
    lost = dict(result.skipped)
    if result.missing_ids:
        lost["not in the shards"] = result.missing_ids
    return lost


def inputs_of(data: Input, subset: Source | None) -> list[Input]:
    """Return what a manifest lists as inputs."""
    return [data] if subset is None else [data, subset.as_input("subset")]
