#!/usr/bin/env bash
# The life of the Debian package in a Debian of its own: installed, configured, an outage of Kafka, kill -9, upgraded under load,
# removed, installed again, drained, purged; and at the end the count of what came out of Kafka. systemd runs in it as
# process 1, so the unit with all its hardening is what is tested. Brokers are real and run outside, on free ports.
#
#   sudo packaging/test-deb.sh        needs root (namespaces, chroot), and what `make deb-test` prepares
#
# Nothing is left running or mounted: the namespaces end with the script.
# shellcheck source=packaging/stage.bash
. "$(dirname "$0")/stage.bash"

[ "$(id -u)" -eq 0 ] || fail "needs root: make cross, then sudo -E env \"PATH=\$PATH\" make deb-test"
need lintian "tests/stack/setup.sh packaging"
archive=$(echo "$cache"/debian-root-*.tar.gz)
[ -s "$archive" ] || fail "no Debian root: run tests/stack/setup.sh debian-root"

root=$work/root
last_words() {
    inside journalctl --no-pager --lines 25 --unit tidegate 2>/dev/null || tail -n 25 "$work/systemd.log"
}

# ---- Debian with systemd as process 1 ----

# Runs a command in it.
inside() { nsenter --target "$init" --mount --uts --ipc --pid --cgroup --root --wd -- "$@"; }
is_up() { case $(inside systemctl is-system-running) in running | degraded) ;; *) return 1 ;; esac; }
boot() {
    mkdir "$root"
    tar -C "$root" --numeric-owner -xzf "$archive"
    # What it has of its own accord and a test does not need.
    ln -sf /dev/null "$root/etc/systemd/system/console-getty.service"
    ln -sf /dev/null "$root/etc/systemd/system/getty.target"
    echo deb-test >"$root/etc/hostname"
    echo "127.0.0.1 localhost" >"$root/etc/hosts"
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount --pid --uts --ipc --cgroup --fork --kill-child bash -eu -c '
        mount --make-rprivate /
        mount --bind "$1" "$1"
        cd "$1"
        mount -t proc proc proc
        mount -t sysfs sysfs sys
        mount -t tmpfs -o mode=755 tmpfs run
        if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
            mount -t cgroup2 cgroup2 sys/fs/cgroup
        else
            mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
            mkdir sys/fs/cgroup/systemd sys/fs/cgroup/unified
            mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
            mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
        fi
        mount -t tmpfs -o mode=755 tmpfs dev
        for device in null zero full random urandom tty; do
            touch "dev/$device"
            mount --bind "/dev/$device" "dev/$device"
        done
        mkdir dev/pts dev/shm
        ln -s pts/ptmx dev/ptmx
        # Not chroot, in which units have no mount namespaces.
        mkdir .outside
        pivot_root . .outside
        umount -l /.outside
        rmdir /.outside
        # Else secrets that systemd mounts for a unit do not reach it.
        mount --make-rshared /
        exec env -i container=docker PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal
    ' boot "$root" >"$work/systemd.log" 2>&1 &
    local namespace=$!
    pids+=("$namespace")
    wait_for 20 "systemd to start" pgrep -P "$namespace"
    init=$(pgrep -P "$namespace")
    wait_for 60 "Debian to be up" is_up
}

# ---- What is looked at ----

# Messages in the spool, as the command says; checksums of all that is there.
stored() { inside tidegate spool status /var/lib/tidegate | sed -n 's/.* records of \([0-9]*\) messages .*/\1/p' | grep . || echo 0; }
stored_is() { [ "$(stored)" -eq "$1" ]; }
verified() { inside tidegate spool verify /var/lib/tidegate >/dev/null || fail "the spool is damaged"; }
active() { [ "$(inside systemctl is-active tidegate)" = active ]; }
main_pid() { inside systemctl show --property MainPID --value tidegate; }
# shellcheck disable=SC2016 # for dpkg-query
installed() { [ "$(inside dpkg-query -W -f '${db:Status-Status}' tidegate 2>/dev/null)" = "$1" ]; }
settings=/etc/tidegate/tidegate.env

say "making two packages of $target"
export TIDEGATE_DIST=$work
first=$(packaging/build-deb.sh "$target" 1)
second=$(packaging/build-deb.sh "$target" 2)
lintian --fail-on error --allow-root "$first" || fail "lintian"
say "lintian has no errors; $(stat -c %s "$first") bytes"

start_mosquitto
prepare_kafka
boot
say "Debian $(cat "$root/etc/debian_version") is up; installing $(basename "$first")"
cp "$first" "$root/tmp/1.deb"
cp "$second" "$root/tmp/2.deb"
inside dpkg --install /tmp/1.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "dpkg --install"; }
grep -q 'fill in /etc/tidegate' "$work/dpkg.log" || fail "the user is not told what to do next"
[ "$(inside systemctl is-enabled tidegate)" = enabled ] || fail "not enabled at boot"
# READY may take hours while the MQTT broker is away: the boot must not wait for it.
case $(inside systemctl show --property After --value multi-user.target) in *tidegate*) fail "the boot waits for it" ;; esac
! active || fail "started without settings"
[ "$(inside stat -c '%U %a' $settings)" = "root 600" ] || fail "settings can be read by others"
[ "$(inside stat -c '%U %a' /var/lib/tidegate)" = "tidegate 700" ] || fail "the spool's folder is not the gateway's alone"
inside test -s /usr/share/man/man1/tidegate.1.gz || fail "no manual page"
# A start without settings is refused for good, and says why.
inside systemctl start tidegate 2>/dev/null && fail "a start without settings succeeded"
[ "$(inside systemctl is-failed tidegate)" = failed ] || fail "a wrong configuration is retried"
inside journalctl --no-pager --unit tidegate | grep -q MQTT_BROKER_URL || fail "the journal does not name what is missing"

say "configured; Kafka is not there yet; 5000 messages"
sed -i -e "s/^MQTT_BROKER_URL=.*/MQTT_BROKER_URL=localhost:$mqtt_port/" -e 's/^MQTT_CLIENT_ID=.*/MQTT_CLIENT_ID=deb-test/' \
    -e "s/^KAFKA_BROKER=.*/KAFKA_BROKER=127.0.0.1:$kafka_port/" -e "s/^#WILDCARD_TOPIC_LIST=.*/WILDCARD_TOPIC_LIST='s\/#:s'/" \
    "$root$settings"
# A secret by systemd: without its file the gateway would refuse to start.
install -m 600 /dev/stdin "$root/srv/mqtt-password" <<<secret
mkdir -p "$root/etc/systemd/system/tidegate.service.d"
cat >"$root/etc/systemd/system/tidegate.service.d/secret.conf" <<EOF
[Service]
LoadCredential=mqtt-password:/srv/mqtt-password
Environment=MQTT_USER_NAME=deb-test MQTT_USER_PASSWORD_FILE=/run/credentials/tidegate.service/mqtt-password
EOF
inside systemctl daemon-reload
inside tidegate check --env-file $settings >"$work/check.log" 2>&1 && fail "check reached a Kafka that is not there"
grep -q "s/#" "$work/check.log" || fail "check does not say what would be subscribed"
inside systemctl reset-failed tidegate
# Type=notify: it returns when the gateway says that it is subscribed.
timeout $((60 * patience)) nsenter --target "$init" --mount --pid --root --wd -- systemctl start tidegate || fail "systemctl start"
active || fail "not active after the start"
[ "$(inside ps -o user= -p "$(main_pid)" 2>/dev/null || inside stat -c %U "/proc/$(main_pid)")" = tidegate ] || fail "not the account tidegate"
publish one 5000 0
wait_for 30 "5000 messages in the spool" stored_is 5000
verified

say "kill -9: systemd starts it again, the backlog is there"
before=$(main_pid)
inside systemctl kill --signal KILL tidegate
restarted() { active && [ "$(main_pid)" != "$before" ]; }
wait_for 30 "the restart" restarted
stored_is 5000 || fail "$(stored) of 5000 messages after kill -9"

say "upgraded to $(basename "$second") while 4000 more messages come"
before=$(main_pid)
publish two 4000 500 &
publisher=$!
inside dpkg --install /tmp/2.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "the upgrade"; }
wait_for 40 "the new version" restarted
wait "$publisher" || fail "publisher-mqtt during the upgrade"
# shellcheck disable=SC2016 # for dpkg-query
[ "$(inside dpkg-query -W -f '${Version}' tidegate | sed 's/.*-//')" = 2 ] || fail "not upgraded"
grep -q deb-test "$root$settings" || fail "the upgrade changed the settings"
wait_for 30 "9000 messages in the spool" stored_is 9000
verified

say "removed: settings and backlog stay"
inside dpkg --remove tidegate >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "dpkg --remove"; }
installed config-files || fail "not removed"
! inside test -e /usr/bin/tidegate || fail "the executable is still there"
! active || fail "it still runs"
grep -q deb-test "$root$settings" || fail "removing took the settings"
ls "$root"/var/lib/tidegate/*.seg >/dev/null || fail "removing took the backlog"
# Nobody takes these now: Mosquitto keeps them for the session.
publish three 1000 0

say "installed again: it is configured, so it starts; Kafka comes"
inside dpkg --install /tmp/2.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "the second installation"; }
wait_for 30 "the start after the installation" active
wait_for 30 "10000 messages in the spool" stored_is 10000
verified
start_kafka
wait_for 60 "the backlog to be in Kafka" stored_is 0
count s 10000

say "purged with a backlog: settings go, the messages stay"
kill -9 "$kafka_pid"
publish four 100 0
wait_for 30 "100 messages in the spool" stored_is 100
inside dpkg --purge tidegate >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "dpkg --purge"; }
grep -q 'it is kept' "$work/dpkg.log" || fail "purge does not say that messages are left"
! inside test -e $settings || fail "purge left the settings"
ls "$root"/var/lib/tidegate/*.seg >/dev/null || fail "purge took undelivered messages"

say "purged without one: nothing stays"
inside dpkg --install /tmp/2.deb >/dev/null 2>&1 || fail "the third installation"
rm "$root"/var/lib/tidegate/*.seg
inside dpkg --purge tidegate >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "the last purge"; }
! inside test -e /var/lib/tidegate || fail "purge left an empty spool: $(ls -A "$root/var/lib/tidegate")"
! inside test -e /etc/tidegate || fail "purge left /etc/tidegate"
say "all good, in $SECONDS s"
