# Boot and move side by side with QEMU, in one run, medians of five: KERNEL [CPUS of the guests that move]. Needs
# QEMU in the lab, which scripts/bench --lab brings there.
. tests/lib.sh
needs 1 "$@"
kernel=$1 cpus=${2:-2}
args="$ARGS job=boot"
# As on a host that is to run guests: QEMU's memory is private and gets large pages anyway.
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled
firmware="-L /usr/share/qemu -L /usr/share/seabios"
centis() { cut -d' ' -f1 /proc/uptime | tr -d .; }
median() { sort -n | sed -n 3p; }
all() { tr '\n' ' ' <"$1" | sed 's/ $//'; }
ours() {
    drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --memory 256M --cmdline "$args" \
        </dev/null >/dev/null 2>&1
}
theirs() {
    # shellcheck disable=SC2086
    qemu-system-x86_64 $firmware -M microvm,rtc=on -accel kvm -cpu host -m 256 -nodefaults -no-user-config -display none \
        -no-reboot -serial stdio -kernel "guest/$kernel" -initrd "guest/$kernel.cpio" -append "$args" \
        </dev/null >/tmp/theirs.console 2>&1
    grep -q '^boot: up' /tmp/theirs.console || { cat /tmp/theirs.console; die "QEMU did not boot it"; }
}
rm -f /tmp/ours /tmp/theirs
for round in 1 2 3 4 5; do
    for which in ours theirs; do
        begin=$(centis)
        $which
        echo $((($(centis) - begin) * 10)) >>/tmp/$which
    done
done
echo "boot, start to end, ms: drogher $(median </tmp/ours) ($(all /tmp/ours)), QEMU microvm $(median </tmp/theirs) ($(all /tmp/theirs))"

# Exits of one boot: the last that was seen before the VM went.
ours &
pid=$!
exits=0
while kill -0 $pid 2>/dev/null; do
    now=$(cat /sys/kernel/debug/kvm/exits 2>/dev/null || echo 0)
    [ "$now" -gt "$exits" ] && exits=$now
    usleep 20000
done
echo "exits in a boot: $exits"
[ "$exits" -lt 13468 ] || die "more than 1.5 times Cloud Hypervisor's 8979 exits"

pid=
# Besides the usual load, one that QEMU has to send again and again: 16 MiB written ten times a second.
load="$ARGS job=load copy=16"
# Fills what is free, once. The emulator keeps its translation of a dead guest's code, and drops it piece by piece
# when the page is written again; whoever happens to get that page would pay.
wash() {
    mkdir -p /tmp/all
    mount -t tmpfs -o size=98% none /tmp/all
    dd if=/dev/zero of=/tmp/all/fill bs=1M count=$(($(sed -n 's/MemAvailable: *//p' /proc/meminfo | cut -d' ' -f1) / 1024 - 80)) 2>/dev/null
    umount /tmp/all
}
monitor() { { echo "$1"; sleep 1; } | nc 127.0.0.1 "$2" | tr -d '\r'; }
their_move() {
    local side port incoming try
    rm -f /tmp/qa /tmp/qb
    for side in a b; do
        [ $side = a ] && port=5001 incoming= || { port=5002 incoming="-incoming tcp:127.0.0.1:5003"; }
        # shellcheck disable=SC2086
        qemu-system-x86_64 $firmware -M q35 -accel kvm -cpu host -smp "$cpus" -m 256 -nodefaults -no-user-config -display none \
            -serial file:/tmp/q$side -monitor tcp:127.0.0.1:$port,server=on,wait=off $incoming \
            -kernel "guest/$kernel" -initrd "guest/$kernel.cpio" -append "$load pci=lastbus=0" &
    done
    await /tmp/qa '^beat 2' 240
    wash
    monitor 'migrate -d tcp:127.0.0.1:5003' 5001 >/dev/null
    for try in $(seq 60); do
        monitor 'info migrate' 5001 >/tmp/info
        # It says so before it knows its figures.
        grep -q 'status: completed' /tmp/info && grep -q '^total time: [1-9]' /tmp/info && break
        grep -q 'status: failed' /tmp/info && die "QEMU's migration failed"
    done
    sed -n 's/^total time: \([0-9]*\).*/\1/p' /tmp/info >>/tmp/their_total
    sed -n 's/^downtime: \([0-9]*\).*/\1/p' /tmp/info >>/tmp/their_down
    monitor quit 5001 >/dev/null
    monitor quit 5002 >/dev/null
    wait
}
our_move() {
    rm -f /tmp/ca /tmp/cb /tmp/b.move
    drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --cpus "$cpus" --memory 256M --control /tmp/a.sock \
        --console /tmp/ca --cmdline "$load" 2>/dev/null &
    await /tmp/ca '^beat 2' 240
    wash
    drogher receive --listen unix:/tmp/b.move --control /tmp/b.sock --console /tmp/cb 2>/dev/null &
    await_socket $! /tmp/b.move
    # Under the limit of downtime that QEMU has if it is not told another.
    timeout 300 drogher migrate --control /tmp/a.sock --to unix:/tmp/b.move --downtime-ms 300 --json >/tmp/move || die "our migration failed"
    sed -n '$s/.*"total-us":\([0-9]*\)[0-9]\{3\}.*/\1/p' /tmp/move >>/tmp/our_total
    sed -n '$s/.*"downtime":{[^}]*"total-us":\([0-9]*\)[0-9]\{3\},.*/\1/p' /tmp/move >>/tmp/our_down
    drogher shutdown --control /tmp/b.sock >/dev/null
    wait
}
rm -f /tmp/our_* /tmp/their_*
for round in 1 2 3 4 5; do
    our_move
    their_move
done
for what in total down; do
    ours=$(median </tmp/our_$what) theirs=$(median </tmp/their_$what)
    echo "move, $what, ms: drogher $ours ($(all /tmp/our_$what)), QEMU $theirs ($(all /tmp/their_$what)): $((100 * ours / theirs)) %"
done
