#!/usr/bin/env bash
# Measures the figures of docs/results.md, in stages of a few minutes each on one H200:
#     bench/reproduce.sh STAGE [DIR [MODEL...]]
# Tables and JSON are written to DIR/<hardware>/ (default: this repository). docs/results.md names the stage of each
# figure. Stages of several models (full, families, architectures, graph, eager, judge) run the models that are named,
# or all of theirs.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:?give a stage: full, families, architectures, hundred, clock, graph, eager, judge, causes, deep}
dir=${2:-.}
hardware=${HARDWARE:-H200}

profile() { # model, further options
    local model=$1 own
    shift
    read -ra own <<<"${options[$model]:-}"
    python3 run_profile.py --hardware "$hardware" --model "$model" --load-format dummy --output-dir "$dir" \
        "${own[@]}" "$@"
}

validate() { # runtime, models
    local runtime=$1 model
    shift
    for model in "$@"; do
        # exit code 4 (an error over the tolerance) is a result as well, and the next model follows
        python3 validation.py --csv "$dir/$hardware/$model.csv" --scaling-runtime "$runtime" \
            --scaling-output "$dir/$hardware/$model-$runtime.csv" || [ $? = 4 ]
    done
}

full=(meta-llama/Llama-3.1-8B facebook/opt-6.7b microsoft/Phi-mini-MoE-instruct)
families=(Qwen/Qwen3-8B Qwen/Qwen3-32B)
validated=("${full[@]}" Qwen/Qwen3-8B)
declare -A options=(
    [facebook/opt-6.7b]="--decode-max 2047" # it has positions for 2,048 tokens
    # its rotary table runs once per pass and takes as long as some layers of a block: two blocks halve its share
    [microsoft/Phi-mini-MoE-instruct]="--num-layers 2"
    # measured without the packages of their kernels
    [Qwen/Qwen3-Next-80B-A3B-Instruct]="--allow-slow-path"
    [tiiuae/falcon-mamba-7b]="--allow-slow-path --prefill-max 256 --decode-max 256"
)
architectures=(
    Qwen/Qwen3-8B Qwen/Qwen3-30B-A3B mistralai/Mixtral-8x7B-v0.1 google/gemma-3-12b-it openai/gpt-oss-20b
    deepseek-ai/DeepSeek-V3 Qwen/Qwen3-Next-80B-A3B-Instruct meta-llama/Llama-4-Scout-17B-16E-Instruct microsoft/phi-4
    tiiuae/falcon-mamba-7b
)
named=("${@:3}")

case $stage in
    full) # the full sweep: every length from 1 to 2,048 in both phases
        for model in "${named[@]:-${full[@]}}"; do
            profile "$model" --skip-scaling
            python3 bench/roofline.py "$dir/$hardware/$model.csv" --bandwidth 4.8e12 --flops 989e12
        done
        ;;
    families) # every 8th length of other models
        for model in "${named[@]:-${families[@]}}"; do
            profile "$model" --prefill-step 8 --decode-step 8 --skip-scaling
        done
        ;;
    architectures) # one block of each kind, all prompts and every 8th cache on the adaptive grid; keeps measured points
        tables=$(mktemp -d)
        for model in "${named[@]:-${architectures[@]}}"; do
            profile "$model" --grid adaptive --decode-step 8 --skip-scaling --output-dir "$tables"
            table=$hardware/$model
            mkdir -p "$(dirname "$dir/$table")"
            python3 -c 'import sys, pandas; rows = pandas.read_parquet(sys.argv[1]); \
rows[rows.source == "measured"].to_parquet(sys.argv[2], compression="zstd", index=False)' \
                "$tables/$table.rows.parquet" "$dir/$table.measured.parquet"
            cp "$tables/$table.meta.json" "$dir/$table.measured.meta.json"
        done
        ;;
    hundred) # every 16th length with exactly 100 passes, compared with the table of the full sweep
        hardware=$stage profile meta-llama/Llama-3.1-8B --overwrite --skip-scaling \
            --prefill-step 16 --decode-step 16 --repeat 100 --precision 0
        python3 bench/compare_tables.py "$dir"/{"$hardware","$stage"}/meta-llama/Llama-3.1-8B.csv
        ;;
    clock) # the sums of rows compared with the same passes timed by CUDA events
        python3 bench/independent_clock.py --model meta-llama/Llama-3.1-8B
        ;;
    graph | eager) # tables compared with the real model at full depth
        runtime=$stage
        [ "$stage" = eager ] || runtime=cuda-graph
        validate "$runtime" "${named[@]:-${validated[@]}}"
        ;;
    judge) # scaled tables of the stages graph and eager, judged by a script that imports nothing of this project
        for model in "${named[@]:-${validated[@]}}"; do
            for runtime in eager cuda-graph; do
                python3 bench/as_a_user.py --csv "$dir/$hardware/$model-$runtime.csv" --runtime "$runtime" \
                    --pairs 97x33 311x17 777x17 1333x9 --repeat 4 --json "$dir/$hardware/$model-$runtime.judged.json"
            done
        done
        ;;
    causes) # why eager steps are slower in a process that has run a sweep
        python3 bench/eager_causes.py --rounds 15 --json "bench/results/eager_causes_$hardware.json"
        ;;
    deep) # a model whose weights fill most of the card
        profile mistralai/Mixtral-8x7B-v0.1 --prefill-step 16 --decode-step 16 --skip-scaling
        validate cuda-graph mistralai/Mixtral-8x7B-v0.1
        ;;
    *)
        echo "bench/reproduce.sh: no stage $stage: choose full, families, architectures, hundred, clock, graph, eager, judge, causes or deep" >&2
        exit 2
        ;;
esac
