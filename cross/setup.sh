#!/bin/sh
# Installs what the cross builds need, and only what is missing. Safe to run again at any time.
#
#   setup.sh tools        zig and cargo-zigbuild (requirements.txt) from PyPI, into the cache
#   setup.sh debian-rust  Rust with its sources from Debian, into the cache: for where rustup's servers cannot be reached
#
# The cache is $TIDEGATE_STACK_CACHE, or .cache in the checkout. Debian packages (python3-venv, qemu-user-static) are
# installed by tests/stack/setup.sh cross.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=cross/targets.sh
. "$here/targets.sh"

# A folder that gets its name only when it is whole: what was interrupted is never taken for finished.
half_folder() {
    mkdir -p "$cache"
    half=$(mktemp -d "$cache/cross-half.XXXXXX")
    trap 'rm -rf "$half"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# finished NAME FOLDER: NAME in the cache leads to it from now on.
finished() {
    chmod 755 "$2"
    ln -sfn "$(basename "$2")" "$cache/$1"
}

tools() {
    home=$cache/cross-tools-$(cksum <"$here/requirements.txt" | cut -d ' ' -f 1)
    # Also made anew when Python has gone to another version: a venv leads to the one it was made with.
    if "$home/bin/python3" -m ziglang version >/dev/null 2>&1 && [ -x "$home/bin/cargo-zigbuild" ]; then
        say "zig: there ($home)"
    else
        say "zig: fetching zig and cargo-zigbuild, about 100 MB, from PyPI"
        mkdir -p "$cache"
        rm -rf "$home"
        # A venv cannot be moved: it is made in its place, and what cargo-zigbuild needs is looked at above.
        python3 -m venv "$home" || fail "zig: python3 -m venv failed; run tests/stack/setup.sh cross"
        "$home/bin/python3" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
            -r "$here/requirements.txt" ||
            fail "zig: pip could not fetch it (its words are above); check the network or proxy, and run this again"
        say "zig: $("$home/bin/python3" -m ziglang version) in $home"
    fi
    finished cross-tools "$home"
}

# True if Debian's package is installed here.
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The version that apt would install.
candidate() { apt-cache policy rust-web-src | sed -n 's/^ *Candidate: //p'; }

# Unpacked into a folder and used from there: nothing is installed, and a Rust that is installed stays what it is. Debian keeps a
# current Rust for its browsers' sake, which its own rustc package is not.
debian_rust() {
    home=$(readlink -f "$cache/cross-rust" || true)
    if [ -n "$home" ] && [ -d "$home/usr" ]; then
        say "Debian's Rust: there ($home)"
        return
    fi
    have apt-get || fail "Debian's Rust: this is not a Debian; install Rust with rustup where its servers can be reached"
    version=$(candidate)
    # A machine that has never asked for the lists of packages, as containers have not.
    [ -n "$version" ] || [ "$(id -u)" -ne 0 ] || { apt-get update >&2 && version=$(candidate); }
    case $version in
    '' | '(none)') fail "Debian's Rust: apt knows no rust-web-src; run apt-get update as root (Debian 12 or later, with its security updates)" ;;
    esac
    say "Debian's Rust: fetching $version and what it needs, about 145 MB, by apt"
    half_folder
    mkdir -p "$half/debs/partial"
    # Downloading alone needs neither root nor apt's lock.
    apt-get install --yes --quiet=2 --download-only --no-install-recommends -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
        -o Dir::Cache::archives="$half/debs" rustc-web cargo-web rust-web-src >"$half/log" 2>&1 || {
        cat "$half/log" >&2
        fail "Debian's Rust: apt could not fetch it (its words are above); apt-get update as root may help"
    }
    for deb in "$half"/debs/*.deb; do
        # An update of what is installed is not for us: a libc beside the system's would break every program.
        installed "$(dpkg-deb -f "$deb" Package)" || dpkg-deb -x "$deb" "$half"
    done
    rm -rf "$half/debs" "$half/log" "${half:?}/usr/share"
    # Of Rust's sources the compiler's own are not needed.
    rm -rf "$half"/usr/src/rustc-*/compiler "$half"/usr/src/rustc-*/src
    for program in rustc cargo; do
        LD_LIBRARY_PATH=$(echo "$half"/usr/lib/*-linux-gnu) "$half/usr/bin/$program" --version >/dev/null ||
            fail "Debian's Rust: its $program does not run"
    done
    # An epoch's colon would end a path in LD_LIBRARY_PATH.
    home=$cache/cross-rust-$(printf '%s' "$version" | tr : -)
    rm -rf "$home"
    mv -T "$half" "$home"
    trap - EXIT INT TERM
    finished cross-rust "$home"
    say "Debian's Rust: $version in $home"
}

[ $# -gt 0 ] || set -- tools
for part in "$@"; do
    case $part in
    tools) tools ;;
    debian-rust) debian_rust ;;
    *) fail "unknown part '$part': tools, debian-rust" ;;
    esac
done
