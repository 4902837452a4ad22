/* Drives the ndma device through sysfs and checks every result: plugins/ndma/DESIGN.md is its datasheet.
 *
 *     ndma test    each operation, each error, the counters, an interrupt that stays pending
 *     ndma busy    random operations, all checked, until SIGTERM
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ID = 0, VERSION = 4, CONTROL = 8, STATUS = 0xc, ERROR = 0x10, ENTRIES = 0x14, BASE = 0x18,
       COMPLETED = 0x28, BYTES = 0x30, SCRATCH = 0x38, DOORBELL = 0x800 };
enum { COPY = 1, FILL, CHECKSUM, SCATTER, STORE, LOAD };
enum { OK = 1, BAD_OPCODE, BAD_LENGTH, BAD_ALIGNMENT, FAULT_SRC, FAULT_DST, BAD_LIST };
#define OWN 1
#define IRQ 2
#define ENTRIES_MAX 64
#define SIZE (2ul << 20)       /* one huge page: physically contiguous, and it stays where it is */
#define SRC 0x10000ul
#define DST 0x100000ul
#define LIST 0x8000ul
#define AREA 0xf0000ul         /* bytes from SRC, and from DST */
#define NOWHERE 0x7f0000000000ull
#define PATIENCE_S 60

struct descriptor { uint16_t op, flags; uint32_t status; uint64_t src, dst, len, arg, result, cookie, zero; };

static volatile uint8_t *regs, *msix;
static uint8_t *memory;
static uint64_t physical, completed, bytes;
static unsigned slot;
static char folder[300];
static volatile sig_atomic_t ended;

static void end(int signal) { (void)signal; ended = 1; }

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("ndma: FAILED: ");
    vprintf(format, args);
    printf("\n");
    exit(1);
}

static uint32_t get32(int at) { return *(volatile uint32_t *)(regs + at); }
static uint64_t get64(int at) { return *(volatile uint64_t *)(regs + at); }
static void put32(int at, uint32_t v) { *(volatile uint32_t *)(regs + at) = v; }
static void put64(int at, uint64_t v) { *(volatile uint64_t *)(regs + at) = v; }
static void barrier(void) { __asm__ volatile("mfence" ::: "memory"); }

static int open_in(const char *name, int flags)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, flags);
    if (fd < 0)
        die("%s: %s", path, strerror(errno));
    return fd;
}

static void find_device(void)
{
    DIR *devices = opendir("/sys/bus/pci/devices");
    for (struct dirent *entry; devices && (entry = readdir(devices));) {
        unsigned id[2] = {0, 0};
        for (int i = 0; i < 2; i++) {
            char path[400];
            snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", entry->d_name, i ? "device" : "vendor");
            FILE *file = fopen(path, "r");
            if (!file || fscanf(file, "%x", &id[i]) != 1)
                id[i] = 0;
            if (file)
                fclose(file);
        }
        if (id[0] == 0xd70e && id[1] == 0x0001) {
            snprintf(folder, sizeof folder, "/sys/bus/pci/devices/%s", entry->d_name);
            closedir(devices);
            return;
        }
    }
    die("there is no such device on the bus");
}

static volatile uint8_t *map(const char *name)
{
    int fd = open_in(name, O_RDWR | O_SYNC);
    void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("mmap %s: %s", name, strerror(errno));
    return at;
}

static uint16_t config16(int at)
{
    uint16_t value = 0;
    int fd = open_in("config", O_RDONLY);
    if (pread(fd, &value, 2, at) != 2)
        die("configuration byte %#x cannot be read", at);
    close(fd);
    return value;
}

static void set_config16(int at, uint16_t value)
{
    int fd = open_in("config", O_RDWR);
    if (pwrite(fd, &value, 2, at) != 2)
        die("configuration byte %#x cannot be written", at);
    close(fd);
}

static void get_memory(void)
{
    FILE *pool = fopen("/proc/sys/vm/nr_hugepages", "w");
    if (pool) {
        fprintf(pool, "2\n");
        fclose(pool);
    }
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (memory == MAP_FAILED)
        die("no huge page: %s", strerror(errno));
    memset(memory, 0, SIZE);
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY);
    if (fd < 0 || pread(fd, &entry, 8, (off_t)((uintptr_t)memory / 4096 * 8)) != 8 || !(entry >> 63))
        die("its physical address is not to be had");
    close(fd);
    physical = (entry & ((1ull << 55) - 1)) * 4096;
    if (!physical)
        die("its physical address is hidden: run as root");
}

static void start(void)
{
    put32(CONTROL, 2);
    if (get32(ID) != 0x414d444e || get32(VERSION) != 1)
        die("ID %#x, VERSION %u", get32(ID), get32(VERSION));
    if (get32(CONTROL) || get32(STATUS) || get64(COMPLETED) || get64(BYTES))
        die("registers after a reset");
    put32(ENTRIES, ENTRIES_MAX);
    put64(BASE, physical);
    put32(CONTROL, 1 | 4);
    if (get32(STATUS) != 1 && get32(STATUS) != 3)
        die("it does not start: STATUS %#x, ERROR %u", get32(STATUS), get32(ERROR));
    slot = 0;
    completed = bytes = 0;
}

static struct descriptor *post(uint16_t op, uint64_t src, uint64_t dst, uint64_t len, uint64_t arg)
{
    struct descriptor *d = (struct descriptor *)memory + slot;
    slot = (slot + 1) % ENTRIES_MAX;
    *d = (struct descriptor){.op = 0, .src = src, .dst = dst, .len = len, .arg = arg, .cookie = slot};
    barrier();
    *(volatile uint64_t *)d = (uint64_t)(OWN | IRQ) << 16 | op;
    barrier();
    return d;
}

/* Waits for a descriptor, and checks status, result and that nothing else of it has changed. */
static void finish(struct descriptor *d, uint32_t status, uint64_t result)
{
    struct timespec pause = {.tv_nsec = 20000};
    time_t until = time(NULL) + PATIENCE_S;
    while (*(volatile uint16_t *)&d->flags & OWN) {
        if (time(NULL) > until)
            die("operation %u is not handed back: STATUS %#x, ERROR %u", d->op, get32(STATUS), get32(ERROR));
        nanosleep(&pause, NULL);
    }
    barrier();
    if (d->status != status || d->result != result)
        die("operation %u, length %#llx: status %u, result %#llx, not %u, %#llx", d->op,
            (unsigned long long)d->len, d->status, (unsigned long long)d->result, status,
            (unsigned long long)result);
    completed++;
}

static void run(uint16_t op, uint64_t src, uint64_t dst, uint64_t len, uint64_t arg, uint32_t status, uint64_t result)
{
    struct descriptor *d = post(op, src, dst, len, arg);
    put32(DOORBELL, 1);
    finish(d, status, result);
}

static uint64_t seed = 88172645463325252ull;
static uint64_t draw(void) { return seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17; }

static void fill_source(size_t from, size_t len)
{
    for (size_t i = 0; i < len; i++)
        memory[SRC + from + i] = (uint8_t)(draw() >> 24);
}

static uint64_t sum(const uint8_t *from, size_t len)
{
    uint64_t s = 0, w;
    for (size_t i = 0; i < len; i += 8)
        memcpy(&w, from + i, 8), s = (s << 1 | s >> 63) + w;
    return s;
}

static void same(const char *what, size_t dst, const uint8_t *want, size_t len)
{
    if (memcmp(memory + dst, want, len))
        die("%s of %zu bytes: the data differ", what, len);
    bytes += len;
}

/* One operation of `len` bytes at offset `at` of source and destination. */
static void operation(int op, size_t at, size_t len)
{
    static uint8_t want[AREA];
    uint64_t src = physical + SRC + at, dst = physical + DST + at, word = draw();
    fill_source(at, len);
    memset(memory + DST + at, 0xee, len);
    switch (op) {
    case COPY:
        run(COPY, src, dst, len, 0, OK, len);
        same("copy", DST + at, memory + SRC + at, len);
        break;
    case FILL:
        run(FILL, 0, dst, len, word, OK, len);
        for (size_t i = 0; i < len; i++)
            want[i] = (uint8_t)(word >> 8 * (i % 8));
        same("fill", DST + at, want, len);
        break;
    case CHECKSUM:
        len &= ~7ul;
        src &= ~7ull;
        if (!len)
            return;
        run(CHECKSUM, src, 0, len, 0, OK, sum(memory + (src - physical), len));
        bytes += len;
        break;
    case SCATTER: {
        struct { uint64_t address; uint32_t length, zero; } *list = (void *)(memory + LIST);
        size_t first = len / 3;
        list[0].address = dst + (len - first), list[0].length = (uint32_t)first, list[0].zero = 0;
        list[1].address = dst, list[1].length = (uint32_t)(len - first), list[1].zero = 0;
        memcpy(want, memory + SRC + at + first, len - first);
        memcpy(want + len - first, memory + SRC + at, first);
        run(SCATTER, src, physical + LIST, len, 2, OK, len);
        same("scatter", DST + at, want, len);
        break;
    }
    case STORE: {
        size_t room = (size_t)get64(SCRATCH), offset = len < room ? draw() % (room - len) : 0;
        if (len > room)
            len = room;
        run(STORE, src, offset, len, 0, OK, len);
        run(LOAD, offset, dst, len, 0, OK, len);
        same("store and load", DST + at, memory + SRC + at, len);
        bytes += len;
        break;
    }
    }
}

static void counters(void)
{
    /* They may lag behind the descriptor, but only by that one. */
    for (int tries = 0; tries < 10000 && get64(COMPLETED) != completed; tries++)
        usleep(100);
    if (get64(COMPLETED) != completed || get64(BYTES) != bytes)
        die("COMPLETED %llu, BYTES %llu, not %llu, %llu", (unsigned long long)get64(COMPLETED),
            (unsigned long long)get64(BYTES), (unsigned long long)completed, (unsigned long long)bytes);
}

static void errors(void)
{
    uint64_t src = physical + SRC, dst = physical + DST, list = physical + LIST;
    run(9, src, dst, 8, 0, BAD_OPCODE, 0);
    run(COPY, src, dst, 0, 0, BAD_LENGTH, 0);
    run(COPY, src, dst, (1 << 20) + 1, 0, BAD_LENGTH, 0);
    run(STORE, src, get64(SCRATCH), 8, 0, BAD_LENGTH, 0);
    run(CHECKSUM, src + 1, 0, 64, 0, BAD_ALIGNMENT, 0);
    run(COPY, NOWHERE, dst, 64, 0, FAULT_SRC, 0);
    run(COPY, src, NOWHERE, 64, 0, FAULT_DST, 0);
    run(SCATTER, src, list, 64, 0, BAD_LIST, 0);
}

static int msix_capability(void)
{
    for (int at = config16(0x34) & 0xfc; at; at = config16(at) >> 8)
        if ((config16(at) & 0xff) == 0x11)
            return at;
    die("it has no MSI-X capability");
}

/* With the function masked, a completion's interrupt has to wait in the pending bits. */
static void pending_interrupt(void)
{
    int at = msix_capability();
    uint16_t control = config16(at + 2);
    uint32_t table = config16(at + 4) | (uint32_t)config16(at + 6) << 16;
    uint32_t pba = config16(at + 8) | (uint32_t)config16(at + 10) << 16;
    if ((control & 0x7ff) != 1 || (table & 7) != (pba & 7))
        die("MSI-X control %#x, table %#x, pending bits %#x", control, table, pba);
    char name[] = "resource0";
    name[8] = (char)('0' + (table & 7));
    msix = map(name);
    volatile uint32_t *entry = (volatile uint32_t *)(msix + (table & ~7u));
    volatile uint64_t *bits = (volatile uint64_t *)(msix + (pba & ~7u));
    set_config16(at + 2, 0xc000);
    entry[0] = 0xfee00000, entry[1] = 0, entry[2] = 0x41, entry[3] = 0;
    if (entry[0] != 0xfee00000 || entry[2] != 0x41 || entry[3] != 0 || *bits)
        die("the MSI-X table does not hold what was written");
    operation(COPY, 0, 64);
    for (int tries = 0; tries < 10000 && !(*bits & 1); tries++)
        usleep(100);
    if (*bits != 1)
        die("pending bits %#llx, not 1", (unsigned long long)*bits);
    entry[3] = 1;
    set_config16(at + 2, 0);
}

static void test(void)
{
    static const size_t sizes[] = {1, 8, 63, 4096, 65536, 65537, 300001};
    for (int op = COPY; op <= STORE; op++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            operation(op, i * 8, sizes[i]);
    counters();
    errors();
    counters();
    operation(COPY, 4, 4096);
    pending_interrupt();
    for (int i = 0; i < 3 * ENTRIES_MAX; i++)
        operation(COPY, (size_t)i, 100 + (size_t)i);
    counters();
    /* Many at once: one doorbell for a whole ring. */
    struct descriptor *posted[ENTRIES_MAX - 1];
    fill_source(0, ENTRIES_MAX * 4096);
    for (size_t i = 0; i < ENTRIES_MAX - 1; i++)
        posted[i] = post(COPY, physical + SRC + i * 4096, physical + DST + i * 4096, 4096, 0);
    put32(DOORBELL, 1);
    for (size_t i = 0; i < ENTRIES_MAX - 1; i++)
        finish(posted[i], OK, 4096);
    same("a whole ring", DST, memory + SRC, (ENTRIES_MAX - 1) * 4096);
    counters();
}

int main(int argc, char **argv)
{
    int busy = argc > 1 && !strcmp(argv[1], "busy");
    signal(SIGTERM, end);
    setvbuf(stdout, NULL, _IOLBF, 0);
    find_device();
    int fd = open_in("enable", O_WRONLY);
    if (write(fd, "1", 1) != 1)
        die("it cannot be enabled: %s", strerror(errno));
    close(fd);
    set_config16(4, 6);
    if ((config16(4) & 6) != 6)
        die("memory decoding and bus mastering do not stay on");
    regs = map("resource0");
    get_memory();
    start();
    if (!busy)
        test();
    while (busy && !ended) {
        size_t at = draw() % 4096, len = 1 + draw() % 0x20000;
        operation(COPY + (int)(draw() % 5), at, len);
        if (completed % 64 == 0)
            counters();
    }
    put32(CONTROL, 0);
    printf("ndma: ok, %llu operations, %llu KiB\n", (unsigned long long)completed,
           (unsigned long long)(bytes >> 10));
    return 0;
}
