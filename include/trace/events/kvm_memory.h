/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm

#if !defined(_TRACE_KVM_MEMORY_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_MEMORY_H

#include <linux/kvm_memory_core.h>
#include <linux/tracepoint.h>

/* Once for each batch of memslot updates.  A single update is a batch of one. */
TRACE_EVENT(kvm_memslot_batch,
	TP_PROTO(const struct kvm_memory_report *report),
	TP_ARGS(report),

	TP_STRUCT__entry(
		__field(u32, entries)
		__field(u32, changes)
		__field(u32, swaps)
		__field(u32, invalid)
		__field(u64, kept)
		__field(u64, gone)
		__field(u64, duration_ns)
		__field(int, failed)
		__field(int, error)
	),

	TP_fast_assign(
		__entry->entries = report->entries;
		__entry->changes = report->changes;
		__entry->swaps = report->swaps;
		__entry->invalid = report->invalid;
		__entry->kept = report->kept;
		__entry->gone = report->gone;
		__entry->duration_ns = report->duration_ns;
		__entry->failed = report->failed;
		__entry->error = report->error;
	),

	TP_printk("entries %u changes %u swaps %u invalid %u kept %llu gone %llu duration_ns %llu failed %d error %d",
		  __entry->entries, __entry->changes, __entry->swaps,
		  __entry->invalid, __entry->kept, __entry->gone,
		  __entry->duration_ns, __entry->failed, __entry->error)
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
