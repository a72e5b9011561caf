#!/usr/bin/env bash
# What should a translator read of a SAMU encoder? The study of README.md, on what `make demo` made:
#   PATH=$PWD/.venv/bin:$PATH examples/demo/views.sh demo_out
# trains four translators that differ in --encoder-view and --encoder-view-noise alone, translates the test set
# and writes demo_out/views/zero_shot.*. A translator that is there is not trained again.
set -euo pipefail
demo=$1
out=$demo/views
user_dir=$(cd "$(dirname "$0")/../.." && pwd)/fairseq_samu
export OMP_NUM_THREADS=1
mkdir -p "$out"

translator() {  # NAME VIEW NOISE
    local hypotheses=$out/$1.generate-test.txt
    given+=(--system "$1=$hypotheses")
    [ ! -f "$hypotheses" ] || return 0
    echo "== $1: see $out/$1.log"
    fairseq-train "$demo/data" --user-dir "$user_dir" --task speech_to_text_samu --source-langs es,fr \
        --train-subset train --valid-subset dev --arch xlsr_mbart_st_tiny --adaptor-layers 1 \
        --encoder-features log_mel --encoder-conv-layers '[(128, 3, 2), (128, 3, 2)]' \
        --speech-encoder-path "$demo/samu_encoder/checkpoint_last.pt" --train-encoder none \
        --encoder-view "$2" --encoder-view-noise "$3" \
        --criterion label_smoothed_nll --label-smoothing 0.1 \
        --optimizer adam --adam-betas '(0.9, 0.98)' --weight-decay 0.01 --clip-norm 1.0 --lr 0.002 \
        --lr-scheduler polynomial_decay --warmup-updates 40 --total-num-update 400 --max-update 400 \
        --max-tokens 1920000 --validate-interval 4 --no-epoch-checkpoints --cpu --num-workers 1 \
        --seed 1 --log-format simple --save-dir "$out/$1" > "$out/$1.log" 2>&1
    fairseq-generate "$demo/data" --user-dir "$user_dir" --task speech_to_text_samu --gen-subset test \
        --path "$out/$1/checkpoint_last.pt" --beam 5 --max-len-b 40 --max-tokens 1600000 --cpu \
        --no-progress-bar > "$hypotheses.part" 2>> "$out/$1.log"
    mv "$hypotheses.part" "$hypotheses"
}

given=()
translator hidden hidden 0
translator projected_without_noise projected 0
translator projected projected 0.7
translator pooled pooled 0
python -m fairseq_samu.zero_shot report --data "$demo/data" --split test "${given[@]}" \
    --baseline hidden --seen es,fr --out "$out"
