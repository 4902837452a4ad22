#ifndef DROGHER_PLUGIN_H
#define DROGHER_PLUGIN_H

/*
 * The interface between drogher and its device plugins, version 1.
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 * Generated from the crate drogher-plugin-abi; DESIGN.md there is the normative text. In short:
 *
 * A plugin is a shared object that exports one constant, `drogher_plugin_entry` (see the end).
 *
 * Structs begin with `size`, set by who provides them: the host for its tables and for what it wants
 * filled in, the plugin for its tables. They grow at the end only. What lies beyond the other side's
 * size is absent. Everything called reserved, and all unknown flags, must be 0.
 *
 * Tables (of functions) and the texts that they hold are constant and valid for ever. All else that a
 * pointer argument points to is borrowed for the duration of the call: copy what you keep. Buffers to
 * be filled are initialised. Who allocates frees; nothing is freed by the other side.
 *
 * Threads. Each function carries one of
 *   [serialised]  called by the host: never twice at once for one instance, but from no fixed thread;
 *                 what one call wrote the next one sees. Different instances are called in parallel.
 *   [serialised: with ...]  more than that is kept apart, as it says.
 *   [any]         called by the plugin: from any thread, at any time between create's begin and
 *                 destroy's return, in parallel, also from inside a call.
 * No host function calls into a plugin, so a plugin may hold its own locks while it calls one.
 *
 * Deadlines. [deadline: call] about 2 s, [deadline: state] about 5 s, set by the operator. A call that
 * has not returned by then is given up: DMA and interrupts of the device end, it is in ERROR for good,
 * and nothing is called for it again. Long work belongs on threads of the plugin's own.
 *
 * Status. 0 or a negative DROGHER_ERR_*; say why with set_last_error before. A failure has no effect
 * on the device, except DROGHER_ERR_FATAL: it is then in ERROR. No exception, panic or longjmp may
 * leave a function.
 *
 * States. A device begins in STOP. DMA and interrupts are let through in RUNNING, RUNNING_P2P, PRE_COPY
 * and PRE_COPY_P2P outside NDMA; elsewhere the host refuses them, whatever the plugin does, and counts
 * them as the plugin's fault.
 *
 * Extension ids of a plugin: drogher.migration/1, drogher.ndma/1, drogher.params/1; of the host:
 * drogher.dma/1. Reserved for later: drogher.dma-log/1, drogher.dma-pin/1, drogher.prefers/1,
 * drogher.net-port/1, drogher.inspect/1, and everything that begins with "drogher.". An extension that
 * must break gets a new number.
 */

#include <stdint.h>

#if defined(__GNUC__)
#define DROGHER_EXPORT __attribute__((visibility("default")))
#else
#define DROGHER_EXPORT
#endif

/* Opaque: the host's side of one instance. */
typedef struct drogher_host_ctx drogher_host_ctx;
