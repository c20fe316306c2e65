#!/usr/bin/env bash
# Brings up a private SLURM on this host: NODES virtual nodes, no systemd, no cgroups, no accounting database.
# Root on a Debian or Ubuntu; installs SLURM's packages where they are missing.
# usage: up.sh STATE_FOLDER [NODES=2] [CPUS_PER_NODE=2]; afterwards: export SLURM_CONF=STATE_FOLDER/slurm.conf
set -euo pipefail
STATE=$(realpath -m "$1") NODES=${2:-2} CPUS=${3:-2}
HOST=$(hostname -s) LAST=$((NODES - 1))

if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
fi
mkdir -p "$STATE"/{controller,spool,log,run}
chmod 755 "$STATE"

# A munge of our own, so that one that runs here already is left alone.
[ -s "$STATE/munge.key" ] || dd if=/dev/urandom of="$STATE/munge.key" bs=1024 count=1 status=none
chmod 400 "$STATE/munge.key"
SOCKET=$STATE/run/munge.socket
if ! munge -n --socket="$SOCKET" >/dev/null 2>&1; then
    munged --force --key-file="$STATE/munge.key" --socket="$SOCKET" --pid-file="$STATE/run/munged.pid" \
        --log-file="$STATE/log/munged.log" --seed-file="$STATE/run/munge.seed" 2>>"$STATE/log/munged.err"
fi
for _ in $(seq 50); do munge -n --socket="$SOCKET" >/dev/null 2>&1 && break; sleep 0.1; done

free_ports() {
    python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}
if [ ! -s "$STATE/ports" ]; then free_ports $((NODES + 1)) >"$STATE/ports"; fi
read -r CONTROLLER_PORT NODE_PORTS <"$STATE/ports"

cat >"$STATE/slurm.conf" <<CONF
ClusterName=private
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$CONTROLLER_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SOCKET,cred_expire=5
CredType=cred/munge
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/spool/%n
SlurmctldPidFile=$STATE/run/slurmctld.pid
SlurmdPidFile=$STATE/run/slurmd.%n.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/slurmd.%n.log
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=${KILL_WAIT:-15}
MinJobAge=600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
UnkillableStepTimeout=60
CONF
i=0
for port in $NODE_PORTS; do
    echo "NodeName=n$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$port CPUs=$CPUS Boards=1 SocketsPerBoard=1" \
        "CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN" >>"$STATE/slurm.conf"
    i=$((i + 1))
done
echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO" >>"$STATE/slurm.conf"

export SLURM_CONF="$STATE/slurm.conf"
running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }
running "$STATE/run/slurmctld.pid" || slurmctld -c
for i in $(seq 0 $LAST); do
    mkdir -p "$STATE/spool/n$i"
    running "$STATE/run/slurmd.n$i.pid" || slurmd -N "n$i"
done
for _ in $(seq 150); do
    [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$NODES" ] && exit 0
    sleep 0.2
done
echo "SLURM did not come up; its logs are in $STATE/log" >&2
sinfo >&2 || true
exit 1
