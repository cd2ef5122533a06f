#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# program.sh PROGRAM ARGS...: runs one of the userspace crates' programs in the test VM; what it writes to /mnt/share is in $OUT.
. "$(dirname "$0")/lib.sh"

"$(dirname "$0")/cargo.sh" build
mkdir -p "$OUT"
SHARE=$OUT CMD="$IN_CACHE/target/release/$*" "$(dirname "$0")/vm.sh"
