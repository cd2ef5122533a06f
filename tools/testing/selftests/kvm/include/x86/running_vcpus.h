/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vCPUs that run in threads of their own while their memslots change.
 *
 * A guest works in passes, and counts them.  Beside lists, fork() write-protects its
 * memory, which takes it out of KVM's page tables.
 */
#ifndef SELFTEST_KVM_RUNNING_VCPUS_H
#define SELFTEST_KVM_RUNNING_VCPUS_H

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "kvm_util.h"
#include "map_memory_populater.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define MAX_VCPUS	8

#define MMIO_GPA	0xd0000000ul
#define PIO_PORT	0x2000
#define STRING_PORT	0x2004
#define STRING_LEN	64

#define SIG_IPI		SIGUSR1

struct guest {
	void (*code)(int id);
	const char *name;
	bool counts_passes;
};

/* The host accesses the guest's copies. */
static u64 guest_passes[MAX_VCPUS];
static bool guest_stop;

static inline u8 string_byte(u64 pos)
{
	return pos * 7 + 3;
}

static inline u64 mmio_val(u64 nr)
{
	return nr * 0x9e3779b97f4a7c15ul;
}

struct worker {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	bool pause, quit;
	sem_t paused, resume;

	/* How far the guest has got with its accesses to devices. */
	u64 pio, mmio, outs, ins;

	bool ended;
	/* Why the vCPU died; empty if it ended well. */
	char death[256];
};

static struct kvm_vm *vm;
static struct worker workers[MAX_VCPUS];
static int nr_workers;
static pthread_t forker;
static bool has_forker, forker_stop;
/* Seconds without progress after which a vCPU is dead. */
static int patience;
/* KVM_RUN may fail because the host forbids the access for a while. */
static bool may_be_denied;

static inline void sig_ipi(int sig)
{
}

/* These return false if the guest has done something wrong. */

static inline bool handle_io(struct worker *w)
{
	struct kvm_run *run = w->vcpu->run;
	u8 *data = (u8 *)run + run->io.data_offset;
	bool out = run->io.direction == KVM_EXIT_IO_OUT;
	int i;

	if (run->io.port == STRING_PORT) {
		for (i = 0; i < run->io.count; i++) {
			if (!out)
				data[i] = string_byte(w->ins++);
			else if (data[i] != string_byte(w->outs++))
				return false;
		}
		return true;
	}

	if (run->io.port != PIO_PORT || run->io.size != 4)
		return false;
	if (out)
		return *(u32 *)data == (u32)w->pio++;
	*(u32 *)data = ~(u32)(w->pio - 1);
	return true;
}

static inline bool handle_mmio(struct worker *w)
{
	struct kvm_run *run = w->vcpu->run;
	u64 *data = (u64 *)run->mmio.data;

	if (run->mmio.phys_addr != MMIO_GPA || run->mmio.len != 8)
		return false;
	if (run->mmio.is_write)
		return *data == mmio_val(w->mmio++);
	*data = ~mmio_val(w->mmio - 1);
	return true;
}

/* Returns whether the vCPU must run again. */
static inline bool handle_exit(struct worker *w)
{
	struct kvm_run *run = w->vcpu->run;
	struct ucall *uc = ucall_arch_get_ucall(w->vcpu);
	size_t len;

	if (uc && uc->cmd == UCALL_DONE)
		return false;
	if (!uc && run->exit_reason == KVM_EXIT_IO && handle_io(w))
		return true;
	if (run->exit_reason == KVM_EXIT_MMIO && handle_mmio(w))
		return true;

	len = snprintf(w->death, sizeof(w->death), "%s",
		       exit_reason_str(run->exit_reason));
	if (uc)
		snprintf(w->death, sizeof(w->death), "ucall %lu: %.200s",
			 uc->cmd, uc->buffer);
	else if (run->exit_reason == KVM_EXIT_MMIO)
		snprintf(w->death + len, sizeof(w->death) - len, " at 0x%llx",
			 run->mmio.phys_addr);
	else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		snprintf(w->death + len, sizeof(w->death) - len, " %u",
			 run->internal.suberror);
	return false;
}

static inline void *vcpu_worker(void *arg)
{
	struct worker *w = arg;
	int err;

	do {
		err = __vcpu_run(w->vcpu) ? errno : 0;
		if (READ_ONCE(w->pause)) {
			sem_post(&w->paused);
			while (sem_wait(&w->resume))
				;
		}
		if (READ_ONCE(w->quit))
			snprintf(w->death, sizeof(w->death), "stuck");
		else if (err && err != EINTR && !(err == EFAULT && may_be_denied))
			snprintf(w->death, sizeof(w->death),
				 "KVM_RUN failed with errno %d", err);
	} while (!w->death[0] && (err || handle_exit(w)));

	WRITE_ONCE(w->ended, true);
	sem_post(&w->paused);
	return NULL;
}

static inline void kick(struct worker *w)
{
	WRITE_ONCE(w->vcpu->run->immediate_exit, 1);
	pthread_kill(w->thread, SIG_IPI);
}

static inline void quit(struct worker *w)
{
	WRITE_ONCE(w->quit, true);
	kick(w);
}

static inline void pause_vcpus(void)
{
	struct worker *w;

	for (w = workers; w < workers + nr_workers; w++) {
		WRITE_ONCE(w->pause, true);
		kick(w);
	}
	for (w = workers; w < workers + nr_workers; w++)
		if (!READ_ONCE(w->ended))
			sem_wait(&w->paused);
}

static inline void resume_vcpus(void)
{
	struct worker *w;

	for (w = workers; w < workers + nr_workers; w++) {
		WRITE_ONCE(w->pause, false);
		WRITE_ONCE(w->vcpu->run->immediate_exit, 0);
		sem_post(&w->resume);
	}
}

static inline bool all_run(void)
{
	int i;

	for (i = 0; i < nr_workers; i++)
		if (READ_ONCE(workers[i].ended))
			return false;
	return true;
}

/* Waits for two more passes of each vCPU.  Returns false if a vCPU is dead. */
static inline bool wait_for_passes(void)
{
	u64 *passes = *guest_ptr(vm, guest_passes);
	struct timespec start;
	u64 seen[MAX_VCPUS];
	int i;

	for (i = 0; i < nr_workers; i++)
		seen[i] = READ_ONCE(passes[i]);

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < nr_workers; i++) {
		while (READ_ONCE(passes[i]) < seen[i] + 2) {
			if (!all_run())
				return false;
			if (timespec_elapsed(start).tv_sec >= patience) {
				for (i = 0; i < nr_workers; i++)
					quit(&workers[i]);
				return false;
			}
			usleep(100);
		}
	}
	return true;
}

/* Each fork() write-protects the guest's memory. */
static inline void *fork_children(void *unused)
{
	pid_t pid;

	while (!READ_ONCE(forker_stop)) {
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork() failed, errno %d", errno);
		if (!pid)
			_exit(0);
		waitpid(pid, NULL, 0);
		usleep(20000);
	}
	return NULL;
}

/*
 * Creates a VM with vCPUs for the workers.  @may_miss: slots may be missing at
 * times.  @zap_all: deleting a slot drops all mappings.
 */
static inline void create_guest(void *guest_code, int nr_vcpus, bool may_miss,
				bool zap_all)
{
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	int i;

	nr_workers = nr_vcpus;
	vm = vm_create_with_vcpus(nr_vcpus, guest_code, vcpus);
	populater_create(vm, MAX_VCPUS, may_miss);
	has_forker = !may_miss;
	forker_stop = false;
	virt_map(vm, MMIO_GPA, MMIO_GPA, 1);
	if (!zap_all)
		vm_enable_cap(vm, KVM_CAP_DISABLE_QUIRKS2,
			      KVM_X86_QUIRK_SLOT_ZAP_ALL);

	memset(workers, 0, sizeof(workers));
	for (i = 0; i < nr_workers; i++) {
		workers[i].vcpu = vcpus[i];
		sem_init(&workers[i].paused, 0, 0);
		sem_init(&workers[i].resume, 0, 0);
		vcpu_args_set(vcpus[i], 1, i);
	}
}

static inline void run_vcpus(void)
{
	int i;

	for (i = 0; i < nr_workers; i++)
		kvm_pthread_create(&workers[i].thread, NULL, vcpu_worker,
				   &workers[i]);
	populater_start();
	if (has_forker)
		kvm_pthread_create(&forker, NULL, fork_children, NULL);
}

/* Returns the number of vCPUs that died. */
static inline int stop_guest(void)
{
	struct timespec start;
	struct worker *w;
	int nr_dead = 0;

	if (has_forker) {
		WRITE_ONCE(forker_stop, true);
		kvm_pthread_join(forker, NULL);
	}
	populater_stop();

	WRITE_ONCE(*guest_ptr(vm, guest_stop), true);
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (w = workers; w < workers + nr_workers; w++) {
		while (!READ_ONCE(w->ended) &&
		       timespec_elapsed(start).tv_sec < patience)
			usleep(100);
		if (!READ_ONCE(w->ended))
			quit(w);
		kvm_pthread_join(w->thread, NULL);
		if (!w->death[0])
			continue;
		ksft_print_msg("vCPU %ld died: %s\n", w - workers, w->death);
		nr_dead++;
	}
	return nr_dead;
}

#endif /* SELFTEST_KVM_RUNNING_VCPUS_H */
