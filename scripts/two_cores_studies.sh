#!/usr/bin/env bash
# Everything in outputs/reference/cifar10_two_cores, from its θ_AT on, in jobs that two cores do overnight.
# Killed, the same command goes on. What is shared is computed once: the jobs of one study are found by the next.
#
#   scripts/two_cores_studies.sh DATA OUTPUT [THETA_AT]
#
# DATA holds cifar-10-batches-py; THETA_AT is the kept one unless given. Further options of rift: RIFT_OPTIONS.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: scripts/two_cores_studies.sh DATA OUTPUT [THETA_AT]" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
theta_at=${3:-$here/outputs/reference/cifar10_two_cores/theta_at.safetensors}
read -r -a more <<<"${RIFT_OPTIONS:-logger=none}"
common=("dataset.root=$1" "output=$2" "model.checkpoint=$theta_at" "${more[@]}")

studies() { python -m rift "$@" experiment=two_cores_studies "${common[@]}"; }
main_row() { python -m rift "$@" experiment=cifar10_two_cores stage=from_checkpoint runtime.threads=1 "${common[@]}"; }

part=${RIFT_PART:-all}
wanted() { [ "$part" = all ] || [ "$part" = "$1" ]; }

# Every module fine-tuned alone.
if wanted modules; then
  studies study=mrc_stability arm=scan 'stage.run=[mrc,gains]'
fi

# How stable the ranking is.
if wanted scans; then
  for arm in scan_projected scan_other_images scan_shuffled scan_half_radius scan_double_radius; do
    studies study=mrc_stability arm=$arm 'stage.run=[mrc]'
  done
fi

# What is fine-tuned, how many modules together, and BatchNorm.
if wanted targets; then
  studies -m study=bn_ablation arm=moving,frozen,only_statistics,kept
  studies -m study=table4 stage.finetune.target=top_k stage.finetune.top_k=1,2,3,5
  for study in table3 figure1; do
    studies -m study=$study stage.finetune.target=all,last_layer,most_critical,least_critical
  done
  studies -m study=table3 stage.finetune.target=random stage.finetune.target_seed=0,1,2
fi

# The row itself: the paper's epochs, runs and tolerance, and all that is measured.
if wanted row; then
  main_row 'stage.evaluate.measure=[pgd,corruptions]'
  main_row 'stage.evaluate.measure=[pgd,auto_attack,corruptions]' stage.evaluate.auto_attack_images=1000
  main_row study=published_row arm=moving 'stage.evaluate.measure=[pgd,corruptions]'
  main_row study=pgd50 evaluation_attack.steps=50 stage.evaluate.restarts=1 stage.evaluate.exact_runs=false \
    'stage.evaluate.measure=[pgd]'
fi

# Other seeds of fine-tuning.
if wanted seeds; then
  studies -m study=table3 stage.finetune.target=least_critical,most_critical,last_layer,all seed=1,2
  main_row -m seed=1,2 'stage.evaluate.measure=[pgd,corruptions]'
fi
