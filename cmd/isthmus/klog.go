package main

import (
	"fmt"

	"github.com/go-logr/logr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// adoptKlog makes what client-go says through klog part of our log, as scope
// client-go: leader election and watches write there, and would otherwise write
// to stderr in a form of their own. klog is one for the whole process, so this
// is called once, by main, and by no package.
func adoptKlog(log *zap.Logger) {
	klog.SetLoggerWithOptions(logr.New(zapSink{log.Named("client-go").WithOptions(zap.WithCaller(false))}), klog.ContextualLogger(true))
}

// zapSink writes what comes by logr to a zap logger.
type zapSink struct{ log *zap.Logger }

// Init implements [logr.LogSink].
func (zapSink) Init(logr.RuntimeInfo) {}

// Enabled implements [logr.LogSink]: verbosity 0 is information, all above it is
// for debugging.
func (s zapSink) Enabled(verbosity int) bool { return s.log.Core().Enabled(levelOf(verbosity)) }

// Info implements [logr.LogSink].
func (s zapSink) Info(verbosity int, msg string, pairs ...any) {
	s.log.Log(levelOf(verbosity), msg, fieldsOf(pairs)...)
}

// Error implements [logr.LogSink].
func (s zapSink) Error(err error, msg string, pairs ...any) {
	s.log.Error(msg, append(fieldsOf(pairs), zap.Error(err))...)
}

// WithValues implements [logr.LogSink].
func (s zapSink) WithValues(pairs ...any) logr.LogSink {
	return zapSink{s.log.With(fieldsOf(pairs)...)}
}

// WithName implements [logr.LogSink].
func (s zapSink) WithName(name string) logr.LogSink { return zapSink{s.log.Named(name)} }

func levelOf(verbosity int) zapcore.Level {
	if verbosity > 0 {
		return zapcore.DebugLevel
	}
	return zapcore.InfoLevel
}

// fieldsOf turns keys and values, one after the other, into fields.
func fieldsOf(pairs []any) []zap.Field {
	out := make([]zap.Field, 0, len(pairs)/2+1)
	for i := 0; i < len(pairs); i += 2 {
		if i == len(pairs)-1 {
			return append(out, zap.Any("value", pairs[i])) // a key without a value
		}
		out = append(out, zap.Any(fmt.Sprint(pairs[i]), pairs[i+1]))
	}
	return out
}
