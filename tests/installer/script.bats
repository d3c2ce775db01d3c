# The script itself: cut off anywhere it does nothing, and what it carries agrees with packaging/.

load helpers

@test "cut off at any line, and anywhere in its last two hundred bytes, it does nothing" {
    # Whatever a part of it does, it would need one of these, or the home.
    for name in curl wget systemctl; do command_in "$name" <<<'#!/bin/sh
echo "$0 $*" >>/tmp/called'; done
    count=$(wc -l <"$root/install.sh") bytes=$(wc -c <"$root/install.sh")
    [ "$count" -gt 500 ]
    # shellcheck disable=SC2016
    run inside owner sh -c '
        line=0
        while [ $line -lt '"$count"' ]; do
            head -n $line /install.sh | sh -s -- --payout x >/dev/null 2>&1
            line=$((line + 1))
        done
        byte=$(('"$bytes"' - 200))
        # Without its last byte, the line feed, it is whole.
        while [ $byte -lt $(('"$bytes"' - 1)) ]; do
            head -c $byte /install.sh | sh -s -- --payout x >/dev/null 2>&1
            byte=$((byte + 1))
        done'
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ ! -e "$root/tmp/called" ]
    [ "$(picture /home)" = "$(cd "$SKEIN_TEST_ROOT/home" && root=$SKEIN_TEST_ROOT picture /home)" ]
    # The whole of it does call: this test sees what it looks for.
    run install --payout x
    [ -e "$root/tmp/called" ]
}

@test "cut off at a hundred places, bash and busybox do nothing either" {
    for name in curl wget systemctl; do command_in "$name" <<<'#!/bin/sh
echo "$0 $*" >>/tmp/called'; done
    bytes=$(wc -c <"$root/install.sh")
    for shell in bash "busybox sh"; do
        # shellcheck disable=SC2016
        run inside owner sh -c 'place=1
            while [ $place -le 100 ]; do
                head -c $((('"$bytes"' - 2) * place / 100)) /install.sh | '"$shell"' -s -- --payout x >/dev/null 2>&1
                place=$((place + 1))
            done'
        [ "$status" = 0 ] || { echo "$output" && false; }
    done
    [ ! -e "$root/tmp/called" ]
    [ "$(picture /home)" = "$(cd "$SKEIN_TEST_ROOT/home" && root=$SKEIN_TEST_ROOT picture /home)" ]
}

@test "the stamp writes address and keys, once, and refuses what is neither" {
    stamp() { "$installer/stamp" "$1" "$2" "$BATS_TEST_TMPDIR/out"; }
    run -0 stamp https://example.org/skein "$files/trusted"
    first=$(cat "$files/keys/first.hex") second=$(cat "$files/keys/second.hex")
    grep -qx "SKEIN_URL_DEFAULT='https://example.org/skein'" "$BATS_TEST_TMPDIR/out/install.sh"
    grep -qx "RELEASE_KEYS='$first $second'" "$BATS_TEST_TMPDIR/out/install.sh"
    grep -qxF "\$ReleaseKeys = '$first $second'" "$BATS_TEST_TMPDIR/out/install.ps1"
    # Nothing else changes.
    [ "$(diff "$installer/install.sh" "$BATS_TEST_TMPDIR/out/install.sh" | grep -c '^>')" = 2 ]
    [ "$(diff "$installer/install.ps1" "$BATS_TEST_TMPDIR/out/install.ps1" | grep -c '^>')" = 2 ]
    rm -r "$BATS_TEST_TMPDIR/out"
    for address in http://example.org 'https://example.org/$(id)' "https://example.org/'x" ftp://x ''; do
        run stamp "$address" "$files/trusted"
        [ "$status" = 1 ]
        says "hint: "
    done
    for keys in '' '# none' "$first$first" "${first%?}" "${first%?}G" "$first '; id; '"; do
        echo "$keys" >"$BATS_TEST_TMPDIR/keys"
        run stamp https://example.org "$BATS_TEST_TMPDIR/keys"
        [ "$status" = 1 ]
        says "hint: "
    done
    [ ! -e "$BATS_TEST_TMPDIR/out" ] || [ -z "$(ls "$BATS_TEST_TMPDIR/out")" ]
}

@test "systemd knows every line of the units, and calls the system's protected" {
    for unit in skein.service skein-user.service; do
        user=$([ "$unit" = skein.service ] || echo --user)
        # It wants a program that exists, and a directory of its own.
        sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$installer/../packaging/systemd/$unit" >"$BATS_TEST_TMPDIR/$unit"
        # shellcheck disable=SC2086 # None, or one word.
        XDG_RUNTIME_DIR=$BATS_TEST_TMPDIR run systemd-analyze verify $user "$BATS_TEST_TMPDIR/$unit"
        # Two are for later systemds than Debian 12's.
        output=$(grep -v -e RestartSteps -e RestartMaxDelaySec <<<"$output" || true)
        [ -z "$output" ] || { echo "$output" && false; }
    done
    score=$(systemd-analyze security --offline=true --no-pager "$BATS_TEST_TMPDIR/skein.service" | sed -n 's/.*exposure level.*: \([0-9]*\)\.[0-9] .*/\1/p')
    [ "$score" -le 2 ]
    # What the GPU needs, and what a game would be noticed by.
    systemd-analyze security --offline=true --no-pager "$BATS_TEST_TMPDIR/skein.service" >"$BATS_TEST_TMPDIR/score"
    for open in PrivateDevices= MemoryDenyWriteExecute= ProtectProc= PrivateUsers=; do grep -q "✗ $open" "$BATS_TEST_TMPDIR/score"; done
}

@test "the tasks of install.ps1 obey the owner, know where the data are, and are asked before they are ended" {
    # No PowerShell here: what its text says.
    script=$installer/install.ps1
    grep -qF "Set-Task 'Skein' \$(if (\$Headless) { \"up --headless \$place\" } else { \"up \$place\" })" "$script"
    grep -qF "Set-Task 'Skein tray' \"tray \$place\"" "$script"
    grep -qF '<Arguments>$(& $escape $Arguments)</Arguments>' "$script"
    stop=$(sed -n '/function Stop-Agent/,/^    }/p' "$script")
    [ "$(grep -n "'down'" <<<"$stop" | cut -d: -f1)" -lt "$(grep -n "'/End'" <<<"$stop" | cut -d: -f1)" ]
    # Removed only after the wait that ends Stop-Agent.
    remove=$(sed -n '/function Remove-Skein/,/^    }/p' "$script")
    [ "$(grep -n Stop-Agent <<<"$remove" | cut -d: -f1)" -lt "$(grep -n 'Remove-Item' <<<"$remove" | head -n 1 | cut -d: -f1)" ]
    [[ $stop == *"Stop-Process -Force"* ]]
}
