#!/usr/bin/env bash
# Optimises every model of a list and checks each result against its original.
#
#     optimize_models.sh [LIST] [FOLDER]
#
# LIST has one model a line: model, calibration data, evaluation data, density, largest loss allowed.
# FOLDER (default: optimized) receives, for each model, the optimised model, its plan, an HTML report and the check's
# JSON. Exits with 0 if every model kept its budget, else with the code of the first that did not: 3 for a missed
# budget, 4 if nothing was improved, 2 or 5 for input that cannot be used.
set -uo pipefail

list=${1:-examples/ci/models.txt}
folder=${2:-optimized}
mkdir -p "$folder"
first_failure=0

optimize_one() {
    local model=$1 calibration=$2 evaluation=$3 density=$4 max_loss=$5
    local name
    name=$(basename "$model" .onnx)
    deftonnx optimize "$model" -o "$folder/$name.deft.onnx" --force \
        --calib-data "$calibration" --eval-data "$evaluation" --density "$density" \
        --plan-out "$folder/$name.plan.json" --report "$folder/$name.html" --fail-if-unchanged || return
    deftonnx check "$folder/$name.deft.onnx" --reference "$model" --eval-data "$evaluation" \
        --max-loss "$max_loss" --json >"$folder/$name.check.json"
}

while read -r model arguments || [ -n "$model" ]; do
    case $model in '' | '#'*) continue ;; esac
    # shellcheck disable=SC2086  # the arguments are words
    optimize_one "$model" $arguments
    code=$?
    echo "$model: exit code $code"
    [ "$first_failure" -ne 0 ] || first_failure=$code
done <"$list"
exit "$first_failure"
