"""Connect to PostgreSQL with the driver that Airflow uses here."""

from typing import Any

import psycopg2


def main(data: dict[str, Any]) -> dict[str, Any]:
    """Take ``dsn`` (libpq's keywords) and ``statements``; every statement is a transaction of its own."""
    try:
        connection = psycopg2.connect(**data["dsn"])
    except psycopg2.OperationalError as error:
        return {"error": str(error), "results": []}
    connection.autocommit = True
    results: list[dict[str, Any]] = []
    for statement in data["statements"]:
        with connection.cursor() as cursor:
            try:
                cursor.execute(statement)
                rows = [[str(v) if v is not None and not isinstance(v, int) else v for v in row] for row in cursor]
                results.append({"rows": rows})
            except psycopg2.ProgrammingError as error:
                # A statement without result, such as SET, has no rows to iterate over.
                results.append({"sqlstate": error.pgcode, "error": str(error)} if error.pgcode else {"rows": []})
            except psycopg2.Error as error:
                results.append({"sqlstate": error.pgcode, "error": str(error)})
    connection.close()
    return {"error": None, "results": results}
