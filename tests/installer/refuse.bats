# What must not be installed, and machines on which it cannot be: each ends in an error for a person, and the home is as
# it was.

load helpers

sign() { "$here/sign" "$1" "$files/keys" "${@:2}"; }

@test "a copy that nobody has stamped trusts no key" {
    cp "$installer/install.sh" "$root/install.sh"
    run install
    refused "this copy of install.sh trusts no release key"
    run install --file /nowhere.tar.gz
    refused "trusts no release key"
}

@test "an archive with another content" {
    tampered
    # As long as before: one byte is another.
    printf 'X' | dd of="$archive" bs=1 seek=30000 conv=notrunc status=none
    run install
    refused "its SHA-256 is wrong"
    # Over an installed one, too: that stays.
    environment=("SKEIN_URL=$url/old")
    install
    before=$(picture /home)
    environment=("SKEIN_URL=$url/$BATS_TEST_NUMBER")
    run install
    refused "its SHA-256 is wrong"
    [ "$(program --version)" = "skein 0.1.0" ]
}

@test "an archive with another length" {
    tampered
    echo >>"$archive"
    run install
    refused "it was cut off or changed"
}

@test "an archive that never ends" {
    tampered
    touch "$archive.endless"
    run install
    refused "cannot fetch the program"
}

@test "a manifest that never ends" {
    tampered
    touch "$served/stable.json.endless"
    run install
    refused "cannot fetch what the release holds"
}

@test "downloads that were cut off: archive, manifest, signature" {
    tampered
    touch "$archive.cut"
    # curl tries again, waiting in between.
    sed -i 's/--retry 3/--retry 0/' "$root/install.sh"
    run install
    refused "cannot fetch the program"
    rm "$archive.cut"
    touch "$served/stable.json.cut"
    run install
    refused "cannot fetch what the release holds"
    rm "$served/stable.json.cut"
    touch "$served/stable.json.sig.cut"
    run install
    refused "cannot fetch the signature"
    # wget, and a server that does not say how much there is.
    without curl
    sed -i 's/--tries 3/--tries 1/' "$root/install.sh"
    run install
    refused "cannot fetch the signature"
    rm "$served/stable.json.sig.cut"
    truncate -s 20000 "$archive"
    run install
    refused "it was cut off or changed"
}

@test "a manifest that was changed after it was signed" {
    for tool in openssl ssh-keygen; do
        environment=()
        rm -rf "$files/www/$BATS_TEST_NUMBER"
        tampered
        sed -i 's/"bytes":/"bytes":1/' "$served/stable.json"
        run install
        refused "its signature does not verify"
        without "$tool"
        # The second time by the other tool.
    done
}

@test "a signature that was changed" {
    tampered
    # Another signature of the right length under the right key's name.
    awk '{ print $1, $2, "AAAA" substr($3, 5) }' "$served/stable.json.sig" >"$served/x" && mv "$served/x" "$served/stable.json.sig"
    run install
    refused "its signature does not verify"
    without openssl
    # Of something else, by the right key.
    echo "something else" >"$served/x" && sign "$served/x" first && mv "$served/x.sshsig" "$served/stable.json.sshsig"
    run install
    refused "its signature does not verify"
    # For something else than a release.
    ssh-keygen -q -Y sign -n file -f "$files/keys/first" <"$served/stable.json" >"$served/stable.json.sshsig" 2>/dev/null
    run install
    [ "$status" = 1 ]
}

@test "no signature, an empty one, and nonsense" {
    tampered
    : >"$served/stable.json.sig"
    run install
    refused "the release has no signature"
    echo "ed25519" >"$served/stable.json.sig"
    run install
    refused "signed by no key that this installer trusts"
    head -c 60000 /dev/urandom >"$served/stable.json.sig"
    run install
    refused "signed by no key"
    sed 's/ed25519/rsa/' "$files/www/new/stable.json.sig" >"$served/stable.json.sig"
    run install
    refused "signed by no key"
    rm "$served/stable.json.sig"
    run install
    refused "cannot fetch the signature"
}

@test "a key that this installer does not know" {
    tampered
    sign "$served/stable.json" stranger
    run install
    refused "signed by no key that this installer trusts"
    # Under a trusted key's name.
    id=$(sha256sum "$files/keys/first.raw" | cut -c 1-16)
    awk -v id="$id" '{ print $1, id, $3 }' "$served/stable.json.sig" >"$served/x" && mv "$served/x" "$served/stable.json.sig"
    run install
    refused "its signature does not verify"
    without openssl
    run install
    refused "signed by no key that this installer trusts"
}

@test "either of two keys is enough: the rotation's alone, or a stranger's besides" {
    tampered
    sign "$served/stable.json" second
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    sign "$served/stable.json" stranger second
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    sign "$served/stable.json" second
    without openssl
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    says "signed by the release key"
}

@test "OpenSSL 1.1 cannot check it, ssh-keygen does; with neither it is refused" {
    command_in openssl <<<'#!/bin/sh
[ "$1" != version ] || echo "OpenSSL 1.1.1w  11 Sep 2023"; [ "$1" = version ]'
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    before=$(picture /home)
    without ssh-keygen
    run install
    refused "nothing here can check the release's signature"
    says "openssh-client"
    without openssl
    run install
    refused "nothing here can check the release's signature"
    # One from before signatures.
    command_in ssh-keygen <<<'#!/bin/sh
echo "ssh-keygen: unknown option -- Y" >&2; exit 1'
    run install
    refused "nothing here can check the release's signature"
}

@test "without curl by wget; with neither it is refused" {
    without curl
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    before=$(picture /home)
    without wget
    run install
    refused "neither curl nor wget is here"
}

@test "a program that says it is another version, or does not run" {
    for words in 'echo skein 0.2.1' 'echo skein 0.2.01' 'exit 1' 'kill -SEGV $$'; do
        environment=()
        rm -rf "$files/www/$BATS_TEST_NUMBER"
        tampered
        name=skein-0.2.0-x86_64-unknown-linux-gnu
        mkdir -p "$BATS_TEST_TMPDIR/$name"
        printf '#!/bin/sh\n%s\n' "$words" >"$BATS_TEST_TMPDIR/$name/skein" && chmod 755 "$BATS_TEST_TMPDIR/$name/skein"
        tar -czf "$archive" -C "$BATS_TEST_TMPDIR" "$name"
        sed -i "/$name/s/\"bytes\":.*/\"bytes\":$(stat -c %s "$archive"),\"sha256\":\"$(sha256sum "$archive" | cut -c 1-64)\"}/" "$served/stable.json"
        sign "$served/stable.json" first
        run install
        refused "the new program"
    done
}

@test "a manifest of another kind, of another version, or without this machine" {
    tampered
    sed -i 's|skein-release/1|skein-release/2|' "$served/stable.json" && sign "$served/stable.json" first
    run install
    refused "of a kind that this installer does not know"
    cp "$files/www/new/stable.json" "$served/0.2.0/manifest.json"
    sed -i 's/x86_64-unknown/riscv64-unknown/g' "$served/0.2.0/manifest.json" && sign "$served/0.2.0/manifest.json" first
    run install --version 0.2.0
    refused "has not been built for x86_64-unknown-linux-gnu"
    mkdir "$served/0.2.9" && cp "$files/www/new/stable.json"* "$served/0.2.9"
    for end in '' .sig .sshsig; do mv "$served/0.2.9/stable.json$end" "$served/0.2.9/manifest.json$end"; done
    run install --version 0.2.9
    refused "version 0.2.9 was asked for and 0.2.0 came"
}

@test "no server, no address, no web address" {
    environment=(SKEIN_URL=http://127.0.0.1:9)
    sed -i 's/--retry 3/--retry 0/' "$root/install.sh"
    run install
    refused "cannot fetch what the release holds"
    environment=(SKEIN_URL=file:///etc)
    run install
    refused "which is not a web address"
    environment=()
    sed -i 's/^SKEIN_URL_DEFAULT=.*/SKEIN_URL_DEFAULT=/' "$root/install.sh"
    run install
    refused "does not know where releases are"
}

@test "processors, systems and C libraries that there is no Skein for" {
    while IFS='|' read -r system machine libc words; do
        command_in uname <<<"#!/bin/sh
[ \"\$1\" = -s ] && echo $system || echo $machine"
        command_in getconf <<<"#!/bin/sh
[ \"\$1\" != LONG_BIT ] || { echo 64; exit 0; }
case '$libc' in glibc*) echo '$libc' ;; *) exit 1 ;; esac"
        command_in ldd <<<"#!/bin/sh
echo '$libc' >&2; exit 1"
        run install
        refused "$words" || { echo "for $system $machine $libc" && false; }
    done <<'END'
Linux|riscv64|glibc 2.36|there is no Skein for the processor 'riscv64'
Linux|i686|glibc 2.36|there is no Skein for the processor 'i686'
Linux|armv7l|glibc 2.36|there is no Skein for the processor 'armv7l'
FreeBSD|amd64|none|there is no Skein for FreeBSD
MINGW64_NT-10.0|x86_64|none|this is Windows
Linux|x86_64|musl libc (x86_64)|this system's C library is musl
Linux|x86_64|glibc 2.30|this system's glibc is 2.30, too old
Linux|x86_64|glibc 2.4|this system's glibc is 2.4, too old
Linux|x86_64|nothing|cannot tell this system's C library
END
    # And by ldd alone, a good one.
    command_in ldd <<<'#!/bin/sh
echo "ldd (Ubuntu GLIBC 2.31-0ubuntu9.16) 2.31"'
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    before=$(picture /home)
    command_in getconf <<<'#!/bin/sh
[ "$1" != LONG_BIT ] || { echo 32; exit 0; }; echo glibc 2.36'
    run install
    refused "this system is 32-bit"
}

@test "options that are wrong" {
    while IFS='|' read -r options words; do
        # shellcheck disable=SC2086 # Several words.
        run install $options
        refused "$words" || { echo "for $options" && false; }
    done <<'END'
--frobnicate|there is no option --frobnicate
now|there is no option now
--version|--version needs a value
--version 1/../2|is not a version
--channel ../x|is not a channel
--payout a"b|--payout is not an address
--payout aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|--payout is not an address
--owner 00|--owner is not a key
--owner 00000000000000000000000000000000000000000000000000000000000000"0|--owner is not a key
--prefix there|which is not an absolute path
--file /nowhere.tar.gz|there is no file /nowhere.tar.gz
--purge|--purge goes with --uninstall
END
    run install --help
    [ "$status" = 0 ]
    says "--uninstall"
}

@test "a home that is read-only" {
    mount --bind "$root/home" "$root/home"
    mount -o remount,bind,ro "$root/home"
    run install
    refused "cannot write to /home/owner/.local"
    umount "$root/home"
}

@test "a home of which parts are read-only: nothing is left in the others" {
    for part in .config .local/share; do
        mkdir -p "$root$home/$part" && chown -R 1000:1000 "$root$home/.config" "$root$home/.local" 2>/dev/null || true
        before=$(picture /home)
        mount --bind "$root$home/$part" "$root$home/$part"
        mount -o remount,bind,ro "$root$home/$part"
        fake_systemd
        run install
        refused "cannot write to /home/owner/$part"
        umount "$root$home/$part"
    done
}

@test "a disk that is full, at every size up to where it fits" {
    # All in a home of this many KiB, filled by nothing else.
    fitted=''
    # A first attempt is to look at free space; without df, the writes themselves fail.
    command_in df <<<'#!/bin/sh
exit 1'
    for size in 4 16 64 80 100 140 152 156 160 164 168 172 180 240 320; do
        mount -t tmpfs -o "size=${size}k,mode=777" home "$root$home"
        before=$(picture /home)
        run install
        if [ "$status" = 0 ]; then
            fitted=$size
            [ "$(program --version)" = "skein 0.2.0" ]
        else
            [ -z "$fitted" ]
            refused "" || { echo "at $size KiB" && false; }
        fi
        umount "$root$home"
    done
    [ -n "$fitted" ]
    rm "$root/usr/bin/df" && cp "$SKEIN_TEST_ROOT/usr/bin/df" "$root/usr/bin/df"
    mount -t tmpfs -o "size=100k,mode=777" home "$root$home"
    before=$(picture /home)
    run install
    refused "KiB left, and skein 0.2.0 needs"
    umount "$root$home"
}

@test "an installation that was killed is cleaned away by the next; two at once is one" {
    mkdir -p "$root$home/.local/bin/.skein-install/tree"
    echo 4194304 >"$root$home/.local/bin/.skein-install/pid"
    chown -R 1000:1000 "$root$home/.local"
    run install
    [ "$status" = 0 ] || { echo "$output" && false; }
    [ ! -e "$root$home/.local/bin/.skein-install" ]
    mkdir "$root$home/.local/bin/.skein-install"
    chown 1000:1000 "$root$home/.local/bin/.skein-install"
    inside owner sh -c 'exec tail -f /dev/null' &
    other=$!
    # The process's number as this namespace has it.
    echo "$other" >"$root$home/.local/bin/.skein-install/pid"
    before=$(picture /home)
    run install
    kill "$other"
    refused "another installation is at work"
}

@test "interrupted in the middle: as if it had never begun" {
    tampered
    touch "$served/stable.json.sig.cut"
    # The moment is when curl fetches the signature.
    mv "$root/usr/bin/curl" "$root/usr/bin/curl.real"
    command_in curl <<<'#!/bin/sh
case "$*" in *.sig*) kill -TERM "$(cat ~/.local/bin/.skein-install/pid)"; exit 1 ;; esac
exec curl.real "$@"'
    run install
    [ "$status" != 0 ]
    [ "$(picture /home)" = "$(cd "$SKEIN_TEST_ROOT/home" && root=$SKEIN_TEST_ROOT picture /home)" ]
}
