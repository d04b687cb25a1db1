#!/bin/sh
# Installs what the demo and the tests need, and only what is missing. Safe to run again at any time.
#
#   setup.sh packages     Debian packages: Mosquitto and its clients, kcat, a Java runtime, Maven, a C linker, systemd-analyze
#   setup.sh kafka        the pinned Apache Kafka (kafka/pom.xml) into the cache
#   setup.sh kafka-older  the older ones that the tests start besides, pinned below, into the cache
#   setup.sh keycloak     the pinned Keycloak, built and with an empty database, into the cache
#   setup.sh cargo-deny   the pinned cargo-deny into the cache
#   setup.sh              all five
#
# And for executables for boards, packages and images:
#
#   setup.sh cross            Debian packages: an emulator of the boards' CPUs, Python's venv, a C linker
#   setup.sh packaging        Debian packages: lintian, debootstrap, buildah
#   setup.sh cargo-deb        the pinned cargo-deb into the cache
#   setup.sh cargo-cyclonedx  the pinned cargo-cyclonedx into the cache
#   setup.sh debian-root      a small Debian without tidegate, made by debootstrap as root, into the cache
#
# The cache is $TIDEGATE_STACK_CACHE, or .cache in the checkout. It outlives `cargo clean`.
# Works on Debian and Raspberry Pi OS (x86-64, arm64).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(CDPATH='' cd -- "$here/../.." && pwd)
cache=${TIDEGATE_STACK_CACHE:-$checkout/.cache}
cargo_deny_version=0.20.2
cargo_deb_version=3.8.0
cargo_cyclonedx_version=0.5.9
debian_suite=bookworm
# The first that tidegate speaks to, the last with ZooKeeper alone, the last before 4.0, and one before the newest.
# tests/real/support/kafka_version.rs names them too.
older_kafkas='0.11.0.3 2.8.2 3.9.2 4.1.2'
keycloak_version=26.5.6
keycloak_sha256=490189d9dff05272432d51f71a069462eeca97f2920a694d539a1e6c26a5a347
# Raise it when what keycloak() makes of that version changes.
keycloak_recipe=1
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
    have mosquitto_pub || echo mosquitto-clients
    have kcat || echo kcat
    have_java || echo default-jre-headless
    have mvn || echo maven
    have unzip || echo unzip
    have cc || echo build-essential
    have systemd-analyze || echo systemd
    # GNU timeout and setsid are part of every Debian; ss, ps and the like are not needed.
}

missing_for_packaging() {
    have lintian || echo lintian
    have debootstrap || echo debootstrap
    have buildah || echo buildah
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

missing_for_cross() {
    # The emulator comes in one package for all CPUs.
    have qemu-arm-static || echo qemu-user-static
    # Debian's python3 has the module venv and not what it needs.
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    have cc || echo build-essential
}

# packages LIST: installs what the function LIST names.
packages() {
    # Word splitting turns the list into arguments below.
    missing=$("$1" | tr '\n' ' ')
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
    missing=$("$1" | tr '\n' ' ')
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
        # -C: a jar that is not what its checksum says is refused.
        { mvn -B -C -f "$here/kafka/pom.xml" "$@" dependency:copy-dependencies -DoutputDirectory="$half" \
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
        case $version in
        0.*) scala=2.11 ;;
        *) scala=2.13 ;;
        esac
        fetch_kafka "kafka-$version" -Dkafka.version="$version" -Dkafka.scala="$scala"
    done
}

# Keycloak builds itself before its first start and fills its database at it, which takes minutes on a small board: both
# are done here. A test copies the database, whose only user is admin.
keycloak() {
    home=$cache/keycloak-$keycloak_version-$keycloak_recipe
    if [ -d "$home" ]; then
        say "keycloak: there ($home)"
    else
        have mvn || fail "keycloak: maven is missing; run tests/stack/setup.sh packages"
        have unzip || fail "keycloak: unzip is missing; run tests/stack/setup.sh packages"
        say "keycloak: fetching $keycloak_version, 165 MB, by Maven"
        mkdir -p "$cache"
        half=$(mktemp -d "$cache/keycloak-half.XXXXXX")
        trap 'rm -rf "$half"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        mvn -B -q -C org.apache.maven.plugins:maven-dependency-plugin:3.7.0:copy -DoutputDirectory="$half" \
            -Dartifact="org.keycloak:keycloak-quarkus-dist:$keycloak_version:zip" >&2 ||
            fail "keycloak: Maven could not fetch it (its words are above); check the network or proxy, and run this again"
        zip=$half/keycloak-quarkus-dist-$keycloak_version.zip
        echo "$keycloak_sha256  $zip" | sha256sum --check --quiet - ||
            fail "keycloak: what was fetched is not the $keycloak_version that is pinned here"
        unzip -q "$zip" -d "$half" || fail "keycloak: cannot unpack $zip"
        say "keycloak: building it and its database, once (a minute, on a small board some)"
        build_keycloak "$half/keycloak-$keycloak_version" >"$cache/keycloak-build.log" 2>&1 ||
            fail "keycloak: its build failed; its words are in $cache/keycloak-build.log"
        mv -T "$half/keycloak-$keycloak_version" "$home" 2>/dev/null || [ -d "$home" ] ||
            fail "keycloak: cannot write $home"
        trap - EXIT INT TERM
        rm -rf "$half" "$cache/keycloak-build.log"
        say "keycloak: built in $home"
    fi
    ln -sfn "$(basename "$home")" "$cache/keycloak"
}

build_keycloak() {
    JAVA_OPTS='-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1'
    TIDEGATE_ADMIN=tidegate-admin
    export JAVA_OPTS TIDEGATE_ADMIN
    "$1/bin/kc.sh" build --db=dev-file &&
        "$1/bin/kc.sh" bootstrap-admin user --optimized --username admin --password:env TIDEGATE_ADMIN --no-prompt &&
        [ -s "$1/data/h2/keycloakdb.mv.db" ]
}

# cargo_tool NAME VERSION: compiled into the cache.
cargo_tool() {
    tool=$cache/$1-$2
    if [ -x "$tool/bin/$1" ]; then
        say "$1: there ($tool)"
    else
        say "$1: compiling $2, once (some minutes)"
        mkdir -p "$cache"
        cargo install "$1" --locked --version "$2" --root "$tool" ||
            fail "$1: could not be built (its words are above): needs the network and a current stable Rust (rustup update stable)"
    fi
    ln -sfn "$(basename "$tool")" "$cache/$1"
}

# A root file system with systemd, as an archive: tests unpack it in a second or two.
debian_root() {
    archive=$cache/debian-root-$debian_suite.tar.gz
    if [ -s "$archive" ]; then
        say "debian-root: there ($archive)"
        return
    fi
    have debootstrap || fail "debian-root: debootstrap is missing; run tests/stack/setup.sh packaging"
    [ "$(id -u)" -eq 0 ] || fail "debian-root: debootstrap must be root: sudo -E tests/stack/setup.sh debian-root"
    say "debian-root: making one of $debian_suite, once (1 to 5 minutes)"
    mkdir -p "$cache"
    half=$(mktemp -d "$cache/debian-half.XXXXXX")
    trap 'rm -rf "$half"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # From where apt has its packages, or else debootstrap's own choice.
    # shellcheck disable=SC2016 # for apt-get
    mirror=${TIDEGATE_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' "Codename: $debian_suite" 'Created-By: Packages' |
        sed -n '/^https\{0,1\}:.*debian\/\{0,1\}$/{p;q;}')}
    # shellcheck disable=SC2086 # a mirror or none
    debootstrap --variant=minbase --include=systemd,adduser,ca-certificates "$debian_suite" "$half/debian" \
        $mirror >"$cache/debian-root.log" 2>&1 ||
        fail "debian-root: debootstrap failed; its words are in $cache/debian-root.log"
    rm -rf "$half/debian/var/cache/apt/archives" "$half/debian/var/lib/apt/lists"
    tar -C "$half/debian" --numeric-owner -czf "$half/root.tar.gz" .
    mv "$half/root.tar.gz" "$archive"
    trap - EXIT INT TERM
    rm -rf "$half" "$cache/debian-root.log"
}

[ $# -gt 0 ] || set -- packages kafka kafka-older keycloak cargo-deny
for part in "$@"; do
    case $part in
    packages) packages missing_packages ;;
    packaging) packages missing_for_packaging ;;
    cross) packages missing_for_cross ;;
    kafka) kafka ;;
    kafka-older) kafka_older ;;
    keycloak) keycloak ;;
    cargo-deny) cargo_tool cargo-deny "$cargo_deny_version" ;;
    cargo-deb) cargo_tool cargo-deb "$cargo_deb_version" ;;
    cargo-cyclonedx) cargo_tool cargo-cyclonedx "$cargo_cyclonedx_version" ;;
    debian-root) debian_root ;;
    *) fail "unknown part '$part': packages, kafka, kafka-older, keycloak, cargo-deny, cross, packaging, cargo-deb, cargo-cyclonedx, debian-root" ;;
    esac
done
