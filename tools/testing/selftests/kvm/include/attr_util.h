/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Attributes of the kernel in sysfs and debugfs: module parameters and the like.
 */
#ifndef SELFTEST_KVM_ATTR_UTIL_H
#define SELFTEST_KVM_ATTR_UTIL_H

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

static inline bool write_attr(const char *name, const char *value)
{
	ssize_t len = strlen(value);
	bool written;
	int fd;

	fd = open(name, O_WRONLY);
	if (fd < 0)
		return false;

	written = write(fd, value, len) == len;
	close(fd);
	return written;
}

static inline bool read_attr(const char *name, char *buf, size_t size)
{
	ssize_t len;
	int fd;

	fd = open(name, O_RDONLY);
	if (fd < 0)
		return false;

	len = read(fd, buf, size - 1);
	close(fd);
	if (len <= 0)
		return false;

	buf[len] = '\0';
	return true;
}

#endif /* SELFTEST_KVM_ATTR_UTIL_H */
