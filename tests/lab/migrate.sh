# A guest under load moves HOPS times between two processes: KERNEL CPUS HOPS [ARGUMENTS of the kernel]. Then the power button
# ends it; it says whether memory, pipe, devices, connection and time were as they should be.
. tests/lib.sh
needs 3 "$@"
kernel=$1 cpus=$2 hops=$3 more=${4:-} console=/tmp/console
rm -f $console
touch $console
tap
# Nothing is said, but the other direction stays open.
sleep 100000 | nc -l -p 7000 >/tmp/talk &
net="--device virtio-net,vm.net=tap:tap0"
# shellcheck disable=SC2086
drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --cpus "$cpus" --memory 256M \
    --device ndma $net --control /tmp/0.sock --console $console --cmdline "$ARGS job=load $more" 2>/tmp/0.log &
pid=$!
await $console '^beat 2' 120
for to in $(seq 1 "$hops"); do
    # shellcheck disable=SC2086
    hop "$to" --device ndma $net
    # It goes on: a beat after the move.
    beat=$(grep -c '^beat' $console)
    await $console "^beat $((beat + 1))" 60
done
drogher powerdown --control /tmp/$hops.sock || die "powerdown"
wait $pid || { cat /tmp/$hops.log; tail -n 40 $console; die "the guest ended with $?"; }
sed -n 's/\r$//; /^load: [0-9]/d; /^\(load\|pipe\|ndma\|tcp\|ping\|init\):/p' $console
grep -q 'job load: status 0' $console || { tail -n 60 $console; die "the guest is not content"; }
check_quiet $console
# What came over the connection is what was said, in order, to the end.
awk '/^end after/ { ended = $3 == NR - 1; next } $1 != "line" || $2 != NR { exit 1 } END { exit !ended }' /tmp/talk ||
    { tail -n 3 /tmp/talk; die "the connection lost or doubled something"; }
echo "tcp: $(tail -n 1 /tmp/talk) lines, over one connection"
echo "moved $hops times; ms of downtime: $(downtimes "$hops")"
