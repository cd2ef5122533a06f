/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Threads that wait for readers of SRCU, as a memslot update waits for the
 * readers of the old memslots.
 */
#ifndef SELFTEST_KVM_SRCU_READERS_H
#define SELFTEST_KVM_SRCU_READERS_H

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "test_util.h"

static inline bool waits_for_readers(pid_t tid)
{
	char name[64], wchan[128] = {};
	int fd;

	snprintf(name, sizeof(name), "/proc/self/task/%d/wchan", tid);
	fd = open(name, O_RDONLY);
	TEST_ASSERT(fd >= 0 && read(fd, wchan, sizeof(wchan) - 1) > 0,
		    "Cannot read %s, errno %d", name, errno);
	close(fd);
	return strstr(wchan, "synchronize_srcu");
}

#endif /* SELFTEST_KVM_SRCU_READERS_H */
