#!/usr/bin/env bash
# Writes the arguments of `skein`, one a line, from the flight sheet. HiveOS sources this with CUSTOM_* set:
#   CUSTOM_URL           pool URL: agents to meet first, ADDR or NODE@ADDR, separated by spaces, commas or lines
#   CUSTOM_TEMPLATE      wallet and worker template: where earnings go
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

# The owner's own config.toml is never overwritten; only a missing payout is added.
payout=$(skein_words "${CUSTOM_TEMPLATE:-}" | head -1)
case $payout in
'' | *[!0-9A-Za-z:._@-]*) [[ -z $payout ]] || echo "payout '$payout' is not an address, left out" ;;
*)
    if ! grep -qs '^payout *=' "$SKEIN_DATA_DIR/config.toml"; then
        # Before any [table] of the file.
        { printf 'payout = "%s"\n' "$payout"; cat "$SKEIN_DATA_DIR/config.toml" 2>/dev/null || true; } >"$SKEIN_DATA_DIR/config.toml.part"
        mv "$SKEIN_DATA_DIR/config.toml.part" "$SKEIN_DATA_DIR/config.toml"
    fi
    ;;
esac
