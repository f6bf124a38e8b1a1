#!/bin/sh
# Everything that is measured on a CUDA GPU, what matters most first, each within a time of its own: what takes longer is left out.
#
#     benches/cuda.sh target/release/halfbyte OUT [STEP...]
#
# OUT gets a text and a JSON file for each step, or for each that is named. DEVICE=wgpu or cpu runs the same elsewhere. The Python
# packages of tests/golden/requirements.txt, where they are installed, are measured beside it.
set -u
halfbyte=$1 out=$2 device=${DEVICE:-cuda}
shift 2
wanted=" $* "
mkdir -p "$out"
nvidia-smi > "$out/nvidia-smi.txt" 2>&1

# NAME SECONDS COMMAND...
step() {
    name=$1 seconds=$2
    shift 2
    case "$wanted" in "  " | *" $name "*) ;; *) return ;; esac
    begun=$(date +%s)
    timeout "$seconds" "$@" --json "$out/$name.json" > "$out/$name.txt" 2>&1
    echo "$name: exit status $? after $(($(date +%s) - begun)) s"
    tail -n 4 "$out/$name.txt"
}

half="--compute-dtype bf16"
# Passed, it has the kernels chosen that the steps after it measure.
step selftest 240 "$halfbyte" selftest --device "$device"
step train-8b 90 "$halfbyte" bench-training --device "$device" --model llama-3.1-8b --length 512,2048,8192 $half
step bench-8b 120 "$halfbyte" bench --device "$device" --model llama-3.1-8b --rows 1,16,512,2048
# Within 48 GiB first: the peak is that of all until then.
step train-70b 200 "$halfbyte" bench-training --device "$device" --model llama-3.1-70b --length 2048 $half \
    --recompute layers-from-host,layers --optim paged_adamw_32bit
step train-1b 60 "$halfbyte" bench-training --device "$device" --model llama-3.2-1b --length 512,2048,8192 $half
step train-8b-f32 90 "$halfbyte" bench-training --device "$device" --model llama-3.1-8b --length 512,2048
model=$(mktemp -d)
step loading 120 python3 "$(dirname "$0")/loading.py" "$model/llama" --device "$device" --halfbyte "$halfbyte"
rm -r "$model"
step bench-70b 120 "$halfbyte" bench --device "$device" --model llama-3.1-70b --rows 1,16,512,2048
if python3 -c "import peft, bitsandbytes" 2> /dev/null; then
    benches=$(dirname "$0")
    for size in llama-3.1-8b llama-3.2-1b llama-3.1-70b; do
        step "peft-$size" 180 python3 "$benches/peft_training.py" --model "$size" --length 512,2048,8192
    done
    if python3 -c "import importlib.util as i; exit(not i.find_spec('unsloth'))"; then
        step unsloth-llama-3.1-8b 240 python3 "$benches/unsloth_training.py" --model llama-3.1-8b --length 512,2048,8192
    fi
    step bitsandbytes 120 python3 "$benches/bnb.py" --device cuda --model llama-3.1-8b
fi
