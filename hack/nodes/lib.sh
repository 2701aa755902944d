# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Shared by hack/cluster, hack/e2e and what is in this folder: a cluster is a folder with its settings (DIR/env), pid
# files and logs, as a test bed is.

# shellcheck source=hack/testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../testbed/lib.sh"

# The cluster unless another one is named.
CLUSTER=${KPR_CLUSTER:-$CACHE/cluster}

# Everything is in network namespaces of its own, so that the addresses may be the same in each cluster and on each
# machine. The hub (.1) has the control plane and is outside of the cluster; node N is .(10+N).
# shellcheck disable=SC2034 # for those who source this
{
    NET4=10.210.0 NET6=fd00:210:
    PODS4=10.244 PODS6=fd00:10:244
    SERVICES4=10.96.0.0/16 SERVICES6=fd00:10:96::/112
    DNS=10.96.0.10
    API_SERVER=https://$NET4.1:6443
    CLUSTER_CIDR=$PODS4.0.0/16,$PODS6::/48
}

# open_cluster: loads the settings of the running cluster.
open_cluster() {
    [[ -f $CLUSTER/env ]] || die "no cluster in $CLUSTER: hack/cluster up"
    # shellcheck source=/dev/null
    . "$CLUSTER/env"
}

# in_hub COMMAND...: runs it where the control plane is.
in_hub() { ip netns exec "$HUB" "$@"; }

# k ARGUMENT...: kubectl as administrator.
k() { in_hub "$BIN/kubectl" --kubeconfig "$CLUSTER/admin.kubeconfig" "$@"; }

# on_node N COMMAND...: runs it on the node as root, in all its namespaces.
on_node() {
    local node=$1 pid first
    shift
    running "node$node" || die "node $node is not running"
    if [[ " $GUESTS " == *" $node "* ]]; then
        on_guest "$node" "$@"
        return
    fi
    read -r pid _ <"$CLUSTER/node$node.pid"
    first=$(children_of "$pid" | head -n 1)
    [[ $first ]] || die "node $node has no process"
    nsenter --target "$first" --all -- "$@"
}

# on_guest N COMMAND...: through files, which the guest shares with this machine.
on_guest() (
    prefix=$CLUSTER/n$1
    shift
    flock 9
    rm -f "$prefix".{code,output}
    printf '%q ' "$@" >"$prefix.command.new"
    mv "$prefix.command.new" "$prefix.command"
    wait_for 900 test -e "$prefix.code" || die "no answer from the guest: $*"
    cat "$prefix.output"
    exit "$(cat "$prefix.code")"
) 9>"$CLUSTER/n$1.lock"
