"""Where the clauses of a SELECT stand in its text.

A recipe's own words are what DuckDB runs and what a report shows, so what has to change in them (a
resolved threshold, a guard against NaN) is spliced in, and the terms of a WHERE are cut out of the
text. Writing a query anew from its syntax tree would be shorter and, now and then, another query.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import Token, TokenType

_OPEN = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE, TokenType.CASE})
_CLOSE = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE, TokenType.END})
_AFTER_WHERE = frozenset(
    {TokenType.GROUP_BY, TokenType.HAVING, TokenType.QUALIFY, TokenType.WINDOW, TokenType.ORDER_BY}
    | {TokenType.LIMIT, TokenType.OFFSET, TokenType.FETCH, TokenType.UNION, TokenType.EXCEPT}
    | {TokenType.INTERSECT, TokenType.SEMICOLON, TokenType.SELECT, TokenType.TABLE_SAMPLE}
)


@dataclass(frozen=True)
class Layout:
    """The parts of one SELECT's text: its WITH, the items it selects, the terms of its WHERE.

    ``terms`` are the AND-terms, each with the place in the text it was cut from (start, end);
    ``comments`` has what is written in comments within each of them.
    """

    with_text: str
    items: tuple[str, ...]
    terms: tuple[tuple[str, int, int], ...]
    comments: tuple[str, ...]


def lay_out(sql: str) -> Layout:
    """Find the outermost SELECT's clauses; its parts are empty where it has none."""
    tokens = tokenize(sql)
    depths = _depths(tokens)
    outer = [number for number, depth in enumerate(depths) if depth == 0]
    starts = [n for n in outer if tokens[n].token_type in (TokenType.SELECT, TokenType.FROM)]
    first = starts[0] if starts else 0
    selects = [n for n in outer if tokens[n].token_type == TokenType.SELECT]
    items: list[str] = []
    if selects:
        ends = [
            n
            for n in outer
            if n > selects[0] and tokens[n].token_type in {TokenType.FROM, TokenType.WHERE}
        ]
        inside = tokens[selects[0] + 1 : ends[0] if ends else len(tokens)]
        items = [text_of(sql, item) for item in _split(inside, TokenType.COMMA) if item]
    wheres = [n for n in outer if tokens[n].token_type == TokenType.WHERE]
    cut: list[list[Token]] = []
    if wheres:
        ends = [n for n in outer if n > wheres[0] and tokens[n].token_type in _AFTER_WHERE]
        cut = and_terms(tokens[wheres[0] + 1 : ends[0] if ends else len(tokens)])
    terms = [(text_of(sql, term), term[0].start, term[-1].end + 1) for term in cut if term]
    comments = [
        " ".join(comment.strip() for token in term for comment in token.comments)
        for term in cut
        if term
    ]
    begins_with = bool(tokens) and tokens[0].token_type == TokenType.WITH
    with_text = sql[tokens[0].start : tokens[first].start] if begins_with else ""
    return Layout(with_text, tuple(items), tuple(terms), tuple(comments))


def tokenize(sql: str) -> list[Token]:
    """Return the tokens of a text in DuckDB's dialect."""
    return list(sqlglot.tokenize(sql, read="duckdb"))


def and_terms(tokens: Sequence[Token]) -> list[list[Token]]:
    """Split a condition at the ANDs that are its outermost operators; an OR keeps it whole."""
    inner = _without_parentheses(tokens)
    depths = _depths(inner)
    if any(
        depth == 0 and token.token_type == TokenType.OR
        for token, depth in zip(inner, depths, strict=True)
    ):
        return [inner]
    parts = [part for part in _split(inner, TokenType.AND) if part]
    if len(parts) <= 1:
        return [inner]
    return [term for part in parts for term in and_terms(part)]


def text_of(sql: str, tokens: Sequence[Token]) -> str:
    """Return the text of some neighbouring tokens on one line and without comments."""
    words = [sql[tokens[0].start : tokens[0].end + 1]] if tokens else []
    for before, token in itertools.pairwise(tokens):
        gap = sql[before.end + 1 : token.start]
        words += [gap if not gap.strip(" ") else " ", sql[token.start : token.end + 1]]
    return "".join(words)


def calls_of(sql: str, name: str) -> list[tuple[int, int, list[str]]]:
    """Find the calls of a function: the start and end of each in the text, and its arguments."""
    tokens = tokenize(sql)
    found = []
    for number, token in enumerate(tokens[:-1]):
        opening = tokens[number + 1]
        if token.text.lower() != name or opening.token_type != TokenType.L_PAREN:
            continue
        depths = _depths(tokens[number + 1 :])
        closing = next((n for n, depth in enumerate(depths) if n > 0 and depth == 0), None)
        if closing is None:
            continue
        inside = tokens[number + 2 : number + 1 + closing]
        arguments = [text_of(sql, part) for part in _split(inside, TokenType.COMMA)]
        found.append((token.start, tokens[number + 1 + closing].end + 1, arguments))
    return found


def splice(text: str, changes: Iterable[tuple[int, int, str]]) -> str:
    """Replace some places (start, end, replacement) of a text that don't overlap."""
    for start, end, replacement in sorted(changes, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _depths(tokens: Sequence[Token]) -> list[int]:
    """Say of each token how many brackets and CASEs it stands in; they themselves count outside."""
    depths = []
    depth = 0
    for token in tokens:
        if token.token_type in _CLOSE:
            depth -= 1
        depths.append(depth)
        if token.token_type in _OPEN:
            depth += 1
    return depths


def _split(tokens: Sequence[Token], at: TokenType) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    betweens = 0
    for token, depth in zip(tokens, _depths(tokens), strict=True):
        if depth == 0 and token.token_type == TokenType.BETWEEN:
            betweens += 1
        if depth == 0 and token.token_type == at:
            if at == TokenType.AND and betweens:
                betweens -= 1  # the AND of BETWEEN a AND b
            else:
                parts.append([])
                continue
        parts[-1].append(token)
    return parts


def _without_parentheses(tokens: Sequence[Token]) -> list[Token]:
    inner = list(tokens)
    while (
        len(inner) > 2
        and inner[0].token_type == TokenType.L_PAREN
        and inner[-1].token_type == TokenType.R_PAREN
        and all(depth > 0 for depth in _depths(inner)[1:-1])
    ):
        inner = inner[1:-1]
    return inner
