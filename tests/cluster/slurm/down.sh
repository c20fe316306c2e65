#!/usr/bin/env bash
# Stops what up.sh started, by the process ids it left in its state folder.   usage: down.sh STATE_FOLDER
STATE=$(realpath -m "$1")
export SLURM_CONF="$STATE/slurm.conf"
scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 40); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.25; done
pids=$(cat "$STATE"/run/*.pid 2>/dev/null) # first of all: the daemons remove these files before they end
[ -n "$pids" ] || exit 0
kill $pids 2>/dev/null
for _ in $(seq 100); do
    left=0
    for pid in $pids; do kill -0 "$pid" 2>/dev/null && left=1; done
    [ $left = 0 ] && exit 0
    sleep 0.1
done
kill -9 $pids 2>/dev/null
exit 0
