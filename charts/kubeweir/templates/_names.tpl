{{- define "kubeweir.labels" -}}
app.kubernetes.io/name: kubeweir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "kubeweir.selector" -}}
app.kubernetes.io/name: kubeweir
{{- end }}

{{- define "kubeweir.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kubeweir.configMap" -}}
{{ .Values.existingConfigMap | default "kubeweir" }}
{{- end }}

{{/* What the chart writes into the configuration unless .Values.config says otherwise. */}}
{{- define "kubeweir.configDefaults" -}}
clientConnection:
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
{{- if .Values.metrics.enabled }}
metricsBindAddress: "0.0.0.0:{{ .Values.metrics.port }}"
{{- end }}
{{- if not .Values.privileged }}
# What the kubelet gives to node-critical containers: less than this needs CAP_SYS_RESOURCE.
oomScoreAdj: -997
{{- end }}
{{- end }}

{{- define "kubeweir.command" -}}
- /usr/local/bin/kube-proxy
- --config=/var/lib/kube-proxy/config.conf
- --hostname-override=$(NODE_NAME)
{{- end }}

{{- define "kubeweir.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end }}

{{- define "kubeweir.mounts" -}}
- name: config
  mountPath: /var/lib/kube-proxy
  readOnly: true
- name: xtables-lock
  mountPath: /run/xtables.lock
{{- end }}
