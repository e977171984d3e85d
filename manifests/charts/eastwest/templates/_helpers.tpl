{{- define "eastwest.network" -}}
{{- $network := .Values.networkGateway | default .Values.global.network -}}
{{- if not $network }}
{{- fail "networkGateway is empty: name the network that the gateway is the way into" }}
{{- end -}}
{{ $network }}
{{- end }}

{{- define "eastwest.selector" -}}
app: {{ .Values.name | quote }}
istio: eastwestgateway
{{- end }}

{{- define "eastwest.labels" -}}
{{ include "eastwest.selector" . }}
app.kubernetes.io/name: {{ .Values.name | quote }}
app.kubernetes.io/part-of: isthmus
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
topology.istio.io/network: {{ include "eastwest.network" . | quote }}
{{- end }}

{{- define "eastwest.controlPlane" -}}
{{- $rev := .Values.revision -}}
{{- .Values.controlPlane.service | default (ternary "istiod" (printf "istiod-%s" $rev) (or (not $rev) (eq $rev "default"))) -}}
{{- end }}

{{- /*
The names under which proxies and API servers call the control plane: those of its certificate. A name in
the cluster's domain is not among them.
*/}}
{{- define "eastwest.controlPlaneHosts" -}}
{{- $hosts := list }}
{{- range list "istiod" (include "eastwest.controlPlane" .) "istiod-remote" "istio-pilot" }}
{{- $hosts = append $hosts (printf "%s.%s.svc" . $.Release.Namespace) }}
{{- end }}
{{- toYaml (concat $hosts .Values.controlPlane.hosts | uniq) }}
{{- end }}
