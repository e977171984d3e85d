{{- /* Parts that the templates of Isthmus share. */ -}}

{{- /* The resources of the proxy: annotations of the pod, else the values. */ -}}
{{- define "isthmus.resources" -}}
  {{- $r := dict }}
  {{- $requests := dict }}
  {{- with annotation .ObjectMeta "sidecar.istio.io/proxyCPU" "" }}{{ $_ := set $requests "cpu" . }}{{ end }}
  {{- with annotation .ObjectMeta "sidecar.istio.io/proxyMemory" "" }}{{ $_ := set $requests "memory" . }}{{ end }}
  {{- $limits := dict }}
  {{- with annotation .ObjectMeta "sidecar.istio.io/proxyCPULimit" "" }}{{ $_ := set $limits "cpu" . }}{{ end }}
  {{- with annotation .ObjectMeta "sidecar.istio.io/proxyMemoryLimit" "" }}{{ $_ := set $limits "memory" . }}{{ end }}
  {{- if or $requests $limits }}
    {{- if $requests }}{{ $_ := set $r "requests" $requests }}{{ end }}
    {{- if $limits }}{{ $_ := set $r "limits" $limits }}{{ end }}
  {{- else }}
    {{- $r = .Values.global.proxy.resources | default dict }}
  {{- end }}
  {{- structToJSON $r }}
{{- end }}

{{- /* The image of the proxy: a whole name in the annotation or the values, else hub, name and tag. */ -}}
{{- define "isthmus.image" -}}
  {{- $image := annotation .ObjectMeta "sidecar.istio.io/proxyImage" (.Values.global.proxy.image | default "proxyv2") }}
  {{- if contains "/" $image }}{{ $image | quote }}{{ else }}{{ .ProxyImage | quote }}{{ end }}
{{- end }}

{{- define "isthmus.setupImage" -}}
  {{- $image := annotation .ObjectMeta "sidecar.istio.io/proxyImage" (dig "proxy_init" "image" "proxyv2" .Values.global) }}
  {{- if contains "/" $image }}{{ $image | quote }}{{ else }}{{ .ProxyImage | quote }}{{ end }}
{{- end }}

{{- define "isthmus.pullPolicy" }}
  {{- with .Values.global.imagePullPolicy }}
    imagePullPolicy: {{ . | quote }}
  {{- end }}
{{- end }}

{{- /* The name under which telemetry and policy know the workload. */ -}}
{{- define "isthmus.canonicalName" -}}
  {{- $l := .ObjectMeta.Labels }}
  {{- index $l "service.istio.io/canonical-name" | default (index $l "app.kubernetes.io/name") | default (index $l "app") | default .DeploymentMeta.Name | trunc 63 | trimSuffix "-" | quote }}
{{- end }}

{{- define "isthmus.canonicalRevision" -}}
  {{- $l := .ObjectMeta.Labels }}
  {{- index $l "service.istio.io/canonical-revision" | default (index $l "app.kubernetes.io/version") | default (index $l "version") | default "latest" | trunc 63 | trimSuffix "-" | quote }}
{{- end }}

{{- /* What the agent logs. */ -}}
{{- define "isthmus.logArgs" }}
  {{- $proxy := .Values.global.proxy }}
    - --domain
    - $(POD_NAMESPACE).svc.{{ $proxy.clusterDomain | default "cluster.local" }}
    - {{ printf "--proxyLogLevel=%s" (annotation .ObjectMeta "sidecar.istio.io/logLevel" ($proxy.logLevel | default "warning")) | quote }}
    - {{ printf "--proxyComponentLogLevel=%s" (annotation .ObjectMeta "sidecar.istio.io/componentLogLevel" ($proxy.componentLogLevel | default "misc:error")) | quote }}
    - {{ printf "--log_output_level=%s" (annotation .ObjectMeta "sidecar.istio.io/agentLogLevel" (dig "logging" "level" "" .Values.global | default "default:info")) | quote }}
  {{- if .Values.global.logAsJson }}
    - --log_as_json
  {{- end }}
  {{- with dig "sts" "servicePort" 0 .Values.global }}
    - --stsPort={{ . }}
  {{- end }}
  {{- with $proxy.outlierLogPath }}
    - {{ printf "--outlierLogPath=%s" . | quote }}
  {{- end }}
{{- end }}

{{- /* The environment from which the agent knows who it is and whom to ask. */ -}}
{{- define "isthmus.env" }}
  {{- $global := .Values.global }}
  {{- $ports := list }}
  {{- $names := list }}
  {{- range .Spec.Containers }}
    {{- range .Ports }}{{ $ports = append $ports . }}{{ end }}
    {{- if ne .Name "istio-proxy" }}{{ $names = append $names .Name }}{{ end }}
  {{- end }}
  {{- range .Spec.InitContainers }}
    {{- if eq (structToJSON .RestartPolicy) "\"Always\"" }}
      {{- range .Ports }}{{ $ports = append $ports . }}{{ end }}
    {{- end }}
  {{- end }}
    env:
  {{- if eq .InboundTrafficPolicyMode "localhost" }}
    - name: REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION
      value: "true"
  {{- end }}
    - name: PILOT_CERT_PROVIDER
      value: {{ $global.pilotCertProvider | default "istiod" | quote }}
    - name: CA_ADDR
      value: {{ $global.caAddress | default (printf "istiod%s.%s.svc:15012" (ternary "" (printf "-%s" .Revision) (or (eq .Revision "") (eq .Revision "default"))) ($global.istioNamespace | default "istio-system")) | quote }}
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: POD_NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: INSTANCE_IP
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
    - name: SERVICE_ACCOUNT
      valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}
    - name: HOST_IP
      valueFrom: {fieldRef: {fieldPath: status.hostIP}}
    - name: ISTIO_CPU_LIMIT
      valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "0"}}
    - name: PROXY_CONFIG
      value: {{ protoToJSON .ProxyConfig | quote }}
    - name: ISTIO_META_POD_PORTS
      value: {{ structToJSON $ports | quote }}
    - name: ISTIO_META_APP_CONTAINERS
      value: {{ join "," $names | quote }}
    - name: GOMEMLIMIT
      valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: "0"}}
    - name: GOMAXPROCS
      valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "0"}}
  {{- with .CompliancePolicy }}
    - name: COMPLIANCE_POLICY
      value: {{ . | quote }}
  {{- end }}
    - name: ISTIO_META_CLUSTER_ID
      value: {{ dig "multiCluster" "clusterName" "" $global | default "Kubernetes" | quote }}
    - name: ISTIO_META_NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    - name: ISTIO_META_INTERCEPTION_MODE
      value: {{ annotation .ObjectMeta "sidecar.istio.io/interceptionMode" .ProxyConfig.InterceptionMode | quote }}
  {{- with $global.network }}
    - name: ISTIO_META_NETWORK
      value: {{ . | quote }}
  {{- end }}
  {{- with index .ObjectMeta.Labels "service.istio.io/workload-name" | default .DeploymentMeta.Name }}
    - name: ISTIO_META_WORKLOAD_NAME
      value: {{ . | quote }}
  {{- end }}
  {{- if and .TypeMeta.APIVersion .DeploymentMeta.Name }}
    - name: ISTIO_META_OWNER
      value: {{ printf "kubernetes://apis/%s/namespaces/%s/%ss/%s" .TypeMeta.APIVersion (.DeploymentMeta.Namespace | default "default") (toLower .TypeMeta.Kind) .DeploymentMeta.Name | quote }}
  {{- end }}
  {{- if isset .ObjectMeta.Annotations "sidecar.istio.io/bootstrapOverride" }}
    - name: ISTIO_BOOTSTRAP_OVERRIDE
      value: /etc/istio/custom-bootstrap/custom_bootstrap.json
  {{- end }}
  {{- $trustDomain := .MeshConfig.TrustDomain | default $global.trustDomain | default "cluster.local" }}
    - name: ISTIO_META_MESH_ID
      value: {{ $global.meshID | default $trustDomain | quote }}
    - name: TRUST_DOMAIN
      value: {{ $trustDomain | quote }}
  {{- range $name, $value := .ProxyConfig.ProxyMetadata }}
    - name: {{ $name | quote }}
      value: {{ $value | quote }}
  {{- end }}
{{- end }}

{{- define "isthmus.volumeMounts" }}
    volumeMounts:
    - {name: workload-socket, mountPath: /var/run/secrets/workload-spiffe-uds}
    - {name: credential-socket, mountPath: /var/run/secrets/credential-uds}
    - {name: workload-certs, mountPath: /var/run/secrets/workload-spiffe-credentials}
    - {name: istiod-ca-cert, mountPath: /var/run/secrets/istio}
    - {name: istio-ca-crl, mountPath: /var/run/secrets/istio/crl}
    - {name: istio-data, mountPath: /var/lib/istio/data}
    - {name: istio-envoy, mountPath: /etc/istio/proxy}
    - {name: istio-token, mountPath: /var/run/secrets/tokens}
    - {name: istio-podinfo, mountPath: /etc/istio/pod}
  {{- if isset .ObjectMeta.Annotations "sidecar.istio.io/bootstrapOverride" }}
    - {name: custom-bootstrap-volume, mountPath: /etc/istio/custom-bootstrap}
  {{- end }}
  {{- if .Values.global.mountMtlsCerts }}
    - {name: istio-certs, mountPath: /etc/certs/, readOnly: true}
  {{- end }}
  {{- range $name, $mount := fromJSON (annotation .ObjectMeta "sidecar.istio.io/userVolumeMount" "{}") }}
    - {{ structToJSON (merge (dict "name" $name) $mount) }}
  {{- end }}
{{- end }}

{{- /* The sockets have no source on purpose: a template of a node agent may give one. */ -}}
{{- define "isthmus.volumes" }}
  volumes:
  - name: workload-socket
    emptyDir:
  - name: credential-socket
    emptyDir:
  - name: workload-certs
    emptyDir:
  - name: istio-envoy
    emptyDir: {medium: Memory}
  - name: istio-data
    emptyDir: {}
  - name: istio-podinfo
    downwardAPI:
      items:
      - path: labels
        fieldRef: {fieldPath: metadata.labels}
      - path: annotations
        fieldRef: {fieldPath: metadata.annotations}
  - name: istio-token
    projected:
      sources:
      - serviceAccountToken:
          path: istio-token
          expirationSeconds: 43200
          audience: {{ dig "sds" "token" "aud" "istio-ca" .Values.global | quote }}
  - name: istiod-ca-cert
    configMap: {name: {{ dig "trustBundleName" "" .Values.global | default "istio-ca-root-cert" | quote }}}
  - name: istio-ca-crl
    configMap: {name: istio-ca-crl, optional: true}
  {{- if isset .ObjectMeta.Annotations "sidecar.istio.io/bootstrapOverride" }}
  - name: custom-bootstrap-volume
    configMap: {name: {{ index .ObjectMeta.Annotations "sidecar.istio.io/bootstrapOverride" | quote }}}
  {{- end }}
  {{- if .Values.global.mountMtlsCerts }}
  - name: istio-certs
    secret: {optional: true, secretName: {{ printf "istio.%s" (.Spec.ServiceAccountName | default "default") | quote }}}
  {{- end }}
  {{- range $name, $volume := fromJSON (annotation .ObjectMeta "sidecar.istio.io/userVolume" "{}") }}
  - {{ structToJSON (merge (dict "name" $name) $volume) }}
  {{- end }}
{{- end }}

{{- define "isthmus.pullSecrets" }}
  {{- with .Values.global.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name | quote }}{{ else }}{{ . | quote }}{{ end }}
    {{- end }}
  {{- end }}
{{- end -}}
