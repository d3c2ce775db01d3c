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

# The owner's own config.toml is never overwritten; only what is missing there is added.
skein_add() {
    ! grep -qs "^$1 *=" "$SKEIN_DATA_DIR/config.toml" || return 0
    # Before any [table] of the file.
    { printf '%s = "%s"\n' "$1" "$2"; cat "$SKEIN_DATA_DIR/config.toml" 2>/dev/null || true; } >"$SKEIN_DATA_DIR/config.toml.part"
    mv "$SKEIN_DATA_DIR/config.toml.part" "$SKEIN_DATA_DIR/config.toml"
}
payout=$(skein_words "${CUSTOM_TEMPLATE:-}" | head -1)
case $payout in
'' | *[!0-9A-Za-z:._@-]*) [[ -z $payout ]] || echo "payout '$payout' is not an address, left out" ;;
*) skein_add payout "$payout" ;;
esac
owner=$(skein_words "${CUSTOM_PASS:-}" | head -1)
# Flight sheets say `x` where there is no password.
if [[ $owner =~ ^[0-9A-Fa-f]{64}$ ]]; then
    skein_add owner "$owner"
elif [[ -n $owner && $owner != x ]]; then
    echo 'the password is no key of an owner (64 hexadecimal digits), left out'
fi
