#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# selftests.sh ours: our selftests with $FLAVOUR (rust or debug); debug-short: some of ours with debug.
# selftests.sh upstream: upstream's own with rust and c in one boot; a test whose verdicts differ fails.
# selftests.sh intel: ours, and upstream's about memslots, on Intel's VMX; intel-short: some of ours, in one boot.
# selftests.sh build: runs none.
. "$(dirname "$0")/lib.sh"

# Upstream's tests that take too long where the hardware virtualisation is itself emulated: shortened by their own options.
declare -A OPTIONS=(
	[access_tracking_perf_test]="-v 1 -b 16M"
	[demand_paging_test]="-b 64M"
	[kvm_page_table_test]="-b 64M"
	[dirty_log_perf_test]="-b 64M"
	[memslot_perf_test]="-l 1 -s 64 -t 60"
	[memslot_modification_stress_test]="-i 20"
	[mmu_stress_test]="-m 1 -s 1 -H"
)
# Not run.
SKIPPED=(
	hardware_disable_test # forks 512 VMs and kills each after a random time; no option makes it shorter
	rseq_test # moves a vCPU from CPU to CPU 100,000 times; no option makes it shorter
	x86/nx_huge_pages_test # is run by nx_huge_pages_test.sh
)

# Builds all of them into $WORK/selftests.
compile() {
	local key
	"$(dirname "$0")/kernel.sh" "$@"
	key=$(overlay_key)
	[[ -n $KSRC || $(cat "$WORK/selftests/.key" 2>/dev/null) != "$key" ]] || return 0
	lock
	"$(dirname "$0")/tree.sh" build
	need_disk 2 "building the selftests"
	mkdir -p "$WORK/selftests"
	rm -f "$WORK/selftests/.key"
	# A test that there is no more must not run, and make does not know of it.
	find "$WORK/selftests" -type f -perm -u+x -delete
	# A compiler that was killed leaves an empty object, which make takes for current.
	find "$WORK/selftests" -name '*.o' -empty -delete
	{
		make_selftests rust "$IN_WORK/selftests" &&
			cp "$WORK/tree/tools/testing/selftests/kvm/x86/"*.sh "$WORK/selftests/x86/"
	} 2>&1 | progress "selftests" "$LOG/selftests.log" 300 || {
		grep -nE -m 4 -A 8 '( error: |undefined reference|No space left)' "$LOG/selftests.log" >&2
		die "the selftests do not build, all of it: $LOG/selftests.log"
	}
	printf %s "$key" >"$WORK/selftests/.key"
}

our_tests() {
	overlay_files | cut -f2 | sed -n 's|^tools/testing/selftests/kvm/\(.*_test\)\.c$|\1|p'
}

# Ours that print what must be the same with upstream's C.
SAME=(memory_region_single_test x86/memory_region_list_partition_test)
# Ours that use upstream's ioctls only, and must pass with upstream's C as well.
WITH_C=("${SAME[@]}" x86/{first_shadow_root,gmap_absent,hole_fault,mem_area_abi,mmio_rmw,nested_ad_dirty_log}_test
	x86/{nx_huge_page_slot,prefault_obsolete_root}_test)
# Ours that run with KVM's shadow page tables as well, and one that runs with these only.
SHADOW=(x86/memory_region_list_{stress,switch,held}_test x86/map_memory_args_test)
ONLY_SHADOW=x86/shadow_sync_test

# Ours that would take minutes where everything is slow, shortened by their own options.
shorter() {
	sed -e 's/reshape_race_test$/& 100/' -e 's/list_stale_test$/& 300/' -e 's/list_partition_test$/& 1500/' \
		-e 's/list_notifier_test$/& 300/' -e 's/gmap_random_test$/& 400/' -e 's/gmap_remap_test$/& 40/' \
		-e 's/gmap_swaps_test$/& 500/' -e 's/gmap_limit_test$/& -T no_ids_left -T joined/'
}

# our_list FLAVOUR: ours; only the debug kernel can make allocations fail, and runs the core's KUnit suites.
our_list() {
	printf 'shadow:%s\n' "${SHADOW[@]}" "$ONLY_SHADOW"
	echo legacy:x86/hole_fault_test
	printf "%s:x86/gmap_absent_test\n" legacy shadow
	if [[ $1 == debug ]]; then
		# Nothing holds the first shadow root's test up for long enough there.
		our_tests | grep -vxF -e "$ONLY_SHADOW" -e x86/first_shadow_root_test | shorter
		find "$SRC/rust/kvm" -name '*.rs' -exec sed -n 's/^#\[.*kunit_tests(\(.*\))\]$/kunit:\1/p' {} +
	else
		# Takes minutes on the debug kernel.
		our_tests | grep -v fail_nth | sed -n 's|^x86/map_memory_|legacy:&|p'
		our_tests | grep -vxF -e "$ONLY_SHADOW" -e "$(printf '%s\n' "${WITH_C[@]}")" | grep -v fail_nth
	fi
}

# Those of them that `make test` runs on the debug kernel, where all of them take most of an hour: about allocations that fail,
# about races, and about what is freed.
DEBUG_SHORT=(map_memory_fail_nth memory_region_list_{fail_nth,memfd,reshape_race,stale} gmap_{fail_nth,remap,vm}
	mem_area_{fail_nth,stress} memslots_debugfs)
debug_short_list() {
	our_list debug | grep -E "^(kunit:.*|x86/($(printf '%s\n' "${DEBUG_SHORT[@]}" | paste -sd'|'))_test( .*)?)\$"
}

# Upstream's, and these.
upstream_tests() {
	(cd "$WORK/selftests" && find . -type f -perm -u+x -printf '%P\n') | sort |
		grep -vxF -e "$(our_tests | grep -vxF -e "$(printf '%s\n' "${WITH_C[@]}")")" \
			-e "$(printf '%s\n' "${SKIPPED[@]}")" | while read -r test; do
		echo "$test ${OPTIONS[$test]:-}"
	done
}

# run LIMIT FLAVOUR... <LIST: the lines of guest-selftests. Fails if the kernel complained or did not get through; what it
# said is then in $COMPLAINT.
COMPLAINT=$OUT/selftests/complaint
run() {
	local out=$OUT/selftests
	mkdir -p "$out"
	cat >"$out/list"
	SHARE=$out FLAVOUR=$2 MEM=${MEM:-6G} CMD="guest-selftests $IN_WORK/selftests $* </mnt/share/list" \
		"$(dirname "$0")/vm.sh" 2> >(tee "$COMPLAINT" >&2)
}

# ours [LIST]: those that `LIST FLAVOUR` prints.
ours() {
	local flavour=${FLAVOUR:-rust} list=${1:-our_list} test verdict seconds limit=300 failed=0
	local log=$LOG/selftests-$flavour
	[[ $flavour != debug ]] || limit=900
	compile rust "$flavour"
	"$list" "$flavour" | run "$limit" "$flavour" >"$log" || failed=1
	while read -r _ test verdict seconds; do
		[[ $verdict == pass ]] || verdict=fail
		result "$verdict" "$test on $flavour, ${seconds}s" "$OUT/selftests/$flavour-${test//\//-}.log"
	done <"$log"
	if ((failed)) || [[ $("$list" "$flavour" | wc -l) != $(wc -l <"$log") ]]; then
		result fail "selftests on $flavour: the kernel complained, or the VM died" "$COMPLAINT"
		return 1
	fi
	! grep -qvw pass "$log"
}

# compare LIMIT <LIST: "TEST C-VERDICT RUST-VERDICT C-SECONDS RUST-SECONDS" for each test.
compare() {
	run "$1" c rust | while read -r line; do
		echo "$line"
		# shellcheck disable=SC2086  # four words
		printf '%-4s  %-45s %s, %ss\n' $line >&2
	done >"$LOG/upstream"
	awk '{ v[$2, $1] = $3; s[$2, $1] = $4; all[$2] }
		END { for (t in all) print t, v[t, "c"], v[t, "rust"] ? v[t, "rust"] : "none", s[t, "c"], s[t, "rust"] + 0 }' "$LOG/upstream" | sort
}

upstream() {
	local table=$LOG/upstream.table test c rust seconds flavour failed=0
	compile rust c
	upstream_tests | compare 120 >"$table" || { result fail "upstream's selftests: the kernel complained, or the VM died" "$COMPLAINT"; failed=1; }
	# A machine that is busy with something else makes a test time out: what differs is run once more, with more time.
	awk '$2 != $3 { print $1 }' "$table" >"$table.differ"
	if [[ -s $table.differ ]]; then
		upstream_tests | grep -wFf "$table.differ" | compare 360 >"$table.again" ||
			{ result fail "upstream's selftests, second run: the kernel complained, or the VM died" "$COMPLAINT"; failed=1; }
		sort -u -s -k1,1 "$table.again" "$table" >"$table.both"
		mv "$table.both" "$table"
	fi
	printf '\n%-48s %-8s %-8s %s\n' "upstream's selftest" C Rust "seconds"
	while read -r test c rust seconds; do
		printf '%-48s %-8s %-8s %s\n' "$test" "$c" "$rust" "$seconds"
		# Ours must not fail with both; on a busy machine a race may not come about, and is skipped.
		if [[ " ${WITH_C[*]} " == *" $test "* && "$c $rust" == skip\ skip ]]; then
			result skip "$test: with both"
		elif [[ " ${WITH_C[*]} " == *" $test "* && "$c $rust" =~ ^(pass|skip)\ (pass|skip)$ ]]; then
			[[ -z ${RESULTS:-} ]] || echo "pass $test: $c with C, $rust with Rust" >>"$RESULTS"
		elif [[ $c == "$rust" && " ${WITH_C[*]} " != *" $test "* ]]; then
			[[ -z ${RESULTS:-} ]] || echo "pass $test: $c with both" >>"$RESULTS"
		else
			result fail "$test: $c with C, $rust with Rust" "$OUT/selftests/rust-${test//\//-}.log"
			failed=1
		fi
	done <"$table"
	for flavour in c rust; do
		for test in "${SAME[@]}"; do
			grep '^# ' "$OUT/selftests/$flavour-${test//\//-}.log" | grep -vE '^# (Totals|[0-9]+ skipped)' || :
		done >"$LOG/single-$flavour"
	done
	if [[ -s $LOG/single-c ]] && diff "$LOG/single-c" "$LOG/single-rust" >"$LOG/single.diff"; then
		result pass "single ioctls give what they give with C, $(wc -l <"$LOG/single-c") results"
	else
		result fail "single ioctls do not give what they give with C" "$LOG/single.diff"
		failed=1
	fi
	[[ $(upstream_tests | wc -l) == $(wc -l <"$table") ]] || { result fail "not all of upstream's selftests ran"; failed=1; }
	return "$failed"
}

# Upstream's that run on Intel, shorter than elsewhere. (Each part of memslot_perf_test writes to 512 MiB first, which takes
# Bochs half a minute.)
INTEL_UPSTREAM=(set_memory_region_test pre_fault_memory_test "kvm_page_table_test -b 64M" "dirty_log_test -i 3 -I 10"
	"memslot_perf_test -l 1 -s 64 -t 60 -f 3 -e 4" x86/xapic_{ipi,state}_test x86/nested_dirty_log_test)
INTEL_SHORT=(x86/memory_region_list_{,order_,dirty_log_,switch_}test x86/map_memory_{args,mapping,huge}_test
	"x86/memory_region_list_reshape_race_test 20" x86/mem_area_modes_test
	shadow:x86/map_memory_args_test eptad:x86/memory_region_list_dirty_log_test)
# intel_list FLAVOUR: both flavours run what needs no ioctl of ours.
intel_list() {
	printf '%s\n' "${WITH_C[@]}" "${INTEL_UPSTREAM[@]}" | shorter
	if [[ $1 == rust ]]; then
		our_list rust | shorter
		printf 'eptad:x86/%s_test\n' memory_region_list_dirty_{log,race} map_memory_dirty
		printf 'restricted:x86/%s_test\n' memory_region_list{,_switch} map_memory_mapping
	fi
}

# intel_boots FLAVOUR [TESTS-IN-A-BOOT] <LIST: one line for each, "FLAVOUR TEST VERDICT SECONDS". A test that Bochs does not get
# through is "hang", and the next boot goes on after it.
intel_boots() {
	local tests boot log=$LOG/intel-boot n
	mapfile -t tests
	while ((${#tests[@]} > 0)); do
		boot=("${tests[@]:0:${2:-6}}")
		FILES=$(printf '%s\n' "${boot[@]}" | sed -E "s#^([a-z0-9]+:)?([^ ]*).*#$IN_WORK/selftests/\2#" | sort -u | paste -sd' ')
		export FILES
		n=0
		if ! printf '%s\n' "${boot[@]}" | VENDOR=intel MEM=2G TIMEOUT=3600 run 400 "$1" >"$log"; then
			n=$(wc -l <"$log")
			# Either the kernel complained after all of them, or this is where it ended.
			((n >= ${#boot[@]})) || echo "$1 ${boot[n]%% *} hang 0" >>"$log"
			grep -q 'the kernel complained' "$COMPLAINT" && echo "$1 kernel complaint 0" >>"$log"
		fi
		cat "$log"
		n=$(grep -cv complaint "$log")
		((n > 0)) || return 1
		tests=("${tests[@]:n}")
	done
}

# intel_verdict TEST RUST C SECONDS: fails if the two differ; if both fail, it is taken for Bochs's.
intel_verdict() {
	local what="$1 on Intel: $2 with Rust${3:+, $3 with C}, ${4}s"
	local log=$OUT/selftests/rust-${1//\//-}.log
	case $2,${3:-none} in
	pass,pass | pass,none) result pass "$what" ;;
	skip,* | fail,fail | fail,timeout | fail,hang | timeout,fail | timeout,timeout | timeout,hang | hang,timeout | hang,hang)
		result skip "$what" ;;
	*) result fail "$what" "$log"; return 1 ;;
	esac
}

intel() {
	local test rust c seconds failed=0 log=$LOG/intel
	compile rust c
	: >"$log"
	if [[ ${1:-} == short ]]; then
		printf '%s\n' "${INTEL_SHORT[@]}" | intel_boots rust "${#INTEL_SHORT[@]}" >>"$log" || failed=1
	else
		intel_list rust | intel_boots rust >>"$log" || failed=1
		intel_list c | intel_boots c >>"$log" || failed=1
	fi
	! grep complaint "$log" || failed=1
	while read -r test rust c seconds; do
		[[ $c != - ]] || c=
		intel_verdict "$test" "$rust" "$c" "$seconds" || failed=1
	done < <(awk '$2 != "kernel" { v[$2, $1] = $3; if (!($2 in s)) all[n++] = $2; s[$2] += $4 }
		END { for (i = 0; i < n; i++) { t = all[i]; print t, v[t, "rust"] ? v[t, "rust"] : "none", v[t, "c"] ? v[t, "c"] : "-", s[t] } }' "$log")
	return "$failed"
}

case ${1:-} in
build) compile rust c ;;
ours | upstream | intel) "$1" ;;
debug-short) FLAVOUR=debug ours debug_short_list ;;
intel-short) intel short ;;
*) die "usage: selftests.sh build|ours|debug-short|upstream|intel|intel-short" ;;
esac
