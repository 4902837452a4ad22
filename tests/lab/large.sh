# A guest in large pages, on a host that gives them to shared memory, has them after a move too: KERNEL.
. tests/lib.sh
needs 1 "$@"
kernel=$1 console=/tmp/console
rm -f $console
switch=/sys/kernel/mm/transparent_hugepage/shmem_enabled
[ -e $switch ] || die "this kernel gives shared memory no large pages: there is no $switch"
echo advise >$switch
trap 'kill $(jobs -p) 2>/dev/null; echo never >$switch' EXIT
# MiB of a process that are mapped in large pages.
large() { awk '/^ShmemPmdMapped/ { kib += $2 } END { print int(kib / 1024) }' "/proc/$1/smaps"; }
drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --memory 256M --control /tmp/0.sock --console $console \
    --cmdline "$ARGS job=load" 2>/tmp/0.log &
pid=$!
await $console '^beat 2' 120
before=$(large $pid)
[ "$before" -ge 64 ] || die "$before MiB in large pages before the move"
hop 1
after=$(large $pid)
# Of what was never touched there is none.
[ "$after" -ge $((before / 2)) ] || die "$before MiB in large pages before the move, $after after it"
drogher powerdown --control /tmp/1.sock || die "powerdown"
wait $pid || { cat /tmp/1.log; tail -n 40 $console; die "the guest ended with $?"; }
check_quiet $console
echo "in large pages: $before MiB before the move, $after after it"
