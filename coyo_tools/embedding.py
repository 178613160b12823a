"""Embed: the stage that turns shards, or a folder of pictures, into vectors that stay on disk.

Rows are cut into parts, each of which is written whole before the next is begun, with the reasons
for what it lost. A stopped command goes on with the part it was at; nothing but the index of the
data and one part is in memory. Left out: how embeddings lie on disk, which is ``vectors``', and the
model, which is ``coyo_align``'s.
"""

from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow.compute as pc
import pyarrow.parquet as pq

from coyo_tools.columns import ID
from coyo_tools.embed_parts import PartPlan, PictureFolder, Shards
from coyo_tools.errors import EmptyResultError, SourceError, TrainingError
from coyo_tools.handover import align_errors, ids_path, inputs_of, open_shards
from coyo_tools.manifest import (
    MANIFEST,
    IdDigest,
    Input,
    Manifest,
    Stopwatch,
    digest_of,
    put_back,
    refuse_existing,
    resumable_artifact,
    saying_when_stopped,
    write_manifest,
)
from coyo_tools.progress import Progress, no_progress
from coyo_tools.source import Source, open_source
from coyo_tools.vectors import SIDES, VECTORS_KIND, About, VectorWriter

if TYPE_CHECKING:
    from coyo_align.config import Output, Precision

MODEL_ROLE = "model"
PART_ROWS = 8_192
"""What a stop costs at most: minutes on a CPU, seconds on a GPU; ten million are 1,221 parts."""


@dataclass(frozen=True)
class EmbedSettings:
    """What is embedded and how; ``device``, ``threads`` and ``workers`` are pace alone.

    Attributes:
        only: ``image`` or ``text``; None for both, of a folder the pictures.
        raw: vectors as the model gives them, instead of scaled to length 1.
        hidden_states: the towers' own outputs, before the text's projection.
        precision: ``fp32`` or ``bf16``, of the towers.
        batch_size: pictures or texts at a time.
        part_rows: rows of the data in a part.
        device: cpu or cuda, None for what is there.
        threads: of torch.
        workers: decoding processes.
    """

    only: str | None = None
    raw: bool = False
    hidden_states: bool = False
    precision: str = "fp32"
    batch_size: int = 256
    part_rows: int = PART_ROWS
    device: str | None = None
    threads: int | None = None
    workers: int | None = None

    @property
    def output(self) -> "Output":
        """What ``coyo_align`` calls the kind of vectors."""
        return "hidden" if self.hidden_states else "raw" if self.raw else "embeddings"

    def deciding(self) -> dict[str, Any]:
        """Return what decides the numbers and their order."""
        names = ("only", "raw", "hidden_states", "precision", "part_rows")
        return {name: value for name, value in asdict(self).items() if name in names}

    def check(self) -> None:
        """Raise ``TrainingError`` if settings are none, or exclude each other."""
        if self.only not in (None, *SIDES):
            raise TrainingError(f"`--only` is {' or '.join(SIDES)}, not {self.only!r}.")
        if self.raw and self.hidden_states:
            raise TrainingError(
                "`--raw` and `--hidden-states` are two different outputs; give one of them."
            )
        if self.precision not in ("fp32", "bf16"):
            raise TrainingError(f"`--precision` is fp32 or bf16, not {self.precision!r}.")
        if min(self.batch_size, self.part_rows) < 1:
            raise TrainingError("`--batch-size` and `--part-rows` are 1 or more.")


@dataclass(frozen=True)
class EmbedResult:
    """What was embedded.

    Attributes:
        rows: with a vector of each side.
        widths: numbers in a vector, by side.
        skipped: samples left out, by reason, those of earlier processes included.
        missing_ids: ids of the subset that are not in the shards.
        resumed_rows: rows of ``rows`` that an earlier, stopped command had finished.
        seconds: of this command.
        rows_per_second: of this command, from the first batch to the last part.
        fingerprint: of the model.
    """

    rows: int
    widths: dict[str, int]
    skipped: dict[str, int]
    missing_ids: int
    resumed_rows: int
    seconds: float
    rows_per_second: float
    fingerprint: str


def embed_data(
    model: str | Path,
    data: Path,
    output: Path,
    settings: EmbedSettings | None = None,
    *,
    subset: str | Path | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_progress: Progress = no_progress,
) -> EmbedResult:
    """Embed the pictures and captions of shards, or the pictures of a folder.

    Args:
        model: a run, any ALIGN directory, or a name on the hub.
        data: shards, or a folder with pictures in it or below it.
        output: directory to make, see ``vectors``.
        settings: what is embedded and how.
        subset: whose ids are used, None for all.
        overwrite: replace an earlier result.
        restart: discard what a stopped command of the same output has done.
        on_progress: called with the rows done and all rows.

    Raises:
        CoyoError: model, data, subset or settings are at fault, nothing is left, the disk is full,
            or the training extra is missing.
    """
    watch = Stopwatch()
    settings = settings or EmbedSettings()
    settings.check()
    put_back(output)
    refuse_existing(output, overwrite=overwrite)
    chosen = open_source(subset) if subset is not None else None
    loose = _is_folder(data)
    if loose:
        settings = _for_folder(settings, data, chosen)
    with align_errors("coyo embed"):
        from coyo_align.checkpoint import locate
        from coyo_align.embed import Embedder
        from coyo_align.using.fingerprint import fingerprint_of
        from coyo_align.using.items import picture_files

        files = picture_files(data) if loose else []
        shards = _folder_input(data, files) if loose else open_shards(data)
        directory = locate(model)
        if not directory.is_dir():
            raise SourceError(
                f"{model} does not exist or is not a directory.",
                "Give a run, an ALIGN directory, or a name on the hub: owner/name[@revision].",
            )
        fingerprint = fingerprint_of(directory)
        embedder = Embedder(
            directory,
            settings.batch_size,
            settings.threads,
            settings.device,
            output=settings.output,
            precision=cast("Precision", settings.precision),
            workers=settings.workers,
        )
    sides = (settings.only,) if settings.only else SIDES
    about = About(
        model=str(model),
        fingerprint=fingerprint,
        widths={side: width for side, width in embedder.widths.items() if side in sides},
        normalised=settings.output == "embeddings",
        hidden_states=settings.hidden_states,
        pictures=str(data.absolute()),
    )
    begun_for = {
        "model": fingerprint,
        "data": shards.fingerprint,
        "subset": None if chosen is None else chosen.fingerprint,
        **settings.deciding(),
    }
    with (
        saying_when_stopped(f"Stopped. The same command goes on with the next part of {output}."),
        resumable_artifact(output, begun_for, overwrite=overwrite, restart=restart) as partial,
        align_errors("coyo embed"),
    ):
        writer = VectorWriter(partial, sides)
        resumed = writer.rows
        workers = settings.workers or settings.threads
        plan = PartPlan(sides, settings.part_rows, first=writer.parts, workers=workers)
        if loose:
            read: PictureFolder | Shards = PictureFolder(data, files)
        else:
            read = Shards(data, ids_path(chosen), embedder, plan)
        watch.finished("open")
        with closing(read.parts(embedder, plan)) as parts:
            for part in parts:
                writer.write_part(part.table, part.vectors, {"lost": part.lost})
                on_progress(part.done, read.rows)
        watch.finished("embed")
        lost = Counter(read.skipped)
        for note in writer.notes():
            lost.update(note["lost"])
        if not writer.rows:
            for path in partial.glob("part-*"):  # of no rows, and nothing to go on from
                path.unlink()
            told = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
            raise EmptyResultError(f"Nothing of {data} can be embedded: {told}.")
        every = lost + Counter({"not in the shards": read.missing_ids})
        write_manifest(
            partial,
            Manifest(
                kind=VECTORS_KIND,
                parameters={"stage": "embed", **asdict(settings)},
                inputs=[Input(MODEL_ROLE, str(model), fingerprint), *inputs_of(shards, chosen)],
                rows_in=writer.rows + every.total(),
                rows_out=writer.rows,
                lost={reason: count for reason, count in every.items() if count},
                id_digest=_id_digest(partial, writer.parts),
                seconds=watch.seconds(),
                details={**about.details(), "steps": watch.steps},
            ),
        )
    here = writer.rows - resumed
    return EmbedResult(
        rows=writer.rows,
        widths=about.widths,
        skipped=dict(lost),
        missing_ids=read.missing_ids,
        resumed_rows=resumed,
        seconds=watch.seconds(),
        rows_per_second=round(here / max(watch.steps["embed"], 1e-3), 1),
        fingerprint=fingerprint,
    )


def _is_folder(data: Path) -> bool:
    """Whether this is a folder of loose pictures, as far as one can tell without looking at all."""
    return data.is_dir() and not (data / MANIFEST).is_file() and not any(data.glob("*.tar"))


def _for_folder(settings: EmbedSettings, data: Path, subset: Source | None) -> EmbedSettings:
    if settings.only == "text":
        raise SourceError(
            f"{data} holds no .tar files, and a folder of pictures has no captions.",
            "Give shards, from `coyo download` or `coyo index`.",
        )
    if subset is not None:
        raise SourceError(
            f"{data} holds no .tar files, and loose pictures have no ids to choose by.",
            "Give shards, or leave --subset out.",
        )
    return replace(settings, only="image")


def _folder_input(data: Path, files: list[Path]) -> Input:
    stats = (f"{path.relative_to(data)} {path.stat().st_size}" for path in files)
    return Input("pictures", str(data), digest_of(stats))


def _id_digest(directory: Path, parts: int) -> str:
    digest = IdDigest()
    for number in range(parts):
        ids = pq.read_table(directory / f"part-{number:05d}.parquet", columns=[ID]).column(0)
        digest.update(pc.drop_null(ids).to_numpy())
    return digest.hexdigest()
