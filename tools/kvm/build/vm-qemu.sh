# SPDX-License-Identifier: GPL-2.0-only
# Sourced by vm.sh: the machine is QEMU, which emulates AMD's SVM or (ACCEL=kvm) has the processor that it runs on.
# shellcheck shell=bash disable=SC2034,SC2154  # vm.sh has the other half of the variables
MEM=${MEM:-4G}
ACCEL=${ACCEL:-tcg}

# CMD is kept off the first processor that QEMU emulates. Whenever another one loads x87 state, QEMU rewrites the first
# one's env->hflags2 without a lock (cpu_clear_ignne(), in 10.0 and 11.1). If KVM enters or leaves a guest there at that
# moment, the processor is in the guest without nested paging, or in the host with it: the guest dies of a page fault that
# nobody raised, or goes on with the host's registers.
spare=0
# shellcheck disable=SC2054  # the commas are QEMU's
case $ACCEL in
tcg) cpu=(-accel tcg,thread=multi -cpu EPYC,+svm,+npt) spare=1 ;;
# The clock counts instructions: each takes 1 ns. QEMU then emulates all processors in one thread.
icount) cpu=(-accel tcg,thread=single -icount "shift=0,sleep=off" -cpu EPYC,+svm,+npt) ;;
kvm)
	[[ -w /dev/kvm ]] || die "ACCEL=kvm: no access to /dev/kvm"
	grep -qsx '[Y1]' /sys/module/kvm_{amd,intel}/parameters/nested ||
		die "ACCEL=kvm: this machine's KVM does not nest" "load kvm_amd or kvm_intel with nested=1, or leave ACCEL out"
	cpu=(-accel kvm -cpu host)
	;;
*) die "ACCEL is tcg, icount or kvm, not '$ACCEL'" ;;
esac

# boot APPEND: runs the VM until it ends. The root file system is that of the toolchain, read-only. Not virtme-ng: its init
# waits for udev, which takes minutes on the debug kernel.
boot() {
	local qemu port mounts m append=$1
	# shellcheck disable=SC2054  # the commas are QEMU's
	qemu=(-machine q35 "${cpu[@]}" -smp $((SMP + spare)) -m "$MEM" -nodefaults -display none -no-reboot
		-serial "file:$IN_CACHE${console#"$CACHE"}" -kernel "$in_run/kernel/$kernel/bzImage" -device virtio-serial-pci)
	for port in stdout stderr; do
		qemu+=(-chardev "file,id=$port,path=$in_run/$port" -device "virtserialport,name=$port,chardev=$port")
	done
	mounts=("root,path=/,readonly=on" "run,path=$in_run")
	[[ -z ${SHARE:-} ]] || mounts+=("share,path=$in_share")
	for m in "${mounts[@]}"; do
		qemu+=(-fsdev "local,security_model=none,multidevs=remap,id=$m" -device "virtio-9p-pci,fsdev=${m%%,*},mount_tag=${m%%,*}")
	done
	append+=" root=root rootfstype=9p rootflags=trans=virtio,version=9p2000.L,msize=262144,cache=loose ro"
	# guest-run starts the other processors: with more of them than a busy machine has, stop_machine() for the first clocksource
	# has been seen to take for ever.
	append+=" maxcpus=1 init=$IN_SRC/tools/kvm/build/guest-run MACHINE=qemu"
	inside timeout --foreground "$TIMEOUT" qemu-system-x86_64 "${qemu[@]}" -append "$append" \
		</dev/null >>"$console" 2>&1 || true
}
