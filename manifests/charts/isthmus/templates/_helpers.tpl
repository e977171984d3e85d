{{/* Revision as labels and the environment name it. */}}
{{- define "isthmus.rev" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{/* Ending of the names of a revision's objects: none for the default revision. */}}
{{- define "isthmus.suffix" -}}
{{ if ne (include "isthmus.rev" .) "default" }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{/* Name of the control plane's Deployment, Service and ServiceAccount. */}}
{{- define "isthmus.name" -}}
istiod{{ include "isthmus.suffix" . }}
{{- end }}

{{/* Cluster-wide objects also carry the namespace, so that two installations do not meet. */}}
{{- define "isthmus.wide" -}}
isthmus{{ include "isthmus.suffix" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "isthmus.labels" -}}
app.kubernetes.io/name: istiod
app.kubernetes.io/part-of: isthmus
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
release: {{ .Release.Name | quote }}
istio.io/rev: {{ include "isthmus.rev" . | quote }}
{{- end }}

{{/* What selects the control plane's pods. istiod's, because selectors cannot be changed afterwards. */}}
{{- define "isthmus.selector" -}}
{{- if include "isthmus.suffix" . -}}
app: istiod
istio.io/rev: {{ .Values.revision | quote }}
{{- else -}}
istio: pilot
{{- end -}}
{{- end }}

{{/* The same for Services and budgets, which can be changed: also names the app. */}}
{{- define "isthmus.podSelector" -}}
app: istiod
{{ if include "isthmus.suffix" . }}istio.io/rev: {{ .Values.revision | quote }}{{ else }}istio: pilot{{ end }}
{{- end }}

{{/* Whether the control plane runs in this cluster. */}}
{{- define "isthmus.here" -}}
{{ if and .Values.pilot.enabled (not .Values.global.configCluster) }}true{{ end }}
{{- end }}

{{- define "isthmus.image" -}}
{{- if contains "/" .Values.pilot.image -}}
{{ .Values.pilot.image }}
{{- else -}}
{{ .Values.pilot.hub | default .Values.global.hub }}/{{ .Values.pilot.image }}:{{ .Values.pilot.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "isthmus.injectionPath" }}{{ .Values.istiodRemote.injectionPath | default "/inject" }}{{ end }}

{{/* The mesh's settings that follow from other values; meshConfig goes over them. */}}
{{- define "isthmus.mesh" -}}
trustDomain: cluster.local
rootNamespace: {{ .Values.meshConfig.rootNamespace | default .Release.Namespace | quote }}
defaultProviders:
  metrics: [prometheus]
defaultConfig:
  {{- with .Values.global.meshID }}
  meshId: {{ . | quote }}
  {{- end }}
  {{- with .Values.global.variant }}
  image:
    imageType: {{ . | quote }}
  {{- end }}
  {{- if ne (float64 .Values.pilot.traceSampling) 1.0 }}
  tracing:
    sampling: {{ float64 .Values.pilot.traceSampling }}
  {{- end }}
  discoveryAddress: {{ include "isthmus.name" . }}.{{ .Release.Namespace }}.svc:15012
{{- end }}

{{/* Stops a release that cannot work, with the reason. */}}
{{- define "isthmus.check" -}}
{{- if ne .Values.global.istioNamespace .Release.Namespace }}
{{- fail (printf "global.istioNamespace is %q and the release goes to namespace %q: they must be the same" .Values.global.istioNamespace .Release.Namespace) }}
{{- end }}
{{- if and .Values.global.configCluster (not .Values.global.remotePilotAddress) (not .Values.istiodRemote.injectionURL) }}
{{- fail "global.configCluster needs global.remotePilotAddress: the address of the control plane that runs elsewhere" }}
{{- end }}
{{- if ne .Values.global.pilotCertProvider "istiod" }}
{{- fail (printf "global.pilotCertProvider is %q: only istiod is supported, which is the mesh's own CA" .Values.global.pilotCertProvider) }}
{{- end }}
{{- range .Values.revisionTags }}
{{- if eq . (include "isthmus.rev" $) }}
{{- fail (printf "revisionTags has %q, which is the revision itself" .) }}
{{- end }}
{{- end }}
{{- end }}
