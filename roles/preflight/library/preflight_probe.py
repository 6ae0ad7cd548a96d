#!/usr/bin/python
"""Ansible module: what a host is, what it resolves and reaches. Changes nothing; judges nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_probe
short_description: Tell what a host is and what it reaches
description:
  - With O(connect) unset, describes the host, tells who holds O(ports), and starts a short-lived listener on those of
    O(listen) that nobody listens on yet, so that other hosts can try the way to a service that is not installed yet.
  - With O(connect) set, tries those connections.
  - The listener is a process of its own. It ends as soon as every expected host has connected, at the latest after
    O(listener_seconds). It is the only thing that the module leaves on a host, in check mode too, because a check that
    leaves out the connections would tell less than the run it stands for.
attributes:
  check_mode: {support: full}
options:
  address:
    description: IPv4 address by which other hosts reach this one.
    type: str
  ports:
    description: Ports whose holders are wanted.
    type: list
    elements: int
    default: []
  listen:
    description: Ports that other hosts will try.
    type: list
    elements: dict
    default: []
    suboptions:
      port: {description: TCP port., type: int, required: true}
      sources: {description: Names of the hosts that will connect., type: list, elements: str, required: true}
  listener_seconds:
    description: Longest life of the listener.
    type: int
    default: 30
  names:
    description: Host names that have to resolve.
    type: list
    elements: str
    default: []
  folders:
    description: Folders whose free space is wanted; the nearest existing parent counts.
    type: list
    elements: path
    default: []
  connect:
    description: Connections to try.
    type: list
    elements: dict
    suboptions:
      address: {description: IPv4 address., type: str, required: true}
      port: {description: TCP port., type: int, required: true}
      greet: {description: The other end is a listener of this module., type: bool, default: false}
  source:
    description: Name by which this host greets listeners.
    type: str
    default: ""
  connect_seconds:
    description: How long one connection may take.
    type: float
    default: 3
"""

EXAMPLES = r"""
- name: Describe the host
  preflight_probe:
    address: 10.0.0.5
    ports: [5432]
"""

RETURN = r"""
facts:
  description: Description of the host.
  type: dict
  returned: without connect
connections:
  description: For each of O(connect) its C(result), one of ok, refused, timeout, or the error's text.
  type: list
  elements: dict
  returned: with connect
"""

import ctypes
import glob
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

LISTENER = "preflight-probe"  # name of the listener's process; the kernel keeps 15 characters
SYNCHRONISERS = ("systemd-timesyncd", "chrony", "chronyd", "ntpsec", "ntp", "ntpd", "openntpd", "open-vm-tools")
OWN_TABLE = ("inet", "platform")


def run(*command: str) -> str:
    """Return what a command prints, or nothing when it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def read(path: str) -> str:
    """Return a file's text, or nothing when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


# --- the host itself ---------------------------------------------------------------------------------------------


def parse_os_release(text: str) -> dict[str, str]:
    """Return the fields of /etc/os-release without their quotes."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, value in pairs}


def memory_mb() -> int:
    """Return the memory that the kernel manages. Limits of a control group are left out: they may be lifted."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) // 1024 if found else 0


def disk(folder: str) -> dict[str, Any]:
    """Return the free space for ``folder`` in MB and the number of the file system that holds it."""
    path = folder
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    info = os.statvfs(path)
    return {"free_mb": info.f_bavail * info.f_frsize // 2**20, "device": os.stat(path).st_dev}


def clock() -> dict[str, Any]:
    """Tell whether somebody keeps the clock right: the kernel's own word, a running synchroniser, or the host below."""
    # adjtimex(2) with modes = 0 only reads; it returns TIME_ERROR (5) while nobody disciplines the clock.
    try:
        kernel = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512)) not in (-1, 5)
    except (OSError, AttributeError):
        kernel = False
    units = run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "--type=service")
    active = {line.split(".service", 1)[0] for line in units.splitlines()}
    running = [name for name in SYNCHRONISERS if name in active]
    container = run("systemd-detect-virt", "--container").strip()
    by = "kernel" if kernel else running[0] if running else f"{container} host" if container not in ("", "none") else ""
    return {"synchronised": bool(by), "by": by}


def address_is_local(address: str) -> bool:
    """Tell whether one of the host's interfaces has the address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def ssh_connection() -> dict[str, Any] | None:
    """Return ``{client, port}`` of the SSH connection that this process came by, ``None`` without one.

    sudo drops the variable, so the environments of the processes above are looked at.
    """
    pid = os.getpid()
    while pid > 1:
        for entry in read(f"/proc/{pid}/environ").split("\0"):
            if entry.startswith("SSH_CONNECTION="):
                fields = entry.split("=", 1)[1].split()
                if len(fields) == 4:
                    return {"client": fields[0], "port": int(fields[3])}
        parent = re.search(r"^PPid:\s+(\d+)", read(f"/proc/{pid}/status"), re.MULTILINE)
        pid = int(parent.group(1)) if parent else 0
    return None


def resolve(name: str) -> str:
    """Return nothing when the name resolves, else the resolver's words."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return str(error.strerror or error)
    return ""


def airflow_version() -> str:
    """Return the version that the link to the venv in use is named after, or nothing."""
    try:
        return os.path.basename(os.readlink("/opt/airflow/venv")).rpartition("-")[0]
    except OSError:
        return ""


# --- firewalls ---------------------------------------------------------------------------------------------------


def parse_ruleset(listing: str) -> dict[str, Any]:
    """Read the JSON listing of nftables.

    Returns ``foreign``: descriptions of input chains of others that drop or reject; ``own``: addresses by port that
    the platform's table lets in, ``None`` when it is not loaded.
    """
    try:
        objects = json.loads(listing)["nftables"]
    except (ValueError, KeyError):
        return {"foreign": [], "own": None}
    foreign: list[str] = []
    own: dict[str, list[str]] | None = None
    closing = {
        (rule["family"], rule["table"], rule["chain"])
        for rule in (entry["rule"] for entry in objects if "rule" in entry)
        if any("drop" in part or "reject" in part for part in rule.get("expr", []))
    }
    for entry in objects:
        if "table" in entry and (entry["table"]["family"], entry["table"]["name"]) == OWN_TABLE:
            own = own or {}
        elif "chain" in entry and entry["chain"].get("hook") == "input":
            chain = entry["chain"]
            key = (chain["family"], chain["table"], chain["name"])
            if key[:2] != OWN_TABLE and (chain.get("policy") == "drop" or key in closing):
                foreign.append(f"nftables chain '{' '.join(key)}' (policy {chain.get('policy', 'accept')})")
        elif "set" in entry and (entry["set"]["family"], entry["set"]["table"]) == OWN_TABLE:
            port = re.fullmatch(r"port_(\d+)", entry["set"]["name"])
            if port:
                own = own or {}
                own[port.group(1)] = [element for element in map(as_network, entry["set"].get("elem", [])) if element]
    return {"foreign": foreign, "own": own}


def as_network(element: object) -> str:
    """Return one element of a set as ``address`` or ``first-last`` or ``network/length``."""
    if isinstance(element, str):
        return element
    if isinstance(element, dict) and "prefix" in element:
        return f"{element['prefix']['addr']}/{element['prefix']['len']}"
    if isinstance(element, dict) and "range" in element:
        return "-".join(element["range"])
    return ""


def firewalls() -> dict[str, Any]:
    """Return ``parse_ruleset`` of this host, with the names of active firewall managers added to ``foreign``."""
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin")
    found = parse_ruleset(run(nft, "--json", "list", "ruleset") if nft else "")
    if read("/proc/net/ip_tables_names").strip():
        found["foreign"].append("iptables (legacy) tables")
    return found


# --- ports -------------------------------------------------------------------------------------------------------


def parse_listening(text: str) -> list[tuple[int, str, str]]:
    """Return ``(port, address, inode)`` of the listening sockets in /proc/net/tcp or tcp6."""
    sockets = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A":
            address, port = fields[1].rsplit(":", 1)
            sockets.append((int(port, 16), decode_address(address), fields[9]))
    return sockets


def decode_address(text: str) -> str:
    """Return the readable form of an address in /proc/net/tcp, which prints words in the host's byte order."""
    words = [struct.pack("=I", int(text[start : start + 8], 16)) for start in range(0, len(text), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


def socket_owners(inodes: set[str]) -> dict[str, int]:
    """Return the process that holds each socket; needs root for processes of others."""
    owners: dict[str, int] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for link in glob.iglob("/proc/[0-9]*/fd/*") if wanted else ():
        try:
            inode = wanted.get(os.readlink(link))
        except OSError:
            continue
        if inode is not None:
            owners.setdefault(inode, int(link.split("/")[2]))
    return owners


def unit_of(cgroup: str) -> str:
    """Return the innermost systemd unit in the text of /proc/<pid>/cgroup."""
    units = re.findall(r"/([^/\n]+\.(?:service|scope|socket))", cgroup)
    return units[-1] if units else ""


def port_holders(ports: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Return who listens on each of ``ports``, after ending listeners that an earlier probe left."""
    for attempt in range(2):
        found = [entry for path in ("/proc/net/tcp", "/proc/net/tcp6") for entry in parse_listening(read(path))]
        sockets = [entry for entry in found if entry[0] in ports]
        owners = socket_owners({inode for _, _, inode in sockets})
        holders: dict[str, list[dict[str, Any]]] = {}
        left_over = set()
        for port, address, inode in sockets:
            pid = owners.get(inode, 0)
            command = read(f"/proc/{pid}/comm").strip() if pid else ""
            if command == LISTENER:
                left_over.add(pid)
                continue
            unit = unit_of(read(f"/proc/{pid}/cgroup")) if pid else ""
            holders.setdefault(str(port), []).append({"address": address, "pid": pid, "command": command, "unit": unit})
        if not left_over or attempt:
            break
        for pid in left_over:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)  # the kernel closes a killed process's sockets a moment later
    return holders


# --- connections -------------------------------------------------------------------------------------------------


def start_listener(address: str, wanted: list[dict[str, Any]], seconds: int) -> dict[str, Any]:
    """Listen on the free ones of the wanted ports in a detached process.

    Returns ``ports``: where the process listens; ``busy``: where somebody else already does; ``errors`` by port.
    """
    sockets: dict[int, tuple[socket.socket, set[str]]] = {}
    result: dict[str, Any] = {"ports": [], "busy": [], "errors": {}}
    for entry in wanted:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, entry["port"]))
            listener.listen(64)
        except OSError as error:
            listener.close()
            if error.errno == 98:  # EADDRINUSE
                result["busy"].append(entry["port"])
            else:
                result["errors"][str(entry["port"])] = error.strerror
            continue
        sockets[listener.fileno()] = (listener, set(entry["sources"]))
        result["ports"].append(entry["port"])
    if sockets:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                detach(set(sockets))
                serve(sockets, time.monotonic() + seconds)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        for listener, _ in sockets.values():
            listener.close()
    return result


def detach(keep: set[int]) -> None:
    """Leave the session that started this process, and everything open but ``keep``, or SSH would wait for it."""
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue
    ctypes.CDLL(None).prctl(15, LISTENER.encode(), 0, 0, 0)  # PR_SET_NAME
    signal.alarm(60)  # whatever happens below


def serve(sockets: dict[int, tuple[socket.socket, set[str]]], deadline: float) -> None:
    """Answer greetings until every expected host has greeted every port and hung up, or until the deadline."""
    peers: dict[int, tuple[socket.socket, int]] = {}
    waiting = {number: set(sources) for number, (_, sources) in sockets.items()}
    while (waiting or peers) and time.monotonic() < deadline:
        ready, _, _ = select.select([*waiting, *peers], [], [], max(0.0, deadline - time.monotonic()))
        for number in ready:
            if number in waiting:
                peer, _ = sockets[number][0].accept()
                peers[peer.fileno()] = (peer, number)
                continue
            peer, listener = peers[number]
            try:
                greeting = peer.recv(300)
                if greeting:
                    peer.sendall(b"ok")
                    waiting.get(listener, set()).discard(greeting.decode(errors="replace"))
                    continue  # the other end hangs up first, so that the port keeps no connection in TIME_WAIT
            except OSError:
                pass
            del peers[number]
            peer.close()
        for listener in [number for number, sources in waiting.items() if not sources]:
            del waiting[listener]
            sockets[listener][0].close()


def try_connection(target: dict[str, Any], source: str, seconds: float) -> dict[str, Any]:
    """Connect once; for a listener of this module, wait for its answer."""
    started = time.monotonic()
    try:
        with socket.create_connection((target["address"], target["port"]), timeout=seconds) as connection:
            if target["greet"]:
                connection.sendall(source.encode())
                connection.recv(2)
        result = "ok"
    except TimeoutError:
        result = "timeout"
    except ConnectionRefusedError:
        result = "refused"
    except OSError as error:
        result = error.strerror or str(error)
    return {
        "address": target["address"],
        "port": target["port"],
        "result": result,
        "seconds": round(time.monotonic() - started, 3),
    }


def main() -> None:
    """Run the module."""
    begun = time.time()
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "listen": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "int", "required": True},
                    "sources": {"type": "list", "elements": "str", "required": True},
                },
            },
            "listener_seconds": {"type": "int", "default": 30},
            "names": {"type": "list", "elements": "str", "default": []},
            "folders": {"type": "list", "elements": "path", "default": []},
            "connect": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "greet": {"type": "bool", "default": False},
                },
            },
            "source": {"type": "str", "default": ""},
            "connect_seconds": {"type": "float", "default": 3.0},
        },
        supports_check_mode=True,
    )
    given = module.params
    if given["connect"] is not None:
        with ThreadPoolExecutor(max_workers=32) as pool:
            results = list(
                pool.map(
                    lambda target: try_connection(target, given["source"], given["connect_seconds"]), given["connect"]
                )
            )
        module.exit_json(changed=False, connections=results, begun=begun, ended=time.time())

    with ThreadPoolExecutor(max_workers=16) as pool:
        unresolved = dict(zip(given["names"], pool.map(resolve, given["names"]), strict=True))
    release = parse_os_release(read("/etc/os-release"))
    holders = port_holders([*given["ports"], *(entry["port"] for entry in given["listen"])])
    local = address_is_local(given["address"]) if given["address"] else None
    facts = {
        "distribution": f"{release.get('ID', 'unknown')}-{release.get('VERSION_ID', 'unknown')}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count() or 0,
        "memory_mb": memory_mb(),
        "disks": {folder: disk(folder) for folder in given["folders"]},
        "systemd": run("systemctl", "is-system-running").strip() if os.path.isdir("/run/systemd/system") else "",
        "clock": clock(),
        "address_is_local": local,
        "unresolved": {name: error for name, error in unresolved.items() if error},
        "root": os.geteuid() == 0,
        "ssh": ssh_connection(),
        "airflow_version": airflow_version(),
        "firewalls": firewalls(),
        "holders": holders,
        "listener": start_listener(given["address"], given["listen"], given["listener_seconds"])
        if local
        else {"ports": [], "busy": [], "errors": {}},
    }
    module.exit_json(changed=False, facts=facts, begun=begun, ended=time.time())


if __name__ == "__main__":
    main()
