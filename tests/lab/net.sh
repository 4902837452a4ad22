# The virtio network card under a stock kernel, and moved HOPS times while it pings a peer at the end of
# its wire: KERNEL [HOPS [qemu]]. With the CPU model baseline; the other moves are with the host's. The peer is
# our own, or QEMU's user network, if it was brought in: --add /usr/bin/qemu-system-x86_64 --add
# /usr/share/qemu:/usr/share/qemu
. tests/lib.sh
needs 1 "$@"
kernel=$1 hops=${2:-3} peer=${3:-echo} console=/tmp/console device=virtio-net,vm.net=unix:/tmp/wire,vm.pcap=/tmp/net.pcap
rm -f $console
touch $console
case $peer in
    echo) exec wire-echo /tmp/wire 10.0.2.2 ;;
    qemu)
        exec qemu-system-x86_64 -L /usr/share/qemu -M none -accel kvm -nodefaults -display none -netdev user,id=user \
            -netdev stream,id=wire,server=on,addr.type=unix,addr.path=/tmp/wire \
            -netdev hubport,id=a,hubid=0,netdev=wire -netdev hubport,id=b,hubid=0,netdev=user
        ;;
    *) die "echo or qemu, not $peer" ;;
esac >/tmp/echo 2>&1 &
echo=$!
await_socket $echo /tmp/wire
drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --memory 256M --cpu baseline --device $device \
    --control /tmp/0.sock --console $console --cmdline "$ARGS job=net" 2>/tmp/0.log &
pid=$!
await_socket $pid /tmp/0.sock
await $console '^net: pong 20' 120
for to in $(seq 1 "$hops"); do
    hop "$to" --device $device
    pongs=$(grep -c '^net: pong' $console)
    await $console "^net: pong $((pongs + 5))" 60
done
drogher status --control /tmp/$hops.sock >/tmp/status || die "status"
grep -qE '^wire +unix:/tmp/wire: [1-9][0-9]* frames sent, [1-9][0-9]* arrived' /tmp/status || { cat /tmp/status; die "no wire that has carried frames"; }
drogher powerdown --control /tmp/$hops.sock || die "powerdown"
wait $pid || { cat /tmp/$hops.log; tail -n 40 $console; die "the guest ended with $?"; }
grep -q 'job net: status 0' $console || { tail -n 60 $console; die "the guest is not content"; }
check_quiet $console
kill $echo
# The last connection is under way when the peer ends.
[ "$peer" = qemu ] || [ "$(grep -c served /tmp/echo)" -ge "$hops" ] || { cat /tmp/echo; die "not $((hops + 1)) connections"; }
pongs=$(grep -c '^net: pong' $console)
bytes=$(stat -c %s /tmp/net.pcap)
[ "$bytes" -gt $((pongs * 2 * 58)) ] || die "a capture of $bytes bytes for $pongs pongs"
sed -n 's/\r$//; /^net: \(up\|ok\)/p' $console
echo "moved $hops times; $(tr '\n' ' ' </tmp/echo); ms of downtime: $(downtimes "$hops")"
