"""What the module test_hosts makes of the machine that it runs on."""

import os
import resource
import shutil
import types
from pathlib import Path
from typing import Any

import pytest

from roles.test_host.library.test_hosts import Hosts, Refused, debian_sources, runtime_settings, tree_hash

DEB822 = """\
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def test_the_controllers_mirror_serves_the_other_suite():
    assert debian_sources([DEB822], "bookworm", "trixie") == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/debian-security trixie-security main",
    ]


def test_one_line_sources_with_options():
    text = (
        "# deb http://old bookworm main\ndeb [signed-by=/k trusted=yes] https://mirror/debian bookworm main contrib\n"
    )
    assert debian_sources([text], "bookworm", "bookworm") == ["deb https://mirror/debian bookworm main"]


@pytest.mark.parametrize(
    "foreign",
    [
        "deb https://download.docker.com/linux/debian bookworm stable\n",
        "deb-src http://mirror.example/debian bookworm main\n",
        "deb http://mirror.example/debian bookworm-backports main\n",
        "deb http://mirror.example/debian sid main\n",
        "Types: deb-src\nURIs: http://x\nSuites: bookworm\nComponents: main\n",
        "",
    ],
)
def test_sources_that_the_other_suite_may_not_have_are_left_out(foreign):
    assert debian_sources([foreign], "bookworm", "trixie") == []


def test_a_source_in_two_files_counts_once():
    line = "deb http://mirror.example/debian bookworm main\n"
    assert len(debian_sources([line, DEB822, line], "bookworm", "trixie")) == 3


def settings(monkeypatch: pytest.MonkeyPatch, hard: dict[int, int] | None = None, **changes: Any) -> str:
    hard = hard or {}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (0, hard.get(number, resource.RLIM_INFINITY)))
    facts = {"hybrid_cgroups": False, "may_raise_limits": True, "systemd": True, "networks": "/n", "pid_max": 4194304}
    return runtime_settings(**{**facts, **changes})


def test_a_plain_machine_keeps_podmans_own_choices(monkeypatch):
    text = settings(monkeypatch)
    assert "runtime" not in text
    assert "cgroup_manager" not in text
    assert "default_ulimits" not in text
    assert 'network_config_dir = "/n"' in text


def test_hybrid_cgroups_need_runc_and_no_systemd_means_cgroupfs(monkeypatch):
    text = settings(monkeypatch, hybrid_cgroups=True, systemd=False)
    engine = text.split("[engine]\n")[1]
    assert 'runtime = "runc"' in engine
    assert 'cgroup_manager = "cgroupfs"' in engine


@pytest.mark.parametrize(
    ("hard", "nofile", "nproc"),
    [
        ({}, 2**20, 4194304),
        ({resource.RLIMIT_NOFILE: 20000}, 20000, 4194304),
        ({resource.RLIMIT_NPROC: 1000, resource.RLIMIT_NOFILE: 2**30}, 2**20, 1000),
    ],
)
def test_limits_are_never_above_what_this_machine_may_set(monkeypatch, hard, nofile, nproc):
    text = settings(monkeypatch, hard, may_raise_limits=False)
    assert f'default_ulimits = ["nofile={nofile}:{nofile}", "nproc={nproc}:{nproc}"]' in text.split("[network]")[0]


def tree(folder: Path) -> Path:
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/a").write_text("1")
    (folder / "etc/b").write_text("2")
    (folder / "etc/a").chmod(0o644)
    return folder


def test_the_image_is_named_by_content_and_not_by_time_or_place(tmp_path):
    first, second = tree(tmp_path / "first"), tree(tmp_path / "second")
    os.utime(second / "etc/a", (1, 1))
    assert tree_hash(["trixie"], first) == tree_hash(["trixie"], second)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "etc/a").write_text("3"),
        lambda root: (root / "etc/a").chmod(0o755),
        lambda root: (root / "etc/a").rename(root / "etc/c"),
        lambda root: (root / "etc/new").write_text(""),
    ],
    ids=["content", "mode", "name", "another file"],
)
def test_every_change_of_its_files_is_another_image(tmp_path, change):
    root = tree(tmp_path / "root")
    before = tree_hash(["trixie"], root)
    change(root)
    assert tree_hash(["trixie"], root) != before


def test_parts_do_not_run_into_each_other(tmp_path):
    assert tree_hash(["ab", "c"], tree(tmp_path / "root")) != tree_hash(["a", "bc"], tmp_path / "root")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hosts:
    """Hosts on a machine that can carry them."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/usr/bin/{name}")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**40))
    parameters = {
        "namespace": "test",
        "state_directory": str(tmp_path),
        "minimum_memory_mb": 1,
        "minimum_disk_mb": 1,
        "hosts": [{"name": "worker-1", "address": "10.0.0.1"}],
    }
    return Hosts(types.SimpleNamespace(params=parameters, check_mode=False))


def test_a_machine_that_can_carry_the_hosts_is_not_refused(hosts):
    hosts.refuse(0)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda m, h: m.setattr(os, "geteuid", lambda: 1000), "Local hosts need root on this machine"),
        (
            lambda m, h: m.setattr(shutil, "which", lambda n, path=None: None if n == "podman" else n),
            "Not installed: podman. `make bootstrap`",
        ),
        (lambda m, h: h.p.update(minimum_memory_mb=10**9), "1000000000 are needed: free some memory"),
        (lambda m, h: h.p.update(minimum_disk_mb=10**9), "1000000000 are needed: free some disk"),
        (
            lambda m, h: h.p.update(hosts=[{}] * 10**6),
            r"^7\d{6} inotify instances are needed, \d+ of them .* fs.inotify.max_user_instances=1\d{7}$",
        ),
    ],
    ids=["no root", "no podman", "little memory", "little disk", "too many hosts"],
)
def test_a_machine_that_cannot_is_told_in_one_sentence(hosts, monkeypatch, break_it, says):
    break_it(monkeypatch, hosts)
    with pytest.raises(Refused, match=says) as refusal:
        hosts.refuse(0)
    assert "\n" not in str(refusal.value)


def test_hosts_that_run_already_are_not_refused_for_the_memory_that_they_use(hosts):
    hosts.p.update(minimum_memory_mb=10**9, minimum_disk_mb=10**9)
    hosts.refuse(6)


def test_a_failing_command_shows_the_end_of_what_it_said(hosts):
    with pytest.raises(Refused, match=r"`sh -c .*` failed with exit code 3:\nline 5\nline 6") as refusal:
        hosts.run("sh", "-c", "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $n >&2; done; exit 3")
    assert "line 4" not in str(refusal.value)


def test_people_and_tests_reach_the_hosts_with_one_file(hosts, monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "run", lambda *argv, **options: "ssh-ed25519 AAAA root@image\n")
    hosts.ssh("test-worker-1")
    assert (tmp_path / "known_hosts").read_text() == "10.0.0.1,worker-1 ssh-ed25519 AAAA\n"
    config = (tmp_path / "ssh_config").read_text()
    assert config.endswith("Host worker-1\n  HostName 10.0.0.1\n")
    assert f"IdentityFile {tmp_path}/id_ed25519" in config


def test_check_mode_notes_what_it_would_do(hosts):
    hosts.check = True
    assert hosts.do("make the network") is False
    assert hosts.actions == ["make the network"]
