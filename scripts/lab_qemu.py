"""The QEMU that the lab's machine runs in: this system's, or Debian's backport where that is too old.

In QEMU 7.2 a kernel with several CPUs now and then meets a breakpoint that it has just taken back, and panics
("Oops: int3" while it patches its code): within a dozen boots, where a hundred in QEMU 10 had none. The likely
cause is that 7.2 locks a page only after it has translated it.

The backport and the libraries that it needs are unpacked into the cache: nothing is installed, and no root is
needed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kernel import Missing, cache_dir

# The first major version that was seen to be good enough.
GOOD = 10
PACKAGE = "qemu-system-x86"
PROGRAM = "qemu-system-x86_64"


def command():
    """The program with what it needs first, and its environment."""
    system = shutil.which(PROGRAM)
    if system and major(system) >= GOOD:
        return [system], dict(os.environ)
    try:
        return unpacked(tree())
    except Missing as missing:
        if not system:
            raise
        print(f"lab: QEMU {major(system)} may lose guests with several CPUs, and there is none newer: {missing}", file=sys.stderr)
        return [system], dict(os.environ)


def major(program):
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)", said)
    return int(found.group(1)) if found else 0


def unpacked(root):
    libraries = root / "usr/lib/x86_64-linux-gnu"
    share = root / "usr/share"
    env = os.environ | {
        "QEMU_MODULE_DIR": str(libraries / "qemu"),
        "LD_LIBRARY_PATH": os.pathsep.join([str(libraries), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep),
    }
    return [str(root / "usr/bin" / PROGRAM), "-L", str(share / "qemu"), "-L", str(share / "seabios")], env


def tree():
    """The unpacked backport; fetched if need be."""
    final = cache_dir() / "qemu" / release()
    if final.exists():
        return final
    print("lab: fetching a newer QEMU from Debian's backports, for the lab alone", file=sys.stderr)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".fetch-") as folder:
        # apt drops its rights for the download, and has to reach the folder all the same.
        os.chmod(folder, 0o755)
        tmp = Path(folder)
        apt = private_apt(tmp)
        run([*apt, "update", "-qq"])
        plan = run([*apt, "install", "--simulate", "--no-install-recommends", "-t", f"{release()}-backports", PACKAGE])
        wanted = re.findall(r"^Inst (\S+) (?:\[[^\]]*\] )?\((\S+)", plan, re.MULTILINE)
        debs = tmp / "debs"
        debs.mkdir(mode=0o755)
        run([*apt, "download", "-qq", *(f"{name}={version}" for name, version in wanted)], debs)
        for deb in debs.glob("*.deb"):
            run(["dpkg-deb", "-x", str(deb), str(tmp / "tree")])
        if not (tmp / "tree/usr/bin" / PROGRAM).exists():
            raise Missing(f"{PACKAGE} of {release()}-backports has no {PROGRAM}")
        os.rename(tmp / "tree", final)
    return final


def release():
    """The code name of a Debian that has a backport for us."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        text = ""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)', text, re.MULTILINE))
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME") or not shutil.which("apt-get"):
        raise Missing(f"please install QEMU {GOOD} or newer ({PACKAGE}, named as in Debian)")
    return fields["VERSION_CODENAME"]


def private_apt(tmp):
    """An apt-get with the system's mirrors and their backports, and state of its own."""
    targets = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    known = {tuple(line.split()) for line in targets.splitlines() if len(line.split()) == 3}
    lines = {f"deb {uri} {suite} main" for uri, suite, part in known if part == "main" and suite.startswith(release())}
    mirrors = sorted({uri for uri, suite, part in known if suite == release() and part == "main"})
    if not mirrors:
        raise Missing(f"apt knows no mirror of {release()}: run apt-get update, or install QEMU {GOOD} or newer")
    lines.add(f"deb {mirrors[0]} {release()}-backports main")
    (tmp / "sources.list").write_text("\n".join(sorted(lines)) + "\n")
    for name in ("lists/partial", "cache/archives/partial"):
        (tmp / name).mkdir(parents=True)
    own = {
        "Dir::Etc::sourcelist": tmp / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": tmp / "lists",
        "Dir::Cache": tmp / "cache",
        "Debug::NoLocking": "true",
    }
    return ["apt-get", *(word for key, value in own.items() for word in ("-o", f"{key}={value}"))]


def run(words, cwd=None):
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"this failed: {' '.join(words)}: {done.stderr.strip()[-500:]}")
    return done.stdout
