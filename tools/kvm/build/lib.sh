# SPDX-License-Identifier: GPL-2.0-only
# Sourced by every script here: where things are, how a step reports, how to get into the toolchain root.
# shellcheck shell=bash disable=SC2034  # the variables are for those who source it
set -euo pipefail

SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvm-rust-memory}
OUT=${OUT:-$SRC/out}
TOOLCHAIN=${TOOLCHAIN:-debian}
KSRC=${KSRC:-}
JOBS=${JOBS:-$(nproc)}
# The Linux that the patches are for. No other place knows it.
VERSION=7.3
mkdir -p "$CACHE/log" 2>/dev/null || { echo "error: cannot write to $CACHE; set CACHE=DIR" >&2; exit 1; }
CACHE=$(cd "$CACHE" && pwd)
LOG=$CACHE/log
[[ -z $KSRC ]] || KSRC=$(cd "$KSRC" 2>/dev/null && pwd) || { echo "error: KSRC is not a directory" >&2; exit 1; }

# A user's own kernel tree has build directories of its own.
WORK=$CACHE/${KSRC:+ksrc-$(printf %s "$KSRC" | sha256sum | cut -c1-8)}
WORK=${WORK%/}

# The same places as seen by a command that runs inside() the toolchain.
if [[ $TOOLCHAIN == host ]]; then
	IN_SRC=$SRC IN_CACHE=$CACHE
else
	IN_SRC=/src IN_CACHE=/cache
fi
IN_WORK=$IN_CACHE${WORK#"$CACHE"}

die() {
	printf '\nerror: %s\n' "$1" >&2
	shift
	(($# == 0)) || printf '       %s\n' "$@" >&2
	exit 1
}

say() { printf '%s\n' "$*" >&2; }

# result pass|fail|skip WHAT [LOG]: one line for the reader, and one for `make test` to count.
result() {
	printf '%s  %s%s\n' "$1" "$2" "${3:+  ($3)}"
	[[ -z ${RESULTS:-} ]] || printf '%s %s\t%s\n' "$1" "$2" "${3:-}" >>"$RESULTS"
}

elapsed() { printf '%dm%02ds' $((($1) / 60)) $((($1) % 60)); }

# progress WHAT LOG EXPECTED: copies stdin to LOG and shows how many of about EXPECTED lines have come.
progress() {
	local what=$1 log=$2 expected=$3 n=0 shown=0 start=$SECONDS every=30 line end=$'\n'
	[[ -t 2 ]] && every=1 end=$'\r'
	printf '%-28s ...%b' "$what" "$end" >&2
	while IFS= read -r line; do
		printf '%s\n' "$line"
		((++n))
		if ((SECONDS - start >= shown + every)); then
			shown=$((SECONDS - start))
			printf '%-28s %d of about %d, %s   %b' "$what" "$n" "$((n > expected ? n : expected))" \
				"$(elapsed "$shown")" "$end" >&2
		fi
	done >"$log"
	printf '%-28s %d done in %s        \n' "$what" "$n" "$(elapsed $((SECONDS - start)))" >&2
}

# One set-up or build at a time in a cache directory; running VMs do not count.
lock() {
	[[ -z ${LOCKED:-} ]] || return 0
	exec 9>"$CACHE/lock"
	flock -n 9 || { say "waiting for another make that is building in $CACHE"; flock 9; }
	export LOCKED=1
}

need_disk() {
	local free
	free=$(df --output=avail -BG "$CACHE" | tail -1 | tr -dc 0-9)
	((free >= $1)) || die "$2 needs $1 GB in $CACHE, $free GB are free" \
		"free some space, or set CACHE=DIR to a directory on a larger disk"
}

need_root() {
	[[ $EUID == 0 ]] || die "$1 must be run as root" "it makes a toolchain root and mounts into it (TOOLCHAIN=host builds without)"
}

# inside CMD...: runs CMD in the toolchain root, the checkout at /src, the cache at /cache and, if given,
# EXTRA (a directory) at /mnt/extra; it finds the network as this machine does. Its mounts and processes end with it.
inside() {
	local env=(LC_ALL=C.UTF-8 TERM="${TERM:-dumb}" CARGO_HOME="$IN_CACHE/cargo" CARGO_TARGET_DIR="$IN_CACHE/target"
		SRC="$IN_SRC" CACHE="$IN_CACHE" KBUILD_BUILD_USER=kvm KBUILD_BUILD_HOST=memory)
	local v
	for v in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
		[[ -z ${!v:-} ]] || env+=("$v=${!v}")
	done
	if [[ $TOOLCHAIN == host ]]; then
		(cd "$SRC" && exec env -u MAKEFLAGS -u MAKELEVEL "${env[@]}" "$@")
		return
	fi
	need_root "this step"
	# shellcheck disable=SC2016
	unshare --mount --pid --fork --kill-child bash -ec '
		root=$1 src=$2 cache=$3 extra=$4; shift 4
		mkdir -p "$root"/{src,cache,mnt/extra}
		for f in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
			cp -L "$f" "$root$f" 2>/dev/null || true
		done
		mount --bind "$src" "$root/src"
		mount --bind "$cache" "$root/cache"
		if [[ -n $extra ]]; then mount --bind "$extra" "$root/mnt/extra"; fi
		mount -t proc proc "$root/proc"
		mount --rbind /dev "$root/dev"
		mount --rbind /sys "$root/sys"
		mount -t tmpfs tmpfs "$root/tmp"
		cd /
		exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
			sh -c "cd /src && exec \"\$@\"" sh /usr/bin/env "$@"
	' bash "$CACHE/root" "$SRC" "$CACHE" "${EXTRA:-}" "${env[@]}" "$@"
}

# The files of the overlay with the path each has in the kernel tree: "PATH-HERE TAB PATH-THERE".
overlay_files() {
	git -c safe.directory='*' -C "$SRC" ls-files -co --exclude-standard -- \
		rust include Documentation samples tools/testing tools/kvm Kconfig |
		while read -r f; do
			case $f in
			tools/kvm/build/*) ;;
			Kconfig) printf '%s\trust/kvm/Kconfig\n' "$f" ;;
			*) [[ ! -e $SRC/$f ]] || printf '%s\t%s\n' "$f" "$f" ;;
			esac
		done
}

# What patches/series names, in order; and of these the patches, which edit files.
series_entries() { grep -vE '^(#|$)' "$SRC/patches/series" | sed "s|^|$SRC/patches/|"; }
overlay_patches() { series_entries | grep '\.patch$'; }

# copy_patched FROM TO: the files of a kernel tree that the patches edit, as far as FROM has them.
copy_patched() {
	local f patches
	mapfile -t patches < <(overlay_patches)
	git apply --numstat "${patches[@]}" | cut -f3 | sort -u | while read -r f; do
		[[ ! -e $1/$f ]] || { mkdir -p "$2/$(dirname "$f")"; cp -p "$1/$f" "$2/$f"; }
	done
}

# make_selftests NAME OUTPUT: KVM's selftests in $WORK/tree, with the headers that the build directory NAME exports. OUTPUT is as
# a command in the toolchain sees it.
make_selftests() {
	inside make -C "$IN_WORK/tree" O="$IN_WORK/build/$1" LLVM=1 -j"$JOBS" headers_install &&
		inside make -C "$IN_WORK/tree/tools/testing/selftests/kvm" ARCH=x86 OUTPUT="$2" -j"$JOBS" \
			KHDR_INCLUDES="-isystem $IN_WORK/build/$1/usr/include"
}

# A hash of everything in the checkout that the test kernel is made from.
overlay_key() {
	{
		overlay_files | cut -f1
		(cd "$SRC" && printf '%s\n' patches/*.patch patches/series tools/kvm/build/config/*.config tools/kvm/build/{kbuild,kernel,tree,toolchain}.sh)
	} | (cd "$SRC" && xargs -d'\n' sha256sum && echo "$VERSION") | sha256sum | cut -c1-16
}

# patch_tree DIR ARGS...: git apply in DIR, which may lie in some other git repository.
patch_tree() {
	local dir=$1
	shift
	(cd "$dir" && GIT_CEILING_DIRECTORIES=$(dirname "$dir") git apply --whitespace=nowarn "$@")
}

# version_of DIR: of the Linux source in DIR.
version_of() {
	[[ -f $1/Makefile && -d $1/virt/kvm ]] || die "$1 is not a Linux source tree"
	sed -n 's/^VERSION = //p;s/^PATCHLEVEL = //p' "$1/Makefile" | paste -sd.
}
