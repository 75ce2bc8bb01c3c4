"""Hosts that are namespaces: own network, name, accounts, /tmp, /run and /dev/shm; otherwise the machine's files.

Nothing has a name outside the lab: a host is held by one sleeping process, marked in its environment,
and is gone, with its links and mounts, when the last process in it is. So labs of different folders
never meet, and a lab whose maker was killed is found again by looking at processes alone.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "SPOTLAUNCH_LAB"  # <folder>:<host>, in the environment of whoever holds a host, and of all it starts
HOLDER = "spotlaunch-lab"  # what a holder is called in the list of processes, with its mark
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Account:
    """The unprivileged user of a lab; known in its hosts only."""

    name: str
    uid: int
    home: Path


@dataclass(frozen=True)
class Host:
    name: str
    pid: int  # of the process that holds the namespaces

    def command(self, *argv: str, account: Account | None = None, cwd: Path | str = "/") -> list[str]:
        """What runs `argv` inside, as root or `account`. No `ip netns exec`: it hides /sys/fs/cgroup from slurmd."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--ipc", "--mount"]
        if account:
            enter += [f"--setgid={account.uid}", f"--setuid={account.uid}"]
        return [*enter, "env", f"--chdir={cwd}", *argv]

    def run(self, *argv: str, account: Account | None = None, env: Mapping[str, str] | None = None) -> str:
        return must(*self.command(*argv, account=account), env=env)


def must(*argv: str, env: Mapping[str, str] | None = None) -> str:
    """What `argv` prints. Raises: RuntimeError: it failed, with what it said."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(
    folder: Path,
    addresses: Mapping[str, str],
    *,
    account: Account,
    shared: Sequence[Path],
    mounts: Mapping[str, Path],
) -> dict[str, Host]:
    """Hosts on one bridge without uplink, by name; the first carries the bridge.

    `<folder>/<host>/tmp` is a host's /tmp; `shared` paths are seen at their places, by `account` too;
    `mounts` are bound over a place of the machine.
    """
    hosts = {name: _held(folder, name) for name in addresses}
    names = _names(folder, addresses, account)
    first, *others = hosts.values()
    _link(first, others, addresses)
    for host in hosts.values():
        own = {"/run": folder / host.name / "run", **names, **mounts}
        host.run("sh", "-ec", _furnish(folder / host.name, own, sorted({*shared, folder})))
    return hosts


def find(folder: Path) -> dict[str, Host]:
    """The hosts of the lab in `folder` that are held."""
    called = f"{HOLDER} {folder}:"
    held = {pid: argv[0] for pid in _pids() if (argv := _argv(pid)) and argv[0].startswith(called)}
    return {name.removeprefix(called): Host(name.removeprefix(called), pid) for pid, name in held.items()}


def destroy(folder: Path) -> None:
    """Kill whatever runs in the hosts of `folder`; links and mounts go with the last of it.

    Marks are lost (sshd and slurmstepd write their titles over them), so the holders, by which a host is known,
    die last: who is killed in the middle of this can do it again.
    """
    machine = _namespace(os.getpid())
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        holders = {host.pid for host in find(folder).values()}
        marked = set(_marked(folder)) | holders
        inside = {_namespace(pid) for pid in marked} - {None, machine}
        doomed = marked | {pid for pid in _pids() if _namespace(pid) in inside}
        if not doomed:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"cannot kill {sorted(doomed)} of the lab in {folder}")
        for pid in (doomed - holders) or doomed:
            _kill(pid)
        time.sleep(0.02)


def _held(folder: Path, name: str) -> Host:
    for place in ("tmp", "run"):
        (folder / name / place).mkdir(parents=True, exist_ok=True)
    (folder / name / "tmp").chmod(0o1777)
    unshare = ["unshare", "--net", "--uts", "--ipc", "--mount", "--propagation=private"]
    quiet = subprocess.DEVNULL
    env = {MARK: f"{folder}:{name}", "PATH": os.environ["PATH"]}
    sleep = ["bash", "-c", 'exec -a "$0" sleep infinity', f"{HOLDER} {folder}:{name}"]
    holder = ["setsid", "--fork", *unshare, *sleep]
    subprocess.run(holder, env=env, check=True, stdin=quiet, stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (host := find(folder).get(name)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no namespaces for {name}: {' '.join(unshare)} did not last")
        time.sleep(0.005)
    return host


def _names(folder: Path, addresses: Mapping[str, str], account: Account) -> dict[str, Path]:
    hosts = "".join(f"{address} {name}\n" for name, address in addresses.items())
    user = f"{account.name}:x:{account.uid}:{account.uid}::{account.home}:/bin/bash\n"
    texts = {
        "/etc/hosts": f"127.0.0.1 localhost\n{hosts}",
        "/etc/passwd": Path("/etc/passwd").read_text() + user,
        "/etc/group": Path("/etc/group").read_text() + f"{account.name}:x:{account.uid}:\n",
    }
    (folder / "names").mkdir()
    for place, text in texts.items():
        (folder / "names" / Path(place).name).write_text(text)
    return {place: folder / "names" / Path(place).name for place in texts}


def _link(first: Host, others: Sequence[Host], addresses: Mapping[str, str]) -> None:
    ip = ["link set lo up", "link add br0 type bridge", f"addr add {addresses[first.name]}/24 dev br0"]
    ip += ["link set br0 up"]
    for host in others:
        ip += [f"link add to-{host.name} type veth peer name eth0 netns {host.pid}"]
        ip += [f"link set to-{host.name} master br0 up"]
    _ip(first, ip)
    for host in others:
        _ip(host, ["link set lo up", f"addr add {addresses[host.name]}/24 dev eth0", "link set eth0 up"])


def _ip(host: Host, commands: Sequence[str]) -> None:
    host.run("sh", "-ec", "\n".join(f"ip {command}" for command in commands))


def _furnish(own: Path, mounts: Mapping[str, Path], shared: Sequence[Path]) -> str:
    """A script: own name and mounts, an own /tmp, closed folders opened; the shared paths are put back in both."""
    lines = [f"hostname {own.name}", "mount --rbind / /mnt"]  # /mnt: the machine as it was, to bind from
    lines += [f"mount --bind {source} {place}" for place, source in mounts.items()]
    lines += ["mkdir -p /run/sshd /run/munge", f"mount --bind {own}/tmp /tmp"]
    lines += ["mount -t tmpfs tmpfs /dev/shm"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {closed}" for closed in sorted(_closed(shared))]
    for path in shared:
        make = f"mkdir -p {path}" if path.is_dir() else f"mkdir -p {path.parent}; touch {path}"
        lines += [f"[ -e {path} ] || {{ {make}; mount --bind /mnt{path} {path}; }}"]
    return "\n".join([*lines, "umount -l /mnt"])


def _closed(paths: Sequence[Path]) -> set[Path]:
    """The folders above `paths` that keep other users out, such as /root; what lies in /tmp is opened by itself."""
    ways = [[parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001] for path in paths]
    return {way[0] for way in ways if way and not way[0].is_relative_to("/tmp")}


def _marked(folder: Path) -> Iterator[int]:
    for pid in _pids():
        with suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if any(entry.startswith(f"{MARK}={folder}:".encode()) for entry in environ):
                yield pid


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _argv(pid: int) -> tuple[str, ...]:
    try:
        return tuple(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1])
    except OSError:
        return ()


def _namespace(pid: int) -> str | None:
    """Its network; None for a zombie, or one that is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
