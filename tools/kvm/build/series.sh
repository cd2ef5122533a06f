#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Writes the overlay as patches to mail into $OUT/series, and checks that `git am` takes them on the pristine tree and
# that the result is the tree that we build. First come fixes that stand by themselves (patches/000*) with the tests that
# show the faults, then the core. New files come before the patches that name them: they do nothing until then.
. "$(dirname "$0")/lib.sh"

# The commits that bring new files: the paths, the subject, the message.
REPRODUCERS=(
	"tools/testing/selftests/kvm/include/kmsg.h tools/testing/selftests/kvm/include/nested_guest.h tools/testing/selftests/kvm/include/two_cpus.h tools/testing/selftests/kvm/x86/first_shadow_root_test.c tools/testing/selftests/kvm/x86/hole_fault_test.c tools/testing/selftests/kvm/x86/mmio_rmw_test.c tools/testing/selftests/kvm/x86/nx_huge_page_slot_test.c"
	"KVM: selftests: Show faults at the edges of memslots"
	"Each of these tests uses ioctls that KVM has had for years, and makes it oops, warn, or write to the wrong memory without the preceding fixes."
)
COMMITS=(
	"include/uapi/"
	"KVM: Add the uAPI of memslot lists, and of populating guest memory"
	"KVM_SET_USER_MEMORY_REGION_LIST takes many memslot updates at once; a running vCPU sees all of them or none. KVM_MAP_MEMORY populates guest memory before the guest needs it."

	"rust/kvm/ include/linux/ include/trace/"
	"KVM: Add the guest-memory core in Rust"
	"It owns every change of the memslots: check, prepare and commit are separate phases, and the types allow no other order. And it populates guest memory by page faults that the guest did not have."

	"tools/testing/selftests/kvm/"
	"KVM: selftests: Add tests of memslot lists, and of populating memory"
	"They cover the rules, the errors, the number of swaps, and updates under running vCPUs and under vCPUs that populate."

	"Documentation/"
	"Documentation: KVM: Describe the memory core and its ioctls"
	"memory/internals.rst is for those who change the core, the other pages are for those who write a VMM."

	"tools/kvm/ samples/kvm/"
	"tools: KVM: Add userspace crates and a sample VMM for memslot lists"
	"The uapi crate extends kvm-ioctls; the sample VMM resizes memslots under a running guest."
)

repo=$WORK/git
work=$CACHE/series
"$(dirname "$0")/toolchain.sh"
lock
"$(dirname "$0")/tree.sh" build
tree=$WORK/tree
base=${KSRC:-$CACHE/pristine}
mapfile -t patches < <(overlay_patches)
sed 's|^/||' "$tree/.kvm-memory-overlay" >"$CACHE/series.files"

export GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL
GIT_AUTHOR_NAME=$(git -C "$SRC" config user.name || true)
GIT_AUTHOR_EMAIL=$(git -C "$SRC" config user.email || true)
[[ -n $GIT_AUTHOR_NAME && -n $GIT_AUTHOR_EMAIL ]] ||
	die "git does not know who you are" "git config --global user.name NAME; git config --global user.email ADDRESS"
GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL

if [[ ! -d $repo ]] || [[ -n $KSRC ]]; then
	need_disk 2 "a git repository of the pristine source"
	say "making a git repository of the pristine source"
	rm -rf "$repo.new"
	git init -q --bare "$repo.new"
	git -C "$repo.new" config core.bare false
	git -C "$repo.new" config core.compression 1
	git -C "$repo.new" config gc.auto 0
	GIT_DIR=$repo.new GIT_WORK_TREE=$base git add -f -A .
	GIT_DIR=$repo.new GIT_WORK_TREE=$base git commit -q -m "Linux $VERSION"
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

# commit PATHS SUBJECT MESSAGE...: the files of the overlay below PATHS.
commit() {
	local paths
	while (($# > 0)); do
		read -ra paths <<<"$1"
		overlay_files | cut -f2 | while read -r f; do
			for p in "${paths[@]}"; do
				[[ $f != "$p"* ]] || { mkdir -p "$work/$(dirname "$f")" && cp "$tree/$f" "$work/$f" && echo "$f"; }
			done
		done >"$CACHE/series.add"
		git -C "$work" add -f --pathspec-from-file="$CACHE/series.add"
		git -C "$work" commit -q -s -m "$2" -m "$(fmt -w 72 <<<"$3")"
		shift 3
	done
}

# am PATCH...
am() {
	git -C "$work" am -q -s "$@" || die "a patch does not apply" "see $work"
}

mapfile -t fixes < <(printf '%s\n' "${patches[@]}" | grep '/000')
checkout "$work"
am "${fixes[@]::${#fixes[@]}-1}"
commit "${REPRODUCERS[@]}"
am "${fixes[-1]}"
commit "${COMMITS[@]}"
am "${patches[@]:${#fixes[@]}}"

mkdir -p "$OUT"
rm -rf "$OUT/series"
git -C "$work" format-patch -q --cover-letter -o "$OUT/series" "$(git --git-dir="$repo" rev-parse HEAD)"
sed -i 's/\*\*\* SUBJECT HERE \*\*\*/KVM: Guest memory in Rust, and memslot lists/' "$OUT/series/0000-cover-letter.patch"
sed -i -e '/\*\*\* BLURB HERE \*\*\*/{r /dev/stdin' -e 'd}' "$OUT/series/0000-cover-letter.patch" <<'END'
A VMM that resizes a memslot has to delete it and create two. A vCPU that
runs in between finds no slot, and the guest dies; pausing all vCPUs
around the update costs the guest milliseconds.

KVM_SET_USER_MEMORY_REGION_LIST takes a list of updates and publishes the
result as a whole: running vCPUs see the old memslots or the new ones,
and accesses that KVM makes on their behalf keep working meanwhile. If an
entry fails, nothing happened.

The memslot code behind it, and behind the ioctls that exist already, is
written in Rust. CONFIG_KVM_RUST_MEMORY=n keeps the C code as it was.

KVM_MAP_MEMORY stands on the same core. It populates guest memory for
reads or writes, with contents if told so, and lets memslot updates
through while it does.

First come fixes of faults that KVM has without this series, with tests
that show them. After these, new files come before the patches that wire
them up.
END

check=$work.check
checkout "$check"
git -C "$check" am -q "$OUT"/series/0*[1-9]*-*.patch || die "git am does not take the series" "see $check"
while read -r f; do
	cmp "$check/$f" "$tree/$f" >&2 || die "the series does not give the tree that we build: $f differs"
done <"$CACHE/series.files"
git -C "$check" status --porcelain --ignored >&2
say "$(find "$OUT/series" -name '*.patch' | wc -l) mails in $OUT/series; git am takes them on Linux $VERSION"
rm -rf "$work" "$check" "$CACHE"/series.*
