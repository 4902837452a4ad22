# The virtio network card under a stock kernel, and moved HOPS times while it pings a peer at the end of
# its wire: KERNEL [HOPS]. With the CPU model baseline; the other moves are with the host's.
. tests/lib.sh
kernel=$1 hops=${2:-3} console=/tmp/console device=virtio-net,vm.net=unix:/tmp/wire,vm.pcap=/tmp/net.pcap
rm -f $console
touch $console
wire-echo /tmp/wire 10.0.2.2 >/tmp/echo 2>&1 &
echo=$!
await_socket $echo /tmp/wire
drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --memory 256M --cpu baseline --device $device \
    --control /tmp/0.sock --console $console --cmdline "$ARGS job=net" 2>/tmp/0.log &
pid=$!
await_socket $pid /tmp/0.sock
await $console '^net: pong 20' 120
for hop in $(seq 1 "$hops"); do
    from=$((hop - 1))
    drogher receive --listen unix:/tmp/$hop.move --control /tmp/$hop.sock --console $console --device $device 2>/tmp/$hop.log &
    next=$!
    await_socket $next /tmp/$hop.move
    timeout 300 drogher migrate --control /tmp/$from.sock --to unix:/tmp/$hop.move --downtime-ms 300 --verify --json >/tmp/$hop.json 2>&1 ||
        { cut -c1-600 /tmp/$hop.json; sleep 2; cat /tmp/$from.log /tmp/$hop.log; tail $console; die "hop $hop"; }
    wait $pid || { cat /tmp/$from.log; die "the source of hop $hop ended with $?"; }
    pid=$next
    pongs=$(grep -c '^net: pong' $console)
    await $console "^net: pong $((pongs + 5))" 60
done
drogher powerdown --control /tmp/$hops.sock || die "powerdown"
wait $pid || { cat /tmp/$hops.log; tail -n 40 $console; die "the guest ended with $?"; }
grep -q 'job net: status 0' $console || { tail -n 60 $console; die "the guest is not content"; }
check_quiet $console
kill $echo
# The last connection is under way when the peer ends.
[ "$(grep -c served /tmp/echo)" -ge "$hops" ] || { cat /tmp/echo; die "not $((hops + 1)) connections"; }
pongs=$(grep -c '^net: pong' $console)
bytes=$(stat -c %s /tmp/net.pcap)
[ "$bytes" -gt $((pongs * 2 * 58)) ] || die "a capture of $bytes bytes for $pongs pongs"
sed -n 's/\r$//; /^net: \(up\|ok\)/p' $console
echo "moved $hops times; $(tr '\n' ' ' </tmp/echo); ms of downtime: $(for hop in $(seq "$hops"); do sed -n '$s/.*"downtime":{[^}]*"total-us":\([0-9]*\)[0-9]\{3\},.*/\1/p' /tmp/$hop.json; done | tr '\n' ' ')"
