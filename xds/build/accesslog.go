package build

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// defaultTextFormat is one line per request or connection, in the form that
// Istio's users have tools for.
const defaultTextFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" ` +
	`%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ` +
	`"%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ` +
	`%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// defaultJSONFields are the same values by name.
func defaultJSONFields() map[string]string {
	return map[string]string{
		"authority":                         "%REQ(:AUTHORITY)%",
		"bytes_received":                    "%BYTES_RECEIVED%",
		"bytes_sent":                        "%BYTES_SENT%",
		"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
		"downstream_local_address":          "%DOWNSTREAM_LOCAL_ADDRESS%",
		"downstream_remote_address":         "%DOWNSTREAM_REMOTE_ADDRESS%",
		"duration":                          "%DURATION%",
		"method":                            "%REQ(:METHOD)%",
		"path":                              "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
		"protocol":                          "%PROTOCOL%",
		"request_id":                        "%REQ(X-REQUEST-ID)%",
		"requested_server_name":             "%REQUESTED_SERVER_NAME%",
		"response_code":                     "%RESPONSE_CODE%",
		"response_code_details":             "%RESPONSE_CODE_DETAILS%",
		"response_flags":                    "%RESPONSE_FLAGS%",
		"route_name":                        "%ROUTE_NAME%",
		"start_time":                        "%START_TIME%",
		"upstream_cluster":                  "%UPSTREAM_CLUSTER_RAW%",
		"upstream_host":                     "%UPSTREAM_HOST%",
		"upstream_local_address":            "%UPSTREAM_LOCAL_ADDRESS%",
		"upstream_service_time":             "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
		"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
		"user_agent":                        "%REQ(USER-AGENT)%",
		"x_forwarded_for":                   "%REQ(X-FORWARDED-FOR)%",
	}
}

// fileLogName is the name of the access logger that writes to a file.
const fileLogName = "envoy.access_loggers.file"

// accessLog is the access log that MeshConfig asks for (accessLogFile,
// accessLogEncoding, accessLogFormat), nil if it asks for none. A JSON format
// that does not parse is taken as absent: registry/config reports it.
func accessLog(m *meshconfig.MeshConfig) (*accesslogv3.AccessLog, error) {
	if m.GetAccessLogFile() == "" {
		return nil, nil
	}
	return fileLog(m.GetAccessLogFile(), logFormat(m))
}

func logFormat(m *meshconfig.MeshConfig) *corev3.SubstitutionFormatString {
	if m.GetAccessLogEncoding() != meshconfig.MeshConfig_JSON {
		return textFormat(m.GetAccessLogFormat())
	}
	fields := &structpb.Struct{}
	if f := m.GetAccessLogFormat(); f == "" || protojson.Unmarshal([]byte(f), fields) != nil {
		fields = defaultJSON()
	}
	return jsonFormat(fields)
}

// unrouted is the same logs for connections that a listener drops because no
// filter chain is for them.
func unrouted(logs []*accesslogv3.AccessLog) []*accesslogv3.AccessLog {
	var out []*accesslogv3.AccessLog
	for _, l := range logs {
		l = proto.CloneOf(l)
		dropped := &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
		}}
		if l.Filter != nil {
			dropped = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
				AndFilter: &accesslogv3.AndFilter{Filters: []*accesslogv3.AccessLogFilter{dropped, l.Filter}},
			}}
		}
		l.Filter = dropped
		out = append(out, l)
	}
	return out
}
