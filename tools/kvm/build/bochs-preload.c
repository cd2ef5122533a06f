// SPDX-License-Identifier: GPL-2.0-only
/*
 * Preloaded into each program that runs in the VM under Bochs.  On VM entry,
 * Bochs 3.0 masks interrupts by the guest's RFLAGS.IF before it takes note that
 * it is in a guest, where the control "external-interrupt exiting" has
 * interrupts exit whatever IF is.  They stay masked until the guest changes IF:
 * a guest that KVM enters with IF = 0, and that spins, keeps its processor for
 * ever.  KVM's selftests start vCPUs like that.  Let them start with IF = 1;
 * nothing interrupts them, except in tests that set up interrupts.
 */
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>

#define RFLAGS_FIXED	0x002
#define RFLAGS_IF	0x200

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int fd, unsigned long request, ...);
	struct kvm_regs regs;
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (!next)
		next = dlsym(RTLD_NEXT, "ioctl");
	if (request == KVM_SET_REGS && ((struct kvm_regs *)arg)->rflags == RFLAGS_FIXED) {
		regs = *(struct kvm_regs *)arg;
		regs.rflags |= RFLAGS_IF;
		arg = &regs;
	}
	return next(fd, request, arg);
}
