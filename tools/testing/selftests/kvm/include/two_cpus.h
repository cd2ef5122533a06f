/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The CPUs of a test that holds up one thread while another one runs.
 */
#ifndef SELFTEST_KVM_TWO_CPUS_H
#define SELFTEST_KVM_TWO_CPUS_H

#include <sched.h>

#include "test_util.h"

/* Finds two CPUs that this process may run on.  Skips the test without them. */
static inline void find_two_cpus(int *cpus)
{
	cpu_set_t set;
	int cpu, nr = 0;

	TEST_ASSERT(!sched_getaffinity(0, sizeof(set), &set),
		    "sched_getaffinity() failed, errno %d", errno);
	for (cpu = 0; cpu < CPU_SETSIZE && nr < 2; cpu++)
		if (CPU_ISSET(cpu, &set))
			cpus[nr++] = cpu;
	__TEST_REQUIRE(nr == 2, "Needs two CPUs");
}

#endif /* SELFTEST_KVM_TWO_CPUS_H */
