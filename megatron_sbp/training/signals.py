"""The signals that tell a run to end, kept from everything but the rank itself.

Slurm, like a terminal, signals every process of a rank: also those that Megatron starts to write
checkpoints and to read data. These die of it, and the checkpoint that the rank saves next dies with
them. So all threads and children are started with TERM and USR1 blocked, and one thread waits for
them and hands them to the handler of the rank (Megatron's, with ``--exit-signal-handler``).
"""

import atexit
import multiprocessing
import signal
import threading
from multiprocessing import resource_tracker

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def receive_alone() -> None:
    """Keep TERM and USR1 from what this process starts; both then end this process as TERM would.

    Call it first of all: a child, and a thread, blocks what the thread blocks that starts it.
    """
    resource_tracker.ensure_running()  # when multiprocessing first needs it, it unblocks TERM
    atexit.register(_end_children)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_receive, name="signals", daemon=True).start()


def _receive() -> None:
    signal.sigwait(_SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.raise_signal(signal.SIGTERM)


def _end_children() -> None:
    """End what reads data, which an exception may leave at work.

    At exit multiprocessing sends TERM to it, and waits: for ever, where that is blocked.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it a failure
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
