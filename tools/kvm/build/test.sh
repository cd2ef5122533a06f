#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# test.sh [all]: every check there is, with `all` those that take hours too; goes on after a failure; the last line is "N
# passed, N failed".
. "$(dirname "$0")/lib.sh"
here=$(dirname "$0")
export RESULTS=$LOG/results
: >"$RESULTS"

# step NAME CMD...: a step that counted nothing itself counts as one.
step() {
	local name=$1 before start=$SECONDS status=0
	shift
	before=$(wc -l <"$RESULTS")
	printf '\n== %s\n' "$name"
	"$@" || status=$?
	if ((status != 0)) && ! tail -n +$((before + 1)) "$RESULTS" | grep -q '^fail'; then
		result fail "$name"
	elif ((status == 0 && before == $(wc -l <"$RESULTS"))); then
		result pass "$name"
	fi
	printf '== %s: %s\n' "$name" "$(elapsed $((SECONDS - start)))"
}

# cargo_tests VERB: counts the tests that cargo runs.
cargo_tests() {
	local status=0 log=$LOG/cargo-$1.log
	"$here/cargo.sh" "$1" 2>&1 | tee "$log" || status=$?
	sed -nE "s/^test (.*) \.\.\. ok\$/pass $1 \\1/p;s/^test (.*) \.\.\. FAILED\$/fail $1 \\1/p" "$log" >>"$RESULTS"
	return "$status"
}

# debug_kernel: waits for it.
debug_kernel() {
	local status=0
	wait "$debug" || status=$?
	cat "$LOG/debug-kernel"
	return "$status"
}

# A fresh machine's git does not know who is working on it.
git_identity=(GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=user.name GIT_CONFIG_VALUE_0=test
	GIT_CONFIG_KEY_1=user.email GIT_CONFIG_VALUE_1=test@localhost)

# What follows builds at the same time, from one tree.
lock
step "toolchain" "$here/toolchain.sh"
step "kernel with the memory core in Rust, KVM=m, kvm-amd and kvm-intel" "$here/kernel.sh" rust
step "kernel modules with upstream's C" "$here/kernel.sh" c
step "kernel with KVM=y, and clippy" "$here/kernel.sh" builtin
step "lint" "$here/lint.sh"
step "the overlay on other trees" "$here/apply-test.sh"
step "host tests" cargo_tests test
step "the series" env "${git_identity[@]}" "$here/series.sh"
# The tests do not need all of the processors, nor this kernel until later.
set -m
nice -n 19 "$here/kernel.sh" debug >"$LOG/debug-kernel" 2>&1 &
debug=$!
set +m
trap 'kill -- -"$debug" 2>/dev/null || :' EXIT
step "uapi crate on KVM" cargo_tests kvm-test
step "selftests" env FLAVOUR=rust "$here/selftests.sh" ours
step "upstream's selftests, Rust against C" "$here/selftests.sh" upstream
step "QEMU boots Linux" env FLAVOUR=rust CMD=guest-qemu "$here/vm.sh"
step "demo, short" env FLAVOUR=rust "$here/program.sh" sample-vmm demo --quick
step "vCPUs with memory of their own" env FLAVOUR=rust "$here/program.sh" sample-vmm worlds
# shellcheck disable=SC2016  # the VM has the variable
guest=(--kernel '$KVM_MODULES/rust/bzImage' --module '$KVM_MODULES/rust/kvm_areas.ko')
step "Linux shares memory areas" env FLAVOUR=rust "$here/program.sh" sample-vmm areas --quick "${guest[@]}"
step "Linux gives memory areas back" env FLAVOUR=rust "$here/program.sh" sample-vmm areas --torture 1 "${guest[@]}"
step "selftests on Intel's VMX, a few" "$here/selftests.sh" intel-short
step "kernel with debug checks" debug_kernel
step "selftests on the debug kernel, some" "$here/selftests.sh" debug-short
if [[ ${1:-} == all ]]; then
	step "selftests on the debug kernel, all" env FLAVOUR=debug "$here/selftests.sh" ours
	step "selftests on Intel's VMX" "$here/selftests.sh" intel
	step "demo on Intel's VMX, short" env FLAVOUR=rust VENDOR=intel "$here/program.sh" sample-vmm demo --quick
	step "KVM in many configurations" "$here/configs.sh"
	step "each fix of KVM's own faults" "$here/fixes.sh"
	step "each commit of the series" env BUILD=1 "${git_identity[@]}" "$here/series.sh"
fi

# Each failure with the end of its log, or with what led to the test's first "not ok".
printf '\n'
while IFS=$'\t' read -r what log; do
	printf '%s\n' "$what"
	[[ ! -f $log ]] || { grep -m 1 -B 9 '^not ok' "$log" || tail -40 "$log"; } | sed 's/^/    /'
done < <(grep '^fail' "$RESULTS")
version=$(version_of "${KSRC:-$CACHE/pristine}")
[[ $version == "$VERSION" ]] || printf 'note: this was Linux %s; the patches are for Linux %s\n' "$version" "$VERSION"
passed=$(grep -c '^pass' "$RESULTS" || true)
failed=$(grep -c '^fail' "$RESULTS" || true)
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
