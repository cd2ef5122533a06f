#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# vm.sh: boots the test kernel and runs $CMD in it. See `make help`; the kernel must have been built.
. "$(dirname "$0")/lib.sh"

FLAVOUR=${FLAVOUR:-rust}
SMP=${SMP:-2}
MEM=${MEM:-4G}
CMD=${CMD:?which command? make vm CMD=...}
TIMEOUT=${TIMEOUT:-3600}
ACCEL=${ACCEL:-tcg}

# What the kernel prints when something is wrong with it.
REPORT='WARNING:|BUG:|Oops|KASAN:|UBSAN:|kernel panic|general protection fault|stack segment|refcount_t:|list_(add|del) corruption'
REPORT+='|INFO: (task .* blocked|possible|suspicious|trying to register)|rcu: INFO:|detected stall|suspicious RCU usage'
REPORT+='|possible .* deadlock|inconsistent lock state|lock held when returning|kmemleak: [0-9]+ new|unreferenced object|rust_kernel: panicked'

# CMD is kept off the first processor that QEMU emulates. Whenever another one loads x87 state, QEMU rewrites the first
# one's env->hflags2 without a lock (cpu_clear_ignne(), in 10.0 and 11.1). If KVM enters or leaves a guest there at that
# moment, the processor is in the guest without nested paging, or in the host with it: the guest dies of a page fault that
# nobody raised, or goes on with the host's registers.
spare=0
# shellcheck disable=SC2054  # the commas are QEMU's
case $ACCEL in
tcg) cpu=(-accel tcg,thread=multi -cpu EPYC,+svm,+npt) spare=1 ;;
kvm)
	[[ -w /dev/kvm ]] || die "ACCEL=kvm: no access to /dev/kvm"
	grep -qsx '[Y1]' /sys/module/kvm_{amd,intel}/parameters/nested ||
		die "ACCEL=kvm: this machine's KVM does not nest" "load kvm_amd or kvm_intel with nested=1, or leave ACCEL out"
	cpu=(-accel kvm -cpu host)
	;;
*) die "ACCEL is tcg or kvm, not '$ACCEL'" ;;
esac

case $FLAVOUR in
rust | c) kernel=rust ;;
debug) kernel=debug ;;
*) die "no flavour '$FLAVOUR'" "FLAVOUR is rust, c or debug" ;;
esac
[[ -f $WORK/kernel/$FLAVOUR/bzImage ]] || die "the $FLAVOUR kernel is not built" "make kernel FLAVOUR=$FLAVOUR"
[[ -z ${SHARE:-} || -d $SHARE ]] || die "SHARE=$SHARE is not a directory"

# The run's own directory: the kernels as they are now, the command, what comes back.
mkdir -p "$CACHE/run"
run=$(mktemp -d "$CACHE/run/XXXXXX")
trap 'rm -rf "$run"' EXIT
trap 'exit 130' INT TERM
in_run=$IN_CACHE/run/${run##*/}
console=$LOG/console-$FLAVOUR-${run##*/}.log
find "$LOG" -name 'console-*' -mtime +1 -delete
cp -al "$WORK/kernel" "$run/kernel"
printf '%s\n' "$CMD" >"$run/cmd"
printf '%s\n' "$FLAVOUR" >"$run/flavour"
printf '%d-%d\n' "$spare" $((SMP + spare - 1)) >"$run/cpus"

# The output of CMD goes through ports of its own, the console to a file. The root file system is that of the toolchain,
# read-only. Not virtme-ng: its init waits for udev, which takes minutes on the debug kernel.
mkfifo "$run/stdout" "$run/stderr"
cat "$run/stdout" &
cat "$run/stderr" >&2 &
: >"$console"
# shellcheck disable=SC2054  # the commas are QEMU's
qemu=(-machine q35 "${cpu[@]}" -smp $((SMP + spare)) -m "$MEM" -nodefaults -display none -no-reboot
	-serial "file:$IN_CACHE${console#"$CACHE"}" -kernel "$in_run/kernel/$kernel/bzImage" -device virtio-serial-pci)
for port in stdout stderr; do
	qemu+=(-chardev "file,id=$port,path=$in_run/$port" -device "virtserialport,name=$port,chardev=$port")
done
mounts=("root,path=/,readonly=on" "run,path=$in_run")
if [[ -n ${SHARE:-} ]]; then
	EXTRA=$(cd "$SHARE" && pwd)
	export EXTRA
	mounts+=("share,path=$([[ $TOOLCHAIN == host ]] && echo "$EXTRA" || echo /mnt/extra)")
fi
for m in "${mounts[@]}"; do
	qemu+=(-fsdev "local,security_model=none,multidevs=remap,id=$m" -device "virtio-9p-pci,fsdev=${m%%,*},mount_tag=${m%%,*}")
done
append="console=ttyS0 root=root rootfstype=9p rootflags=trans=virtio,version=9p2000.L,msize=262144,cache=loose ro"
# guest-run starts the other processors: with more of them than a busy machine has, stop_machine() for the first clocksource
# has been seen to take for ever.
append+=" maxcpus=1 init=$IN_SRC/tools/kvm/build/guest-run RUN=$in_run ignore_loglevel oops=panic panic=-1"
append+=" hung_task_panic=0 sysctl.kernel.hung_task_timeout_secs=240 rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60"
start=$SECONDS
inside timeout --foreground "$TIMEOUT" qemu-system-x86_64 "${qemu[@]}" -append "$append" </dev/null >>"$console" 2>&1 || true
[[ -z ${CONSOLE:-} ]] || cp "$console" "$CONSOLE"

status=$(cat "$run/status" 2>/dev/null) || {
	tail -40 "$console" >&2
	((SECONDS - start < TIMEOUT)) || die "the VM did not end within TIMEOUT=$TIMEOUT seconds" "console: $console"
	die "the VM ended before the command did; its last words are above" "console: $console"
}
if grep -qE "^\[[ 0-9.]+\].*($REPORT)" "$console" || [[ -s $run/kmemleak ]]; then
	say "the kernel complained (all of it: $console):"
	grep -m 1 -E -A 60 "^\[[ 0-9.]+\].*($REPORT)" "$console" >&2 || head -60 "$run/kmemleak" >&2
	((status != 0)) || status=99
fi
exit "$status"
