"""Recipes: a SELECT over ``pool``, from a shipped file, a file, a query or a bare predicate.

sqlglot parses them: to refuse what is not one SELECT over the pool, to name a mistyped column
before a long scan, and to split the WHERE into rules. The rules are cut out of the recipe's own
text, so that what a report shows and DuckDB judges is what somebody wrote.
"""

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import sqlglot
from sqlglot import TokenType, exp

from coyo_tools.bundled import bundled
from coyo_tools.clauses import lay_out
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
_PLAIN_CLAUSES = frozenset({"with_", "expressions", "from_", "where"})
# With one of these the WHERE no longer decides alone which rows come out.
_BEYOND_WHERE = ("group", "having", "distinct", "limit", "offset", "qualify")


@dataclass(frozen=True)
class Rule:
    """One AND-term of a recipe's WHERE, with the comment beside it and the recipe it comes from."""

    sql: str
    reason: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class Recipe:
    """One SELECT over ``pool`` and the rules its WHERE is made of.

    There are no rules when it selects from something else than ``pool`` itself, such as a join or
    a subquery. ``where_decides`` says that a row of the pool comes out exactly when its WHERE is
    true: no LIMIT, DISTINCT, QUALIFY, GROUP BY, join, unnesting or id of its own making.
    ``whole_rows`` says that, besides, it comes out as it is and where it stood: ``SELECT *``
    without ORDER BY. ``row_by_row`` says that the engine looks at the pool's rows one by one, and
    so in their order: no join, subquery, grouping or window.
    """

    name: str
    sql: str
    rules: tuple[Rule, ...]
    where_decides: bool
    whole_rows: bool
    row_by_row: bool
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
        return parse_recipe(read_sql_file(text), name=Path(text).stem)
    if _STATEMENT.match(text):
        return parse_recipe(text, name="query")
    if _NAME.fullmatch(text):
        shipped = find_shipped(text)
        return parse_recipe(shipped.path.read_text(encoding="utf-8"), name=shipped.name)
    return parse_recipe(f"SELECT * FROM pool WHERE\n{text}", name="predicate")  # noqa: S608


def read_sql_file(path: str, *, what: str = "recipe") -> str:
    """Return the text of a .sql file that somebody names.

    Raises:
        RecipeError: it can't be read, or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"The {what} file {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"The {what} file {path} is not UTF-8 text.") from error


@dataclass(frozen=True)
class Select:
    """One SELECT over ``pool``: its tree, its text up to the semicolon, the comments behind it."""

    tree: exp.Expr
    sql: str
    trailing: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names."""
        found = (_column_name(column) for column in self.tree.find_all(exp.Column))
        return tuple(dict.fromkeys(found))


def parse_select(sql: str, *, what: str = "recipe") -> Select:
    """Check that ``sql`` is one SELECT that reads ``pool`` and no other table.

    Args:
        sql: DuckDB's SQL.
        what: what to call it when something is wrong.

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
        raise RecipeError(f"A {what} is one SELECT; this one has {len(statements)} statements.")
    tree = statements[0]
    if not isinstance(tree, exp.Query):
        word = tree.name if isinstance(tree, exp.Command) else tree.key
        said = "an expression" if isinstance(tree, exp.Condition) else word.upper()
        raise RecipeError(f"A {what} is a SELECT over pool, not {said}.")
    _refuse_other_tables(tree, what)
    ends = [token.start for token in tokens if token.token_type == TokenType.SEMICOLON]
    text = (sql[: ends[0]] if ends else sql).strip()
    comments = (comment.strip() for node in trailing for comment in node.comments or [])
    return Select(tree, text, " ".join(comments))


def parse_recipe(sql: str, *, name: str) -> Recipe:
    """Check that ``sql`` is one SELECT over ``pool`` and split its WHERE into rules.

    Raises:
        RecipeError: it does not parse, or is something else.
    """
    select = parse_select(sql)
    tree, text = select.tree, select.sql
    refuse_volatile(tree)
    rules = _rules(tree, text, name) if _selects_from_pool(tree) else []
    if rules and select.trailing:
        rules[-1] = replace(rules[-1], reason=f"{rules[-1].reason} {select.trailing}".strip())
    where_decides = _selects_from_pool(tree) and not (
        any(tree.args.get(key) for key in _BEYOND_WHERE)
        or any(item.find(exp.Explode, exp.Unnest) or _makes_id(item) for item in tree.expressions)
    )
    star = tree.expressions[0] if len(tree.expressions) == 1 else None
    whole_rows = (
        where_decides
        and isinstance(star, exp.Star)
        and not any(star.args.values())
        and not any(value for key, value in tree.args.items() if key not in _PLAIN_CLAUSES)
    )
    row_by_row = _selects_from_pool(tree) and not (
        any(tree.args.get(key) for key in ("group", "having", "distinct", "qualify", "order"))
        or any(query is not tree for query in tree.find_all(exp.Query))
        or any(item.find(exp.Explode, exp.Unnest, exp.AggFunc) for item in tree.expressions)
        or tree.find(exp.Window)
    )
    return Recipe(name, text, tuple(rules), where_decides, whole_rows, row_by_row, select.columns)


def combine_recipes(recipes: Sequence[Recipe]) -> Recipe:
    """Return the recipe that keeps what all of some recipes keep: their rules, AND-ed.

    One recipe alone is returned as it is. Of several, each must be a plain
    ``SELECT * FROM pool WHERE …``, because only there the WHERE says all.

    Raises:
        RecipeError: there is none, or one of several is more than rules over the pool.
    """
    if not recipes:
        raise RecipeError("There is no recipe.", "`coyo recipes` lists the shipped ones.")
    if len(recipes) == 1:
        return recipes[0]
    for recipe in recipes:
        plain = recipe.whole_rows and not lay_out(recipe.sql).with_text
        if not plain or sqlglot.parse_one(recipe.sql, read="duckdb").find(exp.TableAlias):
            raise RecipeError(
                f"{recipe.name} can't be combined: it is more than rules over the pool's rows.",
                "Run it as a filter of its own, and the others on what it gives.",
            )
    rules = [rule for recipe in recipes for rule in recipe.rules]
    lines = []
    for number, rule in enumerate(rules):
        reason = f"  -- {rule.reason}" if rule.reason else ""
        term = f"({rule.sql})" if " OR " in rule.sql.upper() else rule.sql
        lines.append(f"{'WHERE' if number == 0 else '  AND'} {term}{reason}")
    sql = "\n".join(["SELECT *", "FROM pool", *lines])
    columns = tuple(dict.fromkeys(name for recipe in recipes for name in recipe.columns))
    name = " + ".join(recipe.name for recipe in recipes)
    row_by_row = all(recipe.row_by_row for recipe in recipes)
    return Recipe(name, sql, tuple(rules), True, True, row_by_row, columns)


def check_columns(
    recipe: Recipe | Select,
    available: tuple[str, ...],
    absent: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise ``ColumnError`` for the first column of a query that the pool does not have.

    Names that the query itself defines (aliases, lambda parameters) are left to DuckDB. ``absent``
    says of some columns why the pool has none.
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
            if name.lower() in absent:
                raise ColumnError(f"The pool has no column `{name}`.", absent[name.lower()])
            raise missing_column(name, available)


def order_terms(
    text: str, available: tuple[str, ...], *, option: str, example: str
) -> list[exp.Ordered]:
    """Parse an ORDER BY written for an option, such as ``"clip_similarity_vitl14 DESC"``.

    Raises:
        RecipeError: it is something else, or orders by something else than the rows' columns.
        ColumnError: a column is not there.
    """
    try:
        trees = sqlglot.parse(f"SELECT 1 FROM pool ORDER BY {text}", read="duckdb")  # noqa: S608
    except sqlglot.errors.SqlglotError as error:
        message = f"{option} {text!r} is not a list of ORDER BY terms: {parse_message(error)}."
        raise RecipeError(message, example) from error
    allowed = {"kind", "expressions", "from_", "order"}
    tree = trees[0]
    if len(trees) != 1 or tree is None or any(tree.args[key] for key in tree.args.keys() - allowed):
        raise RecipeError(f"{option} {text!r} is more than ORDER BY terms.", example)
    refuse_volatile(tree)
    terms: list[exp.Ordered] = tree.args["order"].expressions
    for term in terms:
        if term.find(exp.Query) or not term.find(exp.Column):
            said = f"{option} {text!r}: {term.sql('duckdb')} does not order rows by their columns."
            raise RecipeError(said, example)
        for column in term.find_all(exp.Column):
            if column.name not in available:
                raise missing_column(column.name, available)
    return terms


def missing_column(
    name: str, available: tuple[str, ...], *, where: str = "The pool"
) -> ColumnError:
    """Make the error for a column that is not there, with the nearest name there is."""
    by_lower = {known.lower(): known for known in available}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"Did you mean `{by_lower[near[0]]}`? " if near else ""
    return ColumnError(f"{where} has no column `{name}`.", f"{hint}It has {', '.join(available)}.")


def _refuse_other_tables(tree: exp.Expr, what: str) -> None:
    own = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    reads_pool = False
    for table in tree.find_all(exp.Table):
        plain = isinstance(table.this, exp.Identifier) and not table.db
        if plain and table.name.lower() == "pool":
            reads_pool = True
        elif not (plain and table.name.lower() in own):
            raise RecipeError(
                f"A {what} reads only the table pool; this one reads {table.sql('duckdb')}."
            )
    if not reads_pool:
        shorter = ", or only the predicate" if what == "recipe" else ""
        hint = f"Write SELECT * FROM pool WHERE …{shorter}."  # noqa: S608
        raise RecipeError(f"The {what} does not read the table pool.", hint)


def _selects_from_pool(tree: exp.Expr) -> bool:
    """Say whether a query is a plain SELECT from ``pool``, so that its WHERE judges pool rows."""
    source = tree.args.get("from_")
    table = source.this if isinstance(tree, exp.Select) and source is not None else None
    return (
        isinstance(table, exp.Table)
        and table.name.lower() == "pool"
        and all(cte.alias.lower() != "pool" for cte in tree.find_all(exp.CTE))
        and not any(tree.args.get(key) for key in ("joins", "laterals"))
        # Written FROM first, a join hangs on the table.
        and not any(value for key, value in table.args.items() if key not in ("this", "alias"))
        and not (table.args.get("alias") and table.args["alias"].args.get("columns"))
    )


def _makes_id(item: exp.Expr) -> bool:
    return any(alias.alias.lower() == ID for alias in item.find_all(exp.Alias))


def _column_name(column: exp.Column) -> str:
    """Return the pool's column that a name such as ``pool.scores.face`` begins with."""
    names = [part.name for part in column.parts]
    return names[1] if len(names) > 1 and names[0].lower() == "pool" else names[0]


def _rules(tree: exp.Expr, text: str, name: str) -> list[Rule]:
    """Cut the rules out of a recipe's text; where text and tree disagree, the WHERE is one rule."""
    where = tree.args.get("where")
    if where is None:
        return []
    terms = _and_terms(where.this)
    layout = lay_out(text)
    written = [term for term, _, _ in layout.terms]
    if len(written) != len(terms) or any(
        sqlglot.parse_one(one, read="duckdb").unnest() != other
        for one, other in zip(written, terms, strict=True)
    ):
        whole = where.this.sql(dialect="duckdb", comments=False, normalize_functions=False)
        return [Rule(whole, _reason(where), name)]
    return [
        Rule(one, _reason(term) or beside, name)
        for one, term, beside in zip(written, terms, layout.comments, strict=True)
    ]


def _and_terms(condition: exp.Expr) -> list[exp.Expr]:
    """Split a condition at its top-level ANDs; ORs and everything else stay whole."""
    inner = condition.unnest()
    if isinstance(inner, exp.And):
        return [*_and_terms(inner.left), *_and_terms(inner.right)]
    return [inner]


def _reason(term: exp.Expr) -> str:
    return " ".join(comment.strip() for node in term.walk() for comment in node.comments or [])


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
            "For a sample that can be drawn again: --sample 0.1 --seed 0.",
        )
    for node in tree.find_all(exp.Func):
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
        if name.lower() in _VOLATILE:
            raise RecipeError(
                f"{node.sql('duckdb')} gives other rows on every run.",
                "For a sample that can be drawn again: --sample 0.1 --seed 0.",
            )
