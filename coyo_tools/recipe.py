"""Recipes: a SELECT over ``pool``, from a shipped file, a file, a query or a bare predicate.

sqlglot parses them: to refuse what is not one SELECT over the pool, to name a mistyped column
before a long scan, and to split the WHERE into rules. DuckDB runs the text as it stands.
"""

import difflib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import sqlglot
from sqlglot import TokenType, exp

from coyo_tools.bundled import bundled
from coyo_tools.columns import ID
from coyo_tools.errors import ColumnError, RecipeError

# sqlglot warns on stderr of what it only half understands; such recipes are refused below.
logging.getLogger("sqlglot").setLevel(logging.ERROR)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)
_STATEMENT = re.compile(
    r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*"
    r"(?:(?:select|with|from)\b|(?:alter|attach|call|copy|create|delete|describe|drop|explain|insert"
    r"|install|load|pivot|pragma|set|summarize|update)\s+['\w])",
    re.IGNORECASE | re.DOTALL,
)
_VOLATILE = frozenset(
    {"rand", "random", "setseed", "nextval", "uuid", "gen_random_uuid", "uuidv4", "uuidv7"}
    | {"now", "today", "current_date", "current_time", "current_timestamp"}
    | {"get_current_time", "get_current_timestamp", "transaction_timestamp", "txid_current"}
    | {"localtime", "localtimestamp", "current_localtime", "current_localtimestamp"}
)
# With one of these the WHERE no longer decides alone which rows come out.
_BEYOND_WHERE = ("group", "having", "distinct", "limit", "offset", "qualify")


@dataclass(frozen=True)
class Rule:
    """One AND-term of a recipe's WHERE, with the comment written beside it."""

    sql: str
    reason: str = ""


@dataclass(frozen=True)
class Recipe:
    """One SELECT over ``pool`` and the rules its WHERE is made of.

    There are no rules when it selects from something else than ``pool`` itself, such as a join or
    a subquery. ``where_decides`` says that a row of the pool comes out exactly when its WHERE is
    true: no LIMIT, DISTINCT, QUALIFY, GROUP BY, join, unnesting or id of its own making.
    """

    name: str
    sql: str
    rules: tuple[Rule, ...]
    where_decides: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with the toolkit: its name, one line about it, its file."""

    name: str
    summary: str
    path: Path


def shipped_recipes() -> list[ShippedRecipe]:
    """List the recipes of sql/recipes by name; the summary is the first comment line."""
    recipes = []
    for path in sorted((bundled("sql") / "recipes").glob("*.sql")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        recipes.append(ShippedRecipe(path.stem, first.lstrip("- ").strip(), path))
    return recipes


def find_shipped(name: str) -> ShippedRecipe:
    """Return a shipped recipe by its name.

    Raises:
        RecipeError: there is none; the message names the nearest.
    """
    recipes = {recipe.name: recipe for recipe in shipped_recipes()}
    if name in recipes:
        return recipes[name]
    near = difflib.get_close_matches(name.lower(), recipes, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise RecipeError(
        f"There is no recipe called {name!r}.",
        f"{hint}Shipped are {', '.join(recipes)}. "
        'A predicate is written like "clip_similarity_vitb32 >= 0.3".',
    )


def load_recipe(text: str) -> Recipe:
    """Read a recipe: a shipped name, a .sql file, a ``SELECT … FROM pool …``, or a predicate.

    Raises:
        RecipeError: unknown name, missing file, no SQL, or not one SELECT over ``pool``.
    """
    text = text.strip()
    if not text:
        raise RecipeError("The recipe is empty.", "`coyo recipes` lists the shipped ones.")
    if text.lower().endswith(".sql"):
        path = Path(text)
        try:
            sql = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"The recipe file {text} can't be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"The recipe file {text} is not UTF-8 text.") from error
        return parse_recipe(sql, name=path.stem)
    if _STATEMENT.match(text):
        return parse_recipe(text, name="query")
    if _NAME.fullmatch(text):
        shipped = find_shipped(text)
        return parse_recipe(shipped.path.read_text(encoding="utf-8"), name=shipped.name)
    return parse_recipe(f"SELECT * FROM pool WHERE\n{text}", name="predicate")  # noqa: S608


def parse_recipe(sql: str, *, name: str) -> Recipe:
    """Check that ``sql`` is one SELECT over ``pool`` and split its WHERE into rules.

    Raises:
        RecipeError: it does not parse, or is something else.
    """
    try:
        parsed = [tree for tree in sqlglot.parse(sql, read="duckdb") if tree is not None]
        tokens = sqlglot.tokenize(sql, read="duckdb")
    except sqlglot.errors.SqlglotError as error:
        raise RecipeError(f"The SQL does not parse: {parse_message(error)}") from error
    # A comment behind the last semicolon parses as a statement of its own.
    statements = [tree for tree in parsed if not isinstance(tree, exp.Semicolon)]
    trailing = [tree for tree in parsed if isinstance(tree, exp.Semicolon)]
    if len(statements) != 1:
        raise RecipeError(f"A recipe is one SELECT; this one has {len(statements)} statements.")
    tree = statements[0]
    if not isinstance(tree, exp.Query):
        word = tree.name if isinstance(tree, exp.Command) else tree.key
        raise RecipeError(f"A recipe is a SELECT over pool, not {word.upper()}.")
    _refuse_other_tables(tree)
    refuse_volatile(tree)
    where = tree.args.get("where") if _selects_from_pool(tree) else None
    rules = [_rule(term) for term in _and_terms(where.this)] if where is not None else []
    if rules and trailing:
        reason = " ".join(comment.strip() for node in trailing for comment in node.comments or [])
        rules[-1] = Rule(rules[-1].sql, f"{rules[-1].reason} {reason}".strip())
    ends = [token.start for token in tokens if token.token_type == TokenType.SEMICOLON]
    text = sql[: ends[0]] if ends else sql
    where_decides = _selects_from_pool(tree) and not (
        any(tree.args.get(key) for key in _BEYOND_WHERE)
        or any(item.find(exp.Explode, exp.Unnest) or _makes_id(item) for item in tree.expressions)
    )
    columns = tuple(dict.fromkeys(_column_name(column) for column in tree.find_all(exp.Column)))
    return Recipe(name, text.strip(), tuple(rules), where_decides, columns)


def check_columns(recipe: Recipe, available: tuple[str, ...]) -> None:
    """Raise ``ColumnError`` for the first column of a recipe that the pool does not have.

    Names that the recipe itself defines (aliases, lambda parameters) are left to DuckDB.
    """
    tree = sqlglot.parse_one(recipe.sql, read="duckdb")
    defined = {alias.alias.lower() for alias in tree.find_all(exp.Alias)}
    defined |= {
        name.name.lower() for node in tree.find_all(exp.Lambda) for name in node.expressions
    }
    defined |= {node.expression.name.lower() for node in tree.find_all(exp.Comprehension)}
    if any(tree.find_all(exp.TableAlias)):
        return
    known = {name.lower() for name in available} | defined | {"pool"}
    for name in recipe.columns:
        if name.lower() not in known and name != "*":
            raise missing_column(name, available)


def missing_column(
    name: str, available: tuple[str, ...], *, where: str = "The pool"
) -> ColumnError:
    """Make the error for a column that is not there, with the nearest name there is."""
    by_lower = {known.lower(): known for known in available}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"Did you mean `{by_lower[near[0]]}`? " if near else ""
    return ColumnError(f"{where} has no column `{name}`.", f"{hint}It has {', '.join(available)}.")


def _refuse_other_tables(tree: exp.Expr) -> None:
    own = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    reads_pool = False
    for table in tree.find_all(exp.Table):
        plain = isinstance(table.this, exp.Identifier) and not table.db
        if plain and table.name.lower() == "pool":
            reads_pool = True
        elif not (plain and table.name.lower() in own):
            raise RecipeError(
                f"A recipe reads only the table pool; this one reads {table.sql('duckdb')}."
            )
    if not reads_pool:
        raise RecipeError(
            "The recipe does not read the table pool.",
            "Write SELECT * FROM pool WHERE …, or only the predicate.",
        )


def _selects_from_pool(tree: exp.Expr) -> bool:
    """Say whether a query is a plain SELECT from ``pool``, so that its WHERE judges pool rows."""
    source = tree.args.get("from_")
    table = source.this if isinstance(tree, exp.Select) and source is not None else None
    return (
        isinstance(table, exp.Table)
        and table.name.lower() == "pool"
        and all(cte.alias.lower() != "pool" for cte in tree.find_all(exp.CTE))
        and not any(tree.args.get(key) for key in ("joins", "laterals"))
        and not table.args.get("pivots")
    )


def _makes_id(item: exp.Expr) -> bool:
    return any(alias.alias.lower() == ID for alias in item.find_all(exp.Alias))


def _column_name(column: exp.Column) -> str:
    """Return the pool's column that a name such as ``pool.scores.face`` begins with."""
    names = [part.name for part in column.parts]
    return names[1] if len(names) > 1 and names[0].lower() == "pool" else names[0]


def _and_terms(condition: exp.Expr) -> list[exp.Expr]:
    """Split a condition at its top-level ANDs; ORs and everything else stay whole."""
    inner = condition.unnest()
    if isinstance(inner, exp.And):
        return [*_and_terms(inner.left), *_and_terms(inner.right)]
    return [inner]


def _rule(term: exp.Expr) -> Rule:
    reason = " ".join(comment.strip() for node in term.walk() for comment in node.comments or [])
    return Rule(term.sql(dialect="duckdb", comments=False, normalize_functions=False), reason)


def parse_message(error: sqlglot.errors.SqlglotError) -> str:
    """Return what sqlglot has against a text in one line, and where."""
    if not (isinstance(error, sqlglot.errors.ParseError) and error.errors):
        return str(error).splitlines()[0]
    first = error.errors[0]
    description = str(first["description"]).rstrip(".")
    if description.startswith("Required keyword"):
        description = "something is missing"
    near = " ".join(f"{first.get('start_context', '')}{first.get('highlight', '')}".split())
    return f"{description}, after: {near[-60:]}"


def refuse_volatile(tree: exp.Expr) -> None:
    """Refuse what gives other rows on every run, so that a recipe can be repeated."""
    if tree.find(exp.TableSample):
        raise RecipeError(
            "SAMPLE gives other rows on every run.",
            "For a reproducible sample compare a hash: hash(id) % 100 < 10.",
        )
    for node in tree.find_all(exp.Func):
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
        if name.lower() in _VOLATILE:
            raise RecipeError(
                f"{node.sql('duckdb')} gives other rows on every run.",
                "For a reproducible sample compare a hash: hash(id) % 100 < 10.",
            )
