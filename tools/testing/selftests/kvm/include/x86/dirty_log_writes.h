/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest that writes to those pages of the dirty log's window that the host
 * names.
 */
#ifndef SELFTEST_KVM_DIRTY_LOG_WRITES_H
#define SELFTEST_KVM_DIRTY_LOG_WRITES_H

#include <string.h>

#include <asm/barrier.h>

#include "dirty_log_fixture.h"

/* Ends a list of pages. */
#define NONE		-1

/* The host writes the guest's copy. */
static bool guest_to_write[NR_PAGES];

static void guest_code(int id)
{
	int i;

	for (;;) {
		for (i = 0; i < NR_PAGES; i++)
			if (guest_to_write[i])
				WRITE_ONCE(*(u64 *)(WINDOW_GPA + i * PAGE_SIZE), i + 1);
		GUEST_SYNC(0);
	}
}

static void write_pages(struct kvm_vcpu *vcpu, const int *pages)
{
	bool *to_write = *guest_ptr(vcpu->vm, guest_to_write);

	memset(to_write, 0, sizeof(guest_to_write));
	for (; *pages != NONE; pages++)
		to_write[*pages] = true;

	vcpu_run(vcpu);
	TEST_ASSERT(get_ucall(vcpu, NULL) == UCALL_SYNC, "Unexpected exit: %s",
		    exit_reason_str(vcpu->run->exit_reason));
}

/* Has the guest write to pages of the window. */
#define guest_writes(vcpu, ...)						\
	write_pages(vcpu, (const int []) { __VA_ARGS__, NONE })

#endif /* SELFTEST_KVM_DIRTY_LOG_WRITES_H */
