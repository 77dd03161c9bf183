# What both scripts share; sourced from the folder that sbatch was called in.

# Nothing is imported from the folder that sbatch was called in.
export PYTHONSAFEPATH=1

# Ends the job where SLURM would signal it (--signal=USR1@300) before it can have begun.
check_time_limit() {
  local lead=300
  if [ $((${SLURM_JOB_END_TIME:-99999} - ${SLURM_JOB_START_TIME:-0})) -le $lead ]; then
    echo "the time limit is shorter than the $lead s before it at which ranks are asked to stop;" \
      "raise --time" >&2
    exit 2
  fi
}

# Copies the dataset in VSE_DATA to every node's own disk, and sets `data` to the override that
# trains from there: `stage ARGUMENTS...` of the training command, which is checked first. Without
# VSE_DATA the configuration's data.path is read as it is.
stage() {
  data=()
  [ -n "${VSE_DATA:-}" ] || return 0
  if [ ! -f "$VSE_DATA/manifest.json" ]; then
    echo "VSE_DATA is $VSE_DATA, where there is no manifest.json; give a dataset's folder" >&2
    exit 2
  fi
  vse-scale train --dry-run "$@" "data.path=$VSE_DATA" >/dev/null || exit $?
  # Two datasets may have one name.
  local mark here
  mark=$(cksum <"$VSE_DATA/manifest.json")
  here="${VSE_LOCAL:-${TMPDIR:-/tmp}/vse-scale-$(id -un)}/$(basename "$VSE_DATA")-${mark%% *}"
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 sh -c '
    mkdir -p "$2" || exit
    if command -v rsync >/dev/null; then rsync -a "$1/" "$2/"; else cp -Rpu "$1/." "$2/"; fi
    ' stage "$VSE_DATA" "$here"
  data=("data.path=$here")
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
#   75   asked to stop (time limit, preemption) and checkpointed: back into the queue, at most three
#        times in a row without a new checkpoint
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
      "run.checkpoint_steps" >&2
    return 1
  fi
  scontrol requeue "$SLURM_JOB_ID"
}

newest_checkpoint() {
  find "$1/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1 || true
}
