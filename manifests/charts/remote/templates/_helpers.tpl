{{- define "isthmus.rev" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{- define "isthmus.suffix" -}}
{{ if ne (include "isthmus.rev" .) "default" }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{/* Name under which this cluster knows the primary's control plane. */}}
{{- define "isthmus.name" -}}
istiod{{ include "isthmus.suffix" . }}
{{- end }}

{{/* Cluster-wide objects also carry the namespace, so that two installations do not meet. */}}
{{- define "isthmus.wide" -}}
isthmus-reader{{ include "isthmus.suffix" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "isthmus.labels" -}}
app.kubernetes.io/name: istiod-remote
app.kubernetes.io/part-of: isthmus
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
release: {{ .Release.Name | quote }}
istio.io/rev: {{ include "isthmus.rev" . | quote }}
{{- end }}

{{/* Path that tells the primary which cluster asks. A slash in a name would end it. */}}
{{- define "isthmus.injectionPath" -}}
{{- if .Values.istiodRemote.injectionPath -}}
{{ .Values.istiodRemote.injectionPath }}
{{- else -}}
/inject/cluster/{{ .Values.global.multiCluster.clusterName | replace "/" "--slash--" }}
{{- with .Values.global.network }}/net/{{ . | replace "/" "--slash--" }}{{ end }}
{{- end -}}
{{- end }}

{{- define "isthmus.reached" -}}
{{ if or .Values.global.remotePilotAddress .Values.istiodRemote.injectionURL }}true{{ end }}
{{- end }}

{{- define "isthmus.check" -}}
{{- if ne .Values.global.istioNamespace .Release.Namespace }}
{{- fail (printf "global.istioNamespace is %q and the release goes to namespace %q: they must be the same" .Values.global.istioNamespace .Release.Namespace) }}
{{- end }}
{{- if and (include "isthmus.reached" .) (not .Values.global.multiCluster.clusterName) (not .Values.istiodRemote.injectionPath) (not .Values.istiodRemote.injectionURL) }}
{{- fail "global.multiCluster.clusterName is empty: proxies could not say which cluster they are of" }}
{{- end }}
{{- end }}
