# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What the scripts of the test bed share: the folder of one test bed, its processes, its API server.
# A test bed is a folder: DIR/env says where everything is, DIR/*.pid who runs, DIR/*.log what they said.

# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

# open_testbed DIR: reads DIR/env of a test bed that is up.
open_testbed() {
    [[ -n ${1:-} ]] || die "which test bed? name the folder that was given to hack/testbed/up"
    [[ -f $1/env ]] || die "$1 is no test bed: it has no env file"
    # shellcheck source=/dev/null
    . "$1/env"
}

# --- processes -----------------------------------------------------------------------------------

# start_time PID: when the kernel started it; with the PID, this names a process for good.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The name, which may hold spaces, ends with the last parenthesis; the start is field 22.
    awk '{print $20}' <<<"${stat##*) }"
}

# start_daemon NAME COMMAND...: runs COMMAND in the background, with a log and a pid file.
start_daemon() {
    local name=$1 pid
    shift
    setsid "$@" </dev/null >>"$KPR_TESTBED/$name.log" 2>&1 &
    pid=$!
    echo "$pid $(start_time "$pid")" >"$KPR_TESTBED/$name.pid"
}

# running NAME: whether the process that start_daemon started is still there.
running() {
    local pid started
    [[ -f $KPR_TESTBED/$1.pid ]] || return 1
    read -r pid started <"$KPR_TESTBED/$1.pid"
    [[ $(start_time "$pid") == "$started" ]] && alive "$pid"
}

# stop_daemon NAME [SECONDS]: ends that process, and no other that may have got its number since.
stop_daemon() {
    local pid
    if running "$1"; then
        read -r pid _ <"$KPR_TESTBED/$1.pid"
        end_pid "$pid" "${2:-20}"
    fi
    rm -f "$KPR_TESTBED/$1.pid"
}

# --- the API server ------------------------------------------------------------------------------

# api METHOD PATH [JSON]: one request as the administrator; fails on any answer but 2xx.
api() {
    curl -sS --fail-with-body --max-time 10 --cacert "$KPR_TESTBED/certs/apiserver.crt" \
        -H "Authorization: Bearer $ADMIN_TOKEN" -H 'Content-Type: application/json' \
        -X "$1" "$API_SERVER$2" ${3:+--data "$3"}
}

start_apiserver() {
    start_daemon kube-apiserver "$BIN/kube-apiserver" \
        --etcd-servers="$ETCD" \
        --bind-address="$HOST4" --advertise-address="$HOST4" --secure-port="$API_PORT" \
        --cert-dir="$KPR_TESTBED/certs" \
        --service-account-issuer="$API_SERVER" \
        --service-account-key-file="$KPR_TESTBED/service-account.pem" \
        --service-account-signing-key-file="$KPR_TESTBED/service-account.pem" \
        --token-auth-file="$KPR_TESTBED/tokens.csv" \
        --service-cluster-ip-range="$CIDR4${CIDR6:+,$CIDR6}" \
        --authorization-mode=Node,RBAC --allow-privileged=true \
        --disable-admission-plugins=ServiceAccount
    wait_ready kube-apiserver 300 api GET /readyz
}

# wait_ready NAME SECONDS COMMAND...: until COMMAND succeeds; at once an error when NAME has ended.
wait_ready() {
    local name=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! running "$name" || ((SECONDS >= deadline)); then
            tail -n 20 "$KPR_TESTBED/$name.log" >&2
            die "$name did not become ready; its log is $KPR_TESTBED/$name.log"
        fi
        sleep 0.1
    done
}
