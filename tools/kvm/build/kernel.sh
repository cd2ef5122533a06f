#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# kernel.sh [rust|c|debug|builtin]...: builds the test kernel of these flavours and puts kernel and KVM modules into
# $WORK/kernel/FLAVOUR. `c` shares the kernel with `rust` (only KVM differs). `builtin` is a check: that KVM=y would
# link, and that clippy has no warning.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/kbuild.sh"

# publish FLAVOUR BUILD-DIRECTORY-OF-THE-KERNEL
publish() {
	local new=$WORK/kernel/.$1.new
	rm -rf "$new"
	mkdir -p "$new"
	cp "$WORK/build/$2/arch/x86/boot/bzImage" "$WORK/build/$1/.config" "$new/"
	find "$WORK/build/$1" -name '*.ko' -exec cp {} "$new/" \;
	printf %s "$key" >"$new/.key"
	rm -rf "$WORK/kernel/$1"
	mv "$new" "$WORK/kernel/$1"
}

# fresh FLAVOUR: is it built from what there is now?
fresh() {
	[[ -z $KSRC && $(cat "$WORK/kernel/$1/.key" 2>/dev/null) == "$key" ]]
}

# names OPTION FILE...: global symbols in these files.
names() {
	inside llvm-nm --extern-only --format=just-symbols --quiet "$@" | sort -u
}

# Whether all symbols would be found, once each, if KVM were linked into the kernel of `rust`, which differs in nothing else.
# (check-configs links a small kernel.)
links() {
	local build=$IN_WORK/build kvm
	kvm=("$build"/builtin/{arch/x86/kvm,virt}/built-in.a)
	names --defined-only "${kvm[@]}" >"$LOG/kvm.defined"
	names --defined-only "$build/rust/vmlinux" >"$LOG/vmlinux.defined"
	names --undefined-only "${kvm[@]}" >"$LOG/kvm.undefined"
	grep -qx kvm_set_memory_region "$LOG/kvm.defined" || die "KVM=y: no core in ${kvm[0]}"
	! comm -12 "$LOG/kvm.defined" "$LOG/vmlinux.defined" | grep . >&2 || die "KVM=y defines these symbols of the kernel again"
	! sort -u "$LOG/kvm.defined" "$LOG/vmlinux.defined" | comm -23 "$LOG/kvm.undefined" - | grep . >&2 ||
		die "KVM=y does not find these symbols"
}

# Clippy over the core: as kbuild compiled it, but without compiling all other crates again as CLIPPY=1 does.
clippy() {
	local cmd
	cmd=$(sed -n 's/^savedcmd_[^ ]* := //p' "$WORK/build/builtin/rust/kvm/.memory.o.cmd" |
		sed 's/ rustc --/ clippy-driver --/; s/--emit=dep-info=[^ ]*//; s/--emit=obj=[^ ]*/--emit=metadata=clippy.rmeta/')
	[[ $cmd == *' clippy-driver --edition'* ]] || die "clippy: kbuild's command for the core is not as expected: $cmd"
	inside env -C "$IN_WORK/build/builtin" RUSTC_BOOTSTRAP=1 CLIPPY_CONF_DIR="$IN_WORK/tree" bash -c "$cmd" >"$LOG/clippy.log" 2>&1 ||
		{ cat "$LOG/clippy.log" >&2; die "clippy failed"; }
	! grep -B 1 -A 12 -- '--> .*rust/kvm/' "$LOG/clippy.log" >&2 || die "clippy has warnings"
	refuses "$cmd"
}

# Whether the compiler refuses what the documentation of memslots/swap.rs says that it does: the example, as a function of that
# file.
refuses() {
	local dir=$WORK/build/builtin/refused cmd
	rm -rf "$dir"
	cp -a "$WORK/tree/rust/kvm" "$dir"
	sed -n '/compile_fail$/,/# }$/{/compile_fail/d;s|^//! \(# \)\?||p}' "$dir/memslots/swap.rs" >"$dir/example"
	cat "$dir/example" >>"$dir/memslots/swap.rs"
	cmd=${1/"$IN_WORK/tree/arch/x86/kvm/../../../virt/kvm/../../rust/kvm/"/refused/}
	! inside env -C "$IN_WORK/build/builtin" RUSTC_BOOTSTRAP=1 CLIPPY_CONF_DIR="$IN_WORK/tree" bash -c "$cmd" >"$LOG/refuses.log" 2>&1 ||
		die "the compiler takes a slot that outlives its lock"
	[[ $(grep -o '^error\[E[0-9]*\]' "$LOG/refuses.log") == 'error[E0505]' ]] ||
		die "the example in memslots/swap.rs is refused for another reason" "$(grep -m 1 '^error' "$LOG/refuses.log")"
	rm -rf "$dir"
}

flavour() {
	case $1 in
	rust)
		configure rust {base,areas}.config
		compile rust 2400 bzImage modules
		publish rust rust
		;;
	c)
		fresh rust || flavour rust
		copy_build rust c
		configure c {base,areas}.config c.config
		compile c 100 modules
		publish c rust
		;;
	debug)
		configure debug {base,areas}.config debug.config
		compile debug 2400 bzImage modules
		publish debug debug
		;;
	builtin)
		fresh rust || flavour rust
		copy_build rust builtin
		configure builtin {base,areas}.config builtin.config
		compile builtin 100 arch/x86/kvm/ virt/
		links
		clippy
		mkdir -p "$WORK/kernel/builtin"
		printf %s "$key" >"$WORK/kernel/builtin/.key"
		;;
	*) die "no flavour '$1'" "FLAVOUR is rust, c or debug" ;;
	esac
}

"$(dirname "$0")/toolchain.sh"
key=$(overlay_key)
for f in "$@"; do
	fresh "$f" && continue
	lock
	# Another make may have built it meanwhile.
	fresh "$f" && continue
	"$(dirname "$0")/tree.sh" build
	flavour "$f"
done
