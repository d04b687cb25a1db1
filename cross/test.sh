#!/bin/sh
# Proves the executables for boards without the boards: test.sh [TARGET...], by default all of targets.sh.
#
# For each target, under an emulator of the oldest CPU that it is for (runner_of in targets.sh):
#   - the executable is static, of the right architecture level, and no larger than 5 MB;
#   - version, route, check, the spool commands and both clients start and say what they should;
#   - all unit tests of the library pass, compiled for the target with the checks of a debug build (properties with 32 cases);
#   - tests/real/board.rs passes: real Mosquitto and Kafka on this machine, the board's executable between them.
# Prints the table of docs/cross.md. With CROSS_PROFILE=cross-test, as `make test` does it for one target, the executable is
# compiled faster, is neither small nor stripped, and the size is not looked at.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=cross/targets.sh
. "$here/targets.sh"
bytes_max=5000000

# shellcheck disable=SC2086 # a list
[ $# -gt 0 ] || set -- $targets
for target in "$@"; do check_target "$target"; done
"$checkout/tests/stack/setup.sh" cross packages kafka
"$here/build.sh" "$@"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The file as it is: nothing to load beside it, and nothing that the oldest board lacks.
look_at() {
    file=$built/$target/tidegate
    bytes=$(stat -c %s "$file")
    [ "$profile" != release ] || [ "$bytes" -le "$bytes_max" ] || fail "$target: $bytes bytes, more than $bytes_max"
    for name in $binaries; do
        readelf -lW "$built/$target/$name" >"$work/segments"
        ! grep -q INTERP "$work/segments" || fail "$target: $name is not static: it names an interpreter"
        [ "$profile" = release ] || continue
        readelf -SW "$built/$target/$name" >"$work/sections"
        ! grep -q -E '\.symtab|\.debug' "$work/sections" || fail "$target: $name is not stripped"
    done
    case $target in
    arm-*) level=v6 ;;
    armv7-*) level=v7 ;;
    *) return 0 ;;
    esac
    readelf -A "$file" >"$work/attributes"
    grep -q "Tag_CPU_arch: $level\$" "$work/attributes" || fail "$target: not for ARM$level: $(grep CPU_arch: "$work/attributes")"
    grep -q 'Tag_ABI_VFP_args: VFP registers' "$work/attributes" || fail "$target: not hard float"
}

# says TEXT CODE COMMAND...: the command ends with this code and says this.
says() {
    text=$1
    code=$2
    name=$3
    shift 3
    seen=0
    # shellcheck disable=SC2086 # a program and its arguments
    (cd "$work" && exec env -i PATH="$PATH" RUN_MODE=PRODUCTION LOG_LVL=info MQTT_BROKER_URL=127.0.0.1 MQTT_BROKER_PORT=1 \
        MQTT_CLIENT_ID=board KAFKA_BROKER=127.0.0.1:1 WILDCARD_TOPIC_LIST='plant/+/#:plant' INVOKE_LATENCY_SEC=10 \
        INVOKE_MAX_GOROUTINE=1000 INVOKE_MIN_GOROUTINE=50 $runner "$built/$target/$name" "$@") >"$work/said" 2>&1 || seen=$?
    if [ "$seen" != "$code" ] || ! grep -q -e "$text" "$work/said"; then
        cat "$work/said" >&2
        fail "$target: $name $* ended with $seen (not $code), or did not say '$text'"
    fi
}

commands() {
    version=$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' "$checkout/Cargo.toml")
    says "tidegate $version" 0 tidegate version
    says 'plant' 0 tidegate route plant/7/temperature
    # Nothing listens at port 1: each endpoint is tried and named.
    says '127.0.0.1:1' 1 tidegate check
    says "$work/none" 1 tidegate spool status "$work/none"
    for client in $binaries; do
        says 'Usage' 0 "$client" --help
    done
    start_ms=$(start_time)
}

# The best of ten starts of `tidegate version`, in milliseconds.
start_time() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        from=$(date +%s%N)
        # shellcheck disable=SC2086 # a program and its arguments
        $runner "$built/$target/tidegate" version >/dev/null
        echo "$((($(date +%s%N) - from) / 100000))"
    done | sort -n | head -n 1 | sed 's/.$/.&/; s/^\./0./'
}

unit_tests() {
    (
        use_rust "$target"
        # Properties have all their cases on the machine itself; here it is about the target.
        export PROPTEST_RNG_SEED=1 PROPTEST_CASES=32
        # An empty one is an error to cargo.
        [ -z "$runner" ] || export "CARGO_TARGET_$(variable_of "$target")_RUNNER=$runner"
        zigbuild "$target" test --profile cross-test --lib -- --test-threads=4
    ) >"$work/units" 2>&1 || {
        cat "$work/units" >&2
        fail "$target: unit tests failed"
    }
    passed=$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$work/units")
    [ "${passed:-0}" -gt 0 ] || fail "$target: no unit test ran"
}

# The test itself and its stage are this machine's.
smoke() {
    rm -f "$work/report"
    (
        cd "$checkout"
        export TIDEGATE_REAL_EXECUTABLE="$built/$target/tidegate" TIDEGATE_REAL_RUNNER="$runner"
        TIDEGATE_REAL_REPORT=$work/report TIDEGATE_STACK_CACHE=$cache cargo test --locked --test real board::
    ) >"$work/smoke" 2>&1 || {
        cat "$work/smoke" >&2
        fail "$target: the smoke test failed"
    }
    [ -s "$work/report" ] || fail "$target: the smoke test did not run"
    cat "$work/report" >&2
}

# reported PATTERN: the number before it in the smoke test's report.
reported() { sed -n "s/.* \([0-9]*\) $1.*/\1/p" "$work/report"; }

for target in "$@"; do
    runner=$(runner_of "$target")
    say "$target: ${runner:-as it is}"
    look_at
    commands
    unit_tests
    smoke
    printf '| %s | %s | %s ms | %s ms | %s KiB | %s KiB | %s KiB | %s unit, 1 real |\n' "$target" "$bytes" "$start_ms" \
        "$(reported 'ms after its start')" "$(reported 'KiB idle')" "$(reported 'KiB under load')" \
        "$(reported 'KiB while Kafka is away')" "$passed" >>"$work/table"
done
printf '| target | bytes | version | connected | idle | under load | spooling | tests passed |\n|---|---|---|---|---|---|---|---|\n'
cat "$work/table"
