# Sourced by the tests of package and image: real brokers on free ports, a load, and a count; nothing left at the end.
# shellcheck shell=bash disable=SC2034 # what is used by those who source it
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${TIDEGATE_STACK_CACHE:-$checkout/.cache}
name=$(basename "$0" .sh)
cd "$checkout"
target=$(packaging/host-target.sh)
binaries=${CARGO_TARGET_DIR:-$checkout/target}/cross/$target
# Debian keeps mosquitto in /usr/sbin, which is not on an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s: %s\n' "$name" "$*"; }
fail() {
    printf '%s: FAILED: %s\n' "$name" "$*" >&2
    exit 1
}
need() { command -v "$1" >/dev/null || fail "$1 is not installed: run $2"; }
need mosquitto "tests/stack/setup.sh packages"
need java "tests/stack/setup.sh packages"
[ -e "$cache/kafka" ] || fail "Kafka is not there: run tests/stack/setup.sh kafka"
[ -x "$binaries/tidegate" ] || fail "no executables: run make cross TARGET=$target"

work=$(mktemp -d)
pids=()
# What is shown of the gateway when a test fails.
last_words() { :; }
cleanup() {
    status=$?
    trap - EXIT
    if [ "$status" -ne 0 ]; then
        say "the last words of the gateway:"
        last_words || true
    fi
    # bash tells of each process that it kills, which is no news.
    exec 2>/dev/null
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Every limit is so many times as long: for a slow or busy machine.
patience=${TIDEGATE_PATIENCE:-1}
# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local limit=$((SECONDS + $1 * patience)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$limit" ] || fail "waited in vain for $what"
        sleep 0.2
    done
}
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}
listening() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_mosquitto() {
    mqtt_port=$(free_port)
    mkdir "$work/mosquitto"
    printf 'user root\nlistener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 200\n' \
        "$mqtt_port" >"$work/mosquitto/mosquitto.conf"
    mosquitto -c "$work/mosquitto/mosquitto.conf" >"$work/mosquitto/log" 2>&1 &
    pids+=($!)
    wait_for 10 Mosquitto listening "$mqtt_port"
}
java=(java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$cache/kafka/*")
prepare_kafka() {
    kafka_port=$(free_port)
    mkdir "$work/kafka"
    cat >"$work/kafka/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((kafka_port + 1))
listeners=PLAINTEXT://127.0.0.1:$kafka_port,CONTROLLER://127.0.0.1:$((kafka_port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$kafka_port
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
offsets.topic.replication.factor=1
log.dirs=$work/kafka/data
EOF
    "${java[@]}" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qk -c "$work/kafka/server.properties" >"$work/kafka/log" 2>&1
}
start_kafka() {
    # Not by a function: its process would be a shell, and Java would outlive it.
    "${java[@]}" kafka.Kafka "$work/kafka/server.properties" >>"$work/kafka/log" 2>&1 &
    kafka_pid=$!
    pids+=("$kafka_pid")
    wait_for 90 Kafka listening "$kafka_port"
}
# publish RUN COUNT RATE: waits until Mosquitto has them all.
publish() {
    MQTT_BROKER_URL=127.0.0.1 MQTT_BROKER_PORT=$mqtt_port MQTT_CLIENT_ID=publisher-$1 TOPIC_LIST=s/1,s/2,s/3 RUN_ID=$1 \
        TOTAL_MSG=$2 RATE=$3 "$binaries/publisher-mqtt" >>"$work/publisher.log" 2>&1 || {
        tail -n 3 "$work/publisher.log"
        fail "publisher-mqtt"
    }
}
# count TOPIC NUMBER: so many are in Kafka, none lost, repeated or out of order.
count() {
    KAFKA_BROKER=127.0.0.1:$kafka_port TOPIC_LIST=$1 FROM=beginning timeout $((60 * patience)) "$binaries/subscriber-kafka" --verify --expect "$2" \
        --idle-sec $((10 * patience)) >"$work/subscriber.log" 2>&1 || {
        tail -n 5 "$work/subscriber.log"
        fail "the count of what is in Kafka"
    }
    tail -n 1 "$work/subscriber.log"
}
