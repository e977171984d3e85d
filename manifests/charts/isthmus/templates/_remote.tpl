{{/*
The Service of a control plane that runs elsewhere. The same file is in charts isthmus and remote; a test
holds them equal.
*/}}
{{- define "isthmus.addressType" -}}
{{- $a := .Values.global.remotePilotAddress -}}
{{- if regexMatch "^([0-9]{1,3}[.]){3}[0-9]{1,3}$" $a -}}IPv4
{{- else if regexMatch "^[0-9a-fA-F]*(:[0-9a-fA-F.]*)+$" $a -}}IPv6
{{- end -}}
{{- end }}

{{- define "isthmus.remoteService" -}}
ports:
# ADS and CA over TLS.
- {name: tcp-istiod, port: 15012, protocol: TCP}
# Injection and validation.
- {name: tcp-webhook, port: 443, targetPort: 15017, protocol: TCP}
{{- if not (include "isthmus.addressType" .) }}
# API servers call webhooks at the name with port 443: the primary must answer there too.
type: ExternalName
externalName: {{ .Values.global.remotePilotAddress | quote }}
{{- end }}
{{- end }}

{{- define "isthmus.remoteSlice" -}}
{{- with include "isthmus.addressType" . }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {{ include "isthmus.name" $ }}
  namespace: {{ $.Release.Namespace }}
  labels:
    {{- include "isthmus.labels" $ | nindent 4 }}
    kubernetes.io/service-name: {{ include "isthmus.name" $ }}
    endpointslice.kubernetes.io/managed-by: {{ $.Release.Service | quote }}
addressType: {{ . }}
endpoints:
- addresses: [{{ $.Values.global.remotePilotAddress | quote }}]
  conditions: {ready: true}
ports:
- {name: tcp-istiod, port: 15012, protocol: TCP}
- {name: tcp-webhook, port: 15017, protocol: TCP}
{{- end }}
{{- end }}
