/*
 * A plugin that breaks its promises, one for each macro given on the command line; without any it is
 * a well-behaved device with pre-copy. For tests of the host.
 *
 * HANG="call", FATAL="call", SLOW="call": that call does not return, breaks the device, or takes a
 * second. A call is a function's name, or a state's for set_state. CALLS="file": their names are
 * written there, one a line.
 */
#include "drogher_plugin.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct hostile {
    const drogher_host *host;
    drogher_host_ctx *ctx;
    uint32_t state;
    uint32_t left;
} hostile;

static void note(const char *text)
{
#ifdef CALLS
    FILE *file = fopen(CALLS, "a");
    if (file != NULL) {
        fprintf(file, "%s\n", text);
        fclose(file);
    }
#endif
    (void)text;
}

static int32_t begin(const char *call)
{
    note(call);
#ifdef HANG
    if (strcmp(call, HANG) == 0)
        for (;;)
            sleep(1);
#endif
#ifdef SLOW
    if (strcmp(call, SLOW) == 0)
        sleep(1);
#endif
#ifdef FATAL
    if (strcmp(call, FATAL) == 0)
        return DROGHER_ERR_FATAL;
#endif
    return DROGHER_OK;
}

#define BEGIN(call)                                                                                \
    do {                                                                                           \
        int32_t begun = begin(call);                                                               \
        if (begun != DROGHER_OK)                                                                   \
            return begun;                                                                          \
    } while (0)

#ifdef MARKER
/* Code that runs when the file is loaded, and must not when it is only looked at. */
__attribute__((constructor)) static void mark(void)
{
    FILE *file = fopen(MARKER, "w");
    if (file != NULL)
        fclose(file);
}
#endif

#ifdef CONSTRUCTOR_HANGS
__attribute__((constructor)) static void hang(void)
{
    for (;;)
        sleep(1);
}
#endif

#ifdef DESTRUCTOR_HANGS
__attribute__((destructor)) static void hang_at_exit(void)
{
    for (;;)
        sleep(1);
}
#endif

#ifdef THREAD_END_HANGS
/* Runs when the thread ends that called `create`. */
static void hang_at_thread_end(void *value)
{
    (void)value;
    for (;;)
        sleep(1);
}
#endif

#ifdef NEEDS_MORE
extern int drogher_no_such_function(void);
int needs_more(void);
int needs_more(void)
{
    return drogher_no_such_function();
}
#endif

static int32_t init(const drogher_host *host, drogher_host_ctx *ctx)
{
    const drogher_dma *dma = host->get_extension(ctx, DROGHER_EXT_DMA, strlen(DROGHER_EXT_DMA));
    uint32_t word = 1;
    BEGIN("init");
    /* A plugin as a whole has no device: both are refused. */
    if (host->irq(ctx, 0) != DROGHER_ERR_PERM)
        return DROGHER_ERR_IO;
    if (dma->write(ctx, 0, 0, &word, sizeof word, NULL) != DROGHER_ERR_PERM)
        return DROGHER_ERR_IO;
    host->log(ctx, DROGHER_LOG_INFO, "hello", 5);
#ifdef INIT_FAILS
    host->set_last_error(ctx, "no cards today", 14);
    return DROGHER_ERR_NOTSUP;
#else
    return DROGHER_OK;
#endif
}

static void deinit(void)
{
    begin("deinit");
}

static int32_t create(const drogher_create_info *info, void **dev_out)
{
    BEGIN("create");
#ifdef THREAD_END_HANGS
    static pthread_key_t key;
    pthread_key_create(&key, hang_at_thread_end);
    pthread_setspecific(key, &key);
#endif
#ifdef NULL_INSTANCE
    (void)info;
    *dev_out = NULL;
    return DROGHER_OK;
#elif defined(POSITIVE_STATUS)
    (void)info;
    (void)dev_out;
    return 7;
#else
    hostile *h = calloc(1, sizeof *h);
    if (h == NULL)
        return DROGHER_ERR_NOMEM;
    h->host = info->host;
    h->ctx = info->host_ctx;
    h->state = DROGHER_STATE_STOP;
    *dev_out = h;
    return DROGHER_OK;
#endif
}

static void destroy(void *dev)
{
    begin("destroy");
    free(dev);
}

static int32_t describe(void *dev, drogher_device_info *out)
{
    BEGIN("describe");
    (void)dev;
    out->vendor_id = 0xD70E;
    out->device_id = 0x0666;
    out->class_code = 0xFF0000;
    out->region_count = 1;
    out->vector_count = 2;
    out->doorbell_count = 1;
#ifdef NO_VENDOR
    out->vendor_id = 0xFFFF;
#endif
#ifdef WIDE_CLASS
    out->class_code = 0x1000000;
#endif
#ifdef MANY_REGIONS
    out->region_count = 5;
#endif
#ifdef MANY_VECTORS
    out->vector_count = 2049;
#endif
#ifdef MANY_DOORBELLS
    out->doorbell_count = 0xFFFFFFFF;
#endif
#ifdef CONFIG_IN_HEADER
    out->config_offset = 0x40;
    out->config_len = 0x10;
#endif
#ifdef RESERVED_INFO
    out->reserved2 = 1;
#endif
    return DROGHER_OK;
}

static int32_t region_info(void *dev, uint32_t n, drogher_region_info *out)
{
    BEGIN("region_info");
    (void)dev;
    (void)n;
    out->index = 0;
    out->length = 4096;
#ifdef REGION_SIZE
    out->length = REGION_SIZE;
#endif
#ifdef REGION_INDEX
    out->index = REGION_INDEX;
#endif
#ifdef REGION_FLAGS
    out->flags = REGION_FLAGS;
#endif
#ifdef REGION_MAPPED
    out->map_length = 4096;
#endif
    return DROGHER_OK;
}

static int32_t doorbell_info(void *dev, uint32_t n, drogher_doorbell_info *out)
{
    BEGIN("doorbell_info");
    (void)dev;
    (void)n;
    out->region = 0;
    out->offset = 0x800;
    out->width = 4;
#ifdef DOORBELL_OFFSET
    out->offset = DOORBELL_OFFSET;
#endif
#ifdef DOORBELL_WIDTH
    out->width = DOORBELL_WIDTH;
#endif
    return DROGHER_OK;
}

static int32_t reset(void *dev)
{
    BEGIN("reset");
    hostile *h = dev;
#ifdef RESET_RUNS
    h->state = DROGHER_STATE_RUNNING;
#else
    h->state = DROGHER_STATE_STOP;
#endif
    return DROGHER_OK;
}

static int32_t region_read(void *dev, uint32_t region, uint64_t offset, void *data, uint32_t len)
{
    BEGIN("region_read");
    (void)dev;
    (void)region;
    (void)offset;
    memset(data, 0x5A, len);
#ifdef SLOW
    /* Given up by now: none of these may do anything, nor harm. */
    hostile *h = dev;
    const drogher_dma *dma =
        h->host->get_extension(h->ctx, DROGHER_EXT_DMA, strlen(DROGHER_EXT_DMA));
    char text[64];
    int32_t filled = dma->fill(h->ctx, 0, 0x1000, 0xEE, 64, NULL);
    snprintf(text, sizeof text, "late dma %d irq %d", filled, h->host->irq(h->ctx, 0));
    h->host->log(h->ctx, DROGHER_LOG_ERROR, "late", 4);
    h->host->fail(h->ctx, "late", 4);
    note(text);
#endif
#ifdef READ_POSITIVE
    return (int32_t)len;
#else
    return DROGHER_OK;
#endif
}

/* A write names an IOVA: writes there, wherever it is. */
static int32_t region_write(void *dev, uint32_t region, uint64_t offset, const void *data,
                            uint32_t len)
{
    BEGIN("region_write");
    hostile *h = dev;
    const drogher_dma *dma =
        h->host->get_extension(h->ctx, DROGHER_EXT_DMA, strlen(DROGHER_EXT_DMA));
    uint64_t iova = 0, done = 99, old;
    (void)region;
    (void)offset;
    memcpy(&iova, data, len <= sizeof iova ? len : sizeof iova);
    int32_t status = dma->fill(h->ctx, 0, iova, 0xEE, 64, &done);
    if (status == DROGHER_OK && done != 64)
        return DROGHER_ERR_FATAL;
    /* A place for the answer that is not aligned. */
    char places[24] = {0};
    if (dma->fetch_add_u64(h->ctx, 0, 0x100, 1, (uint64_t *)(void *)(places + 1)) != DROGHER_OK ||
        dma->read(h->ctx, 0, 0x100, &old, 8, (uint64_t *)(void *)(places + 9)) != DROGHER_OK ||
        places[9] != 8)
        return DROGHER_ERR_FATAL;
    /* Other requesters, NULL, endless lengths: all refused, none followed. */
    if (dma->fill(h->ctx, 1, 0, 0xEE, 64, &done) != DROGHER_ERR_NOENT || done != 0)
        return DROGHER_ERR_FATAL;
    if (dma->write(h->ctx, 0, 0, NULL, 64, NULL) != DROGHER_ERR_INVAL)
        return DROGHER_ERR_FATAL;
    if (dma->read(h->ctx, 0, 0, &old, UINT64_MAX, NULL) != DROGHER_ERR_INVAL)
        return DROGHER_ERR_FATAL;
    if (dma->fetch_add_u64(h->ctx, 0, 4, 1, &old) != DROGHER_ERR_INVAL)
        return DROGHER_ERR_FATAL;
    if (h->host->irq(h->ctx, 2) != DROGHER_ERR_NOENT)
        return DROGHER_ERR_FATAL;
    if (h->host->irq(h->ctx, 0x10000) != DROGHER_ERR_NOENT)
        return DROGHER_ERR_FATAL;
    return status;
}

static int32_t doorbell(void *dev, uint32_t n)
{
    BEGIN("doorbell");
    hostile *h = dev;
    (void)n;
#ifdef LOG_FLOOD
    char text[10000];
    memset(text, 'x', sizeof text);
    text[0] = '\n';
    text[1] = (char)0xFF;
    for (int i = 0; i < 1000; i++)
        h->host->log(h->ctx, 1000, text, sizeof text);
#else
    (void)h;
#endif
    return DROGHER_OK;
}

static int32_t set_state(void *dev, uint32_t state)
{
    static const char *const names[] = {"ERROR",    "STOP",        "RUNNING",  "STOP_COPY",
                                        "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"};
    hostile *h = dev;
    BEGIN("set_state");
    BEGIN(names[state]);
    h->state = state;
    h->left = 3;
#ifdef STATE_NOT_REACHED
    h->state = DROGHER_STATE_RESUMING;
#endif
#ifdef STATE_ERROR
    h->state = DROGHER_STATE_ERROR;
#endif
#ifdef STATE_UNKNOWN
    h->state = 99;
#endif
#ifdef STATE_FAILS_HALFWAY
    return DROGHER_ERR_BUSY;
#else
    return DROGHER_OK;
#endif
}

static int32_t get_state(void *dev, uint32_t *state)
{
    BEGIN("get_state");
    *state = ((hostile *)dev)->state;
    return DROGHER_OK;
}

static int32_t precopy_info(void *dev, drogher_precopy_info *out)
{
    BEGIN("precopy_info");
    (void)dev;
#ifdef ENDLESS_SIZES
    out->initial_bytes = UINT64_MAX;
    out->dirty_bytes = UINT64_MAX;
#else
    out->dirty_bytes = 8;
#endif
    return DROGHER_OK;
}

static int32_t stop_copy_size(void *dev, uint64_t *bytes)
{
    BEGIN("stop_copy_size");
    (void)dev;
#ifdef ENDLESS_SIZES
    *bytes = UINT64_MAX;
#else
    *bytes = 32;
#endif
    return DROGHER_OK;
}

static int32_t state_read(void *dev, void *data, uint64_t len, uint64_t *done)
{
    BEGIN("migration.read");
    hostile *h = dev;
    int pre = h->state != DROGHER_STATE_STOP_COPY;
    memset(data, 1, len < 8 ? len : 8);
    *done = len < 8 ? len : 8;
#ifdef READ_TOO_MUCH
    *done = len + 1;
#endif
#ifdef READ_HUGE
    *done = UINT64_MAX;
#endif
#ifdef NO_MORE_IN_STOP_COPY
    if (!pre)
        return DROGHER_ERR_NOMSG;
#endif
#ifdef END_IN_PRE_COPY
    if (pre) {
        *done = 0;
        return DROGHER_OK;
    }
#endif
    if (h->left-- == 0) {
        h->left = 0;
        *done = 0;
        return pre ? DROGHER_ERR_NOMSG : DROGHER_OK;
    }
    return DROGHER_OK;
}

static int32_t state_write(void *dev, const void *data, uint64_t len)
{
    BEGIN("migration.write");
    (void)dev;
    (void)data;
    (void)len;
    return DROGHER_OK;
}

static const drogher_device_ops device = {
#ifdef OPS_SHORT
    .size = 16,
#else
    .size = sizeof(drogher_device_ops),
#endif
#ifdef OPS_FLAGS
    .flags = 1,
#endif
    .create = create,
    .destroy = destroy,
    .describe = describe,
    .region_info = region_info,
    .doorbell_info = doorbell_info,
#ifndef NO_RESET
    .reset = reset,
#endif
#ifndef NO_REGION_READ
    .region_read = region_read,
#endif
    .region_write = region_write,
    .doorbell = doorbell,
};

static const drogher_migration migration = {
#ifdef MIGRATION_SHORT
    .size = 24,
#else
    .size = sizeof(drogher_migration),
#endif
#ifdef MIGRATION_FLAGS
    .flags = MIGRATION_FLAGS,
#else
    .flags = DROGHER_MIGRATION_STOP_COPY | DROGHER_MIGRATION_PRE_COPY | DROGHER_MIGRATION_P2P,
#endif
    .state_version = 3,
#ifdef MIN_READER
    .state_min_reader = MIN_READER,
#else
    .state_min_reader = 2,
#endif
    .state_oldest_read = 1,
    .set_state = set_state,
    .get_state = get_state,
#ifndef NO_PRECOPY_INFO
    .precopy_info = precopy_info,
#endif
    .stop_copy_size = stop_copy_size,
    .read = state_read,
    .write = state_write,
};

#ifdef NDMA
static int32_t ndma_enter(void *dev)
{
    (void)dev;
    BEGIN("ndma.enter");
    return DROGHER_OK;
}

static int32_t ndma_leave(void *dev)
{
    (void)dev;
    BEGIN("ndma.leave");
    return DROGHER_OK;
}

static const drogher_ndma ndma = {
    .size = sizeof(drogher_ndma),
    .enter = ndma_enter,
    .leave = ndma_leave,
};
#endif

#ifdef PARAMS
static int32_t param_info(uint32_t n, drogher_param_info *out)
{
    BEGIN("params.info");
    (void)n;
    out->kind = DROGHER_PARAM_U64;
    out->flags = DROGHER_PARAM_RUNTIME;
    out->default_value = (drogher_str){"1", 1};
    out->name = (drogher_str){"x", 1};
#ifdef PARAM_NAME
    out->name = (drogher_str){PARAM_NAME, sizeof PARAM_NAME - 1};
#endif
#ifdef PARAM_ENDLESS
    out->doc.len = UINT64_MAX;
#endif
#ifdef PARAM_NULL
    out->doc.len = 5;
#endif
#ifdef PARAM_KIND
    out->kind = PARAM_KIND;
#endif
#ifdef PARAM_DEFAULT
    out->default_value = (drogher_str){PARAM_DEFAULT, sizeof PARAM_DEFAULT - 1};
#endif
    return DROGHER_OK;
}

static int32_t param_get(void *dev, const char *name, uint64_t name_len, char *value, uint64_t cap,
                         uint64_t *value_len)
{
    BEGIN("params.get");
    (void)dev;
    (void)name;
    (void)name_len;
    (void)value;
    *value_len = cap + 1;
    return DROGHER_OK;
}

static int32_t param_set(void *dev, const char *name, uint64_t name_len, const char *value,
                         uint64_t value_len)
{
    BEGIN("params.set");
    (void)dev;
    (void)name;
    (void)name_len;
    (void)value;
    (void)value_len;
    return DROGHER_OK;
}

static const drogher_params params = {
    .size = sizeof(drogher_params),
    .count = PARAMS,
    .info = param_info,
    .get = param_get,
    .set = param_set,
};
#endif

static const void *get_extension(void *dev, const char *id, uint64_t id_len)
{
    (void)dev;
    if (begin("get_extension") != DROGHER_OK)
        return NULL;
    if (id_len == strlen(DROGHER_EXT_MIGRATION) && strcmp(id, DROGHER_EXT_MIGRATION) == 0)
        return &migration;
#ifdef NDMA
    if (id_len == strlen(DROGHER_EXT_NDMA) && strcmp(id, DROGHER_EXT_NDMA) == 0)
        return &ndma;
#endif
#ifdef PARAMS
    if (id_len == strlen(DROGHER_EXT_PARAMS) && strcmp(id, DROGHER_EXT_PARAMS) == 0)
        return &params;
#endif
    return NULL;
}

#ifdef NO_SYMBOL
DROGHER_EXPORT const drogher_plugin_descriptor some_other_name = {
#else
DROGHER_EXPORT const drogher_plugin_descriptor drogher_plugin_entry = {
#endif
#ifdef BAD_MAGIC
    .magic = 1,
#else
    .magic = DROGHER_PLUGIN_MAGIC,
#endif
#ifdef SHORT
    .struct_size = SHORT,
#else
    .struct_size = sizeof(drogher_plugin_descriptor),
#endif
#ifdef MAJOR
    .abi_major = MAJOR,
#else
    .abi_major = DROGHER_ABI_MAJOR,
#endif
#ifdef MINOR
    .abi_minor = MINOR,
#else
    .abi_minor = DROGHER_ABI_MINOR,
#endif
#ifdef FLAGS
    .flags = FLAGS,
#endif
#ifdef RESERVED
    .reserved = {0, 0, 0, 5},
#endif
#ifdef ID
    .id = ID,
#else
    .id = "org.drogher.test.hostile",
#endif
#ifdef NAME_NOT_ENDED
    .name = "0123456789012345678901234567890123456789012345678901234567890123",
#else
    .name = "Hostile",
#endif
    .version = "1",
    .vendor = "The drogher authors",
    .licence = "MIT",
    .init = init,
    .deinit = deinit,
#ifndef NULL_OPS
    .device = &device,
#endif
    .get_extension = get_extension,
};
