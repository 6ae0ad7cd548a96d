#!/usr/bin/python
"""Files, directories and absent paths of one host as one desired state, in one module call with one diff."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Keep a set of files exactly as given
description:
  - Takes the whole set of files that a role owns and changes what differs. A module call costs about 0.3 CPU seconds
    on either side and C(template) needs two of them for each file; this one needs one for all.
  - Every file is written beside its place, checked with O(files[].validate) and moved into place atomically. All
    checks run before the first file moves, so a set with one bad file changes nothing.
  - In check mode a missing parent directory, owner or group is no error, because an earlier task would have made it.
options:
  files:
    description: The paths, in the order in which they are made.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      state: {description: What the path shall be., type: str, choices: [file, directory, absent], default: file}
      content: {description: Text of a file; a missing newline at its end is added., type: str}
      secret:
        description: The same for a text that is a secret as a whole. It appears in no diff, output or log.
        type: str
      owner: {description: Name of the owner., type: str, default: root}
      group: {description: Name of the group., type: str, default: root}
      mode:
        description: Octal mode as text; without it 0644 for files and 0755 for directories.
        type: str
      validate:
        description: Command that checks the new file, C(%s) stands for its path. Runs without a shell.
        type: str
      hide:
        description: Regular expression; what it matches is shown as C(<hidden>) in the diff.
        type: str
"""

RETURN = r"""
changed_paths:
  description: Paths that were (in check mode, would be) changed.
  type: list
  returned: always
"""

import grp
import os
import pwd
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

HIDDEN = "<hidden>"
DEFAULT_MODES = {"file": "0644", "directory": "0755"}


def normal_content(content: str | None) -> str:
    """Return the text with a newline at its end; an empty file stays empty."""
    text = content or ""
    return text if not text or text.endswith("\n") else text + "\n"


def hide_secrets(before: str, after: str, pattern: str | None) -> tuple[str, str]:
    """Replace what `pattern` matches on both sides; say so when the texts differ in hidden parts."""
    if not pattern:
        return before, after
    shown_before, shown_after = re.sub(pattern, HIDDEN, before), re.sub(pattern, HIDDEN, after)
    hidden_before, hidden_after = re.findall(pattern, before), re.findall(pattern, after)
    if before and hidden_before != hidden_after:
        shown_after = re.sub(re.escape(HIDDEN), HIDDEN[:-1] + ", new value>", shown_after, count=1)
    return shown_before, shown_after


def current_state(path: str) -> dict[str, Any]:
    """Read what is at `path`: kind ('file', 'directory', 'absent', 'other'), owner, group, mode and text."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return {"state": "absent"}
    kind = "file" if stat.S_ISREG(info.st_mode) else "directory" if stat.S_ISDIR(info.st_mode) else "other"
    found: dict[str, Any] = {
        "state": kind,
        "owner": _name_of(pwd.getpwuid, info.st_uid),
        "group": _name_of(grp.getgrgid, info.st_gid),
        "mode": f"{stat.S_IMODE(info.st_mode):04o}",
    }
    if kind == "file":
        with open(path, encoding="utf-8", errors="replace", newline="") as stream:
            found["content"] = stream.read()
    return found


def wanted_state(item: dict[str, Any]) -> dict[str, Any]:
    """Turn one entry of the module's `files` into the shape of `current_state`."""
    if item["state"] == "absent":
        return {"state": "absent"}
    wanted: dict[str, Any] = {
        "state": item["state"],
        "owner": item["owner"],
        "group": item["group"],
        "mode": f"{int(item['mode'] or DEFAULT_MODES[item['state']], 8):04o}",
    }
    if item["state"] == "file":
        wanted["content"] = normal_content(item["content"] if item.get("secret") is None else item["secret"])
    return wanted


def diff_of(path: str, before: dict[str, Any], after: dict[str, Any], hide: str | None) -> dict[str, str]:
    """Return one entry for Ansible's diff: attributes that differ as a heading, then the text."""

    def heading(found: dict[str, Any]) -> str:
        different = [key for key in ("state", "owner", "group", "mode") if before.get(key) != after.get(key)]
        return "".join(f"# {key}: {found[key]}\n" for key in different if key in found)

    text_before, text_after = hide_secrets(before.get("content", ""), after.get("content", ""), hide)
    return {
        "before_header": path,
        "after_header": path,
        "before": heading(before) + text_before,
        "after": heading(after) + text_after,
    }


def _name_of(lookup: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)


def _stage(module: AnsibleModule, item: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Write the new text beside its place (same file system, so the move is atomic) and check it."""
    folder, name = os.path.split(item["path"])
    if not os.path.isdir(folder):
        module.fail_json(msg=f"{item['path']}: there is no directory {folder}")
    handle, staged = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    module.add_cleanup_file(staged)
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
        stream.write(wanted["content"])
        stream.flush()
        os.fsync(stream.fileno())
    _own(module, staged, item, wanted)
    if item["validate"]:
        # Split first: a path with a space stays one word.
        command = [word.replace("%s", staged) for word in shlex.split(item["validate"])]
        code, out, err = module.run_command(command)
        if code != 0:
            said = (err or out).strip().replace(staged, item["path"])
            module.fail_json(msg=f"{item['path']} was left as it is, its check failed: {said}")
    return staged


def _own(module: AnsibleModule, path: str, item: dict[str, Any], wanted: dict[str, Any]) -> None:
    try:
        owner, group = pwd.getpwnam(wanted["owner"]).pw_uid, grp.getgrnam(wanted["group"]).gr_gid
    except KeyError as error:
        module.fail_json(msg=f"{item['path']}: {error.args[0]}")
        raise  # not reached: fail_json ends the process
    os.chown(path, owner, group, follow_symlinks=False)
    os.chmod(path, int(wanted["mode"], 8))


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def main() -> None:
    """Compare every path, stage and check all new texts, then move them."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
                    "content": {"type": "str"},
                    "secret": {"type": "str", "no_log": True},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str"},
                    "validate": {"type": "str"},
                    "hide": {"type": "str"},
                },
            }
        },
        supports_check_mode=True,
    )
    work: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
    for item in module.params["files"]:
        before, after = current_state(item["path"]), wanted_state(item)
        if before != after:
            work.append((item, before, after))

    if not module.check_mode:
        # Directories first, then all checks, then the moves: a failing check leaves every file as it was.
        for item, before, after in work:
            if after["state"] == "directory":
                if before["state"] not in ("absent", "directory"):
                    module.fail_json(msg=f"{item['path']} exists and is no directory; move it away")
                os.makedirs(item["path"], exist_ok=True)
                _own(module, item["path"], item, after)
        staged = {}
        for item, before, after in work:
            if after["state"] == "file":
                if before["state"] == "directory":
                    module.fail_json(msg=f"{item['path']} is a directory, a file is wanted there; move it away")
                staged[item["path"]] = _stage(module, item, after)
        for item, _before, after in work:
            if after["state"] == "file":
                os.rename(staged[item["path"]], item["path"])
            elif after["state"] == "absent":
                _remove(item["path"])

    module.exit_json(
        changed=bool(work),
        changed_paths=[item["path"] for item, _before, _after in work],
        diff=[
            diff_of(item["path"], before, after, item["hide"] if item["secret"] is None else r"(?s).+")
            for item, before, after in work
        ],
    )


if __name__ == "__main__":
    main()
