"""Files that a user names, opened only where they are regular files.

Reading a pipe waits for a writer, and opening a device may do something. Both can have
any name, `model.safetensors` too, so what is behind a name is looked at before it is opened.
"""

import os
import stat
from io import BufferedReader
from os import PathLike
from typing import NoReturn

from mtp_verify.errors import ParamsError

__all__ = ["check_file", "check_folder", "open_file", "read_file", "read_text"]

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip

_SHOWN = 1000  # Of a path, in a message.
_AnyPath = str | PathLike[str]


def check_file(path: _AnyPath) -> None:
    """Refuse what is no regular file; links are followed.

    Raises:
        FileNotFoundError: there is nothing, or a link to nothing.
        ParamsError: names the path, and what is there.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - any path, as callers give it
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # A ValueError: it holds a zero byte.
        _refuse(path, error)
    if not stat.S_ISREG(mode):
        _refuse(path, _kind(mode))


def check_folder(path: _AnyPath) -> None:
    """Refuse a folder in which a library that reads all of it would wait, or fail without a name.

    Raises:
        ParamsError: names the entry that is neither a file nor a folder, or cannot be looked at.
    """
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    mode = entry.stat().st_mode
                except FileNotFoundError:  # A link to nothing: a reader finds no file.
                    continue
                except OSError as error:
                    _refuse(entry.path, error)
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    _refuse(entry.path, _kind(mode))
    except OSError as error:
        _refuse(path, error)


def open_file(path: _AnyPath) -> BufferedReader:
    """Open a regular file to read its bytes; raises what `check_file` does."""
    check_file(path)
    try:
        # It may have become a pipe since: opened so, none waits, and what was opened is looked at.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        _refuse(path, error)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        _refuse(path, _kind(mode))
    return os.fdopen(handle, "rb")


def read_file(path: _AnyPath, most: int) -> bytes:
    """Return the bytes of a regular file, if there are at most `most`; else ParamsError."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            message = f"{path}: found {size:,} bytes, wanted at most {most:,}"
            raise ParamsError(message, slug="file_too_large")
        return file.read(size)


def read_text(path: _AnyPath, most: int = 64 << 20) -> str:
    """Return the text of a regular file as `read_file`; ParamsError too where it is not UTF-8."""
    try:
        return read_file(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}: found byte {error.start} that is not UTF-8, wanted text"
        raise ParamsError(message, slug="not_text") from None


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _refuse(path: _AnyPath, found: object) -> NoReturn:
    if isinstance(found, OSError):
        found = f"a path that cannot be read ({found.strerror})"
    message = f"{os.fspath(path)[:_SHOWN]}: found {found}, wanted a file"
    raise ParamsError(message, slug="not_a_file")
