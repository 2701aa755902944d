// Grafana's definition of a dashboard: a test checks ours with it.
module kube-proxy-rs/hack/dashboard

go 1.21

require github.com/grafana/grafana-foundation-sdk/go v0.0.22
