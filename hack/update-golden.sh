#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Writes the files below tests/golden and crates/core/tests/golden, docs/configuration.md and docs/metrics.md anew from
# what the code does now, and what the Helm chart renders where KPR_TESTBED is set.
# Look at the difference.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
cd "$REPO"

export UPDATE_GOLDEN=1
cargo test --locked -p kpr-core --lib every_variant_is_as_recorded
cargo test --locked --lib the_document_is_as_the_code
[[ ! -e tests/golden/main.rs ]] || cargo test --locked --test golden
# What the chart renders; needs a test bed (hack/testbed/up).
[[ -z ${KPR_TESTBED:-} ]] || cargo test --locked --test cluster_deploy recorded
git --no-pager diff --stat -- tests/golden crates/core/tests/golden docs
