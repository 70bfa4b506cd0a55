"""A file is the old one or the new one, whole: under kills, full disks, other writers and readers."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import numpyro_flows.bijections
import numpyro_flows.continuous
import numpyro_flows.networks
from numpyro_flows.files.tree import load_tree, save_tree

# Writing: processes that write and read bytes, without JAX, which takes seconds to import.

ATOMIC = str(Path(numpyro_flows.__file__).parent / "files" / "atomic.py")
SCRIPT = f"""
import importlib.util, sys, threading
spec = importlib.util.spec_from_file_location("atomic", {ATOMIC!r})
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
path = sys.argv[1]
"""
ENDLESS_WRITER = (
    SCRIPT
    + """
data = sys.argv[2].encode() * int(sys.argv[3])
print("ready", flush=True)
while True:
    atomic.write_whole(path, data)
"""
)
WRITER = SCRIPT + "for _ in range(30): atomic.write_whole(path, sys.argv[2].encode() * 300_000)\n"
READER = (
    SCRIPT
    + """
for _ in range(100):
    content = open(path, "rb").read()
    assert len(content) == 300_000 and len(set(content)) == 1, (len(content), set(content))
"""
)


def test_killed_while_it_writes(tmp_path):
    """20 times at random moments: the file is the old one or the new one, whole."""
    path, rng, size = tmp_path / "file", np.random.default_rng(0), 500_000
    path.write_bytes(b"o" * size)
    for letter in "abcdefghijklmnopqrst":
        arguments = [sys.executable, "-S", "-c", ENDLESS_WRITER, str(path), letter, str(size)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = path.read_bytes()
        assert len(content) == size
        assert len(set(content)) == 1


def test_writers_and_readers_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"o" * 300_000)
    commands = [[WRITER, str(path), letter] for letter in "abcd"] + [[READER, str(path)]] * 4
    processes = [subprocess.Popen([sys.executable, "-S", "-c", *command]) for command in commands]
    assert [process.wait() for process in processes] == [0] * 8
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_links_and_failures(tmp_path):
    path, other = tmp_path / "file", tmp_path / "made by open"
    other.touch()
    save_tree(path, "test", 1)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    save_tree(tmp_path / "link", "test", 2)
    assert (tmp_path / "link").is_symlink()
    assert load_tree(path, "test", int) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(IsADirectoryError):
        save_tree(tmp_path, "test", 3)
    with pytest.raises(FileNotFoundError):
        save_tree(tmp_path / "none" / "file", "test", 3)
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "made by open"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """As a limit on the size of files does."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + SCRIPT
    script += "try: atomic.write_whole(path, b'n' * 100_000)\nexcept OSError: sys.exit(7)\n"
    assert subprocess.run([sys.executable, "-S", "-c", script, str(path)]).returncode == 7
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
