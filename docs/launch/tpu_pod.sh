#!/bin/bash
# Train on a slice of Cloud TPUs with several hosts; JAX finds the hosts by itself.
#
#     docs/launch/tpu_pod.sh create|wait|install|train|log|stop|delete
#
# `train` starts a process on each host that outlives the connection, `log` follows the first host's
# output, `stop` asks for a checkpoint and an end; `train` again goes on from it.
# SHARED is a folder that all hosts see under the same name, such as a mounted Filestore share: the
# workdir and the data are there. When a spot slice is taken away, begin again with delete.

set -euo pipefail

NAME=${NAME:-flowmatch}
ZONE=${ZONE:-us-east5-b}
TYPE=${TYPE:-v6e-16}                # 16 chips on 4 hosts
RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} # belongs to the type
REPOSITORY=${REPOSITORY:-}          # of this code, for git clone
SHARED=${SHARED:-/mnt/shared}

on() { # WORKER COMMAND: run it on one host, or on all
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

case "${1:-}" in
create) # queued: it starts when there is room
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
    ;;
wait)
    until gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
        --format="value(state.state)" | grep -q "^ACTIVE$"; do
        sleep 60
    done
    ;;
install) # Python 3.12, since the images' own is older than 3.11
    on all "pip install --user uv && git clone '${REPOSITORY:?of this code}' flowmatch &&
        cd flowmatch && ~/.local/bin/uv venv --python=3.12 &&
        ~/.local/bin/uv pip install 'jax[tpu]' -r requirements.txt"
    ;;
train)
    on all "cd flowmatch && {
        nohup .venv/bin/python main.py --config=configs/imagenet64_ot.py \
        --workdir=$SHARED/runs/imagenet64_ot --config.data.data_dir=$SHARED/data \
        >> train.log 2>&1 < /dev/null &
        echo \$! > train.pid; }"
    ;;
log) on 0 "tail -n 50 -f flowmatch/train.log" ;;
stop) on 0 'kill -TERM $(cat flowmatch/train.pid)' ;; # all hosts stop at the same step
delete) gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet ;;
*)
    echo "usage: $0 create|wait|install|train|log|stop|delete" >&2
    exit 2
    ;;
esac
