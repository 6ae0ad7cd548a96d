#!/usr/bin/python
"""Ansible module: certificate authorities of one's own that the whole host trusts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trusted_certificates
short_description: Make a Debian host trust certificate authorities of one's own
description:
  - Splits O(bundle) into one file per certificate below C(/usr/local/share/ca-certificates) and runs
    C(update-ca-certificates) when a file was added or taken away. Files of this module that the bundle no longer
    holds are removed; other files there are left alone.
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  bundle:
    description: PEM text of one or more certificates; empty removes what the module had placed.
    type: str
    required: true
  prefix:
    description: Start of the names of the module's files.
    type: str
    default: platform
"""

EXAMPLES = r"""
- name: Trust the company's certificate authority
  trusted_certificates:
    bundle: "{{ lookup('ansible.builtin.file', 'company-ca.pem') }}"
"""

RETURN = r"""
certificates:
  description: Number of certificates in the bundle.
  type: int
  returned: always
"""

import base64
import binascii
import hashlib
import os
import re

from ansible.module_utils.basic import AnsibleModule

FOLDER = "/usr/local/share/ca-certificates"
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s+(.+?)\s+-----END CERTIFICATE-----", re.DOTALL)


def split_bundle(bundle: str, prefix: str) -> dict[str, str]:
    """Return the certificates of a PEM bundle by file name; the name holds the certificate's SHA-256 fingerprint.

    Raises ``ValueError`` for a text without a certificate and for one that is not base64.
    """
    files: dict[str, str] = {}
    for body in CERTIFICATE.findall(bundle):
        try:
            der = base64.b64decode("".join(body.split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"certificate number {len(files) + 1} is not base64: {error}") from error
        text = base64.b64encode(der).decode()
        lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
        name = f"{prefix}-{hashlib.sha256(der).hexdigest()[:16]}.crt"
        files[name] = f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
    if bundle.strip() and not files:
        raise ValueError("it holds no 'BEGIN CERTIFICATE' block")
    return files


def present_files(folder: str, prefix: str) -> dict[str, str]:
    """Return the text of the module's files by name."""
    if not os.path.isdir(folder):
        return {}
    found = {}
    for name in os.listdir(folder):
        if name.startswith(f"{prefix}-") and name.endswith(".crt"):
            with open(os.path.join(folder, name), encoding="ascii", errors="replace") as stream:
                found[name] = stream.read()
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "str", "required": True},
            "prefix": {"type": "str", "default": "platform"},
        },
        supports_check_mode=True,
    )
    prefix = module.params["prefix"]
    try:
        wanted = split_bundle(module.params["bundle"], prefix)
    except ValueError as error:
        module.fail_json(msg=f"The CA bundle cannot be used: {error}.")
    found = present_files(FOLDER, prefix)
    changed = found != wanted
    if changed and not module.check_mode:
        os.makedirs(FOLDER, mode=0o755, exist_ok=True)
        for name in found.keys() - wanted.keys():
            os.unlink(os.path.join(FOLDER, name))
        for name, text in wanted.items():
            path = os.path.join(FOLDER, name)
            with open(path, "w", encoding="ascii") as stream:
                stream.write(text)
            os.chmod(path, 0o644)
        # --fresh drops links of certificates that are gone.
        module.run_command(["update-ca-certificates", "--fresh"], check_rc=True)
    module.exit_json(
        changed=changed,
        certificates=len(wanted),
        diff={
            "before_header": FOLDER,
            "after_header": FOLDER,
            "before": "".join(f"{name}\n" for name in sorted(found)),
            "after": "".join(f"{name}\n" for name in sorted(wanted)),
        },
    )


if __name__ == "__main__":
    main()
