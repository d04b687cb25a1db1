#!/bin/sh
# Makes the Debian package for one target from the executable that `make cross` built.
#
#   build-deb.sh TARGET [REVISION [BINARY]]    prints the package's path
#
#   TARGET    aarch64-, x86_64-unknown-linux-musl, armv7-, arm-unknown-linux-musleabihf
#   REVISION  of the package, 1 by default
#   BINARY    by default target/cross/TARGET/tidegate
#
# Into dist/, or $TIDEGATE_DIST.
#
# The same input makes the same bytes: dates are those of the last commit, or SOURCE_DATE_EPOCH.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(CDPATH='' cd -- "$here/.." && pwd)
cache=${TIDEGATE_STACK_CACHE:-$checkout/.cache}

fail() {
    printf 'build-deb: %s\n' "$*" >&2
    exit 1
}

target=${1:?usage: build-deb.sh TARGET [REVISION [BINARY]]}
revision=${2:-1}
built=${CARGO_TARGET_DIR:-$checkout/target}
case $built in
/*) ;;
*) built=$checkout/$built ;;
esac
binary=${3:-$built/cross/$target/tidegate}
[ -x "$binary" ] || fail "$binary is not there: run make cross TARGET=$target"
binary=$(readlink -f "$binary")
[ -x "$cache/cargo-deb/bin/cargo-deb" ] || fail "cargo-deb is not there: run tests/stack/setup.sh cargo-deb"

cd "$checkout"
case $target in
aarch64-*) arch=arm64 ;;
armv7-*) arch=armhf ;;
# Raspberry Pi OS calls ARMv6 armhf too, so the package must, to be installed there; its file's name tells them apart.
arm-*) arch=armhf suffix=_armv6 ;;
x86_64-*) arch=amd64 ;;
*) fail "unknown target $target" ;;
esac
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-$revision
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    # Outside a checkout, from a tarball: the changelog's date.
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
fi

# One at a time: the folder that Cargo.toml names is shared.
dist=${TIDEGATE_DIST:-dist}
mkdir -p target/packaging "$dist"
exec 9>target/packaging/lock
flock 9
rm -rf target/packaging/files target/packaging/scripts
mkdir -p target/packaging/scripts
cp packaging/debian/postinst packaging/debian/prerm packaging/debian/postrm target/packaging/scripts/
case $target in armv7-*) cp packaging/debian/preinst-armv7 target/packaging/scripts/preinst ;; esac
# Without the date in its environment: crates that compile C would be compiled anew for it.
env --unset=SOURCE_DATE_EPOCH cargo run --quiet --locked --example package_files -- target/packaging/files "$version" \
    "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
cp "$binary" target/packaging/tidegate
package=$dist/tidegate_${version}_$arch${suffix:-}.deb
# Stripped by the build; and strip(1) of this machine does not know ARM.
SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH "$cache/cargo-deb/bin/cargo-deb" deb --quiet --no-build --no-strip --locked --target "$target" --deb-revision "$revision" \
    --output target/packaging/half.deb >/dev/null
# What was interrupted is never taken for a package.
mv target/packaging/half.deb "$package"
echo "$package"
