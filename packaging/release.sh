#!/bin/sh
# Everything of a release into dist/: release.sh [TARGET...], by default every target of cross/.
#
#   tidegate-VERSION-TARGET.tar.gz          executables, unit, settings, manual, completions, documentation
#   tidegate_VERSION_ARCH.deb
#   tidegate-VERSION-ARCH.docker.tar, tidegate-VERSION.oci.tar
#   tidegate-VERSION.cdx.json               what it is compiled from (CycloneDX)
#   CHANGELOG-VERSION.md                    the section of this version
#   SHA256SUMS
#
# Needs what `make release` prepares: executables by `make cross`, cargo-deb, cargo-cyclonedx, buildah. The same commit gives the
# same tarballs and packages.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(CDPATH='' cd -- "$here/.." && pwd)
cache=${TIDEGATE_STACK_CACHE:-$checkout/.cache}
built=${CARGO_TARGET_DIR:-$checkout/target}/cross
cd "$checkout"

say() { printf 'release: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

[ $# -gt 0 ] || set -- aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf \
    x86_64-unknown-linux-musl
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH
[ -z "$(git status --porcelain 2>/dev/null)" ] || say "the checkout has changes that are in no commit"
rm -rf dist
mkdir -p dist

for target in "$@"; do
    package=$(TIDEGATE_DIST=dist packaging/build-deb.sh "$target")
    say "$package"
    name=tidegate-$version-$target
    folder=target/packaging/$name
    rm -rf "$folder"
    mkdir -p "$folder"
    for binary in tidegate publisher-mqtt subscriber-kafka; do install -m 755 "$built/$target/$binary" "$folder/"; done
    cp -r systemd/tidegate.service packaging/tidegate.env target/packaging/files/man target/packaging/files/completions \
        target/packaging/files/THIRD-PARTY.txt LICENSE-MIT LICENSE-APACHE README.md CHANGELOG.md docs "$folder/"
    # Not by a pipe, which hides how its first part ended.
    tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -C target/packaging \
        -cf "dist/$name.tar" "$name"
    gzip -9n "dist/$name.tar"
    rm -rf "$folder"
    say "dist/$name.tar.gz"
done

docker/build-images.sh dist "$@" >target/packaging/archives
while read -r archive; do say "$archive"; done <target/packaging/archives

# Which crates are compiled in is the same for every target of these.
bill=tidegate-$version.cdx
"$cache/cargo-cyclonedx/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 --target aarch64-unknown-linux-musl \
    --override-filename "$bill" || fail "cargo-cyclonedx"
# Where it was built is nobody's business.
sed 's|path+file://[^"#]*|path+file:///tidegate|g' "$bill.json" >"dist/$bill.json"
rm "$bill.json"
say "dist/$bill.json"

awk -v version="$version" '/^## /{ wanted = $2 == version } wanted' CHANGELOG.md >"dist/CHANGELOG-$version.md"
[ -s "dist/CHANGELOG-$version.md" ] || fail "CHANGELOG.md has no section of $version"

(cd dist && sha256sum -- * >../target/packaging/SHA256SUMS)
mv target/packaging/SHA256SUMS dist/
say "dist/SHA256SUMS"
