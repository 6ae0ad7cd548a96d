"""The wall before the database: what a script's SQL may say, decided on its syntax tree.

Nothing is forbidden by name. Statement forms, operators, functions, types and tables are the ones listed here, and what
is executed is written anew from the tree, so that no reading of the text but this one ever reaches the server.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import TokenType

from transformation_service.entities import ENTITIES
from transformation_service.problems import Problem

DIALECT = "postgres"
TABLES = frozenset(entity.table for entity in ENTITIES.values())
BOOKKEEPING = frozenset({"id", "transform_count", "transformed_at", "created_at"})
"""Columns of the entity tables that the ledger relies on; scripts read them."""

# The parser works recursively and tries alternatives; beyond these sizes its time would be the client's to choose.
MAX_TOKENS = 4000
MAX_DEPTH = 24

# It warns about each statement that it doesn't know; we refuse those.
logging.getLogger("sqlglot").setLevel(logging.ERROR)

# The types of parameters, each with its type in SQL.
PARAMETER_TYPES = {
    "string": "TEXT",
    "integer": "BIGINT",
    "number": "NUMERIC",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
}

STRUCTURE = (
    *(exp.Select, exp.Update, exp.Union, exp.Intersect, exp.Except, exp.Subquery, exp.With, exp.CTE, exp.From),
    *(exp.Join, exp.Where, exp.Group, exp.Having, exp.Order, exp.Ordered, exp.Limit, exp.Offset, exp.Distinct),
    *(exp.Values, exp.Table, exp.TableAlias, exp.Alias, exp.Column, exp.Identifier, exp.Star, exp.Tuple, exp.Paren),
    *(exp.Window, exp.WindowSpec, exp.Filter, exp.If, exp.Placeholder, exp.Literal, exp.RawString, exp.Null),
    *(exp.Boolean, exp.Var, exp.DataType, exp.DataTypeParam, exp.Interval, exp.Kwarg, exp.WithinGroup),
)
OPERATORS = (
    *(exp.And, exp.Or, exp.Not, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Is, exp.In, exp.Between),
    *(exp.NullSafeEQ, exp.NullSafeNEQ, exp.Like, exp.ILike, exp.RegexpLike, exp.RegexpILike, exp.Escape, exp.Exists),
    *(exp.Any, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg, exp.DPipe, exp.Case, exp.Cast, exp.AtTimeZone),
    *(exp.JSONExtract, exp.JSONExtractScalar, exp.JSONBExtract, exp.JSONBExtractScalar, exp.JSONPath, exp.JSONPathRoot),
    *(exp.JSONPathKey, exp.JSONPathSubscript, exp.JSONBContains, exp.ArrayContainsAll),
)
FUNCTIONS = (
    *(exp.Coalesce, exp.Nullif, exp.Greatest, exp.Least, exp.Abs, exp.Round, exp.Ceil, exp.Floor),
    *(exp.Lower, exp.Upper, exp.Initcap, exp.Trim, exp.Length, exp.Substring, exp.StrPosition, exp.SplitPart, exp.Left),
    *(exp.Right, exp.Concat, exp.ConcatWs, exp.RegexpReplace, exp.MD5),
    *(exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.GroupConcat, exp.RowNumber, exp.Rank, exp.DenseRank),
    *(exp.Lag, exp.Lead, exp.CurrentDate, exp.CurrentTimestamp, exp.Extract, exp.TimestampTrunc, exp.MakeInterval),
)
ALLOWED = frozenset(STRUCTURE + OPERATORS + FUNCTIONS)
# Functions that the parser has no class of its own for.
NAMED_FUNCTIONS = frozenset({"jsonb_build_object", "jsonb_set", "jsonb_strip_nulls", "to_jsonb", "btrim", "translate"})
TYPES = frozenset(
    getattr(exp.DataType.Type, name)
    for name in (
        *("TEXT", "VARCHAR", "BOOLEAN", "SMALLINT", "INT", "BIGINT", "DECIMAL", "FLOAT", "DOUBLE"),
        *("DATE", "TIMESTAMP", "TIMESTAMPTZ", "INTERVAL", "JSONB"),
    )
)


@dataclass(frozen=True)
class Statement:
    """One statement as it is sent: ``text`` with ``$1``..., and the parameter's name for each of them."""

    command: str
    text: str
    names: tuple[str, ...]


def read(sql: str, *, parameters: Mapping[str, str | None], most: int) -> list[Statement]:
    """Return the statements of a script.

    Args:
        sql: The script's text; parameters appear as ``:name``.
        parameters: Declared names, each with its type (a key of ``PARAMETER_TYPES``) or ``None``, where PostgreSQL
            infers it.
        most: Largest number of statements.

    Raises:
        Problem: 400 with the reason.
    """
    trees = _parse(sql)
    if not trees:
        _refuse("invalid-sql", "There is no statement.")
    if len(trees) > most:
        _refuse("too-many-statements", f"There are {len(trees)} statements; the limit is {most}.", limit=most)
    try:
        for number, tree in enumerate(trees, 1):
            _check(tree, number, parameters)
        return [_write(tree, parameters) for tree in trees]
    except RecursionError:
        _refuse("invalid-sql", "The SQL is nested too deeply.")


def _refuse(code: str, detail: str, **extra: int | str) -> NoReturn:
    raise Problem(400, code, detail, headers=None, **extra)


def _parse(sql: str) -> list[exp.Expr]:
    if "\0" in sql:
        _refuse("invalid-sql", "The SQL holds a NUL character.")
    try:
        found = sqlglot.tokenize(sql, dialect=DIALECT)
        if len(found) > MAX_TOKENS:
            _refuse("invalid-sql", f"The SQL has more than {MAX_TOKENS} words and signs.")
        if any(token.token_type == TokenType.L_BRACKET for token in found):
            # The parser's time doubles with each bracket within another.
            _refuse("statement-not-allowed", "Brackets are not allowed in scripts; write IN (...) for a list.")
        depth = 0
        for token in found:
            depth += (token.token_type in _OPENING) - (token.token_type in _CLOSING)
            if depth > MAX_DEPTH:
                _refuse("invalid-sql", f"The SQL is nested deeper than {MAX_DEPTH} levels.")
        return [tree for tree in sqlglot.parse(sql, dialect=DIALECT) if tree is not None]
    except SqlglotError as error:
        _refuse("invalid-sql", f"The SQL can't be read: {str(error)[:300]}")
    except RecursionError:
        _refuse("invalid-sql", "The SQL is nested too deeply.")


_OPENING = frozenset({TokenType.L_PAREN, TokenType.CASE})
_CLOSING = frozenset({TokenType.R_PAREN, TokenType.END})


def _name(identifier: object) -> str:
    """Return a name as PostgreSQL folds it."""
    if not isinstance(identifier, exp.Identifier):
        return ""
    return str(identifier.this) if identifier.args.get("quoted") else str(identifier.this).lower()


def _check(tree: exp.Expr, number: int, parameters: Mapping[str, str | None]) -> None:
    if not isinstance(tree, exp.Select | exp.Union | exp.Intersect | exp.Except | exp.Update):
        what = str(tree.this) if isinstance(tree, exp.Command) else tree.key
        _refuse(
            "statement-not-allowed",
            f"Statement {number} is {what.upper()[:40]}. Scripts consist of SELECT and UPDATE.",
            statement=number,
        )
    for cte in tree.find_all(exp.CTE):
        name = _name(cte.args["alias"].this)
        if name in TABLES or name.startswith("pg_"):
            _refuse("relation-not-allowed", f"Statement {number}: WITH can't name {name!r}.", statement=number)
    for node in tree.walk():
        _check_node(node, tree, number)
        if isinstance(node, exp.Placeholder) and node.this not in parameters:
            _refuse(
                "invalid-parameters",
                f"Statement {number} uses :{node.this}, which is not among the parameters ({', '.join(parameters)}).",
                statement=number,
            )
    if isinstance(tree, exp.Update):
        _check_update(tree, number)


def _check_node(node: exp.Expr, tree: exp.Expr, number: int) -> None:
    kind = type(node)
    if kind is exp.Anonymous and _called(node) in NAMED_FUNCTIONS:
        return
    if kind not in ALLOWED:
        if isinstance(node, exp.Func | exp.Anonymous):
            called = _called(node) if isinstance(node, exp.Anonymous) else node.sql_name().lower()
            _refuse(
                "function-not-allowed",
                f"Statement {number}: function {called[:60]} is not allowed in scripts.",
                statement=number,
                function=called[:60],
            )
        _refuse(
            "statement-not-allowed",
            f"Statement {number}: {node.key.upper()} is not allowed in scripts ({_excerpt(node)}).",
            statement=number,
        )
    if isinstance(node, exp.Update) and node is not tree:
        _refuse("statement-not-allowed", f"Statement {number}: an UPDATE must stand alone.", statement=number)
    if isinstance(node, exp.With) and node.args.get("recursive"):
        _refuse("statement-not-allowed", f"Statement {number}: WITH RECURSIVE is not allowed.", statement=number)
    if isinstance(node, exp.Placeholder) and not isinstance(node.this, str):
        _refuse("invalid-sql", f"Statement {number}: write parameters as :name.", statement=number)
    if isinstance(node, exp.DataType) and node.this not in TYPES and not isinstance(node.this, exp.Interval):
        _refuse("statement-not-allowed", f"Statement {number}: type {_excerpt(node)} is not allowed.", statement=number)
    if isinstance(node, exp.Table):
        _check_table(node, number)


def _called(node: exp.Expr) -> str:
    return str(node.this).lower()


def _excerpt(node: exp.Expr) -> str:
    return str(node.sql(dialect=DIALECT, comments=False))[:80]


def _check_table(table: exp.Table, number: int) -> None:
    if not isinstance(table.this, exp.Identifier):
        _refuse(
            "function-not-allowed", f"Statement {number}: no function in FROM: {_excerpt(table)}.", statement=number
        )
    name, schema = _name(table.this), _name(table.args.get("db"))
    known = (name in TABLES and schema in ("", "public")) or (not schema and _is_common(table, name))
    if table.args.get("catalog") or not known:
        _refuse(
            "relation-not-allowed",
            f"Statement {number}: {_excerpt(table)} is not one of {', '.join(sorted(TABLES))}.",
            statement=number,
        )


def _is_common(table: exp.Table, name: str) -> bool:
    """Tell whether PostgreSQL takes the name for a query of WITH: one of a statement around it, named before it."""
    child: exp.Expr = table
    while (around := child.parent) is not None:
        named = around if isinstance(around, exp.With) else around.args.get("with_")
        if named is not None and named is not child:
            for cte in named.expressions:
                if cte is child:
                    break
                if _name(cte.args["alias"].this) == name:
                    return True
        child = around
    return False


def _check_update(tree: exp.Update, number: int) -> None:
    target = tree.this
    if not (isinstance(target, exp.Table) and _name(target.this) in TABLES):
        _refuse("relation-not-allowed", f"Statement {number} updates no table of records.", statement=number)
    for assignment in tree.expressions:
        column = assignment.this if isinstance(assignment, exp.EQ) else None
        if not isinstance(column, exp.Column):
            _refuse("statement-not-allowed", f"Statement {number}: write SET column = value.", statement=number)
        if _name(column.this) in BOOKKEEPING:
            _refuse(
                "statement-not-allowed",
                f"Statement {number}: column {_name(column.this)} belongs to the ledger; scripts only read it.",
                statement=number,
            )


def _write(tree: exp.Expr, parameters: Mapping[str, str | None]) -> Statement:
    names: list[str] = []

    def bind(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Identifier):
            # In quotes no name can be read as a keyword: USER, TABLE.
            return exp.to_identifier(_name(node), quoted=True)
        if not isinstance(node, exp.Placeholder):
            return node
        if node.this not in names:
            names.append(node.this)
        bound = exp.Parameter(this=exp.Literal.number(names.index(node.this) + 1))
        kind = parameters[node.this]
        return exp.cast(bound, PARAMETER_TYPES[kind], dialect=DIALECT) if kind else bound

    text = str(tree.transform(bind).sql(dialect=DIALECT, comments=False))
    return Statement("UPDATE" if isinstance(tree, exp.Update) else "SELECT", text, tuple(names))


def infer_type(value: Any) -> str | None:
    """Return the type of a parameter that nobody declared; PostgreSQL finds that of a string or NULL by its use."""
    return {bool: "boolean", int: "integer", float: "number"}.get(type(value))
