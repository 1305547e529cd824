#!/usr/bin/env bash
# Profiles the models below, one after another. Edit the settings, then run ./run.sh
# Options of ./run.sh go to run_profile.py after these settings, so they override them: ./run.sh --plan
set -euo pipefail
cd "$(dirname "$0")"

# ---- Settings: edit here -------------------------------------------------------------------------------------------

MODELS=("meta-llama/Llama-3.1-8B" "microsoft/Phi-mini-MoE-instruct")
HARDWARE=""                # folder of the results; empty: the GPU's short name
DEVICE=""                  # cuda, cuda:N or cpu; empty: cuda, or tiny-llama on the CPU if no GPU is found
NUM_LAYERS=1               # decoder blocks to profile, of each kind
WARMUP=10                  # most uncounted passes at each point, before those that count
REPEAT=100                 # most passes at each point that count
MODE=both                  # prefill, decode or both
PREFILL_MAX=2048           # longest prompt, in tokens
DECODE_MAX=2048            # longest KV cache before a decode step, in tokens
SCALING_NUM_LAYERS=32      # decoder blocks of the real model in the validation: the depth of the models above
SCALING_INPUT_MIN=128      # prompt and output lengths of the validation, in tokens
SCALING_INPUT_MAX=1024
SCALING_INPUT_STEP=128
SCALING_REPEAT=3           # how often each step of the real model is timed in each process
OPTIONS=(--verbose)        # any other options of run_profile.py
HF_TOKEN=${HF_TOKEN:-}     # better set outside, with: export HF_TOKEN=...; do not commit a token

# ---- Set-up: the variables TORCH, VENV, PYTHON and LATEST change it, see llm_profile/setup_env.sh -------------------

. llm_profile/setup_env.sh
set_up requirements.txt

if [ -n "$HF_TOKEN" ]; then
    export HF_TOKEN  # never on the command line, where every user of the machine could read it
fi

if [ -z "$DEVICE" ] && has_gpu; then
    DEVICE=cuda
elif [ -z "$DEVICE" ]; then
    echo "run.sh: no GPU found: profiling tiny-llama on the CPU instead, as a demonstration" >&2
    echo "run.sh: wall times on a CPU vary with everything else that runs there, so errors of up to 40 % pass" >&2
    DEVICE=cpu
    MODELS=(tiny-llama)
    WARMUP=2
    REPEAT=10
    PREFILL_MAX=128
    DECODE_MAX=256
    SCALING_NUM_LAYERS=4
    SCALING_INPUT_MIN=32
    SCALING_INPUT_MAX=128
    SCALING_INPUT_STEP=32
    SCALING_REPEAT=9
    OPTIONS+=(--scaling-tolerance 40)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # on a busy machine, several threads would wait for each other
fi

# ---- Jobs ----------------------------------------------------------------------------------------------------------

if [ -n "$HARDWARE" ]; then
    OPTIONS+=(--hardware "$HARDWARE")
fi

for option in "$@"; do
    case $option in
        --model | --model=*) MODELS=("") ;;  # they take the place of those above
    esac
done

worst=0
for model in "${MODELS[@]}"; do
    code=0
    "$PYTHON" run_profile.py \
        ${model:+--model "$model"} --num-layers "$NUM_LAYERS" --device "$DEVICE" \
        --warmup "$WARMUP" --repeat "$REPEAT" --mode "$MODE" \
        --prefill-max "$PREFILL_MAX" --decode-max "$DECODE_MAX" \
        --scaling-num-layers "$SCALING_NUM_LAYERS" --scaling-input-min "$SCALING_INPUT_MIN" \
        --scaling-input-max "$SCALING_INPUT_MAX" --scaling-input-step "$SCALING_INPUT_STEP" \
        --scaling-repeat "$SCALING_REPEAT" ${OPTIONS[@]+"${OPTIONS[@]}"} "$@" || code=$?
    case $code in
        0 | 3 | 4) ;;  # complete; points missing; validation over tolerance: the next model can still run
        *) exit "$code" ;;
    esac
    if [ "$code" -gt "$worst" ]; then
        worst=$code
    fi
done
exit "$worst"
