/*
 * A small device plugin in C: the one to start from.
 *
 *   cc -std=c11 -shared -fPIC -O2 -I plugins/abi/include -o libdrogher_counter.so counter.c
 *
 * BAR 0, 4 KiB:
 *   0x00  COUNT   RW 32  counts doorbells, in steps of the parameter `step`
 *   0x08  TARGET  RW 64  IOVA that each new count is written to; 0: none
 *   0x10  ERRORS  RO 32  DMA that failed
 *   0x20  DOORBELL WO 32 any value: count, write to TARGET, interrupt 0
 *
 * All its work is done inside the calls, so it needs no lock and no thread: nothing runs after STOP.
 * It logs the pages that it writes to, by setting bits in the host's bitmap.
 */
#include "drogher_plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT = 0x00, TARGET = 0x08, ERRORS = 0x10, DOORBELL = 0x20 };

/* What is saved. Little endian, like every machine that the host runs on. */
typedef struct saved {
    uint32_t magic;
    uint32_t count;
    uint64_t target;
    uint32_t errors;
    uint32_t rung;
} saved;

#define SAVED_MAGIC 0x31544E43u /* "CNT1" */

typedef struct counter {
    const drogher_host *host;
    drogher_host_ctx *ctx;
    const drogher_dma *dma;
    const drogher_dma_log_host *log_dma; /* NULL with a host of version 1.0 */
    uint32_t requester;
    uint32_t state;
    uint32_t ndma;
    uint64_t step;
    uint32_t count;
    uint64_t target;
    uint32_t errors;
    uint32_t rung; /* a doorbell came while it could not act */
    uint64_t *log; /* the host's bitmap while logging, else NULL */
    uint64_t log_words, log_first;
    uint32_t log_shift;
    saved image;
    uint64_t image_at;
} counter;

static int runs(const counter *c)
{
    return c->state == DROGHER_STATE_RUNNING && !c->ndma;
}

static int32_t fails(counter *c, int32_t status, const char *why)
{
    c->host->set_last_error(c->ctx, why, strlen(why));
    return status;
}

static int text_is(const char *text, uint64_t len, const char *other)
{
    return len == strlen(other) && memcmp(text, other, len) == 0;
}

/* The host has checked that it is a number. */
static uint64_t number(const char *text, uint64_t len)
{
    uint64_t value = 0;
    for (uint64_t i = 0; i < len; i++)
        value = value * 10 + (uint64_t)(text[i] - '0');
    return value;
}

/* After the store: these bytes of guest memory were written to. */
static void log_run(counter *c, drogher_gpa_range run)
{
    uint64_t last = (run.gpa + run.len - 1) >> c->log_shift;
    for (uint64_t page = run.gpa >> c->log_shift; page <= last; page++) {
        uint64_t bit = page - (c->log_first >> c->log_shift);
        if (bit / 64 < c->log_words)
            __atomic_fetch_or(&c->log[bit / 64], UINT64_C(1) << (bit % 64), __ATOMIC_RELEASE);
    }
}

static int32_t store(counter *c)
{
    if (c->log_dma == NULL)
        return c->dma->write(c->ctx, c->requester, c->target, &c->count, sizeof c->count, NULL);
    /* Four bytes touch two pages at most. */
    drogher_gpa_range ranges[2];
    drogher_gpa_runs runs = {.runs = ranges, .capacity = 2, .count = 0};
    int32_t status = c->log_dma->write(c->ctx, c->requester, c->target, &c->count,
                                       sizeof c->count, NULL, &runs);
    for (uint64_t i = 0; c->log != NULL && i < runs.count; i++)
        log_run(c, ranges[i]);
    return status;
}

static void work(counter *c)
{
    c->rung = 0;
    c->count += (uint32_t)c->step;
    if (c->target != 0 && store(c) != DROGHER_OK)
        c->errors++;
    c->host->irq(c->ctx, 0);
}

static int32_t create(const drogher_create_info *info, void **dev_out)
{
    counter *c = calloc(1, sizeof *c);
    if (c == NULL)
        return DROGHER_ERR_NOMEM;
    c->host = info->host;
    c->ctx = info->host_ctx;
    c->requester = info->requester;
    c->state = DROGHER_STATE_STOP;
    c->step = 1;
    c->dma = c->host->get_extension(c->ctx, DROGHER_EXT_DMA, strlen(DROGHER_EXT_DMA));
    c->log_dma = c->host->get_extension(c->ctx, DROGHER_EXT_DMA_LOG, strlen(DROGHER_EXT_DMA_LOG));
    if (c->dma == NULL) {
        int32_t status = fails(c, DROGHER_ERR_NOTSUP, "The host has no DMA");
        free(c);
        return status;
    }
    for (uint64_t i = 0; i < info->param_count; i++) {
        drogher_str key = info->params[i].key, value = info->params[i].value;
        if (text_is(key.ptr, key.len, "step"))
            c->step = number(value.ptr, value.len);
    }
    *dev_out = c;
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
    out->device_id = 0x0010;
    out->subsystem_vendor_id = 0xD70E;
    out->subsystem_id = 0x0010;
    out->class_code = 0xFF0000;
    out->revision = 1;
    out->region_count = 1;
    out->vector_count = 1;
    out->doorbell_count = 1;
    return DROGHER_OK;
}

static int32_t region_info(void *dev, uint32_t n, drogher_region_info *out)
{
    (void)dev;
    (void)n;
    out->index = 0;
    out->length = 4096;
    return DROGHER_OK;
}

static int32_t doorbell_info(void *dev, uint32_t n, drogher_doorbell_info *out)
{
    (void)dev;
    (void)n;
    out->region = 0;
    out->offset = DOORBELL;
    out->width = 4;
    return DROGHER_OK;
}

static int32_t reset(void *dev)
{
    counter *c = dev;
    c->state = DROGHER_STATE_STOP;
    c->ndma = 0;
    c->count = 0;
    c->target = 0;
    c->errors = 0;
    c->rung = 0;
    c->log = NULL;
    return DROGHER_OK;
}

static int32_t region_read(void *dev, uint32_t region, uint64_t offset, void *data, uint32_t len)
{
    counter *c = dev;
    (void)region;
    uint64_t value;
    switch (offset) {
    case COUNT: value = c->count; break;
    case TARGET: value = c->target; break;
    case ERRORS: value = c->errors; break;
    default: value = 0; break;
    }
    memcpy(data, &value, len <= sizeof value ? len : sizeof value);
    return DROGHER_OK;
}

static int32_t region_write(void *dev, uint32_t region, uint64_t offset, const void *data,
                            uint32_t len)
{
    counter *c = dev;
    (void)region;
    uint64_t value = 0;
    memcpy(&value, data, len <= sizeof value ? len : sizeof value);
    switch (offset) {
    case COUNT: c->count = (uint32_t)value; return DROGHER_OK;
    case TARGET: c->target = value; return DROGHER_OK;
    default: return fails(c, DROGHER_ERR_INVAL, "No such register");
    }
}

static int32_t doorbell(void *dev, uint32_t n)
{
    counter *c = dev;
    (void)n;
    if (runs(c))
        work(c);
    else
        c->rung = 1;
    return DROGHER_OK;
}

static int32_t set_state(void *dev, uint32_t state)
{
    counter *c = dev;
    if (state == DROGHER_STATE_STOP_COPY) {
        memset(&c->image, 0, sizeof c->image);
        c->image_at = 0;
    }
    if (state == DROGHER_STATE_RESUMING)
        c->image_at = 0;
    if (c->state == DROGHER_STATE_RESUMING) {
        if (c->image_at != sizeof c->image || c->image.magic != SAVED_MAGIC ||
            c->image.rung > 1)
            return fails(c, DROGHER_ERR_INVAL, "This is no saved counter");
        c->count = c->image.count;
        c->target = c->image.target;
        c->errors = c->image.errors;
        c->rung = c->image.rung;
    }
    c->state = state;
    if (runs(c) && c->rung)
        work(c);
    return DROGHER_OK;
}

static int32_t get_state(void *dev, uint32_t *state)
{
    *state = ((counter *)dev)->state;
    return DROGHER_OK;
}

static int32_t stop_copy_size(void *dev, uint64_t *bytes)
{
    (void)dev;
    *bytes = sizeof(saved);
    return DROGHER_OK;
}

static int32_t state_read(void *dev, void *data, uint64_t len, uint64_t *done)
{
    counter *c = dev;
    if (c->image_at == 0) {
        /* Only now: a doorbell may still have come after STOP_COPY was entered. */
        c->image.magic = SAVED_MAGIC;
        c->image.count = c->count;
        c->image.target = c->target;
        c->image.errors = c->errors;
        c->image.rung = c->rung;
    }
    uint64_t left = sizeof c->image - c->image_at;
    uint64_t n = len < left ? len : left;
    memcpy(data, (const char *)&c->image + c->image_at, n);
    c->image_at += n;
    *done = n;
    return DROGHER_OK;
}

static int32_t state_write(void *dev, const void *data, uint64_t len)
{
    counter *c = dev;
    if (len > sizeof c->image - c->image_at)
        return fails(c, DROGHER_ERR_INVAL, "More bytes than a saved counter has");
    memcpy((char *)&c->image + c->image_at, data, len);
    c->image_at += len;
    return DROGHER_OK;
}

static int32_t ndma_enter(void *dev)
{
    ((counter *)dev)->ndma = 1;
    return DROGHER_OK;
}

static int32_t ndma_leave(void *dev)
{
    counter *c = dev;
    c->ndma = 0;
    if (runs(c) && c->rung)
        work(c);
    return DROGHER_OK;
}

static int32_t log_start(void *dev, drogher_log_start *info)
{
    counter *c = dev;
    c->log = info->words;
    c->log_words = info->word_count;
    c->log_first = info->first_gpa;
    c->log_shift = info->page_shift;
    return DROGHER_OK;
}

static int32_t log_stop(void *dev)
{
    ((counter *)dev)->log = NULL;
    return DROGHER_OK;
}

static int32_t param_info(uint32_t n, drogher_param_info *out)
{
    (void)n;
    out->kind = DROGHER_PARAM_U64;
    out->flags = DROGHER_PARAM_RUNTIME | DROGHER_PARAM_COMPAT;
    out->name = (drogher_str){"step", 4};
    out->default_value = (drogher_str){"1", 1};
    out->doc = (drogher_str){"What a doorbell adds", 20};
    out->min = 1;
    out->max = 1000;
    return DROGHER_OK;
}

static int32_t param_get(void *dev, const char *name, uint64_t name_len, char *value, uint64_t cap,
                         uint64_t *value_len)
{
    counter *c = dev;
    char text[24];
    if (!text_is(name, name_len, "step"))
        return DROGHER_ERR_NOENT;
    *value_len = (uint64_t)snprintf(text, sizeof text, "%llu", (unsigned long long)c->step);
    if (*value_len > cap)
        return DROGHER_ERR_RANGE;
    memcpy(value, text, *value_len);
    return DROGHER_OK;
}

static int32_t param_set(void *dev, const char *name, uint64_t name_len, const char *value,
                         uint64_t value_len)
{
    counter *c = dev;
    if (!text_is(name, name_len, "step"))
        return DROGHER_ERR_NOENT;
    c->step = number(value, value_len);
    return DROGHER_OK;
}

static const drogher_device_ops device = {
    .size = sizeof(drogher_device_ops),
    .create = create,
    .destroy = destroy,
    .describe = describe,
    .region_info = region_info,
    .doorbell_info = doorbell_info,
    .reset = reset,
    .region_read = region_read,
    .region_write = region_write,
    .doorbell = doorbell,
};

static const drogher_migration migration = {
    .size = sizeof(drogher_migration),
    .flags = DROGHER_MIGRATION_STOP_COPY,
    .state_version = 1,
    .state_min_reader = 1,
    .state_oldest_read = 1,
    .set_state = set_state,
    .get_state = get_state,
    .stop_copy_size = stop_copy_size,
    .read = state_read,
    .write = state_write,
};

static const drogher_ndma ndma = {
    .size = sizeof(drogher_ndma),
    .enter = ndma_enter,
    .leave = ndma_leave,
};

static const drogher_dma_log dma_log = {
    .size = sizeof(drogher_dma_log),
    .flags = DROGHER_DMA_LOG_SHARED,
    .min_page = DROGHER_DMA_LOG_PAGE_MIN,
    .max_page = DROGHER_DMA_LOG_PAGE_MAX,
    .max_ranges = DROGHER_DMA_LOG_RANGES_MAX,
    .start = log_start,
    .stop = log_stop,
};

static const drogher_params params = {
    .size = sizeof(drogher_params),
    .count = 1,
    .info = param_info,
    .get = param_get,
    .set = param_set,
};

static const void *get_extension(void *dev, const char *id, uint64_t id_len)
{
    if (text_is(id, id_len, DROGHER_EXT_MIGRATION))
        return &migration;
    if (text_is(id, id_len, DROGHER_EXT_NDMA))
        return &ndma;
    if (text_is(id, id_len, DROGHER_EXT_PARAMS))
        return &params;
    if (text_is(id, id_len, DROGHER_EXT_DMA_LOG) && dev != NULL && ((counter *)dev)->log_dma != NULL)
        return &dma_log;
    return NULL;
}

DROGHER_EXPORT const drogher_plugin_descriptor drogher_plugin_entry = {
    .magic = DROGHER_PLUGIN_MAGIC,
    .struct_size = sizeof(drogher_plugin_descriptor),
    .abi_major = DROGHER_ABI_MAJOR,
    .abi_minor = DROGHER_ABI_MINOR,
    .id = "org.drogher.example.counter",
    .name = "Counter, an example in C",
    .version = "1.0.0",
    .vendor = "The drogher authors",
    .licence = "Apache-2.0 OR MIT",
    .device = &device,
    .get_extension = get_extension,
};
