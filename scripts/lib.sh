# Shared by the scripts: where we are, and what a build needs. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Installs Debian packages that are missing; without apt-get, or the right to use it, says what to do.
need_packages() {
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { say "please install: ${missing[*]}"; return 1; }
        sudo=(sudo)
    fi
    command -v apt-get >/dev/null || { say "please install: ${missing[*]}"; return 1; }
    say "installing: ${missing[*]}"
    "${sudo[@]}" apt-get update -qq >&2 &&
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A Rust toolchain and a C compiler (which also links).
need_build_tools() {
    if ! command -v cargo >/dev/null; then
        # shellcheck source=/dev/null
        [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    fi
    command -v cargo >/dev/null || die "no cargo found: install a Rust toolchain (1.88 or newer) first"
    if ! command -v cc >/dev/null || ! command -v c++ >/dev/null; then
        need_packages gcc g++ libc6-dev || die "a C and a C++ compiler are needed"
    fi
}

need_kvm() {
    [ -e /dev/kvm ] || die "there is no /dev/kvm here: load kvm-intel or kvm-amd, or enable nested virtualisation"
    [ -r /dev/kvm ] && [ -w /dev/kvm ] || die "/dev/kvm may not be opened: add yourself to the group kvm (sudo usermod -aG kvm \"\$USER\"), and log in again"
}

# The binary and the plugins that come with it. The packages are those of scripts/lab: other ones would be built
# with other features, and all again.
build_release() {
    cargo build --release --locked --quiet --bins --lib --examples -p drogher -p drogher-ndma \
        -p drogher-virtio-net -p drogher-wires
}

# Cargo that needs no network once everything has been fetched.
fetch() {
    cargo fetch --locked --offline --quiet 2>/dev/null || cargo fetch --locked --quiet
    export CARGO_NET_OFFLINE=true
}
