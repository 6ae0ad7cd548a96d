"""The name of this host in the inventory, as `[core] hostname_callable`."""

import os
import socket


def name() -> str:
    """Return the inventory's name: all hosts resolve it, and the UI then shows the names that playbooks use."""
    return os.environ.get("INVENTORY_HOSTNAME") or socket.gethostname()
