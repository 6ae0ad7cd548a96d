"""Run one DAG in this process against the local platform's TransformationService and database: ``make dag-test DAG=…``.

Airflow is the one of ``.venv``, with a metadata database that is thrown away. Connections and variables are those that
the inventory wants on the platform; a tunnel through the scheduler's host leads to them, as the hosts' firewalls let
only that one in. Tasks are tried once. Exit codes: 0 the run succeeded, 1 it failed, 2 it could not start.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".local/dag-test"
# An empty metadata database; making one takes longer than a run.
ORIGINAL = FOLDER / f"airflow-{importlib.metadata.version('apache-airflow')}.db"
ERROR_LINES = 25
WANTED = (
    "{{ {'host': inventory_hostname, 'connections': airflow_objects_connections,"
    " 'variables': airflow_objects_variables} | to_json }}"
)


class CannotStart(Exception):
    """What is missing, and what to do."""


def local_platform() -> tuple[Path, dict[str, str]]:
    """Return the SSH configuration of the local hosts and their addresses by name."""
    ssh_config = REPOSITORY / ".local" / os.environ.get("PLATFORM_NAMESPACE", "local") / "ssh_config"
    if not ssh_config.exists():
        raise CannotStart("there is no local platform: make up")
    found = re.findall(r"^Host (\S+)\n  HostName (\S+)$", ssh_config.read_text(), re.MULTILINE)
    return ssh_config, dict(found)


def desired_objects(namespace: str, address: str) -> dict[str, Any]:
    """Read the inventory's connections and variables, and the scheduler's host; they stay in this process."""
    hosts = {"test_host_namespace": namespace, "test_host_network_prefix": address.rpartition(".")[0]}
    argv = ["ansible", "airflow_scheduler[0]", "-i", "inventories/local", "-e", json.dumps(hosts), "-o"]
    done = subprocess.run(
        [*argv, "-m", "ansible.builtin.debug", "-a", f"msg={WANTED}"],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    _, found, answer = done.stdout.partition("=>")
    if done.returncode or not found:
        raise CannotStart(f"the inventory's connections cannot be read: {done.stderr.strip()[-500:]}")
    wanted = json.loads(answer)["msg"]
    objects: dict[str, Any] = json.loads(wanted) if isinstance(wanted, str) else wanted
    return objects


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def tunnel(ssh_config: Path, scheduler: str, targets: set[tuple[str, int]]) -> Iterator[dict[tuple[str, int], int]]:
    """Forward a local port to each target through the scheduler's host; yield the ports by target."""
    ports = {target: free_port() for target in targets}
    forwards = [f"-L127.0.0.1:{port}:{host}:{number}" for (host, number), port in ports.items()]
    options = ["-o", "ExitOnForwardFailure=yes", "-o", "ConnectTimeout=5", "-o", "ControlPath=none"]
    process = subprocess.Popen(
        ["ssh", "-F", str(ssh_config), "-N", *options, *forwards, scheduler], stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 10
        for port in ports.values():
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    process.terminate()
                    said = process.communicate()[1].strip()
                    raise CannotStart(f"{scheduler} does not answer ({said or 'no SSH within 10 s'}): make up")
                time.sleep(0.05)
        yield ports
    finally:
        process.terminate()
        process.communicate()


def airflow_environment(home: Path, database: Path) -> dict[str, str]:
    """Settings of an Airflow with one bundle, the sources of this repository laid out as a release."""
    release = home / "release"
    release.mkdir()
    for part in ("dags", "plugins", "scripts"):
        shutil.copytree(REPOSITORY / part, release / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / ".airflowignore", release)
    bundle = {
        "name": "releases",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(release)},
    }
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "none"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
    }


def objects_environment(objects: dict[str, Any], ports: dict[tuple[str, int], int]) -> dict[str, str]:
    """Connections and variables as Airflow reads them from its environment, through the tunnel."""
    found = {}
    for wanted in objects["connections"]:
        connection = {name: wanted[name] for name in wanted if name not in ("conn_id", "probe")}
        target = (connection.get("host"), connection.get("port"))
        if target in ports:
            connection |= {"host": "127.0.0.1", "port": ports[target]}
        found[f"AIRFLOW_CONN_{wanted['conn_id'].upper()}"] = json.dumps(connection)
    for variable in objects["variables"]:
        value = variable["value"]
        text = value if isinstance(value, str) else json.dumps(value)
        for (host, number), port in ports.items():
            text = text.replace(f"//{host}:{number}", f"//127.0.0.1:{port}")
        found[f"AIRFLOW_VAR_{variable['key'].upper()}"] = text
    return found


@contextlib.contextmanager
def log_in(file: Path) -> Iterator[None]:
    """Have what Airflow writes to standard output and error in a file."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with file.open("w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            for number, former in zip((1, 2), kept, strict=True):
                os.dup2(former, number)
                os.close(former)


def last_error(log: str) -> str:
    """Return the end of the last error in a log: the exception's text, with a few frames of where it was raised."""
    entries = re.split(r"^(?=\d{4}-\d\d-\d\dT\S+ \[)", log, flags=re.MULTILINE)
    errors = [entry for entry in entries if "[error" in entry[:60]] or entries
    return "\n".join(line[:300] for line in errors[-1].rstrip().splitlines()[-ERROR_LINES:])


def run(dag_id: str, conf: dict[str, Any], home: Path, database: Path) -> int:
    """Run the DAG and print its tasks, and the last error in the log of a failed run; return the exit code."""
    log = FOLDER / f"{dag_id}.log"
    from airflow import settings
    from airflow.dag_processing.dagbag import BundleDagBag

    release = home / "release"
    with log_in(log):
        if not database.exists():
            from airflow.utils.db import initdb

            initdb()
            settings.engine.dispose()
            shutil.copy(database, ORIGINAL)
        bag = BundleDagBag(release, bundle_path=release, bundle_name="releases")
    for file, error in bag.import_errors.items():
        print(f"{file} does not load:\n{error}", file=sys.stderr)
    if dag_id not in bag.dags:
        raise CannotStart(f"no DAG {dag_id}; there are {', '.join(sorted(bag.dags))}")
    dag = bag.dags[dag_id]
    others = {task.task_id: task.trigger_dag_id for task in dag.tasks if hasattr(task, "trigger_dag_id")}
    for task in dag.tasks:
        task.retries = 0
    unknown = sorted(set(conf) - set(dag.params))
    if unknown:
        raise CannotStart(f"{dag_id} has no param {', '.join(unknown)}; it has {', '.join(dag.params) or 'none'}")
    marked = "|".join(others) or None
    with log_in(log):
        result = dag.test(logical_date=None, run_conf=conf, mark_success_pattern=marked)

    instances = {instance.task_id: instance for instance in result.get_task_instances()}
    width = max(map(len, instances))
    for task in dag.topological_sort():
        found = instances[task.task_id]
        seconds = (found.end_date - found.start_date).total_seconds() if found.end_date and found.start_date else 0.0
        note = f"  left out: run {others[task.task_id]} by itself" if task.task_id in others else ""
        print(f"{found.state or 'not run':<15} {task.task_id:<{width}} {seconds:7.2f} s{note}")
    print(f"{dag_id} {result.state}, {', '.join(f'{name} {value}' for name, value in conf.items())}; log: {log}")
    if result.state == "success":
        return 0
    print(last_error(log.read_text(errors="replace")))
    return 1


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="make dag-test", description=__doc__)
    parser.add_argument("dag_id", metavar="DAG")
    parser.add_argument("--slot", help="instant that names the work; default: now, which transforms all records anew")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a param; JSON, or a text")
    given = parser.parse_args()
    conf: dict[str, Any] = {"slot": given.slot or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    for text in given.param:
        name, _, value = text.partition("=")
        try:
            conf[name] = json.loads(value)
        except json.JSONDecodeError:
            conf[name] = value
    started = time.monotonic()
    try:
        ssh_config, addresses = local_platform()
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dag-test-") as folder, ThreadPoolExecutor(1) as beside:
            home = Path(folder)
            database = home / "airflow.db"
            reading = beside.submit(desired_objects, ssh_config.parent.name, next(iter(addresses.values())))
            if ORIGINAL.exists():
                shutil.copy(ORIGINAL, database)
            os.environ.update(airflow_environment(home, database))
            import airflow.sdk.execution_time.supervisor  # noqa: F401 - takes as long as the inventory

            objects = reading.result()
            peers = {*addresses, *addresses.values()}
            targets = {
                (c["host"], c["port"]) for c in objects["connections"] if c.get("host") in peers and c.get("port")
            }
            with tunnel(ssh_config, objects["host"], targets) as ports:
                os.environ.update(objects_environment(objects, ports))
                code = run(given.dag_id, conf, home, database)
        print(f"{time.monotonic() - started:.1f} s in all")
        return code
    except CannotStart as error:
        print(f"make dag-test: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
