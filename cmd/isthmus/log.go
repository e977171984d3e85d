package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logOptions are the flags of logging, named as istiod names them.
type logOptions struct {
	// level is LEVEL or SCOPE:LEVEL,..., where the scope is the first part of a
	// logger's name and "default" stands for all that are not named.
	level string
	json  bool
}

func (o *logOptions) bind(fs *pflag.FlagSet, level string) {
	fs.StringVar(&o.level, "log_output_level", level,
		"least severe messages to print: none, error, warn, info or debug, for all or by part, as in default:info,ads:debug")
	fs.BoolVar(&o.json, "log_as_json", false, "log as JSON, one object per line")
}

// levelNone is above every level that is logged.
const levelNone = zapcore.FatalLevel + 1

func parseLevel(s string) (zapcore.Level, error) {
	switch s {
	case "none":
		return levelNone, nil
	case "debug", "info", "warn", "error", "fatal":
		return zapcore.ParseLevel(s)
	}
	return 0, fmt.Errorf("level %q is not one of none, error, warn, info, debug", s)
}

// logLevels is a parsed --log_output_level.
type logLevels struct {
	least, otherwise zapcore.Level
	byPart           map[string]zapcore.Level
}

// parseLevels reads LEVEL or SCOPE:LEVEL,... Parts that do not exist are
// taken: istiod's installations name its own.
func parseLevels(s string) (logLevels, error) {
	out := logLevels{otherwise: zapcore.InfoLevel, byPart: map[string]zapcore.Level{}}
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		part, word, scoped := strings.Cut(item, ":")
		if !scoped {
			part, word = "default", item
		}
		level, err := parseLevel(word)
		if err != nil {
			return logLevels{}, usageError{fmt.Errorf("read --log_output_level %q: %w", s, err)}
		}
		if part == "default" || part == "all" {
			out.otherwise = level
		} else {
			out.byPart[part] = level
		}
	}
	out.least = out.otherwise
	for _, l := range out.byPart {
		out.least = min(out.least, l)
	}
	return out, nil
}

// of is the level of a logger by its name.
func (l logLevels) of(name string) zapcore.Level {
	part, _, _ := strings.Cut(name, ".")
	if level, ok := l.byPart[part]; ok {
		return level
	}
	return l.otherwise
}

// levelledCore lets pass what the levels allow.
type levelledCore struct {
	zapcore.Core
	levels logLevels
}

func (c levelledCore) Enabled(l zapcore.Level) bool { return l >= c.levels.least }

func (c levelledCore) With(fields []zapcore.Field) zapcore.Core {
	return levelledCore{c.Core.With(fields), c.levels}
}

func (c levelledCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level < c.levels.of(e.LoggerName) {
		return ce
	}
	return ce.AddCore(e, c)
}

// logger makes the logger that the options describe.
func (o *logOptions) logger(w io.Writer) (*zap.Logger, error) {
	levels, err := parseLevels(cmp.Or(o.level, "info"))
	if err != nil {
		return nil, err
	}
	cfg := zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", NameKey: "scope", MessageKey: "msg", StacktraceKey: "stack",
		EncodeTime: zapcore.RFC3339TimeEncoder, EncodeDuration: zapcore.StringDurationEncoder,
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeName: zapcore.FullNameEncoder,
	}
	var encoder zapcore.Encoder
	switch {
	case o.json:
		encoder = zapcore.NewJSONEncoder(cfg)
	case isTerminal(w):
		cfg.EncodeLevel = zapcore.LowercaseColorLevelEncoder
		cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		fallthrough
	default:
		cfg.ConsoleSeparator = "  "
		encoder = zapcore.NewConsoleEncoder(cfg)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), zapcore.DebugLevel)
	return zap.New(levelledCore{core, levels}), nil
}

// isTerminal reports whether a person reads what is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
