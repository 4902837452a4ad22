# What the scripts here share. They run in the lab, in its folder $LAB; `check` runs them all.
set -u
# Guests that were left behind would slow down what comes next.
trap 'kill $(jobs -p) 2>/dev/null' EXIT

# Everything quiet, since each character costs an exit. The lab's CPU does not let KVM see XSETBV, so that a guest with XSAVE complains whatever the VMM.
ARGS="console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests noxsave"
# What a guest of any VMM says on the lab's CPU, and when the host is busy.
EXPECTED='hrtimer: interrupt took|amd_pstate: the _CPC object is not present'

die() { echo "FAILED: $*"; exit 1; }

# For a script that wants at least $1 arguments, the first of them a kernel that is here. Else it says what is at
# its top.
needs() {
    [ $# -gt "$1" ] || { sed -n '1,/^[^#]/s/^# //p' "$0"; exit 2; }
    [ -e "guest/$2" ] || die "there is no guest/$2 here: name a kernel that scripts/lab run --guest KERNEL brought in"
}

# Waits until a line that matches $2 is in file $1, at most $3 seconds, and not without process $pid.
await() {
    local left=$(($3 * 5))
    until grep -qE "$2" "$1" 2>/dev/null; do
        left=$((left - 1))
        [ $left -gt 0 ] || { tail -n 20 "$1"; tail -n 5 /tmp/*.log; die "no \"$2\" in $1 within $3 s, or its process is gone"; }
        kill -0 "${pid:-$$}" 2>/dev/null || [ $left -lt 5 ] || left=5
        usleep 200000
    done
}

# The complaints of a guest's kernel, in its console's file $1, that are not expected; none is good. One that
# stood for a second, which is what verification takes here, says so by both its clocks: they have to agree.
complaints() {
    sed -n 's/\r$//; s/^dmesg: //p' "$1" | grep -vE "$EXPECTED" | awk '
        /clocksource: Long readout interval/ {
            apart = $(NF - 2) - $NF
            if (apart < 1000000 && apart > -1000000) next
        }
        { print }'
}

# Waits until process $1 listens at $2.
await_socket() {
    local left=600
    until [ -S "$2" ]; do
        left=$((left - 1))
        kill -0 "$1" 2>/dev/null && [ $left -gt 0 ] || die "nobody listens at $2"
        usleep 50000
    done
}

# The guest of process $pid, at /tmp/N-1.sock, moves to a new one, at /tmp/N.sock: N [ARGUMENTS of the new
# one]. Its console stays $console.
hop() {
    local to=$1 from=$(($1 - 1)) next
    shift
    drogher receive --listen unix:/tmp/$to.move --control /tmp/$to.sock --console "$console" "$@" 2>/tmp/$to.log &
    next=$!
    await_socket $next /tmp/$to.move
    timeout 300 drogher migrate --control /tmp/$from.sock --to unix:/tmp/$to.move --downtime-ms 300 --timeout-strategy ignore \
        --verify --json >/tmp/$to.json 2>&1 || {
        sed -n '/differing/p; /outcome/p' /tmp/$to.json | cut -c1-300
        sleep 2
        cat /tmp/$from.log /tmp/$to.log
        tail "$console"
        die "hop $to"
    }
    wait "$pid" || { cat /tmp/$from.log; die "the source of hop $to ended with $?"; }
    pid=$next
}

# Milliseconds of each of the first N hops.
downtimes() {
    local to
    for to in $(seq "$1"); do
        sed -n '$s/.*"downtime":{[^}]*"total-us":\([0-9]*\)[0-9]\{3\},.*/\1/p' /tmp/$to.json
    done | tr '\n' ' '
}

check_quiet() {
    complaints "$1" >/tmp/complaints
    if [ -s /tmp/complaints ]; then
        cat /tmp/complaints
        die "the guest's kernel complains"
    fi
}

# A tap that guests have one after the other, and this machine's address at it. By iproute2's `ip`, which
# the shell takes for its own unless it is named by its path.
tap() {
    bin/ip link show tap0 >/dev/null 2>&1 && return
    bin/ip tuntap add dev tap0 mode tap multi_queue && bin/ip addr add 10.0.2.2/24 dev tap0 && bin/ip link set tap0 up || die "no tap"
}
