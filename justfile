# SPDX-License-Identifier: Apache-2.0
# Short names for what is under hack/; `just --list` shows them. Each script explains itself at its top.

# All tiers, or those that are named: `just test lint unit`.
test *TIERS:
    hack/test {{TIERS}}

# What a commit must pass at least.
check:
    hack/test lint unit

# Formats Rust and wraps comments and Markdown.
fmt:
    cargo fmt --all
    hack/lint/width --fix

# Golden files and the documents that are made from the code.
golden:
    hack/update-golden.sh

# Real traffic through every kind of Service: `just demo --mode=iptables`.
demo *OPTIONS:
    hack/demo {{OPTIONS}}

# A command in a kernel that has IPVS: `just guest ipvsadm -Ln`.
guest +COMMAND:
    hack/guest -- {{COMMAND}}

# The container image, without a container engine.
image *OPTIONS:
    hack/image {{OPTIONS}}

# Kubelets, containerd and our DaemonSet on this machine: `just cluster up`.
cluster +ARGUMENTS:
    hack/cluster {{ARGUMENTS}}

# Kubernetes' own tests against it: `just e2e iptables services`.
e2e *OPTIONS:
    hack/e2e {{OPTIONS}}

# Beside kube-proxy: `just bench --quick`.
bench *OPTIONS:
    hack/bench {{OPTIONS}}

# Decoding and planning alone: `just micro plan`.
micro *FILTER:
    cargo bench --locked --bench decode --bench plan -- {{FILTER}}

# Licences, banned and duplicate crates, sources, advisories.
deny:
    hack/lint/deny

# The documentation of all crates, private items included.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
