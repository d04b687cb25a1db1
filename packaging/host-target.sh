#!/bin/sh
# The target whose executable runs here.
set -eu

case $(uname -m) in
x86_64) echo x86_64-unknown-linux-musl ;;
aarch64) echo aarch64-unknown-linux-musl ;;
armv7l) echo armv7-unknown-linux-musleabihf ;;
armv6l) echo arm-unknown-linux-musleabihf ;;
*)
    echo "host-target: tidegate is not built for $(uname -m)" >&2
    exit 1
    ;;
esac
