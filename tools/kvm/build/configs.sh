#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# configs.sh [NAME]...: compiles KVM in each of the configurations in config/check/ (or in those named): each option that
# changes how Rust, C and their seam are compiled, and the architectures that do without the core.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/kbuild.sh"
here=$SRC/tools/kvm/build/config/check

# resolved NAME: whether all that KVM needs of itself and of Rust is there. (What it needs of the rest of the kernel, which is
# not built here, modpost cannot find.)
resolved() {
	local build=$IN_WORK/build/check-$1 log=$LOG/kernel-check-$1.log
	# shellcheck disable=SC2016  # the inner shell expands
	inside bash -c '
		comm -23 <(llvm-nm --undefined-only --format=just-symbols "$1/arch/x86/kvm/kvm.o" | grep -E "^(kvm_|_R|rust_)" | sort -u) \
			<({ llvm-nm --quiet --defined-only --format=just-symbols "$1"/rust/{,helpers/}*.o
				grep -rhoE "EXPORT_SYMBOL\w*\(kvm_\w+" "$2/arch/x86" --include="*.c" | sed "s/.*(//"; } | sort -u)
	' bash "$build" "$IN_WORK/tree" >"$log.missing" || return
	! sed 's/^/not found: /' "$log.missing" | grep . >&2
}

# check NAME: prints the reason if it does not build.
check() {
	local name=$1 arch=x86 make=() fragments=("check/$1.config") targets config=$WORK/build/check-$1/.config
	read -ra make < <(sed -n 's/^# make: //p' "$here/$name.config") || true
	case ${make[*]} in
	*ARCH=arm64*) arch=arm64 ;;
	*ARCH=riscv*) arch=riscv ;;
	*ARCH=i386*) ;;
	*) fragments=(check/x86.config "${fragments[@]}") ;;
	esac
	configure "check-$name" "${fragments[@]}" -- "${make[@]}" || return
	targets=("arch/$arch/kvm/")
	# modpost writes no C for versions if it knows no symbol of the kernel, which is not linked here.
	[[ $name == modversions ]] || ! grep -qx CONFIG_KVM=m "$config" || targets+=("arch/$arch/kvm/kvm.ko")
	[[ $name != builtin ]] || targets=(vmlinux)
	compile "check-$name" 800 "${make[@]}" KBUILD_MODPOST_WARN=1 prepare || return
	compile "check-$name" 100 "${make[@]}" KBUILD_MODPOST_WARN=1 "${targets[@]}" || return
	! grep -A 12 -- '--> .*rust/kvm/' "$LOG/kernel-check-$name.log" >&2 || return
	core=off
	grep -qx CONFIG_KVM_RUST_MEMORY=y "$config" || return 0
	core=on
	[[ $name == builtin ]] || resolved "$name"
}

"$(dirname "$0")/toolchain.sh"
lock
"$(dirname "$0")/tree.sh" build
mapfile -t names < <(basename -s .config "$here"/*.config | grep -vx x86)
(($# > 0)) || set -- "${names[@]}"
failed=0
for name in "$@"; do
	[[ -f $here/$name.config ]] || die "no configuration '$name'" "there are: ${names[*]}"
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
