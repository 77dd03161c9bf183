# What both scripts share; sourced from the folder that sbatch was called in.

# Copies the dataset in VSE_DATA to every node's own disk, and sets `data` to the override that
# trains from there. Without VSE_DATA the configuration's data.path is read as it is.
stage() {
  data=()
  [ -n "${VSE_DATA:-}" ] || return 0
  local here="${VSE_LOCAL:-${TMPDIR:-/tmp}/vse-scale-$(id -un)}/$(basename "$VSE_DATA")"
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    sh -c 'mkdir -p "$2" && rsync -a "$1/" "$2/"' stage "$VSE_DATA" "$here"
  data=("data.path=$here")
}

# Tells Prometheus whom to scrape for as long as the job runs: see launch/monitoring/targets.
announce() {
  local run=$1 ranks_per_node=$2 host rank list=()
  [ -n "${VSE_TARGETS:-}" ] || return 0
  for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    for ((rank = 0; rank < ranks_per_node; rank++)); do list+=("\"$host:$((9840 + rank))\""); done
  done
  trap 'rm -f "$VSE_TARGETS/$SLURM_JOB_ID.yml"' EXIT
  (IFS=,; echo "[{targets: [${list[*]}], labels: {run: \"$run\"}}]") >"$VSE_TARGETS/$SLURM_JOB_ID.yml"
}

# Runs a job step until the run is complete: `supervise RUN COMMAND...`
#   0    complete
#   2    a mistake that the user can mend: starting again would not
#   75   asked to stop (time limit, preemption) and checkpointed: back into the queue
#   else a rank or a node died: start again in this allocation, at most three times in a row
#        without a new checkpoint
supervise() {
  local run=$1 code before failures=0 starts="${SLURM_RESTART_COUNT:-0}"
  shift
  while true; do
    before=$(newest_checkpoint "$run")
    code=0
    VSE_SCALE_RESTARTS=$((starts++)) "$@" || code=$?
    case $code in
      0) return 0 ;;
      2) return 2 ;;
      75) scontrol requeue "$SLURM_JOB_ID"; return 0 ;;
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

newest_checkpoint() {
  find "$1/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1 || true
}
