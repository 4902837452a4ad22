# Boots a kernel to userspace: KERNEL CPUS [elf|bzimage [MODEL]]. No complaint of the kernel's, all CPUs there.
. tests/lib.sh
needs 2 "$@"
kernel=$1 cpus=$2 image=guest/$1
[ "${3:-elf}" = elf ] || image=$image.$3
drogher run --kernel "$image" --initrd "guest/$kernel.cpio" --cpus "$cpus" --cpu "${4:-host}" --memory 256M \
    --cmdline "$ARGS job=boot" </dev/null >/tmp/console || { cat /tmp/console; die "drogher ended with $?"; }
grep -q "$cpus CPUs" /tmp/console || { cat /tmp/console; die "not $cpus CPUs"; }
check_quiet /tmp/console
sed -n 's/\r$//; /^boot:/p' /tmp/console
