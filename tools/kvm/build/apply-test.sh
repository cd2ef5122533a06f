#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Tests `make apply` and `make unapply` on small trees: of this Linux, of another version that the patches fit, and of one that
# they do not fit.
# shellcheck disable=SC2317  # expect calls the functions
. "$(dirname "$0")/lib.sh"

"$(dirname "$0")/toolchain.sh"
"$(dirname "$0")/tree.sh" build
base=${KSRC:-$CACHE/pristine}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp" "$CACHE/ksrc-$(printf %s "$tmp/far" | sha256sum | cut -c1-8)"' EXIT
failed=0

# tree NAME: what the patches edit, and what makes it a Linux tree.
tree() {
	mkdir "$tmp/$1"
	copy_patched "$base" "$tmp/$1"
	cp "$base/Makefile" "$tmp/$1/"
}

# tree_sh NAME VERB: leaves what it says in $tmp/log.
tree_sh() {
	KSRC=$tmp/$1 "$(dirname "$0")/tree.sh" "$2" >"$tmp/log" 2>&1
}

# expect WHAT CMD...
expect() {
	local what=$1
	shift
	if "$@"; then
		result pass "overlay: $what"
	else
		cp "$tmp/log" "$LOG/apply-test.log"
		result fail "overlay: $what" "$LOG/apply-test.log"
		failed=1
	fi
}

says() { grep -qE -- "$1" "$tmp/log"; }

tree same
cp -r "$tmp/same" "$tmp/before"
expect "it can be applied" tree_sh same apply
expect "it cannot be applied twice" eval '! tree_sh same apply && says "has the overlay applied"'
echo >>"$tmp/same/rust/kvm/memory.rs"
expect "it is not taken off where a file was changed since" eval '! tree_sh same unapply && says "memory.rs: FAILED"'
cp "$SRC/rust/kvm/memory.rs" "$tmp/same/rust/kvm/"
expect "it can be taken off" tree_sh same unapply
expect "the tree then is what it was" diff -r "$tmp/before" "$tmp/same"

tree next
sed -i 's/^PATCHLEVEL = .*/PATCHLEVEL = 99/' "$tmp/next/Makefile"
cp -r "$tmp/next" "$tmp/far"
expect "it can be applied to another version that it fits" eval 'tree_sh next apply && says "this is Linux [0-9]+\.99"'

# Two patches have nothing to hold on to: a line that one changes is another, and the file of one is gone. Both files belong
# to one patch each.
sed -i 's/if (slot && slot->flags & KVM_MEMSLOT_INVALID)/if (slot \&\& is_invalid(slot))/' "$tmp/far/arch/x86/kvm/vmx/tdx.c"
rm "$tmp/far/virt/kvm/Makefile.kvm"
cp -r "$tmp/far" "$tmp/before-far"
expect "it is not applied to one that it does not fit" eval '! tree_sh far apply'
expect "the message names patch, file and line" eval \
	'says "^0.*Have-a-vCPU-see.*patch" && says "arch/x86/kvm/vmx/tdx.c:[0-9]+" && says "virt/kvm/Makefile.kvm" && says "^2 of"'
expect "the tree stays what it was" diff -r "$tmp/before-far" "$tmp/far"
exit "$failed"
