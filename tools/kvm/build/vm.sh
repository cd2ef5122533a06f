#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# vm.sh: boots the test kernel and runs $CMD in it. See `make help`; the kernel must have been built.
. "$(dirname "$0")/lib.sh"

FLAVOUR=${FLAVOUR:-rust}
SMP=${SMP:-2}
CMD=${CMD:?which command? make vm CMD=...}
TIMEOUT=${TIMEOUT:-3600}

# What the kernel prints when something is wrong with it.
REPORT='WARNING:|BUG:|Oops|KASAN:|UBSAN:|kernel panic|general protection fault|stack segment|refcount_t:|list_(add|del) corruption'
REPORT+='|INFO: (task .* blocked|possible|suspicious|trying to register)|rcu: INFO:|detected stall|suspicious RCU usage'
REPORT+='|possible .* deadlock|inconsistent lock state|lock held when returning|kmemleak: [0-9]+ new|unreferenced object|rust_kernel: panicked'

# What the machine is ($spare, $MEM), and boot(): see there.
case ${VENDOR:-amd} in
amd) . "$(dirname "$0")/vm-qemu.sh" ;;
intel) . "$(dirname "$0")/vm-bochs.sh" ;;
*) die "VENDOR is amd or intel, not '$VENDOR'" ;;
esac

case $FLAVOUR in
rust | c) kernel=rust ;;
debug) kernel=debug ;;
*) die "no flavour '$FLAVOUR'" "FLAVOUR is rust, c or debug" ;;
esac
[[ -f $WORK/kernel/$FLAVOUR/bzImage ]] || die "the $FLAVOUR kernel is not built" "make kernel FLAVOUR=$FLAVOUR"
[[ -z ${SHARE:-} || -d $SHARE ]] || die "SHARE=$SHARE is not a directory"

# The run's own directory: the kernels as they are now, the command, what comes back.
mkdir -p "$CACHE/run"
run=$(mktemp -d "$CACHE/run/XXXXXX")
trap 'rm -rf "$run"' EXIT
trap 'exit 130' INT TERM
in_run=$IN_CACHE/run/${run##*/}
console=$LOG/console-$FLAVOUR-${run##*/}.log
find "$LOG" -name 'console-*' -mtime +1 -delete
cp -al "$WORK/kernel" "$run/kernel"
printf '%s\n' "$CMD" >"$run/cmd"
printf '%s\n' "$FLAVOUR" >"$run/flavour"
printf '%d-%d\n' "$spare" $((SMP + spare - 1)) >"$run/cpus"

# The output of CMD does not go through the console. boot() has both pipes open, so that they end with it.
mkfifo "$run/stdout" "$run/stderr"
cat "$run/stdout" &
output=($!)
cat "$run/stderr" >&2 &
output+=($!)
: >"$console"
if [[ -n ${SHARE:-} ]]; then
	EXTRA=$(cd "$SHARE" && pwd)
	export EXTRA
	in_share=$([[ $TOOLCHAIN == host ]] && echo "$EXTRA" || echo /mnt/extra)
fi
append="console=ttyS0 RUN=$in_run ignore_loglevel oops=panic panic=-1"
append+=" hung_task_panic=0 sysctl.kernel.hung_task_timeout_secs=240 rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60"
start=$SECONDS
boot "$append" 7>"$run/stdout" 8>"$run/stderr"
wait "${output[@]}" || true
[[ -z ${CONSOLE:-} ]] || cp "$console" "$CONSOLE"

status=$(cat "$run/status" 2>/dev/null) || {
	tail -40 "$console" >&2
	((SECONDS - start < TIMEOUT)) || die "the VM did not end within TIMEOUT=$TIMEOUT seconds" "console: $console"
	die "the VM ended before the command did; its last words are above" "console: $console"
}
if grep -qE "^\[[ 0-9.]+\].*($REPORT)" "$console" || [[ -s $run/kmemleak ]]; then
	say "the kernel complained (all of it: $console):"
	grep -m 1 -E -A 60 "^\[[ 0-9.]+\].*($REPORT)" "$console" >&2 || head -60 "$run/kmemleak" >&2
	((status != 0)) || status=99
fi
exit "$status"
