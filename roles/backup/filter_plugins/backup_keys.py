"""Ansible filters: do the inventory's keys read what is in the backup?"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.parsing.vault import AnsibleVaultError, VaultLib, VaultSecret
from cryptography.fernet import Fernet, InvalidToken, MultiFernet


def backup_key_problems(kept: str, passphrase: str, keys: Mapping[str, str]) -> list[dict[str, str]]:
    """Compare the backup's encrypted copy of the keys (base64 of an ansible-vault file, or "") with the inventory's.

    Only the Fernet keys must be the same: connections and variables are stored under them. Tokens signed with the other
    two end with a restore anyway. Returns [{"problem", "fix"}].
    """
    if not kept:
        return []
    try:
        text = VaultLib([("default", VaultSecret(passphrase.encode()))]).decrypt(base64.b64decode(kept))
    except AnsibleVaultError:
        return [
            {
                "problem": "backup_passphrase does not open the backup's copy of the keys (keys.vault)",
                "fix": "put the passphrase of the time of the backup into the inventory's secrets",
            }
        ]
    wanted = str(json.loads(text).get("airflow_fernet_key", "")).split(",")
    if set(wanted) <= set(str(keys.get("airflow_fernet_key", "")).split(",")):
        return []
    return [
        {
            "problem": "airflow_fernet_key is not the one of the backup: no connection could be decrypted",
            "fix": "take it from the backup's keys.vault: ansible-vault view, with backup_passphrase",
        }
    ]


def backup_undecryptable(entries: Sequence[Sequence[str]], fernet_keys: str) -> list[str]:
    """Return the names of those [name, text] whose text none of the keys ("new,old") decrypts."""
    fernet = MultiFernet([Fernet(key.strip().encode()) for key in fernet_keys.split(",")])
    names = []
    for name, text in entries:
        try:
            fernet.decrypt(text.encode())
        except InvalidToken:
            names.append(name)
    return sorted(set(names))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"backup_key_problems": backup_key_problems, "backup_undecryptable": backup_undecryptable}
