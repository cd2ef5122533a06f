# SPDX-License-Identifier: GPL-2.0-only
# KVM's guest-memory core in Rust, an overlay on Linux. `make help` says what there is.

B := tools/kvm/build
FLAVOUR ?= rust
# Not make's to expand.
override CMD := $(value CMD)
export CACHE KSRC TOOLCHAIN MIRROR JOBS OUT FLAVOUR VENDOR SMP MEM SHARE FILES CMD TIMEOUT ACCEL CONSOLE BUILD SIGNOFF FUZZ_TIME

.PHONY: help demo demo-ucas demo-areas bench test test-all host-test fuzz lint selftests upstream-selftests test-intel \
	check-configs check-fixes kernel vm apply unapply series shell clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 28
	@echo
	@sed -n 's/^#   /  /p' Makefile

# Variables, for `make help`:
#   FLAVOUR=rust|c|debug      ours; upstream's C from the same tree; ours with KASAN, lockdep and kmemleak
#   VENDOR=amd|intel          the VM's processor: SVM under QEMU, VMX under Bochs
#   SMP=2 MEM=4G              processors and memory of the test VM (2G with VENDOR=intel)
#   SHARE=DIR                 is mounted at /mnt/share in the VM
#   FILES='...'               with VENDOR=intel: files that CMD needs and does not name
#   ACCEL=kvm|icount          runs the VM on this machine's KVM, which must nest; has its clock count instructions (SMP=1)
#   SIGNOFF=1                 adds your Signed-off-by to the patches of the series
#   FUZZ_TIME=60              seconds of make fuzz
#   TIMEOUT=3600              seconds after which the VM is given up
#   CONSOLE=FILE              where the VM's console goes
#   KSRC=DIR                  your own Linux tree, in place of Debian's package
#   TOOLCHAIN=host            your own compilers and QEMU, in place of a Debian root
#   CACHE=DIR OUT=DIR         where everything is built (~/.cache/kvm-rust-memory); where results go (out)

demo: ## a guest in memslots that are resized, split, merged and moved under it
	@$B/kernel.sh rust
	@FLAVOUR=rust $B/program.sh sample-vmm demo --svg /mnt/share/demo.svg

demo-ucas: ## vCPUs with memory of their own, a pager that fills it, and a vCPU that looks into it
	@$B/kernel.sh rust
	@FLAVOUR=rust $B/program.sh sample-vmm worlds --svg /mnt/share/worlds.svg

demo-areas: ## Linux in the sample VMM: heartbeat, record of a panic and steal time in memory that both share
	@$B/kernel.sh rust
	@FLAVOUR=rust $B/program.sh sample-vmm areas --kernel '$$KVM_MODULES/rust/bzImage' --module '$$KVM_MODULES/rust/kvm_areas.ko' \
		--svg /mnt/share/areas.svg

bench: ## C against Rust, list against single ioctls, populating against page faults, worlds against VMs, in one boot
	@$B/kernel.sh rust c
	@FLAVOUR=rust MEM=$(or $(MEM),8G) $B/program.sh kvm-memory-bench --svg /mnt/share/bench.svg

test: ## everything that is tested, and lint; ends with "N passed, N failed"
	@$B/test.sh

test-all: ## make test, and what takes too long for it: selftests FLAVOUR=debug, test-intel, check-configs, check-fixes, series BUILD=1
	@BUILD='' $B/test.sh all

host-test: ## tests of the crates and of the core's pure part, without a VM
	@$B/cargo.sh test

fuzz: ## random descriptors of memory areas, for FUZZ_TIME seconds, found by what they make the code do
	@$B/cargo.sh fuzz

lint: ## rustfmt, clippy, checkpatch, shellcheck, sphinx-build, SPDX
	@$B/lint.sh

selftests: ## our KVM selftests with FLAVOUR
	@$B/selftests.sh ours

upstream-selftests: ## upstream's KVM selftests, C against Rust; a verdict that differs fails
	@$B/selftests.sh upstream

test-intel: ## our KVM selftests, upstream's about memslots, and the demo, on Intel's VMX under Bochs
	@$B/selftests.sh intel
	@FLAVOUR=rust VENDOR=intel $B/program.sh sample-vmm demo --quick

check-configs: ## compile KVM in many configurations, for other architectures too; CONFIGS="rt cfi" takes these only
	@$B/configs.sh $(CONFIGS)

check-fixes: ## whether the test of each fix of KVM's own faults passes with the fix, and fails without it
	@$B/fixes.sh

kernel: ## build the test kernel of FLAVOUR
	@$B/kernel.sh $(FLAVOUR)

vm: ## run CMD as root in the test VM, with the KVM of FLAVOUR
	@$(if $(CMD),,$(error which command? make vm CMD='uname -a'))$B/kernel.sh $(FLAVOUR)
	@$B/vm.sh

apply: ## put the overlay into the kernel tree KSRC
	@$B/tree.sh apply

unapply: ## take the overlay off the kernel tree KSRC
	@$B/tree.sh unapply

series: ## write the overlay as patches to mail, and check that git am takes them; BUILD=1 builds each commit
	@$B/series.sh

shell: ## a shell in the toolchain root
	@$B/toolchain.sh
	@bash -c '. $B/lib.sh && inside bash'

clean: ## remove what was built; the toolchain root and the kernel source stay
	@bash -c '. $B/lib.sh && rm -rf "$$WORK"/{build,kernel,tree,tree.key,selftests,git,port,stage} "$$CACHE"/{target,run,log} "$$OUT"'
