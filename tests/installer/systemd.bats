# A real systemd, as the first process of a machine of its own: it takes the units, keeps the agent running, and what
# they forbid is forbidden. Skipped where a process may not make itself a control group.

load helpers
# With systemd, D-Bus and logind over the bare Debian.
lower=$SKEIN_TEST_ROOT-systemd:$SKEIN_TEST_ROOT

# Starts systemd in $root; `init` is its process.
boot() {
    local groups
    groups=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
    # A group of its own, so that it manages nothing of this machine's.
    group=$groups/skein-test-$$
    if [ -z "$groups" ] || ! mkdir "$group" 2>/dev/null; then skip "SKIPPED: no control groups to be had here"; fi
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        # shellcheck disable=SC2016
        exec unshare --mount --uts --ipc --cgroup --pid --fork --kill-child --propagation private bash -c '
            set -e
            umount "$1/proc"
            mount -t proc proc "$1/proc"
            mount -t sysfs -o ro sysfs "$1/sys"
            mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
            mount -t tmpfs run "$1/run"
            exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$1" /lib/systemd/systemd --unit=multi-user.target
        ' - "$root"
    ) >"$BATS_TEST_TMPDIR/boot.log" 2>&1 3>&- &
    machine=$!
    until_true 60 'init=$(pgrep -P "$machine" systemd) && [[ "$(booted systemctl is-system-running 2>/dev/null)" =~ running|degraded ]]' ||
        { cat "$BATS_TEST_TMPDIR/boot.log" && false; }
}

booted() {
    nsenter --target "$init" --mount --uts --ipc --pid --cgroup --root --wd env -i HOME=/root \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" 3>&-
}

owner() { booted su - owner -c "$1"; }

teardown() {
    if [ -n "${machine:-}" ]; then
        kill -9 "$machine" 2>/dev/null || true
        wait "$machine" || true
        # Its processes go with its first one; then the groups are empty.
        until_true 10 'find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; [ ! -d "$group" ]' || true
    fi
    umount --recursive --lazy "$layer"
}

state() { booted systemctl show skein --property "$1" --value; }

@test "the system's service runs without rights, comes back when killed, and stays down when told to" {
    boot
    run booted sh -c 'sh -s -- --system --payout x <install.sh'
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "version      0.2.0"
    pid=$(state MainPID)
    booted cat "/proc/$pid/status" >"$BATS_TEST_TMPDIR/status"
    grep -q '^NoNewPrivs:[[:space:]]1' "$BATS_TEST_TMPDIR/status"
    grep -q '^Seccomp:[[:space:]]2' "$BATS_TEST_TMPDIR/status"
    grep -q '^CapBnd:[[:space:]]0*$' "$BATS_TEST_TMPDIR/status"
    [ "$(booted stat -c %U:%a /proc/"$pid" /var/lib/skein | tr '\n' ' ')" = "skein:555 skein:700 " ]
    # What its unit says of the file system and of devices, seen from inside its own namespace.
    run nsenter --target "$(pgrep -P "$init" -f 'skein up')" --mount --root env PATH=/usr/bin:/bin sh -c \
        'touch /var/lib/skein/mine /var/cache/skein/mine; touch /etc/mine /usr/local/bin/skein /opt/mine 2>&1; ls /home; ls /root'
    [ "$(grep -c 'Read-only file system' <<<"$output")" = 3 ] || { echo "$output" && false; }
    [[ $output != *owner* ]]
    booted systemctl kill --signal KILL --kill-who main skein
    until_true 60 '[ "$(state NRestarts)" = 1 ] && [ "$(state ActiveState)" = active ]'
    until_true 30 'booted env SKEIN_DATA_DIR=/var/lib/skein skein status >/dev/null 2>&1'
    booted env SKEIN_DATA_DIR=/var/lib/skein skein down
    until_true 30 '[ "$(state ActiveState)" = inactive ]'
    # An upgrade starts it again.
    run booted sh -c 'sh -s -- --system <install.sh'
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(state ActiveState)" = active ]
    run booted sh -c 'sh -s -- --system --uninstall --purge --yes <install.sh'
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(state LoadState)" = not-found ]
    [ -z "$(booted find / -xdev -name '*skein*' -not -path '/proc/*')" ]
}

@test "the user's service runs without a log-in, and sees other programs of its user" {
    boot
    booted loginctl enable-linger owner
    until_true 60 'booted test -S /run/user/1000/bus'
    run owner 'sh -s -- --headless </install.sh'
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "version      0.2.0"
    pid=$(owner 'XDG_RUNTIME_DIR=/run/user/1000 systemctl --user show skein --property MainPID --value')
    booted cat "/proc/$pid/status" >"$BATS_TEST_TMPDIR/status"
    grep -q '^NoNewPrivs:[[:space:]]1' "$BATS_TEST_TMPDIR/status"
    grep -q '^Seccomp:[[:space:]]2' "$BATS_TEST_TMPDIR/status"
    [ "$(booted cat "/proc/$pid/oom_score_adj")" = 800 ]
    # Of the same user namespace as everything else, or it could not tell what a game is.
    [ "$(booted readlink "/proc/$pid/ns/user")" = "$(booted readlink /proc/1/ns/user)" ]
    run owner 'sh -s -- --uninstall --purge --yes </install.sh'
    [ "$status" = 0 ] || { echo "$output" && false; }
    run ! booted test -e "/proc/$pid"
    [ -z "$(booted find /home -name '*skein*')" ]
}

@test "the real program works under the system's unit, if SKEIN names it" {
    [ -n "${SKEIN:-}" ] || skip "SKEIN does not name a program"
    version=$("$SKEIN" --version | cut -d ' ' -f 2)
    "$here/release" "$files/www/real" "$version" first
    boot
    run booted env "SKEIN_URL=$url/real" sh -c 'sh -s -- --system <install.sh'
    [ "$status" = 0 ] || { echo "$output" && booted journalctl --no-pager -u skein && false; }
    # The disk of this machine is in memory, and small.
    booted env SKEIN_DATA_DIR=/var/lib/skein skein set disk_free_min off
    # Its worker has measured this machine: compiling and threads are allowed in there.
    until_true 120 'booted env SKEIN_DATA_DIR=/var/lib/skein skein status --json 2>/dev/null | grep -q matrix_mflops' ||
        { booted journalctl --no-pager -u skein && booted env SKEIN_DATA_DIR=/var/lib/skein skein status && false; }
    booted systemctl stop skein
    [ "$(state Result)" = success ]
}
