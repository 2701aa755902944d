# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Shared by the scripts of the test bed: its directory, its processes, its API server. A test bed is a
# directory with its settings (DIR/env), pid files (DIR/*.pid) and logs (DIR/*.log).

# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

# open_testbed DIR: loads DIR/env of a running test bed.
open_testbed() {
    [[ -n ${1:-} ]] || die "name the directory that was given to hack/testbed/up"
    [[ -f $1/env ]] || die "$1 is not a running test bed: it has no env file"
    # shellcheck source=/dev/null
    . "$1/env"
}

# --- processes -----------------------------------------------------------------------------------

# start_time PID: start time in ticks; with the PID it identifies a process.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The name may contain spaces; it ends at the last parenthesis. The start time is field 22.
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

# running NAME: whether the process that start_daemon started is still running.
running() {
    local pid started
    [[ -f $KPR_TESTBED/$1.pid ]] || return 1
    read -r pid started <"$KPR_TESTBED/$1.pid"
    [[ $(start_time "$pid") == "$started" ]] && alive "$pid"
}

# stop_daemon NAME [SECONDS]: stops that process, but not another one that reuses its PID.
stop_daemon() {
    local pid
    if running "$1"; then
        read -r pid _ <"$KPR_TESTBED/$1.pid"
        end_pid "$pid" "${2:-20}"
    fi
    rm -f "$KPR_TESTBED/$1.pid"
}

# --- the API server ------------------------------------------------------------------------------

# api METHOD PATH [JSON]: sends a request as administrator; fails unless the response is 2xx.
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

# wait_ready NAME SECONDS COMMAND...: polls COMMAND until it succeeds; fails as soon as NAME has exited.
wait_ready() {
    local name=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! running "$name" || ((SECONDS >= deadline)); then
            tail -n 20 "$KPR_TESTBED/$name.log" >&2
            die "$name did not become ready; see $KPR_TESTBED/$name.log"
        fi
        sleep 0.1
    done
}
