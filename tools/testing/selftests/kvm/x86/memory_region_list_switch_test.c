// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST gives guest memory another host address.
 *
 * A vCPU writes the inverted number of its pass to one page after the other.  Its
 * writes must be in the old memory up to some point and in the new memory from
 * there on, and none may be in the old memory after the ioctl has returned.
 */
#include "running_vcpus.h"

#define NR_UPDATES	36

#define SWITCH_GPA	0xc0000000ul
#define SWITCH_PAGES	8
#define SWITCH_SLOT	20

static void guest_writer(int id)
{
	u64 pass;
	int i;

	for (pass = 0; !READ_ONCE(guest_stop); pass++) {
		for (i = 0; i < SWITCH_PAGES; i++)
			WRITE_ONCE(*(u32 *)(SWITCH_GPA + i * PAGE_SIZE), ~pass);
		WRITE_ONCE(guest_passes[id], pass + 1);
	}
	GUEST_DONE();
}

/* It is KVM that writes. */
static void guest_emulated_writer(int id)
{
	u64 pass;
	void *buf;
	u32 val;
	int i;

	for (pass = 0; !READ_ONCE(guest_stop); pass++) {
		val = pass;
		asm volatile("outl %0, %1" : : "a"(val), "Nd"((u16)PIO_PORT));
		for (i = 0; i < SWITCH_PAGES; i++) {
			buf = (void *)(SWITCH_GPA + i * PAGE_SIZE);
			asm volatile("insl" : "+D"(buf)
				     : "d"((u16)PIO_PORT) : "memory");
		}
		WRITE_ONCE(guest_passes[id], pass + 1);
	}
	GUEST_DONE();
}

static const struct guest writers[] = {
	{ guest_writer, "plain" },
	{ guest_emulated_writer, "emulated" },
};

static bool switch_memory(const struct guest *writer, bool zap_all)
{
	const size_t size = SWITCH_PAGES * PAGE_SIZE;
	struct region_entry entries[2];
	u32 seen[SWITCH_PAGES];
	u8 *mem[2];
	int i, p, old;
	bool good = true;

	/* The order of the writes of one vCPU is known. */
	create_guest(writer->code, 1, false, zap_all);
	virt_map(vm, SWITCH_GPA, SWITCH_GPA, SWITCH_PAGES);
	populater_set_range(SWITCH_GPA, SWITCH_PAGES);
	for (i = 0; i < 2; i++)
		mem[i] = kvm_mmap(size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(vm, SWITCH_SLOT, 0, SWITCH_GPA, size, mem[0]);
	run_vcpus();

	for (i = 0; good && i < NR_UPDATES; i++) {
		old = i % 2;
		good = wait_for_passes();
		if (!good)
			break;
		usleep(kvm_random_u32_in_range(&kvm_rng, 0, 300));

		entries[0] = region_delete(SWITCH_SLOT + old);
		entries[1] = region_set(SWITCH_SLOT + !old, 0, SWITCH_GPA, size,
					mem[!old]);
		vm_set_region_entries(vm, 2, entries);

		for (p = 0; p < SWITCH_PAGES; p++)
			seen[p] = ~READ_ONCE(*(u32 *)(mem[old] + p * PAGE_SIZE));
		for (p = 1; p < SWITCH_PAGES; p++) {
			if (seen[p] <= seen[p - 1] && seen[p] + 1 >= seen[0])
				continue;
			ksft_print_msg("update %d, page %d: pass %u where page 0 has %u\n",
				       i, p, seen[p], seen[0]);
			good = false;
		}

		good &= wait_for_passes();
		for (p = 0; p < SWITCH_PAGES; p++) {
			if (~READ_ONCE(*(u32 *)(mem[old] + p * PAGE_SIZE)) == seen[p])
				continue;
			ksft_print_msg("update %d, page %d: written to after the update\n",
				       i, p);
			good = false;
		}
	}
	if (stop_guest())
		good = false;

	kvm_vm_free(vm);
	for (i = 0; i < 2; i++)
		kvm_munmap(mem[i], size);
	return good;
}

int main(int argc, char *argv[])
{
	struct sigaction sa = { .sa_handler = sig_ipi };
	int quirks, zap_all, i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	sigaction(SIG_IPI, &sa, NULL);
	patience = 30;
	quirks = kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL;

	ksft_print_header();
	ksft_set_plan((quirks ? 2 : 1) * ARRAY_SIZE(writers));

	for (zap_all = 1; zap_all >= (quirks ? 0 : 1); zap_all--)
		for (i = 0; i < ARRAY_SIZE(writers); i++)
			ksft_test_result(switch_memory(&writers[i], zap_all),
					 "%s writer, another host address, list%s\n",
					 writers[i].name,
					 zap_all ? "" : ", slot zap quirk disabled");

	ksft_finished();
}
