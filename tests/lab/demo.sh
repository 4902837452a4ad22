# A stock Debian kernel with a shell and a network moves, running, between two processes, for people to
# watch: KERNEL. Keys are typed for them; `guest |` is what the guest's console shows, wherever it runs.
. tests/lib.sh
kernel=${1:-6.1-cloud} device=virtio-net,vm.net=unix:/tmp/wire
rm -f /tmp/console /tmp/keys.*
touch /tmp/console
mkfifo /tmp/keys.a /tmp/keys.b
# What comes in, line by line, behind a word; without the questions that a shell's line editor asks.
show() { awk -v who="$1" '{ gsub(/\r|\033\[6n/, ""); print who " | " $0; fflush() }'; }
say() { echo; echo "--- $*"; }
keys() { echo "keys  | $1"; printf '%s\n' "$1" >&3; }

wire-echo /tmp/wire 10.0.2.2 >/tmp/echo 2>&1 &
await_socket $! /tmp/wire
say "Process 1 boots Debian's $kernel kernel with a virtio network card and an ndma device"
drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --cpus 2 --memory 256M --device $device --device ndma \
    --control /tmp/a.sock --cmdline "$ARGS" </tmp/keys.a >>/tmp/console 2>/tmp/a.log &
source=$!
exec 3>/tmp/keys.a
tail -f /tmp/console | show guest &
await /tmp/console '^init: up' 120
keys 'uname -r; ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up'
keys 'carried="set in process 1"; ping -i 0.5 10.0.2.2 &'
await /tmp/console 'seq=5 ' 60

say "Process 2 waits; the guest moves to it while it runs and pings"
drogher receive --listen unix:/tmp/b.move --control /tmp/b.sock --console stdio --device $device --device ndma \
    </tmp/keys.b >>/tmp/console 2>/tmp/b.log &
destination=$!
exec 4>/tmp/keys.b
await_socket $destination /tmp/b.move
drogher migrate --control /tmp/a.sock --to unix:/tmp/b.move --downtime-ms 300 --verify 2>&1 | show 'move ' 
wait $source || { cat /tmp/a.log /tmp/b.log; die "process 1 ended with $?"; }
exec 3>&4
pings=$(grep -c 'seq=' /tmp/console)
say "Process 1 is gone (pid $source); the same shell goes on in process 2 (pid $destination)"
keys 'echo "carried: $carried"'
await /tmp/console '^carried: set in process 1' 60
left=300
until [ "$(grep -c 'seq=' /tmp/console)" -gt $((pings + 3)) ]; do
    left=$((left - 1))
    [ $left -gt 0 ] || die "no ping after the move"
    usleep 200000
done
keys 'kill -INT %1; wait'
await /tmp/console 'packets received' 60
say "The power button ends it"
drogher powerdown --control /tmp/b.sock || die "powerdown"
wait $destination || { cat /tmp/b.log; die "process 2 ended with $?"; }
usleep 500000
lost=$(sed -n 's/.*received, \(.*packet loss\).*/\1/p' /tmp/console)
echo
echo "one shell in two processes; ping: $lost"
