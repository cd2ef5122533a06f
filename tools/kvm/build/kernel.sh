#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# kernel.sh [rust|c|debug|builtin]...: builds the test kernel of these flavours and puts kernel and KVM modules into
# $WORK/kernel/FLAVOUR. `c` shares the kernel with `rust` (only KVM differs); `builtin`, which has little else in it, is a
# check: that KVM=y links, and that clippy has no warning.
. "$(dirname "$0")/lib.sh"

# kmake FLAVOUR ARGS...
kmake() {
	local flavour=$1
	shift
	inside make -C "$IN_WORK/tree" O="$IN_WORK/build/$flavour" LLVM=1 LOCALVERSION= -j"$JOBS" "$@"
}

# configure FLAVOUR FRAGMENT...: .config gets a new time only if it changes.
configure() {
	local flavour=$1 dir=$WORK/build/$1 log=$LOG/config-$1.log f
	shift
	mkdir -p "$dir"
	{
		kmake "$flavour" KCONFIG_CONFIG=.config.new allnoconfig
		inside env -C "$IN_WORK/build/$flavour" KCONFIG_CONFIG=.config.new "$IN_WORK/tree/scripts/kconfig/merge_config.sh" \
			-m -O . .config.new "${@/#/$IN_SRC/tools/kvm/build/config/}"
		kmake "$flavour" KCONFIG_CONFIG=.config.new olddefconfig
	} >"$log" 2>&1 || { tail "$log" >&2; die "configuring the $flavour kernel failed" "all of it: $log"; }
	# The last word on each symbol counts.
	(cd "$SRC/tools/kvm/build/config" && grep -h '^CONFIG_' "$@") | tac | sort -u -s -t= -k1,1 | while read -r f; do
		if [[ $f == *=n ]]; then
			! grep -q "^${f%=n}=" "$dir/.config.new"
		else
			grep -qxF "$f" "$dir/.config.new"
		fi || die "the configuration does not take $f" "its dependencies changed, or a tool is missing: see $log"
	done
	cmp -s "$dir/.config" "$dir/.config.new" || mv "$dir/.config.new" "$dir/.config"
}

# compile FLAVOUR TARGET...
compile() {
	local flavour=$1 dir=$WORK/build/$1 log=$LOG/kernel-$1.log expected=2400
	shift
	[[ $flavour != builtin ]] || expected=1400
	[[ ! -f $dir/.built ]] || expected=20
	need_disk 3 "building the $flavour kernel"
	kmake "$flavour" "$@" 2>&1 | progress "kernel, $flavour" "$log" "$expected" || {
		grep -nE -m 4 -A 8 '(error: |error\[|ERROR: |fixdep: |undefined symbol|No space left)' "$log" >&2 || tail -20 "$log" >&2
		die "the $flavour kernel does not build, all of it in $log"
	}
	touch "$dir/.built"
}

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

# A copy of the finished build is where a flavour that differs in KVM only starts from.
copy_of_rust() {
	[[ ! -d $WORK/build/$1 ]] || return 0
	rm -rf "$WORK/build/.$1.new"
	cp -a --reflink=auto "$WORK/build/rust" "$WORK/build/.$1.new"
	mv "$WORK/build/.$1.new" "$WORK/build/$1"
}

# fresh FLAVOUR: is it built from what there is now?
fresh() {
	[[ -z $KSRC && $(cat "$WORK/kernel/$1/.key" 2>/dev/null) == "$key" ]]
}

flavour() {
	case $1 in
	rust)
		configure rust base.config
		compile rust bzImage modules
		publish rust rust
		;;
	c)
		fresh rust || flavour rust
		copy_of_rust c
		configure c base.config c.config
		compile c modules
		publish c rust
		;;
	debug)
		configure debug base.config debug.config
		compile debug bzImage modules
		publish debug debug
		;;
	builtin)
		configure builtin builtin.config
		# Compiled anew each time, for only then does clippy say something.
		rm -f "$WORK"/build/builtin/rust/kvm/*.o
		compile builtin CLIPPY=1 vmlinux
		! grep -B 1 -A 12 -- '--> .*rust/kvm/' "$LOG/kernel-builtin.log" >&2 || die "clippy has warnings"
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
