#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Writes the overlay as patches to mail into $OUT/series, and checks that `git am` takes them on the pristine tree and that
# the result is the tree that we build. patches/series has the order: a .patch edits files, a .files names files of the
# overlay that a commit adds, below its message. SIGNOFF=1 adds your Signed-off-by. BUILD=1 also builds kvm.ko at each commit,
# without the core and, once there is one, with it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/kbuild.sh"

repo=$WORK/git
work=$CACHE/series
signoff=()
[[ ${SIGNOFF:-} != 1 ]] || signoff=(-s)
"$(dirname "$0")/toolchain.sh"
lock
"$(dirname "$0")/tree.sh" build
tree=$WORK/tree
base=${KSRC:-$CACHE/pristine}
version=$(version_of "$base")
sed 's|^/||' "$tree/.kvm-memory-overlay" >"$CACHE/series.files"

export GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL
GIT_AUTHOR_NAME=$(git -C "$SRC" config user.name || true)
GIT_AUTHOR_EMAIL=$(git -C "$SRC" config user.email || true)
[[ -n $GIT_AUTHOR_NAME && -n $GIT_AUTHOR_EMAIL ]] ||
	die "git does not know who you are" "git config --global user.name NAME; git config --global user.email ADDRESS"
GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL

if [[ ! -d $repo || -n $KSRC || $(git --git-dir="$repo" log -1 --format=%s) != "Linux $version" ]]; then
	need_disk 2 "a git repository of the pristine source"
	say "making a git repository of the pristine source"
	rm -rf "$repo.new"
	git init -q --bare "$repo.new"
	git -C "$repo.new" config core.bare false
	git -C "$repo.new" config core.compression 1
	git -C "$repo.new" config gc.auto 0
	GIT_DIR=$repo.new GIT_WORK_TREE=$base git add -f -A .
	GIT_DIR=$repo.new GIT_WORK_TREE=$base git commit -q -m "Linux $version"
	rm -rf "$repo"
	mv "$repo.new" "$repo"
fi

# checkout DIR: the files that matter of the pristine commit, as a work tree.
checkout() {
	rm -rf "$1"
	git --git-dir="$repo" worktree prune
	git --git-dir="$repo" worktree add -q --detach --no-checkout "$1" HEAD
	git -C "$1" sparse-checkout set --no-cone --stdin < <(sed 's|^|/|' "$CACHE/series.files")
	git -C "$1" checkout -q HEAD
}

# add FILE: commits what a .files names. Each line is a pattern of paths in the tree; a sed script after a tab takes out of the
# file what a later commit brings.
add() {
	local pattern script f found
	while IFS=$'\t' read -r pattern script; do
		found=
		while read -r f; do
			# shellcheck disable=SC2053  # a pattern
			[[ $f == $pattern ]] || continue
			mkdir -p "$work/$(dirname "$f")"
			cp -p "$tree/$f" "$work/$f"
			if [[ -n $script ]]; then
				sed -i "$script" "$work/$f"
				! cmp -s "$tree/$f" "$work/$f" || die "${1##*/}: the script takes nothing out of $f"
			fi
			git -C "$work" add -f "$f"
			found=1
		done < <(overlay_files | cut -f2)
		[[ -n $found ]] || die "${1##*/}: no file is $pattern"
	done < <(sed '1,/^---$/d' "$1")
	sed -e '/^# SPDX/d' -e '/^---$/,$d' "$1" | git -C "$work" commit -q "${signoff[@]}" -F - || die "${1##*/} adds nothing"
}

checkout "$work"
mapfile -t entries < <(series_entries)
for p in "${entries[@]}"; do
	case $p in
	*.patch)
		git -C "$work" am -q "${signoff[@]}" "$p" || die "${p##*/} does not apply" "see $work"
		git -C "$work" commit -q --amend --no-edit --reset-author
		;;
	*.files) add "$p" ;;
	*) die "patches/series: $p is neither a .patch nor a .files" ;;
	esac
done

mkdir -p "$OUT"
rm -rf "$OUT/series"
git -C "$work" format-patch -q --cover-letter -o "$OUT/series" "$(git --git-dir="$repo" rev-parse HEAD)"
sed -i 's/\*\*\* SUBJECT HERE \*\*\*/KVM: Guest memory in Rust, and memslot lists/' "$OUT/series/0000-cover-letter.patch"
sed -i -e '/\*\*\* BLURB HERE \*\*\*/{r /dev/stdin' -e 'd}' "$OUT/series/0000-cover-letter.patch" <<'END'
A VMM that resizes a memslot has to delete it and create it again. A vCPU
that runs in between finds no slot, and the guest dies; pausing all vCPUs
around the update costs the guest milliseconds.

KVM_SET_USER_MEMORY_REGION_LIST takes a list of updates and publishes the
result as a whole: running vCPUs see the old memslots or the new ones,
and accesses that KVM makes on their behalf keep working meanwhile. If an
entry fails, nothing happened.

The memslot code behind it, and behind the ioctls that exist already, is
written in Rust. CONFIG_KVM_RUST_MEMORY=n keeps the C code.

Three more families of ioctls stand on the same core:

- KVM_MAP_MEMORY populates guest memory for reads or writes, with contents
  if told so, and lets memslot updates through while it does.
- KVM_S390_UCAS_MAP and KVM_S390_UCAS_UNMAP, which s390 has, give a vCPU an
  address space of its own on x86 too.
- A guest shares areas of its memory with KVM and with userspace by one pair
  of MSRs (KVM_FEATURE_MEM_AREA), instead of an MSR for each kind of area.

First come fixes of faults that KVM has without this series, with tests
that use the ioctls that exist and fail without the fixes. Then the core
arrives by family, each with its tests.
END

check=$work.check
checkout "$check"
git -C "$check" am -q "$OUT"/series/0*[1-9]*-*.patch || die "git am does not take the series" "see $check"
while read -r f; do
	[[ -e $check/$f ]] || die "no .files in patches/ names $f"
	cmp "$check/$f" "$tree/$f" >&2 || die "the series does not give the tree that we build: $f differs"
done <"$CACHE/series.files"
git -C "$check" status --porcelain --ignored >&2
say "$(find "$OUT/series" -name '*.patch' | wc -l) mails in $OUT/series; git am takes them on Linux $version"

# build NUMBER NAME FRAGMENT...: kvm.ko at a commit. Configures only where that may come to something else.
declare -A configured
build() {
	local at=$1 name=$2
	if { [[ -n ${configured[$name]:-} ]] || configure "${@:2}"; } &&
		compile_kvm "$name"; then
		configured[$name]=1
		return
	fi
	die "commit $at does not build $([[ $name == c ]] && echo without || echo with) the core: $subject"
}

# selftests NUMBER: KVM's at a commit.
selftests() {
	make_selftests c "$IN_CACHE/series.selftests" 2>&1 | progress "selftests" "$LOG/series-selftests.log" 300 ||
		die "the selftests of commit $1 do not build, see $LOG/series-selftests.log: $subject"
	rm -rf "$CACHE/series.selftests"
	result pass "selftests of commit $1 build: $subject"
}

# The commits pass through the tree that we build, and leave it as it was, in build directories that are there.
if [[ ${BUILD:-} == 1 ]]; then
	"$(dirname "$0")/kernel.sh" rust c
	rm -f "$WORK/tree.key"
	while read -r f; do
		if [[ -e $base/$f ]]; then cp "$base/$f" "$tree/$f"; else rm -f "$tree/$f"; fi
	done <"$CACHE/series.files"
	for mail in "$OUT"/series/0*[1-9]*-*.patch; do
		at=${mail##*/} at=${at%%-*}
		subject=$(subject "$mail")
		patch_tree "$tree" "$mail"
		git apply --numstat "$mail" | cut -f3 >"$CACHE/series.touched"
		if grep -qx tools/testing/selftests/kvm/Makefile.kvm "$CACHE/series.touched"; then
			selftests "$at"
		fi
		grep -qE '^(arch|include|rust|virt)/' "$CACHE/series.touched" || continue
		! grep -q Kconfig "$CACHE/series.touched" || configured=()
		build "$at" c base.config c.config
		! grep -q rust/kvm/Kconfig "$tree/arch/x86/kvm/Kconfig" || build "$at" rust base.config
		result pass "commit $at builds: $subject"
	done
	"$(dirname "$0")/tree.sh" build
fi
rm -rf "$work" "$check" "$CACHE"/series.*
