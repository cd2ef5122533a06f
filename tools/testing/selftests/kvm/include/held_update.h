/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memslot updates that are held up by a reader of the memslots, which waits for
 * a page from userfaultfd inside kvm->srcu.
 */
#ifndef SELFTEST_KVM_HELD_UPDATE_H
#define SELFTEST_KVM_HELD_UPDATE_H

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include "test_util.h"

/* A userfaultfd for memory at @mem, none of which is present. */
static inline int uffd_open(void *mem, size_t size)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)mem, .len = size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	TEST_ASSERT(uffd >= 0, "No userfaultfd, errno %d", errno);
	TEST_ASSERT(!ioctl(uffd, UFFDIO_API, &api) &&
		    !ioctl(uffd, UFFDIO_REGISTER, &reg),
		    "Cannot set up userfaultfd, errno %d", errno);
	return uffd;
}

static inline void uffd_await_fault(int uffd)
{
	struct pollfd pollfd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	TEST_ASSERT(poll(&pollfd, 1, 10000) == 1 &&
		    read(uffd, &msg, sizeof(msg)) == sizeof(msg),
		    "No fault, errno %d", errno);
}

/* Whether the thread has swapped memslots, and waits for readers of the old ones. */
static inline bool waits_for_readers(pid_t tid)
{
	char name[64], buf[128] = {};
	int fd;

	snprintf(name, sizeof(name), "/proc/self/task/%d/wchan", tid);
	fd = open(name, O_RDONLY);
	TEST_ASSERT(fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0,
		    "Cannot read %s, errno %d", name, errno);
	close(fd);
	return strstr(buf, "synchronize_srcu");
}

#endif /* SELFTEST_KVM_HELD_UPDATE_H */
