{{- define "kube-proxy-rs.labels" -}}
{{ include "kube-proxy-rs.selector" . }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "kube-proxy-rs.selector" -}}
k8s-app: kube-proxy-rs
{{- end }}

{{- define "kube-proxy-rs.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default "kube-proxy-rs" }}{{ else }}{{ required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* KubeProxyConfiguration: values that are set, then extraConfig over them. */}}
{{- define "kube-proxy-rs.config" -}}
{{- $config := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" "mode" .Values.mode -}}
{{- $_ := set $config "featureGates" (mergeOverwrite (dict "AllowServiceExternalIPs" .Values.serviceExternalIPs) (deepCopy .Values.featureGates)) -}}
{{- range $field := list "clusterCIDR" "nodePortAddresses" "metricsBindAddress" "healthzBindAddress" "conntrack" }}
{{- with index $.Values $field }}{{ $_ := set $config $field . }}{{ end }}
{{- end }}
{{- range $section := list "ipvs" "iptables" }}
{{- $fields := dict }}
{{- range $field, $value := index $.Values $section }}
{{- if not (or (kindIs "invalid" $value) (and (kindIs "string" $value) (eq $value "")) (and (kindIs "slice" $value) (empty $value))) }}
{{- $_ := set $fields $field (kindIs "float64" $value | ternary (int $value) $value) }}
{{- end }}
{{- end }}
{{- $_ := set $config $section $fields }}
{{- end }}
{{- mergeOverwrite $config (deepCopy .Values.extraConfig) | toYaml }}
{{- end }}

{{- define "kube-proxy-rs.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}
