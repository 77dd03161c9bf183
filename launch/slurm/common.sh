# What both scripts share; sourced from the folder that sbatch was called in.

# Nothing is imported from the folder that sbatch was called in.
export PYTHONSAFEPATH=1

# sbatch hands on what the shell had that called it, as the rank and the meeting place of another run.
unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK LOCAL_SIZE LOCAL_WORLD_SIZE \
  TORCHELASTIC_RUN_ID CROSS_RANK

# From SLURM 22.05 on srun does not take over what sbatch was told, and would bind a task to one core.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# Ends the job before a rank starts where none can succeed: `check RANKS ARGUMENTS...` of training.
check() {
  local ranks=$1
  shift
  check_time_limit
  if [ -n "${VSE_DATA:-}" ]; then
    if [ ! -f "$VSE_DATA/manifest.json" ]; then
      echo "VSE_DATA is $VSE_DATA, where there is no manifest.json; give a dataset's folder" >&2
      exit 2
    fi
    set -- "$@" "data.path=$VSE_DATA"
  fi
  vse-scale train --dry-run --ranks "$ranks" "$@" >/dev/null || exit $?
}

# SLURM signals the ranks so many seconds before the time limit (--signal=USR1@300): not before they
# have begun.
check_time_limit() {
  local lead=300 start=${SLURM_JOB_START_TIME:-$(date +%s)} end=${SLURM_JOB_END_TIME:-}
  [[ ${SBATCH_SIGNAL:-} =~ @([0-9]+)$ ]] && lead=${BASH_REMATCH[1]}
  if [ -z "$end" ]; then # set since SLURM 23.02
    end=$(scontrol show job "$SLURM_JOB_ID" | grep -o ' EndTime=[^ ]*') || return 0
    end=$(date -d "${end#*=}" +%s 2>/dev/null) || return 0 # Unknown: no limit
  fi
  if [ $((end - start)) -le "$lead" ]; then
    echo "the time limit is shorter than the $lead s before it at which ranks are asked to stop;" \
      "raise --time, or set SBATCH_SIGNAL=USR1@SECONDS" >&2
    exit 2
  fi
}

# Copies the dataset in VSE_DATA to every node's own disk, and sets `data` to the override that
# trains from there. Without VSE_DATA the configuration's data.path is read as it is.
stage() {
  data=()
  [ -n "${VSE_DATA:-}" ] || return 0
  # Two datasets may have one name, and the manifest holds the digest of every shard.
  local mark own=${TMPDIR:-/tmp}/vse-scale-$(id -un) here
  mark=$(sha256sum <"$VSE_DATA/manifest.json")
  here=$(realpath -m "${VSE_LOCAL:-$own}")/$(basename "$VSE_DATA")-${mark:0:16}
  [ -z "${VSE_LOCAL:-}" ] || own=$here
  echo "staging $VSE_DATA in $here on every node" >&2
  export -f copy_missing
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    bash -c 'copy_missing "$@"' stage "$VSE_DATA" "$own" "$here" || exit $?
  data=("data.path=$here")
}

# Copies what a folder lacks, below one that is the user's alone: `copy_missing FROM OWN TO`. A file
# has another name until it is whole: a job may be killed, or a second one read there. Where locks do
# not work each job copies for itself, under a name of its own.
copy_missing() {
  set -o pipefail
  mkdir -p -m 700 "$2" || return
  if [ ! -O "$2" ]; then
    echo "$2 on $(hostname) belongs to another user; set VSE_LOCAL to a folder of your own" >&2
    return 2
  fi
  mkdir -p "$3" && cd "$1" && exec 9>>"$3/.lock" || return
  local here
  here=.part.$(hostname)
  if flock 9; then # what killed jobs of this node left
    find "$3" -type f -name "*$here.*" -delete
  fi
  find -L . -type f ! -name .lock -print0 | while IFS= read -r -d '' file; do
    [ "$(stat -Lc %s "$file")" != "$(stat -c %s "$3/$file" 2>/dev/null)" ] || continue
    part=$3/$file$here.$SLURM_JOB_ID
    mkdir -p "$3/${file%/*}" && cp "$file" "$part" && mv "$part" "$3/$file" || exit
  done
}

# Tells Prometheus whom to scrape for as long as the job runs, and sets `watched` to the override by
# which other machines can: see launch/monitoring/targets.
announce() {
  local run=$1 ranks_per_node=$2 host rank list=()
  watched=()
  [ -n "${VSE_TARGETS:-}" ] || return 0
  watched=(telemetry.address=0.0.0.0)
  for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    for ((rank = 0; rank < ranks_per_node; rank++)); do list+=("\"$host:$((9840 + rank))\""); done
  done
  trap 'rm -f "$VSE_TARGETS/$SLURM_JOB_ID.yml"' EXIT
  (IFS=,; echo "[{targets: [${list[*]}], labels: {run: \"$run\"}}]") >"$VSE_TARGETS/$SLURM_JOB_ID.yml"
}

# Runs a job step until the run is complete: `supervise RUN COMMAND...`
#   0    complete
#   2    a mistake that the user can mend: starting again would not
#   75   asked to stop (time limit, preemption) and checkpointed, or the storage failed for a while:
#        back into the queue, at most three times in a row without a new checkpoint
#   else a rank or a node died: start again in this allocation, at most three times in a row
#        without a new checkpoint
supervise() {
  local run=$1 code before first failures=0 starts="${SLURM_RESTART_COUNT:-0}"
  shift
  first=$(newest_checkpoint "$run")
  while true; do
    before=$(newest_checkpoint "$run")
    code=0
    VSE_SCALE_RESTARTS=$((starts++)) "$@" || code=$?
    case $code in
      0) return 0 ;;
      2) return 2 ;;
      75) requeue "$run" "$first"; return ;;
    esac
    if [ "$(newest_checkpoint "$run")" = "$before" ]; then failures=$((failures + 1)); else failures=1; fi
    if [ "$failures" -gt 3 ]; then
      echo "the run died $failures times without a new checkpoint, last with exit code $code" >&2
      return "$code"
    fi
    echo "the run died with exit code $code; starting it again" >&2
    sleep 5
  done
}

# Puts the job back into the queue, unless it has come from there three times for nothing.
requeue() {
  local run=$1 before=$2 count=0 kept=$1/requeues
  if [ "$(newest_checkpoint "$run")" = "$before" ]; then
    count=$(($(cat "$kept" 2>/dev/null || echo 0) + 1))
  fi
  mkdir -p "$run" && echo "$count" >"$kept"
  if [ "$count" -gt 3 ]; then
    echo "the job ended $count times without a new checkpoint; raise --time, or lower" \
      "run.checkpoint_steps, or see to the storage where an error above names one" >&2
    return 1
  fi
  scontrol requeue "$SLURM_JOB_ID"
}

newest_checkpoint() {
  find "$1/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1 || true
}
