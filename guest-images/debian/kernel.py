"""Debian's kernels: downloaded as packages, unpacked, as uncompressed ELF, with their modules.

No version is pinned, as Debian drops old ones: a pattern names the flavour, and the newest package
that matches is taken. What was fetched once is used again without asking the network.
"""

import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

# Patterns for apt-cache, which knows no \\d. Debian 12 has both: 6.12 among its security updates.
FLAVOURS = {
    "6.1-cloud": r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$",
    "6.12-cloud": r"^linux-image-6\.12\.[0-9]+\+deb1[0-9]-cloud-amd64$",
}

# What unpacks the ELF kernel in a bzImage, by the first bytes of the payload.
UNPACKERS = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd"}


class Missing(Exception):
    """Something is not here that cannot be fetched; the text says what to do."""


def cache_dir():
    """The folder of everything that was fetched or built before."""
    base = os.environ.get("LAB_CACHE")
    if not base:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drogher-lab"
    path = Path(base)
    path.mkdir(parents=True, exist_ok=True)
    return path


def version_key(name):
    return [int(number) for number in re.findall(r"\d+", name)]


def packages(pattern):
    found = subprocess.run(
        ["apt-cache", "search", "--names-only", pattern], check=True, text=True, capture_output=True
    )
    return [line.split()[0] for line in found.stdout.splitlines()]


def newest_package(flavour):
    """The newest package of a flavour that apt knows of."""
    for tool in ("apt-cache", "apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise Missing(
                f"no {tool} here: the kernel comes from Debian's packages. On another system, unpack one "
                f"whose name matches {FLAVOURS[flavour]} to {cache_dir()}/kernels/{flavour}/PACKAGE/"
            )
    names = packages(FLAVOURS[flavour])
    if not names:
        as_root("apt-get", "update", "-qq")
        names = packages(FLAVOURS[flavour])
    if not names:
        raise Missing(f"apt knows no package {FLAVOURS[flavour]}: is this Debian 12 or newer, for amd64?")
    return max(names, key=version_key)


def as_root(*command):
    """Runs a command that needs root, by sudo if we are not."""
    sudo = []
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise Missing(f"run as root: {' '.join(command)}")
        sudo = ["sudo"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run([*sudo, *command], env=env, stdout=subprocess.DEVNULL).returncode:
        raise Missing(f"this failed: {' '.join(command)}")


def tree(flavour, newest=False):
    """The unpacked package of a flavour. With `newest`, asks apt for a newer one than is cached."""
    if flavour not in FLAVOURS:
        raise Missing(f"no kernel {flavour}; there are {', '.join(FLAVOURS)}")
    folder = cache_dir() / "kernels" / flavour
    cached = sorted(folder.glob("linux-image-*"), key=lambda path: version_key(path.name))
    if cached and not newest:
        return cached[-1]
    package = newest_package(flavour)
    final = folder / package
    if final.exists():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as tmp:
        # apt drops its rights for the download, and has to reach the folder all the same.
        os.chmod(tmp, 0o755)
        fetched = subprocess.run(["apt-get", "download", "-qq", package], cwd=tmp, capture_output=True, text=True)
        debs = list(Path(tmp).glob("*.deb"))
        if fetched.returncode or not debs:
            raise Missing(f"apt-get cannot download {package}: {fetched.stderr.strip()}")
        subprocess.run(["dpkg-deb", "-x", debs[0], f"{tmp}/tree"], check=True)
        os.rename(f"{tmp}/tree", final)
    return final


def bzimage(tree_):
    """The kernel as it is packaged."""
    return next((tree_ / "boot").glob("vmlinuz-*"))


def vmlinux(tree_):
    """The uncompressed ELF kernel in a tree's bzImage. It boots by PVH, without a decompressor."""
    out = tree_ / "vmlinux"
    if out.exists():
        return out
    image = bzimage(tree_).read_bytes()
    # Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    data = unpacked(image[start : start + length])
    if data[:4] != b"\x7fELF":
        raise Missing(f"no ELF kernel in {bzimage(tree_)}")
    part = out.with_suffix(f".part{os.getpid()}")
    part.write_bytes(data)
    part.rename(out)
    return out


def unpacked(payload):
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(payload)
    tool = UNPACKERS.get(payload[:4])
    if tool is None:
        raise Missing(f"the kernel is packed in a way that is unknown here: it begins with {payload[:4].hex()}")
    # The four bytes of length that follow the stream would make the tool complain.
    return subprocess.run([tool, "-dc"], input=payload[:-4], capture_output=True).stdout


class Modules:
    """The modules of one kernel, by name, with what they depend on."""

    def __init__(self, tree_):
        self.files = {}
        for path in sorted((tree_ / "lib" / "modules").glob("*/kernel/**/*.ko*")):
            self.files[path.name.split(".ko")[0].replace("-", "_")] = path

    def contents(self, name):
        raw = self.files[name].read_bytes()
        return lzma.decompress(raw) if self.files[name].suffix == ".xz" else raw

    def closure(self, names):
        """Name and contents of the named modules and all that they need, in load order. A name that
        the kernel has built in, or lacks, is passed over."""
        done = {}

        def add(name):
            name = name.replace("-", "_")
            if name in done or name not in self.files:
                return
            contents = self.contents(name)
            # The packages have no modules.dep; each module names its own.
            depends = re.search(rb"\0depends=([^\0]*)\0", contents).group(1).decode()
            for other in filter(None, depends.split(",")):
                add(other)
            done[name] = contents

        for name in names:
            add(name)
        return list(done.items())
