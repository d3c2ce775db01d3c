#!/usr/bin/env bash
# Tells HiveOS how the agent does. HiveOS's agent sources this; it must set `khs` and `stats` and never end the shell.
#   hs            MFLOP/s of f32 matrix products that the agent measured and offers, one per worker (a worker has a GPU of
#                 its own, or the processor), 0 while it does not work
#   temp, fan     from the agent, else from HiveOS's own $gpu_stats; null where neither knows
#   bus_numbers   decimal PCI bus numbers, in the order of hs; absent on the processor
#   ar            leases done since the start, and deaths of workers, each of which costs a lease
# What is not known is left out or null, never zero.

# shellcheck disable=SC2034 # HiveOS's agent reads it.
khs=0
stats=null
# shellcheck source=/dev/null
. "${MINER_DIR:-/hive/miners/custom}/${CUSTOM_MINER:-skein-hiveos}/h-manifest.conf"

skein_get() { curl --silent --fail --noproxy '*' --connect-timeout 2 --max-time 5 --max-filesize 4000000 "http://$skein_api$1"; }

skein_pid=$(jq -r '.pid // empty' "$SKEIN_DATA_DIR/agent.json" 2>/dev/null)
skein_api=$(jq -r '.api // empty' "$SKEIN_DATA_DIR/agent.json" 2>/dev/null)
skein_status=''
[[ -n $skein_api ]] && skein_status=$(skein_get /api/status)
if [[ -n $skein_status ]]; then
    skein_since=$((($(date +%s) - 60) * 1000))
    skein_history=$(skein_get "/api/history?since_ms=$skein_since")
    [[ -n $skein_history ]] || skein_history='{}'
    # `skein_gpu_fan_ratio{gpu="0000:01:00.0",name="…"} 0.45` as [{gpu, percent}].
    skein_fans=$(skein_get /metrics | sed -n 's/^skein_gpu_fan_ratio{.*gpu="\([^"]*\)".*} \([0-9.e+-]*\)$/\1 \2/p' |
        jq -Rnc '[inputs | split(" ") | {gpu: .[0], percent: ((.[1] | tonumber) * 100 | round)}]' 2>/dev/null)
    stats=$(jq -nc \
        --argjson status "$skein_status" \
        --argjson history "$skein_history" \
        --argjson fans "${skein_fans:-[]}" \
        --argjson hive "${gpu_stats:-null}" \
        --arg uptime "$(ps -o etimes= -p "${skein_pid:-0}" 2>/dev/null | tr -d ' ')" \
        --arg version "$CUSTOM_VERSION" '
        def bus: (capture("(?:[0-9a-fA-F]+:)?(?<bus>[0-9a-fA-F]{1,2}):[0-9a-fA-F]{2}[.]").bus // null)
            | if . == null then null else
                ascii_downcase | explode | map(if . > 96 then . - 87 else . - 48 end) | reduce .[] as $d (0; . * 16 + $d) end;
        def bus_or_null: try bus catch null;
        ($status.workers // []) as $workers
        | ($status.offer.workers // []) as $offered
        | (($history.points // []) | last // {} | .gpus // []) as $gpus
        # Without sensors nothing can be told about a GPU but its speed.
        | ([$workers[] | select(.gpu != null)] | length == 0) as $bare
        | ([($hive.busids // [])[] | tostring | bus_or_null]) as $hive_buses
        # What HiveOS itself measured of the GPU on this bus.
        | def of_hive($what; $at): if $at == null then null else
            ($hive_buses | index($at)) as $i | if $i == null then null else ($hive[$what] // [])[$i] end end;
        def number_or_null: if . == null then null else tonumber end;
        {
            hs: [$workers[] | if .working then $offered[.index].matrix_mflops // 0 else 0 end],
            hs_units: "mhs",
            temp: (if $bare then [] else
                [$workers[] | .gpu as $id | ($id // "" | bus_or_null) as $at |
                    ([$gpus[] | select(.id == $id) | .temperature_c] | first) // (of_hive("temp"; $at) | number_or_null)] end),
            fan: (if $bare then [] else
                [$workers[] | .gpu as $id | ($id // "" | bus_or_null) as $at |
                    ([$fans[] | select(.gpu == $id) | .percent] | first) // (of_hive("fan"; $at) | number_or_null)] end),
            uptime: ($uptime | tonumber? // 0),
            ver: ($status.version // $version),
            algo: "f32-matmul"
        }
        + (if $bare then {} else {bus_numbers: [$workers[] | .gpu // "" | bus_or_null]} end)
        + (if $status.leases_taken == null then {} else
            # What died with its worker was not done.
            ([$workers[].deaths] | add // 0) as $died
            | {ar: [([$status.leases_taken - ($status.leases // [] | length) - $died, 0] | max), $died]} end)
    ') || stats=null
    [[ -n $stats ]] || stats=null
    # HiveOS wants thousands of hashes a second: a MFLOP counts as a million.
    # shellcheck disable=SC2034
    khs=$(jq -r '((.hs // []) | add // 0) * 1000 | round' <<<"$stats")
fi
