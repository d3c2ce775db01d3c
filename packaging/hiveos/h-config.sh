#!/usr/bin/env bash
# Writes the arguments of `skein`, one a line, from the flight sheet. HiveOS sources this with CUSTOM_* set:
#   CUSTOM_URL           pool URL: agents to meet first, ADDR or NODE@ADDR, separated by spaces, commas or lines
#   CUSTOM_TEMPLATE      wallet and worker template: where earnings go
#   CUSTOM_PASS          password: the key of the owner who commands this rig from afar, as `skein fleet key` prints it
#   CUSTOM_USER_CONFIG   extra config arguments: more arguments of `skein up`
# Words are words: nothing of a flight sheet is executed or expanded.

# HiveOS has sourced the manifest before.
: "${CUSTOM_CONFIG_FILENAME:?is not set: is h-manifest.conf there?}"
SKEIN_DATA_DIR=${SKEIN_DATA_DIR:-/var/lib/skein}

skein_words() { printf '%s\n' "$1" | sed 's/#.*//' | tr -s '[:space:],' '\n' | sed '/^$/d'; }

mkdir -p "$(dirname "$CUSTOM_CONFIG_FILENAME")" "$SKEIN_DATA_DIR"
chmod 0700 "$SKEIN_DATA_DIR"
{
    printf '%s\n' up --headless --data-dir "$SKEIN_DATA_DIR"
    # `--bootstrap` takes several at once, separated by commas.
    bootstrap=$(skein_words "${CUSTOM_URL:-}" | paste -s -d ,)
    [[ -z $bootstrap ]] || printf '%s\n' --bootstrap "$bootstrap"
    printf '%s\n' "${CUSTOM_USER_CONFIG:-}" | sed 's/#.*//' | tr -s '[:space:]' '\n' | sed '/^$/d'
} >"$CUSTOM_CONFIG_FILENAME.part"
mv "$CUSTOM_CONFIG_FILENAME.part" "$CUSTOM_CONFIG_FILENAME"

# skein_set KEY VALUE: the line of config.toml that comes from the flight sheet, none if VALUE is empty. It is marked, so that
# another sheet replaces it; a line without the mark is the owner's own and stays. Before any [table] of the file.
skein_set() {
    local settings=$SKEIN_DATA_DIR/config.toml mark='# from the flight sheet' own
    [[ -e $settings || -n $2 ]] || return 0
    touch "$settings"
    own=$(awk -v key="^[ \t]*$1[ \t]*=" -v mark="$mark" '/^[ \t]*\[/ { exit } $0 ~ key && !index($0, mark)' "$settings")
    if [[ -n $own && -n $2 && $own != *"\"$2\""* ]]; then
        echo "config.toml says $own, which wins over the flight sheet's $2"
    fi
    {
        { [[ -n $own || -z $2 ]] || printf '%s = "%s" %s\n' "$1" "$2" "$mark"; } &&
            awk -v key="^[ \t]*$1[ \t]*=" -v mark="$mark" '/^[ \t]*\[/ { table = 1 } table || $0 !~ key || !index($0, mark)' "$settings"
    } >"$settings.part" && mv "$settings.part" "$settings"
}
payout=$(skein_words "${CUSTOM_TEMPLATE:-}" | head -1)
# The rig's name behind it, or what HiveOS puts that for, is for pools and no part of an address.
payout=${payout%.%WORKER_NAME%}
[[ -z ${WORKER_NAME:-} ]] || payout=${payout%".$WORKER_NAME"}
case $payout in
*[!0-9A-Za-z:._@-]*) echo "the wallet '$payout' is not an address, left out" ;;
*) skein_set payout "$payout" ;;
esac
owner=$(skein_words "${CUSTOM_PASS:-}" | head -1)
# Flight sheets say `x` where there is no password.
[[ $owner != x ]] || owner=''
if [[ -z $owner || $owner =~ ^[0-9A-Fa-f]{64}$ ]]; then
    skein_set owner "$owner"
else
    echo 'the password is no key of an owner (64 hexadecimal digits), left out'
fi
