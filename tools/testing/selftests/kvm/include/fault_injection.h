/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Ioctls whose nth allocation fails.
 *
 * Needs CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC, CONFIG_FAULT_INJECTION_DEBUG_FS.
 */
#ifndef SELFTEST_KVM_FAULT_INJECTION_H
#define SELFTEST_KVM_FAULT_INJECTION_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "attr_util.h"
#include "test_util.h"

#define DEBUGFS		"/sys/kernel/debug/"

/* Of the test's main thread. */
static int fail_nth_fd;

static inline void set_fail_nth(unsigned int nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%u", nth);

	TEST_ASSERT(pwrite(fail_nth_fd, buf, len, 0) == len,
		    "Cannot write to fail-nth, errno %d", errno);
}

/* Returns whether an allocation has failed since set_fail_nth(). */
static inline bool has_failed(void)
{
	char buf[16] = {};

	TEST_ASSERT(pread(fail_nth_fd, buf, sizeof(buf) - 1, 0) > 0,
		    "Cannot read fail-nth, errno %d", errno);
	return !atoi(buf);
}

/* Calls the ioctl @cmd, whose @nth allocation fails if it makes that many. */
static inline int ioctl_fail_nth(unsigned int nth, int fd, unsigned long cmd,
				 void *arg, bool *failed)
{
	int r, saved_errno;

	set_fail_nth(nth);
	r = ioctl(fd, cmd, arg);
	saved_errno = errno;
	*failed = has_failed();
	set_fail_nth(0);
	errno = saved_errno;
	return r;
}

/*
 * Whether allocations of pages fail as well, and count.  The slab allocator
 * allocates pages every now and then, which would change the number of each
 * allocation after that.
 */
static inline bool fail_pages(bool fail)
{
	const char *ignore = fail ? "N" : "Y";

	return write_attr(DEBUGFS "fail_page_alloc/ignore-gfp-wait", ignore) &&
	       write_attr(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", ignore);
}

/* The attributes only concern tasks that write to their fail-nth. */
static inline bool have_fault_injection(void)
{
	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR);
	return fail_nth_fd >= 0 &&
	       write_attr(DEBUGFS "failslab/ignore-gfp-wait", "N") &&
	       write_attr(DEBUGFS "failslab/cache-filter", "N") &&
	       write_attr(DEBUGFS "failslab/verbose", "0") &&
	       fail_pages(false) &&
	       write_attr(DEBUGFS "fail_page_alloc/min-order", "0") &&
	       write_attr(DEBUGFS "fail_page_alloc/verbose", "0");
}

#endif /* SELFTEST_KVM_FAULT_INJECTION_H */
