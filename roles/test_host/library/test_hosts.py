#!/usr/bin/python
"""Make, keep or remove a set of systemd containers that stand in for virtual machines."""

from __future__ import annotations

DOCUMENTATION = r"""
module: test_hosts
short_description: Make, keep or remove local hosts
description:
  - Takes the whole wanted set of hosts and makes it so, in one call - image, network, cache, SSH key, containers.
  - Writes nothing outside I(state_directory) and podman's storage; podman's settings go into a file of its own there.
options:
  state: {description: Whether the hosts exist., choices: [present, absent, purged], default: present}
  namespace: {description: Prefix of all names., required: true}
  suite: {description: Debian suite of the image., required: true}
  packages: {description: Debian packages in the image., type: list, elements: str, required: true}
  customize: {description: Directory whose tree is copied into the image., type: path, required: true}
  network_prefix: {description: First three bytes of the /24 network., required: true}
  hosts: {description: Name and address of each host., type: list, elements: dict, default: []}
  state_directory: {description: Where the key and the settings are kept., type: path, required: true}
  volumes:
    description: Folders of I(state_directory) that are mounted into a host, C({host - {folder - path in the host}}).
    type: dict
    default: {}
  keep: {description: With state absent - keep I(state_directory) and what is in it., type: bool, default: false}
  minimum_memory_mb: {description: Floor of available memory in MiB., type: int, required: true}
  minimum_disk_mb: {description: Floor of free disk in MiB., type: int, required: true}
"""
EXAMPLES = r"""
- name: Make two hosts
  test_hosts:
    namespace: local
    suite: trixie
    packages: [systemd, openssh-server, python3]
    customize: files/image
    network_prefix: "10.89.77"
    hosts: [{name: worker-1, address: 10.89.77.31}]
    state_directory: .local/local
    minimum_memory_mb: 6000
    minimum_disk_mb: 15000
"""
RETURN = r"""
actions: {description: What was (in check mode - would be) done., type: list, elements: str, returned: always}
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

CAP_SYS_RESOURCE = 24
BOOT_SECONDS = 90
# What systemd and its services watch in one host: 6, and one to spare.
INOTIFY_INSTANCES = 7
INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
IMAGE = "localhost/airflow-test-host"
CACHE = "airflow-test-host-cache"
NEEDED = ("podman", "mmdebstrap", "iptables", "ssh-keygen", "aardvark-dns")  # netavark drives iptables
# SYS_ADMIN: units' sandboxing; NET_ADMIN: the firewall; SYS_PTRACE: PrivateUsers beside ProtectProc, as redis has it.
CAPABILITIES = "SYS_ADMIN,NET_ADMIN,SYS_PTRACE"


class Refused(Exception):
    """The controller cannot carry the hosts; the text says why and what to do."""


def debian_sources(texts: list[str], codename: str, suite: str) -> list[str]:
    """Turn the controller's apt sources into one-line sources of another suite.

    Takes the texts of ``sources.list`` and deb822 ``*.sources`` files. Keeps only Debian's own suites of component
    ``main``: a third party's repository may not have the wanted suite.
    """
    pockets = {codename + pocket: suite + pocket for pocket in ("", "-updates", "-security")}
    found: list[str] = []
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", paragraph, re.MULTILINE))
            if "deb" in fields.get("Types", "").split() and "main" in fields.get("Components", "").split():
                found += [
                    f"deb {uri} {pockets[name]} main"
                    for uri in fields.get("URIs", "").split()
                    for name in fields.get("Suites", "").split()
                    if name in pockets
                ]
        for uri, name, components in re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", text, re.MULTILINE):
            if name in pockets and "main" in components.split():
                found.append(f"deb {uri} {pockets[name]} main")
    return list(dict.fromkeys(found))


def runtime_settings(
    *, hybrid_cgroups: bool, may_raise_limits: bool, systemd: bool, networks: str, pid_max: int
) -> str:
    """Return a containers.conf for this machine; the conditions are facts about its kernel and privileges."""
    lines = ["[containers]"]
    if not may_raise_limits:
        # Podman's own defaults are above the hard limits, and without CAP_SYS_RESOURCE no container would start.
        # Podman lowers its own limits to these ceilings at start, so they bound what it can hand on as well.
        ceilings = {"nofile": (resource.RLIMIT_NOFILE, 2**20), "nproc": (resource.RLIMIT_NPROC, pid_max)}
        ulimits = []
        for name, (number, ceiling) in ceilings.items():
            hard = resource.getrlimit(number)[1]
            limit = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
            ulimits.append(f'"{name}={limit}:{limit}"')
        lines.append(f"default_ulimits = [{', '.join(ulimits)}]")
    lines += ["[network]", f'network_config_dir = "{networks}"', "[engine]", 'events_logger = "file"']
    if hybrid_cgroups:
        lines.append('runtime = "runc"')  # crun refuses a hybrid cgroup tree
    if not systemd:
        lines.append('cgroup_manager = "cgroupfs"')
    return "\n".join(lines) + "\n"


def inotify_instances() -> int:
    """Return how many inotify instances the processes of this machine have open."""
    found = 0
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # its process has ended meanwhile
            found += os.readlink(link) == "anon_inode:inotify"
    return found


def tree_hash(parts: list[str], root: Path) -> str:
    """Hash the texts and the files under ``root``: what the image is made from."""
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_mode & 0o777:o}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Hosts:
    """The wanted hosts, and what podman has."""

    def __init__(self, module: AnsibleModule) -> None:
        """Read the parameters; nothing is changed."""
        p = module.params
        self.check, self.p = module.check_mode, p
        self.label = f"airflow-test-hosts={p['namespace']}"
        self.network_name = f"{p['namespace']}-hosts"
        self.directory = Path(p["state_directory"])
        self.actions: list[str] = []
        self.environment = {**os.environ, "CONTAINERS_CONF": str(self.directory / "containers.conf")}

    def run(self, *argv: str, fail: bool = True, stdin: str | None = None) -> str:
        """Run a command and return its stdout; raise with its stderr where it fails."""
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False, input=stdin)
        if fail and done.returncode:
            tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise Refused(f"`{' '.join(argv[:3])} …` failed with exit code {done.returncode}:\n{tail}")
        return done.stdout if not done.returncode else ""

    def do(self, what: str) -> bool:
        """Note an action; tell whether to carry it out."""
        self.actions.append(what)
        return not self.check

    # --- what stands -------------------------------------------------------------------------------------------------

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return our containers by name."""
        listed = self.run("podman", "ps", "--all", "--format", "json", "--filter", f"label={self.label}", fail=False)
        return {c["Names"][0]: c for c in json.loads(listed or "[]")}

    def settings(self) -> None:
        """Write podman's settings for this machine into our own file."""
        status = Path("/proc/self/status").read_text()
        effective = int(re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
        text = runtime_settings(
            hybrid_cgroups=not Path("/sys/fs/cgroup/cgroup.controllers").exists(),
            may_raise_limits=bool(effective >> CAP_SYS_RESOURCE & 1),
            systemd=Path("/run/systemd/system").exists(),
            networks=str(self.directory / "networks"),
            pid_max=int(Path("/proc/sys/kernel/pid_max").read_text()),
        )
        target = self.directory / "containers.conf"
        if not target.exists() or target.read_text() != text:
            # Needed even to look, so it is written in check mode too: it is this module's own scratch file.
            (self.directory / "networks").mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def refuse(self, running: int) -> None:
        """Raise with one clear sentence where this machine cannot carry the hosts."""
        if os.geteuid():
            raise Refused("Local hosts need root on this machine: run as root, or give this user passwordless sudo.")
        path = os.environ["PATH"] + ":/usr/sbin:/usr/lib/podman"
        missing = [name for name in NEEDED if not shutil.which(name, path=path)]
        if missing:
            raise Refused(
                f"Not installed: {', '.join(missing)}. `make bootstrap` installs them from Debian's packages."
            )
        if running:
            return
        meminfo = Path("/proc/meminfo").read_text()
        memory = int(re.search(r"^MemAvailable:\s*(\d+)", meminfo, re.MULTILINE)[1]) // 1024  # type: ignore[index]
        if memory < self.p["minimum_memory_mb"]:
            raise Refused(
                f"{memory} MiB of memory are available and {self.p['minimum_memory_mb']} are needed: free some memory, "
                "or make fewer hosts and lower test_host_minimum_memory_mb."
            )
        storage = Path("/var/lib/containers")
        disk = shutil.disk_usage(storage if storage.exists() else storage.parent).free // 2**20
        if disk < self.p["minimum_disk_mb"]:
            raise Refused(
                f"{disk} MiB of disk are free under {storage} and {self.p['minimum_disk_mb']} are needed: free some "
                "disk (`make purge` removes the image and the package cache)."
            )
        used, limit = inotify_instances(), int(INOTIFY_LIMIT.read_text())
        wanted = used + INOTIFY_INSTANCES * len(self.p["hosts"])
        if wanted > limit:
            raise Refused(
                f"{wanted} inotify instances are needed, {used} of them in use now, and this machine allows {limit}; "
                f"systemd would come up degraded: sysctl fs.inotify.max_user_instances={wanted * 2}"
            )

    # --- what is made ------------------------------------------------------------------------------------------------

    def key(self) -> None:
        """Make the SSH key of this set of hosts."""
        key = self.directory / "id_ed25519"
        if not key.exists() and self.do("make the SSH key"):
            self.run(
                "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"test-hosts-{self.p['namespace']}", "-f", str(key)
            )

    def image(self) -> str:
        """Return the image's reference, after building it where it is not there."""
        release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
        lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
        texts = [f.read_text() for f in lists if f.is_file() and f.suffix in (".list", ".sources")]
        suite = self.p["suite"]
        sources = debian_sources(texts, release.get("VERSION_CODENAME", ""), suite)
        settings = self.run("apt-config", "dump")
        proxies = "".join(f"{line}\n" for line in settings.splitlines() if re.match(r"Acquire::https?::Proxy", line))
        certificates = sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt"))
        customize = Path(self.p["customize"])
        parts = [suite, *self.p["packages"], *sources, proxies, *(c.read_text() for c in certificates)]
        reference = f"{IMAGE}:{suite}-{tree_hash(parts, customize)}"
        if self._image_exists(reference):
            return reference
        if not self.do(f"build the image {reference}"):
            return reference
        with tempfile.TemporaryDirectory(prefix="test-host-image-") as scratch:
            tree, archive = Path(scratch, "tree"), Path(scratch, "image.tar")
            shutil.copytree(customize, tree)
            tree.chmod(0o755)
            anchors = tree / "usr/local/share/ca-certificates"
            anchors.mkdir(parents=True, exist_ok=True)
            for certificate in certificates:
                shutil.copy(certificate, anchors / certificate.name)
            apt = tree / "etc/apt/apt.conf.d"
            apt.mkdir(parents=True, exist_ok=True)
            (apt / "90controller").write_text(proxies)
            lines = Path(scratch, "sources")
            lines.write_text("\n".join(sources) + "\n")
            hooks = [
                f"copy-in {' '.join(str(p) for p in tree.iterdir())} /",
                'chroot "$1" update-ca-certificates --fresh >/dev/null 2>&1',
                'chroot "$1" sh /etc/test-host-setup',
            ]
            argv = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(self.p['packages'])}"]
            argv += [f"--customize-hook={hook}" for hook in hooks]
            argv += [f"--aptopt={line}" for line in proxies.splitlines()]
            argv += [suite, str(archive), *([str(lines)] if sources else [])]
            self.run(*argv)
            self.run("podman", "import", "--quiet", str(archive), reference)
        return reference

    def _image_exists(self, reference: str) -> bool:
        listed = json.loads(self.run("podman", "image", "ls", "--format", "json", fail=False) or "[]")
        return any(reference in (image.get("Names") or []) for image in listed)

    def network(self) -> None:
        """Make the network where it is not there."""
        name = self.network_name
        there = self.run("podman", "network", "ls", "--quiet", "--filter", f"name=^{name}$").strip()
        if not there and self.do("make the network"):
            subnet = f"{self.p['network_prefix']}.0/24"
            self.run("podman", "network", "create", "--label", self.label, "--subnet", subnet, name)

    def volumes(self, host: str) -> list[str]:
        """Make the folders that a host gets from this machine; return podman's options for them."""
        options = []
        for folder, path in self.p["volumes"].get(host, {}).items():
            source = self.directory / folder
            source.mkdir(exist_ok=True, mode=0o700)
            options += ["--volume", f"{source}:{path}"]
        return options

    def start(self, host: dict[str, str], name: str, image: str) -> None:
        """Run one container and give it our SSH key."""
        # fmt: off
        self.run(
            "podman", "run", "--detach", "--name", name, "--hostname", host["name"], "--label", self.label,
            "--network", f"{self.network_name}:ip={host['address']}", "--no-hosts", "--systemd=always",
            "--shm-size=256m", "--cap-add", CAPABILITIES, "--volume", f"{CACHE}:/var/cache/uv",
            *self.volumes(host["name"]), image, "/sbin/init",
        )
        # fmt: on
        # What cloud-init does at the first boot of a virtual machine: its own name, and who may log in.
        public = (self.directory / "id_ed25519.pub").read_text()
        script = (
            'echo "127.0.1.1 $(hostname)" >> /etc/hosts; umask 077; mkdir -p ~deploy/.ssh; '
            "cat > ~deploy/.ssh/authorized_keys; chown -R deploy: ~deploy/.ssh"
        )
        self.run("podman", "exec", "--interactive", name, "sh", "-c", script, stdin=public)

    def wait(self, name: str) -> None:
        """Wait until systemd says ``running``; name the failed units where it does not."""
        end, state = time.monotonic() + BOOT_SECONDS, ""
        while time.monotonic() < end:
            state = subprocess.run(
                ["podman", "exec", name, "systemctl", "is-system-running", "--wait"],
                env=self.environment, capture_output=True, text=True, check=False, timeout=BOOT_SECONDS,
            ).stdout.strip()  # fmt: skip
            if state == "running":
                return
            if state == "degraded":
                failed = self.run("podman", "exec", name, "systemctl", "--failed", "--plain", "--no-legend", fail=False)
                raise Refused(f"{name}: systemd is degraded, failed units:\n{failed}")
            time.sleep(0.3)  # systemd does not answer yet; there is no event to wait on before its socket exists
        raise Refused(f"{name}: systemd is '{state}' and not running after {BOOT_SECONDS} s")

    def ssh(self, first: str) -> None:
        """Write how ssh reaches the hosts; their key comes over podman, not over the network that it proves."""
        key = " ".join(self.run("podman", "exec", first, "cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
        known = "".join(f"{host['address']},{host['name']} {key}\n" for host in self.p["hosts"])
        (self.directory / "known_hosts").write_text(known)
        # `ssh -F .local/<namespace>/ssh_config worker-1`, for people and for the tests.
        config = (
            f"Host *\n  User deploy\n  IdentityFile {self.directory}/id_ed25519\n"
            f"  UserKnownHostsFile {self.directory}/known_hosts\n"
            f"  ControlMaster auto\n  ControlPath {self.directory}/%h.ssh\n  ControlPersist 10m\n"
        )
        config += "".join(f"Host {host['name']}\n  HostName {host['address']}\n" for host in self.p["hosts"])
        (self.directory / "ssh_config").write_text(config)

    def present(self) -> None:
        """Make all hosts."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.geteuid():
            self.refuse(0)
        self.settings()
        standing = self.containers() if shutil.which("podman") else {}
        self.refuse(sum(c["State"] == "running" for c in standing.values()))
        wanted = {f"{self.p['namespace']}-{host['name']}": host for host in self.p["hosts"]}
        self.key()
        image = self.image()
        self.network()
        surplus = [name for name, c in standing.items() if name not in wanted or c["Image"] != image]
        missing = [name for name in wanted if name not in standing or name in surplus]
        stopped = [name for name in wanted if name not in missing and standing[name]["State"] != "running"]
        for name in surplus:
            self.do(f"remove {name}")
        for name in missing:
            self.do(f"make {name}")
        for name in stopped:
            self.do(f"start {name}")
        if self.check:
            return
        if surplus:
            self.run("podman", "rm", "--force", "--time", "0", *surplus)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: self.start(wanted[n], n, image), missing))
            list(pool.map(lambda n: self.run("podman", "start", n), stopped))
            list(pool.map(self.wait, missing + stopped))
        if missing or not (self.directory / "ssh_config").exists():
            self.ssh(next(iter(wanted)))

    def absent(self, purge: bool) -> None:
        """Remove all that `present` made; the image and the cache only on purge."""
        if self.directory.exists() and shutil.which("podman"):
            self.settings()
            standing = self.containers()
            for name in standing:
                self.do(f"remove {name}")
            if standing and not self.check:
                self.run("podman", "rm", "--force", "--time", "0", *standing)
            if self.run("podman", "network", "ls", "--quiet", "--filter", f"label={self.label}").strip() and self.do(
                "remove the network"
            ):
                self.run("podman", "network", "rm", self.network_name)
        if purge:
            if self.run("podman", "volume", "ls", "--quiet", "--filter", f"name=^{CACHE}$").strip() and self.do(
                "remove the package cache"
            ):
                self.run("podman", "volume", "rm", CACHE)
            images = self.run("podman", "image", "ls", "--quiet", IMAGE).split()
            if images and self.do("remove the image"):
                self.run("podman", "image", "rm", *set(images))
        if not self.p["keep"] and self.directory.exists() and self.do(f"remove {self.directory}"):
            shutil.rmtree(self.directory)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["present", "absent", "purged"], "default": "present"},
            "namespace": {"required": True},
            "suite": {"required": True},
            "packages": {"type": "list", "elements": "str", "required": True},
            "customize": {"type": "path", "required": True},
            "network_prefix": {"required": True},
            "hosts": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"required": True}, "address": {"required": True}},
            },
            "state_directory": {"type": "path", "required": True},
            "volumes": {"type": "dict", "default": {}},
            "keep": {"type": "bool", "default": False},
            "minimum_memory_mb": {"type": "int", "required": True},
            "minimum_disk_mb": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    hosts = Hosts(module)
    try:
        if module.params["state"] == "present":
            hosts.present()
        else:
            hosts.absent(purge=module.params["state"] == "purged")
    except Refused as refusal:
        module.fail_json(msg=str(refusal), actions=hosts.actions)
    module.exit_json(changed=bool(hosts.actions), actions=hosts.actions)


if __name__ == "__main__":
    main()
