/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The file "memslots" in the debugfs directory of a VM.
 */
#ifndef SELFTEST_KVM_MEMSLOTS_FILE_H
#define SELFTEST_KVM_MEMSLOTS_FILE_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "kvm_util.h"
#include "test_util.h"

#define MEMSLOT_INVALID		BIT(16)

struct memslot_row {
	char sets[16];
	u32 as, id;
	u64 gfn, pages, hva;
	u32 flags;
	/* The flags again, as words. */
	char words[64];
};

struct memslots_file {
	/* The inactive sets are shown, too. */
	bool has_inactive;
	bool update_waits;
	int nr_rows;
	struct memslot_row *rows;
};

/* The calling thread must have created the VM.  Returns -1 if there is no file. */
static inline int open_memslots_file(struct kvm_vm *vm)
{
	char name[128];

	snprintf(name, sizeof(name), "/sys/kernel/debug/kvm/%ld-%d/memslots",
		 syscall(__NR_gettid), vm->fd);
	return open(name, O_RDONLY);
}

/* Reads all of @fd, at most @chunk bytes at a time. */
static inline char *read_text(int fd, size_t chunk)
{
	size_t len = 0, size = SZ_64K;
	char *text = malloc(size);
	ssize_t r;

	for (;;) {
		TEST_ASSERT(text, "Insufficient Memory");
		r = read(fd, text + len, min(chunk, size - len - 1));
		TEST_ASSERT(r >= 0, "Cannot read memslots, errno %d", errno);
		if (!r)
			break;
		len += r;
		if (len == size - 1) {
			size *= 2;
			text = realloc(text, size);
		}
	}
	text[len] = '\0';
	return text;
}

static inline void parse_memslots(char *text, struct memslots_file *file)
{
	struct memslot_row *row;
	int nr_lines = 0, n;
	char *line, *next;

	for (line = text; *line; line++)
		nr_lines += *line == '\n';
	*file = (struct memslots_file) {
		.has_inactive = true,
		.rows = calloc(nr_lines + 1, sizeof(*file->rows)),
	};
	TEST_ASSERT(file->rows, "Insufficient Memory");

	for (line = text; *line; line = next + 1) {
		next = strchr(line, '\n');
		TEST_ASSERT(next, "A line without an end: %s", line);
		*next = '\0';
		if (*line == '#') {
			if (strstr(line, "inactive sets are not shown"))
				file->has_inactive = false;
			if (strstr(line, "an update waits for readers"))
				file->update_waits = true;
			continue;
		}
		row = &file->rows[file->nr_rows++];
		n = sscanf(line, "%15s %u %u %lx %lx %lx %x %63[^\n]", row->sets,
			   &row->as, &row->id, &row->gfn, &row->pages,
			   &row->hva, &row->flags, row->words);
		TEST_ASSERT(n >= 7, "Unexpected line: %s", line);
	}
	free(text);
}

static inline void read_memslots(struct kvm_vm *vm, struct memslots_file *file)
{
	int fd = open_memslots_file(vm);

	TEST_ASSERT(fd >= 0, "Cannot open memslots, errno %d", errno);
	parse_memslots(read_text(fd, SZ_1M), file);
	close(fd);
}

static inline void free_memslots(struct memslots_file *file)
{
	free(file->rows);
}

/* KVM's own memslots, which Intel's has for some vCPUs, have ids after them. */
static inline int memslots_nr_user_rows(const struct memslots_file *file)
{
	u32 nr_ids = kvm_check_cap(KVM_CAP_NR_MEMSLOTS);
	int i, nr = 0;

	for (i = 0; i < file->nr_rows; i++)
		nr += file->rows[i].id < nr_ids;
	return nr;
}

#endif /* SELFTEST_KVM_MEMSLOTS_FILE_H */
