/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm

#if !defined(_TRACE_KVM_MEMORY_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_MEMORY_H

#include <linux/tracepoint.h>

/* Once for each batch of memslot updates.  A single update is a batch of one. */
TRACE_EVENT(kvm_memslot_batch,
	TP_PROTO(unsigned int entries, unsigned int changes, unsigned int swaps,
		 int error),
	TP_ARGS(entries, changes, swaps, error),

	TP_STRUCT__entry(
		__field(unsigned int, entries)
		__field(unsigned int, changes)
		__field(unsigned int, swaps)
		__field(int, error)
	),

	TP_fast_assign(
		__entry->entries = entries;
		__entry->changes = changes;
		__entry->swaps = swaps;
		__entry->error = error;
	),

	TP_printk("entries %u changes %u swaps %u error %d",
		  __entry->entries, __entry->changes, __entry->swaps,
		  __entry->error)
);

/* Once for each list of memslots that becomes the active one. */
TRACE_EVENT(kvm_memslot_swap,
	TP_PROTO(unsigned int as_id, u64 generation),
	TP_ARGS(as_id, generation),

	TP_STRUCT__entry(
		__field(unsigned int, as_id)
		__field(u64, generation)
	),

	TP_fast_assign(
		__entry->as_id = as_id;
		__entry->generation = generation;
	),

	TP_printk("as_id %u generation %llu", __entry->as_id,
		  __entry->generation)
);

#endif /* _TRACE_KVM_MEMORY_H */

/* The system is kvm, but trace/events/kvm.h has that name already. */
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE kvm_memory

#include <trace/define_trace.h>
