#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
# Writes src/bindings.rs, or the file given, from the uAPI headers.
# Needs bindgen 0.71 and rustfmt.
set -euo pipefail

out=$(realpath "${1:-$(dirname "$0")/src/bindings.rs}")
include=$(realpath "$(dirname "$0")/../../../include/uapi")

# The number of an ioctl is an expression only clang can work out: bindgen's
# fallback for that takes a single header and leaves files behind.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
printf '#include <linux/kvm.h>\n#include "%s/linux/kvm_memory.h"\n' "$include" >all.h

# The headers of the system do not have the one for guests.
mkdir linux
cp "$include/linux/kvm_memory_area.h" linux/

bindgen all.h --output "$out" \
	--allowlist-file '.*/kvm_memory(_area)?\.h' \
	--with-derive-default --with-derive-partialeq \
	--clang-macro-fallback --clang-macro-fallback-build-dir "$scratch" \
	--raw-line '// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0' \
	--raw-line '// Made by bindgen.sh from include/uapi/linux/kvm_memory.h; do not edit.' \
	-- -I "$scratch"
