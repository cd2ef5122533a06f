# SPDX-License-Identifier: GPL-2.0-only
# Sourced by vm.sh: the machine is Bochs, which emulates an Intel processor with VMX, EPT and PML. It has no file system in
# common with the host: bochs-disc puts the files that CMD needs on a disc, guest-run sends back what changed.
# shellcheck shell=bash disable=SC2034,SC2154  # vm.sh has the other half of the variables
MEM=${MEM:-2G}
[[ ${ACCEL:-tcg} == tcg ]] || die "VENDOR=intel takes no ACCEL" "it is emulated; on an Intel machine, ACCEL=kvm without VENDOR is VMX"
spare=0

# boot APPEND: runs the VM until it ends.
boot() {
	local net=() append=$1
	# By its timestamp counter's nominal frequency, a second of the guest would take half a minute. With that of bochsrc's ips,
	# it is one of Bochs's timers as well. (A triple fault, in place of a reset, ends Bochs.)
	append+=" tsc=reliable clocksource=tsc tsc_early_khz=50000 reboot=t mitigations=off"
	# A guest that Bochs never leaves (bochs-preload.c) stalls RCU: do not wait for TIMEOUT then.
	append+=" rcupdate.rcu_cpu_stall_timeout=60 sysctl.kernel.panic_on_rcu_stall=1"
	append+=" rdinit=$IN_SRC/tools/kvm/build/guest-run MACHINE=bochs"
	# shellcheck disable=SC2086  # words
	inside "$IN_SRC/tools/kvm/build/bochs-disc" "$in_run" "$kernel" "$append" "${in_share:-}" ${FILES:-} >"$run/disc.log" 2>&1 ||
		{ cat "$run/disc.log" >&2; die "cannot make the VM's disc"; }
	# Bochs's display is a VNC server.
	[[ $EUID != 0 ]] || net=(unshare --net)
	inside "${net[@]}" timeout --foreground "$TIMEOUT" env RUN="$in_run" CONSOLE="$IN_CACHE${console#"$CACHE"}" SMP="$SMP" \
		MEM=$(($(numfmt --from=iec "$MEM") >> 20)) bochs -q -f "$IN_SRC/tools/kvm/build/config/bochsrc" \
		</dev/null >"$run/bochs.out" 2>&1 || true
	{ grep -ah '>>PANIC<<' "$console.bochs" || true; } | { grep -v 'soft power off' >>"$console" || true; }
	[[ ! -s $run/back ]] || tar -C "$run" -xzmf "$run/back" || say "what the VM sent back is not complete"
	[[ ! -d $run/share ]] || cp -a "$run/share/." "$SHARE/"
}
