#!/bin/sh
# Lays out what the images hold: rootfs.sh TARGET DIR [BINARIES]
#
#   DIR/gateway   the executable, the authorities that TLS trusts, and the empty folder of the spool
#   DIR/clients   publisher-mqtt and subscriber-kafka
#
# BINARIES is where `make cross` put them: target/cross/TARGET by default. Used by the Dockerfile and by build-images.sh.
set -eu

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
target=${1:?usage: rootfs.sh TARGET DIR [BINARIES]}
out=${2:?usage: rootfs.sh TARGET DIR [BINARIES]}
binaries=${3:-${CARGO_TARGET_DIR:-$checkout/target}/cross/$target}
roots=/etc/ssl/certs/ca-certificates.crt

fail() {
    printf 'rootfs: %s\n' "$*" >&2
    exit 1
}
[ -x "$binaries/tidegate" ] || fail "$binaries/tidegate is not there: run make cross TARGET=$target"
[ -s "$roots" ] || fail "$roots is not there: install ca-certificates"

# Whatever this user's is: the gateway in the image is another.
umask 022
rm -rf "$out"
mkdir -p "$out/gateway/etc/ssl/certs" "$out/gateway/var/lib/tidegate" "$out/clients"
install -m 755 "$binaries/tidegate" "$out/gateway/tidegate"
install -m 644 "$roots" "$out/gateway/etc/ssl/certs/ca-certificates.crt"
install -m 755 "$binaries/publisher-mqtt" "$binaries/subscriber-kafka" "$out/clients/"
