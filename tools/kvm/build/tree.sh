#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# tree.sh build: the source with the overlay applied, in the cache (only changed files get a new time).
# tree.sh apply|unapply: the same in the user's own tree, KSRC.
. "$(dirname "$0")/lib.sh"

MARK=.kvm-memory-overlay

# package SUITE [VERSION]: puts the tarball of linux-source-VERSION, or of the newest that SUITE has, into $CACHE.
package() {
	rm -rf "$CACHE/download"
	mkdir -p "$CACHE/download"
	# shellcheck disable=SC2016
	inside bash -ec '
		list=/etc/apt/sources.list.d/kernel.list
		sed -n "s/ trixie main\$/ $1 main/p" /etc/apt/sources.list >$list
		trap "rm -f $list" EXIT
		# The releases of a mirror that is a snapshot expire.
		apt-get -o Acquire::Check-Valid-Until=false update
		v=${3:-$(apt-cache pkgnames linux-source- | sed -n "s/^linux-source-\([0-9]*\.[0-9]*\)$/\1/p" | sort -V | tail -1)}
		cd "$2"
		apt-get -o APT::Sandbox::User=root download "linux-source-$v/$1"
		dpkg-deb --fsys-tarfile linux-source-*.deb | tar -xO "./usr/src/linux-source-$v.tar.xz" >"linux-source-$v.tar.xz"
		mv "linux-source-$v.tar.xz" ..
	' bash "$1" /cache/download "${2:-}" >>"$LOG/download.log" 2>&1
}

# Debian's package of the source: from backports, else from the next releases; if none has it any more, the newest there is.
download() {
	local suite
	compgen -G "$CACHE/linux-source-*.tar.xz" >/dev/null && return
	[[ $TOOLCHAIN == debian ]] || die "TOOLCHAIN=host needs your own source" "use KSRC=DIR"
	need_disk 3 "the kernel source"
	: >"$LOG/download.log"
	for suite in trixie-backports forky sid; do
		say "looking for linux-source-$VERSION in $suite"
		package "$suite" "$VERSION" && break
	done
	compgen -G "$CACHE/linux-source-*.tar.xz" >/dev/null || for suite in sid forky trixie-backports; do
		say "looking for the newest linux-source in $suite"
		package "$suite" && break
	done
	compgen -G "$CACHE/linux-source-*.tar.xz" >/dev/null ||
		die "linux-source-$VERSION is not to be had from trixie-backports, forky or sid, nor is another (see $LOG/download.log)" \
			"if the network is there, get a Linux $VERSION tree and use KSRC=DIR"
	rm -rf "$CACHE/download"
}

# The pristine source: $BASE.
base() {
	BASE=${KSRC:-$CACHE/pristine}
	[[ -z $KSRC || ! -d $KSRC/$MARK ]] || die "$KSRC has the overlay applied" "make unapply KSRC=$KSRC first"
	[[ -z $KSRC ]] || return 0
	if [[ -d $BASE ]]; then
		# What is another version was all that there was when it was looked for.
		[[ $(version_of "$BASE") != "$VERSION" && $(cat "$BASE.for" 2>/dev/null) != "$VERSION" ]] || return 0
		say "the patches are for Linux $VERSION by now: removing what was built of another"
		rm -rf "$BASE" "$CACHE"/linux-source-*.tar.xz "$WORK"/{tree,tree.key,build,kernel,selftests}
	fi
	download
	need_disk 5 "the kernel source"
	rm -rf "$BASE.new"
	mkdir "$BASE.new"
	set -- "$CACHE"/linux-source-*.tar.xz
	inside tar -xJf "$IN_CACHE/${1##*/}" -C "$IN_CACHE/pristine.new" --strip-components=1 --checkpoint=2000 \
		--checkpoint-action=echo 2>&1 | progress "unpacking the source" "$LOG/unpack.log" 84 ||
		die "the source package does not unpack" "remove $1 and try again"
	version_of "$BASE.new" >/dev/null
	printf %s "$VERSION" >"$BASE.for"
	mv "$BASE.new" "$BASE"
}

# What keeps the patches from applying to $BASE: each hunk with its place, after all that does apply.
what_fails() {
	local dir=$WORK/port p log bad=0
	rm -rf "$dir"
	mkdir -p "$dir"
	copy_patched "$BASE" "$dir"
	for p in "$@"; do
		log=$(patch_tree "$dir" --reject --verbose "$p" 2>&1) && continue
		((++bad))
		printf '%s\n' "${p##*/}"
		sed -nE 's/^error: patch failed: (.*)$/    \1/p;s/^error: ([^:]*: (No such file|does not).*)$/    \1/p' <<<"$log"
	done
	printf '%d of %d patches do not apply. What does apply, with *.rej for the rest, is in %s\n' "$bad" $# "$dir"
}

# stage DIR: every file that the overlay brings or changes, as it must be in the tree.
stage() {
	local stage=$1 from to patches version
	version=$(version_of "$BASE")
	mapfile -t patches < <(overlay_patches)
	copy_patched "$BASE" "$stage"
	patch_tree "$stage" "${patches[@]}" 2>/dev/null || {
		what_fails "${patches[@]}" >&2
		die "the patches do not apply to $BASE" "they are for an unmodified Linux $VERSION; this is Linux $version"
	}
	[[ $version == "$VERSION" ]] ||
		say "note: this is Linux $version; the patches are for Linux $VERSION, but apply (to have $VERSION: KSRC=DIR)"
	overlay_files | while IFS=$'\t' read -r from to; do
		[[ ! -e $stage/$to && ! -e $BASE/$to ]] || die "$to exists in $BASE already"
		mkdir -p "$stage/$(dirname "$to")"
		cp -p "$SRC/$from" "$stage/$to"
	done
}

# put FROM TO: by rename, so that a build that is under way finds the one or the other.
put() {
	mkdir -p "$(dirname "$2")"
	cp "$1" "$2.new"
	mv "$2.new" "$2"
}

# put_all STAGE TREE: what differs.
put_all() {
	local f
	(cd "$1" && find . -type f) | while read -r f; do
		cmp -s "$1/$f" "$2/$f" || put "$1/$f" "$2/$f"
	done
}

build() {
	local tree=$WORK/tree tmp=$WORK/stage f key
	key=$(overlay_key)
	[[ -n $KSRC || $(cat "$WORK/tree.key" 2>/dev/null) != "$key" ]] || return 0
	lock
	mkdir -p "$WORK"
	base
	rm -rf "$tmp"
	mkdir "$tmp"
	stage "$tmp"
	(cd "$tmp" && find . -type f -printf '/%P\n') | sort >"$tmp.now"
	if [[ -n $KSRC || ! -d $tree ]]; then
		need_disk 3 "the build copy of the source"
		say "copying the source"
		mkdir -p "$tree.new"
		[[ ! -d $tree ]] || { rmdir "$tree.new" && mv "$tree" "$tree.new"; }
		touch "$tree.new/$MARK"
		EXTRA=$BASE inside rsync -a --delete --exclude=/.git --exclude=/.config --exclude=/include/config \
			--exclude=/include/generated --exclude='/arch/*/include/generated' --exclude="/$MARK" \
			--exclude-from="$IN_WORK/tree.new/$MARK" \
			"$([[ $TOOLCHAIN == host ]] && echo "$BASE" || echo /mnt/extra)/" "$IN_WORK/tree.new/"
		mv "$tree.new" "$tree"
	fi
	sort "$tree/$MARK" | comm -23 - "$tmp.now" | while read -r f; do
		if [[ -e $BASE$f ]]; then put "$BASE$f" "$tree$f"; else rm -f "$tree$f"; fi
	done
	# An interrupted copy leaves a list that names too much, never too little.
	sort -u "$tree/$MARK" "$tmp.now" >"$tmp.both"
	cp "$tmp.both" "$tree/$MARK"
	put_all "$tmp" "$tree"
	mv "$tmp.now" "$tree/$MARK"
	rm -rf "$tmp" "$tmp.both"
	printf %s "$key" >"$WORK/tree.key"
}

apply() {
	[[ -n $KSRC ]] || die "which tree?" "make apply KSRC=DIR"
	base
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	mkdir "$tmp/stage" "$tmp/mark"
	stage "$tmp/stage"
	overlay_patches | while read -r p; do
		cp "$p" "$tmp/mark/"
		basename "$p" >>"$tmp/mark/series"
	done
	overlay_files | cut -f2 | (cd "$tmp/stage" && xargs -d'\n' sha256sum) >"$tmp/mark/files"
	cp -r "$tmp/mark" "$KSRC/$MARK"
	put_all "$tmp/stage" "$KSRC"
	say "applied to $KSRC; now: make LLVM=1 menuconfig, with RUST, KVM and KVM_RUST_MEMORY"
}

unapply() {
	local mark=$KSRC/$MARK patches
	[[ -n $KSRC ]] || die "which tree?" "make unapply KSRC=DIR"
	[[ -f $mark/series ]] || die "the overlay is not applied to $KSRC"
	(cd "$KSRC" && sha256sum --quiet -c "$mark/files" >&2) ||
		die "these files are not as the overlay left them" "save your changes, bring the files back, and try again"
	mapfile -t patches < <(tac "$mark/series" | sed "s|^|$mark/|")
	patch_tree "$KSRC" -R "${patches[@]}" || die "the patches cannot be taken back: the lines they changed were changed since"
	cut -c67- "$mark/files" | (cd "$KSRC" && xargs -d'\n' rm -f && cut -c67- "$mark/files" | xargs -d'\n' -n1 dirname |
		sort -ur | xargs -d'\n' rmdir -p --ignore-fail-on-non-empty 2>/dev/null) || true
	rm -rf "$mark"
	say "taken off $KSRC"
}

case ${1:-} in
build | apply | unapply) "$1" ;;
*) die "usage: tree.sh build|apply|unapply" ;;
esac
