package authn

import (
	"time"

	"go.uber.org/zap"
)

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func loggerOrNop(l *zap.Logger) *zap.Logger {
	if l == nil {
		return zap.NewNop()
	}
	return l
}

func clockOrSystem(c func() time.Time) func() time.Time {
	if c == nil {
		return time.Now
	}
	return c
}
