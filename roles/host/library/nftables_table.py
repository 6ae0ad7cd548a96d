#!/usr/bin/python
"""Ansible module: one nftables table of a host is exactly what its rules file says, now and after a boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nftables_table
short_description: Keep one nftables table loaded as its rules file says
description:
  - Loads O(content) into an empty network namespace and compares the kernel's listing of it with the listing of the
    live table. So a rule that somebody added or removed by hand is seen as well, and a broken rules file fails before
    it touches the host's network.
  - Loading is left to O(unit), a systemd service that runs C(nft --file); one file is one transaction, so there is no
    moment without rules. The unit is enabled, so that the table is back after a boot.
  - Other tables are never read or written.
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  table:
    description: Family and name of the table.
    type: str
    required: true
  content:
    description: The rules file's text, which has to declare, delete and define the table.
    type: str
    required: true
  unit:
    description: Service that loads the rules file.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Load the firewall
  nftables_table:
    table: inet platform
    content: "{{ lookup('ansible.builtin.template', 'platform.nft.j2') }}"
    unit: platform-firewall.service
"""

RETURN = r"""
actions:
  description: What was (in check mode, would be) done.
  type: list
  elements: str
  returned: always
"""

import json
import shutil

from ansible.module_utils.basic import AnsibleModule


def normal_form(listing: str) -> list[str]:
    """Return a listing of ``nft --json`` in an order and form that two listings of equal tables share.

    Handles are numbers that the kernel gives out; the elements of a set come in any order. The order of rules stays.
    """
    objects = json.loads(listing)["nftables"] if listing else []
    return [json.dumps(_without_handles(entry), sort_keys=True) for entry in objects if "metainfo" not in entry]


def _without_handles(value: object) -> object:
    if isinstance(value, dict):
        plain = {key: _without_handles(item) for key, item in value.items() if key != "handle"}
        for name in ("elem", "set"):  # elements of a named set, and of one inside a rule
            elements = plain.get(name)
            if isinstance(elements, list):
                plain[name] = sorted(elements, key=lambda item: json.dumps(item, sort_keys=True))
        return plain
    if isinstance(value, list):
        return [_without_handles(item) for item in value]
    return value


def wanted_listing(module: AnsibleModule, nft: str, *options: str) -> str:
    """Return the listing of the table that the rules make; fail when nft does not take them."""
    # The first nft reads the rules from stdin, the second lists what came of them; both in a namespace of their own.
    script = 'nft=$1; shift; "$nft" --file - && exec "$nft" "$@"'
    command = ["unshare", "--net", "sh", "-c", script, "sh", nft, *listing_arguments(module, *options)]
    code, output, errors = module.run_command(command, data=module.params["content"])
    if code != 0:
        module.fail_json(msg=f"nft refuses the rules of table {module.params['table']}:\n{errors.strip()}")
    return str(output)


def loaded_listing(module: AnsibleModule, nft: str, *options: str) -> str:
    """Return the listing of the live table, nothing when it is not loaded."""
    code, output, _ = module.run_command([nft, *listing_arguments(module, *options)])
    return str(output) if code == 0 else ""


def listing_arguments(module: AnsibleModule, *options: str) -> list[str]:
    """Return what nft has to be told to list the table without counters."""
    return [*options, "--stateless", "list", "table", *module.params["table"].split()]


def unit_state(module: AnsibleModule) -> dict[str, str]:
    """Return systemd's properties of the unit."""
    properties = "--property=LoadState,ActiveState,UnitFileState,NeedDaemonReload"
    _, output, _ = module.run_command(["systemctl", "show", properties, module.params["unit"]], check_rc=True)
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "table": {"type": "str", "required": True},
            "content": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    unit = module.params["unit"]
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin") or ""
    if not nft:
        if not module.check_mode:
            module.fail_json(msg="There is no nft on this host; install the package nftables.")
        # Check mode of the run that would install it first.
        diff = {"before": f"{unit}: absent\n", "after": f"{unit}: active, enabled\n"}
        module.exit_json(changed=True, actions=["load", "enable"], diff=diff)

    wanted = normal_form(wanted_listing(module, nft, "--json"))
    loaded = normal_form(loaded_listing(module, nft, "--json"))
    state = unit_state(module)
    actions = []
    if loaded != wanted or state["ActiveState"] != "active":
        actions.append("load")
    if state.get("UnitFileState") != "enabled":
        actions.append("enable")

    diff = {"before": "", "after": ""}
    if actions:  # the readable listings cost two more calls of nft
        diff = {
            "before_header": f"table {module.params['table']}",
            "after_header": f"table {module.params['table']}",
            "before": loaded_listing(module, nft) + f"{unit}: {state['ActiveState']}, {state.get('UnitFileState')}\n",
            "after": wanted_listing(module, nft) + f"{unit}: active, enabled\n",
        }
    if not module.check_mode:
        if state["NeedDaemonReload"] == "yes" or state["LoadState"] == "not-found":
            module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        if "enable" in actions:
            module.run_command(["systemctl", "enable", "--quiet", unit], check_rc=True)
        if "load" in actions:
            verb = "reload" if state["ActiveState"] == "active" else "restart"
            module.run_command(["systemctl", verb, unit], check_rc=True)
            if normal_form(loaded_listing(module, nft, "--json")) != wanted:
                module.fail_json(msg=f"{unit} loaded something else than the wanted rules; does it read their file?")

    module.exit_json(changed=bool(actions), actions=actions, diff=diff)


if __name__ == "__main__":
    main()
