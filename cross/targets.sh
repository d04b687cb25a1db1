# Sourced by the scripts of this folder: the boards, the tools, and which Rust builds for them.
# shellcheck shell=sh disable=SC2034,SC2154 # what is used by the scripts, and set by them

# Static and without a libc to look for: each runs on any Linux of its architecture.
#   aarch64   64-bit boards: Raspberry Pi 3 and later, most gateways
#   armv7     32-bit systems on ARMv7 with hard float: Raspberry Pi 2 and later, Cortex-A7, A8, A9
#   arm       ARMv6 with VFPv2: Raspberry Pi 1 and Zero
#   x86_64    PCs and the container image
targets='aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf x86_64-unknown-linux-musl'
binaries=${CROSS_BINARIES:-tidegate publisher-mqtt subscriber-kafka}
# cross-test is compiled in less than half of the time, for tests; see Cargo.toml.
profile=${CROSS_PROFILE:-release}

checkout=$(CDPATH='' cd -- "$here/.." && pwd)
cache=${TIDEGATE_STACK_CACHE:-$checkout/.cache}
tools=$cache/cross-tools/bin
target_dir=${CARGO_TARGET_DIR:-$checkout/target}
case $target_dir in
/*) ;;
*) target_dir=$checkout/$target_dir ;;
esac

case $profile in
release) built=$target_dir/cross ;;
*) built=$target_dir/cross/$profile ;;
esac

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Ends unless $1 is one of the targets.
check_target() {
    for known in $targets; do
        [ "$known" != "$1" ] || return 0
    done
    fail "unknown target '$1': one of $targets"
}

# What runs an executable of target $1 here: an emulated CPU of the oldest board that it is for, or nothing.
# -B puts the guest's memory at one place of the process, so that the tests can tell it from the emulator's own.
runner_of() {
    case $1 in
    aarch64-*) echo "qemu-aarch64-static -cpu cortex-a53 -B 0x10000000000" ;;
    armv7-*) echo "qemu-arm-static -cpu cortex-a7 -B 0x10000000000" ;;
    arm-*) echo "qemu-arm-static -cpu arm1176 -B 0x10000000000" ;;
    x86_64-*) [ "$(uname -m)" = x86_64 ] || echo "qemu-x86_64-static -B 0x10000000000" ;;
    esac
}

# How cargo writes target $1 in names of variables.
variable_of() { printf '%s' "$1" | tr 'a-z-' 'A-Z_'; }

# Chooses the Rust for target $1 and puts it, with zig, into the environment. $build_std has further arguments for cargo.
# rustup's where its servers can be reached or the target is there already, else Debian's, which compiles the standard
# library too. CROSS_RUST=rustup or CROSS_RUST=debian leaves no choice.
use_rust() {
    build_std=
    if [ "${CROSS_RUST:-}" != debian ] && have rustup; then
        # A network that swallows packets must not hold us for long.
        if rustup target list --installed | grep -qx "$1" || words=$(timeout 300 rustup target add "$1" 2>&1); then
            say "$1: $(rustc --version), with rustup's standard library"
            sysroot=$(rustc --print sysroot)
            return
        fi
        say "$1: rustup cannot fetch the standard library ($(printf '%s' "$words" | grep -i -m 1 -E 'error|panicked' || echo 'no answer'))"
    fi
    [ "${CROSS_RUST:-}" != rustup ] || fail "$1: CROSS_RUST=rustup leaves no other way"
    "$here/setup.sh" debian-rust
    sysroot=$cache/cross-rust/usr
    set -- "$1" "$sysroot"/lib/*-linux-gnu
    export LD_LIBRARY_PATH="$2" RUSTC="$sysroot/bin/rustc" CARGO="$sysroot/bin/cargo" PATH="$sysroot/bin:$PATH"
    # -Z build-std is not for stable compilers otherwise.
    export RUSTC_BOOTSTRAP=1
    unset RUSTUP_TOOLCHAIN
    build_std='-Zbuild-std=std,panic_unwind,test'
    say "$1: $("$RUSTC" --version) from Debian; the standard library is compiled too (some minutes, once)"
}

# cargo, by zig, for target $1, with the other arguments; after use_rust.
zigbuild() {
    target=$1
    command=$2
    shift 2
    cargo_home=${CARGO_HOME:-$HOME/.cargo}
    # Where it is built must not be in the bytes. Of several that match the last counts.
    separator=$(printf '\037')
    flags="--remap-path-prefix=$checkout=/tidegate"
    flags="$flags${separator}--remap-path-prefix=$target_dir/cross/build=/target"
    flags="$flags${separator}--remap-path-prefix=$cargo_home=/cargo"
    flags="$flags${separator}--remap-path-prefix=$(readlink -f "$sysroot")/lib/rustlib/src/rust=/rust"
    # There is no libc of Rust's own to link when std is compiled here; zig has one.
    [ -z "$build_std" ] || flags="$flags${separator}-Clink-self-contained=no"
    # shellcheck disable=SC2086 # $build_std is one argument or none
    (
        cd "$checkout" || exit 1
        # Settings of the caller for his own machine.
        unset RUSTFLAGS
        export CARGO_ENCODED_RUSTFLAGS="$flags" CARGO_TARGET_DIR="$target_dir/cross/build"
        # C has __DATE__; nobody here uses it.
        export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
        export CARGO_ZIGBUILD_CACHE_DIR="$cache/cross-zig/zigbuild"
        export ZIG_GLOBAL_CACHE_DIR="$cache/cross-zig" ZIG_LOCAL_CACHE_DIR="$cache/cross-zig"
        PATH=$tools:$PATH cargo-zigbuild "$command" --locked --target "$target" $build_std "$@"
    )
}
