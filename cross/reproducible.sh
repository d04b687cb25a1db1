#!/bin/sh
# Shows that a build depends on its input alone: reproducible.sh [TARGET]. The checkout is copied to two folders with names of
# different lengths, each with an empty folder for what is compiled and a cargo home of its own; the sums must be equal.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=cross/targets.sh
. "$here/targets.sh"

target=${1:-aarch64-unknown-linux-musl}
check_target "$target"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# What it downloads goes there once; the two builds see it at different paths.
registry=${CARGO_HOME:-$HOME/.cargo}/registry

for place in a elsewhere/with/a-longer-name; do
    copy=$work/$place
    mkdir -p "$copy/cargo" "$copy/source"
    (cd "$checkout" && tar -c --exclude=./target --exclude=./.cache --exclude=./.git .) | tar -x -C "$copy/source"
    [ ! -d "$registry" ] || cp -r "$registry" "$copy/cargo/registry"
    TIDEGATE_STACK_CACHE=$cache CARGO_HOME=$copy/cargo CARGO_TARGET_DIR=$copy/target "$copy/source/cross/build.sh" "$target"
    # shellcheck disable=SC2086 # a list
    (cd "$copy/target/cross/$target" && sha256sum $binaries) >>"$work/sums"
    # Disk may be short: only the sums are compared.
    rm -rf "$copy"
done
sort "$work/sums" | uniq -c
# shellcheck disable=SC2086 # a list
[ "$(sort -u "$work/sums" | wc -l)" -eq "$(printf '%s\n' $binaries | wc -l)" ] || fail "$target: the two builds differ"
say "$target: the same bytes from two folders"
