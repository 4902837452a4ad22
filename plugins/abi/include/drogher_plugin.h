#ifndef DROGHER_PLUGIN_H
#define DROGHER_PLUGIN_H

/*
 * The interface between drogher and its device plugins, version 1.
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 * Generated from the crate drogher-plugin-abi; DESIGN.md there is the normative text. In short:
 *
 * Plugin. A shared object that exports one constant, `drogher_plugin_entry` (see the end). It is loaded
 * once and never unloaded; all its instances share its global data. What belongs to the process is the
 * host's: no exit, fork, signal handlers, working directory or locale.
 *
 * Growth. Structs with a `size` grow at the end only; it is set by who provides the struct: the host
 * for its tables and for what it wants filled in, the plugin for its tables. What lies beyond the other
 * side's size is absent. Everything called reserved, and all unknown flags, must be 0.
 *
 * Ownership. Tables (of functions), and the texts in them, are constant and valid for ever. All else
 * that a pointer argument points to is borrowed for the duration of the call: copy what you keep.
 * Buffers that the other side is to fill hold initialised bytes. Who allocates frees; nothing is freed
 * by the other side. Texts are UTF-8; in those for people, what is not, or is a control character, is
 * replaced.
 *
 * Threads. Each function carries one of
 *   [serialised]  called by the host: never twice at once for one instance, but from no fixed thread;
 *                 what one call wrote the next one sees. Different instances are called in parallel.
 *   [serialised: with ...]  more than that is kept apart, as it says.
 *   [any]         called by the plugin: from any thread, in parallel, also from inside a call, from
 *                 when the plugin gets `host_ctx` until `destroy`, or a `create` that fails, returns;
 *                 longer after `retain`.
 * Re-entry. No host function calls into a plugin, so a plugin may hold its own locks while it calls
 * one; and no call of the host comes while another one into the same instance has not returned. The
 * memory model of DMA is said at `drogher_dma`.
 *
 * Deadlines, set by the operator, usually:
 *   [deadline: call]  2 s
 *   [deadline: state] 5 s
 *   [deadline: load]  10 s; the same for loading the file with its constructors
 * A call that has not returned by then is given up: DMA and interrupts of the device end, it is in
 * ERROR for good, and nothing is called for it again, not even `destroy`. If it is `create`, the plugin
 * makes no more devices in this process. Long work belongs on threads of the plugin's own.
 *
 * Status. 0 or a negative DROGHER_ERR_*; say why with `set_last_error` before. A failure has no effect
 * on the device, except DROGHER_ERR_FATAL: it is then in ERROR until a `reset` that succeeds. The same
 * goes for answers that cannot be: a positive status, more bytes than asked for, a state that was not
 * asked for. No exception, panic or longjmp may leave a function.
 *
 * States. A device begins in STOP. DMA and interrupts are let through in RUNNING, RUNNING_P2P, PRE_COPY
 * and PRE_COPY_P2P outside NDMA; elsewhere the host refuses them, whatever the plugin does, and counts
 * them as the plugin's fault.
 *
 * Extension ids of a plugin: drogher.migration/1, drogher.ndma/1, drogher.params/1, drogher.prefers/1;
 * of the host: drogher.dma/1; of both: drogher.dma-log/1, drogher.dma-pin/1. Reserved for later:
 * drogher.net-port/1, drogher.inspect/1, and everything that begins with "drogher.". An extension that
 * must break gets a new number. Other makers' ids begin with a domain of theirs.
 */

#include <stdint.h>

#if defined(__GNUC__)
#define DROGHER_EXPORT __attribute__((visibility("default")))
#else
#define DROGHER_EXPORT
#endif

/* Opaque: the host's side of one instance. */
typedef struct drogher_host_ctx drogher_host_ctx;

// Offered by the host: drogher_dma.
#define DROGHER_EXT_DMA "drogher.dma/1"

// Offered by a plugin: drogher_migration.
#define DROGHER_EXT_MIGRATION "drogher.migration/1"

// Offered by a plugin: drogher_ndma.
#define DROGHER_EXT_NDMA "drogher.ndma/1"

// Offered by a plugin: drogher_params.
#define DROGHER_EXT_PARAMS "drogher.params/1"

// Offered by a plugin: drogher_dma_log; by the host: drogher_dma_log_host.
#define DROGHER_EXT_DMA_LOG "drogher.dma-log/1"

// Offered by a plugin: drogher_dma_pin; by the host: drogher_dma_pin_host.
#define DROGHER_EXT_DMA_PIN "drogher.dma-pin/1"

// Offered by a plugin: drogher_prefers.
#define DROGHER_EXT_PREFERS "drogher.prefers/1"


// Success.
#define DROGHER_OK 0

// Not allowed in this state: for example DMA while the device is stopped.
#define DROGHER_ERR_PERM -1

// No such parameter, vector, region, requester.
#define DROGHER_ERR_NOENT -2

// The device failed at something that it can survive.
#define DROGHER_ERR_IO -5

// Out of memory.
#define DROGHER_ERR_NOMEM -12

// A DMA access faulted: unmapped, no permission, outside memory. `*done` bytes were accessed.
#define DROGHER_ERR_FAULT -14

// Busy; try again later.
#define DROGHER_ERR_BUSY -16

// A wrong argument: misaligned, out of range, malformed state data.
#define DROGHER_ERR_INVAL -22

// Too large for the buffer; the length that was needed is reported.
#define DROGHER_ERR_RANGE -34

// `read` of the migration extension in a pre-copy state: no more data for now.
#define DROGHER_ERR_NOMSG -42

// Not supported.
#define DROGHER_ERR_NOTSUP -95

// The instance is shut down, or the host has given it up: no host function works any more.
#define DROGHER_ERR_SHUTDOWN -108

// The device is broken and its state undefined. A plugin that returns this is moved to ERROR; only
// a reset may bring it back. Every other negative status refuses one call and changes nothing.
#define DROGHER_ERR_FATAL -131

// Longest text, in bytes, that the host takes from a plugin in one piece. Longer log lines and
// error texts are cut; longer values, defaults and documentation of parameters are refused.
#define DROGHER_TEXT_MAX 4096

// Something is broken.
#define DROGHER_LOG_ERROR 1

// Something is odd.
#define DROGHER_LOG_WARN 2

// Worth knowing, rare.
#define DROGHER_LOG_INFO 3

// For those who look for a fault.
#define DROGHER_LOG_DEBUG 4

// Smallest tracking page, in bytes.
#define DROGHER_DMA_LOG_PAGE_MIN 4096

// Largest tracking page, in bytes.
#define DROGHER_DMA_LOG_PAGE_MAX 2097152

// Most ranges of one start.
#define DROGHER_DMA_LOG_RANGES_MAX 256

// The plugin sets bits in the bitmap that `start` gets, by atomic OR with release order, after the
// store; the host takes them there by itself, at any time. There is no `report`.
#define DROGHER_DMA_LOG_SHARED 1

// All flags of this version. The others must be 0.
#define DROGHER_DMA_LOG_FLAGS 1

// The device writes to what it has pinned and to nothing else. Its writes through `drogher_dma` and
// `drogher_dma_log_host` are refused.
#define DROGHER_PIN_ONLY 1

// All flags of this version. The others must be 0.
#define DROGHER_PIN_FLAGS 1

// To read.
#define DROGHER_PIN_READ 1

// To write.
#define DROGHER_PIN_WRITE 2

// To read and write.
#define DROGHER_PIN_READ_WRITE 3

// Most bytes of one pin.
#define DROGHER_PIN_LEN_MAX 67108864

// Most pins of one device at a time.
#define DROGHER_PINS_MAX 65536

// Largest region, in bytes.
#define DROGHER_REGION_SIZE_MAX 4294967296

// Smallest region, in bytes.
#define DROGHER_REGION_SIZE_MIN 16

// BAR indices 0 to 3 are the plugin's; 4 and 5 are the host's (MSI-X table and PBA).
#define DROGHER_REGIONS_MAX 4

// Most MSI-X vectors of a device.
#define DROGHER_VECTORS_MAX 2048

// Most doorbells of a device.
#define DROGHER_DOORBELLS_MAX 1024

// I/O ports instead of memory.
#define DROGHER_REGION_IO 1

// 64-bit memory BAR: takes its own index and the next.
#define DROGHER_REGION_64BIT 2

// Prefetchable memory.
#define DROGHER_REGION_PREFETCH 4

// All region flags of this version. The others (mapped areas will be one) are refused.
#define DROGHER_REGION_FLAGS 7

// Broken; left by reset only. Never requested.
#define DROGHER_STATE_ERROR 0

// Nothing runs: no DMA, no interrupt, no change inside.
#define DROGHER_STATE_STOP 1

// Runs.
#define DROGHER_STATE_RUNNING 2

// Stopped, its state can be read.
#define DROGHER_STATE_STOP_COPY 3

// Stopped, a state can be written.
#define DROGHER_STATE_RESUMING 4

// Runs, but starts no access to another device. (A device that cannot tell another device's BAR
// from RAM starts none at all.)
#define DROGHER_STATE_RUNNING_P2P 5

// Runs, and state can be read in advance.
#define DROGHER_STATE_PRE_COPY 6

// PRE_COPY and RUNNING_P2P at once.
#define DROGHER_STATE_PRE_COPY_P2P 7

// STOP, STOP_COPY, RESUMING and RUNNING: every plugin with this extension has them.
#define DROGHER_MIGRATION_STOP_COPY 1

// Has the P2P states.
#define DROGHER_MIGRATION_P2P 2

// Has the PRE_COPY states (PRE_COPY_P2P if it has both).
#define DROGHER_MIGRATION_PRE_COPY 4

// All flags of this version. The others must be 0.
#define DROGHER_MIGRATION_FLAGS 7

// Text.
#define DROGHER_PARAM_TEXT 1

// Unsigned 64-bit number, decimal.
#define DROGHER_PARAM_U64 2

// `true` or `false`.
#define DROGHER_PARAM_BOOL 3

// Most parameters of a plugin.
#define DROGHER_PARAMS_MAX 256

// May be set while the instance lives, not only at creation.
#define DROGHER_PARAM_RUNTIME 1

// Source and destination of a migration must have the same value.
#define DROGHER_PARAM_COMPAT 2

// All flags of this version. The others must be 0.
#define DROGHER_PARAM_FLAGS 3

// No preference.
#define DROGHER_TRACKER_NONE 0

// The IOMMU's dirty bits.
#define DROGHER_TRACKER_IOMMU 1

// The device's own log.
#define DROGHER_TRACKER_DEVICE 2

// What the device has pinned.
#define DROGHER_TRACKER_PINNED 3

// Write protection in the IOMMU.
#define DROGHER_TRACKER_FAULT 4

// None: everything mapped counts as dirty.
#define DROGHER_TRACKER_ALL 5

// "DROGHER1" as a little-endian number.
#define DROGHER_PLUGIN_MAGIC 3553979232685085252

// Version of this interface. Another major number is another interface.
#define DROGHER_ABI_MAJOR 1

// Grows with each addition. A host takes every minor of its major, older or newer: what is there
// is said by the sizes of the structs and the ids of the extensions, not by this number.
#define DROGHER_ABI_MINOR 1

// A panic or uncaught exception in this plugin ends the process (it cannot be turned into an
// error of the device). To be declared, so that an operator may refuse it.
#define DROGHER_PLUGIN_ABORTS 1

// The plugin may change its ids, registers and state format without notice.
#define DROGHER_PLUGIN_EXPERIMENTAL 2

// All flags of this version. The others must be 0.
#define DROGHER_PLUGIN_FLAGS 3

// A borrowed piece of UTF-8 text: `len` bytes at `ptr`, no NUL needed. `ptr` may be NULL when
// `len` is 0. How long it stays valid is said where it is used. Never grows.
typedef struct drogher_str {
  // First byte.
  const char *ptr;
  // Length in bytes.
  uint64_t len;
} drogher_str;

// The host's functions. The table is constant and valid for ever. Later versions append: a plugin
// that uses a function newer than version 1.0 looks at `size` first. None waits for a call into a
// plugin; `fail`, and DMA beside that of many other threads, wait for DMA in flight.
typedef struct drogher_host {
  // sizeof, as the host was compiled.
  uint32_t size;
  // DROGHER_ABI_MAJOR of the host.
  uint32_t abi_major;
  // DROGHER_ABI_MINOR of the host.
  uint32_t abi_minor;
  // 0 in this version.
  uint32_t flags;
  // Name and version of the host, for people. Valid for ever.
  struct drogher_str host_name;
  // Keeps `ctx` valid beyond `destroy`: every function then answers DROGHER_ERR_SHUTDOWN, or does
  // nothing, instead of being undefined. One `release` each.
  // [any]
  void (*retain)(drogher_host_ctx *ctx);
  // Gives one `retain` back; `ctx` may be invalid afterwards.
  // [any]
  void (*release)(drogher_host_ctx *ctx);
  // Writes one line to the log; the text is copied. Level: DROGHER_LOG_*. The host limits rate
  // and length.
  // [any]
  void (*log)(drogher_host_ctx *ctx, uint32_t level, const char *text, uint64_t len);
  // Says why the call that the host is now in will fail: to be called before a negative status
  // is returned. The text is copied; the last one counts.
  // [any]
  void (*set_last_error)(drogher_host_ctx *ctx, const char *text, uint64_t len);
  // Declares the device broken, from any thread: it goes to ERROR, its DMA and interrupts have
  // ended on return, and nothing but `reset` and `destroy` is called. For workers, which have no
  // status to return. Nothing happens with the plugin's own `ctx`, of `init`.
  // [any]
  void (*fail)(drogher_host_ctx *ctx, const char *text, uint64_t len);
  // Triggers MSI-X vector `vector`. Masking and pending bits are the host's. DROGHER_ERR_PERM in
  // states and NDMA that allow none (it is then lost, and counted as a fault of the device);
  // DROGHER_ERR_NOENT if there is no such vector.
  // [any]
  int32_t (*irq)(drogher_host_ctx *ctx, uint32_t vector);
  // Returns the host's table for an extension (`drogher_dma` for DROGHER_EXT_DMA) or NULL.
  // `id` has `id_len` bytes. Unknown ids: NULL.
  // [any]
  const void *(*get_extension)(drogher_host_ctx *ctx, const char *id, uint64_t id_len);
} drogher_host;

// DMA. Addresses are IOVAs of the requester named, which `create` was given; each access goes
// through its translation and permissions and marks what it writes as dirty. No pointer to guest
// memory leaves the host here.
//
// Memory model: an aligned access of 1, 2, 4 or 8 bytes is single-copy atomic. Calls of one thread
// take effect in program order, as all observers see it, also towards a following `irq`. Inside one
// longer access order is undefined. Atomic operations are sequentially consistent.
//
// Status: DROGHER_OK; DROGHER_ERR_FAULT with `*done` = bytes accessed, from the start, before the
// fault; DROGHER_ERR_PERM where the device may do no DMA (state, NDMA or ERROR), also in the middle
// of an access; DROGHER_ERR_BUSY if too many threads do DMA, or another device takes no more for now:
// `*done` bytes were accessed, try the rest later; DROGHER_ERR_NOENT for an unknown requester;
// DROGHER_ERR_INVAL for NULL, a length that cannot be, a misaligned atomic operation;
// DROGHER_ERR_SHUTDOWN. `done` and `old` may be NULL. `len` 0 is allowed and does nothing.
//
// `write` and `fill` reach the BARs of other devices too, where the configuration allows it. Such a
// write is posted: it returns before the other device has it, and those of one thread arrive in order,
// cut into naturally aligned accesses of 1, 2, 4 and 8 bytes. In RUNNING_P2P and PRE_COPY_P2P they
// are not allowed (DROGHER_ERR_PERM). Reads and atomic operations there are faults, and so is the
// device's own BAR.
typedef struct drogher_dma {
  // sizeof, as the host was compiled.
  uint32_t size;
  // 0 in this version.
  uint32_t flags;
  // Reads guest memory into `data`; what lies behind `*done` bytes is unchanged.
  // [any]
  int32_t (*read)(drogher_host_ctx *ctx,
                  uint32_t requester,
                  uint64_t iova,
                  void *data,
                  uint64_t len,
                  uint64_t *done);
  // Writes `data` to guest memory, or to another device.
  // [any]
  int32_t (*write)(drogher_host_ctx *ctx,
                   uint32_t requester,
                   uint64_t iova,
                   const void *data,
                   uint64_t len,
                   uint64_t *done);
  // Sets `len` bytes of guest memory, or of another device, to `byte`.
  // [any]
  int32_t (*fill)(drogher_host_ctx *ctx,
                  uint32_t requester,
                  uint64_t iova,
                  uint8_t byte,
                  uint64_t len,
                  uint64_t *done);
  // Adds, wrapping; `*old` is the value before. `iova` must be a multiple of 4.
  // [any]
  int32_t (*fetch_add_u32)(drogher_host_ctx *ctx,
                           uint32_t requester,
                           uint64_t iova,
                           uint32_t add,
                           uint32_t *old);
  // As above for 64 bits; `iova` must be a multiple of 8.
  // [any]
  int32_t (*fetch_add_u64)(drogher_host_ctx *ctx,
                           uint32_t requester,
                           uint64_t iova,
                           uint64_t add,
                           uint64_t *old);
  // Stores `desired` if the value is `expected`; `*old` is the value before. Multiple of 4.
  // [any]
  int32_t (*compare_swap_u32)(drogher_host_ctx *ctx,
                              uint32_t requester,
                              uint64_t iova,
                              uint32_t expected,
                              uint32_t desired,
                              uint32_t *old);
  // As above for 64 bits; multiple of 8.
  // [any]
  int32_t (*compare_swap_u64)(drogher_host_ctx *ctx,
                              uint32_t requester,
                              uint64_t iova,
                              uint64_t expected,
                              uint64_t desired,
                              uint64_t *old);
} drogher_dma;

// One parameter given at creation. The texts are valid during the call. Never grows.
typedef struct drogher_key_value {
  // Name, without duplicates.
  struct drogher_str key;
  // Value as text.
  struct drogher_str value;
} drogher_key_value;

// What `create` gets. Valid during the call, except `host`, which is valid for ever, and
// `host_ctx`, see there.
typedef struct drogher_create_info {
  // sizeof, as the host was compiled.
  uint32_t size;
  // 0 in this version.
  uint32_t flags;
  // The host's functions.
  const struct drogher_host *host;
  // First argument of the host's functions. Valid until `destroy` returns, or this `create` if it
  // fails; longer with `retain`.
  drogher_host_ctx *host_ctx;
  // The instance's name in messages.
  struct drogher_str name;
  // `param_count` parameters. Unknown ones are the plugin's to refuse, unless it has params/1:
  // then the host has refused them.
  const struct drogher_key_value *params;
  // Number of parameters.
  uint64_t param_count;
  // The requester handle of the device's own requester ID, for the functions of `drogher_dma`.
  // Handles of further ones (functions, PASIDs) will come from an extension.
  uint32_t requester;
  // 0 in this version.
  uint32_t reserved;
} drogher_create_info;

// What a device is; constant during the life of an instance. The host zeroes it and sets `size`;
// the plugin fills in the rest, but no field that lies beyond `size`.
typedef struct drogher_device_info {
  // sizeof, as the host was compiled.
  uint32_t size;
  // Must be 0.
  uint32_t flags;
  // PCI vendor id; not 0 or 0xFFFF.
  uint16_t vendor_id;
  // PCI device id.
  uint16_t device_id;
  // PCI subsystem vendor id.
  uint16_t subsystem_vendor_id;
  // PCI subsystem id.
  uint16_t subsystem_id;
  // PCI class code: base class << 16 | sub-class << 8 | programming interface.
  uint32_t class_code;
  // PCI revision id.
  uint8_t revision;
  // Must be 0.
  uint8_t reserved[3];
  // Number of regions, at most DROGHER_REGIONS_MAX.
  uint32_t region_count;
  // Number of MSI-X vectors, at most DROGHER_VECTORS_MAX; 0: none.
  uint32_t vector_count;
  // Number of doorbells, at most DROGHER_DOORBELLS_MAX.
  uint32_t doorbell_count;
  // Device-specific area of the PCI configuration space: offset, a multiple of 4, at least 0x100
  // (below it all is the host's). 0 if there is none.
  uint32_t config_offset;
  // Length of that area in bytes, a multiple of 4; offset + length at most 0x1000.
  uint32_t config_len;
  // Must be 0.
  uint32_t reserved2;
} drogher_device_info;

// One region (PCI BAR). Zeroed and sized by the host, filled in by the plugin.
typedef struct drogher_region_info {
  // sizeof, as the host was compiled.
  uint32_t size;
  // DROGHER_REGION_*; unknown bits are refused.
  uint32_t flags;
  // BAR index, and the `region` of region_read and region_write.
  uint32_t index;
  // Reserved for mapped areas; must be 0.
  uint32_t map_flags;
  // Length in bytes: a power of two.
  uint64_t length;
  // Reserved for mapped areas; must be 0.
  uint64_t map_offset;
  // Reserved for mapped areas; must be 0.
  uint64_t map_length;
  // Reserved for mapped areas; must be 0.
  int32_t map_fd;
  // Must be 0.
  uint32_t reserved;
} drogher_region_info;

// A doorbell: a place in a region where a write of any value, of exactly this width, only says
// "look". The host may take such writes without stopping the guest (ioeventfd), may merge several
// into one, and calls `doorbell`, never `region_write`, for them. Reads there, and writes of another
// width, are `region_read` and `region_write` as anywhere. Doorbells do not overlap.
// Zeroed and sized by the host, filled in by the plugin.
typedef struct drogher_doorbell_info {
  // sizeof, as the host was compiled.
  uint32_t size;
  // Must be 0 (reserved for matching the value).
  uint32_t flags;
  // Region (BAR index).
  uint32_t region;
  // Width in bytes: 1, 2, 4 or 8.
  uint32_t width;
  // Offset in the region, a multiple of the width.
  uint64_t offset;
  // Must be 0.
  uint64_t match_value;
} drogher_doorbell_info;

// The core verbs. `dev` is what `create` stored. Functions may be NULL only where it is said.
typedef struct drogher_device_ops {
  // sizeof, as the plugin was compiled.
  uint32_t size;
  // Must be 0.
  uint32_t flags;
  // Makes an instance and stores its pointer (not NULL) in `*dev_out`. The instance is as after
  // power-on, and stopped (state STOP): no DMA, no interrupt before `set_state` lets it run. A
  // device without migration/1 is not told: it runs whenever its DMA and interrupts are let
  // through. On failure `*dev_out` is ignored, `destroy` is not called, and nothing of it may be
  // left running.
  // [serialised: with every create of this plugin] [deadline: call, together with the describe,
  // region_info, doorbell_info and get_extension that follow]
  int32_t (*create)(const struct drogher_create_info *info, void **dev_out);
  // Ends the instance; on return nothing of it runs and no host function will be called with its
  // `host_ctx` (unless retained). Called in any state, also in ERROR. A process may end without it.
  // [serialised] [deadline: call]
  void (*destroy)(void *dev);
  // Fills in what the device is. Called once, right after `create`.
  // [serialised] [deadline: call]
  int32_t (*describe)(void *dev, struct drogher_device_info *out);
  // Fills in region number `n` (not the BAR index), `n` < region_count. NULL if there is none.
  // [serialised] [deadline: call]
  int32_t (*region_info)(void *dev, uint32_t n, struct drogher_region_info *out);
  // Fills in doorbell `n` < doorbell_count. NULL if there is none.
  // [serialised] [deadline: call]
  int32_t (*doorbell_info)(void *dev, uint32_t n, struct drogher_doorbell_info *out);
  // Back to power-on contents, out of ERROR and NDMA, sessions dropped, pending doorbells
  // forgotten; the state is then STOP, and on return nothing runs. Parameters keep their values.
  // In any state. A failure leaves the device in ERROR.
  // [serialised] [deadline: state]
  int32_t (*reset)(void *dev);
  // Reads `len` bytes of the device-specific configuration area. `offset` is the one in the
  // configuration space; the access lies inside the area, and may be of any length and alignment.
  // In any state but ERROR. NULL if there is no such area.
  // [serialised] [deadline: call]
  int32_t (*config_read)(void *dev, uint32_t offset, void *data, uint32_t len);
  // Writes to that area. NULL if there is no such area.
  // [serialised] [deadline: call]
  int32_t (*config_write)(void *dev, uint32_t offset, const void *data, uint32_t len);
  // Reads `len` bytes (the guest's access width, 1 to 8; aligned or not) at `offset` of a region,
  // little endian. The access lies inside the region. Called only in the states RUNNING,
  // RUNNING_P2P, PRE_COPY and PRE_COPY_P2P. On failure the guest reads all ones. NULL if there
  // is no region.
  // [serialised] [deadline: call]
  int32_t (*region_read)(void *dev, uint32_t region, uint64_t offset, void *data, uint32_t len);
  // Writes to a region; as above. On failure the write is lost.
  // [serialised] [deadline: call]
  int32_t (*region_write)(void *dev,
                          uint32_t region,
                          uint64_t offset,
                          const void *data,
                          uint32_t len);
  // Doorbell `n` was rung, once or more. While the device may not act (NDMA, STOP, STOP_COPY) it
  // latches the fact, which is part of its state. Not called in RESUMING and ERROR, nor in
  // STOP_COPY once the first state data were read. NULL if there is none.
  // [serialised] [deadline: call]
  int32_t (*doorbell)(void *dev, uint32_t n);
} drogher_device_ops;

// How much there is to read in a pre-copy state. Zeroed and sized by the host.
typedef struct drogher_precopy_info {
  // sizeof, as the host was compiled.
  uint32_t size;
  // Must be 0.
  uint32_t flags;
  // Bytes of the first part that are still to be read: falls as data are read. To stop before it
  // is 0 makes the downtime longer.
  uint64_t initial_bytes;
  // Estimate of the bytes that changed since they were read.
  uint64_t dirty_bytes;
} drogher_precopy_info;

// Save, load and the states between. A session of reading opens on the arcs RUNNING->PRE_COPY,
// RUNNING_P2P->PRE_COPY_P2P and STOP->STOP_COPY, goes on through arcs among these three states, and
// ends when they are left. All that was read in it, in order, is one byte stream without message
// boundaries, to be written in one RESUMING session by any pieces.
typedef struct drogher_migration {
  // sizeof, as the plugin was compiled.
  uint32_t size;
  // DROGHER_MIGRATION_*. DROGHER_MIGRATION_STOP_COPY must be set.
  uint32_t flags;
  // Version of the state format that this plugin writes; at least 1.
  uint32_t state_version;
  // Lowest version of a reader that understands what this plugin writes; <= state_version.
  uint32_t state_min_reader;
  // Oldest version that this plugin reads; <= state_version.
  uint32_t state_oldest_read;
  // Must be 0.
  uint32_t reserved;
  // Goes to `state` by one arc; the host asks for no others than these:
  // STOP<->RUNNING (without P2P), STOP<->RUNNING_P2P, RUNNING<->RUNNING_P2P, STOP<->STOP_COPY,
  // STOP<->RESUMING, RUNNING<->PRE_COPY, PRE_COPY->STOP_COPY (without P2P), PRE_COPY<->PRE_COPY_P2P,
  // RUNNING_P2P<->PRE_COPY_P2P, PRE_COPY_P2P->STOP_COPY.
  // The whole change is done on return; the plugin never changes the state by itself. When it
  // returns STOP or STOP_COPY, accesses in flight have ended and its workers are parked.
  // RESUMING->STOP checks and takes what was written; all that is wrong with it must be found
  // here at the latest. A failure leaves the old state, or ERROR (DROGHER_ERR_FATAL). The host
  // asks `get_state` after each call and believes neither alone.
  // [serialised] [deadline: state]
  int32_t (*set_state)(void *dev, uint32_t state);
  // The present state.
  // [serialised] [deadline: call]
  int32_t (*get_state)(void *dev, uint32_t *state);
  // Called in the pre-copy states only. NULL without PRE_COPY.
  // [serialised] [deadline: call]
  int32_t (*precopy_info)(void *dev, struct drogher_precopy_info *out);
  // Estimate of the bytes that STOP_COPY would give if the device stopped now. In any state but
  // ERROR. A device that then gives very much more may be refused.
  // [serialised] [deadline: call]
  int32_t (*stop_copy_size)(void *dev, uint64_t *bytes);
  // Reads the next state data: `*done` <= `len` bytes into `data`, more than 0 (`len` is). In a pre-copy
  // state DROGHER_ERR_NOMSG says: no more for now. In STOP_COPY DROGHER_OK with `*done` 0 says:
  // the end, now and for ever.
  // [serialised] [deadline: call]
  int32_t (*read)(void *dev, void *data, uint64_t len, uint64_t *done);
  // Takes all `len` bytes in RESUMING. The data may come from anywhere: trust no length, index or
  // value in them.
  // [serialised] [deadline: call]
  int32_t (*write)(void *dev, const void *data, uint64_t len);
} drogher_migration;

// NDMA: the device runs on, answers registers and latches doorbells, but issues no DMA and no
// interrupt at all (a message-signalled interrupt is a DMA write). Orthogonal to the migration
// state; the host enters it in RUNNING, RUNNING_P2P, PRE_COPY and PRE_COPY_P2P, and it holds, over
// all state changes, until `leave` or `reset`. It is not part of the saved state.
typedef struct drogher_ndma {
  // sizeof, as the plugin was compiled.
  uint32_t size;
  // Must be 0.
  uint32_t flags;
  // On return accesses in flight have ended and none will start. A failure leaves NDMA not
  // entered.
  // [serialised] [deadline: state]
  int32_t (*enter)(void *dev);
  // DMA and interrupts may start again, latched doorbells are served. Called in the running
  // states and in STOP.
  // [serialised] [deadline: state]
  int32_t (*leave)(void *dev);
} drogher_ndma;

// One parameter. Zeroed and sized by the host; the texts are constant and valid for ever.
typedef struct drogher_param_info {
  // sizeof, as the host was compiled.
  uint32_t size;
  // DROGHER_PARAM_TEXT and so on.
  uint32_t kind;
  // DROGHER_PARAM_RUNTIME, DROGHER_PARAM_COMPAT.
  uint32_t flags;
  // Must be 0.
  uint32_t reserved;
  // Name: of `a-z 0-9 _`.
  struct drogher_str name;
  // Value if none is given.
  struct drogher_str default_value;
  // One line for people.
  struct drogher_str doc;
  // Smallest value (DROGHER_PARAM_U64).
  uint64_t min;
  // Largest value (DROGHER_PARAM_U64); 0 with min 0: no bounds.
  uint64_t max;
} drogher_param_info;

// Parameters: what there are, and their values. Values are text in the form of their kind; the host
// has checked kind, bounds and UTF-8 before the plugin sees one.
typedef struct drogher_params {
  // sizeof, as the plugin was compiled.
  uint32_t size;
  // Must be 0.
  uint32_t flags;
  // Number of parameters, at most DROGHER_PARAMS_MAX.
  uint32_t count;
  // Must be 0.
  uint32_t reserved;
  // Fills in parameter `n` < count. Needs no instance.
  // [serialised: with every create of this plugin] [deadline: load]
  int32_t (*info)(uint32_t n, struct drogher_param_info *out);
  // Writes the value of a parameter into `value` (`cap` bytes, no NUL) and its length to
  // `*value_len`. DROGHER_ERR_RANGE if `cap` is too small; `*value_len` then says what is needed.
  // [serialised] [deadline: call]
  int32_t (*get)(void *dev,
                 const char *name,
                 uint64_t name_len,
                 char *value,
                 uint64_t cap,
                 uint64_t *value_len);
  // Sets a parameter that has DROGHER_PARAM_RUNTIME. In any state but ERROR; a failure keeps the old
  // value.
  // [serialised] [deadline: call]
  int32_t (*set)(void *dev,
                 const char *name,
                 uint64_t name_len,
                 const char *value,
                 uint64_t value_len);
} drogher_params;

// Bytes `gpa` to `gpa + len` of the guest's physical address space, not beyond 2^64. Never grows.
typedef struct drogher_gpa_range {
  // First byte.
  uint64_t gpa;
  // Bytes.
  uint64_t len;
} drogher_gpa_range;

// Room for where a write landed. Never grows.
typedef struct drogher_gpa_runs {
  // Room for `capacity` runs; the first `count` are filled in, in the order of the bytes written.
  struct drogher_gpa_range *runs;
  // At least 1.
  uint64_t capacity;
  // Set by the host; also on failure, where it says what was written before.
  uint64_t count;
} drogher_gpa_runs;

// What `start` gets, valid during the call, except `words` and `fd`: see there.
typedef struct drogher_log_start {
  // sizeof, as the host was compiled.
  uint32_t size;
  // 0 in this version.
  uint32_t flags;
  // What to log: `range_count` ranges of whole tracking pages, sorted, apart, inside the address
  // width. Other writes need not be logged.
  const struct drogher_gpa_range *ranges;
  // 1 to the plugin's `max_ranges`.
  uint64_t range_count;
  // The tracking page size wished, in bytes, from min_page to max_page. The plugin stores the one
  // that it takes; with DROGHER_DMA_LOG_SHARED that is this one.
  uint64_t page_size;
  // DROGHER_DMA_LOG_SHARED: the bitmap, zeroed, valid until `stop`, `reset` or `destroy` returns.
  // Bit b of word w is the page at `first_gpa + ((64 * w + b) << page_shift)`. NULL without it.
  uint64_t *words;
  // Words of the bitmap.
  uint64_t word_count;
  // First byte of its first page.
  uint64_t first_gpa;
  // Logarithm of `page_size` to base 2.
  uint32_t page_shift;
  // The memfd that holds the bitmap from its first byte on, so that another process of the plugin's
  // may map it; its size cannot change. Valid as long as `words`; the host's to close. -1 without.
  int32_t fd;
} drogher_log_start;

// A device's log of its own writes, by GPA. It is started and stopped here and by nothing else: no
// migration state begins or ends it, nor does it change what the device does.
//
// The bit of a page is set after the store; so a write that a report misses is in the next one, and
// after `set_state` has returned STOP or STOP_COPY, or `ndma.enter` has returned, none is missing.
// `reset` ends logging. Every write of the device to the ranges is in its log: those through the
// host's table of the same id, and those to pinned memory, of which `pin` says the GPA.
typedef struct drogher_dma_log {
  // sizeof, as the plugin was compiled.
  uint32_t size;
  // DROGHER_DMA_LOG_*.
  uint32_t flags;
  // Smallest tracking page in bytes: a power of two, 4 KiB to 2 MiB.
  uint64_t min_page;
  // Largest; as above, not below min_page.
  uint64_t max_page;
  // Most ranges of one `start`, 1 to DROGHER_DMA_LOG_RANGES_MAX.
  uint32_t max_ranges;
  // Must be 0.
  uint32_t reserved;
  // From its return on, writes to the ranges are logged. Called when no log runs, in any state but
  // ERROR. On failure nothing is logged, and nothing kept of `info`.
  // [serialised] [deadline: call]
  int32_t (*start)(void *dev, struct drogher_log_start *info);
  // Moves what was logged in `len` bytes from `gpa`, whole tracking pages inside one range, into
  // `words`: bit b of word w is page 64 * w + b from there. The words are zeroed, `word_count` is
  // what the pages need; bits beyond the last page stay 0. On failure what it took may be lost: the
  // host then takes all memory as written. NULL with DROGHER_DMA_LOG_SHARED.
  // [serialised] [deadline: call]
  int32_t (*report)(void *dev, uint64_t gpa, uint64_t len, uint64_t *words, uint64_t word_count);
  // Ends logging and forgets what was not reported. Called when a log runs, in any state but ERROR.
  // On return the plugin does not touch the bitmap any more.
  // [serialised] [deadline: call]
  int32_t (*stop)(void *dev);
} drogher_dma_log;

// The host's part: the writes of `drogher_dma`, with the same status and memory model, that also say
// where they landed: an IOVA cannot be translated later. What they store is marked dirty by the host
// as well. `runs` NULL, or without room for one run, is DROGHER_ERR_INVAL.
typedef struct drogher_dma_log_host {
  // sizeof, as the host was compiled.
  uint32_t size;
  // 0 in this version.
  uint32_t flags;
  // As `write` of `drogher_dma`. If it lands on more runs than there is room for it ends there,
  // with DROGHER_OK and `*done` less than `len`: go on from there with the room cleared.
  // [any]
  int32_t (*write)(drogher_host_ctx *ctx,
                   uint32_t requester,
                   uint64_t iova,
                   const void *data,
                   uint64_t len,
                   uint64_t *done,
                   struct drogher_gpa_runs *runs);
  // As `fill` of `drogher_dma`, likewise.
  // [any]
  int32_t (*fill)(drogher_host_ctx *ctx,
                  uint32_t requester,
                  uint64_t iova,
                  uint8_t byte,
                  uint64_t len,
                  uint64_t *done,
                  struct drogher_gpa_runs *runs);
  // As there; one run.
  // [any]
  int32_t (*fetch_add_u32)(drogher_host_ctx *ctx,
                           uint32_t requester,
                           uint64_t iova,
                           uint32_t add,
                           uint32_t *old,
                           struct drogher_gpa_runs *runs);
  // As there; one run.
  // [any]
  int32_t (*fetch_add_u64)(drogher_host_ctx *ctx,
                           uint32_t requester,
                           uint64_t iova,
                           uint64_t add,
                           uint64_t *old,
                           struct drogher_gpa_runs *runs);
  // As there; one run, written or not.
  // [any]
  int32_t (*compare_swap_u32)(drogher_host_ctx *ctx,
                              uint32_t requester,
                              uint64_t iova,
                              uint32_t expected,
                              uint32_t desired,
                              uint32_t *old,
                              struct drogher_gpa_runs *runs);
  // As there; one run, written or not.
  // [any]
  int32_t (*compare_swap_u64)(drogher_host_ctx *ctx,
                              uint32_t requester,
                              uint64_t iova,
                              uint64_t expected,
                              uint64_t desired,
                              uint64_t *old,
                              struct drogher_gpa_runs *runs);
} drogher_dma_log_host;

// Memory pinned. Never grows.
typedef struct drogher_pinned {
  // The first byte, in the process that asked; aligned as the IOVA is, up to 8 bytes. The guest and
  // other devices access it too: use atomic or volatile accesses.
  void *ptr;
  // Bytes from there. After DROGHER_ERR_RANGE: how many could be pinned from this IOVA on.
  uint64_t len;
  // For `unpin`; not 0.
  uint64_t handle;
  // Where the first byte lies in the guest's physical address space, and the others after it: for a
  // log of the plugin's own.
  uint64_t gpa;
} drogher_pinned;

// The plugin's side. Needs `drogher.migration/1`: a device that is not told of STOP could not unpin.
//
// A page pinned for writing counts as dirty at each harvest for as long as it is pinned, and once more
// when it is unpinned. No pin for writing may be left when `set_state` returns STOP, STOP_COPY or
// RESUMING, and none at all when `reset` returns: the device is in ERROR otherwise. In NDMA pins may
// stay, but nothing is written. What is still pinned at `destroy` is given back by the host.
typedef struct drogher_dma_pin {
  // sizeof, as the plugin was compiled.
  uint32_t size;
  // DROGHER_PIN_ONLY.
  uint32_t flags;
  // This range of IOVA is about to be unmapped: on return every pin that overlaps it was given back
  // by `unpin`, and is not used any more. Only called if there is one. A failure, or a pin that is
  // left, leads to ERROR.
  // [serialised] [deadline: call]
  int32_t (*unmap)(void *dev, uint64_t iova, uint64_t len);
} drogher_dma_pin;

// The host's side. Pins go by IOVA, through the translation and permissions of the requester, and stay
// with the memory that was there, whatever becomes of the translation.
//
// Status: DROGHER_OK; DROGHER_ERR_PERM where the device may do no DMA (state, NDMA or ERROR), `unpin`
// apart; DROGHER_ERR_FAULT for what is not mapped, not permitted, or beyond the address width;
// DROGHER_ERR_INVAL for NULL, no bytes, a range that wraps, an access that is none;
// DROGHER_ERR_NOENT for an unknown requester or handle; DROGHER_ERR_NOTSUP if the plugin does not
// offer this extension itself; DROGHER_ERR_SHUTDOWN.
typedef struct drogher_dma_pin_host {
  // sizeof, as the host was compiled.
  uint32_t size;
  // 0 in this version.
  uint32_t flags;
  // Pins `len` bytes for DROGHER_PIN_READ or other. DROGHER_ERR_RANGE, with `out->len`, if they do not
  // lie together in memory or are more than DROGHER_PIN_LEN_MAX; DROGHER_ERR_NOMEM for one pin too
  // many; DROGHER_ERR_BUSY for a range that is being unmapped.
  // [any]
  int32_t (*pin)(drogher_host_ctx *ctx,
                 uint32_t requester,
                 uint64_t iova,
                 uint64_t len,
                 uint32_t access,
                 struct drogher_pinned *out);
  // Gives a pin back: what it pinned is not used any more. In any state, once each.
  // [any]
  int32_t (*unpin)(drogher_host_ctx *ctx, uint64_t handle);
  // The pages of this range were written to by a way that the host does not see: they count as dirty
  // once. After the store, and before STOP or NDMA is entered.
  // [any]
  int32_t (*mark_dirty)(drogher_host_ctx *ctx, uint32_t requester, uint64_t iova, uint64_t len);
} drogher_dma_pin_host;

// A preference. Zeroed and sized by the host; the text is valid until `destroy`.
typedef struct drogher_preference {
  // sizeof, as the host was compiled.
  uint32_t size;
  // DROGHER_TRACKER_*.
  uint32_t tracker;
  // Tracking page size in bytes, a power of two from 4 KiB to 2 MiB; 0: no wish.
  uint64_t page_size;
  // What one harvest costs, by the plugin's account, in ns; 0: unknown.
  uint64_t cost_hint_ns;
  // Why, in a few words for people.
  struct drogher_str reason;
} drogher_preference;

// What the plugin prefers. A hint: the operator may choose otherwise, and what cannot be had is passed
// over.
typedef struct drogher_prefers {
  // sizeof, as the plugin was compiled.
  uint32_t size;
  // Must be 0.
  uint32_t flags;
  // Fills in the preference of this instance. Called once, after `create`.
  // [serialised] [deadline: call]
  int32_t (*get)(void *dev, struct drogher_preference *out);
} drogher_prefers;

// What a plugin exports, as constant data under the name `drogher_plugin_entry`.
//
// Everything before `reserved` is plain bytes, so that it can be read from the file without
// loading it. The texts are UTF-8, ended by a NUL inside the array, not empty, no control
// characters.
typedef struct drogher_plugin_descriptor {
  // DROGHER_PLUGIN_MAGIC.
  uint64_t magic;
  // sizeof(drogher_plugin_descriptor), as the plugin was compiled.
  uint32_t struct_size;
  // DROGHER_ABI_MAJOR.
  uint32_t abi_major;
  // DROGHER_ABI_MINOR.
  uint32_t abi_minor;
  // DROGHER_PLUGIN_ABORTS and others; unknown bits must be 0.
  uint32_t flags;
  // Names the plugin for ever, in the migration stream too: reverse domain style, of
  // `a-z 0-9 . - _`.
  char id[64];
  // For people.
  char name[64];
  // Version of the plugin, for people; the state format has a version of its own.
  char version[32];
  // Who made it.
  char vendor[64];
  // SPDX expression.
  char licence[64];
  // Must be 0.
  uint64_t reserved[4];
  // Called once per process, before anything else. May be NULL. `host_ctx` is the plugin's as a
  // whole and valid for ever: with it `log` and `set_last_error` work, all that needs a device
  // answers DROGHER_ERR_PERM. A failure refuses the plugin for the life of the process.
  // [serialised: with every call into the plugin] [deadline: load]
  int32_t (*init)(const struct drogher_host *host, drogher_host_ctx *host_ctx);
  // Called at most once, after the last instance was destroyed; perhaps never: a process may
  // just end. The file stays loaded, and its destructors and atexit functions are not run. May be
  // NULL.
  // [serialised: with every call into the plugin] [deadline: call]
  void (*deinit)(void);
  // The device. Valid for ever.
  const struct drogher_device_ops *device;
  // Returns the plugin's table for an extension (`drogher_migration` for
  // DROGHER_EXT_MIGRATION, and so on) or NULL. `id` has `id_len` bytes and a NUL after them.
  // `dev` is an instance, or NULL when the host asks before there is one; the answer may differ
  // by instance. Tables are constant and valid for ever. Unknown ids: NULL. May be NULL.
  // [serialised; with every create of this plugin where `dev` is NULL] [deadline: call; load where
  // `dev` is NULL]
  const void *(*get_extension)(void *dev, const char *id, uint64_t id_len);
} drogher_plugin_descriptor;

/*
 * What a plugin defines. In C:
 *
 *   DROGHER_EXPORT const drogher_plugin_descriptor drogher_plugin_entry = {
 *       .magic = DROGHER_PLUGIN_MAGIC,
 *       .struct_size = sizeof(drogher_plugin_descriptor),
 *       .abi_major = DROGHER_ABI_MAJOR,
 *       .abi_minor = DROGHER_ABI_MINOR,
 *       .id = "org.example.thing",
 *       .name = "Thing", .version = "1.0", .vendor = "Example", .licence = "MIT",
 *       .device = &my_device_ops,
 *   };
 */
#ifdef __cplusplus
extern "C" {
#endif
DROGHER_EXPORT extern const drogher_plugin_descriptor drogher_plugin_entry;
#ifdef __cplusplus
}
#endif

#endif  // DROGHER_PLUGIN_H
