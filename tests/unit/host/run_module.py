"""Run one of the repository's Ansible modules as a process of its own, as a host does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROLES = Path(__file__).parents[3] / "roles"


def run_module(module: str, parameters: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Return the result of ``roles/<module>`` run with ``parameters`` by the interpreter that runs the tests."""
    code = (
        "import json, runpy, sys\n"
        "import ansible.module_utils\n"
        # The roles' own module_utils: on a real run Ansible ships them with the module.
        f"ansible.module_utils.__path__ += {[str(path) for path in ROLES.glob('*/module_utils')]!r}\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "with patch_module_args(json.loads(sys.stdin.read())):\n"
        f"    runpy.run_path({str(ROLES / module)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({**parameters, "_ansible_check_mode": check, "_ansible_inject_invocation": True}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
