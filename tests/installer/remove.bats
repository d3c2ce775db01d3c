# Taking it away again: what goes, what stays, and what is never touched.

load helpers

with_data() {
    install --payout x
    mkdir -p "$root$home/.local/share/skein/log"
    echo key >"$root$home/.local/share/skein/identity.key"
    chown -R 1000:1000 "$root$home/.local"
}

@test "--uninstall leaves the key, the log and all data" {
    with_data
    install --payout x # A second time, so that there is an old program.
    data=$(picture "$home/.local/share/skein")
    run install --uninstall
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "removed skein from /home/owner/.local/bin"
    says "stay in /home/owner/.local/share/skein"
    [ "$(picture "$home/.local/share/skein")" = "$data" ]
    [ -z "$(find "$root$home" -name '*skein*' -not -path '*/.local/share/skein*')" ]
    # Again is no error, and installing again finds the data.
    run install --uninstall
    [ "$status" = 0 ]
    says "there was no skein"
    run install
    [ "$status" = 0 ]
    [ "$(picture "$home/.local/share/skein")" = "$data" ]
}

@test "--uninstall stops the service and removes its unit" {
    fake_systemd
    install
    program status
    run install --uninstall
    [ "$status" = 0 ]
    run -0 cat "$root/tmp/systemctl.log"
    says "--user disable --now --quiet skein"
    [ ! -e "$root$home/.config/systemd/user/skein.service" ]
    [ ! -e "$root$home/.local/share/skein/agent.json" ]
}

@test "--uninstall stops an agent that no service has started" {
    install
    inside owner sh -c 'setsid ~/.local/bin/skein up >/dev/null 2>&1 & until ~/.local/bin/skein status; do :; done'
    pid=$(tr -cd 0-9 <"$root$home/.local/share/skein/agent.json")
    run install --uninstall
    [ "$status" = 0 ]
    for _ in $(seq 500); do kill -0 "$pid" 2>/dev/null || break; read -rt 0.02 <> <(:) || true; done
    run ! kill -0 "$pid"
}

@test "--uninstall needs neither network nor keys nor a known processor" {
    install
    without curl wget openssl ssh-keygen
    command_in uname <<<'#!/bin/sh
[ "$1" = -s ] && echo Linux || echo riscv64'
    cp "$installer/install.sh" "$root/install.sh"
    run install --uninstall
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ ! -e "$root$home/.local/bin/skein" ]
}

@test "--purge asks, and where there is no terminal it refuses" {
    with_data
    before_data=$(picture "$home/.local/share/skein")
    run setsid --wait chroot "$root" /usr/bin/setpriv --reuid owner --regid owner --init-groups env -i HOME="$home" PATH="$PATH" sh -s -- --uninstall --purge <"$root/install.sh"
    [ "$status" = 1 ]
    says "error: there is no terminal to ask at"
    says "hint: give --yes"
    [ "$(picture "$home/.local/share/skein")" = "$before_data" ]
    # At a terminal.
    for answer in no yes; do
        echo "$answer" | script --quiet --return --command \
            "chroot '$root' /usr/bin/setpriv --reuid owner --regid owner --init-groups env -i HOME='$home' PATH='$PATH' sh /install.sh --uninstall --purge" \
            /dev/null >"$BATS_TEST_TMPDIR/words" || { cat "$BATS_TEST_TMPDIR/words" && false; }
        grep -q 'Type yes' "$BATS_TEST_TMPDIR/words"
        [ "$answer" = yes ] || [ "$(picture "$home/.local/share/skein")" = "$before_data" ]
    done
    [ ! -e "$root$home/.local/share/skein" ]
}

@test "--purge --yes removes all that there was" {
    with_data
    run install --uninstall --purge --yes
    [ "$status" = 0 ]
    says "removed /home/owner/.local/share/skein"
    [ -z "$(find "$root$home" -type f -newer "$files/trusted" -not -name '.*')" ]
    [ -z "$(find "$root$home" -name '*skein*')" ]
}

@test "--purge never removes a home, or what does not look like an agent's data" {
    mkdir "$root$home/photos" && echo 1 >"$root$home/photos/1" && touch "$root$home/identity.key"
    chown -R 1000:1000 "$root$home"
    for place in / /home "$home" "$home/" "$home/photos" "$home/../owner"; do
        environment=("SKEIN_DATA_DIR=$place")
        run install --uninstall --purge --yes
        [ "$status" = 1 ] || { echo "$place: $output" && false; }
        says "left as it is"
        [ -f "$root$home/photos/1" ]
    done
}
