#!/usr/bin/env python3
"""Types into a guest in the lab, through a terminal, as somebody at one would.

    tests/lab/keys.py [ARGUMENTS of scripts/lab run]

The shell of a stock guest gets a sum to do, drogher is ended by its own key, and the terminal is as it was.
"""

import os
import pty
import re
import select
import signal
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 240
GUEST = "drogher run --kernel guest/6.1-cloud --initrd guest/6.1-cloud.cpio --memory 256M --cmdline"
# The second command is typed where the first has ended: the shell of the lab itself.
COMMAND = f"{GUEST} 'console=ttyS0 quiet mitigations=off'; echo left; read -r line; echo \"lab $line\"; exit 7"


class Typist:
    def __init__(self, command):
        self.said = b""
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.execv(command[0], command)

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

    def fail(self, why):
        os.kill(self.process, signal.SIGKILL)
        sys.exit(f"{self.said.decode(errors='replace')}\nFAILED: {why}")


def main():
    typist = Typist([str(ROOT / "scripts" / "lab"), "run", "--keys", *sys.argv[1:], "--", COMMAND])
    before = termios.tcgetattr(typist.terminal)
    typist.until(rb"guest# ")
    typist.type(b"echo sum $((6 * 7))\r")
    typist.until(rb"\nsum 42\r")
    # A key that would end a program without a terminal of its own.
    typist.type(b"sleep 1000\r\x03")
    typist.until(rb"guest# ")
    typist.type(b"\x01x")
    typist.until(rb"\nleft\r")
    typist.type(b"took this\r")
    typist.until(rb"\nlab took this\r")
    _, status = os.waitpid(typist.process, 0)
    if os.waitstatus_to_exitcode(status) != 7:
        sys.exit(f"FAILED: it ended with {os.waitstatus_to_exitcode(status)}, and not 7")
    if termios.tcgetattr(typist.terminal) != before:
        sys.exit("FAILED: the terminal is not as it was")
    print("\nkeys: ok")


main()
