"""Context managers that clean up and never hide the original exception."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["at_end", "on_failure"]


@contextmanager
def on_failure(close: Callable[[], object]) -> Iterator[None]:
    """Call `close` if the block raises; an error of `close` becomes a note on the first one."""
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
    """Call `close` at the end of the block, whether it raises or not; else as `on_failure`."""
    with on_failure(close):
        yield
    close()
