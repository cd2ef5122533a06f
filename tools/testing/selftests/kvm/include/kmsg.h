/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Warnings of KVM in the kernel log.
 */
#ifndef SELFTEST_KVM_KMSG_H
#define SELFTEST_KVM_KMSG_H

#include <fcntl.h>
#include <unistd.h>

#include "attr_util.h"
#include "kselftest.h"
#include "test_util.h"

/*
 * Opens the kernel log at its end.  Re-arms WARN_ON_ONCE(), so that a warning
 * that the kernel has given before appears in the log again.
 */
static inline int kmsg_open(void)
{
	int fd;

	if (!write_attr("/sys/kernel/debug/clear_warn_once", "1"))
		ksft_print_msg("Cannot re-arm WARN_ON_ONCE(): old warnings will not be repeated\n");

	fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	__TEST_REQUIRE(fd >= 0 && lseek(fd, 0, SEEK_END) >= 0,
		       "Cannot read /dev/kmsg, errno %d", errno);
	return fd;
}

/* Returns whether KVM has warned since the last call, or since kmsg_open(). */
static inline bool kmsg_has_kvm_warning(int fd)
{
	bool found = false;
	char record[8192];
	ssize_t len;

	for (;;) {
		len = read(fd, record, sizeof(record) - 1);
		/* The kernel has overwritten records that were not yet read. */
		if (len < 0 && errno == EPIPE)
			continue;
		if (len < 0)
			break;

		record[len] = '\0';
		if (!strstr(record, "WARNING:") || !strstr(record, "kvm"))
			continue;

		record[strcspn(record, "\n")] = '\0';
		ksft_print_msg("%s\n", record);
		found = true;
	}
	TEST_ASSERT(errno == EAGAIN, "Cannot read /dev/kmsg, errno %d", errno);
	return found;
}

#endif /* SELFTEST_KVM_KMSG_H */
