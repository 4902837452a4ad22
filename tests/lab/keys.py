#!/usr/bin/env python3
"""Types into a guest in the lab, through a terminal, as somebody at one would. Runs on the host.

    tests/lab/keys.py [ARGUMENTS of scripts/lab run]

The shell of a stock guest gets a sum to do, and drogher is ended by its own key. A second machine is left by the
lab's key, a third by a signal. Each time the terminal has to be as it was, and nothing left behind.
"""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 240
GUEST = "drogher run --kernel guest/6.1-cloud --initrd guest/6.1-cloud.cpio --memory 256M --cmdline"


class Typist:
    def __init__(self, command):
        self.said = b""
        # In the name of a file that only this machine has.
        self.folder = tempfile.mkdtemp(prefix="keys-")
        options = ["--keys", "--timeout", "480", "--log", f"{self.folder}/log"]
        command = [str(ROOT / "scripts" / "lab"), "run", *options, *sys.argv[1:], "--", command]
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.environ["TMPDIR"] = self.folder
            os.execv(command[0], command)
        self.before = self.modes()

    def modes(self):
        return termios.tcgetattr(self.terminal), fcntl.fcntl(self.terminal, fcntl.F_GETFL)

    def until(self, pattern):
        """Reads until something new matches."""
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.said)):
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            if not ready:
                self.fail(f"nothing like {pattern} within {PATIENCE} s")
            try:
                data = os.read(self.terminal, 65536)
            except OSError:
                data = b""
            if not data:
                self.fail(f"it ended before anything like {pattern}")
            self.said += data
        print(self.said[: found.end()].decode(errors="replace"), end="", flush=True)
        self.said = self.said[found.end() :]

    def type(self, keys):
        os.write(self.terminal, keys)

    def ends(self, expected):
        """With this status, the terminal as it was, no process and no file."""
        end = time.monotonic() + PATIENCE
        while (ended := os.waitpid(self.process, os.WNOHANG))[0] == 0:
            # What it says last must not keep it.
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.terminal, 65536)
                except OSError:
                    pass
            if time.monotonic() > end:
                self.fail(f"it goes on for {PATIENCE} s")
        status = os.waitstatus_to_exitcode(ended[1])
        if status != expected:
            self.fail(f"it ended with {status}, and not {expected}")
        if self.modes() != self.before:
            self.fail("the terminal is not as it was")
        if left := [line for line in processes() if self.folder in line]:
            self.fail(f"it left behind {left}")
        if left := [name for name in os.listdir(self.folder) if name != "log"]:
            self.fail(f"it left behind {left}")
        shutil.rmtree(self.folder)

    def fail(self, why):
        try:
            os.kill(self.process, signal.SIGTERM)
        except ProcessLookupError:
            pass
        sys.exit(f"{self.said.decode(errors='replace')}\nFAILED: {why}")


def processes():
    """The command line of each."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            pass


def into_a_guest():
    typist = Typist(
        f"{GUEST} 'console=ttyS0 quiet mitigations=off'; echo left; read -r line; echo \"lab $line\"; exit 7"
    )
    typist.until(rb"guest# ")
    typist.type(b"echo sum $((6 * 7))\r")
    typist.until(rb"\nsum 42\r")
    typist.until(rb"guest# ")
    # A key that ends a program, and nothing else.
    typist.type(b"echo asleep; sleep 1000\r")
    typist.until(rb"\nasleep\r")
    typist.type(b"\x03")
    typist.until(rb"guest# ")
    typist.type(b"\x01x")
    typist.until(rb"\nleft\r")
    # A key of the lab's, but not often enough.
    typist.type(b"\x1d\x1dtook this\r")
    typist.until(rb"\nlab .*took this\r")
    typist.ends(7)


def away():
    for end, status in [(lambda t: t.type(b"\x1d\x1d\x1d"), 130), (lambda t: os.kill(t.process, signal.SIGTERM), 125)]:
        typist = Typist("echo here; sleep 1000")
        typist.until(rb"here\r")
        end(typist)
        typist.ends(status)


into_a_guest()
away()
print("\nkeys: ok")
