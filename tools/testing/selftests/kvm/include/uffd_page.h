/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memory that a thread waits for until the test provides it by userfaultfd.
 *
 * userfaultfd_util.h has a thread resolve faults as they come.  Here, the test
 * itself chooses the moment.
 */
#ifndef SELFTEST_KVM_UFFD_PAGE_H
#define SELFTEST_KVM_UFFD_PAGE_H

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

static inline int __uffd_open(void *mem, size_t size, u64 mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)mem, .len = size },
		.mode = mode,
	};
	struct uffdio_api api = { .api = UFFD_API };
	/* poll() reports an error for a userfaultfd whose read() blocks. */
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	TEST_ASSERT(uffd >= 0, "No userfaultfd, errno %d", errno);
	TEST_ASSERT(!ioctl(uffd, UFFDIO_API, &api) &&
		    !ioctl(uffd, UFFDIO_REGISTER, &reg),
		    "Cannot set up userfaultfd, errno %d", errno);
	return uffd;
}

/* Opens a userfaultfd for memory at @mem that is not present. */
static inline int uffd_open(void *mem, size_t size)
{
	return __uffd_open(mem, size, UFFDIO_REGISTER_MODE_MISSING);
}

/* Provides a missing page, and wakes the threads that wait for it. */
static inline void uffd_copy(int uffd, void *page, void *contents)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page,
		.src = (uintptr_t)contents,
		.len = PAGE_SIZE,
	};

	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy),
		    "UFFDIO_COPY failed, errno %d", errno);
}

static inline bool uffd_can_protect(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	bool can;

	if (uffd < 0)
		return false;

	can = !ioctl(uffd, UFFDIO_API, &api) &&
	      (api.features & UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	close(uffd);
	return can;
}

static inline void __uffd_protect(int uffd, void *mem, size_t size, u64 mode)
{
	struct uffdio_writeprotect protect = {
		.range = { .start = (uintptr_t)mem, .len = size },
		.mode = mode,
	};

	TEST_ASSERT(!ioctl(uffd, UFFDIO_WRITEPROTECT, &protect),
		    "UFFDIO_WRITEPROTECT failed, errno %d", errno);
}

/* Opens a userfaultfd for writes to memory at @mem, all of which is present. */
static inline int uffd_open_protected(void *mem, size_t size)
{
	int uffd = __uffd_open(mem, size, UFFDIO_REGISTER_MODE_WP);

	__uffd_protect(uffd, mem, size, UFFDIO_WRITEPROTECT_MODE_WP);
	return uffd;
}

static inline void uffd_unprotect(int uffd, void *mem, size_t size)
{
	__uffd_protect(uffd, mem, size, 0);
}

static inline void uffd_await_fault(int uffd)
{
	struct pollfd pollfd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	TEST_ASSERT(poll(&pollfd, 1, 60000) == 1 &&
		    read(uffd, &msg, sizeof(msg)) == sizeof(msg),
		    "No fault, errno %d", errno);
}

#endif /* SELFTEST_KVM_UFFD_PAGE_H */
