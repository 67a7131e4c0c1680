"""What is done at the end whatever happens, without hiding what went wrong before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["at_end", "on_failure"]


@contextmanager
def on_failure(close: Callable[[], object]) -> Iterator[None]:
    """Calls `close` where the block raises; what `close` raises becomes a note on the cause."""
    try:
        yield
    except BaseException as cause:
        try:
            close()
        except Exception as error:  # noqa: BLE001 - the cause is what has to be seen
            cause.add_note(f"and while cleaning up: {type(error).__name__}: {error}")
        raise


@contextmanager
def at_end(close: Callable[[], object]) -> Iterator[None]:
    """As `on_failure`, and calls `close` where nothing was raised, too."""
    with on_failure(close):
        yield
    close()
