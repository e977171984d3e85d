{{/*
Injection webhooks. The same file is in charts isthmus and remote; a test holds them equal.

A webhook is named after the label that decides. Called with: Prefix, and what selects.
*/}}
{{- define "isthmus.injectionWebhook" -}}
- name: {{ .prefix }}.sidecar-injector.istio.io
  clientConfig:
    {{- if .root.Values.istiodRemote.injectionURL }}
    url: {{ .root.Values.istiodRemote.injectionURL | quote }}
    {{- else }}
    service:
      name: {{ include "isthmus.name" .root }}
      namespace: {{ .root.Release.Namespace }}
      path: {{ include "isthmus.injectionPath" .root | quote }}
      port: 443
    {{- end }}
    {{- with .root.Values.istiodRemote.injectionCABundle }}
    caBundle: {{ . | quote }}
    {{- end }}
  rules:
  - operations: [CREATE]
    apiGroups: [""]
    apiVersions: [v1]
    resources: [pods]
    scope: Namespaced
  sideEffects: None
  failurePolicy: {{ .root.Values.sidecarInjectorWebhook.failurePolicy }}
  reinvocationPolicy: {{ .root.Values.sidecarInjectorWebhook.reinvocationPolicy }}
  matchPolicy: Equivalent
  timeoutSeconds: 10
  admissionReviewVersions: [v1]
{{- end }}

{{/* Webhooks of everything that asks for a revision or a tag by istio.io/rev. Called with root and name. */}}
{{- define "isthmus.revisionWebhooks" -}}
{{- /* The namespace asks, the pod does not refuse. istio-injection on the namespace goes before. */}}
{{ include "isthmus.injectionWebhook" (dict "root" .root "prefix" "rev.namespace") }}
  namespaceSelector:
    matchExpressions:
    - {key: istio.io/rev, operator: In, values: [{{ .name | quote }}]}
    - {key: istio-injection, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
{{- /* The namespace says nothing, the pod asks. */}}
{{ include "isthmus.injectionWebhook" (dict "root" .root "prefix" "rev.object") }}
  namespaceSelector:
    matchExpressions:
    - {key: istio.io/rev, operator: DoesNotExist}
    - {key: istio-injection, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
    - {key: istio.io/rev, operator: In, values: [{{ .name | quote }}]}
{{- end }}

{{/* Webhooks of everything that asks for injection without naming a revision. Called with the root. */}}
{{- define "isthmus.defaultWebhooks" -}}
{{ include "isthmus.injectionWebhook" (dict "root" . "prefix" "namespace") }}
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: In, values: [enabled]}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
{{ include "isthmus.injectionWebhook" (dict "root" . "prefix" "object") }}
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: In, values: ["true"]}
    - {key: istio.io/rev, operator: DoesNotExist}
{{- if .Values.sidecarInjectorWebhook.enableNamespacesByDefault }}
{{ include "isthmus.injectionWebhook" (dict "root" . "prefix" "auto") }}
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: [kube-system, kube-public, kube-node-lease, local-path-storage, {{ .Release.Namespace }}]
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
{{- end }}
{{- end }}

{{/* One configuration. Called with root, metadata name, the istio.io/rev value asked for, tag and default. */}}
{{- define "isthmus.injectionConfiguration" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata:
  name: {{ .metadataName }}{{ if ne .root.Release.Namespace "istio-system" }}-{{ .root.Release.Namespace }}{{ end }}
  labels:
    {{- include "isthmus.labels" .root | nindent 4 }}
    app: sidecar-injector
    {{- with .tag }}
    istio.io/tag: {{ . | quote }}
    {{- end }}
  {{- with .root.Values.sidecarInjectorWebhookAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
webhooks:
{{- include "isthmus.revisionWebhooks" (dict "root" .root "name" .name) }}
{{- if .default }}
{{ include "isthmus.defaultWebhooks" .root }}
{{- end }}
{{- end }}
