#!/usr/bin/env bash
# Runs the agent until HiveOS stops it. HiveOS ends a miner by closing its screen session (SIGHUP); the agent is told by
# SIGTERM, so that it ends its leases and says goodbye.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
# shellcheck source=/dev/null
. ./h-manifest.conf
[[ -r $CUSTOM_CONFIG_FILENAME ]] || { echo "no $CUSTOM_CONFIG_FILENAME: h-config.sh has not run"; exit 1; }
mapfile -t arguments <"$CUSTOM_CONFIG_FILENAME"
mkdir -p "$(dirname "$CUSTOM_LOG_BASENAME")"
# HiveOS sets these for other miners; the program needs the system's own libraries and its GPU driver.
unset LD_LIBRARY_PATH LD_PRELOAD
# HiveOS unpacks miners for the user `user` and runs them as root; a program replaces itself by a newer one only if it is its own.
chown "$(id -u)" . skein || echo 'skein belongs to another user: it will not update itself'
./skein "${arguments[@]}" > >(exec tee -a "$CUSTOM_LOG_BASENAME.log") 2>&1 &
agent=$!
trap 'kill -TERM "$agent" 2>/dev/null' HUP INT TERM
# A signal ends `wait` early: the agent is waited for again until it is gone.
while kill -0 "$agent" 2>/dev/null; do wait "$agent"; code=$?; done
exit "${code:-0}"
