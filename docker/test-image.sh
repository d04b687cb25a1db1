#!/usr/bin/env bash
# The image of this machine's architecture, made by buildah and run as an engine runs it: its root file system read-only, as
# user 65532, nothing writable but the volume. Against real brokers, with an outage of Kafka and a new container in it.
#
#   sudo docker/test-image.sh        needs root (mounts, chroot), and what `make image-test` prepares
set -euo pipefail

# shellcheck source=packaging/stage.bash
. "$(dirname "$0")/../packaging/stage.bash"
[ "$(id -u)" -eq 0 ] || fail "needs root: make cross, then sudo -E env \"PATH=\$PATH\" make image-test"
need buildah "tests/stack/setup.sh packaging"
need python3 "apt-get install python3"

docker/build-images.sh "$work/images" "$target" >"$work/archives" 2>"$work/build.log" || {
    cat "$work/build.log"
    fail "the image is not built"
}
archive=$(head -n 1 "$work/archives")
mkdir "$work/image" "$work/tree" "$work/volume"
tar -C "$work/image" -xf "$archive"
# field PYTHON: of the image's configuration.
field() {
    python3 -c 'import json, sys
folder = sys.argv[1]
manifest = json.load(open(folder + "/manifest.json"))[0]
image = json.load(open(folder + "/" + manifest["Config"]))
print(eval(sys.argv[2]))' "$work/image" "$1"
}
bytes=$(stat -c %s "$archive")
[ "$bytes" -lt 10000000 ] || fail "$bytes bytes: more than 10 MB"
[ "$(field 'image["config"]["User"]')" = 65532:65532 ] || fail "the image runs as root"
[ "$(field 'image["config"]["Entrypoint"]')" = "['/tidegate']" ] || fail "another entry point"
[ "$(field 'image["config"]["Healthcheck"]["Test"]')" = "['CMD', '/tidegate', 'health']" ] || fail "no HEALTHCHECK"
[ "$(field 'list(image["config"]["Volumes"])')" = "['/var/lib/tidegate']" ] || fail "no volume"
mapfile -t variables < <(field '"\n".join(image["config"]["Env"])')
for layer in $(field '" ".join(manifest["Layers"])'); do tar -C "$work/tree" -xf "$work/image/$layer"; done
[ "$(stat -c '%u:%g' "$work/tree/var/lib/tidegate")" = 65532:65532 ] || fail "a new volume would be root's"
[ -s "$work/tree/etc/ssl/certs/ca-certificates.crt" ] || fail "no authorities for TLS"
for path in etc etc/ssl etc/ssl/certs; do
    [ "$(stat -c %a "$work/tree/$path")" = 755 ] || fail "/$path cannot be read by the gateway"
done
say "$bytes bytes; in it: $(cd "$work/tree" && find . -type f | sort | tr '\n' ' ')"
# What an engine does with a new volume.
chown 65532:65532 "$work/volume"

# contained COMMAND...: the command of the image in a new container.
contained() {
    # shellcheck disable=SC2016 # for the inner shell
    exec unshare --mount --fork --kill-child env -i "${variables[@]}" MQTT_BROKER_URL="127.0.0.1:$mqtt_port" MQTT_CLIENT_ID=image-test \
        KAFKA_BROKER="127.0.0.1:$kafka_port" WILDCARD_TOPIC_LIST='s/#:s' HTTP_LISTEN="127.0.0.1:$http_port" \
        /bin/sh -eu -c '
            mount --make-rprivate /
            mount --bind "$1" "$1"
            mount --bind "$2" "$1/var/lib/tidegate"
            mount -o remount,bind,ro "$1"
            root=$1
            shift 2
            exec chroot --userspec=65532:65532 "$root" "$@"
        ' contained "$work/tree" "$work/volume" "$@"
}
start_container() {
    contained /tidegate >>"$work/gateway.log" 2>&1 &
    container=$!
    pids+=("$container")
}
# Asked to stop as an engine does; the exit code tells whether it was in order.
stop_container() {
    kill -TERM "$(pgrep -P "$container")"
    wait "$container" || fail "the gateway ended with $?"
}
last_words() { tail -n 25 "$work/gateway.log"; }
healthy() { (contained /tidegate health); }
ready() { (contained /tidegate health --ready); }
stored() { (contained /tidegate spool status) | sed -n 's/.* records of \([0-9]*\) messages .*/\1/p' | grep . || echo 0; }
stored_is() { [ "$(stored)" -eq "$1" ]; }

start_mosquitto
prepare_kafka
http_port=$(free_port)
start_container
wait_for 30 "the container to be ready" ready
healthy || fail "HEALTHCHECK"
say "ready, read-only, as $(awk '/^Uid:/ { print $2 }' "/proc/$(pgrep -P "$container")/status"); Kafka is not there; 5000 messages"
publish one 5000 0
wait_for 30 "5000 messages in the volume" stored_is 5000
stop_container
say "another container with the same volume; Kafka comes"
start_container
publish two 1000 0
start_kafka
wait_for 60 "the backlog to be in Kafka" stored_is 0
count s 6000
stop_container
! healthy 2>/dev/null || fail "health is well without a gateway"
say "all good, in $SECONDS s"
