# A guest moves at N points spread over its boot: KERNEL CPUS N [FIRST]. Each time another guest is
# stopped at its point, moved, and goes on; it has to end as any other, without a complaint.
. tests/lib.sh
needs 3 "$@"
kernel=$1 cpus=$2 count=$3 first=${4:-1}
# The whole boot, in milliseconds: measured, so that the points cover it on any machine.
begin=$(cut -d' ' -f1 /proc/uptime | tr -d .)
sh tests/boot.sh "$kernel" "$cpus" || die "it does not boot at all"
length=$((($(cut -d' ' -f1 /proc/uptime | tr -d .) - begin) * 10))
for point in $(seq "$first" $((first + count - 1))); do
    at=$((length * point / (first + count)))
    rm -f /tmp/console /tmp/*.sock /tmp/*.move
    drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --cpus "$cpus" --memory 256M \
        --control /tmp/a.sock --console /tmp/console --cmdline "$ARGS job=boot" 2>/tmp/a.log &
    source=$!
    await_socket $source /tmp/a.sock
    # The socket is there before the guest is.
    until drogher status --control /tmp/a.sock 2>/dev/null | grep -q '^guest *running'; do
        kill -0 $source 2>/dev/null || break
        usleep 5000
    done
    usleep $((at * 1000))
    # It may have ended by itself, at the last of the points.
    drogher pause --control /tmp/a.sock 2>/tmp/pause || { grep -q 'boot:' /tmp/console && continue; cat /tmp/pause; die "pause at $at ms"; }
    drogher receive --listen unix:/tmp/b.move --control /tmp/b.sock --console /tmp/console 2>/tmp/b.log &
    destination=$!
    await_socket $destination /tmp/b.move
    if ! timeout 120 drogher migrate --control /tmp/a.sock --to unix:/tmp/b.move --verify --json >/tmp/move 2>&1; then
        # Its end and the pause may cross.
        grep -q '^boot: up' /tmp/console && grep -q 'Cannot reach' /tmp/move && wait $source && { kill $destination; continue; }
        tail -n 1 /tmp/move | cut -c1-400
        die "the move at $at ms"
    fi
    wait $source || { cat /tmp/a.log; die "the source of the move at $at ms"; }
    drogher resume --control /tmp/b.sock 2>/dev/null || die "resume after the move at $at ms"
    # Three times what a boot takes, and time for a busy host.
    left=$((length / 200 * 3 + 300))
    while kill -0 $destination 2>/dev/null && [ $left -gt 0 ]; do left=$((left - 1)); usleep 200000; done
    kill -0 $destination 2>/dev/null && { tail -n 20 /tmp/console; die "the guest moved at $at ms does not end"; }
    wait $destination || { cat /tmp/b.log; tail -n 20 /tmp/console; die "the guest moved at $at ms"; }
    grep -q '^boot: up' /tmp/console || { tail -n 20 /tmp/console; die "no end of the boot moved at $at ms"; }
    check_quiet /tmp/console
done
echo "moved at $count points of $length ms"
