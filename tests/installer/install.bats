# What is installed, where, and that doing it again changes nothing.

load helpers

@test "installs for the user, without a systemd, and says how to start" {
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "signed by the release key"
    says "installed skein 0.2.0: /home/owner/.local/bin/skein"
    says "/home/owner/.local/bin is not in PATH"
    says 'export PATH="$HOME/.local/bin:$PATH"'
    says "This machine has no systemd"
    [ "$(program --version)" = "skein 0.2.0" ]
    [ "$(stat -c %a:%u "$root$home/.local/bin/skein")" = "755:1000" ]
    [ "$(cat "$root$home/.local/share/doc/skein/LICENSE")" = "LICENSE of 0.2.0" ]
    grep -qx 'Exec="/home/owner/.local/bin/skein" tray' "$root$home/.config/autostart/skein-tray.desktop"
    # Nothing else: no half-written file, no unit that nothing would read.
    run picture "$home"
    [ "$(grep -c '^[0-9a-f]\{64\} ' <<<"$output")" = 8 ] || { echo "$output" && false; }
    [ ! -e "$root/etc/systemd" ] || [ -z "$(find "$root/etc/systemd" -name 'skein*')" ]
}

@test "an agent that runs already is shown by its status" {
    install
    environment+=("PATH=/usr/bin:/bin:/home/owner/.local/bin")
    inside owner sh -c 'setsid ~/.local/bin/skein up >/dev/null 2>&1 & until ~/.local/bin/skein status; do :; done'
    run install
    [ "$status" = 0 ]
    says "version      0.2.0"
    [[ $output != *"not in PATH"* ]]
}

@test "starts the user's service and prints the status" {
    fake_systemd
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "version      0.2.0"
    run -0 cat "$root/tmp/systemctl.log"
    says "--user daemon-reload"
    says "--user enable --quiet skein"
    says "--user restart skein"
    # Byte for byte what is in packaging/, without its comments.
    diff <(grep -v '^#' "$installer/../packaging/systemd/skein-user.service" | cat -s | sed '1{/^$/d}') "$root$home/.config/systemd/user/skein.service"
    # Of the usual place of the data nothing is said.
    diff <(sed 's|^Exec=.*|Exec="/home/owner/.local/bin/skein" tray|' "$installer/../packaging/desktop/skein-tray.desktop") "$root$home/.config/autostart/skein-tray.desktop"
}

@test "hints at lingering when there is no desktop" {
    fake_systemd
    command_in loginctl <<<'#!/bin/sh
echo no'
    run install --headless
    [ "$status" = 0 ]
    says "sudo loginctl enable-linger owner"
    environment+=(DISPLAY=:0)
    run install
    [[ $output != *enable-linger* ]]
}

@test "says so if the service does not answer" {
    fake_systemd
    command_in systemctl <<<'#!/bin/sh'
    # As if 30 s passed.
    command_in sleep <<<'#!/bin/sh'
    run install
    [ "$status" = 1 ]
    says "error: skein 0.2.0 is installed, but does not answer after 30 s"
    says "hint: journalctl --user -u skein"
    [ "$(program --version)" = "skein 0.2.0" ]
}

@test "says so if systemd cannot start the service" {
    fake_systemd
    command_in systemctl <<<'#!/bin/sh
case "$*" in *restart*) exit 1 ;; esac'
    run install
    [ "$status" = 1 ]
    says "error: installed, but systemd could not start the agent"
    says "hint: systemctl --user status skein"
}

@test "a systemd that does not answer is no reason to fail" {
    fake_systemd
    command_in systemctl <<<'#!/bin/sh
echo "Failed to connect to bus" >&2; exit 1'
    run install
    [ "$status" = 0 ]
    says "systemctl --user enable --now skein"
    [ -f "$root$home/.config/systemd/user/skein.service" ]
}

@test "--no-start installs the service and starts nothing" {
    fake_systemd
    run install --no-start
    [ "$status" = 0 ]
    says "To start it: systemctl --user enable --now skein"
    [ -f "$root$home/.config/systemd/user/skein.service" ]
    [ ! -e "$root/tmp/systemctl.log" ]
}

@test "--headless leaves out the tray, and takes away an earlier one" {
    fake_systemd
    run install --headless
    [ "$status" = 0 ]
    [ ! -e "$root$home/.config/autostart" ]
    install --attended
    [ -f "$root$home/.config/autostart/skein-tray.desktop" ]
    install --headless
    [ ! -e "$root$home/.config/autostart/skein-tray.desktop" ]
}

@test "without a systemd, a hidden autostart entry remembers a rig and its places" {
    entry=$root$home/.config/autostart/skein-tray.desktop
    mkdir "$root/srv/own" && chown 1000:1000 "$root/srv/own"
    environment=(SKEIN_DATA_DIR=/srv/own/d DISPLAY=:0)
    run install --headless --prefix /srv/own/p
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "  /srv/own/p/bin/skein up --headless --data-dir /srv/own/d"
    grep -qx 'Hidden=true' "$entry"
    environment=(DISPLAY=:0)
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "--headless is kept from the installation before"
    says "the program in /srv/own/p/bin"
    says "the data in /srv/own/d"
    says "up --headless --data-dir /srv/own/d"
    says "/srv/own/p/bin/skein down --data-dir /srv/own/d, then start it again"
    [ ! -e "$root$home/.local/bin/skein" ]
    [ ! -e "$root/tmp/tray.log" ]
    # Somebody sits there after all.
    run install --attended
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "  /srv/own/p/bin/skein up --data-dir /srv/own/d"
    grep -qxF 'Exec="/srv/own/p/bin/skein" tray --data-dir "/srv/own/d"' "$entry"
    run ! grep -q Hidden "$entry"
    run install --uninstall
    says "removed skein from /srv/own/p/bin"
    [ ! -e "$entry" ]
}

@test "again: the same files, the old program kept" {
    install
    before=$(picture "$home" | grep -v skein.old)
    run install
    [ "$status" = 0 ]
    says "installed skein 0.2.0 again"
    [ "$(picture "$home" | grep -v skein.old)" = "$before" ]
    [ "$(program --version)" = "skein 0.2.0" ]
}

@test "upgrades and keeps the old program; the data stay" {
    environment=("SKEIN_URL=$url/old")
    install --payout old-address
    echo "key" >"$root$home/.local/share/skein/identity.key"
    environment=()
    touch "$root$home/.local/bin/skein.new"
    run install
    [ "$status" = 0 ]
    says "replaced skein 0.1.0 by 0.2.0"
    [ "$(program --version)" = "skein 0.2.0" ]
    [ "$(inside owner "$home"/.local/bin/skein.old --version)" = "skein 0.1.0" ]
    [ ! -e "$root$home/.local/bin/skein.new" ]
    [ "$(cat "$root$home/.local/share/skein/identity.key")" = key ]
    grep -qx 'payout = "old-address"' "$root$home/.local/share/skein/config.toml"
}

@test "a downgrade is refused unless it was asked for by its version" {
    install
    before=$(picture /home)
    environment=("SKEIN_URL=$url/old")
    run install
    refused "skein 0.2.0 is installed, and the channel stable has the older 0.1.0"
    says "--version 0.1.0"
    run install --version 0.1.0
    [ "$status" = 0 ]
    [ "$(program --version)" = "skein 0.1.0" ]
}

@test "a release comes after its betas" {
    environment=("SKEIN_URL=$url/beta")
    install
    [ "$(program --version)" = "skein 0.3.0-beta.1" ]
    environment=()
    before=$(picture /home)
    run install
    refused "the older 0.2.0"
}

@test "versions are ordered as semver.org does" {
    sed '/^{ main/d' "$installer/install.sh" >"$BATS_TEST_TMPDIR/functions"
    run -0 "$shell" -c '. "$1"
        last=
        for version in 0.9.0 1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 1.0.2 1.0.10 1.2.0 2.0.0 10.0.0; do
            [ -z "$last" ] || older "$last" "$version" || echo "$last is not before $version"
            [ -z "$last" ] || ! older "$version" "$last" || echo "$version is before $last"
            ! older "$version" "$version" || echo "$version is before itself"
            last=$version
        done
        ! older 1.0.0+a 1.0.0+b || echo "build metadata count"' - "$BATS_TEST_TMPDIR/functions"
    [ -z "$output" ]
}

@test "--channel and --version choose" {
    run install --channel nightly
    refused "cannot fetch what the release holds from $url/new/nightly.json"
    tampered
    for end in '' .sig .sshsig; do mv "$served/stable.json$end" "$served/beta.json$end"; done
    run install --channel beta
    [ "$status" = 0 ]
    # Updates follow the channel that was chosen once, and a later installation that names none leaves it.
    [ "$(cat "$root$home/.local/share/skein/config.toml")" = 'update_channel = "beta"' ]
    run install --version v0.2.0
    [ "$status" = 0 ]
    [ "$(cat "$root$home/.local/share/skein/config.toml")" = 'update_channel = "beta"' ]
}

@test "--payout is written where no table has begun, and replaces an earlier one" {
    mkdir -p "$root$home/.local/share/skein"
    printf 'threads = 2\npayout = "mine"\n[table]\npayout = "another"\n' >"$root$home/.local/share/skein/config.toml"
    chown -R 1000:1000 "$root$home/.local"
    run install --payout bc1:q-AB_c.9@x
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(cat "$root$home/.local/share/skein/config.toml")" = $'payout = "bc1:q-AB_c.9@x"\nthreads = 2\n[table]\npayout = "another"' ]
    [ "$(stat -c %a "$root$home/.local/share/skein/config.toml")" = 600 ]
}

@test "--owner is written beside it, and each leaves the other alone" {
    owner=$(printf '0aF%.0s' {1..21})7
    mkdir -p "$root$home/.local/share/skein"
    printf 'owner = "old"\nthreads = 2\npayout = "mine"\n[table]\nowner = "another"\n' >"$root$home/.local/share/skein/config.toml"
    chown -R 1000:1000 "$root$home/.local"
    run install --owner "$owner"
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(cat "$root$home/.local/share/skein/config.toml")" = $'owner = "'"$owner"$'"\nthreads = 2\npayout = "mine"\n[table]\nowner = "another"' ]
    run install --owner "$owner" --payout x
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(cat "$root$home/.local/share/skein/config.toml")" = $'payout = "x"\nowner = "'"$owner"$'"\nthreads = 2\n[table]\nowner = "another"' ]
}

@test "--file installs without a network" {
    mkdir "$root/media/stick"
    cp "$files/www/new/0.2.0/"* "$root/media/stick"
    # A relative path, and no address.
    sed -i "s|^SKEIN_URL_DEFAULT=.*|SKEIN_URL_DEFAULT=|" "$root/install.sh"
    without curl wget
    run inside owner sh -c 'cd /media && sh /install.sh --file stick/skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz'
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(program --version)" = "skein 0.2.0" ]
    # The same checks.
    before=$(picture /home)
    echo >>"$root/media/stick/skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz"
    run install --file /media/stick/skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz
    refused "it was cut off or changed"
    cp "$files/www/new/0.2.0/"*.tar.gz "$root/media/stick"
    sed -i 's/2026/2027/' "$root/media/stick/manifest.json"
    run install --file /media/stick/skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz
    refused "its signature does not verify"
    rm "$root/media/stick/manifest.json.sig"
    run install --file /media/stick/skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz
    refused "the release has no signature"
    rm "$root/media/stick/manifest.json"
    run install --file /media/stick/skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz
    refused "there is no /media/stick/manifest.json"
}

@test "a home with spaces, quotes and other letters" {
    home="/home/Otto \"O\" \$Müller & 50% <x>'s"
    mkdir "$root$home" && chown 1000:1000 "$root$home"
    fake_systemd
    run install --payout x
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "version      0.2.0"
    [ "$(program --version)" = "skein 0.2.0" ]
    grep -qxF 'ExecStart=%h/.local/bin/skein up' "$root$home/.config/systemd/user/skein.service"
    grep -qxF 'Exec="/home/Otto \\"O\\" \\$Müller & 50%% <x>'"'"'s/.local/bin/skein" tray' "$root$home/.config/autostart/skein-tray.desktop"
    # Elsewhere than by default, systemd gets the whole path, quoted.
    run install --no-start --prefix "$home/a place"
    [ "$status" = 0 ]
    grep -qxF 'ExecStart="/home/Otto \"O\" $$Müller & 50%% <x>'"'"'s/a place/bin/skein" up' "$root$home/.config/systemd/user/skein.service"
    # And it is found there again.
    run install --uninstall
    [ ! -e "$root$home/a place/bin/skein" ] || { echo "$output" && false; }
    run install --uninstall
    [ ! -e "$root$home/.local/bin/skein" ]
}

@test "PREFIX, --prefix, XDG and SKEIN_DATA_DIR choose the places" {
    fake_systemd
    mkdir "$root/srv/own" && chown 1000:1000 "$root/srv/own"
    environment=(PREFIX=/srv/own/p XDG_CONFIG_HOME=/srv/own/c SKEIN_DATA_DIR=/srv/own/d)
    run install --payout x
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ -x "$root/srv/own/p/bin/skein" ]
    [ -f "$root/srv/own/d/config.toml" ]
    [ "$(stat -c %a "$root/srv/own/d")" = 700 ]
    grep -qxF 'Environment="SKEIN_DATA_DIR=/srv/own/d"' "$root/srv/own/c/systemd/user/skein.service"
    [ ! -e "$root$home/.local" ]
    grep -qxF 'Exec="/srv/own/p/bin/skein" tray --data-dir "/srv/own/d"' "$root/srv/own/c/autostart/skein-tray.desktop"
    run install --prefix /srv/own/q --no-start
    [ -x "$root/srv/own/q/bin/skein" ]
}

@test "run again without them, program and data stay where they are, and so with --uninstall" {
    fake_systemd
    # With what a unit, an autostart entry and a shell read in their own ways.
    own="/srv/own \$5 & 50% \"<x>'s\`"
    mkdir "$root$own" && chown 1000:1000 "$root$own"
    command_in systemctl <<<'#!/bin/sh'
    for units in systemd autostart; do
        # As on a machine that has no systemd, the second time.
        [ "$units" = systemd ] || without systemctl
        environment=("PREFIX=$own/p" "SKEIN_DATA_DIR=$own/d")
        run install --no-start --payout x
        [ "$status" = 0 ] || { echo "$output" && false; }
        environment=()
        touch "$root$own/d/identity.key"
        before=$(picture "$own" | grep -v skein.old)
        settings=$(picture "$home")
        run install --no-start
        [ "$status" = 0 ] || { echo "$output" && false; }
        says "kept from the installation before: the program in $own/p/bin; --prefix chooses another place"
        says "kept from the installation before: the data in $own/d; SKEIN_DATA_DIR chooses another place"
        [ "$(picture "$own" | grep -v skein.old)" = "$before" ]
        [ "$(picture "$home")" = "$settings" ]
        # Given, they win.
        environment=("SKEIN_DATA_DIR=$own/e")
        run install --no-start
        [[ $output == *"the program in $own/p/bin"* && $output != *"the data in"* ]]
        environment=()
        run install --uninstall
        [ "$status" = 0 ] || { echo "$output" && false; }
        says "removed skein from $own/p/bin"
        [ ! -e "$root$own/p/bin/skein" ]
        [ -e "$root$own/d/identity.key" ]
        [ -z "$(find "$root$home" -name '*skein*')" ]
    done
}

@test "what is told of data that stay tells how to remove them" {
    environment=("SKEIN_DATA_DIR=/tmp/a place")
    install --payout x
    environment=()
    run install --uninstall
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "stay in /tmp/a place; --uninstall --purge with SKEIN_DATA_DIR='/tmp/a place' removes them too"
    environment=("SKEIN_DATA_DIR=/tmp/a place")
    run install --uninstall --purge --yes
    says "removed /tmp/a place"
}

@test "places that somebody else has written: of skein service install, of a drop-in, of a package" {
    fake_systemd
    units=$root$home/.config/systemd/user
    install --no-start --prefix /tmp/p
    printf '[Service]\nExecStart=/tmp/p/bin/skein up --device cpu\nEnvironment=SKEIN_DATA_DIR=/tmp/d\n' >"$units/skein.service"
    run install --no-start
    says "the program in /tmp/p/bin"
    says "the data in /tmp/d"
    mkdir "$units/skein.service.d"
    printf '[Service]\nEnvironment=A=b "SKEIN_DATA_DIR=%%h/a place" C=d\n' >"$units/skein.service.d/override.conf"
    run install --no-start
    says "the data in $home/a place"
    # A program of a package's is the package's to replace, and to remove.
    printf '[Service]\nExecStart=/usr/bin/skein up\n' >"$units/skein.service"
    touch "$root/usr/bin/skein"
    run install --no-start
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "the service runs /usr/bin/skein, which install.sh has not put there"
    [ "$(program --version)" = "skein 0.2.0" ]
    # Of no place it says that is not the usual one, where the key is.
    rm -r "$units/skein.service.d"
    mkdir -p "$root$home/.local/share/skein" && touch "$root$home/.local/share/skein/identity.key"
    chown -R 1000:1000 "$root$home/.local"
    environment=(XDG_DATA_HOME=/tmp/x)
    run install --no-start
    [ "$status" = 0 ] || { echo "$output" && false; }
    run ! grep -q /tmp/x "$units/skein.service"
}

@test "the machine's service keeps its --prefix too" {
    fake_systemd
    install_as_root --system --prefix /opt/skein
    run install_as_root --system
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "kept from the installation before: the program in /opt/skein/bin"
    [ ! -e "$root/usr/local/bin/skein" ]
    run install_as_root --system --uninstall
    [ "$status" = 0 ] && [ ! -e "$root/opt/skein/bin/skein" ] || { echo "$output" && false; }
}

@test "the icon is shown at once where there is a desktop, and told where the data are" {
    fake_systemd
    environment=(SKEIN_DATA_DIR=/tmp/d)
    install
    environment+=(WAYLAND_DISPLAY=wayland-0)
    install --no-start
    install --headless
    [ ! -e "$root/tmp/tray.log" ]
    install --attended
    until_true 10 '[ -s "$root/tmp/tray.log" ]'
    [ "$(cat "$root/tmp/tray.log")" = "/home/owner/.local/bin/skein tray --data-dir /tmp/d" ]
}

# process USER PROGRAM WORD: one with this executable and this first argument, as `icon`: `cat`, which waits at a pipe that
# nobody writes to. A script would have its shell's executable.
process() {
    rm -f "$root$2" && cp "$root/bin/cat" "$root$2"
    [ -p "$root/tmp/$3" ] || { mkfifo "$root/tmp/$3" && chmod 644 "$root/tmp/$3"; }
    rm -f "$root/tmp/pid"
    inside "$1" sh -c 'cd /tmp && echo $$ >pid && exec "$1" "$2"' sh "$2" "$3" &
    until_true 10 '[ -s "$root/tmp/pid" ] && icon=$(cat "$root/tmp/pid") && grep -q "skein" "/proc/$icon/comm"'
}

@test "an upgrade and an uninstallation end the icon of the installed program, and nothing else" {
    fake_systemd
    mkdir "$root/srv/own" && chown 1000:1000 "$root/srv/own"
    # By a link, as some systems have one for homes.
    ln -s own "$root/srv/link"
    environment=(PREFIX=/srv/link)
    install
    process owner /srv/own/bin/skein tray && ours=$icon
    process owner /srv/own/bin/skein up && agents=$icon
    process owner /tmp/skein tray && elsewhere=$icon
    process root /srv/own/bin/skein tray && anothers=$icon
    run install --no-start
    [ -e "/proc/$ours/exe" ]
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "The tray icon comes back at the next log-in."
    [ ! -e "/proc/$ours/exe" ]
    [ -e "/proc/$agents/exe" ]
    [ -e "/proc/$elsewhere/exe" ]
    [ -e "/proc/$anothers/exe" ]
    process owner /srv/own/bin/skein tray && ours=$icon
    run install --uninstall
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ ! -e "/proc/$ours/exe" ]
    [ -e "/proc/$agents/exe" ]
    [ -e "/proc/$elsewhere/exe" ]
    [ -e "/proc/$anothers/exe" ]
    # Root's own, and only that, although root could end all of them.
    process owner /srv/own/bin/skein tray && ours=$icon
    run install_as_root --uninstall --prefix /srv/own
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ -e "/proc/$ours/exe" ]
    [ ! -e "/proc/$anothers/exe" ]
}

@test "--system installs for the machine, with a user of its own" {
    fake_systemd
    run install_as_root --system --payout x
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "version      0.2.0"
    [ "$(stat -c %a:%U "$root/usr/local/bin/skein")" = "755:root" ]
    [ "$(chroot "$root" stat -c %a:%U:%G /var/lib/skein/config.toml)" = "600:skein:skein" ]
    [ "$(chroot "$root" stat -c %a:%U /var/lib/skein)" = "700:skein" ]
    [[ "$(chroot "$root" getent passwd skein)" == *:/var/lib/skein:/usr/sbin/nologin ]]
    [[ "$(chroot "$root" id -nG skein)" == *video* ]]
    diff <(grep -v '^#' "$installer/../packaging/systemd/skein.service" | cat -s | sed '1{/^$/d}; s|/usr/bin/skein|/usr/local/bin/skein|') "$root/etc/systemd/system/skein.service"
    run -0 cat "$root/tmp/systemctl.log"
    [[ $output != *--user* ]]
    [ ! -e "$root/root/.local" ]
    # Again, and away.
    run install_as_root --system
    [ "$status" = 0 ]
    run install_as_root --system --uninstall --purge --yes
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ ! -e "$root/usr/local/bin/skein" ]
    [ ! -e "$root/etc/systemd/system/skein.service" ]
    [ ! -e "$root/var/lib/skein" ]
    run chroot "$root" id skein
    [ "$status" != 0 ]
}

@test "run again, a headless rig stays headless; --attended ends it" {
    fake_systemd
    unit=$root$home/.config/systemd/user/skein.service
    install --headless
    grep -q '^ExecStart=.* up --headless$' "$unit"
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "--headless is kept from the installation before; --attended ends it"
    grep -q '^ExecStart=.* up --headless$' "$unit"
    [ ! -e "$root$home/.config/autostart/skein-tray.desktop" ]
    run install --attended
    [ "$status" = 0 ]
    grep -q '^ExecStart=.* up$' "$unit"
    [ -f "$root$home/.config/autostart/skein-tray.desktop" ]
    run install
    [[ $output != *"is kept"* ]]
    grep -q '^ExecStart=.* up$' "$unit"
    before=$(picture /home)
    run install --headless --attended
    refused "--headless and --attended exclude each other"
}

@test "--system writes nothing where the user skein leads it" {
    fake_systemd
    install_as_root --system --payout first
    data=$root/var/lib/skein
    echo "of root" >"$root/etc/precious"
    chmod 600 "$root/etc/precious"
    precious=$(stat -c '%u %a' "$root/etc/precious" && cat "$root/etc/precious")
    # What an agent that was taken over could leave there: names that lead elsewhere.
    ln -sfn /etc/precious "$data/.config.toml.skein-new"
    chroot "$root" chown -h skein: /var/lib/skein/.config.toml.skein-new
    run install_as_root --system --payout second
    [ "$(stat -c '%u %a' "$root/etc/precious" && cat "$root/etc/precious")" = "$precious" ] || { echo "$output" && false; }
    [ "$status" = 1 ]
    says "cannot write to /var/lib/skein/config.toml"
    # Nor does it read there for him.
    ln -sfn /etc/precious "$data/config.toml"
    rm -f "$data/.config.toml.skein-new"
    run install_as_root --system --payout third
    [ "$status" = 1 ]
    run ! grep -rq "of root" "$data"
    [ "$(stat -c '%u %a' "$root/etc/precious" && cat "$root/etc/precious")" = "$precious" ]
    rm "$data/config.toml"
    run install_as_root --system --payout fourth --owner "$(printf '0%.0s' {1..64})"
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(chroot "$root" stat -c %a:%U:%G /var/lib/skein/config.toml)" = "600:skein:skein" ]
    grep -qx 'payout = "fourth"' "$data/config.toml"
    # A line that is there already is replaced, others stay.
    echo 'name = "rig"' >>"$data/config.toml"
    run install_as_root --system --payout fifth
    [ "$status" = 0 ]
    [ "$(grep -c payout "$data/config.toml")" = 1 ]
    grep -qx 'payout = "fifth"' "$data/config.toml"
    grep -qx 'name = "rig"' "$data/config.toml"
    grep -q '^owner = ' "$data/config.toml"
}

@test "--system without root, in a home, or over a package is refused" {
    run install --system
    refused "--system needs root"
    run install_as_root --system --prefix /home/owner/x
    refused "the service cannot see /home/owner/x"
    mkdir -p "$root/usr/lib/systemd/system" && touch "$root/usr/lib/systemd/system/skein.service"
    run install_as_root --system
    refused "a package has installed Skein"
}

@test "on a Mac: the right program, and launchd starts it" {
    fake_mac
    fake_launchd
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "fetching skein 0.2.0 for aarch64-apple-darwin"
    says "version      0.2.0"
    run -0 cat "$root/tmp/launchctl.log"
    says "bootstrap gui/1000 /home/owner/Library/LaunchAgents/skein.agent.plist"
    says "bootstrap gui/1000 /home/owner/Library/LaunchAgents/skein.tray.plist"
    # The same as in packaging/, but for the places.
    run -0 python3 - "$installer/../packaging/launchd" "$root$home/Library/LaunchAgents" <<'END'
import plistlib, sys
places = [("/tmp/skein.agent.log", "/home/owner/Library/Logs/skein.agent.log"),
          ("/tmp/skein.tray.log", "/home/owner/Library/Logs/skein.tray.log"),
          ("/tmp/skein<", "/home/owner/.local/share/skein<"), ("/usr/local/bin/skein", "/home/owner/.local/bin/skein")]
for name in "skein.agent", "skein.tray":
    ours, theirs = (open(f"{folder}/{name}.plist").read() for folder in sys.argv[1:])
    for old, new in places:
        ours = ours.replace(old, new)
    assert plistlib.loads(ours.encode()) == plistlib.loads(theirs.encode()), name
END
    # Again, where the service is at work and takes its time to end.
    run install --headless
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(cd "$root/tmp/launchd" && echo *)" = skein.agent ]
    grep -q '<string>--headless</string>' "$root$home/Library/LaunchAgents/skein.agent.plist"
    run install --uninstall
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ -z "$(ls "$root$home/Library/LaunchAgents")" ]
    [ -z "$(ls "$root/tmp/launchd")" ]
}

@test "on a Mac: a service that never ends, and places that are kept" {
    fake_mac
    fake_launchd
    command_in sleep <<<'#!/bin/sh'
    own="/srv/<a> & b"
    mkdir "$root$own" && chown 1000:1000 "$root$own"
    environment=("PREFIX=$own/p" "SKEIN_DATA_DIR=$own/d")
    run install --no-start
    [ "$status" = 0 ] || { echo "$output" && false; }
    environment=()
    run install --no-start
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "the program in $own/p/bin"
    says "the data in $own/d"
    mkdir -p "$root/tmp/launchd" && echo 1000 >"$root/tmp/launchd/skein.agent" && chmod -R a+rwX "$root/tmp/launchd"
    run install
    [ "$status" = 1 ]
    says "Bootstrap failed: 5"
    says "error: launchd does not take $home/Library/LaunchAgents/skein.agent.plist"
    run install --uninstall
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "removed skein from $own/p/bin"
}

@test "dash, bash and busybox as the shell" {
    for shell in bash "busybox sh" dash; do
        environment=("SKEIN_URL=$url/new")
        # shellcheck disable=SC2086 # Two words.
        run inside owner $shell -s -- --headless <"$root/install.sh"
        [ "$status" = 0 ] || { echo "$shell: $output" && false; }
        [ "$(program --version)" = "skein 0.2.0" ]
        rm -rf "$root$home/.local"
    done
}

@test "busybox alone, with OpenSSL" {
    mkdir "$root/busybox"
    chroot "$root" /bin/busybox --install -s /busybox
    ln -s /usr/bin/openssl "$root/busybox/openssl"
    ln -s /usr/bin/getconf "$root/busybox/getconf"
    environment=(PATH=/busybox)
    run inside owner sh -s -- --payout x <"$root/install.sh"
    [ "$status" = 0 ] || { echo "$output" && false; }
    environment=()
    [ "$(program --version)" = "skein 0.2.0" ]
}

@test "a release by the product's own signing tool" {
    [ -n "${SKEIN_RELEASE:-}" ] || skip "SKEIN_RELEASE does not name skein-release"
    tampered
    for key in first second; do sed '/^-/d' "$files/keys/$key" | base64 -d | tail -c 73 | head -c 32 | od -An -v -tx1 | tr -d ' \n' >"$BATS_TEST_TMPDIR/$key" && chmod 600 "$BATS_TEST_TMPDIR/$key"; done
    rm "$served"/0.2.0/manifest.json*
    "$SKEIN_RELEASE" sign --key "$BATS_TEST_TMPDIR/first" --key "$BATS_TEST_TMPDIR/second" --version 0.2.0 --released-at 2026-11-23T00:00:00Z "$served/0.2.0"
    run install --version 0.2.0
    [ "$status" = 0 ] || { echo "$output" && false; }
    without openssl
    run install --version 0.2.0
    [ "$status" = 0 ] || { echo "$output" && false; }
}

@test "the real program, if SKEIN names it" {
    [ -n "${SKEIN:-}" ] || skip "SKEIN does not name a program"
    version=$("$SKEIN" --version | cut -d ' ' -f 2)
    "$here/release" "$files/www/real" "$version" first
    environment=("SKEIN_URL=$url/real")
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ "$(program --version)" = "skein $version" ]
}
