#!/usr/bin/env bash
# What only a GPU can say: run.sh [FOLDER], with the project and its tests' packages installed for
# the active `python`. Under eight minutes; the network is not needed. All of it goes to FOLDER,
# else $OUT, else outputs/gpu; a part that fails does not stop the others. The exit code is 0 when
# all parts passed.
set -uo pipefail
export LC_ALL=C.UTF-8  # a point in numbers
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
out=${1:-${OUT:-outputs/gpu}}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
summary=$out/summary.txt
failed=0

# part NAME LIMIT COMMAND...: NAME.out and NAME.err are what it says, LIMIT its seconds.
part() {
  local name=$1 limit=$2 start=$EPOCHREALTIME code said
  shift 2
  timeout --signal=INT --kill-after=5 "$limit" "$@" >"$out/$name.out" 2>"$out/$name.err"
  code=$?
  case $code in
    0) said=passed ;;
    124 | 137) said="ran past $limit s" ;;
    *) said="failed, exit code $code" ;;
  esac
  [ "$code" = 0 ] || failed=1
  awk -v name="$name" -v said="$said" -v start="$start" -v end="$EPOCHREALTIME" \
    'BEGIN { printf "%-22s %7.1f s  %s\n", name, end - start, said }' | tee -a "$summary"
}

: >"$summary"
part card 25 python -c '
from importlib.metadata import version

import torch

assert torch.cuda.is_available(), "PyTorch sees no GPU here"
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
print("torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())
print("lightning", version("lightning"), "seqlab", version("seqlab"))
with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
    lstm = torch.nn.LSTM(1, 1, device="cuda")
    print("bf16-mixed computes an LSTM in", lstm(torch.ones(1, 1, 1, device="cuda"))[0].dtype)'
if [ "$failed" = 1 ]; then
  tail -n 1 "$out/card.err"
  exit 2
fi
tee -a "$summary" <"$out/card.out"

workers=()
! python -c 'import xdist' 2>/dev/null || workers=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
part tests 110 python -m pytest tests/gpu -v -rA -p no:cacheprovider ${workers[@]+"${workers[@]}"}
tail -n 1 "$out/tests.out" | tee -a "$summary"
grep -E '^(FAILED|ERROR)' "$out/tests.out" | cut -c 1-200 | tee -a "$summary"

part figures 280 python benchmarks/overhead.py --device cuda --json "$out/figures.json" \
  --size bf16 --size dropout --size reference --size medium --size large
tee -a "$summary" <"$out/figures.out"

part copy_t50 50 python train.py experiment=copy_t50 trainer=gpu "hydra.run.dir=$out/copy_t50"
grep -hs 'no CUDA graph' "$out/copy_t50/train.log" | tee -a "$summary"
tail -n 15 "$out/copy_t50.out"

echo
cat "$summary"
exit "$failed"
