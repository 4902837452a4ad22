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
