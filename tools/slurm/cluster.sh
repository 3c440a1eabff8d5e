#!/usr/bin/env bash
# cluster.sh up|down DIR [NODES] [GPUS]: a throw-away Slurm cluster on this machine, as root, for tests.
#
#   up    starts munge, accounting, one slurmctld and NODES slurmd (default 4) called node1, node2, ... with GPUS fake
#         devices each (default 2), and prints `export SLURM_CONF=...`. When it is up already it only prints that.
#   down  cancels what runs, ends every daemon, takes the node names out of /etc/hosts and removes DIR.
# Partitions: debug (default), low (is preempted by requeueing), drop (is preempted by cancelling), high (preempts both).
# Every daemon listens on the loopback interface; ports from SLURM_TEST_PORT (default 17000) on.
set -euo pipefail
[ $# -ge 2 ] && [[ $1 == up || $1 == down ]] || { sed -n 2,3p "$0"; exit 2; }
dir=$2 nodes=${3:-4} gpus=${4:-2} port=${SLURM_TEST_PORT:-17000} host=$(hostname -s)
[[ $dir == /* && ${#dir} -le 60 ]] || { echo "cluster.sh: DIR must be absolute and short (unix sockets lie in it)" >&2; exit 2; }
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin

wait_for() {  # wait_for CMD...: until it succeeds, a minute at most
  for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  echo "cluster.sh: gave up waiting for: $*" >&2; tail -n 5 "$dir"/log/*.log >&2; exit 1
}

daemon() {  # the process id in a pid file, if that process still is a daemon of this kind
  local pid; pid=$(cat "$1" 2>/dev/null) && grep -qaE 'slurm|munged|mariadbd' "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

gone() { local state; state=$(sed 's/.*) //;s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 0; [[ -z $state || $state == Z ]]; }

write_configuration() {
  local track=linuxproc; [ -d /sys/fs/cgroup/freezer ] && track=cgroup  # as on real clusters: a step is a cgroup
  cat > "$SLURM_CONF" <<CONF
ClusterName=onemachine
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((port + 900))
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/$track
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=3
JobAcctGatherParams=UsePss,OverMemoryKill
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=4
MinJobAge=3600
SlurmdTimeout=30
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 901))
AccountingStoragePass=$dir/munge.socket
AccountingStorageTRES=gres/gpu
NodeName=node[1-$nodes] NodeHostname=$host NodeAddr=127.0.1.[1-$nodes] Port=[$((port + 1))-$((port + nodes))] CPUs=64 Boards=1 SocketsPerBoard=2 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:fake:$gpus State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES PriorityTier=10 MaxTime=INFINITE PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 MaxTime=INFINITE GraceTime=0 PreemptMode=REQUEUE
PartitionName=drop Nodes=ALL PriorityTier=1 MaxTime=INFINITE GraceTime=0 PreemptMode=CANCEL
PartitionName=high Nodes=ALL PriorityTier=100 MaxTime=INFINITE PreemptMode=OFF
CONF
  printf 'AutoDetect=off\nNodeName=node[1-%s] Name=gpu Type=fake File=%s/dev/fake[0-%s]\n' \
    "$nodes" "$dir" $((gpus - 1)) > "$dir/gres.conf"
  printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n' > "$dir/cgroup.conf"
  (umask 077; cat > "$dir/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 901))
SlurmUser=root
PidFile=$dir/slurmdbd.pid
LogFile=$dir/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 902))
StorageUser=root
StorageLoc=accounting
CommitDelay=1
CONF
  )
}

start_accounting() {
  mariadb-install-db --no-defaults --user=root --datadir="$dir/db" --auth-root-authentication-method=normal \
    --skip-test-db --skip-name-resolve >"$dir/log/database.log" 2>&1
  setsid mariadbd --no-defaults --user=root --datadir="$dir/db" --socket="$dir/db.socket" \
    --pid-file="$dir/mariadbd.pid" --bind-address=127.0.0.1 --port=$((port + 902)) --skip-name-resolve --skip-log-bin \
    --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    </dev/null >>"$dir/log/database.log" 2>&1 &
  wait_for mariadb --no-defaults -uroot --socket="$dir/db.socket" -e 'select 1'
  slurmdbd
  wait_for sacctmgr -n show cluster
}

up() {
  if daemon "$dir/slurmctld.pid" >/dev/null; then echo "export SLURM_CONF=$SLURM_CONF"; return; fi
  [ ! -e "$SLURM_CONF" ] || down  # what a crash left
  mkdir -p "$dir"/{state,spool,log,dev,munge,db}; chmod 755 "$dir"; chmod 700 "$dir/munge"
  (umask 077; head -c 1024 /dev/urandom > "$dir/munge/key")
  for i in $(seq 0 $((gpus - 1))); do mknod -m 666 "$dir/dev/fake$i" c 1 3; done
  # Node names must resolve, here and in containers: they are in MASTER_ADDR.
  { sed '/# slurm-test$/d' /etc/hosts; for i in $(seq "$nodes"); do echo "127.0.1.$i node$i # slurm-test"; done; } > "$dir/hosts"
  cat "$dir/hosts" > /etc/hosts
  write_configuration
  # --force: as root, with a socket of our own
  munged --force --key-file="$dir/munge/key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed" 2>>"$dir/log/munged.log"
  start_accounting
  slurmctld -f "$SLURM_CONF" -c
  for i in $(seq "$nodes"); do mkdir -p "$dir/spool/node$i"; slurmd -N "node$i" -f "$SLURM_CONF"; done
  wait_for sh -c "[ \$(sinfo -h -N -p debug -t idle -o %N | wc -l) = $nodes ]"
  wait_for sh -c "sacctmgr -n -P show cluster format=cluster,controlport | grep -q '|$((port + 900))\$'"
  echo "export SLURM_CONF=$SLURM_CONF"
}

end() {  # end PID_FILE... with TERM, after five seconds with KILL
  local pids=() pid file
  for file in "$@"; do pid=$(daemon "$file") && pids+=("$pid"); done
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do
    for _ in $(seq 50); do gone "$pid" && break; sleep 0.1; done
    gone "$pid" || kill -9 "$pid" 2>/dev/null || true
  done
}

down() {
  [ -f "$SLURM_CONF" ] || return 0
  if daemon "$dir/slurmctld.pid" >/dev/null; then
    timeout 10 squeue -h -o %A | sort -u | xargs -r timeout 10 scancel || true
    for _ in $(seq 75); do [ -z "$(timeout 5 squeue -h -o %A)" ] && break; sleep 0.2; done
  fi
  end "$dir"/slurmd.*.pid "$dir/slurmctld.pid"
  for process in /proc/[0-9]*; do  # step managers that outlived their job
    if grep -qa '^slurmstepd:' "$process/cmdline" 2>/dev/null && tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF"; then
      kill -9 "${process#/proc/}" 2>/dev/null || true
    fi
  done
  end "$dir"/{slurmdbd,mariadbd,munged}.pid
  find /sys/fs/cgroup/*/slurm_node[0-9]* -depth -type d -exec rmdir {} + 2>/dev/null || true
  sed '/# slurm-test$/d' /etc/hosts > "$dir/hosts" && cat "$dir/hosts" > /etc/hosts
  rm -rf "$dir"
}

"$1"
