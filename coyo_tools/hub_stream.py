"""A split of a data set on the hub, as tables with a place to go on from after each.

`datasets` finds out what files a split is made of, whatever the repository's layout. Parquet is
then read a row group at a time, the asked columns alone, since a row group is a place to resume at
and since `datasets`' own stream reads ahead past them (34 MB for two columns of a 24 MB file, where
3.6 MB were needed). Any other format is streamed by `datasets`, whole rows.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.errors import ColumnError, MissingExtraError, SourceError
from coyo_tools.footers import ENGINE_TAIL_BYTES, parse_tail, read_tail
from coyo_tools.pool_files import PoolFileSystem, ServedFile, served_path
from coyo_tools.remote import asked_again, find_remote, network_errors

Place = dict[str, Any]
"""Where to go on, as JSON can hold it; empty at the start."""

_BATCH = 10_000  # rows; what `datasets` is asked for where there are no row groups


@dataclass(frozen=True)
class Split:
    """One split at one commit: its files, its format, and how `datasets` would read it."""

    repo: str
    commit: str
    name: str
    files: tuple[str, ...]
    format: str
    builder: Any
    token: str | None = None


def open_split(
    repo: str,
    *,
    split: str,
    revision: str | None,
    config: str | None = None,
    token: str | None = None,
) -> Split:
    """Find out what a split is made of; nothing of it is read.

    Args:
        repo: OWNER/NAME.
        split: such as ``train``.
        revision: a branch, tag or commit; default the newest.
        config: which of a data set's configurations, where it has several.
        token: the hub's; default HF_TOKEN or the login's.

    Raises:
        SourceError: no such data set, revision or split, no access, no network.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("coyo pool get", "remote", "datasets") from error
    from huggingface_hub import HfApi

    if repo.count("/") != 1:
        raise SourceError(f"{repo} names no data set.", "Its name is OWNER/NAME.")
    address = f"hf://datasets/{repo}" + (f"@{revision}" if revision else "")
    with network_errors(address):
        hub = HfApi(token=token)
        commit = str(asked_again(lambda: hub.dataset_info(repo, revision=revision), address).sha)
        try:
            builder = datasets.load_dataset_builder(repo, config, revision=commit, token=token)
        except datasets.exceptions.DatasetNotFoundError:
            # The commit was found, so it is access that is wanting; datasets hides which.
            hub.auth_check(repo, repo_type="dataset")
            raise
        except (FileNotFoundError, ValueError) as error:
            raise SourceError(f"`datasets` can't read {address}: {error}") from error
    files = dict(builder.config.data_files or {})
    if split not in files:
        raise SourceError(
            f"{address} has no split {split!r}.", f"It has {', '.join(files) or 'none'}: --split."
        )
    return Split(
        repo, commit, split, tuple(map(str, files[split])), str(builder.name), builder, token
    )


def read_split(
    split: Split, columns: Sequence[str], place: Place, check: Callable[[Sequence[str]], None]
) -> Iterator[tuple[pa.Table, Place]]:
    """Yield the rows from a place on, in the files' order, with the place behind each table.

    Args:
        split: what to read.
        columns: names to keep, in the files' order; none for all.
        place: empty, or one that was yielded before.
        check: told the names of the columns that will come, before any row does.

    Raises:
        ColumnError: a column is not there.
        SourceError: the network, or a damaged file.
    """
    if split.format == "parquet":
        yield from _read_parquet(split, columns, place, check)
    else:
        yield from _read_stream(split, columns, place, check)


def _read_parquet(
    split: Split, columns: Sequence[str], place: Place, check: Callable[[Sequence[str]], None]
) -> Iterator[tuple[pa.Table, Place]]:
    first_file, first_group = place.get("file", 0), place.get("group", 0)
    for number in range(first_file, len(split.files)):
        url = split.files[number]
        (file,) = find_remote(url, token=split.token)
        try:
            tail = read_tail(file.size, file.read, keep=ENGINE_TAIL_BYTES)
            metadata = parse_tail(tail)
        except ValueError as error:
            raise SourceError(f"{url} is not a readable parquet file: {error}.") from error
        names = metadata.schema.to_arrow_schema().names
        _check_columns(columns, names, url)
        check([name for name in names if not columns or name in columns])
        served = PoolFileSystem([ServedFile(file.url, file.size, tail, file.read)])
        with served.open(served_path(0)) as handle, network_errors(url):
            parquet = pq.ParquetFile(handle, metadata=metadata, pre_buffer=True)
            start = first_group if number == first_file else 0
            for group in range(start, metadata.num_row_groups):
                try:
                    table = parquet.read_row_group(group, columns=list(columns) or None)
                except (pa.ArrowException, OSError) as error:
                    raise served.fault or SourceError(f"{url} can't be read: {error}.") from error
                last = group + 1 == metadata.num_row_groups
                behind = {"file": number + last, "group": 0 if last else group + 1}
                yield table, behind


def _read_stream(
    split: Split, columns: Sequence[str], place: Place, check: Callable[[Sequence[str]], None]
) -> Iterator[tuple[pa.Table, Place]]:
    with network_errors(split.files[0]):
        stream = split.builder.as_streaming_dataset(split=split.name)
        names = list(stream.features or next(iter(stream)))
        _check_columns(columns, names, split.files[0])
        check([name for name in names if not columns or name in columns])
        if columns:
            stream = stream.select_columns([name for name in names if name in columns])
        stream = stream.with_format("arrow")
        if place:
            stream.load_state_dict(place)
        for table in stream.iter(batch_size=_BATCH):
            yield table, json.loads(json.dumps(stream.state_dict()))


def _check_columns(wanted: Sequence[str], there: Sequence[str], url: str) -> None:
    for name in wanted:
        if name not in there:
            raise ColumnError(f"{url} has no column `{name}`.", f"It has {', '.join(there)}.")


class retelling:  # noqa: N801
    """Pass on what is logged about faults that are tried again after, waits included."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        names = ("huggingface_hub.utils._http", "coyo_tools.remote")
        self._loggers = [logging.getLogger(name) for name in names]
        self._handler = _Told(tell)

    def __enter__(self) -> None:
        for logger in self._loggers:
            logger.addHandler(self._handler)
            logger.propagate = False

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            logger.removeHandler(self._handler)
            logger.propagate = True


class _Told(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())
