#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Makes sure that the compilers, QEMU and the libraries are there: a Debian trixie root in the cache, or (TOOLCHAIN=host)
# the machine's own.
. "$(dirname "$0")/lib.sh"

PACKAGES=build-essential,bc,bison,flex,libelf-dev,libssl-dev,kmod,cpio,rsync,git,python3,xz-utils,clang,lld,llvm
PACKAGES+=,libclang-dev,rustc,rust-src,rustfmt,rust-clippy,cargo,bindgen,pkg-config,ca-certificates
PACKAGES+=,qemu-system-x86,busybox-static,kexec-tools,procps,mount,perl
PACKAGES+=,bochs,bochsbios,vgabios,grub-pc-bin,grub-common,xorriso,mtools
PACKAGES+=,libdw-dev,libcap-ng-dev,libcap-dev,uuid-dev,libnuma-dev
PACKAGES+=,shellcheck,python3-sphinx,python3-ply,python3-git,codespell,strace,gdb
TOOLS=(clang ld.lld llvm-ar llvm-nm rustc clippy-driver bindgen cargo bc bison flex cpio rsync perl qemu-system-x86_64 busybox kexec)

# The Debian mirror that this machine's apt uses (a URI that serves the suite's main archive).
mirror() {
	# shellcheck disable=SC2016  # apt expands these
	apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }'
}

# apt settings that decide whether the network can be reached.
apt_network() {
	apt-config dump Acquire | grep -E '^Acquire::(http|https)::(Proxy|Proxy-Auto-Detect|CaInfo|Verify-(Peer|Host))' || true
}

debian() {
	local stamp mirror new=$CACHE/root.new
	stamp=$(printf %s "$PACKAGES" | sha256sum | cut -c1-16)
	[[ $(cat "$CACHE/root/.stamp" 2>/dev/null) != "$stamp" ]] || return 0
	lock
	[[ $(cat "$CACHE/root/.stamp" 2>/dev/null) != "$stamp" ]] || return 0
	need_root "setting up the toolchain"
	need_disk 4 "the toolchain root"
	unshare --mount true 2>/dev/null || die "mounting is not permitted here" \
		"in a container, give it CAP_SYS_ADMIN (docker run --privileged)"
	command -v apt-get >/dev/null || die "this is not a Debian machine (no apt-get)" "use TOOLCHAIN=host"
	if ! command -v mmdebstrap >/dev/null; then
		say "installing mmdebstrap"
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap; } \
			>"$LOG/mmdebstrap.log" 2>&1 ||
			die "apt-get could not install mmdebstrap" "is the network there? see $LOG/mmdebstrap.log"
	fi
	mirror=${MIRROR:-$(mirror)}
	if [[ -z $mirror ]]; then
		apt-get update >"$LOG/mmdebstrap.log" 2>&1 || true
		mirror=$(mirror)
	fi
	[[ -n $mirror ]] || die "no Debian mirror in this machine's apt configuration" "add one, or set MIRROR=URI"
	rm -rf --one-file-system "$new"
	apt_network >"$CACHE/apt-network.conf"
	# 700 is the number of lines that apt and dpkg print.
	mmdebstrap --variant=apt --mode=root --verbose --aptopt='Apt::Install-Recommends "false"' \
		--aptopt="$CACHE/apt-network.conf" --dpkgopt='path-exclude=/usr/share/doc/*' --include="$PACKAGES" \
		trixie "$new" "deb $mirror trixie main" "deb $mirror trixie-backports main" 2>&1 |
		progress "toolchain root" "$LOG/toolchain.log" 700 ||
		die "mmdebstrap failed, see $LOG/toolchain.log" "$(grep -E '^(E:|Err:)' "$LOG/toolchain.log" | head -5)" \
			"no network, or a mirror without trixie? MIRROR=URI names another"
	printf %s "$stamp" >"$new/.stamp"
	rm -rf --one-file-system "$CACHE/root"
	mv "$new" "$CACHE/root"
}

host() {
	local t missing=()
	for t in "${TOOLS[@]}"; do
		command -v "$t" >/dev/null || missing+=("$t")
	done
	((${#missing[@]} == 0)) || die "TOOLCHAIN=host lacks: ${missing[*]}" \
		"install them, or leave TOOLCHAIN out to have a Debian root set up"
}

case $TOOLCHAIN in
debian) debian ;;
host) host ;;
*) die "TOOLCHAIN is 'debian' or 'host', not '$TOOLCHAIN'" ;;
esac
