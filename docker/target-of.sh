#!/bin/sh
# The target of Rust for a platform as container tools write it: target-of.sh ARCH [VARIANT]
set -eu

case "${1:?usage: target-of.sh ARCH [VARIANT]}/${2:-}" in
amd64/*) echo x86_64-unknown-linux-musl ;;
arm64/*) echo aarch64-unknown-linux-musl ;;
arm/v6) echo arm-unknown-linux-musleabihf ;;
arm/*) echo armv7-unknown-linux-musleabihf ;;
*)
    echo "target-of: tidegate is not built for $1 $2" >&2
    exit 1
    ;;
esac
