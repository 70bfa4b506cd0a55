"""Atomic writes: a file is written completely or not at all."""

import os
import secrets
import stat


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` atomically: at any moment, and after a crash, the file is the old one or the new one.

    The bytes go to a temporary file in the same folder, are synced, and replace the old file in one step. Permissions
    are those that `open` would leave: those of the old file if there is one. A symbolic link stays; its target is
    written.

    Raises:
        OSError: as `open` and `write` do. The old file is then untouched, and the temporary one is removed.
    """
    target = os.path.realpath(path)
    mode = _mode_of_regular(target)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".numpyro_flows-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C too
        os.unlink(temporary)
        raise
    _sync_folder(folder)


def _mode_of_regular(target: str) -> int | None:
    """Permissions of the file that is to be replaced; None if there is none.

    Raises:
        OSError: if `open(target, "wb")` would, or if the target cannot be replaced, such as a device.
    """
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"expected the path of a file, got the folder {target!r}")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"expected the path of a regular file, got {target!r}")
    if not os.access(target, os.W_OK):
        raise PermissionError(f"expected a file that may be written, got {target!r}")
    return stat.S_IMODE(found.st_mode)


def _sync_folder(folder: str) -> None:
    """Make the new name survive a power failure; Windows cannot open folders and needs no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
