#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# configs.sh [NAME]...: compiles KVM in each of the configurations in config/check/ (or in those named): each option that
# changes how Rust, C and their seam are compiled, and the architectures that do without the core.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/kbuild.sh"

# check NAME: prints the reason if it does not build.
check() {
	local name=$1 arch=x86 make fragments=("check/$1.config") targets
	read -ra make < <(sed -n 's/^# make: //p' "$SRC/tools/kvm/build/config/check/$name.config") || true
	if [[ ${make[*]} == *ARCH=* ]]; then
		[[ ${make[*]} != *ARCH=arm64* ]] || arch=arm64
		[[ ${make[*]} != *ARCH=riscv* ]] || arch=riscv
	else
		fragments=(check/x86.config "${fragments[@]}")
	fi
	configure "check-$name" "${fragments[@]}" -- "${make[@]}" || return
	# Without the kernel image modpost does not know what that exports.
	targets=("arch/$arch/kvm/")
	! grep -qx CONFIG_KVM=m "$WORK/build/check-$name/.config" || targets+=("arch/$arch/kvm/kvm.ko")
	compile "check-$name" 800 "${make[@]}" KBUILD_MODPOST_WARN=1 prepare && 
		compile "check-$name" 100 "${make[@]}" KBUILD_MODPOST_WARN=1 "${targets[@]}" || return
	grep -q '^CONFIG_KVM_RUST_MEMORY=y' "$WORK/build/check-$name/.config" && core=on || core=off
}

"$(dirname "$0")/toolchain.sh"
lock
"$(dirname "$0")/tree.sh" build
(($# > 0)) || set -- werror rt cfi lto modversions minimal i386 arm64 riscv
failed=0
for name in "$@"; do
	start=$SECONDS
	if check "$name"; then
		result pass "KVM compiles: $name, core $core, $(elapsed $((SECONDS - start)))"
		rm -rf "$WORK/build/check-$name"
	else
		result fail "KVM does not compile: $name" "$LOG/kernel-check-$name.log"
		failed=1
	fi
done
exit "$failed"
