#!/bin/sh
# Builds static, stripped release executables for boards: build.sh [TARGET...], by default all of targets.sh.
#
# The result is in target/cross/TARGET/ (with another CROSS_PROFILE in target/cross/PROFILE/TARGET/): tidegate, publisher-mqtt and
# subscriber-kafka, or those that CROSS_BINARIES names, with TLS (ring). zig, from PyPI, is the linker, the C compiler and the C
# library: no other foreign tool, no container. Which Rust: see use_rust in targets.sh. The same commit, built by the same Rust
# and zig, is the same bytes, wherever the checkout is (reproducible.sh).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=cross/targets.sh
. "$here/targets.sh"

# shellcheck disable=SC2086 # a list
[ $# -gt 0 ] || set -- $targets
for target in "$@"; do check_target "$target"; done
"$here/setup.sh" tools
for target in "$@"; do
    (
        use_rust "$target"
        # shellcheck disable=SC2046,SC2086 # an argument for each
        zigbuild "$target" zigbuild --profile "$profile" $(printf -- '--bin %s ' $binaries)
    )
    out=$built/$target
    mkdir -p "$out"
    for name in $binaries; do
        # Under another name first: a build that is interrupted leaves the whole one from before.
        cp "$target_dir/cross/build/$target/$profile/$name" "$out/.$name"
        mv "$out/.$name" "$out/$name"
    done
    say "$target: $(stat -c %s "$out/tidegate") bytes, $out/tidegate"
done
