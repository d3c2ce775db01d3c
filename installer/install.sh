#!/bin/sh
# Installs, upgrades or removes the Skein agent on Linux and macOS; `--help` says how.
#
# It installs only what a release key has signed, never by halves, and asks for root only if given --system.
# All that it does is in functions, called on the last line: a copy that was cut off does nothing.
# Needs a POSIX shell, curl or wget, tar, gzip, awk, and OpenSSL 3 or OpenSSH 8.1 for the signature.
# shellcheck disable=SC2015 # `this && that || fail`: what follows || is meant for both.

# A release is stamped by replacing these two lines: `installer/stamp` does it.
SKEIN_URL_DEFAULT=
RELEASE_KEYS=

usage() {
    cat <<'END'
Installs the Skein agent: curl -fsSL URL/install.sh | sh -s -- [OPTIONS]

  --version V      this version, even if it is older than the installed one
  --channel NAME   newest of this channel, which later updates follow as well [default: stable]
  --headless       nobody sits at this machine: no tray icon, no rule about an owner's use; kept when this is run again
  --attended       somebody does, after an earlier --headless
  --payout ADDR    where earnings go; kept in config.toml of the data directory
  --owner HEX      obey the owner of this key from afar, as `skein fleet key` prints it; kept there too
  --no-start       install only
  --file ARCHIVE   install this archive, without a network; manifest.json and its signatures lie beside it
  --system         for the whole machine, as root, with a user of its own. It is for machines at which nobody sits: always
                   headless, no rule about an owner's use holds there. On a desktop use install.sh without --system
  --prefix DIR     program in DIR/bin [default: where it is, else ~/.local, with --system /usr/local; also by PREFIX]
  --uninstall      remove program and service; the key, the log and all data stay
  --purge          with --uninstall: remove the data too, after asking
  --yes            do not ask
  --help           this text

SKEIN_URL is where releases are fetched from, SKEIN_DATA_DIR where data are kept [default: where they are].
END
}

say() { printf '%s\n' "$*" >&2; }

# fail WHAT HINT
fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

need() { have "$1" || fail "$1 is needed and not here" "install it with your system's package manager, then run this again"; }

# The value of an option that needs one.
value() { [ "$2" -ge 2 ] || fail "$1 needs a value" "see --help"; }

# only CHARACTERS TEXT: whether the text is not empty and has only these.
only() {
    case $2 in
    '' | *[!$1]*) return 1 ;;
    esac
}

read_options() {
    version='' channel=stable follow='' headless='' payout='' owner='' start=yes file='' system='' prefix=${PREFIX:-}
    attended='' uninstall='' purge='' yes=''
    while [ $# -gt 0 ]; do
        case $1 in
        --version) value "$1" $# && version=${2#v} && shift ;;
        --channel) value "$1" $# && channel=$2 follow=yes && shift ;;
        --payout) value "$1" $# && payout=$2 && shift ;;
        --owner) value "$1" $# && owner=$2 && shift ;;
        --file) value "$1" $# && file=$2 && shift ;;
        --prefix) value "$1" $# && prefix=$2 && shift ;;
        --headless) headless=yes ;;
        --attended) attended=yes ;;
        --no-start) start='' ;;
        --system) system=yes ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        --yes) yes=yes ;;
        --help | -h) usage && exit 0 ;;
        *) fail "there is no option $1" "see --help" ;;
        esac
        shift
    done
    [ -z "$version" ] || only 0-9A-Za-z.+- "$version" || fail "--version $version is not a version" "such as --version 0.2.0"
    only a-z0-9- "$channel" || fail "--channel $channel is not a channel" "stable or beta"
    if [ -n "$payout" ]; then
        only 0-9A-Za-z:._@- "$payout" && [ ${#payout} -le 128 ] ||
            fail "--payout is not an address: at most 128 of the characters A-Z a-z 0-9 : . _ @ -" "copy it again"
    fi
    if [ -n "$owner" ]; then
        only 0-9A-Fa-f "$owner" && [ ${#owner} -eq 64 ] ||
            fail "--owner is not a key: 64 hexadecimal digits" "'skein fleet key' on the owner's machine prints it"
    fi
    [ -z "$headless" ] || [ -z "$attended" ] || fail "--headless and --attended exclude each other" "does anybody sit at this machine?"
    [ -z "$system" ] || [ -z "$attended" ] || fail "--system is always headless" "leave out --system to install for whoever sits at this machine"
    [ -z "$purge" ] || [ -n "$uninstall" ] || fail "--purge goes with --uninstall" "sh install.sh --uninstall --purge"
}

# plain WHAT PATH: an absolute path that can be written into a unit, a desktop entry and a property list.
plain() {
    case $2 in
    /*) ;;
    *) fail "$1 is '$2', which is not an absolute path" "give a path that begins with /" ;;
    esac
    case $2 in
    *[[:cntrl:]\\]*) fail "$1 has a backslash or a control character in it: '$2'" "choose another place by --prefix or SKEIN_DATA_DIR" ;;
    esac
}

find_places() {
    os=$(uname -s)
    case $os in
    Linux | Darwin) ;;
    MINGW* | MSYS* | CYGWIN*) fail "this is Windows" "in PowerShell: irm URL/install.ps1 | iex" ;;
    *) fail "there is no Skein for $os" "it runs on Linux, macOS and Windows" ;;
    esac
    home=${HOME:-}
    [ -n "$system" ] || plain HOME "$home"
    config=${XDG_CONFIG_HOME:-$home/.config}
    # Where the agent looks by itself: only of another place is it told.
    usual_data=$home/.local/share/skein
    data=${SKEIN_DATA_DIR:-}
    usual_prefix=$home/.local
    if [ -n "$system" ]; then
        [ "$os" = Linux ] || fail "--system is for Linux" "on macOS the agent runs for a user: leave out --system"
        [ "$(id -u)" = 0 ] || fail "--system needs root" "curl -fsSL URL/install.sh | sudo sh -s -- --system"
        data=/var/lib/skein
        usual_prefix=/usr/local
        for packaged in /usr/lib/systemd/system/skein.service /lib/systemd/system/skein.service; do
            [ ! -e "$packaged" ] || [ -n "$uninstall" ] ||
                fail "a package has installed Skein on this machine ($packaged)" "upgrade it with your package manager, or remove the package first"
        done
    fi
    if [ "$os" = Darwin ]; then
        unit=$home/Library/LaunchAgents/skein.agent.plist
        tray=$home/Library/LaunchAgents/skein.tray.plist
    elif [ -n "$system" ]; then
        # The tray of a desktop's user may not read the data of the user `skein`.
        unit=/etc/systemd/system/skein.service tray=''
    else
        unit=$config/systemd/user/skein.service
        tray=$config/autostart/skein-tray.desktop
    fi
    keep_places
    prefix=${prefix:-$usual_prefix}
    data=${data:-${XDG_DATA_HOME:-$home/.local/share}/skein}
    if [ -n "$system" ]; then
        case $prefix/ in
        /home/* | /root/* | /run/user/* | /tmp/* | /var/tmp/*) fail "the service cannot see $prefix: its unit hides homes and temporary directories" "leave out --prefix, or choose one such as /opt/skein" ;;
        esac
    fi
    prefix=${prefix%/}
    plain --prefix "$prefix/"
    plain "the data directory" "$data"
    bin=$prefix/bin
    docs=$prefix/share/doc/skein
    program=$bin/skein
    stage=$bin/.skein-install
}

# Where the installation before has its program and its data, as far as --prefix and SKEIN_DATA_DIR do not say: as the
# unit, the property list or else the autostart entry tells. Elsewhere would be another agent, without this one's key.
keep_places() {
    kept_program='' kept_data=''
    if [ "$os" = Darwin ]; then
        [ ! -f "$unit" ] || read_property_list
    elif [ -f "$unit" ]; then
        read_unit
    elif [ -n "$tray" ] && [ -f "$tray" ]; then
        read_tray_entry
    fi
    if [ -z "$prefix" ] && [ -n "$kept_program" ]; then
        # A package's program, and one that somebody has built, are not this script's to replace.
        before=${kept_program%bin/skein}
        if [ "$kept_program" = "${before}bin/skein" ] && [ -f "${before}share/doc/skein/LICENSES-OF-DEPENDENCIES.txt" ]; then
            prefix=$before
            [ "$prefix" = "$usual_prefix/" ] ||
                say "kept from the installation before: the program in ${prefix}bin; --prefix chooses another place"
        elif [ "$kept_program" != "$usual_prefix/bin/skein" ]; then
            say "the service runs $kept_program, which install.sh has not put there: that is left, and no longer run"
        fi
    fi
    # Told of no place, the agent looked there, unless XDG_DATA_HOME was everywhere the same.
    [ -n "$kept_data" ] || [ -z "$kept_program" ] || [ ! -e "$usual_data/identity.key" ] || kept_data=$usual_data
    if [ -z "$data" ] && [ -n "$kept_data" ]; then
        data=$kept_data
        [ "$data" = "$usual_data" ] || say "kept from the installation before: the data in $data; SKEIN_DATA_DIR chooses another place"
    fi
}

# A unit as this script or `skein service install` has written it, and what a drop-in says of the data.
read_unit() {
    kept_program=$(sed -nE -e 's/^ExecStart="(([^"\\]|\\")*)" up( .*)?$/\1/p' -e 's/^ExecStart=([^" ]+) up( .*)?$/\1/p' "$unit" |
        tail -n 1 | sed 's/\\"/"/g; s/\$\$/$/g')
    kept_data=$(cat "$unit" "$unit.d"/*.conf 2>/dev/null |
        sed -nE -e 's/^Environment=(.* )?"SKEIN_DATA_DIR=(([^"\\]|\\")*)".*/\2/p' -e 's/^Environment=(.* )?SKEIN_DATA_DIR=([^" ]+).*/\2/p' |
        tail -n 1 | sed 's/\\"/"/g')
    kept_program=$(specified "$kept_program")
    kept_data=$(specified "$kept_data")
}

# specified PATH: with systemd's specifiers replaced.
specified() {
    case $1 in
    %h/*) printf '%s/' "$home" ;;
    esac
    printf '%s\n' "${1#%h/}" | sed 's/%%/%/g'
}

read_tray_entry() {
    path='([^"\\]|\\\\.)*'
    kept_program=$(sed -nE 's/^Exec="('"$path"')" tray( .*)?$/\1/p' "$tray" | head -n 1 | unquoted)
    kept_data=$(sed -nE 's/^Exec="'"$path"'" tray --data-dir "('"$path"')"$/\2/p' "$tray" | head -n 1 | unquoted)
}

read_property_list() {
    kept_program=$(sed -n '/<key>ProgramArguments</,/<\/array>/s|.*<string>\(.*\)</string>.*|\1|p' "$unit" | head -n 1 | unescaped)
    kept_data=$(sed -n '/<key>SKEIN_DATA_DIR</{n;s|.*<string>\(.*\)</string>.*|\1|p;}' "$unit" | unescaped)
}

find_target() {
    machine=$(uname -m)
    if [ "$os" = Darwin ]; then
        # A shell under Rosetta says x86_64 on Apple's own processors.
        [ "$(sysctl -n sysctl.proc_translated 2>/dev/null || true)" != 1 ] || machine=arm64
    fi
    case $machine in
    x86_64 | amd64) machine=x86_64 ;;
    aarch64 | arm64) machine=aarch64 ;;
    *) fail "there is no Skein for the processor '$machine'" "it runs on x86_64 and aarch64" ;;
    esac
    if [ "$os" = Darwin ]; then
        target=$machine-apple-darwin
        return
    fi
    target=$machine-unknown-linux-gnu
    [ "$(getconf LONG_BIT 2>/dev/null || echo 64)" = 64 ] ||
        fail "this system is 32-bit, although its processor is not" "install a 64-bit system"
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1 || true)
    case $libc in
    *musl*) fail "this system's C library is musl" "Skein needs glibc 2.31 or later, as GPU drivers do; run it on Debian, Ubuntu, Fedora or Arch, or in a container of one" ;;
    esac
    # "glibc 2.36", or the last word of the first line of ldd's.
    libc=$(printf '%s\n' "$libc" | sed -n '1s/.*[^0-9.]\([0-9][0-9]*\.[0-9][0-9]*\)$/\1/p')
    only 0-9. "$libc" || fail "cannot tell this system's C library" "Skein needs glibc 2.31 or later; is getconf or ldd installed?"
    older "$libc.0" 2.31.0 || return 0
    fail "this system's glibc is $libc, too old" "Skein needs 2.31 or later: Debian 11, Ubuntu 20.04, Fedora 32 or newer"
}

# older A B: whether version A comes before B, as semver.org orders them.
older() {
    awk -v a="$1" -v b="$2" '
        function number(text) { return text ~ /^[0-9]+$/ }
        function order(x, y) { return x < y ? -1 : x > y }
        # By identifiers: numbers as numbers, before words; the shorter one first.
        function compare(x, y,   i, n, m, p, q, c) {
            n = split(x, p, "."); m = split(y, q, ".")
            for (i = 1; i <= n && i <= m; i++) {
                if (number(p[i]) && number(q[i])) c = order(p[i] + 0, q[i] + 0)
                else if (number(p[i]) != number(q[i])) c = number(p[i]) ? -1 : 1
                else c = order(p[i] "", q[i] "")
                if (c) return c
            }
            return order(n, m)
        }
        BEGIN {
            sub(/[+].*/, "", a); sub(/[+].*/, "", b)
            before_a = a; sub(/^[^-]*-?/, "", before_a); sub(/-.*/, "", a)
            before_b = b; sub(/^[^-]*-?/, "", before_b); sub(/-.*/, "", b)
            c = compare(a, b)
            # 1.0.0-beta comes before 1.0.0.
            if (!c && before_a != before_b) c = before_a == "" ? 1 : before_b == "" ? -1 : compare(before_a, before_b)
            exit c < 0 ? 0 : 1
        }'
}

# bytes_of HEX: those bytes.
bytes_of() {
    # shellcheck disable=SC2046,SC2059 # The inner printf makes one octal escape of each word; they are the outer's format.
    printf "$(printf '\\%03o' $(printf '%s' "$1" | sed 's/../0x& /g'))"
}

sha256() {
    if have sha256sum; then
        sha256sum <"$1" | cut -c 1-64
    elif have shasum; then
        shasum -a 256 <"$1" | cut -c 1-64
    elif have openssl; then
        openssl dgst -sha256 -r <"$1" | cut -c 1-64
    else
        fail "there is nothing here that computes SHA-256" "install coreutils (sha256sum) or openssl"
    fi
}

size_of() { wc -c <"$1" | tr -d ' '; }

# fetch URL FILE BYTES_MAX WHAT
fetch() {
    case $1 in
    https://*) protocol='=https' ;;
    http://*) protocol='=http,https' ;;
    *) fail "SKEIN_URL is '$base', which is not a web address" "set it to something like https://example.org/skein" ;;
    esac
    words=$(
        # In blocks of 512 bytes: whatever the server sends, the disk does not fill.
        ulimit -f $(($3 / 512 + 8)) 2>/dev/null
        if have curl; then
            exec curl -fsSL --proto "$protocol" --tlsv1.2 --connect-timeout 20 --speed-limit 500 --speed-time 60 \
                --retry 3 --max-redirs 5 -o "$2" "$1" 2>&1
        elif wget --version 2>/dev/null | grep -q 'GNU Wget'; then
            exec wget -nv --tries 3 --timeout 60 --max-redirect 5 -O "$2" "$1" 2>&1
        else
            # Busybox: some builds crash at an option for the time; it gives up by itself.
            exec wget -q -O "$2" "$1" 2>&1
        fi
    ) || {
        [ -z "$words" ] || say "$words"
        fail "cannot fetch $4 from $1" "is the network up, the address right and the disk not full? Then run this again"
    }
}

# Puts a manifest and its signatures into the stage, as manifest.json, .sig and .sshsig.
get_manifest() {
    if [ -n "$file" ]; then
        [ -f "$file" ] || fail "there is no file $file" "give --file the archive of a release"
        beside=$(dirname -- "$file")/manifest.json
        [ -f "$beside" ] || fail "there is no $beside" "copy manifest.json, manifest.json.sig and manifest.json.sshsig of the release beside the archive"
        for end in '' .sig .sshsig; do
            [ ! -f "$beside$end" ] || head -c 1048576 "$beside$end" >"$stage/manifest.json$end" || cannot_write "$stage"
        done
        return
    fi
    have curl || have wget || fail "neither curl nor wget is here" "install one of them, or give --file an archive"
    from=$base/$channel.json
    [ -z "$version" ] || from=$base/$version/manifest.json
    say "fetching $from"
    fetch "$from" "$stage/manifest.json" 1048576 "what the release holds"
    fetch "$from.$1" "$stage/manifest.json.$1" 65536 "the signature"
}

# The way to check a signature that this machine has: sig (OpenSSL 3) or sshsig (OpenSSH 8.1).
find_verifier() {
    case $(openssl version 2>/dev/null) in
    'OpenSSL '[3-9].* | 'OpenSSL '[1-9][0-9]*.*)
        verifier=sig
        return
        ;;
    esac
    # An old ssh-keygen has no -Y; one that has it asks for what is missing.
    if have ssh-keygen && ! ssh-keygen -Y verify 2>&1 | grep -qiE 'unknown option|illegal option|usage:.*keygen \[-q\]'; then
        have base64 || have openssl || fail "base64 is needed and not here" "install coreutils"
        verifier=sshsig
        return
    fi
    fail "nothing here can check the release's signature" "install openssl (3 or later) or openssh-client (8.1 or later), then run this again"
}

key_id() {
    bytes_of "$1" >"$stage/key"
    sha256 "$stage/key" | cut -c 1-16
}

# Ends the script unless a release key has signed exactly the manifest in the stage.
verify_manifest() {
    manifest=$stage/manifest.json
    [ -s "$manifest.$verifier" ] || fail "the release has no signature ($manifest.$verifier)" "fetch the release again, all of it"
    known='' signed=''
    if [ "$verifier" = sig ]; then
        while read -r scheme id signature || [ -n "$scheme" ]; do
            [ "$scheme" = ed25519 ] || continue
            for key in $RELEASE_KEYS; do
                [ "$(key_id "$key")" = "$id" ] || continue
                known=yes
                # An ed25519 key as X.509 has it: a fixed head, then the 32 bytes.
                bytes_of "302a300506032b6570032100$key" >"$stage/key"
                printf '%s' "$signature" | openssl base64 -d -A >"$stage/signature" 2>/dev/null || continue
                if openssl pkeyutl -verify -pubin -keyform DER -inkey "$stage/key" -rawin -in "$manifest" \
                    -sigfile "$stage/signature" >/dev/null 2>&1; then
                    signed=$id
                fi
            done
        done <"$manifest.sig"
    else
        for key in $RELEASE_KEYS; do
            # The key as OpenSSH has it: the lengths and the name of the kind, then the length and the 32 bytes.
            printf 'skein-release namespaces="skein-release" ssh-ed25519 '
            bytes_of "0000000b7373682d6564323535313900000020$key" | if have base64; then base64; else openssl base64; fi | tr -d '\n'
            echo
        done >"$stage/signers"
        if ssh-keygen -Y verify -f "$stage/signers" -I skein-release -n skein-release -s "$manifest.sshsig" \
            <"$manifest" >"$stage/words" 2>&1; then
            signed=$(sed -n 's/.* key //p' "$stage/words")
        elif ssh-keygen -Y find-principals -f "$stage/signers" -s "$manifest.sshsig" >/dev/null 2>&1; then
            known=yes
        fi
    fi
    if [ -n "$signed" ]; then
        say "signed by the release key $signed"
    elif [ -n "$known" ]; then
        fail "the release is not what was signed: its signature does not verify" "nothing was installed. Try again; if it stays so, tell the makers, as somebody may have changed the files"
    else
        fail "the release is signed by no key that this installer trusts" "nothing was installed. Fetch install.sh anew from where you trust it; if it stays so, tell the makers"
    fi
}

# Reads what to install from the manifest, which has been verified.
read_manifest() {
    found=$(sed -n '1s|^{"schema":"skein-release/1","version":"\([0-9A-Za-z.+-]*\)",.*|\1|p' "$manifest")
    [ -n "$found" ] || fail "the release's manifest is of a kind that this installer does not know" "fetch install.sh anew and run that"
    [ -z "$version" ] || [ "$version" = "$found" ] || fail "version $version was asked for and $found came" "tell the makers"
    version=$found
    name=skein-$version-$target
    line=$(grep -F "{\"name\":\"$name.tar.gz\",\"target\":\"$target\",\"kind\":\"archive\"," "$manifest") ||
        fail "skein $version has not been built for $target" "choose another by --version, or build it from source"
    bytes=$(printf '%s\n' "$line" | sed -n 's|.*,"bytes":\([0-9]*\),.*|\1|p')
    digest=$(printf '%s\n' "$line" | sed -n 's|.*,"sha256":"\([0-9a-f]*\)"}.*|\1|p')
    only 0-9 "$bytes" && [ ${#bytes} -le 10 ] && [ ${#digest} = 64 ] ||
        fail "the release's manifest has a line that this installer cannot read: $line" "fetch install.sh anew and run that"
}

refuse_downgrade() {
    installed=''
    if [ -x "$program" ]; then
        installed=$("$program" --version 2>/dev/null | sed -n '1s/^skein \([0-9][0-9A-Za-z.+-]*\).*/\1/p') || true
    fi
    [ -n "$installed" ] || return 0
    if older "$version" "$installed" && [ -z "$asked" ]; then
        fail "skein $installed is installed, and ${file:-the channel $channel} has the older $version" "if you do want the older one: --version $version"
    fi
}

cannot_write() { fail "cannot write to $1" "is it yours, writable, and the disk not full? --prefix DIR chooses another place"; }

get_archive() {
    archive=$stage/archive.tar.gz
    free=$(df -Pk "$stage" | awk 'NR == 2 { print $4 }')
    if only 0-9 "$free" && [ "$free" -lt $((bytes * 4 / 1024 + 1)) ]; then
        fail "the disk with $bin has $free KiB left, and skein $version needs $((bytes * 4 / 1024 + 1))" "make room, or choose another place by --prefix"
    fi
    if [ -n "$file" ]; then
        # No longer than it should be, whatever the file is.
        head -c $((bytes + 1)) "$file" >"$archive" || cannot_write "$stage"
    else
        say "fetching skein $version for $target, $((bytes / 1024)) KiB"
        fetch "$base/$version/$name.tar.gz" "$archive" "$bytes" "the program"
    fi
    came=$(size_of "$archive")
    [ "$came" = "$bytes" ] || fail "the archive is $came bytes long and should be $bytes: it was cut off or changed" "nothing was installed. Run this again"
    [ "$(sha256 "$archive")" = "$digest" ] || fail "the archive is not the one that was signed: its SHA-256 is wrong" "nothing was installed. Run this again; if it stays so, tell the makers"
    mkdir "$stage/tree" && tar -xzof "$archive" -C "$stage/tree" || fail "cannot unpack the archive" "are tar and gzip installed, and is the disk not full?"
    tree=$stage/tree/$name
    [ -f "$tree/skein" ] && [ ! -h "$tree/skein" ] || fail "the archive has no program in it" "tell the makers"
    chmod 755 "$tree/skein"
    if ! words=$("$tree/skein" --version 2>&1); then
        say "$words"
        fail "the new program does not run on this machine" "nothing was installed. Is $bin on a file system mounted noexec? Else tell the makers the line above"
    fi
    case $words in
    "skein $version" | "skein $version"[!0-9A-Za-z.+-]*) ;;
    *) fail "the new program says it is '$words', not 'skein $version'" "nothing was installed. Tell the makers" ;;
    esac
}

# make_dir DIR [MODE]: with all above it; what was made is unmade if the installation fails.
make_dir() {
    [ ! -d "$1" ] || return 0
    make_dir "$(dirname -- "$1")"
    mkdir "$1" 2>/dev/null || cannot_write "$1"
    [ -z "${2:-}" ] || chmod "$2" "$1"
    made="$1
$made"
}

# prepare PATH MODE <TEXT: as it will be at PATH, beside it. `commit` renames it. Never behind a pipe, where what it
# notes for cleaning up would be lost.
prepare() {
    make_dir "$(dirname -- "$1")"
    beside=$(dirname -- "$1")/.$(basename -- "$1").skein-new
    prepared="$prepared$1
"
    { cat >"$beside" && chmod "$2" "$beside"; } 2>/dev/null || cannot_write "$1"
}

# The texts below are packaging/systemd/*.service and packaging/desktop/*.desktop without their comments, which say why.

system_unit() {
    cat <<'END'
[Unit]
Description=Skein agent: lends this machine's GPU to the network
Documentation=man:systemd.exec(5)
After=network.target systemd-modules-load.service nvidia-persistenced.service
StartLimitIntervalSec=30min
StartLimitBurst=20

[Service]
Type=exec
User=skein
Group=skein
ExecStart=/usr/bin/skein up --headless
StateDirectory=skein
StateDirectoryMode=0700
CacheDirectory=skein
CacheDirectoryMode=0700
WorkingDirectory=/var/lib/skein
Environment=SKEIN_DATA_DIR=/var/lib/skein XDG_CACHE_HOME=/var/cache/skein
UMask=0077

Restart=on-failure
RestartSec=5s
RestartSteps=6
RestartMaxDelaySec=2min
KillMode=mixed
TimeoutStopSec=10s

Nice=5
CPUWeight=20
IOSchedulingClass=idle
IOWeight=10
OOMScoreAdjust=800
OOMPolicy=continue
LimitNOFILE=16384
LimitCORE=0

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictNamespaces=yes
KeyringMode=private
RemoveIPC=yes

ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes

PrivateDevices=no
DevicePolicy=closed
DeviceAllow=char-drm rw
DeviceAllow=char-kfd rw
DeviceAllow=char-nvidia* rw
MemoryDenyWriteExecute=no

RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@setuid @keyring
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
END
}

user_unit() {
    cat <<'END'
[Unit]
Description=Skein agent: lends this machine's idle GPU to the network
Documentation=man:systemd.exec(5)
StartLimitIntervalSec=30min
StartLimitBurst=20

[Service]
Type=exec
ExecStart=%h/.local/bin/skein up
UMask=0077

Restart=on-failure
RestartSec=5s
RestartSteps=6
RestartMaxDelaySec=2min
KillMode=mixed
TimeoutStopSec=10s

Nice=5
CPUWeight=20
IOSchedulingClass=idle
OOMScoreAdjust=800
OOMPolicy=continue
LimitCORE=0

NoNewPrivileges=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictNamespaces=yes
MemoryDenyWriteExecute=no
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
END
}

tray_entry() {
    cat <<'END'
[Desktop Entry]
Type=Application
Version=1.5
Name=Skein
Comment=Shows what the Skein agent does and pauses it
Exec=skein tray
Icon=skein
Terminal=false
NoDisplay=true
X-GNOME-Autostart-enabled=true
X-GNOME-Autostart-Delay=5
X-KDE-autostart-phase=2
END
}

# launch_agent NAME ARGUMENT...: packaging/launchd/NAME.plist for this program and this home.
launch_agent() {
    cat <<END
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
    <key>Label</key>
    <string>$1</string>
    <key>ProgramArguments</key>
    <array>
        <string>$(xml "$program")</string>
END
    label=$1 && shift
    for word in "$@"; do
        printf '        <string>%s</string>\n' "$word"
    done
    cat <<END
    </array>
    <key>RunAtLoad</key>
    <true/>
    <key>KeepAlive</key>
    <dict>
        <key>SuccessfulExit</key>
        <false/>
    </dict>
    <key>ThrottleInterval</key>
    <integer>15</integer>
    <key>ExitTimeOut</key>
    <integer>10</integer>
    <key>ProcessType</key>
    <string>Standard</string>
    <key>Nice</key>
    <integer>5</integer>
    <key>LowPriorityIO</key>
    <true/>
    <key>Umask</key>
    <integer>63</integer>
    <key>EnvironmentVariables</key>
    <dict>
        <key>SKEIN_DATA_DIR</key>
        <string>$(xml "$data")</string>
    </dict>
    <key>StandardErrorPath</key>
    <string>$(xml "$home/Library/Logs/$label.log")</string>
</dict>
</plist>
END
}

xml() { printf '%s' "$1" | sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g'; }
unescaped() { sed 's/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g'; }

# A path as a desktop entry has it between quotes, and back.
in_entry() { printf '%s' "$1" | sed 's/["`$]/\\\\&/g; s/%/%%/g'; }
unquoted() { sed 's/\\\\\(["`$]\)/\1/g; s/%%/%/g'; }

# A path as a shell reads it.
word() {
    case $1 in
    *[!0-9A-Za-z/._-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s' "$1" ;;
    esac
}

# A path as systemd reads it: quoted, with no specifier in it.
quoted() { printf '"%s"' "$(printf '%s' "$1" | sed 's/%/%%/g; s/"/\\"/g')"; }

# A rig stays a rig when the installer is run again for a newer version.
keep_headless() {
    [ -z "$headless$attended$system" ] || return 0
    # In a unit on one line, in a property list on lines of their own; without either, in the autostart entry.
    if [ -f "$unit" ]; then keeper=$unit; else keeper=$tray; fi
    if grep -qsE '^ExecStart=.* up --headless( |$)|<string>--headless</string>|^X-Skein-Headless=true$' "$keeper"; then
        headless=yes
        say "--headless is kept from the installation before; --attended ends it"
    fi
}

prepare_service() {
    keep_headless
    SKEIN_UP=up
    [ -z "$headless$system" ] || SKEIN_UP="up --headless"
    if [ "$os" = Darwin ]; then
        # shellcheck disable=SC2086 # two words
        launch_agent skein.agent $SKEIN_UP >"$stage/text" || cannot_write "$stage"
        prepare "$unit" 644 <"$stage/text"
        service=launchd
        return
    fi
    if ! have systemctl; then
        service=none
        return
    fi
    # `$` is for the environment's variables in a command, and for nothing elsewhere.
    SKEIN_EXEC=$(quoted "$program" | sed 's/\$/$$/g') SKEIN_ENVIRONMENT=''
    if [ -n "$system" ]; then
        make_user
        service=system
        [ "$program" != /usr/local/bin/skein ] || SKEIN_EXEC=$program
    else
        service=user
        [ "$program" != "$home/.local/bin/skein" ] || SKEIN_EXEC=%h/.local/bin/skein
        [ "$data" = "$usual_data" ] || SKEIN_ENVIRONMENT=Environment=$(quoted "SKEIN_DATA_DIR=$data")
    fi
    export SKEIN_EXEC SKEIN_ENVIRONMENT SKEIN_UP
    if [ "$service" = system ]; then system_unit; else user_unit; fi | awk '
        /^ExecStart=/ {
            print "ExecStart=" ENVIRON["SKEIN_EXEC"] " " ENVIRON["SKEIN_UP"]
            if (ENVIRON["SKEIN_ENVIRONMENT"] != "") print ENVIRON["SKEIN_ENVIRONMENT"]
            next
        }
        { print }' >"$stage/text" || cannot_write "$stage"
    prepare "$unit" 644 <"$stage/text"
}

make_user() {
    id skein >/dev/null 2>&1 && return
    if have useradd; then
        useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin skein
    else
        adduser -S -D -H -h "$data" -s /sbin/nologin skein
    fi || fail "cannot make the user skein" "make it yourself as a system user with the home $data, then run this again"
    # The groups that own the GPU's nodes, as far as this machine has them.
    for group in render video; do
        grep -q "^$group:" /etc/group || continue
        if have usermod; then usermod -a -G "$group" skein; else adduser skein "$group"; fi
    done
}

prepare_tray() {
    [ -n "$tray" ] || return 0
    if [ "$os" = Darwin ]; then
        [ -z "$headless" ] || return 0
        launch_agent skein.tray tray >"$stage/text" || cannot_write "$stage"
        prepare "$tray" 644 <"$stage/text"
        return
    fi
    # Without a systemd nothing else would tell the next installation what was chosen: hidden from desktops, it does.
    [ -z "$headless" ] || [ "$service" = none ] || return 0
    SKEIN_EXEC=$(in_entry "$program") SKEIN_PLACE='' SKEIN_HIDDEN=$headless
    [ "$data" = "$usual_data" ] || SKEIN_PLACE=$(in_entry "$data")
    export SKEIN_EXEC SKEIN_PLACE SKEIN_HIDDEN
    tray_entry | awk '
        /^Exec=/ {
            place = ENVIRON["SKEIN_PLACE"]
            print "Exec=\"" ENVIRON["SKEIN_EXEC"] "\" tray" (place == "" ? "" : " --data-dir \"" place "\"")
            if (ENVIRON["SKEIN_HIDDEN"] != "") print "Hidden=true\nX-Skein-Headless=true"
            next
        }
        { print }' >"$stage/text" || cannot_write "$stage"
    prepare "$tray" 644 <"$stage/text"
}

# The icons of the installed program, by process: this user's, also those of a version that has been replaced.
icons() {
    [ "$os" = Linux ] && [ -n "$tray" ] || return 0
    # As the kernel has it, whatever link leads to a home.
    real=$(cd -P -- "$bin" 2>/dev/null && pwd -P) || return 0
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" 2>/dev/null || true) in
        "${real%/}/skein" | "${real%/}/skein (deleted)") ;;
        *) continue ;;
        esac
        # The kernel ends words by a zero byte.
        [ "$(tr '\0' '\n' 2>/dev/null <"$process/cmdline" | sed -n 2p)" = tray ] || continue
        [ "$(sed -n 's/^Uid:[[:space:]]*\([0-9]*\).*/\1/p' "$process/status" 2>/dev/null)" = "$(id -u)" ] || continue
        echo "${process#/proc/}"
    done
}

# Sets `had_icon` if there was one, and waits for its end: beside it, another would leave at once.
end_icons() {
    had_icon=$(icons)
    [ -n "$had_icon" ] || return 0
    # shellcheck disable=SC2086 # Several.
    kill $had_icon 2>/dev/null || true
    tries=0
    while [ "$tries" -lt 50 ] && [ -n "$(icons)" ]; do
        tries=$((tries + 1))
        sleep 0.1 2>/dev/null || sleep 1
    done
}

# Shows the icon in this session; in those to come the desktop does, by the autostart entry. One that the agent started as
# a service would know no display.
start_icon() {
    [ "$os" = Linux ] && [ -n "$tray" ] && [ -n "$start" ] && [ -z "$headless" ] || return 0
    if [ -z "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
        [ -z "$had_icon" ] || say "The tray icon comes back at the next log-in."
        return 0
    fi
    if have setsid; then detach='setsid'; else detach='nohup'; fi
    "$detach" "$program" tray --data-dir "$data" </dev/null >/dev/null 2>&1 &
}

# config.toml with the address of --payout, the key of --owner and the name of --channel before all else, where no table
# has begun.
prepare_config() {
    given=
    [ -z "$payout" ] || given=payout
    [ -z "$owner" ] || given="${given:+$given|}owner"
    [ -z "$follow" ] || given="${given:+$given|}update_channel"
    [ -n "$given" ] || return 0
    if [ -n "$system" ]; then
        prepare_system_config
        return
    fi
    make_dir "$data" 700
    settings=$data/config.toml
    {
        settings_lines
        [ ! -e "$settings" ] ||
            awk -v given="^[ \t]*($given)[ \t]*=" '/^[ \t]*\[/ { table = 1 } table || $0 !~ given { print }' "$settings"
    } >"$stage/text" || cannot_write "$stage"
    prepare "$settings" 600 <"$stage/text"
}

settings_lines() {
    [ -z "$payout" ] || printf 'payout = "%s"\n' "$payout"
    [ -z "$owner" ] || printf 'owner = "%s"\n' "$owner"
    [ -z "$follow" ] || printf 'update_channel = "%s"\n' "$channel"
}

prepare_documents() {
    for document in LICENSE LICENSES-OF-DEPENDENCIES.txt README.md; do
        [ ! -f "$tree/$document" ] || prepare "$docs/$document" 644 <"$tree/$document"
    done
}

# as_skein COMMAND...: as the user of the machine's service. What lies below a directory of his is his to name: if root wrote
# there, a link could lead it anywhere.
as_skein() {
    if have runuser; then
        runuser -u skein -- "$@"
    else
        need setpriv
        setpriv --reuid skein --regid skein --init-groups "$@"
    fi
}

# The same for the machine's service, all of it by his hand.
prepare_system_config() {
    id skein >/dev/null 2>&1 || make_user
    make_dir "$data" 700
    # Itself only, by a name that root alone can change; nothing below it.
    chown -h skein: "$data"
    system_config=yes
    # shellcheck disable=SC2016 # For his shell.
    settings_lines | as_skein sh -c '
        umask 077
        cd "$1" || exit 1
        {
            cat
            [ ! -e config.toml ] || awk -v given="$2" "/^[ \t]*\[/ { table = 1 } table || \$0 !~ given { print }" config.toml
        } >.config.toml.skein-new' sh "$data" "^[ 	]*($given)[ 	]*=" || cannot_write "$data/config.toml"
}

# Everything is written by now; what remains are renames, the program's first.
commit() {
    trap '' HUP INT TERM
    if [ -e "$program" ]; then
        ln -f "$program" "$program.old" 2>/dev/null || cp -pf "$program" "$program.old" || cannot_write "$program.old"
    fi
    mv -f "$tree/skein" "$program" || cannot_write "$program"
    committed=yes
    printf '%s' "$prepared" | while IFS= read -r path; do
        mv -f "$(dirname -- "$path")/.$(basename -- "$path").skein-new" "$path" || cannot_write "$path"
    done || exit 1
    [ -z "$system_config" ] || as_skein mv -f "$data/.config.toml.skein-new" "$data/config.toml" || cannot_write "$data/config.toml"
    [ -z "$headless" ] || [ "$service" = none ] || [ -z "$tray" ] || rm -f "$tray"
    # A new program that an update had not proven yet is older than this one, or not asked for.
    rm -f "$program.new"
    trap 'exit 130' HUP INT TERM
}

# shellcheck disable=SC2317 # The trap calls it.
clean() {
    status=$?
    trap - EXIT
    if [ -n "${staged:-}" ]; then
        if [ -z "$committed" ]; then
            printf '%s' "$prepared" | while IFS= read -r path; do
                rm -f "$(dirname -- "$path")/.$(basename -- "$path").skein-new"
            done
            [ -z "$system_config" ] || as_skein rm -f "$data/.config.toml.skein-new"
        fi
        rm -rf "$stage"
        [ -n "$committed" ] || printf '%s' "$made" | while IFS= read -r path; do rmdir "$path" 2>/dev/null; done
    fi
    exit "$status"
}

# The directory for all that is not installed yet, on the file system of the program; also the lock.
make_stage() {
    made='' prepared='' committed='' system_config='' staged=yes
    trap clean EXIT
    trap 'exit 130' HUP INT TERM
    make_dir "$bin"
    if ! mkdir "$stage" 2>/dev/null; then
        [ -d "$stage" ] || cannot_write "$bin"
        other=$(cat "$stage/pid" 2>/dev/null || true)
        if only 0-9 "$other" && [ "$other" != $$ ] && { kill -0 "$other" 2>/dev/null || [ -d "/proc/$other" ]; }; then
            staged=''
            fail "another installation is at work (process $other)" "wait for it; if that process is something else, remove $stage"
        fi
        { rm -rf "$stage" && mkdir "$stage"; } 2>/dev/null || cannot_write "$bin"
    fi
    { echo $$ >"$stage/pid"; } 2>/dev/null || cannot_write "$stage"
}

# systemctl for whoever the service belongs to.
manage() {
    if [ -n "$system" ]; then
        systemctl "$@"
    else
        # A shell by su or cron does not know where the user's manager listens.
        XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)} systemctl --user "$@"
    fi
}

# boot_out LABEL: `launchctl bootout` returns before launchd is done, and until then refuses to bootstrap the same again.
boot_out() {
    launchctl bootout "gui/$(id -u)/$1" 2>/dev/null || true
    tries=0
    while [ "$tries" -lt 20 ] && launchctl print "gui/$(id -u)/$1" >/dev/null 2>&1; do
        tries=$((tries + 1))
        sleep 1
    done
}

# bootstrap PLIST: tried again a few times, as launchd may be busy still.
bootstrap() {
    tries=0
    until words=$(launchctl bootstrap "gui/$(id -u)" "$1" 2>&1); do
        tries=$((tries + 1))
        if [ "$tries" -ge 5 ]; then
            say "$words"
            fail "launchd does not take $1" "is anybody logged in at this Mac? Then run this again"
        fi
        sleep 1
    done
}

# Starts the service, or says how. Sets `running` if it was started.
start_service() {
    running='' user='--user '
    [ -z "$system" ] || user=''
    case $service in
    none)
        by_hand=$(word "$program") place=''
        [ "$data" = "$usual_data" ] || place=" --data-dir $(word "$data")"
        say "This machine has no systemd: start the agent from whatever starts services here, or in a terminal:"
        say "  $by_hand $SKEIN_UP$place"
        [ -z "$installed" ] || say "If skein $installed is still running: $by_hand down$place, then start it again."
        ;;
    launchd)
        [ -n "$start" ] || { say "To start it: launchctl bootstrap gui/$(id -u) $unit" && return; }
        for plist in "$unit" "$tray"; do
            boot_out "$(basename "$plist" .plist)"
            [ ! -f "$plist" ] || bootstrap "$plist"
        done
        running=yes
        ;;
    *)
        if [ -z "$start" ]; then
            say "To start it: systemctl ${user}enable --now skein"
            [ -z "$installed" ] || manage daemon-reload 2>/dev/null || true
        elif [ ! -d /run/systemd/system ] || ! manage show-environment >/dev/null 2>&1; then
            say "systemd does not answer here, so the agent was not started. With systemd up and you logged in:"
            say "  systemctl ${user}enable --now skein"
        else
            manage daemon-reload && manage enable --quiet skein && manage restart skein ||
                fail "installed, but systemd could not start the agent" "systemctl ${user}status skein; then run this again"
            running=yes
            if [ "$service" = user ] && [ -z "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] &&
                [ "$(loginctl show-user "$(id -un)" -p Linger --value 2>/dev/null || true)" = no ]; then
                say "The agent ends when you log out. To keep it: sudo loginctl enable-linger $(id -un)"
            fi
        fi
        ;;
    esac
}

show_status() {
    # One that something else has started may answer too.
    [ -n "$running" ] || { SKEIN_DATA_DIR=$data "$program" status 2>/dev/null || true; return; }
    tries=0
    until words=$(SKEIN_DATA_DIR=$data "$program" status 2>&1); do
        tries=$((tries + 1))
        if [ "$tries" -ge 30 ]; then
            say "$words"
            fail "skein $version is installed, but does not answer after $tries s" "$log_hint"
        fi
        sleep 1
    done
    printf '%s\n' "$words"
}

install() {
    [ -n "$RELEASE_KEYS" ] || fail "this copy of install.sh trusts no release key, so it can install nothing" "fetch the one that lies beside the releases: it has the keys in it"
    for key in $RELEASE_KEYS; do
        only 0-9a-f "$key" && [ ${#key} = 64 ] || fail "this copy of install.sh has a damaged release key" "fetch it again"
    done
    base=${SKEIN_URL:-$SKEIN_URL_DEFAULT}
    base=${base%/}
    [ -n "$base$file" ] || fail "this copy of install.sh does not know where releases are" "set SKEIN_URL, or give --file an archive"
    case $file in
    '' | /*) ;;
    *) file=$PWD/$file ;;
    esac
    asked=$version
    find_target
    for tool in awk sed tar gzip head; do need "$tool"; done
    make_stage
    find_verifier
    get_manifest "$verifier"
    verify_manifest
    read_manifest
    refuse_downgrade
    get_archive
    prepare_documents
    prepare_service
    prepare_tray
    prepare_config
    commit
    case $installed in
    '') say "installed skein $version: $program" ;;
    "$version") say "installed skein $version again: $program" ;;
    *) say "replaced skein $installed by $version: $program; the old one is $program.old" ;;
    esac
    if [ -n "$system" ]; then
        say "The machine's service is for machines at which nobody sits: no rule about an owner's use holds. On a desktop: install.sh without --system."
    elif [ "$(id -u)" = 0 ]; then
        say "This is root's own installation; one for the whole machine: --system"
    fi
    case ":$PATH:" in
    *":$bin:"*)
        first=$(command -v skein || true)
        [ "$first" = "$program" ] || say "Another program comes first in PATH: ${first:-none}"
        ;;
    *)
        say "$bin is not in PATH. To have it there, add this line to ~/.profile and log in again:"
        # shellcheck disable=SC2016 # The line is for another shell.
        if [ "$bin" = "$home/.local/bin" ]; then say '  export PATH="$HOME/.local/bin:$PATH"'; else say "  export PATH=\"$bin:\$PATH\""; fi
        ;;
    esac
    had_icon=''
    # With --no-start the agent of before goes on, and its icon with it.
    [ -z "$start" ] || end_icons
    start_service
    start_icon
    show_status
}

uninstall() {
    had=''
    for path in "$program" "$program.old" "$unit"; do [ ! -e "$path" ] || had=yes; done
    if [ "$os" = Darwin ]; then
        for label in skein.agent skein.tray; do boot_out "$label"; done
    elif [ -f "$unit" ] && have systemctl; then
        manage disable --now --quiet skein 2>/dev/null || say "systemd does not answer; its service is removed all the same"
        [ -n "$system" ] || rm -f "$config/systemd/user/default.target.wants/skein.service"
        [ -z "$system" ] || rm -f /etc/systemd/system/multi-user.target.wants/skein.service
    fi
    end_icons
    # One that no service has started.
    [ ! -x "$program" ] || [ ! -f "$data/agent.json" ] || SKEIN_DATA_DIR=$data "$program" down >/dev/null 2>&1 || true
    for path in "$program" "$program.old" "$program.new" "$unit" "$tray" \
        "$docs/LICENSE" "$docs/LICENSES-OF-DEPENDENCIES.txt" "$docs/README.md"; do
        [ -z "$path" ] || rm -f "$path" || fail "cannot remove $path" "is it yours? With --system this needs root"
    done
    rm -rf "$stage"
    rmdir "$docs" 2>/dev/null || true
    if [ "$os" = Linux ] && have systemctl; then manage daemon-reload 2>/dev/null || true; fi
    if [ -n "$had" ]; then say "removed skein from $bin"; else say "there was no skein in $bin"; fi
    if [ ! -d "$data" ]; then
        return
    elif [ -z "$purge" ]; then
        # What told where they are is gone with the service.
        place=''
        [ "$data" = "$usual_data" ] || [ -n "$system" ] || place=" with SKEIN_DATA_DIR=$(word "$data")"
        say "The key, the log and all data stay in $data; --uninstall --purge$place removes them too."
        return
    fi
    purge_data
}

purge_data() {
    # Only a directory that an agent has written, and never one that holds a home, by whatever name.
    real=$(cd -P -- "$data" && pwd -P) || fail "cannot look into $data" "is it yours? With --system this needs root"
    real_home=$(cd -P -- "${home:-/root}" 2>/dev/null && pwd -P) || real_home=$home
    case $real_home/ in
    "${real%/}"/*) fail "$data is no directory of Skein's alone" "it was left as it is; remove by hand what you do not need" ;;
    esac
    [ -e "$data/identity.key" ] || [ -e "$data/config.toml" ] || [ -d "$data/log" ] ||
        fail "$data does not look like an agent's data" "it was left as it is; remove it by hand if it is"
    if [ -z "$yes" ]; then
        # Standard input may be this script.
        { printf 'Remove %s with the key that earned and its log, for ever? Type yes: ' "$data" >/dev/tty && read -r answer </dev/tty; } 2>/dev/null ||
            fail "there is no terminal to ask at" "give --yes if the data in $data are to be removed; they were left as they are"
        [ "$answer" = yes ] || { say "The data stay in $data." && return; }
    fi
    rm -rf "$data" || fail "cannot remove all of $data" "is it yours? With --system this needs root"
    say "removed $data"
    if [ -n "$system" ]; then
        rm -rf /var/cache/skein
        userdel skein 2>/dev/null || deluser skein 2>/dev/null || true
    fi
}

main() {
    set -eu
    umask 022
    # Ranges of characters mean ASCII.
    export LC_ALL=C
    read_options "$@"
    find_places
    case $os$system in
    Darwin) log_hint="see $home/Library/Logs/skein.agent.log" ;;
    Linux) log_hint="journalctl --user -u skein -n 50" ;;
    *) log_hint="sudo journalctl -u skein -n 50" ;;
    esac
    if [ -n "$uninstall" ]; then uninstall; else install; fi
}

# Within braces, so that even this line does nothing if it was cut off. Nothing may read the script from standard input.
{ main "$@" </dev/null; exit; }
