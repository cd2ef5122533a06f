#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# cargo.sh build: the userspace crates, with release settings, into the cache. cargo.sh test: their tests, which need no KVM.
# cargo.sh kvm-test: those tests of the uapi crate that do, in the test VM. cargo.sh fuzz: random input, for FUZZ_TIME seconds.
. "$(dirname "$0")/lib.sh"

"$(dirname "$0")/toolchain.sh"
cargo() {
	inside cargo --locked --color never "$1" --manifest-path tools/kvm/Cargo.toml "${@:2}"
}
case $1 in
test) cargo test ;;
build)
	lock
	cargo build --release 2>&1 | progress "userspace crates" "$LOG/crates.log" 150 || {
		tail -30 "$LOG/crates.log" >&2
		die "the crates do not build" "no network to crates.io? all of it: $LOG/crates.log"
	}
	;;
kvm-test)
	program=$(cargo test -p kvm-memory-uapi --test kvm --no-run 2>&1 | tee "$LOG/crates.log" | sed -n 's/^ *Executable.*(\(.*\))$/\1/p')
	[[ -n $program ]] || { tail -30 "$LOG/crates.log" >&2; die "the uapi crate's tests do not build"; }
	CMD="$program --ignored" "$(dirname "$0")/vm.sh"
	;;
fuzz)
	inside cargo install --quiet --locked --root "$IN_CACHE/cargo-fuzz" --version 0.13.1 cargo-fuzz
	mkdir -p "$CACHE/corpus/areas"
	inside "$IN_CACHE/cargo-fuzz/bin/cargo-fuzz" fuzz run --fuzz-dir tools/kvm/fuzz --sanitizer none areas \
		"$IN_CACHE/corpus/areas" -- -max_total_time="${FUZZ_TIME:-60}"
	;;
*) die "usage: cargo.sh build|test|kvm-test|fuzz" ;;
esac
