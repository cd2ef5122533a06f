/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of tests of memory areas with one vCPU.  All of them run with WRMSR
 * of the guest, and with WRMSR that KVM emulates.
 */
#ifndef SELFTEST_KVM_MEM_AREA_FIXTURE_H
#define SELFTEST_KVM_MEM_AREA_FIXTURE_H

#include "mem_area.h"

FIXTURE(area)
{
	struct area_test test;
};

FIXTURE_VARIANT(area)
{
	bool emulate;
};

FIXTURE_VARIANT_ADD(area, hardware)
{
	.emulate = false,
};

FIXTURE_VARIANT_ADD(area, emulated)
{
	.emulate = true,
};

static char saved_fep[16];

FIXTURE_SETUP(area)
{
	if (variant->emulate && !set_param(FEP_PARAM, "1", saved_fep, sizeof(saved_fep)))
		SKIP(return, "Cannot force emulation");
	area_init(&self->test, 1);
}

FIXTURE_TEARDOWN(area)
{
	area_free(&self->test);
	if (variant->emulate)
		write_attr(FEP_PARAM, saved_fep);
}

#endif /* SELFTEST_KVM_MEM_AREA_FIXTURE_H */
