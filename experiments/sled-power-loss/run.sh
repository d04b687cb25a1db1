#!/usr/bin/env bash
# Shows that sled 0.34.7 loses records that flush() confirmed when the power goes. Needs root, loop devices and, for the first
# part, strace:   sudo experiments/sled-power-loss/run.sh
#
# 1. Which calls that make data durable flush() makes (strace).
# 2. An ext4 file system in an image file. The moment the last record is acknowledged, the image is copied: that is what the disk holds
#    when the power goes. The copy is mounted, which replays its journal, and sled counts what is left.
# With TIDEGATE_SPOOL=path/to/release/examples/spool_child the same is done with the spool.
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --quiet
program=$PWD/target/release/sled-power-loss
records=3200
work=$(mktemp -d)
cleanup() {
    for at in disk after; do
        if mountpoint -q "$work/$at"; then umount "$work/$at"; fi
    done
    rm -rf "$work"
}
trap cleanup EXIT

if command -v strace >/dev/null; then
    strace -f -o "$work/trace" -e trace=fsync,fdatasync,sync_file_range,msync "$program" fill "$work/traced" $records >/dev/null 2>&1 || true
    echo "calls for $records records, flushed 64 at a time:"
    for call in fsync fdatasync msync sync_file_range; do
        echo "  $call: $(grep -cE "[0-9]+ +$call\(" "$work/trace" || true)"
    done
fi

# $1: name; the rest: command that fills $work/disk/db and prints `acked N`.
cut_power() {
    local name=$1
    shift
    rm -f "$work/image" "$work/copy"
    truncate -s 64M "$work/image"
    mkfs.ext4 -q -F "$work/image"
    mkdir -p "$work/disk" "$work/after"
    mount -o loop "$work/image" "$work/disk"
    ("$@" >"$work/acked" 2>/dev/null) || true
    cp --sparse=always "$work/image" "$work/copy"
    umount "$work/disk"
    mount -o loop "$work/copy" "$work/after"
    echo "$name: $(tail -n 1 "$work/acked"), then the power goes"
}

cut_power sled "$program" fill "$work/disk/db" $records
left=$("$program" count "$work/after/db")
echo "  left: $left, lost: $((records - left)) of $records acknowledged"
umount "$work/after"

if [ -n "${TIDEGATE_SPOOL:-}" ]; then
    cut_power spool "$TIDEGATE_SPOOL" fill "$work/disk/db" $records
    left=$("$TIDEGATE_SPOOL" count "$work/after/db")
    echo "  left: $left, lost: $((records - left)) of $records acknowledged"
    umount "$work/after"
fi
