"""Our terminal lent to a command: keys go there, what it says comes here.

The command has a terminal of its own, at the end of `line`: nobody but us touches the user's, so that it is as
it was whatever becomes of the command.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import time
import tty

# Three of these in a row leave: Ctrl-].
ESCAPE = b"\x1d"
ESCAPES = 3
# How long what was said last is waited for.
LAST_WORDS_S = 0.3
PR_SET_PDEATHSIG = 1


class Left(Exception):
    """The user has had enough."""


def dies_with_us():
    """For a new process, before it begins: it is killed when we are gone, however that comes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kind_and_size():
    """The terminal's kind, in letters that go anywhere, rows and columns."""
    kind = os.environ.get("TERM") or "dumb"
    size = os.get_terminal_size(0)
    return kind if re.fullmatch(r"[\w.+-]+", kind) else "dumb", size.lines or 24, size.columns or 80


def open_pty():
    """A pseudo terminal as large as ours: our end, and the command's."""
    ours, theirs = os.openpty()
    _, rows, columns = kind_and_size()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return ours, theirs


def take_terminal():
    """For a new process whose standard input is a terminal: it is that of its session."""
    dies_with_us()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def raw_terminal():
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        # One that was closed needs nothing any more.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def converse(line, process, limit):
    """Until the process has ended; false if it had not after `limit` seconds. Left: by the user."""
    print(f"lab: the keys go there; Ctrl-] {ESCAPES} times ends it", file=sys.stderr, flush=True)
    end = time.monotonic() + limit if limit else None
    pressed = 0
    with raw_terminal():
        while process.poll() is None:
            if end and time.monotonic() > end:
                return False
            for source in ready([0, line], 0.1):
                data = read(source)
                if source == line:
                    say(data)
                    # The other end is closed; the process is about to end.
                    if not data:
                        time.sleep(0.05)
                    continue
                if not data:
                    # The terminal is gone.
                    raise Left
                for key in data:
                    pressed = pressed + 1 if bytes([key]) == ESCAPE else 0
                    if pressed == ESCAPES:
                        raise Left
                send(line, data)
        last = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < last and ready([line], LAST_WORDS_S) and (data := read(line)):
            say(data)
    return True


def ready(sources, seconds):
    return select.select(sources, [], [], seconds)[0]


def read(source):
    """What there is; nothing at the end of a pseudo terminal or socket."""
    try:
        return os.read(source, 65536)
    except OSError:
        return b""


def say(data):
    while data:
        data = data[os.write(1, data) :]


def send(line, data):
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(line, data) :]
