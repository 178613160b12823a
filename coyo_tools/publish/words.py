"""What a card says in words: the summary, what is known to be missing, whom to cite."""

from coyo_tools.columns import TEXT, URL
from coyo_tools.pages import percent
from coyo_tools.publish.chain import Step
from coyo_tools.publish.facts import Card

HUB = "https://huggingface.co"
CITATION = """@misc{kakaobrain2022coyo-700m,
  title        = {COYO-700M: Image-Text Pair Dataset},
  author       = {Byeon, Minwoo and Park, Beomhee and Kim, Haecheon and Lee, Sungjun and Baek, Woonhyuk and Kim, Saehoon},
  year         = {2022},
  howpublished = {\\url{https://github.com/kakaobrain/coyo-dataset}},
}"""  # noqa: E501
# What the parser calls a recipe that has no name of its own.
_UNNAMED = frozenset({"where", "top", "match", "predicate", "query", "everything"})
_HOLDS = {URL: "urls", TEXT: "alternative texts"}
# From COYO-700M's dataset card: what its makers enforced, and what that leaves in.
_COYO_GAPS = (
    "English only: COYO-700M kept the texts that a language detector took for English.",
    "Both NSFW scores are at most .5 by construction; what the two models miss is still in.",
    "No picture has a side below 200 pixels, an aspect ratio above 3 or less than 5 KB. Texts have "
    "at least 3 words and 6 to 1000 characters, and none stands on more than 10 rows.",
    "COYO-700M applied no CLIP cut: where this subset has none either, captions may say little of "
    "their pictures.",
    "12.2 % of COYO-700M's rows share their url with another row.",
    "Links die: about 85 % of the pictures answered in August 2022, and about 1 % a month died "
    "since. Pictures that answer may be others than those that were scored; image_phash tells.",
    "Alternative texts were written for many purposes, search engines among them; they carry the "
    "biases of the web, and people are pictured and named without having been asked.",
)


def summary(card: Card) -> str:
    """Say in two or three sentences what the subset is; plain text, not yet escaped."""
    first = card.road.steps[0]
    holds = [words for name, words in _HOLDS.items() if name in card.schema.names]
    share = percent(card.rows / card.rows_at_start)
    said = [
        f"{card.rows:,} image-text pairs: {' and '.join(holds)} with what was measured of the "
        "pictures, which are not part of it.",
        f"They are {share} of the {card.rows_at_start:,} rows of "
        f"{'COYO-700M metadata' if card.coyo else 'metadata'} in {first.source}, left by "
        f"{_in_words([did(step) for step in card.road.steps])}.",
    ]
    return " ".join(said)


def did(step: Step) -> str:
    """Say what a step did, in a few words."""
    asked = step.manifest.parameters
    match step.stage:
        case "filter":
            return _filter(step)
        case "dedupe":
            near = f" within {asked['radius']} bits" if asked.get("radius") else ""
            return f"deduplication by {', '.join(asked.get('by', ()))}{near}"
        case "decontaminate":
            return "removing what is near an evaluation picture"
        case "balance":
            return f"balancing to {asked.get('max_per_entry'):,} rows an entry"
    return step.stage


def _filter(step: Step) -> str:
    """Name the recipes; rules that were given with options have no name but the option's."""
    recipe = str(step.manifest.parameters.get("recipe"))
    named = [name for name in recipe.split(" + ") if name.strip("-") not in _UNNAMED]
    rules = f"{len(step.bites)} rule{'s' if len(step.bites) != 1 else ''}"
    return f"the filter {', '.join(named)} of {rules}" if named else f"a filter of {rules}"


def known_gaps(card: Card) -> list[str]:
    """List what is known to be missing or bent, in plain text."""
    gaps = [
        f"{column.name} is NULL on {column.nulls:,} rows ({percent(column.nulls / card.rows)})."
        for column in card.columns
        if column.nulls
    ]
    gaps += [f"{column.name}: {column.remark}." for column in card.columns if column.remark]
    if card.coyo:
        if card.absent:
            gaps.append(f"It lacks these columns of COYO-700M: {', '.join(card.absent)}.")
        gaps += _COYO_GAPS
    unsaid = [
        bite["rule"] for step in card.road.steps for bite in step.bites if bite.get("null", 0)
    ]
    if unsaid:
        gaps.append(
            f"Rows without a value were removed by rules that could not judge them: "
            f"{'; '.join(unsaid)}."
        )
    if card.road.ends:
        gaps.append(f"Of what was done before, the manifest is not at hand: {card.road.ends}.")
    if card.fates is not None and card.fates.arrived < card.rows:
        lost = card.rows - card.fates.arrived
        gaps.append(f"{lost:,} pictures ({percent(lost / card.rows)}) did not arrive when fetched.")
    if card.fates is None:
        gaps.append("Whether the links still work was not looked at for this card.")
    elif card.fates.survivors is None:
        gaps.append("Whether the rows whose pictures arrived differ from all was not looked at.")
    return gaps


def size_category(rows: int) -> str:
    """Return a number of rows as the hub sorts them.

    >>> size_category(999), size_category(1000), size_category(746_972_269)
    ('n<1K', '1K<n<10K', '100M<n<1B')
    """
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    above = sum(rows >= 10 ** (3 + power) for power in range(len(names)))
    if above == 0:
        return "n<1K"
    return f"{names[above - 1]}<n<{names[above]}" if above < len(names) else "n>1T"


def _in_words(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
