#!/usr/bin/env bash
# One row of the paper, from unpacked CIFAR-10 to tables and figures, in steps that can stop and go on.
#
#   scripts/paper_row.sh --data FOLDER --results FOLDER [--minutes N] [--python PYTHON] [option=value ...]
#
# --data FOLDER      holds cifar-10-batches-py
# --results FOLDER   gets results.tar.gz (JSON, metrics, pages, figures) and θ_AT's weights in parts of
#                    15 MB, anew after every step; `cat weights.part-* > best.safetensors` joins them
# --minutes N        stops cleanly before N minutes are up, with exit code 75; given again it goes on
# option=value       goes to every command, e.g. smoke=true model=resnet_small output=/tmp/row
#
# Steps: AT (110 epochs) · MRC scan as published, as in the paper's text, and projected · fine-tuning,
# α sweep and evaluation (PGD-10, worst of three) · evaluation with PGD-50 · the four BatchNorm arms.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "paper_row.sh: $1" >&2; exit 2; }
data='' results='' minutes=100000 python=${PYTHON:-python3} extra=() output=outputs
while [ $# -gt 0 ]; do
  case $1 in
    --data|--results|--minutes|--python) [ $# -ge 2 ] || fail "$1 needs a value"; declare "${1#--}=$2"; shift 2 ;;
    output=*) output=${1#output=}; shift ;;
    *=*) extra+=("$1"); shift ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
[ -n "$data" ] && [ -n "$results" ] || fail "--data and --results are needed"
[ -d "$data/cifar-10-batches-py" ] || fail "no cifar-10-batches-py in $data: unpack CIFAR-10 there"
case $minutes in *[!0-9]*|'') fail "--minutes takes a whole number" ;; esac
deadline=$(( $(date +%s) + minutes * 60 - 20 ))   # the last seconds are for copying
mkdir -p "$results"

collect() {
  [ -d "$output" ] || return 0
  (cd "$output" && find jobs store -name '*.json' -o -name '*.jsonl' -o -name 'job.log' \
      -o -name 'report.md' -o -name '*.png') 2>/dev/null | grep -v '/wandb/' >"$results/.files" || true
  tar -C "$output" -czf "$results/.results.tar.gz" -T "$results/.files"
  mv "$results/.results.tar.gz" "$results/results.tar.gz"
  rm -f "$results/.files"
}

collect_weights() {
  local best
  best=$(ls -t "$output"/store/at/*/best.safetensors 2>/dev/null | head -1)
  [ -z "$best" ] || split -b 15000000 "$best" "$results/weights.part-"
}

step() {  # NAME OPTION...: one run; what is finished is reused, what was stopped goes on
  local name=$1 left status=0
  shift
  left=$(( deadline - $(date +%s) ))
  if [ "$left" -gt 5 ]; then
    echo "== $name ($left s left)"
    timeout --signal=INT --kill-after=10 "$left" "$python" -m rift model=resnet18 dataset=cifar10 \
      dataset.root="$data" study=paper_row output="$output" logger=none "$@" "${extra[@]}" || status=$?
  else
    status=124
  fi
  collect
  case $status in
    0) ;;
    124|130|137) echo "== stopped in '$name'; the same command goes on from here"; exit 75 ;;
    *) fail "'$name' failed with exit code $status; its message is above" ;;
  esac
}

official=(protocol=official attack.step_size=2/255 stage.interpolate.restarts=3 stage.evaluate.restarts=3)

step 'adversarial training' stage=at "${official[@]}"
collect_weights
step 'MRC scan as published' stage=mrc "${official[@]}"
step 'MRC scan as in the text' stage=mrc "${official[@]}" stage.mrc.split=train \
  stage.mrc.on_violation=stop stage.mrc.score=last stage.mrc.shuffle=false
step 'MRC scan, projected' stage=mrc "${official[@]}" stage.mrc.solver=projected stage.mrc.epochs=1
step 'statistics move and are interpolated' stage=rift "${official[@]}"
step 'evaluation with PGD-50' stage=evaluate "${official[@]}" evaluation_attack.steps=50
step 'statistics frozen' stage=rift "${official[@]}" stage.finetune.batchnorm=frozen
step 'only statistics move' stage=rift "${official[@]}" stage.finetune.target=none
step "weights interpolated, θ_AT's statistics" stage=rift "${official[@]}" stage.interpolate.batchnorm=keep
"$python" -m rift.report "$output/jobs/paper_row" --output "$results/report" $(printf '%s\n' "${extra[@]}" | grep -q '^smoke=true$' && echo --smoke)
collect
echo "== finished: $results"
