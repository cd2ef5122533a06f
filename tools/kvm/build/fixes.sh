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

# What a test comes to, or the kernel that runs it, where the fault is.
FAULT="fail timeout complaint death"

# verdict MODULES TEST: of one run, in a VM of its own.
verdict() {
	local out=$OUT/fixes log=$LOG/fixes status=0 last
	mkdir -p "$out"
	# The first one passes with any KVM: the VM and the modules work.
	printf '%s\n' kvm_binary_stats_test "$2" >"$out/list"
	SHARE=$out FLAVOUR=c MEM=${MEM:-6G} CMD="guest-selftests $IN_WORK/selftests 120 $1 </mnt/share/list" \
		"$(dirname "$0")/vm.sh" >"$log" 2>"$log.kernel" || status=$?
	grep -q "^$1 kvm_binary_stats_test pass" "$log" || { echo no-vm; return; }
	last=$(sed -n "s|^$1 $2 \([a-z]*\) .*|\1|p" "$log")
	case $status,$last in
	0,*) echo "$last" ;;
	*,) echo death ;;
	*) echo complaint ;;
	esac
}

# wanted VERDICTS MODULES TEST: one of VERDICTS, or what the third run gives: a race may not come about.
wanted() {
	local verdict
	for _ in 1 2 3; do
		verdict=$(verdict "$2" "$3")
		[[ ! " $1 " == *" $verdict "* ]] || break
	done
	echo "$verdict"
}

"$(dirname "$0")/selftests.sh" build
lock
"$(dirname "$0")/tree.sh" build
need_disk 3 "building KVM without its fixes"
copy_build c fixes
configure fixes {base,areas}.config c.config
unfixed=$WORK/kernel/unfixed
mkdir -p "$unfixed"
trap 'rm -rf "$unfixed" "$WORK/build/fixes"; "$(dirname "$0")/tree.sh" build' EXIT
# Until the end the tree is not what its key says.
rm -f "$WORK/tree.key"
failed=0
for number in $(printf '%s\n' "${!TEST[@]}" | sort); do
	fix=$(echo "$SRC/patches/$number"-*.patch)
	subject=$(subject "$fix")
	# Later patches have changed lines around it.
	patch_tree "$WORK/tree" -C1 -R "$fix"
	compile_kvm fixes || die "KVM does not build without $number"
	patch_tree "$WORK/tree" -C1 "$fix"
	find "$WORK/build/fixes" -name '*.ko' -exec cp -t "$unfixed" {} +
	with=$(wanted pass c "${TEST[$number]}")
	without=$(wanted "$FAULT" unfixed "${TEST[$number]}")
	what="$number, ${TEST[$number]}: $with with it, $without without: $subject"
	if [[ $with == pass && " $FAULT " == *" $without "* ]]; then
		result pass "$what"
	elif [[ $with == skip || $without == skip ]]; then
		result skip "$what"
	else
		result fail "$what" "$LOG/fixes"
		failed=1
	fi
done
exit "$failed"
