"""A Slurm cluster on this machine: every node has a hostname, an address and processes of its own.

A node is a shell in network, hostname, mount and process namespaces of its own. It reads its
commands from a pipe, so a node, with everything that runs on it, goes when this process does, and
its network goes with it: there is nothing to clean up but the directory.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

PACKAGES = ("slurm-wlm", "munge", "libpmix2", "iproute2")
NETWORK = "10.213.77"
GPUS = 8
_PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter")
ROOT = Path(__file__).parents[2]
_PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib")
_POLL_SECONDS = 0.1
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

_CONF = """
ClusterName=test
SlurmctldHost=login({network}.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
TmpFS={directory}/tmp-%n
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
NodeName={nodes} CPUs=16 RealMemory=65536 Gres=gpu:{gpus}
PartitionName=main Nodes={nodes} Default=YES
"""


def reason_to_skip() -> str | None:
    """Why no cluster can be brought up here, after trying to install what is missing."""
    if os.geteuid():
        return "a Slurm cluster for tests needs root, which this is not"
    # Slurm's own packages do not ask for the library of its PMIx plugin.
    lacks_pmix = shutil.which("apt-get") and not _PMIX.exists()
    if lacks_pmix or not all(map(shutil.which, _PROGRAMS)):
        install = f"apt-get install -qy --no-install-recommends {' '.join(PACKAGES)}"
        for command in ("apt-get update -q", install):
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            except FileNotFoundError:
                return f"Slurm is not installed, and neither is apt-get ({' '.join(PACKAGES)})"
            if done.returncode:
                return f"`{command}` failed: {' '.join(done.stderr.split())[-200:]}"
    tried = subprocess.run(_unshare("true"), capture_output=True, text=True, check=False)
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else None


def _unshare(*command: str) -> list[str]:
    kinds = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    return ["unshare", *kinds, "--mount-proc", *command]


class Node:
    """A machine: a shell in namespaces of its own.

    Args:
        name: Its hostname.
        hosts: File that is its /etc/hosts.
        environment: Of everything that runs on it.
    """

    def __init__(self, name: str, hosts: Path, environment: Mapping[str, str]):
        self.name = name
        self._shell = subprocess.Popen(
            _unshare("sh"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
            start_new_session=True,
        )
        self.do(f"hostname {name}; mount --bind {hosts} /etc/hosts; ip link set lo up; echo up")
        assert self._shell.stdout is not None
        assert self._shell.stdout.readline() == "up\n"

    @property
    def pid(self) -> int:
        """A process whose network, hostname and mounts are the node's."""
        return self._shell.pid

    def do(self, command: str) -> None:
        """Have the shell run a command."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(command + "\n")
        self._shell.stdin.flush()

    def kill(self) -> None:
        """Cut the power: every process of the node is gone at once."""
        self._shell.kill()
        self._shell.wait()
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()


class Cluster:
    """A login node, which runs the controller, and compute nodes ``n1``, ``n2``, ...

    Args:
        directory: Of its configuration, logs and spools.
        size: Number of compute nodes.
    """

    def __init__(self, directory: Path, size: int = 2):
        self.directory = directory
        self.names = [f"n{number}" for number in range(1, size + 1)]
        self._nodes: dict[str, Node] = {}
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "PMI", "OMPI"))
        } | {"SLURM_CONF": str(directory / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._configure()
            self._boot_login()
            for name in self.names:
                self.boot(name)
            self.wait_for(lambda: self._idle() == len(self.names), "the nodes to be idle", 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes.values():
            node.kill()
        self._nodes.clear()

    def _configure(self) -> None:
        last = len(self.names)
        conf = _CONF.format(
            directory=self.directory, network=NETWORK, gpus=GPUS, nodes=f"n[1-{last}]"
        )
        (self.directory / "slurm.conf").write_text(conf)
        gpus = self.directory / f"gpu[0-{GPUS - 1}]"
        (self.directory / "gres.conf").write_text(f"Name=gpu File={gpus}\n")
        for number in range(GPUS):
            os.mknod(self.directory / f"gpu{number}", 0o20666, os.makedev(1, 3))
        hosts = [f"{self._address(name)} {name}" for name in ("login", *self.names)]
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        (self.directory / "munge.key").write_bytes(os.urandom(128))
        (self.directory / "munge.key").chmod(0o400)
        for name in ("state", *(f"tmp-{node}" for node in self.names)):
            (self.directory / name).mkdir()
        # Slurm's plugin opens libpmix.so, a name that only Debian's development package brings.
        if _PMIX.is_dir():
            shutil.copytree(_PMIX, self.directory / "pmix", symlinks=True)
            (self.directory / "pmix" / "libpmix.so").symlink_to("libpmix.so.2")

    @property
    def _hosts(self) -> Path:
        return self.directory / "hosts"

    def _address(self, name: str) -> str:
        return f"{NETWORK}.{1 if name == 'login' else 10 + self.names.index(name)}"

    def _boot_login(self) -> None:
        self._nodes["login"] = login = Node("login", self._hosts, self._environment)
        here = self.directory
        login.do(
            "ip link add switch type bridge; ip link set switch up; "
            f"ip address add {self._address('login')}/24 dev switch\n"
            f"munged --force --foreground --key-file={here}/munge.key "
            f"--socket={here}/munge.socket --pid-file={here}/munge.pid "
            f"--log-file={here}/munge.log --seed-file={here}/munge.seed 2>/dev/null &\n"
            f"slurmctld -D -c > {here}/slurmctld.out 2>&1 &"
        )

    def boot(self, name: str) -> None:
        """Switch a compute node on."""
        node = Node(name, self._hosts, self._environment)
        if _PMIX.is_dir():
            node.do(f"mount --bind {self.directory}/pmix {_PMIX}")
        cable = f"ip link add {name} type veth peer name eth0 netns {node.pid}"
        self._run(f"{cable} && ip link set {name} master switch up")
        node.do(
            f"ip address add {self._address(name)}/24 dev eth0; ip link set eth0 up\n"
            f"slurmd -D -N {name} > {self.directory}/{name}.out 2>&1 &"
        )
        self._nodes[name] = node

    def kill(self, name: str) -> None:
        """Cut the power of a node."""
        self._nodes.pop(name).kill()

    def do(self, name: str, command: str) -> None:
        """Run a shell command on a node, whatever comes of it."""
        self._nodes[name].do(command)

    def _enter(self, name: str) -> list[str]:
        pid = str(self._nodes[name].pid)
        return ["nsenter", "--target", pid, "--net", "--uts", "--mount"]

    def _run(self, command: str) -> None:
        login = [*self._enter("login"), "sh", "-c", command]
        subprocess.run(login, env=self._environment, check=True)

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node.

        Args:
            command: Program and arguments.
            env: Variables beside those of this process.
            cwd: Directory to run it in.
        """
        return subprocess.run(
            [
                *(*self._enter("login"), "sh", "-c", 'cd "$0" && exec "$@"', str(cwd)),
                *map(str, command),
            ],
            env=self._environment | dict(env or {}),
            capture_output=True,
            text=True,
            check=False,
        )

    def submit(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> int:
        """Submit a job and return its number."""
        done = self.run("sbatch", "--parsable", *arguments, env=env, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def job(self, number: int) -> dict[str, str]:
        """What ``scontrol show job`` says about a job: field -> value."""
        shown = self.run("scontrol", "show", "job", "-o", str(number)).stdout.splitlines()
        words = (shown[0] if shown else "").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, number: int) -> str:
        """State of a job: PENDING, RUNNING, COMPLETED, FAILED, ..."""
        return self.job(number).get("JobState", "UNKNOWN")

    def wait(self, *numbers: int, seconds: float = 300) -> list[str]:
        """Wait until jobs have ended; their states."""
        for number in numbers:
            self.wait_for(partial(self.has_ended, number), f"job {number} to end", seconds)
        return [self.state(number) for number in numbers]

    def has_ended(self, number: int) -> bool:
        """Whether a job is over, for good."""
        return self.state(number) in _OVER

    def _idle(self) -> int:
        shown = self.run("sinfo", "--noheader", "--Node", "--format=%t").stdout.split()
        return shown.count("idle")

    @staticmethod
    def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Poll until something is so.

        Raises:
            TimeoutError: Saying what was waited for.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:g} s for {what}")
            time.sleep(_POLL_SECONDS)
