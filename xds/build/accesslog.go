package build

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
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
	config, err := toAny(&filelogv3.FileAccessLog{
		Path:            m.GetAccessLogFile(),
		AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: logFormat(m)},
	})
	if err != nil {
		return nil, err
	}
	return &accesslogv3.AccessLog{Name: fileLogName, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: config}}, nil
}

func logFormat(m *meshconfig.MeshConfig) *corev3.SubstitutionFormatString {
	if m.GetAccessLogEncoding() != meshconfig.MeshConfig_JSON {
		text := m.GetAccessLogFormat()
		if text == "" {
			text = defaultTextFormat
		} else if text[len(text)-1] != '\n' {
			text += "\n"
		}
		return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
			TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}},
		}}
	}
	fields := &structpb.Struct{}
	if f := m.GetAccessLogFormat(); f == "" || protojson.Unmarshal([]byte(f), fields) != nil {
		fields = &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for k, v := range defaultJSONFields() {
			fields.Fields[k] = stringValue(v)
		}
	}
	return &corev3.SubstitutionFormatString{
		Format:            &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields},
		JsonFormatOptions: &corev3.JsonFormatOptions{},
	}
}

// unrouted is the same log for connections that a listener drops because no
// filter chain is for them.
func unrouted(l *accesslogv3.AccessLog) *accesslogv3.AccessLog {
	out := proto.CloneOf(l)
	out.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
	}}
	return out
}
