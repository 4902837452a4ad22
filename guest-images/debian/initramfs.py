"""Builds an initramfs: busybox, kernel modules, files. The same inputs give the same bytes: no times,
no owners, no inode numbers of the host are in it, and folders are read in the order of names."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from kernel import Missing, Modules, cache_dir

HERE = Path(__file__).resolve().parent


class Cpio:
    """A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self.parts, self.seen = [], set()

    def _entry(self, name, mode, data=b"", rdev=(0, 0)):
        name = name.strip("/")
        if not name or name in self.seen:
            return
        parent = os.path.dirname(name)
        if parent:
            self.dir(parent)
        self.seen.add(name)
        raw = name.encode() + b"\0"
        fields = [len(self.seen), mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(raw), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self.parts += [header + raw, b"\0" * (-(len(header) + len(raw)) % 4), data, b"\0" * (-len(data) % 4)]

    def dir(self, name):
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, executable=False):
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, name, target):
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name, major, minor):
        self._entry(name, stat.S_IFCHR | 0o600, rdev=(major, minor))

    def add(self, source, target):
        """A file of the host, with the shared libraries that it needs, or a folder of them."""
        source = Path(source)
        if source.is_dir():
            self.dir(target)
            for child in sorted(source.iterdir()):
                self.add(child, f"{target}/{child.name}")
            return
        if not source.is_file():
            raise Missing(f"no file {source}")
        self.file(target, source.read_bytes(), source.stat().st_mode & 0o100)
        for library in libraries(source):
            self.file(library, Path(library).read_bytes(), True)

    def bytes(self):
        self._entry("TRAILER!!!", 0)
        return b"".join(self.parts)


def libraries(path):
    """The shared libraries of an ELF file, as the host's loader finds them."""
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return []
    listing = subprocess.run(["ldd", str(path)], capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"(/\S+) \(0x", listing)))


def skeleton(init):
    """A root with busybox and an init, and the folders to mount on."""
    busybox = shutil.which("busybox")
    if not busybox or libraries(busybox):
        raise Missing("no static busybox here: install busybox-static")
    cpio = Cpio()
    cpio.dir("dev")
    cpio.node("dev/console", 5, 1)
    for name in ("proc", "sys", "tmp"):
        cpio.dir(name)
    cpio.file("init", init, True)
    cpio.add(busybox, "bin/busybox")
    cpio.link("bin/sh", "busybox")
    return cpio


def add_modules(cpio, tree, names):
    """Puts modules under /modules, and the list of their files, in load order, beside them."""
    loads = []
    for name, contents in Modules(tree).closure(names):
        loads.append(f"/modules/{name}.ko")
        cpio.file(loads[-1], contents)
    cpio.file("modules/list", "".join(f"{path}\n" for path in loads).encode())


def program(source):
    """One of our C programs, linked statically; built once for each contents and compiler."""
    version = subprocess.run(["cc", "--version"], check=True, capture_output=True).stdout
    name = hashlib.sha256(source.read_bytes() + version).hexdigest()[:16]
    out = cache_dir() / "programs" / f"{source.stem}-{name}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        part = f"{out}.part{os.getpid()}"
        flags = ["-std=c11", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-s"]
        subprocess.run(["cc", *flags, "-o", part, str(source)], check=True)
        os.rename(part, out)
    return out


def guest(tree, modules=(), adds=()):
    """The guest's initramfs: our init, jobs and programs. Returns the file, named by its contents."""
    cpio = skeleton((HERE / "init").read_bytes())
    cpio.add(HERE / "jobs", "jobs")
    for source in sorted((HERE / "programs").glob("*.c")):
        cpio.file(f"bin/{source.stem}", program(source).read_bytes(), True)
    # For the power button and the network card.
    add_modules(cpio, tree, ["button", "evdev", "virtio_pci", "virtio_net", *modules])
    for source, target in adds:
        cpio.add(source, target)
    data = cpio.bytes()
    out = cache_dir() / "images" / f"{hashlib.sha256(data).hexdigest()[:16]}.cpio"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_suffix(f".part{os.getpid()}")
        part.write_bytes(data)
        part.rename(out)
    return out
