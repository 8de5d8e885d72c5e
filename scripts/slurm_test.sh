#!/usr/bin/env bash
# A sweep on a real SLURM of one node: one job is preempted and out of time, one requeued, one cancelled; what
# ends equals undisturbed runs bit for bit. Five to ten minutes on two cores.
#
#   scripts/slurm_test.sh [PYTHON]        an interpreter that has rift's `slurm` extra; default .venv/bin/python
#
# Sets up slurmctld, slurmd and munged in a temporary folder, on free ports, and takes all of it down again.
# Exit code 77: something that it needs is missing, and it says what. It installs nothing.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$root/.venv/bin/python}

lacking() { echo "not run: $*" >&2; exit 77; }
[ "$(id -u)" = 0 ] || lacking "slurmd wants root"
for program in slurmctld slurmd munged mungekey sbatch srun scontrol squeue; do
    PATH=$PATH:/usr/sbin command -v $program > /dev/null ||
        lacking "$program is not installed; on Debian: apt-get install slurmctld slurmd slurm-client munge"
done
"$python" -c 'import submitit, hydra_plugins.hydra_submitit_launcher' 2> /dev/null ||
    lacking "$python lacks rift's extra: pip install -e '.[slurm]'"

export PATH=$PATH:/usr/sbin PYTHONPATH=$root OMP_NUM_THREADS=1
work=$(mktemp -d /tmp/rift-slurm-XXXXXX)
chmod 755 "$work"
export SLURM_CONF=$work/slurm.conf

take_down() {
    status=$?
    [ $status = 0 ] || tail -n 20 "$work"/*.log "$work"/outputs/hydra/.submitit/*/*.out 2> /dev/null || true
    scancel --user=root 2> /dev/null || true
    [ -z "${sweep:-}" ] || kill "$sweep" 2> /dev/null || true
    sleep 1
    for daemon in slurmd slurmctld munged; do
        [ ! -s "$work/$daemon.pid" ] || kill "$(cat "$work/$daemon.pid")" 2> /dev/null || true
    done
    for _ in $(seq 50); do ls "$work"/*.pid > /dev/null 2>&1 || break; sleep 0.2; done
    if [ -n "${KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
    exit $status
}
trap take_down EXIT
trap 'exit 130' INT TERM

# -- the cluster -----------------------------------------------------------------------------------------

mungekey --create --keyfile="$work/munge.key"
mkdir -p "$work/state" "$work/spool"
munged --socket="$work/munge.socket" --key-file="$work/munge.key" --pid-file="$work/munged.pid" \
    --log-file="$work/munged.log" --seed-file="$work/munge.seed" --force > /dev/null 2>&1

read -r ctld_port d_port < <("$python" - <<'PORTS'
import socket
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(server.getsockname()[1] for server in taken))
PORTS
)
host=$(hostname -s)
cat > "$SLURM_CONF" <<CONF
ClusterName=rift
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$ctld_port
SlurmdPort=$d_port
AuthType=auth/munge
# A requeued job waits until its credential has expired: two minutes by default.
AuthInfo=socket=$work/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmdTimeout=300
KillWait=20
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
slurmctld > /dev/null 2>&1
slurmd -N "$host" > /dev/null 2>&1
for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%T --partition=low 2> /dev/null)" = idle ] && break
    sleep 0.5
done
sinfo --partition=low | tail -n 1

# -- the sweep -------------------------------------------------------------------------------------------

job=(experiment=demo smoke=true stage=at runtime=deterministic runtime.device=cpu runtime.threads=1
    runtime.save_seconds=0 logger=none model.width=16 dataset.train_limit=1000
    dataset.test_limit=100 "stage.at.epochs=${EPOCHS:-20}")
queue() { squeue --me --array --noheader --format="%i %T"; }
state_of() { queue | sed -n "s/^$1 //p"; }
saved() { find "$work/outputs/store/at" -path "*-s$1-*" -name resume.safetensors | grep -q .; }
both_saved() { saved 0 && saved 1; }
is_in_state() { [ "$(state_of "$1")" = "$2" ]; }
wait_for() { # SECONDS WHAT COMMAND...
    for _ in $(seq $(($1 * 2))); do "${@:3}" 2> /dev/null && return; sleep 0.5; done
    echo "not seen within $1 s: $2" >&2
    return 1
}
say() { echo "$(date +%T) $*"; }

cd "$work"
"$python" -m rift -m hydra/launcher=slurm "${job[@]}" seed=0,1,2 output="$work/outputs" \
    hydra.launcher.gpus_per_node=null hydra.launcher.cpus_per_task=1 hydra.launcher.mem_gb=null \
    hydra.launcher.partition=low > "$work/sweep.log" 2>&1 &
sweep=$!
wait_for 180 "two jobs at work, with an epoch saved" both_saved
array=$(queue | sed -n '1s/_.*//p')
say "queue: $(queue | tr '\n' ' ')"

say "job ${array}_2: scancel"
scancel "${array}_2"

say "job ${array}_1: scontrol requeue, which sends SIGTERM"
scontrol requeue "${array}_1"
wait_for 30 "the requeued job has made room" is_in_state "${array}_1" PENDING

say "job ${array}_0: preempted by a job of more weight, which needs both cores for 5 s"
sbatch --quiet --partition=high --cpus-per-task=2 --output=/dev/null --wrap "sleep 5"
wait_for 60 "the preempted job has made room" is_in_state "${array}_0" PENDING
say "queue: $(queue | tr '\n' ' ')"
wait_for 120 "the preempted job is back" is_in_state "${array}_0" RUNNING

say "job ${array}_0: the signal that its time is nearly over (SIGUSR2), as from SLURM"
wait_for 60 "its handlers" grep -q "seed=0] at: resumed" "$work/outputs/hydra/.submitit/${array}_0/${array}_0_0_log.out"
scancel --signal=USR2 "${array}_0"
wait_for 60 "the job that was out of time is queued again" is_in_state "${array}_0" PENDING

wait_for 900 "the end of the sweep" eval "! kill -0 $sweep"
code=0
wait "$sweep" || code=$?
sweep=
say "the sweep has ended with $code:"
sed -n '/Jobs of this sweep/,$p' "$work/sweep.log"
[ $code = 1 ] # since one job is not done
[ "$(grep -c "#[01] seed=[01] *done" "$work/sweep.log")" = 2 ]
grep -q "#2 seed=2 *stopped: ended by SLURM (CANCELLED" "$work/sweep.log"
for seed in 0 1; do grep -q '"state": "done"' "$work"/outputs/jobs/*/*-s$seed-*/state.json; done
grep -h "stopping after this step\|resumed, goes on\|Requeued job" "$work"/outputs/hydra/.submitit/*/*_log.out

# -- the same jobs, undisturbed ----------------------------------------------------------------------------

say "the same jobs, undisturbed and without SLURM"
"$python" -m rift -m "${job[@]}" seed=0,1 output="$work/undisturbed" > "$work/undisturbed.log" 2>&1
weights() { (cd "$1/store" && find . -name "*.safetensors" -exec sha256sum {} + | sort -k 2); }
weights "$work/undisturbed"
diff <(weights "$work/outputs") <(weights "$work/undisturbed")
say "equal, bit for bit"
