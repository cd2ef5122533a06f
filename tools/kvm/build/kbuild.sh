# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the scripts that build kernels: $WORK/tree is the source, $WORK/build/NAME what NAME is built in.
# shellcheck shell=bash

# kmake NAME ARGS...
kmake() {
	local name=$1
	shift
	inside make -C "$IN_WORK/tree" O="$IN_WORK/build/$name" LLVM=1 LOCALVERSION= -j"$JOBS" "$@"
}

# configure NAME FRAGMENT... [-- ARGS...]: from allnoconfig; .config gets a new time only if it changes. Fails, with the
# reason, if the configuration does not take what a fragment says.
configure() {
	local name=$1 dir=$WORK/build/$1 log=$LOG/config-$1.log fragments=() f
	shift
	while (($# > 0)) && [[ $1 != -- ]]; do
		fragments+=("$1")
		shift
	done
	mkdir -p "$dir"
	{
		kmake "$name" "${@:2}" KCONFIG_CONFIG=.config.new allnoconfig &&
			inside env -C "$IN_WORK/build/$name" KCONFIG_CONFIG=.config.new "$IN_WORK/tree/scripts/kconfig/merge_config.sh" \
				-m -O . .config.new "${fragments[@]/#/$IN_SRC/tools/kvm/build/config/}" &&
			kmake "$name" "${@:2}" KCONFIG_CONFIG=.config.new olddefconfig
	} >"$log" 2>&1 || { tail "$log" >&2; say "configuring $name failed, all of it: $log"; return 1; }
	# The last word on each symbol counts.
	while read -r f; do
		if [[ $f == *=n ]]; then
			! grep -q "^${f%=n}=" "$dir/.config.new"
		else
			grep -qxF "$f" "$dir/.config.new"
		fi || { say "the configuration of $name does not take $f: a dependency changed, or a tool is missing: see $log"; return 1; }
	done < <(cd "$SRC/tools/kvm/build/config" && grep -h '^CONFIG_' "${fragments[@]}" | tac | sort -u -s -t= -k1,1)
	cmp -s "$dir/.config" "$dir/.config.new" || mv "$dir/.config.new" "$dir/.config"
}

# compile NAME EXPECTED-LINES ARGS...: fails with what the compiler said.
compile() {
	local name=$1 expected=$2 dir=$WORK/build/$1 log=$LOG/kernel-$1.log
	shift 2
	[[ ! -f $dir/.built ]] || expected=20
	need_disk 3 "building $name"
	kmake "$name" "$@" 2>&1 | progress "kernel, $name" "$log" "$expected" || {
		grep -nE -m 4 -A 8 '(error: |error\[|ERROR: |fixdep: |undefined symbol|No space left)' "$log" >&2 || tail -20 "$log" >&2
		say "$name does not build, all of it: $log"
		return 1
	}
	touch "$dir/.built"
}

# compile_kvm NAME: KVM's modules only.
compile_kvm() {
	compile "$1" 100 arch/x86/kvm/kvm{,-amd,-intel}.ko virt/lib/irqbypass.ko
}

# subject MAIL: of a patch.
subject() {
	git mailinfo /dev/null /dev/null <"$1" | sed -n 's/^Subject: //p'
}

# copy_build FROM NAME: a copy of a finished build is where one that differs in KVM only starts from.
copy_build() {
	[[ ! -d $WORK/build/$2 ]] || return 0
	rm -rf "$WORK/build/.$2.new"
	cp -a --reflink=auto "$WORK/build/$1" "$WORK/build/.$2.new"
	mv "$WORK/build/.$2.new" "$WORK/build/$2"
}
