/*
 * A device whose DMA can be tracked in every way: its own log, pins, a preference. It does one
 * operation for each write to COMMAND. Each macro breaks a promise. For tests of the host.
 *
 * BAR 0, 64-bit registers: see the enum. STATUS is what the host's function returned.
 */
#include "drogher_plugin.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IOVA = 0x00, LEN = 0x08, ACCESS = 0x10, HANDLE = 0x18, STATUS = 0x20, DONE = 0x28,
       RUNS = 0x30, COMMAND = 0x38, UNMAPS = 0x40, FIRST_RUN = 0x48, REGISTERS = 0x50 / 8 };
enum { PIN = 1, UNPIN = 2, MARK = 3, LOGGED = 4, STORE = 5, PLAIN = 6, ADD = 7, LAST_BIT = 8,
       NO_ROOM = 9 };

#define PAGES 4096
#define PINS 16

/* For one who calls the host as this device may. */
__attribute__((visibility("default"))) const drogher_host *tracked_host;
__attribute__((visibility("default"))) drogher_host_ctx *tracked_ctx;

typedef struct tracked {
    const drogher_host *host;
    drogher_host_ctx *ctx;
    const drogher_dma *dma;
    const drogher_dma_log_host *log_host;
    const drogher_dma_pin_host *pin_host;
    uint64_t registers[REGISTERS];
    uint32_t state;
    drogher_pinned pins[PINS];
    uint64_t pinned_at[PINS];
    /* The log: pages of 4 KiB from GPA 0, or the host's bitmap. */
    uint64_t bits[PAGES / 64];
    uint64_t *shared;
    uint64_t first_gpa, page_size, word_count;
    uint32_t shift, logging;
} tracked;

static void mark(tracked *t, uint64_t gpa, uint64_t len)
{
    if (!t->logging)
        return;
    for (uint64_t at = gpa >> t->shift; at <= (gpa + len - 1) >> t->shift; at++) {
        uint64_t page = at - (t->first_gpa >> t->shift);
        uint64_t *words = t->shared != NULL ? t->shared : t->bits;
        if (page / 64 < t->word_count)
            __atomic_fetch_or(&words[page / 64], UINT64_C(1) << (page % 64), __ATOMIC_RELEASE);
    }
}

static drogher_pinned *find(tracked *t, uint64_t handle)
{
    for (int i = 0; i < PINS; i++)
        if (t->pins[i].handle == handle)
            return &t->pins[i];
    return NULL;
}

static void unpin_all(tracked *t)
{
    for (int i = 0; i < PINS; i++)
        if (t->pins[i].handle != 0) {
            t->pin_host->unpin(t->ctx, t->pins[i].handle);
            t->pins[i].handle = 0;
        }
}

static int32_t command(tracked *t, uint64_t what)
{
    uint64_t *r = t->registers, done = 0, old;
    drogher_gpa_range ranges[2];
    drogher_gpa_runs runs = {.runs = ranges, .capacity = 2, .count = 99};
    int32_t status;
    drogher_pinned pin, *found;
    switch (what) {
    case PIN:
        pin.len = 99;
        status = t->pin_host->pin(t->ctx, 0, r[IOVA / 8], r[LEN / 8], (uint32_t)r[ACCESS / 8], &pin);
        r[DONE / 8] = pin.len;
        if (status == DROGHER_OK && (found = find(t, 0)) != NULL) {
            *found = pin;
            t->pinned_at[found - t->pins] = r[IOVA / 8];
            r[HANDLE / 8] = pin.handle;
        }
        return status;
    case UNPIN:
        status = t->pin_host->unpin(t->ctx, r[HANDLE / 8]);
        if ((found = find(t, r[HANDLE / 8])) != NULL)
            found->handle = 0;
        return status;
    case MARK: return t->pin_host->mark_dirty(t->ctx, 0, r[IOVA / 8], r[LEN / 8]);
    case STORE:
        if ((found = find(t, r[HANDLE / 8])) == NULL)
            return DROGHER_ERR_NOENT;
        for (uint64_t i = 0; i < found->len; i++)
            __atomic_store_n((unsigned char *)found->ptr + i, 0x77, __ATOMIC_RELAXED);
        mark(t, found->gpa, found->len);
        return DROGHER_OK;
    case PLAIN: return t->dma->fill(t->ctx, 0, r[IOVA / 8], 0x66, r[LEN / 8], &r[DONE / 8]);
    case NO_ROOM: runs.capacity = 0; /* fall through */
    case LOGGED:
        status = t->log_host->fill(t->ctx, 0, r[IOVA / 8], 0x55, r[LEN / 8], &done, &runs);
        break;
    case ADD:
        status = t->log_host->fetch_add_u64(t->ctx, 0, r[IOVA / 8], 1, &old, &runs);
        done = old;
        break;
    case LAST_BIT: mark(t, r[IOVA / 8], 1); return DROGHER_OK;
    default: return DROGHER_ERR_INVAL;
    }
    r[DONE / 8] = done;
    r[RUNS / 8] = runs.count;
    r[FIRST_RUN / 8] = runs.count != 0 ? ranges[0].gpa : UINT64_MAX;
    for (uint64_t i = 0; i < runs.count && i < runs.capacity; i++)
        mark(t, ranges[i].gpa, ranges[i].len);
    return status;
}

static const void *ask(const drogher_create_info *info, const char *id)
{
    return info->host->get_extension(info->host_ctx, id, strlen(id));
}

static int32_t create(const drogher_create_info *info, void **dev_out)
{
    tracked *t = calloc(1, sizeof *t);
    if (t == NULL)
        return DROGHER_ERR_NOMEM;
    t->host = tracked_host = info->host;
    t->ctx = tracked_ctx = info->host_ctx;
    t->state = DROGHER_STATE_STOP;
    t->dma = ask(info, DROGHER_EXT_DMA);
    t->log_host = ask(info, DROGHER_EXT_DMA_LOG);
    t->pin_host = ask(info, DROGHER_EXT_DMA_PIN);
    /* In STOP, and before the host knows that this plugin pins. */
    drogher_pinned pin;
    int32_t status = t->pin_host->pin(t->ctx, 0, 0, 4096, DROGHER_PIN_READ, &pin);
    if (status != DROGHER_ERR_NOTSUP || pin.ptr != NULL)
        return DROGHER_ERR_FATAL;
    *dev_out = t;
    return DROGHER_OK;
}

static void destroy(void *dev)
{
    free(dev);
}

static int32_t describe(void *dev, drogher_device_info *out)
{
    (void)dev;
    out->vendor_id = 0xD70E;
    out->device_id = 0x0667;
    out->class_code = 0xFF0000;
    out->region_count = 1;
    return DROGHER_OK;
}

static int32_t region_info(void *dev, uint32_t n, drogher_region_info *out)
{
    (void)dev;
    (void)n;
    out->length = 4096;
    return DROGHER_OK;
}

static int32_t reset(void *dev)
{
    tracked *t = dev;
    t->state = DROGHER_STATE_STOP;
    t->logging = 0;
#ifndef RESET_KEEPS
    unpin_all(t);
#endif
    return DROGHER_OK;
}

static int32_t region_read(void *dev, uint32_t region, uint64_t offset, void *data, uint32_t len)
{
    tracked *t = dev;
    (void)region;
    if (offset / 8 >= REGISTERS || len != 8)
        return DROGHER_ERR_INVAL;
    memcpy(data, &t->registers[offset / 8], 8);
    return DROGHER_OK;
}

static int32_t region_write(void *dev, uint32_t region, uint64_t offset, const void *data,
                            uint32_t len)
{
    tracked *t = dev;
    (void)region;
    if (offset / 8 >= REGISTERS || len != 8)
        return DROGHER_ERR_INVAL;
    memcpy(&t->registers[offset / 8], data, 8);
    if (offset == COMMAND)
        t->registers[STATUS / 8] = (uint64_t)(int64_t)command(t, t->registers[COMMAND / 8]);
    return DROGHER_OK;
}

static int32_t set_state(void *dev, uint32_t state)
{
    tracked *t = dev;
#ifndef STOP_KEEPS
    if (state == DROGHER_STATE_STOP || state == DROGHER_STATE_STOP_COPY)
        unpin_all(t);
#endif
    t->state = state;
    return DROGHER_OK;
}

static int32_t get_state(void *dev, uint32_t *state)
{
    *state = ((tracked *)dev)->state;
    return DROGHER_OK;
}

static int32_t stop_copy_size(void *dev, uint64_t *bytes)
{
    (void)dev;
    *bytes = 0;
    return DROGHER_OK;
}

static int32_t state_read(void *dev, void *data, uint64_t len, uint64_t *done)
{
    (void)dev;
    (void)data;
    (void)len;
    *done = 0;
    return DROGHER_OK;
}

static int32_t state_write(void *dev, const void *data, uint64_t len)
{
    (void)dev;
    (void)data;
    (void)len;
    return DROGHER_OK;
}

static int32_t ndma_enter(void *dev)
{
    (void)dev;
    return DROGHER_OK;
}

static int32_t log_start(void *dev, drogher_log_start *info)
{
    tracked *t = dev;
#ifdef START_REFUSES
    return DROGHER_ERR_BUSY;
#endif
    if (t->logging || info->range_count == 0 || info->page_size != UINT64_C(1) << info->page_shift)
        return DROGHER_ERR_FATAL;
#ifdef LOG_CHOOSES
    info->page_size = LOG_CHOOSES;
#endif
    t->page_size = info->page_size;
    t->shift = (uint32_t)__builtin_ctzll(info->page_size);
    t->shared = info->words;
    t->first_gpa = info->words != NULL ? info->first_gpa : 0;
    t->word_count = info->words != NULL ? info->word_count : PAGES / 64;
    if ((info->words == NULL) != (info->fd == -1))
        return DROGHER_ERR_FATAL;
    if (info->words != NULL) {
        /* The memfd is the bitmap. */
        uint64_t word = 0;
        info->words[0] = 1;
        if (pread(info->fd, &word, 8, 0) != 8 || word != 1 || ftruncate(info->fd, 0) == 0)
            return DROGHER_ERR_FATAL;
        info->words[0] = 0;
    }
    memset(t->bits, 0, sizeof t->bits);
    t->logging = 1;
    return DROGHER_OK;
}

static int32_t log_report(void *dev, uint64_t gpa, uint64_t len, uint64_t *words,
                          uint64_t word_count)
{
    tracked *t = dev;
#ifdef REPORT_REFUSES
    return DROGHER_ERR_IO;
#endif
#ifdef REPORT_HANGS
    for (;;)
        sleep(1);
#endif
    uint64_t pages = len >> t->shift;
    if (len % t->page_size != 0 || gpa % t->page_size != 0 || word_count != (pages + 63) / 64)
        return DROGHER_ERR_FATAL;
    for (uint64_t i = 0; i < pages; i++) {
        uint64_t page = (gpa >> t->shift) + i, bit = UINT64_C(1) << (page % 64);
        if (page < PAGES &&
            (__atomic_fetch_and(&t->bits[page / 64], ~bit, __ATOMIC_ACQ_REL) & bit) != 0)
            words[i / 64] |= UINT64_C(1) << (i % 64);
    }
#ifdef REPORT_BEYOND
    words[word_count - 1] |= UINT64_C(1) << 63;
#endif
    return DROGHER_OK;
}

static int32_t log_stop(void *dev)
{
#ifdef STOP_REFUSES
    (void)dev;
    return DROGHER_ERR_BUSY;
#else
    ((tracked *)dev)->logging = 0;
    return DROGHER_OK;
#endif
}

static int32_t unmap(void *dev, uint64_t iova, uint64_t len)
{
    tracked *t = dev;
#ifdef UNMAP_REFUSES
    t->host->set_last_error(t->ctx, "I want to keep it", 17);
    return DROGHER_ERR_BUSY;
#endif
#ifdef UNMAP_HANGS
    for (;;)
        sleep(1);
#endif
    t->registers[UNMAPS / 8]++;
#ifndef UNMAP_KEEPS
    for (int i = 0; i < PINS; i++)
        if (t->pins[i].handle != 0 && t->pinned_at[i] < iova + len &&
            iova < t->pinned_at[i] + t->pins[i].len) {
            if (t->pin_host->unpin(t->ctx, t->pins[i].handle) != DROGHER_OK)
                return DROGHER_ERR_FATAL;
            t->pins[i].handle = 0;
        }
    /* Not again, as long as the host is at it. */
    drogher_pinned pin;
    if (t->pin_host->pin(t->ctx, 0, iova, len, DROGHER_PIN_READ, &pin) != DROGHER_ERR_BUSY)
        return DROGHER_ERR_FATAL;
#else
    (void)iova;
    (void)len;
#endif
    return DROGHER_OK;
}

static int32_t prefers_get(void *dev, drogher_preference *out)
{
    (void)dev;
#ifdef TRACKER
    out->tracker = TRACKER;
#else
    out->tracker = DROGHER_TRACKER_DEVICE;
#endif
    out->page_size = 65536;
#ifdef PREFERS_PAGE
    out->page_size = PREFERS_PAGE;
#endif
    out->cost_hint_ns = 7;
    out->reason = (drogher_str){"it\nknows", 8};
#ifdef REASON_NULL
    out->reason.ptr = NULL;
#endif
    return DROGHER_OK;
}

static const drogher_device_ops device = {
    .size = sizeof(drogher_device_ops),
    .create = create,
    .destroy = destroy,
    .describe = describe,
    .region_info = region_info,
    .reset = reset,
    .region_read = region_read,
    .region_write = region_write,
};

static const drogher_migration migration = {
    .size = sizeof(drogher_migration),
    .flags = DROGHER_MIGRATION_STOP_COPY,
    .state_version = 1,
    .set_state = set_state,
    .get_state = get_state,
    .stop_copy_size = stop_copy_size,
    .read = state_read,
    .write = state_write,
};

static const drogher_ndma ndma = {
    .size = sizeof(drogher_ndma),
    .enter = ndma_enter,
    .leave = ndma_enter,
};

#ifndef LOG_MIN
#define LOG_MIN 4096
#endif
#ifndef LOG_MAX
#define LOG_MAX 65536
#endif
#ifndef LOG_RANGES
#define LOG_RANGES 4
#endif
#ifndef LOG_FLAGS
#define LOG_FLAGS 0
#endif
#ifndef LOG_SIZE
#define LOG_SIZE sizeof(drogher_dma_log)
#endif

static const drogher_dma_log dma_log = {
    .size = LOG_SIZE,
    .flags = LOG_FLAGS,
    .min_page = LOG_MIN,
    .max_page = LOG_MAX,
    .max_ranges = LOG_RANGES,
    .start = log_start,
#ifndef NO_REPORT
    .report = log_report,
#endif
    .stop = log_stop,
};

#ifndef PIN_FLAGS
#define PIN_FLAGS 0
#endif

static const drogher_dma_pin dma_pin = {
    .size = sizeof(drogher_dma_pin),
    .flags = PIN_FLAGS,
#ifndef NO_UNMAP
    .unmap = unmap,
#endif
};

static const drogher_prefers prefers = {
    .size = sizeof(drogher_prefers),
    .get = prefers_get,
};

static const void *get_extension(void *dev, const char *id, uint64_t id_len)
{
    (void)dev;
    (void)id_len;
#ifndef NO_MIGRATION
    if (strcmp(id, DROGHER_EXT_MIGRATION) == 0)
        return &migration;
#endif
    if (strcmp(id, DROGHER_EXT_NDMA) == 0)
        return &ndma;
#ifndef NO_LOG
    if (strcmp(id, DROGHER_EXT_DMA_LOG) == 0)
        return &dma_log;
#endif
#ifndef NO_PINS
    if (strcmp(id, DROGHER_EXT_DMA_PIN) == 0)
        return &dma_pin;
#endif
    if (strcmp(id, DROGHER_EXT_PREFERS) == 0)
        return &prefers;
    return NULL;
}

DROGHER_EXPORT const drogher_plugin_descriptor drogher_plugin_entry = {
    .magic = DROGHER_PLUGIN_MAGIC,
    .struct_size = sizeof(drogher_plugin_descriptor),
    .abi_major = DROGHER_ABI_MAJOR,
    .abi_minor = DROGHER_ABI_MINOR,
    .id = "org.drogher.test.tracked",
    .name = "Tracked",
    .version = "1",
    .vendor = "The drogher authors",
    .licence = "MIT",
    .device = &device,
    .get_extension = get_extension,
};
