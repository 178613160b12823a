"""Recipes: what is one, what its rules are, and what is refused before a scan."""

from pathlib import Path

import pytest

from coyo_tools.errors import ColumnError, CoyoError, RecipeError
from coyo_tools.recipe import check_columns, load_recipe, parse_recipe

COLUMNS = ("id", "url", "text", "width", "clip_similarity_vitb32", "num_faces", "scores", "tags")


def rules(text: str) -> list[str]:
    return [rule.sql for rule in load_recipe(text).rules]


def test_a_shipped_name_a_file_a_query_and_a_predicate_are_recipes(tmp_path: Path) -> None:
    (tmp_path / "mine.sql").write_text("SELECT * FROM pool WHERE num_faces = 0;\n")
    assert load_recipe("laion-400m").name == "laion-400m"
    for text in (
        str(tmp_path / "mine.sql"),
        "SELECT * FROM pool WHERE num_faces = 0",
        "num_faces = 0",
    ):
        assert rules(text) == ["num_faces = 0"]
    assert load_recipe(str(tmp_path / "mine.sql")).name == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "select * from pool where num_faces = 0",
        "  \n SELECT id FROM pool WHERE num_faces = 0 ORDER BY id  ",
        "FROM pool WHERE num_faces = 0",
        "FROM pool SELECT id, url WHERE num_faces = 0",
        "-- a head\nSELECT * FROM pool WHERE num_faces = 0",
        "/* a\nhead */ SELECT * FROM pool WHERE num_faces = 0",
        "SELECT * FROM POOL WHERE num_faces = 0;",
        "SELECT * FROM pool WHERE num_faces = 0;  -- the end",
        "SELECT * FROM pool WHERE num_faces = 0 -- é; ü\n;\n/* the end */\n",
        "WITH good AS (SELECT 1) SELECT * FROM pool WHERE num_faces = 0",
        "num_faces = 0",
        "num_faces = 0;",
        "num_faces = 0; -- the end",
        "num_faces = 0 -- why",
        "(num_faces = 0)",
        "((num_faces = 0))",
    ],
)
def test_one_rule_however_it_is_written(text: str) -> None:
    recipe = load_recipe(text)
    assert [rule.sql for rule in recipe.rules] == ["num_faces = 0"]
    assert recipe.where_decides
    assert ";" not in recipe.sql.replace("é;", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width > 1 AND num_faces = 0", ["width > 1", "num_faces = 0"]),
        ("width > 1 AND (num_faces = 0 AND id > 2)", ["width > 1", "num_faces = 0", "id > 2"]),
        ("((width > 1 AND id > 2) AND id < 9)", ["width > 1", "id > 2", "id < 9"]),
        ("width > 1 OR num_faces = 0", ["width > 1 OR num_faces = 0"]),
        (
            "(width > 1 OR id > 2 AND id < 9) AND num_faces = 0",
            ["width > 1 OR id > 2 AND id < 9", "num_faces = 0"],
        ),
        ("width BETWEEN 1 AND 5 AND id > 2", ["width BETWEEN 1 AND 5", "id > 2"]),
        ("NOT (width > 1 AND id > 2)", ["NOT (width > 1 AND id > 2)"]),
        ("text = 'a AND b; c' AND id > 2", ["text = 'a AND b; c'", "id > 2"]),
    ],
)
def test_rules_are_the_terms_between_top_level_ands(text: str, expected: list[str]) -> None:
    assert rules(text) == expected


def test_five_hundred_rules_are_split() -> None:
    assert len(rules(" AND ".join(f"id <> {number}" for number in range(500)))) == 500


def test_a_comment_beside_a_rule_is_its_reason() -> None:
    recipe = load_recipe(
        "SELECT * -- everything\nFROM pool\n"
        "WHERE width > 1 -- so that there is a picture\n"
        "  AND num_faces = 0; /* people mind */"
    )
    assert [rule.reason for rule in recipe.rules] == ["so that there is a picture", "people mind"]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM pool LIMIT 3",
        "SELECT * FROM pool WHERE id > 1 OFFSET 2",
        "SELECT DISTINCT ON (url) * FROM pool ORDER BY id",
        "SELECT id, count(*) AS n FROM pool GROUP BY id",
        "SELECT * FROM pool QUALIFY row_number() OVER (PARTITION BY url ORDER BY id) = 1",
        "SELECT * FROM pool JOIN pool AS other USING (id)",
        "SELECT * FROM pool, unnest(tags) WHERE id > 1",
        "SELECT *, unnest(tags) AS tag FROM pool",
        "SELECT * FROM (SELECT * FROM pool WHERE id > 3) WHERE width > 1",
        "WITH good AS (SELECT * FROM pool WHERE id > 3) SELECT * FROM good WHERE width > 1",
        "SELECT id FROM pool UNION SELECT id FROM pool",
        "SELECT id + 1 AS id FROM pool",
        "SELECT * REPLACE (id + 1 AS id) FROM pool",
    ],
)
def test_what_a_where_does_not_decide_alone_is_known(text: str) -> None:
    assert not load_recipe(text).where_decides


def test_only_a_where_on_the_pool_itself_is_split_into_rules() -> None:
    assert rules("WITH x AS (SELECT id FROM pool) SELECT * FROM x WHERE id > 1 AND id < 5") == []
    assert rules("SELECT * FROM pool AS p WHERE p.id > 1 AND p.id < 5") == ["p.id > 1", "p.id < 5"]
    assert rules("WITH pool AS (FROM pool) SELECT * FROM pool WHERE id > 1") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The recipe is empty"),
        ("  \n", "The recipe is empty"),
        ("SELECT 1; SELECT 2", "this one has 2 statements"),
        ("SELECT * FROM pool; DROP TABLE pool", "this one has 2 statements"),
        ("COPY pool TO 'x.parquet'", "not COPY"),
        ("ATTACH 'x.db'", "not ATTACH"),
        ("INSERT INTO pool VALUES (1)", "not INSERT"),
        ("CREATE TABLE x AS SELECT * FROM pool", "not CREATE"),
        ("DELETE FROM pool", "not DELETE"),
        ("UPDATE pool SET id = 1", "not UPDATE"),
        ("DROP TABLE pool", "not DROP"),
        ("INSTALL httpfs", "not INSTALL"),
        ("SET threads = 1", "not SET"),
        ("PRAGMA version", "not PRAGMA"),
        ("EXPLAIN SELECT * FROM pool", "not EXPLAIN"),
        ("SELECT * FROM other", "reads only the table pool; this one reads other"),
        ("SELECT * FROM pool JOIN other USING (id)", "this one reads other"),
        ("SELECT * FROM 'x.parquet'", "this one reads"),
        ("SELECT * FROM main.pool", "this one reads main.pool"),
        ("SELECT * FROM information_schema.tables", "this one reads information_schema"),
        ("SELECT * FROM read_parquet('x.parquet')", "READ_PARQUET"),
        ("SELECT * FROM read_csv('/etc/passwd'), pool", "READ_CSV"),
        ("SELECT * FROM glob('/*'), pool", "GLOB"),
        ("SELECT * FROM query('SELECT 1'), pool", "QUERY"),
        ("id IN (SELECT id FROM read_json('x'))", "READ_JSON"),
        ("EXISTS (SELECT 1 FROM other)", "this one reads other"),
        ("SELECT id, (SELECT content FROM read_text('/etc/passwd')) AS c FROM pool", "READ_TEXT"),
        ("SELECT 1 AS id", "does not read the table pool"),
        ("SELECT * FROM pool WHERE random() < 0.5", "gives other rows on every run"),
        ("SELECT * FROM pool ORDER BY random() LIMIT 3", "gives other rows on every run"),
        ("uuid() > 'a'", "gives other rows on every run"),
        ("gen_random_uuid() IS NOT NULL", "gives other rows on every run"),
        ("now() > '2020-01-01'", "gives other rows on every run"),
        ("current_date > '2020-01-01'", "gives other rows on every run"),
        ("localtimestamp > '2020-01-01'", "gives other rows on every run"),
        ("SELECT * FROM pool USING SAMPLE 3", "gives other rows on every run"),
        ("SELECT * FROM pool TABLESAMPLE 10%", "gives other rows on every run"),
        ("id >", "The SQL does not parse: something is missing"),
        ("id > 3)", "The SQL does not parse"),
        ("id > 3) OR (id < 9", "The SQL does not parse"),
        ("text = 'open", "The SQL does not parse"),
        ("missing.sql", "recipe file missing.sql can't be read: No such file or directory"),
        ("num_faces", "no recipe called 'num_faces'"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(text)
    assert said in caught.value.what
    assert caught.value.exit_code == 2


def test_a_recipe_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.sql").write_bytes(b"SELECT '\xff'")
    with pytest.raises(RecipeError, match=r"mine\.sql is not UTF-8 text"):
        load_recipe(str(tmp_path / "mine.sql"))


def test_a_folder_named_like_a_recipe_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.sql").mkdir()
    with pytest.raises(RecipeError, match=r"mine\.sql can't be read: Is a directory"):
        load_recipe(str(tmp_path / "mine.sql"))


@pytest.mark.parametrize(
    "text",
    [
        'ID > 1 AND "Num_Faces" = 0 AND pool.width > 1',
        "scores.face > 0.5 AND pool.scores.face < 0.9 AND scores['face'] > 0",
        "len([tag for tag in tags if tag > 'a']) > 0",
        "list_filter(tags, lambda x: x > 'a') <> []",
        "SELECT *, width * 2 AS twice FROM pool WHERE twice > 500",
        "SELECT * EXCLUDE (text) FROM pool",
        "SELECT pool.* FROM pool",
        "SELECT p.* FROM pool AS p WHERE p.width > 1",
        "WITH big AS (SELECT id AS big_id FROM pool) "
        "SELECT * FROM pool WHERE id IN (SELECT big_id FROM big)",
    ],
)
def test_columns_that_are_there_are_not_complained_about(text: str) -> None:
    recipe = load_recipe(text)
    check_columns(recipe, COLUMNS)
    assert recipe.sql


@pytest.mark.parametrize(
    ("text", "name", "meant"),
    [
        ("clip_similarity_vitb23 > 0.3", "clip_similarity_vitb23", "clip_similarity_vitb32"),
        ("width > 1 AND numfaces = 0", "numfaces", "num_faces"),
        ("SELECT id, txt FROM pool", "txt", "text"),
        ("SELECT * FROM pool WHERE id > 1 ORDER BY widht", "widht", "width"),
        ("score.face > 1", "score", "scores"),
        ("pool.scroes.face > 1", "scroes", "scores"),
    ],
)
def test_a_mistyped_column_gets_the_nearest_one(text: str, name: str, meant: str) -> None:
    with pytest.raises(ColumnError) as caught:
        check_columns(load_recipe(text), COLUMNS)
    assert f"has no column `{name}`" in caught.value.what
    assert f"Did you mean `{meant}`?" in caught.value.hint


def test_a_column_like_none_lists_what_there_is() -> None:
    with pytest.raises(ColumnError) as caught:
        check_columns(load_recipe("zzz > 1"), COLUMNS)
    assert caught.value.hint == f"It has {', '.join(COLUMNS)}."


def test_text_in_double_quotes_is_named_as_the_column_it_would_be() -> None:
    with pytest.raises(ColumnError, match="no column `abc`"):
        check_columns(load_recipe('text = "abc"'), COLUMNS)


def test_parsing_gives_back_the_text_that_duckdb_will_run() -> None:
    sql = "SELECT *\nFROM pool -- all\nWHERE width // 2 = 1 AND text ~ 'é.*'"
    assert parse_recipe(sql + " ;\n-- bye", name="x").sql == sql


def test_every_refusal_is_the_users_to_mend() -> None:
    with pytest.raises(CoyoError) as caught:
        load_recipe("no-such-recipe")
    assert caught.value.exit_code == 2
    assert "Shipped are" in caught.value.hint
