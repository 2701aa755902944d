#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Regenerates every file that a test compares with the code: golden plans (tests/golden), golden rules
# (crates/core/tests/golden), docs/configuration.md, docs/metrics.md, and what the Helm chart renders
# (tests/golden/helm). Review the diff before you commit it.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
cd "$REPO"

usage() {
    cat >&2 <<'END'
usage: hack/update-golden.sh [--without-helm]

  --without-helm  skip the chart, which needs root and a test bed: that of KPR_TESTBED, else one is started
END
    exit 2
}

helm=yes
while (($#)); do
    case $1 in
        --without-helm) helm=no && shift ;;
        *) usage ;;
    esac
done
# shellcheck disable=SC2119 # it needs no component
need_rust

export UPDATE_GOLDEN=1
cargo test --locked -p kpr-core --lib every_variant_is_as_recorded
cargo test --locked -p kube-proxy-rs --lib the_document_is_as_the_code
cargo test --locked -p kube-proxy-rs --test golden
if [[ $helm == yes ]]; then
    if [[ -z ${KPR_TESTBED:-} ]]; then
        need_root
        make_scratch
        KPR_TESTBED=$SCRATCH/testbed
        down() { [[ ! -e $KPR_TESTBED/env ]] || "$REPO/hack/testbed/down" "$KPR_TESTBED"; }
        on_exit down
        hack/testbed/up "$KPR_TESTBED"
        export KPR_TESTBED
    fi
    cargo test --locked -p kube-proxy-rs --test cluster_deploy every_value_set_is_as_recorded
fi
git --no-pager diff --stat -- tests/golden crates/core/tests/golden docs
