# What is tested in the lab, step by step: ends with the first that fails. KIND is `short`, what every change
# has to pass, or `long`; KERNEL, of those that were brought in, defaults to 6.1-cloud.
set -u
kind=${1:-short} kernel=${2:-6.1-cloud}
run() {
    echo "== lab: $*"
    script=$1
    shift
    sh "tests/$script.sh" "$@" || { echo "FAILED in the lab: $script $*"; exit 1; }
}
case $kind in
    short)
        run boot "$kernel" 1 bzimage
        run ndma "$kernel"
        run net "$kernel" 1
        ;;
    long)
        for cpus in 1 2 8; do run boot "$kernel" $cpus; done
        run boot "$kernel" 2 elf baseline
        run ndma "$kernel"
        run power "$kernel"
        run net "$kernel" 3
        run large "$kernel"
        for cpus in 1 4; do run migrate "$kernel" $cpus 20; done
        run points "$kernel" 4 50
        ;;
    *) echo "short or long, not $kind"; exit 2 ;;
esac
echo "ok: the lab's $kind checks of $kernel"
