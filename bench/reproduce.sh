#!/usr/bin/env bash
# Measures what the README quotes, in stages of a few minutes each on one H200:
#     bench/reproduce.sh STAGE [DIR [MODEL...]]
# Tables and JSON go to DIR/<hardware>/ (default: this repository). Stages stand in the README beside their figures.
# Stages of several models (families, graph, eager) measure all, or those that are named.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:?give a stage: llama, families, repeat, clock, graph, eager, deep}
dir=${2:-.}
hardware=${HARDWARE:-H200}
every_8th=(--prefill-step 8 --decode-step 8)

profile() { # model, further options
    local model=$1
    shift
    python3 run_profile.py --hardware "$hardware" --model "$model" --load-format dummy --output-dir "$dir" "$@"
}

validate() { # runtime, models
    local runtime=$1 model
    shift
    for model in "$@"; do
        # exit code 4 (over the tolerance) is a result, and the next model can still run
        python3 validation.py --csv "$dir/$hardware/$model.csv" --scaling-runtime "$runtime" \
            --scaling-output "$dir/$hardware/$model-$runtime.csv" || [ $? = 4 ]
    done
}

models=(meta-llama/Llama-3.1-8B facebook/opt-6.7b Qwen/Qwen3-8B microsoft/Phi-mini-MoE-instruct)
declare -A options=(
    [facebook/opt-6.7b]="--decode-max 2047" # its positions end at 2,048 tokens
    # its rotary table, once a model, takes as long as some layers of one block: four blocks put it in proportion
    [microsoft/Phi-mini-MoE-instruct]="--num-layers 4"
)
named=("${@:3}")

case $stage in
    llama) # the full sweep: every length from 1 to 2,048 in both phases
        profile meta-llama/Llama-3.1-8B --skip-scaling
        python3 bench/roofline.py "$dir/$hardware/meta-llama/Llama-3.1-8B.csv" --bandwidth 4.8e12 --flops 989e12
        ;;
    families) # every 8th length of the other families
        for model in "${named[@]:-${models[@]:1}}"; do
            read -ra own <<<"${options[$model]:-}"
            profile "$model" "${every_8th[@]}" "${own[@]}" --skip-scaling
        done
        ;;
    repeat) # two sweeps of every 8th length, one after the other, compared
        for again in once twice; do
            python3 run_profile.py --hardware "$again" --model meta-llama/Llama-3.1-8B --load-format dummy \
                "${every_8th[@]}" --skip-scaling --output-dir "$dir"
        done
        python3 bench/compare_tables.py "$dir"/{once,twice}/meta-llama/Llama-3.1-8B.csv
        ;;
    clock) # the same passes by CUDA events
        python3 bench/independent_clock.py --model meta-llama/Llama-3.1-8B
        ;;
    graph | eager) # estimated against real, at full depth
        runtime=$stage
        [ "$stage" = eager ] || runtime=cuda-graph
        validate "$runtime" "${named[@]:-${models[@]}}"
        ;;
    deep) # a model whose weights fill most of the card
        profile mistralai/Mixtral-8x7B-v0.1 --prefill-step 16 --decode-step 16 --skip-scaling
        validate cuda-graph mistralai/Mixtral-8x7B-v0.1
        ;;
    *)
        echo "bench/reproduce.sh: no stage $stage: choose llama, families, repeat, clock, graph, eager or deep" >&2
        exit 2
        ;;
esac
