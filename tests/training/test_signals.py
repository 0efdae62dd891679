"""A signal to all processes of a rank reaches the rank and nothing that it has started."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# What Megatron does: a server process for the results of its writers, asked after the signal.
RANK = """
import multiprocessing, signal, subprocess, sys
from megatron_sbp.training import signals

def main():
    signals.receive_alone()
    got = []
    if "handler" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: got.append("TERM"))
    queue = multiprocessing.get_context("spawn").Manager().Queue()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    print("ready", flush=True)
    while not got:
        signal.sigtimedwait([], 0.01)
    queue.put("answer")
    assert child.communicate(b"alive")[0] == b"alive"
    print(*got, queue.get(), flush=True)

if __name__ == "__main__":
    main()
"""


def start(tmp_path_factory: pytest.TempPathFactory, *arguments: str) -> "subprocess.Popen[str]":
    script = tmp_path_factory.mktemp("rank") / "rank.py"
    script.write_text(RANK)
    process = subprocess.Popen(
        [sys.executable, script, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def signal_all(process: "subprocess.Popen[str]", number: int) -> None:
    """Signal every process of the session, as Slurm does."""
    subprocess.run(["pkill", f"-{int(number)}", "--session", str(process.pid)], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_handler_of_term_runs_and_helpers_go_on(
    tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    process = start(tmp_path_factory, "handler")
    signal_all(process, number)
    assert process.communicate()[0] == "TERM answer\n"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_without_a_handler_the_rank_ends_as_of_term(
    tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    process = start(tmp_path_factory)
    process.send_signal(number)
    assert process.wait() == -signal.SIGTERM
    signal_all(process, signal.SIGKILL)


FAILED = """
import multiprocessing, time
from megatron_sbp.training import signals

signals.receive_alone()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), daemon=True)
child.start()
print(child.pid, flush=True)
raise RuntimeError("the rank's own error")
"""


def test_an_error_ends_the_rank_and_what_reads_its_data() -> None:
    """Torch's workers are such children, and an exception can hold on to their loader."""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", FAILED],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert said.returncode == 1 and "the rank's own error" in said.stderr
    assert not Path(f"/proc/{said.stdout.strip()}").exists()
