#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Whether each fix of KVM's own faults is needed, and is enough: with upstream's C and all of the fixes, the fix's test must
# pass; without that one, the test must fail, or the kernel complain or end.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/kbuild.sh"

# The test of the fix patches/NUMBER-*. 0004 has none: its fault needs a page that the host ages in the moment between a vCPU's
# lookup and its fault.
declare -A TEST=(
	[0001]=x86/first_shadow_root_test
	[0002]=x86/prefault_obsolete_root_test
	[0003]=x86/hole_fault_test
	[0005]=x86/nx_huge_page_slot_test
	[0006]=x86/mmio_rmw_test
	[0007]=x86/nested_ad_dirty_log_test
)

# verdict MODULES TEST: of one run, in a VM of its own.
verdict() {
	local out=$OUT/fixes log=$LOG/fixes
	mkdir -p "$out"
	echo "$2" >"$out/list"
	if SHARE=$out FLAVOUR=c MEM=${MEM:-6G} CMD="guest-selftests $IN_WORK/selftests 120 $1 </mnt/share/list" \
		"$(dirname "$0")/vm.sh" >"$log" 2>"$log.kernel"; then
		cut -d' ' -f3 "$log"
	elif grep -q 'the kernel complained' "$log.kernel"; then
		echo complaint
	else
		echo death
	fi
}

"$(dirname "$0")/selftests.sh" build
lock
copy_build c fixes
configure fixes {base,areas}.config c.config
unfixed=$WORK/kernel/unfixed
mkdir -p "$unfixed"
trap 'rm -rf "$unfixed" "$WORK/tree.key"; "$(dirname "$0")/tree.sh" build' EXIT
failed=0
for number in $(printf '%s\n' "${!TEST[@]}" | sort); do
	fix=$(echo "$SRC/patches/$number"-*.patch)
	subject=$(git mailinfo /dev/null /dev/null <"$fix" | sed -n 's/^Subject: //p')
	# Later patches have changed lines around it.
	patch_tree "$WORK/tree" -C1 -R "$fix"
	compile fixes 100 arch/x86/kvm/kvm{,-amd,-intel}.ko virt/lib/irqbypass.ko || die "KVM does not build without $number"
	patch_tree "$WORK/tree" -C1 "$fix"
	find "$WORK/build/fixes" -name '*.ko' -exec cp {} "$unfixed/" \;
	with=$(verdict c "${TEST[$number]}")
	without=$(verdict unfixed "${TEST[$number]}")
	what="$number, ${TEST[$number]}: $with with it, $without without: $subject"
	if [[ $with == pass && $without =~ ^(fail|timeout|complaint|death)$ ]]; then
		result pass "$what"
	else
		result fail "$what" "$LOG/fixes"
		failed=1
	fi
done
exit "$failed"
