#!/usr/bin/python
"""Ansible module: a Python virtual environment that holds exactly what a hash-locked requirements file names."""

from __future__ import annotations

DOCUMENTATION = r"""
module: locked_venv
short_description: Build a virtual environment from a hash-locked requirements file
description:
  - The environment at O(path) holds exactly the packages of O(requirements), each verified by its hash, byte-compiled.
  - A marker inside the environment records the checksum of O(requirements) and the interpreter. The same marker
    means no change; an environment without one (an install that died) or with another one is built anew.
  - An environment is never changed in place. Put the lock's checksum or a version into O(path), so that a process
    that still runs from the old environment keeps it.
  - One build at a time in a folder of environments. A build whose controller was lost goes on by itself; the next run
    waits for its end, takes what it finished, and builds the rest anew.
  - A folder that is neither empty nor a virtual environment is never deleted; the module fails instead.
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  path:
    description: Absolute folder of the environment.
    type: path
    required: true
  requirements:
    description: Text of a requirements file in which every line is pinned and has hashes.
    type: str
    required: true
  python:
    description: Interpreter that the environment is made from.
    type: path
    default: /usr/bin/python3
  uv:
    description:
      - Path of the uv that installs. Without it, the interpreter's own C(venv) and C(pip) do; that is how uv itself
        gets onto a host.
    type: path
  environment:
    description: Additional, non-secret environment of uv or pip (certificates, package index, cache folder).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Install Airflow's packages
  locked_venv:
    path: /opt/airflow/venvs/3.3.2-1a2b3c4d
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
    uv: /opt/uv/0.13.9/bin/uv
"""

RETURN = r"""
path:
  description: Folder of the environment.
  type: str
  returned: always
python:
  description: Interpreter of the environment.
  type: str
  returned: always
seconds:
  description: Wall time of the build, 0 when nothing was built.
  type: float
  returned: always
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule

MARKER = "locked_venv.json"
# Both would defeat the byte-compilation or point the installer at another environment.
UNWANTED_ENVIRONMENT = ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")


def wanted_marker(requirements: str, python: str) -> dict[str, str]:
    """Return the marker of a finished environment: checksum of the lock and the real path of the interpreter.

    The real path (``/usr/bin/python3.13``) changes when the distribution's minor version does, which is when an
    environment stops working.
    """
    return {"requirements": hashlib.sha256(requirements.encode()).hexdigest(), "python": os.path.realpath(python)}


def read_marker(path: str) -> dict[str, str] | None:
    """Return the marker in the environment at ``path``, or ``None`` when there is no readable one."""
    try:
        with open(os.path.join(path, MARKER), encoding="utf-8") as marker:
            found = json.load(marker)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_foreign(path: str) -> bool:
    """Tell whether ``path`` holds something that this module must not delete."""
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isdir(path)):
        return True
    if not os.path.isdir(path) or not os.listdir(path):
        return False
    return not any(os.path.exists(os.path.join(path, name)) for name in (MARKER, "pyvenv.cfg"))


def write_marker(path: str, marker: dict[str, str]) -> None:
    """Write the marker so that a crash leaves the old one or the whole new one."""
    partial = os.path.join(path, MARKER + ".new")
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(marker, stream, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, os.path.join(path, MARKER))


def build_commands(path: str, requirements_file: str, python: str, uv: str | None) -> list[list[str]]:
    """Return the argument lists that make the environment and fill it."""
    interpreter = os.path.join(path, "bin", "python")
    if uv:
        sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode"]
        return [
            [uv, "venv", "--quiet", "--allow-existing", "--no-python-downloads", "--python", python, path],
            [*sync, "--python", interpreter, requirements_file],
        ]
    # pip compiles what it installs; wheels only, because a source distribution would run its own code to build.
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    return [
        [python, "-m", "venv", path],
        [*pip, "--only-binary", ":all:", "--require-hashes", "--requirement", requirements_file],
    ]


@contextlib.contextmanager
def alone(path: str) -> Iterator[int]:
    """Keep others from building beside ``path``; yield the file that holds the lock, for the installer to hold as well.

    The lock is on the folder, so it leaves no file, and it ends with the last process that has it open.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lock = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def build(module: AnsibleModule, marker: dict[str, str], lock: int) -> None:
    """Build the environment of ``module.params`` anew and mark it finished; fail the module when a command fails."""
    path, python, uv = module.params["path"], module.params["python"], module.params["uv"]
    for name in UNWANTED_ENVIRONMENT:
        os.environ.pop(name, None)
    os.umask(0o022)  # sudo may have left a stricter one, and service users must read the environment
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    # Present from the first moment, so that a run that dies leaves a folder which the next run knows as ours.
    write_marker(path, {"state": "building"})
    environment = {name: str(value) for name, value in module.params["environment"].items()}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", dir=module.tmpdir) as requirements:
        requirements.write(module.params["requirements"])
        requirements.flush()
        for command in build_commands(path, requirements.name, python, uv):
            code, output, errors = module.run_command(command, environ_update=environment, cwd="/", pass_fds=[lock])
            if code != 0:
                shutil.rmtree(path, ignore_errors=True)
                module.fail_json(
                    msg=f"Cannot build {path}: '{' '.join(command)}' ended with {code}.\n{errors.strip()}",
                    stdout=output,
                    stderr=errors,
                    invocation=invocation(module),
                )
    write_marker(path, marker)


def refuse_foreign(module: AnsibleModule) -> None:
    """Fail the module where the folder is somebody else's. A build has to be over: it begins without a marker."""
    path = module.params["path"]
    if is_foreign(path):
        module.fail_json(
            msg=f"{path} exists and is not a virtual environment. Move it away, or choose another path.",
            invocation=invocation(module),
        )


def invocation(module: AnsibleModule) -> dict[str, Any]:
    """Return what Ansible prints as the module's arguments, with the checksum in place of a long lock."""
    checksum = hashlib.sha256(module.params["requirements"].encode()).hexdigest()
    return {"module_args": {**module.params, "requirements": f"sha256:{checksum}"}}


def describe(marker: dict[str, str] | None) -> str:
    """Return one side of the diff."""
    if marker is None:
        return ""
    return "".join(f"{name}: {value}\n" for name, value in sorted(marker.items()))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "uv": {"type": "path"},
            "environment": {"type": "dict", "default": {}},
        },
        no_log=True,  # keeps the lock's thousands of lines out of the host's journal; the result is not affected
        supports_check_mode=True,
    )
    path = module.params["path"]
    if not os.path.isabs(path) or path == "/":
        module.fail_json(msg=f"path must be an absolute folder, found '{path}'.", invocation=invocation(module))
    found = read_marker(path)
    wanted = wanted_marker(module.params["requirements"], module.params["python"])
    changed = found != wanted
    started = time.monotonic()
    if changed and module.check_mode:
        refuse_foreign(module)
    elif changed:
        with alone(path) as lock:
            if read_marker(path) != wanted:
                refuse_foreign(module)
                build(module, wanted, lock)
    module.exit_json(
        changed=changed,
        path=path,
        python=os.path.join(path, "bin", "python"),
        seconds=round(time.monotonic() - started, 1) if changed else 0.0,
        diff={
            "before_header": path,
            "after_header": path,
            "before": describe(found),
            "after": describe(wanted),
        },
        invocation=invocation(module),
    )


if __name__ == "__main__":
    main()
