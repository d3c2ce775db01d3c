# What the tests of the installer share: a release server on loopback, and a Debian for each test that forgets what was
# done to it. `run` runs them in a namespace of mounts and processes of its own.
# shellcheck shell=bash disable=SC2154,SC2034 # bats and its files set and use these.
bats_require_minimum_version 1.5.0

here=$(dirname "${BASH_SOURCE[0]}")
installer=$here/../../installer

# Once for each file of tests: releases 0.1.0, 0.2.0 and 0.3.0-beta.1 as `www/*`, keys, a stamped installer, a server.
setup_file() {
    [ -n "${SKEIN_TEST_ROOT:-}" ] || { echo "run these by tests/installer/run" >&2 && return 1; }
    export files=$BATS_FILE_TMPDIR
    mkdir -p "$files/www/old" "$files/www/new" "$files/www/beta" "$files/stamped"
    SKEIN='' "$here/release" "$files/www/old" 0.1.0 first second
    SKEIN='' "$here/release" "$files/www/new" 0.2.0 first second
    SKEIN='' "$here/release" "$files/www/beta" 0.3.0-beta.1 first second
    mkdir "$files/keys" && cp "$files/www/keys/"* "$files/keys"
    SKEIN='' "$here/release" "$BATS_FILE_TMPDIR/other/www" 9.9.9 stranger
    cp "$files/other/keys/stranger"* "$files/keys"
    cat "$files/keys/first.hex" <(echo " # of now") "$files/keys/second.hex" <(echo) >"$files/trusted"
    python3 "$here/server.py" "$files/www" "$files/port" >/dev/null 2>&1 3>&- &
    export server=$!
    for _ in $(seq 500); do [ ! -f "$files/port" ] || break; read -rt 0.02 <> <(:) || true; done
    port=$(cat "$files/port")
    export url=http://127.0.0.1:$port
    "$installer/stamp" "$url/new" "$files/trusted" "$files/stamped"
}

teardown_file() {
    kill "$server"
}

# For each test: $root, the bare Debian under a layer in memory.
setup() {
    layer=$BATS_TEST_TMPDIR/layer
    mkdir "$layer"
    mount -t tmpfs -o size=512m,mode=755 layer "$layer"
    root=$layer/root
    mkdir "$layer/upper" "$layer/work" "$root"
    mount -t overlay -o "lowerdir=${lower:-$SKEIN_TEST_ROOT},upperdir=$layer/upper,workdir=$layer/work" skein "$root"
    mount -t proc proc "$root/proc"
    cp "$files/stamped/install.sh" "$root/install.sh"
    chmod 644 "$root/install.sh"
    home=/home/owner
    shell=dash
    environment=()
}

teardown() {
    # Before the mounts, what still runs in there.
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/root")" != "$root" ] || kill -9 "${process#/proc/}" 2>/dev/null || true
    done
    umount --recursive --lazy "$layer"
}

# inside USER COMMAND...: in the Debian, with nothing of this environment.
inside() {
    local user=$1 where=$home
    shift
    [ "$user" = owner ] || where=/root
    chroot "$root" /usr/bin/setpriv --reuid "$user" --regid "$user" --init-groups \
        /usr/bin/env -i "HOME=$where" PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        "${environment[@]}" "$@" 3>&-
}

# install OPTION...: as a user pastes it, from standard input.
install() { inside owner "$shell" -s -- "$@" <"$root/install.sh"; }
install_as_root() { inside root "$shell" -s -- "$@" <"$root/install.sh"; }

# Takes commands away.
without() {
    local name
    for name in "$@"; do rm -f "$root"/{,usr/}{bin,sbin}/"$name"; done
}

# command_in NAME: a command in the Debian, from standard input.
command_in() {
    rm -f "$root/usr/bin/$1"
    cat >"$root/usr/bin/$1"
    chmod 755 "$root/usr/bin/$1"
}

# tampered NAME: a copy of the new release, for a test to spoil; the installer fetches from there.
tampered() {
    served=$files/www/$BATS_TEST_NUMBER
    cp -r "${1:-$files/www/new}" "$served"
    environment+=("SKEIN_URL=$url/$BATS_TEST_NUMBER")
    archive=$(echo "$served"/0.*/skein-*-x86_64-unknown-linux-gnu.tar.gz)
}

# A systemd that writes down what it is told and starts the agent.
fake_systemd() {
    mkdir -p "$root/run/systemd/system"
    command_in systemctl <<'END'
#!/bin/sh
echo "$*" >>/tmp/systemctl.log
chmod 666 /tmp/systemctl.log 2>/dev/null
case "$*" in
*restart*)
    unit=/etc/systemd/system/skein.service
    [ "$1" != --user ] || unit=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/skein.service
    data=$(sed -n 's/^Environment="*SKEIN_DATA_DIR=\([^ "]*\).*/\1/p' "$unit")
    [ -z "$data" ] || export SKEIN_DATA_DIR="$data"
    program=$(sed -n 's/^ExecStart=\(.*\) up\( --headless\)\?$/\1/p' "$unit")
    [ "$program" != %h/.local/bin/skein ] || program=$HOME/.local/bin/skein
    program=${program#\"} program=${program%\"}
    # The one before ends first, as systemd does it.
    "$program" down >/dev/null 2>&1
    setsid "$program" up --headless </dev/null >/dev/null 2>&1 &
    ;;
*disable*) [ ! -x ~/.local/bin/skein ] || ~/.local/bin/skein down || true ;;
esac
END
}

# A Mac, with a shell under Rosetta.
fake_mac() {
    command_in uname <<'END'
#!/bin/sh
[ "$1" = -s ] && echo Darwin || echo x86_64
END
    command_in sysctl <<'END'
#!/bin/sh
echo 1
END
}

# A launchd that writes down what it is told, knows what runs, and is as slow as the real one: what was told to leave is
# there for a few questions more, and as long as it is, and once after that, the same cannot be started.
fake_launchd() {
    command_in launchctl <<'END'
#!/bin/sh
echo "$*" >>/tmp/launchctl.log
mkdir -p /tmp/launchd
case $1 in
print)
    left=$(cat "/tmp/launchd/${2##*/}" 2>/dev/null) || exit 113
    [ -n "$left" ] || exit 0
    echo $((left - 1)) >"/tmp/launchd/${2##*/}"
    [ "$left" -gt 0 ] || { rm "/tmp/launchd/${2##*/}" && touch "/tmp/${2##*/}.busy" && exit 113; }
    ;;
bootout)
    [ -f "/tmp/launchd/${2##*/}" ] || { echo "Boot-out failed: 3: No such process" >&2 && exit 3; }
    [ -s "/tmp/launchd/${2##*/}" ] || echo 2 >"/tmp/launchd/${2##*/}"
    [ "${2##*/}" != skein.agent ] || "$HOME/.local/bin/skein" down >/dev/null 2>&1
    ;;
bootstrap)
    label=$(basename "$3" .plist)
    [ ! -f "/tmp/launchd/$label" ] || { echo "Bootstrap failed: 5: Input/output error" >&2 && exit 5; }
    [ ! -f "/tmp/$label.busy" ] || { rm "/tmp/$label.busy" && echo "Bootstrap failed: 5: Input/output error" >&2 && exit 5; }
    : >"/tmp/launchd/$label"
    [ "$label" != skein.agent ] || setsid "$HOME/.local/bin/skein" up >/dev/null 2>&1 &
    ;;
esac
END
}

# until_true SECONDS TEXT: evaluates TEXT until it is true.
until_true() {
    local end=$((SECONDS + $1))
    until eval "$2"; do
        [ $SECONDS -lt $end ] || { echo "not within $1 s: $2" && return 1; }
        read -rt 0.1 <> <(:) || true
    done
}

# Everything below a directory of the Debian, sorted, with digests: what must not change if an installation fails.
picture() {
    (cd "$root$1" && find . -mindepth 1 \( -type f -exec sha256sum {} + \) -o -printf '%y %p %l\n' | sort)
}

program() { inside owner "$home/.local/bin/skein" "$@"; }

# says TEXT: in the output of the last `run`.
says() {
    [[ $output == *"$1"* ]] || { printf 'no "%s" in:\n%s\n' "$1" "$output" && return 1; }
}

# refused TEXT: the last `run` failed with this error and a hint, and nothing is in the home that was not before.
refused() {
    [ "$status" = 1 ] || { printf 'status %s:\n%s\n' "$status" "$output" && return 1; }
    says "error: "
    says "$1"
    says "hint: "
    [ "$(picture /home)" = "${before:-$(cd "$SKEIN_TEST_ROOT/home" && root=$SKEIN_TEST_ROOT picture /home)}" ] ||
        { printf 'the home has changed:\n%s\n' "$(picture /home)" && return 1; }
}
