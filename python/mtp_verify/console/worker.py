"""A process that works for this one, and that can be ended at any time."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Worker"]


class Worker:
    """A process with a connection to it; Ctrl-C is this process's alone to handle.

    Args:
        work: called in the process with its end of the connection, then `arguments`; all of them
            can be pickled.
        arguments: of the work.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        # Not forked: the threads of torch do not live through that.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, *arguments), daemon=True)
        try:
            with _interrupts_wait():
                self._process.start()
        except BaseException:  # a Ctrl-C that waited, too
            self.stop()
            raise
        finally:
            other.close()

    def receive(self) -> Any:
        """Wait for what it sends, and return it.

        Raises:
            RuntimeError: it has died.
            Exception: what it sent, if that is an exception.
        """
        try:
            found = self.connection.recv()
        except EOFError:
            found = RuntimeError("a process that worked for this one has died; run the same again")
        if isinstance(found, Exception):
            raise found
        return found

    def stop(self) -> None:
        """End it at once."""
        self.connection.close()
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; a process that is started meanwhile never gets it."""
    # A handler set by the work itself would come too late: the imports before it take seconds.
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The first process that is started starts this one too, which lets all signals in again.
    resource_tracker.ensure_running()
    # The mask is what the new process inherits. It holds for this thread alone: another one may
    # take the signal, and then this one is interrupted all the same, unless the handler waits too.
    held: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda n, _: held.append(n)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)
