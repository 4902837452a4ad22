/* Load that notices what a migration must not do: memory that is not as it was written, and time that
 * goes backwards.
 *
 *     load MIB RATE     one process for each CPU, MIB of memory and RATE pages a second in all, until
 *                       SIGTERM
 *
 * Each pass checks every word of a page against what the pass before wrote, and writes the next. All
 * processes share the latest time that any of them has seen. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE_WORDS 512
#define NAP_PAGES 8
#define SECOND 1000000000ull

struct shared {
    _Atomic uint64_t latest;   /* CLOCK_MONOTONIC, ns */
    _Atomic uint64_t worst;    /* longest time between two looks of one process, ns */
    _Atomic uint64_t passes;
    _Atomic uint64_t failures;
};

static volatile sig_atomic_t ended;
static void end(int signal) { (void)signal; ended = 1; }

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ull, x ^= x >> 27, x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static void fail(struct shared *s, const char *what, uint64_t at, uint64_t is, uint64_t should)
{
    if (atomic_fetch_add(&s->failures, 1) < 8)
        printf("load: FAILED: %s at %#llx: %#llx, not %#llx\n", what, (unsigned long long)at,
               (unsigned long long)is, (unsigned long long)should);
    fflush(stdout);
}

static void look_at_the_clock(struct shared *s, uint64_t *last)
{
    uint64_t before = atomic_load(&s->latest);
    uint64_t t = now(CLOCK_MONOTONIC);
    if (t < before)
        fail(s, "time went backwards", 0, t, before);
    while (t > before && !atomic_compare_exchange_weak(&s->latest, &before, t))
        ;
    uint64_t gap = t - *last, worst = atomic_load(&s->worst);
    while (gap > worst && !atomic_compare_exchange_weak(&s->worst, &worst, gap))
        ;
    *last = t;
}

static void work(struct shared *s, unsigned seed, size_t pages, useconds_t nap)
{
    uint64_t *area = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) {
        fail(s, "no memory", seed, 0, pages);
        return;
    }
    uint64_t last = now(CLOCK_MONOTONIC);
    for (uint64_t pass = 0; !ended; pass++) {
        for (size_t page = 0; page < pages && !ended; page++) {
            uint64_t *p = area + page * PAGE_WORDS;
            uint64_t old = mix((uint64_t)seed << 56 ^ pass << 32 ^ page);
            uint64_t next = mix((uint64_t)seed << 56 ^ (pass + 1) << 32 ^ page);
            for (int i = 0; i < PAGE_WORDS; i++) {
                uint64_t should = pass ? old + (uint64_t)i : 0;
                if (p[i] != should)
                    fail(s, "memory", (uint64_t)(uintptr_t)&p[i], p[i], should);
                p[i] = next + (uint64_t)i;
            }
            if (page % NAP_PAGES == 0) {
                look_at_the_clock(s, &last);
                usleep(nap);
            }
        }
        atomic_fetch_add(&s->passes, 1);
    }
}

int main(int argc, char **argv)
{
    long mib = argc > 1 ? atol(argv[1]) : 32, rate = argc > 2 ? atol(argv[2]) : 1500, cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct shared *s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED || mib <= 0 || rate <= 0)
        return 2;
    int64_t wall = (int64_t)(now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC));
    signal(SIGTERM, end);
    for (long cpu = 0; cpu < cpus; cpu++) {
        if (fork() == 0) {
            work(s, (unsigned)cpu, (size_t)mib * 256 / (size_t)cpus, (useconds_t)(NAP_PAGES * 1000000 * cpus / rate));
            _exit(0);
        }
    }
    printf("load: %ld CPUs, %ld MiB\n", cpus, mib);
    fflush(stdout);
    while (!ended)
        pause();
    kill(0, SIGTERM);
    while (wait(NULL) > 0)
        ;
    int64_t moved = (int64_t)(now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC)) - wall;
    if (moved > (int64_t)SECOND || moved < -(int64_t)SECOND)
        fail(s, "the wall clock left the monotonic one, ns", 0, (uint64_t)moved, 0);
    if (atomic_load(&s->passes) == 0)
        fail(s, "no pass was made", 0, 0, 1);
    printf("load: %s, %llu passes, longest gap %llu ms\n", s->failures ? "FAILED" : "ok",
           (unsigned long long)s->passes, (unsigned long long)(s->worst / 1000000));
    return s->failures != 0;
}
