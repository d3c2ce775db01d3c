# The script itself: cut off anywhere it does nothing, and what it carries agrees with packaging/.

load helpers
packaging=$installer/../packaging

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

@test "what runs without the owner's rules says so wherever somebody chooses it" {
    # As long as the machine's service is headless, and the user's is not.
    grep -q '^ExecStart=/usr/bin/skein up --headless$' "$packaging/systemd/skein.service"
    grep -q '^ExecStart=%h/.local/bin/skein up$' "$packaging/systemd/skein-user.service"
    sed -n '/^usage() {/,/^}/p' "$installer/install.sh" >"$BATS_TEST_TMPDIR/usage"
    sed -n '/^install() {/,/^}/p' "$installer/install.sh" >"$BATS_TEST_TMPDIR/printed"
    for text in "$packaging"/{systemd/skein.service,deb/control,deb/postinst,rpm/skein.spec} "$installer/README.md" "$BATS_TEST_TMPDIR"/{usage,printed}; do
        # Whatever line a word is on.
        words=$(tr -d '#`' <"$text" | tr -s ' \n' ' ')
        for promise in "machines at which nobody sits" "no rule about an owner's use holds" "On a desktop" "install.sh without --system"; do
            [[ $words == *"$promise"* ]] || { echo "$text does not say: $promise" && false; }
        done
        [[ $words != *"owner does not need"* && $words != *"idle GPU"* ]] || { echo "$text promises more" && false; }
    done
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

@test "skein service install starts anew what runs, and leaves the icon to the desktop" {
    # There is no systemd where its own tests run: what its text says.
    service=$installer/../agent/src/cmd/service_linux.rs
    install=$(sed -n '/^pub(crate) fn install(/,/^}/p' "$service" | grep -v '^ *//')
    in_order "$install" 'remove(&icon_entry()?)?' 'write(&icon_entry()?, &icon_text(' '"daemon-reload"' '"enable", "skein.service"' '"restart", "skein.service"'
    [[ $install != *--now* ]]
    in_order "$install" 'if system {' 'machines at which nobody sits' '} else {'
    in_order "$(sed -n '/^pub(crate) fn uninstall(/,/^}/p' "$service")" 'remove(&path)?' 'remove(&icon_entry()?)?'
    # What both write for a path that asks for the most.
    grep -qF 'path.replace('"'\`'"', r"\\`")' "$service"
}

# body NAME: a function of install.ps1, without comments.
body() { sed -n "/^    function $1[ (]/,/^    }/p" "$installer/install.ps1" | grep -v '^ *#'; }

# in_order TEXT WORDS...: whether these come one after the other.
in_order() {
    local text=$1 words
    shift
    for words in "$@"; do
        [[ $text == *"$words"* ]] || { echo "not there, or not in this order: $words" && return 1; }
        text=${text#*"$words"}
    done
}

@test "install.ps1 brings nobody back whom skein down has ended" {
    task=$(body Set-Task)
    in_order "$task" '<LogonTrigger><Enabled>true</Enabled><UserId>$user</UserId></LogonTrigger>' '<RestartOnFailure>'
    [[ $task != *"<Repetition>"* ]]
    # A task that its owner has changed or disabled is not made anew.
    in_order "$task" 'Get-Task $Name' '$task.Command -eq $program -and $task.Arguments -ceq $Arguments) { return }' "'/Create', '/F'"
    in_order "$(cat "$installer/install.ps1")" "if (-not (Invoke-Quietly schtasks.exe '/Run', '/TN', 'Skein'))" "/ENABLE" "return"
}

@test "install.ps1 keeps the data where they are, and asks the agent that has them" {
    in_order "$(body Get-KeptData)" "Get-Task 'Skein'" '--data-dir "([^"]*)"'
    # Read before the task is deleted.
    in_order "$(sed '1,/^    \[Net.ServicePointManager/d' "$installer/install.ps1")" '$kept = Get-KeptData' \
        'if ($env:SKEIN_DATA_DIR) { $env:SKEIN_DATA_DIR } elseif ($kept) { $kept } else { $usual }' \
        'kept from the installation before: the data in $data' 'if ($Uninstall) { Remove-Skein; return }' \
        '& $program status --data-dir $data'
    in_order "$(body Stop-Agent)" "'down', '--data-dir', \$data"
}

@test "install.ps1 starts the agent again if anything fails after it was stopped" {
    rest=$(sed '1,/^        # A program that runs can be renamed\|^        \$ran = /d' "$installer/install.ps1")
    in_order "$rest" 'try {' Stop-Agent 'Move-Item' Set-Config Set-UserPath "Set-Task 'Skein' " "Set-Task 'Skein tray'" \
        '} catch {' "if (\$ran) { foreach (\$task in 'Skein', 'Skein tray')" "'/Run'" 'throw' '} finally {'
}

@test "install.ps1 ends what runs under an update's names, and leaves the program of before where skein update --back looks" {
    in_order "$(body Get-Running)" "-Name 'skein*'" '.StartsWith("$bin\", '
    [ "$(body Stop-Agent | grep -c Get-Running)" = 1 ]
    script=$(grep -v '^ *#' "$installer/install.ps1")
    # As agent/update/src/swap.rs names them on Windows.
    in_order "$script" "\$old = Join-Path \$bin 'skein.old.exe'" 'Move-Item $program $old' "'skein.new.exe', 'skein.old-part.exe', 'skein.gone-*', 'skein.old'"
}

@test "install.ps1 repairs a damaged program, and needs no module of PowerShell's for archives" {
    script=$(grep -v '^ *#' "$installer/install.ps1")
    [[ $script != *Get-FileHash* && $script != *Expand-Archive* ]]
    in_order "$(body Get-Digest)" '[IO.File]::OpenRead($Path)' 'SHA256]::Create()' 'finally' 'Dispose'
    in_order "$script" '(Get-Digest $zip) -ne $archive[0].sha256' '[IO.Compression.ZipFile]::ExtractToDirectory($zip'
    # A program that does not start says nothing and has not succeeded, instead of ending the script.
    in_order "$(body Get-Words)" 'try {' '& $Program @Arguments' "catch { return '' }"
    in_order "$(body Invoke-Quietly)" 'try {' '& $Program @Arguments' 'catch { return $false }'
    [ "$(grep -cF -- '--version' <<<"$script")" = 2 ]
    [ "$(grep -cE "Get-Words .* '--version'" <<<"$script")" = 2 ]
}
