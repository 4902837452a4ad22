# The ndma device under a stock kernel: KERNEL. Every operation and every error, through sysfs.
. tests/lib.sh
needs 1 "$@"
drogher run --kernel "guest/$1" --initrd "guest/$1.cpio" --memory 256M --device ndma \
    --cmdline "$ARGS job=ndma" </dev/null >/tmp/console
grep -q '^ndma: ok' /tmp/console || { cat /tmp/console; die "ndma"; }
sed -n 's/\r$//; /^ndma:/p' /tmp/console
