#!/bin/sh
# Installs what the demo and the tests need, and only what is missing. Safe to run again at any time.
#
#   setup.sh packages     Debian packages: Mosquitto, kcat, a Java runtime, Maven, a C linker
#   setup.sh kafka        the pinned Apache Kafka (kafka/pom.xml) into the cache
#   setup.sh kafka-older  the older ones that the tests start besides, pinned below, into the cache
#   setup.sh cargo-deny   the pinned cargo-deny into the cache
#   setup.sh              all four
#
# The cache is $TIDEGATE_STACK_CACHE, or .cache in the checkout. It outlives `cargo clean`.
# Works on Debian and Raspberry Pi OS (x86-64, arm64).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(CDPATH='' cd -- "$here/../.." && pwd)
cache=${TIDEGATE_STACK_CACHE:-$checkout/.cache}
cargo_deny_version=0.20.2
# The last with ZooKeeper alone, and the last before 4.0. tests/real/support/kafka_version.rs names them too.
older_kafkas='2.8.2 3.9.2'
# Debian keeps mosquitto in /usr/sbin, which is not on an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# True if there is a Java that Kafka 4 runs on (17 or later).
have_java() {
    have java || return 1
    major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    [ "${major:-0}" -ge 17 ]
}

missing_packages() {
    have mosquitto || echo mosquitto
    have kcat || echo kcat
    have_java || echo default-jre-headless
    have mvn || echo maven
    have cc || echo build-essential
    # GNU timeout and setsid are part of every Debian; ss, ps and the like are not needed.
}

packages() {
    # Word splitting turns the list into arguments below.
    missing=$(missing_packages | tr '\n' ' ')
    if [ -z "$missing" ]; then
        say "packages: all there"
        return
    fi
    if [ "$(id -u)" -eq 0 ]; then
        as_root=""
    elif have sudo && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        as_root=none
    fi
    if [ "$as_root" = none ] || ! have apt-get; then
        say "these packages are missing: $missing"
        say "and this script may not install them (neither root nor sudo without a password, or not a Debian)."
        say "Please run:"
        say "    sudo apt-get update && sudo apt-get install -y $missing"
        fail "then start this again."
    fi
    say "packages: installing $missing(some minutes on a small board)"
    say "the brokers are started on free ports; a mosquitto service that Debian may start is not touched"
    $as_root apt-get update || say "apt-get update failed; trying with the package lists there are"
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing ||
        fail "apt-get could not install: $missing(is the network there?)"
    missing=$(missing_packages | tr '\n' ' ')
    [ -z "$missing" ] || fail "still missing after apt-get: $missing(Java must be 17 or later: Debian 12 or later has it)"
}

# The folder is named after the pom's checksum, so that another version is another folder, and it gets
# that name only when it is whole: an interrupted download is never taken for a finished one.
kafka_libs() {
    printf '%s/%s-%s\n' "$cache" "$1" "$(cksum <"$here/kafka/pom.xml" | cut -d ' ' -f 1)"
}

# fetch_kafka NAME [MAVEN ARGUMENT...]: the jars into a folder, and $cache/NAME leads to it.
fetch_kafka() {
    name=$1
    shift
    libs=$(kafka_libs "$name")
    if [ -d "$libs" ]; then
        say "$name: there ($libs)"
    else
        have mvn || fail "$name: maven is missing; run tests/stack/setup.sh packages"
        say "$name: fetching about 50 MB by Maven"
        mkdir -p "$cache"
        half=$(mktemp -d "$cache/kafka-half.XXXXXX")
        trap 'rm -rf "$half"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        # A pipe hides how Maven ended, so a file that only a good end writes tells it.
        { mvn -B -f "$here/kafka/pom.xml" "$@" dependency:copy-dependencies -DoutputDirectory="$half" \
            -DincludeScope=runtime && touch "$half/.whole"; } |
            sed -u -n -e "s|^\[INFO\] Copying .*/\([^/)]*\.jar\).*|setup: $name: \1|p" -e '/^\[ERROR\]/p' >&2
        [ -e "$half/.whole" ] ||
            fail "$name: Maven could not fetch it (its words are above); check the network or proxy, and run this again"
        chmod 755 "$half"
        # Another setup may have been faster: then its folder stays.
        mv -T "$half" "$libs" 2>/dev/null || [ -d "$libs" ] || fail "$name: cannot write $libs"
        trap - EXIT INT TERM
        rm -rf "$half"
        say "$name: fetched into $libs"
    fi
    # A name that the harness finds without knowing the checksum.
    ln -sfn "$(basename "$libs")" "$cache/$name"
}

kafka() { fetch_kafka kafka; }

kafka_older() {
    for version in $older_kafkas; do
        fetch_kafka "kafka-$version" -Dkafka.version="$version"
    done
}

cargo_deny() {
    deny=$cache/cargo-deny-$cargo_deny_version
    if [ -x "$deny/bin/cargo-deny" ]; then
        say "cargo-deny: there ($deny)"
    else
        say "cargo-deny: compiling $cargo_deny_version, once (some minutes)"
        mkdir -p "$cache"
        # A target folder of its own: cargo's settings of the checkout and RUSTFLAGS must not reach it.
        cargo install cargo-deny --locked --version "$cargo_deny_version" --root "$deny" ||
            fail "cargo-deny: could not be built (its words are above): needs the network and a current stable Rust (rustup update stable)"
    fi
    ln -sfn "$(basename "$deny")" "$cache/cargo-deny"
}

[ $# -gt 0 ] || set -- packages kafka kafka-older cargo-deny
for part in "$@"; do
    case $part in
    packages) packages ;;
    kafka) kafka ;;
    kafka-older) kafka_older ;;
    cargo-deny) cargo_deny ;;
    *) fail "unknown part '$part': packages, kafka, kafka-older, cargo-deny" ;;
    esac
done
