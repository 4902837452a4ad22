# What ends a guest: KERNEL. The power button turns it off, a reboot and a panic reset it, and the shell
# takes what is typed on the console.
. tests/lib.sh
needs 1 "$@"
kernel=$1
start() {
    rm -f /tmp/console /tmp/a.sock
    drogher run --kernel "guest/$kernel" --initrd "guest/$kernel.cpio" --memory 256M --control /tmp/a.sock \
        --cmdline "$ARGS" <"$1" >/tmp/console 2>/tmp/a.log &
    pid=$!
}
ends_with() {
    wait $pid || { cat /tmp/a.log /tmp/console; die "the guest ended with $?"; }
    grep -q "$1" /tmp/a.log || { cat /tmp/a.log /tmp/console; die "not \"$1\""; }
}
mkfifo /tmp/keys
start /tmp/keys
exec 3>/tmp/keys
await /tmp/console '^init: up' 120
printf 'echo $((6 * 7))-typed\n' >&3
await /tmp/console '^42-typed' 60
drogher powerdown --control /tmp/a.sock || die "powerdown"
ends_with 'The guest shut down'
grep -q 'power button' /tmp/console || die "not by the button"
for way in 'reboot -f' 'echo c >/proc/sysrq-trigger'; do
    exec 3>&-
    start /tmp/keys
    exec 3>/tmp/keys
    await /tmp/console '^init: up' 120
    printf '%s\n' "$way" >&3
    ends_with 'The guest reset itself'
done
echo "typed, turned off by the button, reset by reboot and panic"
