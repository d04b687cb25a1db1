#!/bin/sh
# Makes the images from what `make cross` built, without a container engine: buildah, no root needed where user namespaces are
# allowed, no base image fetched.
#
#   build-images.sh DIR [ARCH[/VARIANT] | TARGET]...     by default amd64 arm64 arm/v7 arm/v6
#
# Into DIR: tidegate-VERSION-ARCH.docker.tar for `docker load` or `podman load`, and tidegate-VERSION.oci.tar with all of them
# under one name for a registry (`skopeo copy --all`). OCI's form has no place for HEALTHCHECK; Docker's has.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(CDPATH='' cd -- "$here/.." && pwd)
out=${1:?usage: build-images.sh DIR [ARCH[/VARIANT] | TARGET]...}
shift
[ $# -gt 0 ] || set -- amd64 arm64 arm/v7 arm/v6
cd "$checkout"
command -v buildah >/dev/null || {
    echo "build-images: buildah is missing: run tests/stack/setup.sh packaging" >&2
    exit 1
}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}

# Everything in a folder of its own: the images of this machine's user are none of our business.
mkdir -p target "$out"
work=$(mktemp -d "$checkout/target/images.XXXXXX")
# Without root the files of the image belong to numbers that only a namespace may touch.
remove() { if [ "$(id -u)" -eq 0 ]; then rm -rf "$work"; else buildah unshare rm -rf "$work"; fi; }
trap remove EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
build() { buildah --root "$work/store" --runroot "$work/run" --storage-driver vfs "$@"; }

# The Dockerfile's own ignores are for the checkout.
: >"$work/ignore-nothing"
build manifest create "tidegate:$version" >/dev/null
for platform in "$@"; do
    case $platform in
    x86_64-*) platform=amd64 ;;
    aarch64-*) platform=arm64 ;;
    armv7-*) platform=arm/v7 ;;
    arm-*) platform=arm/v6 ;;
    esac
    arch=${platform%/*} variant=
    case $platform in */*) variant=${platform#*/} ;; esac
    target=$("$here/target-of.sh" "$arch" "$variant")
    "$here/rootfs.sh" "$target" "$work/context/$arch$variant"
    image=tidegate:$version-$arch$variant
    build bud --quiet --isolation chroot --format docker --timestamp "$SOURCE_DATE_EPOCH" --os linux --arch "$arch" --variant "$variant" \
        --build-arg ROOTFS=prebuilt --build-arg TARGETARCH="$arch" --build-arg TARGETVARIANT="$variant" --ignorefile "$work/ignore-nothing" --target tidegate --file "$here/Dockerfile" --tag "$image" "$work/context" >/dev/null
    if [ "$variant" = v6 ]; then
        # buildah takes every arm for v7 while it builds.
        container=$(build from --quiet --pull-never "$image")
        build config --variant v6 "$container"
        build commit --quiet --format docker --timestamp "$SOURCE_DATE_EPOCH" --rm "$container" "$image" >/dev/null
    fi
    archive=$out/tidegate-$version-$arch$variant.docker.tar
    rm -f "$archive"
    build push --quiet "$image" "docker-archive:$archive:$image" >/dev/null
    build manifest add --os linux --arch "$arch" --variant "$variant" "tidegate:$version" "$image" >/dev/null
    echo "$archive"
done
archive=$out/tidegate-$version.oci.tar
rm -f "$archive"
build manifest push --quiet --all "tidegate:$version" "oci-archive:$archive:$version" >/dev/null
echo "$archive"
