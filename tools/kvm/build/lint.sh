#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Style: each tool over all of what it understands. Goes on after a failure.
# shellcheck disable=SC2317  # try calls the functions
export TERM=dumb
. "$(dirname "$0")/lib.sh"

"$(dirname "$0")/toolchain.sh"
"$(dirname "$0")/tree.sh" build
cd "$SRC"
tracked() { git -c safe.directory='*' ls-files -co --exclude-standard -- "$@" | while read -r f; do [[ ! -e $f ]] || echo "$f"; done; }
mapfile -t c_files < <(tracked '*.c' '*.h' | grep -v '^include/trace/')
mapfile -t trace_files < <(tracked 'include/trace/*')
mapfile -t rust_files < <(tracked 'rust/*.rs')
mapfile -t scripts < <(tracked tools/kvm/build .ci | grep -vE '\.(config|c)$|/bochsrc$')
tree=$IN_WORK/tree

spdx() {
	local f bad=0
	while read -r f; do
		head -5 "$f" | grep -q 'SPDX-License-Identifier:' || { echo "$f: no SPDX line"; bad=1; }
	done < <(tracked | grep -vE '\.(svg|png|patch|lock)$|^\.gitignore$|^patches/series$')
	return "$bad"
}

# checkpatch does not know where the files of the overlay will be, that the sign-off comes with the series, nor the commits
# of Linux that fixes name; nor is the tree a git repository, in which it would look for licences. It cannot read the macros of
# tracepoints.
checkpatch() {
	local ignore=FILE_PATH_CHANGES,MISSING_SIGN_OFF,BAD_FIXES_TAG,UNKNOWN_COMMIT_ID
	local cmd=(inside env GIT_DIR=/none "$tree/scripts/checkpatch.pl" --root="$tree" --strict --quiet --no-summary --ignore) status=0
	mapfile -t patches < <(overlay_patches)
	"${cmd[@]}" "$ignore" "${patches[@]/#$SRC/$IN_SRC}" || status=1
	"${cmd[@]}" "$ignore" -f "${c_files[@]}" || status=1
	"${cmd[@]}" "$ignore,OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT" -f "${trace_files[@]}" || status=1
	return "$status"
}

# The pages alone: the tree's own index and its other pages are not there.
sphinx() {
	rm -rf "$CACHE/sphinx"
	mkdir -p "$CACHE/sphinx"
	(cd Documentation/virt/kvm && cp -r memory "$CACHE/sphinx/")
	printf 'root_doc = "index"\nextensions = []\n' >"$CACHE/sphinx/conf.py"
	printf 'KVM\n===\n\n.. toctree::\n\n   memory/index\n' >"$CACHE/sphinx/index.rst"
	inside sphinx-build -W --keep-going -q -b html "$IN_CACHE/sphinx" "$IN_CACHE/sphinx/out"
}

# try NAME CMD...
try() {
	local name=$1 log
	log=$LOG/lint-${name%% *}.log
	shift
	if "$@" >"$log" 2>&1; then
		result pass "lint: $name"
	else
		head -40 "$log" >&2
		result fail "lint: $name" "$log"
		failed=1
	fi
}

failed=0
try "SPDX lines" spdx
try "shellcheck" inside shellcheck -x -P tools/kvm/build "${scripts[@]}"
try "checkpatch" checkpatch
try "rustfmt of the kernel code" inside rustfmt --check --edition 2021 --config-path "$tree/.rustfmt.toml" "${rust_files[@]}"
try "cargo-fmt" inside cargo fmt --manifest-path tools/kvm/Cargo.toml --all --check
try "cargo-clippy" inside cargo clippy --manifest-path tools/kvm/Cargo.toml --workspace --all-targets --locked -- -D warnings
try "sphinx-build" sphinx
exit "$failed"
